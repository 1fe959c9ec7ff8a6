"""Hypothesis draws the same examples in every run, and gives each as long as it takes."""

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import jaxtyping
import pytest
from hypothesis import settings

examples = int(os.environ.get("OPENEDM_EXAMPLES", "30"))  # `make check` asks for fewer, `make laws` for more
settings.register_profile("openedm", derandomize=True, deadline=None, max_examples=examples)
settings.load_profile("openedm")


def pytest_configure(config: pytest.Config) -> None:
    """Of a long tuple beartype checks one item at random, also while Hypothesis makes a choice that holds a table."""
    config.addinivalue_line("filterwarnings", "ignore:Do not use the `random` module inside strategies")


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(
    file_path: Path, parent: pytest.Collector
) -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """No file of tests has examples in docstrings: to look for them would import each file a second time."""
    return [found for found in (yield) if type(found) is pytest.Module]


@pytest.fixture
def without_type_checker(monkeypatch: pytest.MonkeyPatch) -> None:
    """As users run the library: what the tests' type checker would refuse first reaches the library's own errors."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """The test starts and ends without accelerate's singletons."""
    from accelerated import forget_accelerate  # half a second, for the tests that train

    forget_accelerate()
    yield
    forget_accelerate()
