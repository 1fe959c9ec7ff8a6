"""Maps of parameters onto all of R^d and back, coordinate by coordinate: samples lie in the support by construction.

(−∞, ∞)     z = θ
(low, ∞)    z = ln(θ − low)
(−∞, high)  z = −ln(high − θ)
(low, high) z = Φ⁻¹((θ − low)/(high − low)), which makes a uniform θ standard normal

`torch.distributions.biject_to` maps intervals by the logistic function, which does not make a uniform θ normal, and its
`CumulativeDistributionTransform` computes Φ from one end alone, which loses all digits near the other one. Neither
keeps θ strictly inside the support after rounding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from openedm.ground import checks
from openedm.ground.choices import Choice

__all__ = ["Bijection"]

EDGE = 2.0**-25
"""Points on an edge of an interval are taken to lie this share of its width inside. Φ⁻¹ of it is −5.4."""


class _Ends(NamedTuple):
    """Intervals, (d,) each, in float64. Half-lines below an end are mirrored: sign·θ lies above sign·high."""

    low: Tensor
    high: Tensor
    bounded: Tensor
    """Whether both ends are finite."""
    half_line: Tensor
    """Whether one end is finite."""
    sign: Tensor
    """−1 where only high is finite, else 1."""
    start: Tensor
    """The lower end of sign·θ, 0 where there is none."""
    width: Tensor
    """high − low, 1 where an end is infinite."""


@dataclass(frozen=True)
class Bijection(Choice):
    """An increasing map of each coordinate's interval onto R; the arithmetic is in float64.

    >>> unbound = Bijection(low=(0.0, -math.inf), high=(2.0, math.inf))
    >>> unbound.forward(torch.tensor([1.5, 3.0]))
    tensor([0.6745, 3.0000])

    Args:
        low: lower ends, one a coordinate; −inf where there is none.
        high: upper ends; inf where there is none.

    Raises:
        ValueError: low and high differ in length, or low ≥ high somewhere.
    """

    low: Sequence[float]
    high: Sequence[float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", tuple(float(v) for v in self.low))
        object.__setattr__(self, "high", tuple(float(v) for v in self.high))
        if len(self.low) != len(self.high):
            raise ValueError(
                f"low and high must have the same length, got low of {len(self.low)} and high of {len(self.high)}"
            )
        for i, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            checks.ordered(f"low[{i}]", low, f"high[{i}]", high)

    @classmethod
    def unbounded(cls, dim: int) -> "Bijection":
        """The identity of R^dim."""
        return cls((-math.inf,) * dim, (math.inf,) * dim)

    @property
    def dim(self) -> int:
        """d."""
        return len(self.low)

    @property
    def identity(self) -> bool:
        """Whether no coordinate is bounded."""
        return not any(math.isfinite(v) for v in (*self.low, *self.high))

    def contains(self, theta: Float[Tensor, "*batch d"]) -> Bool[Tensor, "*batch"]:
        """Whether each point lies in the support; ends count, also as float32 rounds them. NaN does not."""
        return _within(theta, self._ends(theta)).all(-1)

    def clamp(self, theta: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """The nearest points strictly inside the support, in θ's number format."""
        low, high = (end.to(theta.dtype) for end in self._ends(theta)[:2])
        upwards, downwards = torch.full_like(low, math.inf), torch.full_like(high, -math.inf)
        inner_low = torch.where(low.isfinite(), torch.nextafter(low, upwards), low)
        inner_high = torch.where(high.isfinite(), torch.nextafter(high, downwards), high)
        return torch.minimum(torch.maximum(theta, inner_low), inner_high)

    def forward(self, theta: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """z of θ (…, d), in θ's number format; NaN outside. Points on an edge are taken to lie just inside."""
        return theta if self.identity else self._forward(theta).to(theta.dtype)

    def inverse(self, z: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """θ of z (…, d), in z's number format and strictly inside the support in it."""
        if self.identity:
            return z
        ends, point = self._ends(z), z.double()
        # From the nearer end, where floating-point numbers are densest.
        share, stop = torch.special.ndtr(-point.abs()) * ends.width, torch.where(ends.bounded, ends.high, 1.0)
        interval = torch.where(point < 0, ends.start + share, stop - share)
        # e^z stays finite in z's format.
        distance = torch.where(ends.half_line, ends.sign * point, 0.0)
        distance = distance.clamp(max=math.log(torch.finfo(z.dtype).max) - 1).exp()
        half_line = ends.sign * (ends.start + distance)
        theta = torch.where(ends.bounded, interval, torch.where(ends.half_line, half_line, point))
        return self.clamp(theta.to(z.dtype))

    def log_det(self, theta: Float[Tensor, "*batch d"]) -> Float64[Tensor, "*batch"]:
        """ln |dz/dθ| at θ (…, d), summed over coordinates; NaN outside."""
        return self.log_det_at(self._forward(theta))

    def log_det_at(self, z: Float[Tensor, "*batch d"]) -> Float64[Tensor, "*batch"]:
        """ln |dz/dθ| at the θ of z (…, d); it needs no quantile function."""
        ends, z = self._ends(z), z.double()
        probit = z**2 / 2 + math.log(2 * math.pi) / 2 - ends.width.log()
        return torch.where(ends.bounded, probit, torch.where(ends.half_line, -ends.sign * z, 0.0 * z)).sum(-1)

    def _forward(self, theta: Float[Tensor, "*batch d"]) -> Float64[Tensor, "*batch d"]:
        ends, half = self._ends(theta), 0.5
        point = torch.where(_within(theta, ends), theta.double(), math.nan)
        above, below = ends.sign * point - ends.start, torch.where(ends.bounded, ends.high, 1.0) - point
        from_low = torch.where(ends.bounded, (above / ends.width).clamp(min=EDGE * (point <= ends.low)), half)
        from_high = torch.where(ends.bounded, (below / ends.width).clamp(min=EDGE * (point >= ends.high)), half)
        probit = torch.where(from_low < half, torch.special.ndtri(from_low), -torch.special.ndtri(from_high))
        distance = torch.where(ends.half_line, above, 1.0)
        logarithm = ends.sign * torch.where(distance <= 0, torch.finfo(torch.float32).tiny, distance).log()
        return torch.where(ends.bounded, probit, torch.where(ends.half_line, logarithm, point))

    def _ends(self, like: Float[Tensor, "*batch d"]) -> _Ends:
        if like.shape[-1:] != (self.dim,):
            raise ValueError(f"theta must have {self.dim} columns, got the shape {tuple(like.shape)}")
        low, high = (torch.tensor(ends, dtype=torch.float64, device=like.device) for ends in (self.low, self.high))
        bounded, half_line = low.isfinite() & high.isfinite(), low.isfinite() ^ high.isfinite()
        sign = torch.where(half_line & high.isfinite(), -1.0, 1.0).double()
        start = torch.where(low.isfinite(), low, torch.where(half_line, -high, 0.0))
        return _Ends(low, high, bounded, half_line, sign, start, torch.where(bounded, high - low, 1.0))


def _within(theta: Float[Tensor, "*batch d"], ends: _Ends) -> Bool[Tensor, "*batch d"]:
    # Ends as float32 rounds them may lie a little outside.
    point, low, high = theta.double(), ends.low, ends.high
    return (point >= torch.minimum(low, low.float().double())) & (point <= torch.maximum(high, high.float().double()))
