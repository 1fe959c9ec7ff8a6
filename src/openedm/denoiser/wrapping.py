"""Denoisers made of one other: what they have in common with it is taken from it here, and nowhere else."""

from collections.abc import Sequence
from typing import ClassVar

from jaxtyping import Float, Float64
from torch import Tensor

from openedm.denoiser.interface import Condition, Denoiser
from openedm.schedules import Values

__all__ = ["CONDITION", "RANGE", "UNITS", "Wrapper", "take_attributes"]

RANGE = ("rows", "event_shape", "sigma_data", "sigma_min", "sigma_max", "consistency")
CONDITION = ("num_classes", "condition_shape", "condition_dropout")
UNITS = ("location", "scale")


def take_attributes(denoiser: Denoiser, other: Denoiser, names: Sequence[str]) -> None:
    """Give a denoiser the attributes of another one; see `Denoiser` for what they mean."""
    for name in names:
        setattr(denoiser, name, getattr(other, name))


class Wrapper(Denoiser):
    """Base class of denoisers made of one other, with its attributes, levels and mean.

    Args:
        denoiser: the other one.

    Attributes:
        taken: the names of the attributes that are those of the other one.
    """

    taken: ClassVar[tuple[str, ...]] = (*RANGE, *CONDITION, *UNITS)

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        take_attributes(self, denoiser, self.taken)

    def mean(
        self, sigma_max: float, condition: Condition = None, event_shape: Sequence[int] | None = None
    ) -> Float[Tensor, "rows *event_or_ones"] | None:
        """The denoiser's `mean`."""
        return self.denoiser.mean(sigma_max, condition, event_shape)

    def round_sigma(self, sigma: Values) -> Float64[Tensor, "*shape"]:
        """The denoiser's `round_sigma`."""
        return self.denoiser.round_sigma(sigma)
