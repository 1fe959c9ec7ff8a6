"""The run-time type checker of the tests: beartype, with an int accepted where a float is asked for (PEP 484)."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_beartyped = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with its arguments and its result checked, each of them once.

    jaxtyping asks for two checks of a call: one before it, of the arguments, for which it annotates the result with
    Any; one after it, of the result and of the arguments again. The names of axes that the first has bound hold in
    the second, so nothing is lost if that leaves the arguments out, and the tests take less time.
    """
    annotations = function.__annotations__
    if annotations.get("return", Any) is not Any:
        function.__annotations__ = dict.fromkeys(annotations, Any) | {"return": annotations["return"]}
    checks: Callable[..., Any] = _beartyped(function)
    return checks
