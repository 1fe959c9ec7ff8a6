"""Checks of arguments: each raises an error that names the argument, what was given and what is allowed."""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import pairwise
from numbers import Real

MAX_SIZE = 2**20
"""The largest width, number of layers or of anything else that networks are built from."""


def instance(name: str, value: object, kind: type | tuple[type, ...], expected: str) -> None:
    """Raise TypeError unless `value` is an instance of `kind`; `expected` describes what is allowed."""
    if not isinstance(value, kind):
        got = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise TypeError(f"{name} must be {expected}, got {got}")


def number(name: str, value: object) -> None:
    """Raise TypeError unless `value` is an int or float, of Python or numpy; True is not."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")


def finite(name: str, value: float) -> None:
    """Raise ValueError unless `value` is a finite number."""
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")


def positive(name: str, value: float) -> None:
    """Raise ValueError unless `value` is finite and > 0."""
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be finite and > 0, got {value!r}")


def at_least(name: str, value: float, low: float) -> None:
    """Raise ValueError unless `value` ≥ `low`; NaN is an error, too."""
    if not value >= low:
        raise ValueError(f"{name} must be >= {low}, got {value!r}")


def integer(name: str, value: object, low: int | None = None, high: int | None = None) -> None:
    """Raise TypeError unless `value` is an int (18.0 and True are not), ValueError unless `low` ≤ it ≤ `high`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if low is not None:
        at_least(name, value, low)
    if high is not None and value > high:
        raise ValueError(f"{name} must be at most {high:,}, got {value!r}")


def size(name: str, value: float, low: float = 1, high: int = MAX_SIZE) -> None:
    """Raise ValueError unless `low` ≤ `value` ≤ `high`, of a number that memory or time grow with."""
    at_least(name, value, low)
    if value > high:
        raise ValueError(f"{name} must be at most {high:,}, got {value!r}")


def between(name: str, value: float, low: float, high: float) -> None:
    """Raise ValueError unless `low` ≤ `value` ≤ `high`; NaN is an error, too."""
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low} and {high}, got {value!r}")


def ordered(low_name: str, low: float, high_name: str, high: float) -> None:
    """Raise ValueError unless `low` < `high`."""
    if not low < high:
        raise ValueError(f"{low_name} must be < {high_name}, got {low_name}={low!r} and {high_name}={high!r}")


def decreasing(name: str, values: Sequence[float]) -> None:
    """Raise ValueError unless `values` decrease strictly and are finite and ≥ 0."""
    for i, value in enumerate(values):
        finite(f"{name}[{i}]", value)
        at_least(f"{name}[{i}]", value, 0)
    for i, (high, low) in enumerate(pairwise(values)):
        if not high > low:
            raise ValueError(f"{name} must decrease strictly, got {name}[{i}]={high!r} and {name}[{i + 1}]={low!r}")


def one_of(name: str, value: object, allowed: Collection[object]) -> None:
    """Raise ValueError unless `value` is among `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def different(name: str, values: Sequence[object]) -> None:
    """Raise ValueError if a value occurs more than once."""
    if len(set(values)) < len(values):
        repeated = [f"{value} {count} times" for value, count in Counter(values).items() if count > 1]
        raise ValueError(f"{name} must be different numbers, got {first_of(repeated, separator=', ')}")


def first_of(items: Sequence[str], most: int = 5, separator: str = "; ") -> str:
    """The first few items of a list, and how many more there are: the list in an error's message."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return separator.join(items[:most]) + more
