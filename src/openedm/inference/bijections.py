"""Maps of parameters onto all of R^d and back, coordinate by coordinate: samples lie in the support by construction.

(−∞, ∞)     z = θ
(low, ∞)    z = ln(θ − low)
(−∞, high)  z = −ln(high − θ)
(low, high) z = Φ⁻¹((θ − low)/(high − low)), which makes a uniform θ standard normal
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from openedm.ground import checks
from openedm.ground.choices import Choice

# Of the width of an interval: how far inside it a point on its edge is taken to lie. Φ⁻¹ of it is −5.4.
EDGE = 2.0**-25


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
                f"low and high must have one length, got low of {len(self.low)} and high of {len(self.high)}"
            )
        for i, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            checks.ordered(f"low[{i}]", low, f"high[{i}]", high)

    @property
    def dim(self) -> int:
        """d."""
        return len(self.low)

    @property
    def identity(self) -> bool:
        """Whether no coordinate is bounded."""
        return not any(math.isfinite(v) for v in (*self.low, *self.high))

    def contains(self, theta: Float[Tensor, "*batch d"]) -> Tensor:
        """Whether each point lies in the support, (…,); ends count, also as float32 rounds them. NaN does not."""
        return self._within(theta, *self._ends(theta)).all(-1)

    def clamp(self, theta: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """The nearest points strictly inside that theta's number format has."""
        low, high = (end.to(theta.dtype) for end in self._ends(theta))
        upwards, downwards = torch.full_like(low, math.inf), torch.full_like(high, -math.inf)
        inner_low = torch.where(low.isfinite(), torch.nextafter(low, upwards), low)
        inner_high = torch.where(high.isfinite(), torch.nextafter(high, downwards), high)
        return torch.minimum(torch.maximum(theta, inner_low), inner_high)

    def forward(self, theta: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """z of θ, in θ's number format.

        Points on an edge are taken to lie just inside; z is NaN outside.

        Args:
            theta: (…, d).
        """
        return theta if self.identity else self._forward(theta).to(theta.dtype)

    def inverse(self, z: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """θ of z, in z's number format and strictly inside the support in it.

        Args:
            z: (…, d).
        """
        if self.identity:
            return z
        low, high = self._ends(z)
        below, above = low.isfinite(), high.isfinite()
        both = below & above
        start, stop = torch.where(below, low, 0.0), torch.where(above, high, 1.0)
        point = z.double()
        # From the nearer end, where floating-point numbers are densest.
        share = torch.special.ndtr(-point.abs()) * (stop - start)
        interval = torch.where(point < 0, start + share, stop - share)
        growth = torch.where(both, 0.0, torch.where(above & ~below, -point, point))
        # e^z stays finite in z's format.
        distance = growth.clamp(max=math.log(torch.finfo(z.dtype).max) - 1).exp()
        theta = torch.where(both, interval, torch.where(below, start + distance, point))
        theta = torch.where(above & ~below, stop - distance, theta)
        return self.clamp(theta.to(z.dtype))

    def log_det(self, theta: Float[Tensor, "*batch d"]) -> Float64[Tensor, "*batch"]:
        """ln |dz/dθ|, summed over coordinates; NaN outside.

        Args:
            theta: (…, d).
        """
        return self.log_det_at(self._forward(theta))

    def log_det_at(self, z: Float[Tensor, "*batch d"]) -> Float64[Tensor, "*batch"]:
        """The same at the θ of z, without the quantile functions that lead there.

        Args:
            z: (…, d).
        """
        low, high = self._ends(z)
        below, above = low.isfinite(), high.isfinite()
        both = below & above
        z = z.double()
        width = torch.where(both, high, 1.0) - torch.where(both, low, 0.0)
        probit = z**2 / 2 + math.log(2 * math.pi) / 2 - width.log()
        logarithm = torch.where(above & ~below, z, -z)
        return torch.where(both, probit, torch.where(below | above, logarithm, 0.0 * z)).sum(-1)

    def _forward(self, theta: Tensor) -> Tensor:
        low, high = self._ends(theta)
        below, above = low.isfinite(), high.isfinite()
        both = below & above
        start, stop = torch.where(below, low, 0.0), torch.where(above, high, 1.0)
        point = torch.where(self._within(theta, low, high), theta.double(), math.nan)
        width = torch.where(both, stop - start, 1.0)
        from_low = torch.where(both, ((point - start) / width).clamp(min=EDGE * (point <= start)), 0.5)
        from_high = torch.where(both, ((stop - point) / width).clamp(min=EDGE * (point >= stop)), 0.5)
        probit = torch.where(from_low < 0.5, torch.special.ndtri(from_low), -torch.special.ndtri(from_high))
        half = (below | above) & ~both
        distance = torch.where(half, torch.where(below, point - start, stop - point), 1.0)
        logarithm = distance.clamp(min=torch.finfo(torch.float32).tiny).log()
        logarithm = torch.where(below, logarithm, -logarithm)
        return torch.where(both, probit, torch.where(half, logarithm, point))

    def _within(self, theta: Tensor, low: Tensor, high: Tensor) -> Tensor:
        # Ends as float32 rounds them may lie a little outside.
        point = theta.double()
        return (point >= torch.minimum(low, low.float().double())) & (
            point <= torch.maximum(high, high.float().double())
        )

    def _ends(self, like: Tensor) -> tuple[Tensor, Tensor]:
        if like.shape[-1:] != (self.dim,):
            raise ValueError(f"theta must have {self.dim} columns, got the shape {tuple(like.shape)}")
        return (
            torch.tensor(self.low, dtype=torch.float64, device=like.device),
            torch.tensor(self.high, dtype=torch.float64, device=like.device),
        )
