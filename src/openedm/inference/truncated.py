"""A prior cut to a box: p(θ)/p(box) inside, 0 outside.

Draws are by rejection from uniform points of the box in the prior's unbounded coordinates, where a box around a
posterior is small and the prior about even.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from openedm.inference.bijections import Bijection
from openedm.inference.priors import Prior

__all__ = ["PROPOSALS", "Truncated"]

PROPOSALS = 1 << 16


@dataclass(frozen=True, eq=False)
class Truncated(Prior):
    """A prior cut to a box, normalised.

    Args:
        prior: what is cut.
        low, high: the box's ends, d numbers each, inside the prior's support.

    Raises:
        ValueError: an end is missing, low ≥ high, or the prior has no mass there.
    """

    prior: Prior
    low: Sequence[float]
    high: Sequence[float]
    _peak: float = field(init=False, repr=False)
    _log_mass: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", tuple(map(float, self.low)))
        object.__setattr__(self, "high", tuple(map(float, self.high)))
        if len(self.low) != self.prior.dim:
            raise ValueError(f"low must hold {self.prior.dim} numbers, got {len(self.low)}")
        self.bijection  # noqa: B018  # Refuses ends that are no intervals.
        z, density = self._proposals(0)
        peak = float(density.max())
        if not math.isfinite(peak):
            raise ValueError("prior must have mass between low and high")
        # A proposal may lie nearer to the peak than all that were seen.
        object.__setattr__(self, "_peak", peak + 0.2)
        volume = float((self._z_ends()[1] - self._z_ends()[0]).log().sum())
        object.__setattr__(self, "_log_mass", float(density.logsumexp(0)) - math.log(len(z)) + volume)

    @property
    def names(self) -> Sequence[str] | None:
        """The prior's."""
        return self.prior.names

    @property
    def dim(self) -> int:
        """d."""
        return self.prior.dim

    @property
    def bijection(self) -> Bijection:
        """Of the box."""
        return Bijection(self.low, self.high)

    def contains(self, theta: Float[Tensor, "*batch d"]) -> Bool[Tensor, "*batch"]:
        """Whether each point is in the box."""
        low, high = (torch.tensor(ends, dtype=torch.float64, device=theta.device) for ends in (self.low, self.high))
        return ((theta.double() >= low) & (theta.double() <= high)).all(-1)

    def _z_ends(self) -> tuple[Tensor, Tensor]:
        ends = torch.tensor([self.low, self.high], dtype=torch.float64)
        low, high = self.prior.bijection.forward(ends)
        return low, high

    def _proposals(self, seed: int) -> tuple[Tensor, Tensor]:
        """Uniform points of the box in the prior's unbounded coordinates, and ln p(z) of each."""
        low, high = self._z_ends()
        generator = torch.Generator().manual_seed(seed)
        z = low + (high - low) * torch.rand(PROPOSALS, self.dim, generator=generator, dtype=torch.float64)
        theta = self.prior.bijection.inverse(z)
        return z, self.prior.log_prob(theta) - self.prior.bijection.log_det(theta)

    def _draw(self, n: int, seed: int) -> Tensor:
        kept: list[Tensor] = []
        count = block = 0
        while count < n:
            z, density = self._proposals((seed * 1_000_003 + block + 1) % 2**63)
            uniform = torch.rand(len(z), generator=torch.Generator().manual_seed((seed + 7919 * block) % 2**63))
            accepted = z[uniform.log() < density - self._peak]
            kept.append(self.bijection.clamp(self.prior.bijection.inverse(accepted)))
            count, block = count + len(accepted), block + 1
        return torch.cat(kept)[:n]

    def _density(self, theta: Float64[Tensor, "*batch d"]) -> Float64[Tensor, "*batch"]:
        return torch.where(self.contains(theta), self.prior.log_prob(theta) - self._log_mass, -math.inf)
