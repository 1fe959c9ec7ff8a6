"""Hypothesis draws the same examples in every run, and gives each as long as it takes."""

import pytest
from hypothesis import settings

settings.register_profile("openedm", derandomize=True, deadline=None)
settings.load_profile("openedm")


def pytest_configure(config: pytest.Config) -> None:
    """Of a long tuple beartype checks one item at random, also while Hypothesis makes a choice that holds a table."""
    config.addinivalue_line("filterwarnings", "ignore:Do not use the `random` module inside strategies")
