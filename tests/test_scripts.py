"""Benchmarks and examples are scripts that few tests run: each must at least be importable as the library is now."""

import importlib
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
