"""Sequential refinement for one observation: rounds of simulations where the posterior so far has its mass.

After each round the prior is cut to a box around the posterior's samples, and the next simulations are drawn from the
prior inside it. Cutting changes the posterior by a constant where it has mass, so that all simulations inside can be
learned from together: truncated proposals (Deistler et al. 2022, arXiv 2210.04815), with a box for the region.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from openedm import checks
from openedm.inference.bijections import Bijection
from openedm.inference.emulator import Progress
from openedm.inference.fitting import fit
from openedm.inference.parametric import Prior
from openedm.inference.posterior import Values
from openedm.inference.priors import as_prior
from openedm.inference.settings import Settings
from openedm.inference.simulation import simulate
from openedm.inference.trained import DenoiserPosterior

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

    def contains(self, theta: Tensor) -> Tensor:
        """Whether each point lies in the box, (…,)."""
        low, high = (torch.tensor(ends, dtype=torch.float64) for ends in (self.low, self.high))
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

    def _density(self, theta: Tensor) -> Tensor:
        return torch.where(self.contains(theta), self.prior.log_prob(theta) - self._log_mass, -math.inf)


@dataclass(frozen=True)
class Round:
    """One round of a sequential fit.

    Attributes:
        simulations: how many were made in it.
        used: how many, of all rounds, lie in the region and were learned from.
        low, high: the region.
        posterior: what was learned.
    """

    simulations: int
    used: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    posterior: DenoiserPosterior


def fit_sequentially(
    simulator: Callable[..., Any],
    prior: Any,
    x_observed: Values,
    *,
    rounds: int = 3,
    simulations: int = 2000,
    batched: bool = True,
    margin: float = 0.2,
    seed: int = 0,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> list[Round]:
    """Posteriors for one observation, each from simulations where the one before has its mass.

    Args:
        simulator: as for `simulate`.
        prior: as for `fit`; not None.
        x_observed: the observation, x_shape.
        rounds: how many, ≥ 1.
        simulations: in each round.
        batched: as for `simulate`.
        margin: the region reaches beyond the samples' outermost by this share of their range, ≥ 0.
        seed: of everything random.
        settings: of each fit; None means `Settings.of`.
        progress: as for `fit`.

    Returns:
        The rounds; the last one's posterior is the best, has `x_observed` as its default observation, and holds for
        observations like it.

    Raises:
        TypeError, ValueError: as `simulate` and `fit`; rounds < 1, margin < 0, or no prior.
    """
    checks.at_least("rounds", rounds, 1)
    checks.at_least("margin", margin, 0)
    whole = as_prior(prior)
    if whole is None:
        raise ValueError("prior must be given, got None")
    region: Prior = whole
    thetas: list[Tensor] = []
    xs: list[Tensor] = []
    done: list[Round] = []
    for number in range(rounds):
        result = simulate(simulator, region, simulations, seed=seed + number, batched=batched)
        thetas.append(torch.as_tensor(result.theta))
        xs.append(torch.as_tensor(result.x))
        theta, x = torch.cat(thetas), torch.cat(xs)
        inside = region.log_prob(theta) > -math.inf
        posterior = fit(
            theta[inside],
            x[inside],
            region,
            seed=seed + number,
            settings=settings,
            names=whole.names,
            on_nonfinite="drop",
            progress=progress,
        )
        posterior.set_default_x(x_observed)
        low, high = region.bijection.low, region.bijection.high
        done.append(Round(len(result.theta), int(inside.sum()), tuple(low), tuple(high), posterior))
        if number < rounds - 1:
            region = _around(posterior.sample(x_observed, 4000, seed=seed), whole, region, margin)
    return done


def _around(samples: Tensor, whole: Prior, region: Prior, margin: float) -> Truncated:
    """The prior in a box around samples, inside the last region."""
    z = whole.bijection.forward(samples.double())
    low, high = z.min(0).values, z.max(0).values
    reach = margin * (high - low) + 1e-6
    ends = whole.bijection.inverse(torch.stack([low - reach, high + reach]))
    before = torch.tensor([region.bijection.low, region.bijection.high], dtype=torch.float64)
    return Truncated(whole, torch.maximum(ends[0], before[0]).tolist(), torch.minimum(ends[1], before[1]).tolist())
