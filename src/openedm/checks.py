"""Checks of arguments: each raises an error that names the argument, what was given and what is allowed."""

import math
from collections.abc import Collection


def finite(name: str, value: float) -> None:
    """Raise ValueError unless `value` is a finite number."""
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")


def positive(name: str, value: float) -> None:
    """Raise ValueError unless `value` is finite and > 0."""
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be finite and > 0, got {value!r}")


def at_least(name: str, value: float, low: float) -> None:
    """Raise ValueError unless `value` ≥ `low` (NaN is refused)."""
    if not value >= low:
        raise ValueError(f"{name} must be >= {low}, got {value!r}")


def between(name: str, value: float, low: float, high: float) -> None:
    """Raise ValueError unless `low` ≤ `value` ≤ `high` (NaN is refused)."""
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low} and {high}, got {value!r}")


def ordered(low_name: str, low: float, high_name: str, high: float) -> None:
    """Raise ValueError unless `low` < `high`."""
    if not low < high:
        raise ValueError(f"{low_name} must be < {high_name}, got {low_name}={low!r} and {high_name}={high!r}")


def one_of(name: str, value: object, allowed: Collection[object]) -> None:
    """Raise ValueError unless `value` is among `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
