"""Each check accepts exactly what it states, and its error names the argument, the value and what is allowed."""

import math
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openedm.ground import checks

NUMBERS = st.floats(allow_nan=True, allow_infinity=True)


def accepts(check: Callable[..., None], *arguments: object) -> bool:
    try:
        check(*arguments)
    except ValueError:
        return False
    return True


@given(NUMBERS, NUMBERS, NUMBERS)
def test_a_check_accepts_what_it_states_and_never_a_nan(value: float, low: float, high: float) -> None:
    assert accepts(checks.finite, "x", value) == math.isfinite(value)
    assert accepts(checks.positive, "x", value) == (math.isfinite(value) and value > 0)
    assert accepts(checks.at_least, "x", value, low) == (value >= low)
    assert accepts(checks.between, "x", value, low, high) == (low <= value <= high)
    assert accepts(checks.ordered, "x", value, "y", high) == (value < high)


@given(st.lists(st.floats(allow_nan=True), max_size=6))
def test_falling_values_are_finite_at_least_zero_and_strictly_decreasing(values: list[float]) -> None:
    falling = all(math.isfinite(v) and v >= 0 for v in values) and sorted(set(values), reverse=True) == values
    assert accepts(checks.decreasing, "table", values) == falling


@pytest.mark.parametrize("value", [18.0, "18", None, True])
def test_only_an_int_is_an_integer(value: object) -> None:
    checks.integer("num_steps", 18)
    with pytest.raises(TypeError, match=f"^num_steps must be an integer, got {value!r}$"):
        checks.integer("num_steps", value)


@pytest.mark.parametrize(
    ("check", "arguments", "message"),
    [
        (checks.finite, ("p_mean", math.nan), "p_mean must be a finite number, got nan"),
        (checks.positive, ("rho", -7.0), "rho must be finite and > 0, got -7.0"),
        (checks.positive, ("rho", math.inf), "rho must be finite and > 0, got inf"),
        (checks.at_least, ("num_steps", 0, 1), "num_steps must be >= 1, got 0"),
        (checks.between, ("dropout", 1.5, 0, 1), "dropout must be between 0 and 1, got 1.5"),
        (checks.ordered, ("low", 2, "high", 1), "low must be < high, got low=2 and high=1"),
        (checks.decreasing, ("table", (2.0, 2.0)), "table must decrease strictly, got table[0]=2.0 and table[1]=2.0"),
        (checks.decreasing, ("table", (math.inf, 2.0)), "table[0] must be a finite number, got inf"),
        (checks.decreasing, ("table", (2.0, -1.0)), "table[1] must be >= 0, got -1.0"),
        (checks.one_of, ("final", "end", ("denoise", "euler")), "final must be one of 'denoise', 'euler', got 'end'"),
    ],
)
def test_the_error_names_the_argument_the_value_and_what_is_allowed(
    check: Callable[..., None], arguments: tuple[object, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check(*arguments)
