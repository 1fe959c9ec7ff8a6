"""docs/architecture.md is true: its floors are those that are checked, and its walks are the calls that are made."""

import inspect
import pkgutil
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

import openedm
from fitted import TINY
from openedm.data import Toy
from openedm.inference import fit, simulate, tasks

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]


def section(title: str) -> str:
    """The text below a heading, up to the next heading of any depth."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"docs/architecture.md has no section {title!r}"
    return found[1]


def test_the_floors_on_the_page_are_those_that_are_checked() -> None:
    rows = re.findall(r"^\| \d+ \| (.*?) \|", section("Floors"), re.MULTILINE)
    layers = [[name.strip().removeprefix("openedm.") for name in layer.split(":")] for layer in CONTRACTS[0]["layers"]]
    assert [sorted(re.findall(r"`(\w+)`", row)) for row in rows] == [sorted(layer) for layer in layers]


def test_every_room_is_on_a_floor() -> None:
    rooms = {info.name for info in pkgutil.iter_modules(openedm.__path__)} - {"__main__"}
    assert rooms == set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| \d+ \| .*? \|", section("Floors"), re.M))))


def test_the_files_on_the_page_exist() -> None:
    for path in re.findall(r"`((?:src|docs|tests|benchmarks)/[\w./-]+)`", PAGE):
        assert (ROOT / path).exists(), path


def walk(title: str) -> list[str]:
    """The functions that a numbered list under a heading names, one at the start of each item."""
    return re.findall(r"^\d+\. `([\w.]+)`", section(title), re.MULTILINE)


def code_of(name: str) -> CodeType:
    """The code of `module.Class.method` or `module.function` below openedm."""
    value: Any = openedm
    for part in name.split("."):
        value = getattr(value, part) if not inspect.ismodule(value) else _member(value, part)
    function = inspect.unwrap(value.fget if isinstance(value, property) else value)
    return function.__code__


def _member(module: Any, name: str) -> Any:
    __import__(f"{module.__name__}.{name}") if _is_module(module, name) else None
    return getattr(module, name)


def _is_module(module: Any, name: str) -> bool:
    return hasattr(module, "__path__") and any(info.name == name for info in pkgutil.iter_modules(module.__path__))


def calls(scenario: Callable[[], object]) -> Iterator[CodeType]:
    """The code objects that are entered while the scenario runs, in order."""
    entered: list[CodeType] = []

    def record(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            entered.append(frame.f_code)

    sys.setprofile(record)
    try:
        scenario()
    finally:
        sys.setprofile(None)
    return iter(entered)


def a_training_step() -> None:
    data = Toy("two_moons", num_samples=32).load()
    model = openedm.Model.for_data(data, openedm.MLP())
    openedm.Trainer(model, data, options=openedm.Options(images=4, batch_size=4)).fit()


def a_sample() -> None:
    mixture = openedm.GaussianMixture([1.0], [[0.0, 1.0]], [[[1.0, 0.0], [0.0, 1.0]]])
    levels = openedm.Karras(num_steps=3, sigma_max=71.0)  # no other test plans these levels, and plans are kept
    openedm.Sampler(levels=levels).sample(mixture, seeds=[0, 1])


def a_posterior() -> None:
    task = tasks.get("two_moons")
    simulations = simulate(partial(task.simulate, seed=2), task.prior, 400, seed=1, batched=True)
    posterior = fit(simulations, settings=TINY)
    posterior.with_refinement(TINY.refinement).sample(simulations.x[0], 3)


SCENARIOS = {"A training step": a_training_step, "A sample": a_sample, "A posterior": a_posterior}


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("title", SCENARIOS)
def test_a_walk_on_the_page_is_the_order_of_calls(title: str) -> None:
    entered = calls(SCENARIOS[title])
    for name in walk(title):
        code = code_of(name)
        assert any(other is code for other in entered), f"{name} is not called after the functions above it"
    assert len(walk(title)) <= 10
