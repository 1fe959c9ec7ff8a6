"""What the simulations of a store are of, and how two such descriptions differ."""

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openedm.inference.results import Form, Kinds

__all__ = ["Manifest", "describe_difference"]


@dataclass(frozen=True)
class Manifest:
    """What the simulations of a store are of.

    Attributes:
        dim: d.
        seed: from which θ and the simulations' seeds follow.
        simulator: its name.
        prior: its plain form; None where it has none.
        first_theta: the first θ, by which the prior is recognised.
        x_shape: of a result; None before there is one.
        kinds: of several kinds of data in a result, the name and shape of each; None for one kind.
    """

    dim: int
    seed: int
    simulator: str
    prior: Mapping[str, Any] | None
    first_theta: Sequence[Sequence[float]]
    x_shape: tuple[int, ...] | None = None
    kinds: Kinds | None = None

    @property
    def form(self) -> Form | None:
        """The form of a result; None before there is one."""
        return None if self.x_shape is None else Form(self.x_shape, self.kinds)


def describe_difference(stored: Manifest, given: Manifest) -> str:
    """The first difference between two priors; where their forms have none, of the parameters drawn from them."""
    found = list(_differences(stored.prior, given.prior))
    found = found or list(_differences(stored.first_theta, given.first_theta, "theta"))
    place, one, other = found[0]
    return f"{place} is {one} there, got {other}" + (f" (and {len(found) - 1} more differ)" if len(found) > 1 else "")


def _differences(stored: Any, given: Any, place: str = "prior") -> Iterator[tuple[str, Any, Any]]:
    """Where the plain forms of two priors differ, such as prior.high[1], and what is there in each."""
    match stored, given:
        case (Mapping(), Mapping()) if stored.get("class_path") == given.get("class_path"):
            for key in dict.fromkeys([*stored, *given]):
                inner = place if key == "init_args" else f"{place}.{key}"
                yield from _differences(stored.get(key), given.get(key), inner)
        case (Mapping(), Mapping()):
            one, other = (str(form.get("class_path")).rpartition(".")[2] for form in (stored, given))
            yield place, one, other
        case (list() | tuple(), list() | tuple()) if len(stored) == len(given):
            for i, (one, other) in enumerate(zip(stored, given, strict=True)):
                yield from _differences(one, other, f"{place}[{i}]")
        case _ if stored != given:
            yield place, reprlib.repr(stored), reprlib.repr(given)
