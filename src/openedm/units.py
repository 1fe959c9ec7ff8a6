"""Units: data y as z = (y − location)/scale, one location and one scale a channel.

In standard units the channels have mean 0 and σ_data = 0.5, for which EDM's numbers were chosen (Karras et al. 2022,
Table 1). The noise of data in their own units is then σ · scale · n, with σ in standard units, and the densities of y
and z differ by a constant: ln p(y) = ln p(z) − Σ ln scale, over all entries of a sample.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from openedm.ground import checks
from openedm.ground.choices import Choice

__all__ = ["Units"]

DIGITS = 6
"""Significant digits of measured units: further ones depend on the number of threads, and a resumed run must compute
the same numbers."""

FLOAT32_DIGITS = 9
"""Significant digits that distinguish all numbers of float32."""

RESOLUTION = 1e-9
"""Channels whose standard deviation is a smaller part of their mean are constant: float32 distinguishes 1e-7 of it, and
the others are the rounding of sums."""


@dataclass(frozen=True)
class Units(Choice):
    """The units of data: where a channel is and how wide, z = (y − location)/scale.

    Args:
        location: one number a channel (the first axis of a sample; each feature of a vector), or a single one for all.
        scale: the widths, > 0, as many.

    Raises:
        ValueError: there are no numbers, their counts differ, a number is not finite, or a scale is not > 0.

    >>> celsius = Units((280.0,), (20.0,))
    >>> celsius.standardise(torch.tensor([[290.0]])), celsius.restore(torch.tensor([[0.5]]))
    (tensor([[0.5000]]), tensor([[290.]]))
    """

    location: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not self.location or len(self.location) != len(self.scale):
            raise ValueError(
                "location and scale must hold the same number of values, one a channel or a single one, got "
                f"{len(self.location)} and {len(self.scale)}"
            )
        for i, (location, scale) in enumerate(zip(self.location, self.scale, strict=True)):
            checks.finite(f"location[{i}]", location)
            checks.positive(f"scale[{i}]", scale)

    @classmethod
    def measured(cls, means: Sequence[float], stds: Sequence[float], std: float = 0.5) -> "Units":
        """The units in which channels of these means and standard deviations have mean 0 and the deviation `std`.

        The numbers have six significant digits, a location those of its channel's width, as far as float32 has them.
        A constant channel has the least scale of the others, or that of its value where this is less, but not more than
        1: the error of a network is a part of the scale.

        Args:
            means: the mean of each channel.
            stds: the standard deviation of each.
            std: the deviation in standard units, > 0.
        """
        checks.positive("std", std)
        constant = [width <= RESOLUTION * abs(mean) for mean, width in zip(means, stds, strict=True)]
        least = min((width / std for width, fixed in zip(stds, constant, strict=True) if not fixed), default=1.0)
        location, scale = [], []
        for mean, width, fixed in zip(means, stds, constant, strict=True):
            chosen = min(1.0, least, abs(mean) or 1.0) if fixed else width / std
            scale.append(float(f"{chosen:.{DIGITS}g}"))
            location.append(float(f"{mean:.{FLOAT32_DIGITS}g}") if fixed else _rounded(mean, scale[-1]))
        return cls(tuple(location), tuple(scale))

    def __str__(self) -> str:
        """Location and scale of each channel, or those of the first ones."""
        return self.describe(1.0)

    def describe(self, sigma_data: float) -> str:
        """Mean and standard deviation in data units of the first channels, for data of σ_data in standard units."""
        pairs = zip(self.location[:4], self.scale[:4], strict=True)
        shown = [f"{m:g} ± {s * sigma_data:.6g}" for m, s in pairs]
        return ", ".join(shown) + (f" and {len(self.scale) - 4} more" if len(self.scale) > 4 else "")

    def check(self, name: str, event_shape: Sequence[int]) -> None:
        """Raise ValueError unless the numbers are a single one or one for each channel of such a sample."""
        if len(self.scale) not in (1, *event_shape[:1]):
            raise ValueError(
                f"{name} must hold 1 number or one for each of the {event_shape[0] if event_shape else 0} channels of "
                f"{tuple(event_shape)}, got {len(self.scale)}"
            )

    def location_of(self, event_shape: Sequence[int]) -> Float[Tensor, "*event_or_ones"]:
        """The location in a shape that broadcasts against samples of such a shape; float64, on the host."""
        return _align(self.location, event_shape)

    def scale_of(self, event_shape: Sequence[int]) -> Float[Tensor, "*event_or_ones"]:
        """The scale in a shape that broadcasts against samples of such a shape; float64, on the host."""
        return _align(self.scale, event_shape)

    def standardise(self, y: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        """(y − location)/scale, in the dtype of y."""
        return to_standard(y, self.location_of(y.shape[1:]), self.scale_of(y.shape[1:]))

    def restore(self, z: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        """location + scale · z, in the dtype of z."""
        return from_standard(z, self.location_of(z.shape[1:]), self.scale_of(z.shape[1:]))

    def log_scale(self, event_shape: Sequence[int]) -> float:
        """Σ ln scale over all entries of a sample of such a shape: ln p(y) = ln p(z) − this."""
        repeats = math.prod(event_shape) / len(self.scale)
        return repeats * math.fsum(math.log(scale) for scale in self.scale)


def to_standard(y: Tensor, location: Tensor | None, scale: Tensor | None) -> Tensor:
    """(y − location)/scale in the dtype of y; y itself where both are None. They broadcast against samples of y."""
    y = y if location is None else y - like(location, y)
    return y if scale is None else y / like(scale, y)


def from_standard(z: Tensor, location: Tensor | None, scale: Tensor | None) -> Tensor:
    """location + scale · z in the dtype of z; z itself where both are None."""
    z = z if scale is None else z * like(scale, z)
    return z if location is None else z + like(location, z)


def like(values: Tensor, x: Tensor) -> Tensor:
    """`values` on the device and in the dtype of x, without waiting for the device."""
    return values.to(x.device, x.dtype, non_blocking=True)


def _rounded(mean: float, scale: float) -> float:
    """The mean to six digits of the scale; the nearest number of float32 where that is coarser, as data have it."""
    rounded = round(mean, DIGITS - 1 - math.floor(math.log10(scale)))
    single = float(torch.tensor(rounded, dtype=torch.float32))
    return single if abs(single - rounded) > 1e-3 * scale else rounded


def _align(values: Sequence[float], event_shape: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(-1, *[1] * (len(event_shape) - 1))
