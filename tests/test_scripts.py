"""Benchmarks, examples and documents, few of which a test runs, use names that the library has."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOREIGN = {"jax", "torchdiffeq", "torchode", "diffusers", "azula", "k_diffusion", "flax", "gensbi"}
"""What only the environments of the peers have."""
SCRIPTS = sorted(
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for folder in ("benchmarks", "examples")
    for path in (ROOT / folder).rglob("*.py")
    if ".venv" not in path.as_posix() and not path.name.startswith("__")
)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_can_be_imported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.syspath_prepend(ROOT / "examples")
    try:
        importlib.import_module(name.removeprefix("examples."))
    except ModuleNotFoundError as error:
        if error.name not in FOREIGN:
            raise
        pytest.skip(f"needs {error.name}")


def test_the_scripts_are_found() -> None:
    assert {"benchmarks.speed", "benchmarks.solvers.ours", "examples.influenza"} <= set(SCRIPTS)


PAGES = [path for path in sorted((ROOT / "docs").rglob("*.md")) if not {"_build", "generated"} & set(path.parts)]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_names_in_a_document_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for name in re.findall(r"(?<!\.)\bopenedm(?:\.[A-Za-z_]\w*)+", text):  # `.openedm.lock` is a file
        assert find(name) is not None, name
    for room, names in re.findall(r"^from (openedm[\w.]*) import (.+)$", text, re.MULTILINE):
        for name in names.split(", "):
            assert find(f"{room}.{name}") is not None, f"{room}.{name}"


def find(name: str) -> object:
    """What a dotted name stands for; None where there is no such thing."""
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return None
