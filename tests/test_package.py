"""What `import openedm` offers: names at the first guess, loaded when they are used."""

import importlib
import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import openedm


def test_importing_the_package_loads_neither_torch_nor_a_room() -> None:
    code = "import openedm, sys; print([m for m in sys.modules if m == 'torch' or m.startswith('openedm.')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_process_that_calls_simulators_does_not_wait_for_scipys_distributions() -> None:
    code = "import openedm.inference.calling, sys; print('scipy.stats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("name", openedm.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(openedm, name) is not None
    assert name in dir(openedm)


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("EDM", ["openedm.objective.EDM", "openedm.preconditioning.EDM", "openedm.schedules.EDM"]),
        ("DPMSolverPP2M", ["openedm.sampling.DPMSolverPP2M"]),
    ],
)
def test_the_error_for_a_name_of_a_room_says_where_it_is(name: str, places: list[str]) -> None:
    with pytest.raises(AttributeError, match="did you mean") as error:
        getattr(openedm, name)
    assert all(place in str(error.value) for place in places)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"has no attribute 'Hoin'$"):
        _ = openedm.Hoin


ROOMS = [name for name in openedm.__all__ if inspect.ismodule(getattr(openedm, name))]


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_states_its_public_names_and_has_them(room: str) -> None:
    module = importlib.import_module(f"openedm.{room}")
    assert module.__all__
    assert len(set(module.__all__)) == len(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


def test_the_wheel_carries_presets_help_and_all_else_that_is_not_python() -> None:
    root = Path(openedm.__file__).parent
    settings = tomllib.loads((root.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["openedm"]
    carried = {path for pattern in patterns for path in root.glob(pattern)}
    carried |= set(root.rglob("*.pyi"))  # as setuptools does from version 69 on
    files = {path for path in root.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert {path.name for path in files} >= {"py.typed", "help.json", "cifar10-ddpmpp.yaml"}
    assert sorted(str(path) for path in files - carried) == []
