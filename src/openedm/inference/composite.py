"""Priors made of priors, or of what users have: torch's distributions, pairs of ends, lists; and their plain form.

Independent  θ = (θ_1, …, θ_k), each part with a prior of its own
Truncated    a prior cut to a box
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor, distributions
from torch.distributions import Distribution

from openedm.ground.choices import from_config, to_config
from openedm.inference.bijections import Bijection
from openedm.inference.own_priors import OwnPrior, has_density, is_frozen, priors_of_scipy
from openedm.inference.priors import Box, LogNormal, Normal, Prior, TorchPrior
from openedm.inference.torch_forms import distribution_of_form, form_of_distribution

__all__ = ["Independent", "Truncated", "as_prior", "gaussian_of", "prior_from_config", "prior_to_config"]

PROPOSALS = 1 << 16
"""Points that `Truncated` proposes at a time."""


@dataclass(frozen=True)
class Independent(Prior):
    """Priors side by side, independent of one another; θ is the concatenation of their parameters.

    Args:
        parts: one prior or more.

    Raises:
        ValueError: there is no part.
        TypeError: a part is not a `Prior`.
    """

    parts: Sequence[Prior]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        if not self.parts:
            raise ValueError("parts must hold at least one prior, got none")
        for i, part in enumerate(self.parts):
            if not isinstance(part, Prior):
                raise TypeError(f"parts[{i}] must be a Prior, got {type(part).__name__}; as_prior makes one")

    @property
    def dim(self) -> int:
        """d, the sum of the parts'."""
        return sum(part.dim for part in self.parts)

    @property
    def names(self) -> Sequence[str] | None:
        """The parts' names, one after the other; None unless every part has them."""
        found = [part.names for part in self.parts if part.names is not None]
        return tuple(name for names in found for name in names) if len(found) == len(self.parts) else None

    @cached_property
    def bijection(self) -> Bijection:
        """The parts' bijections side by side."""
        found = [part.bijection for part in self.parts]
        return Bijection([v for b in found for v in b.low], [v for b in found for v in b.high])

    def _draw(self, n: int, seed: int) -> Tensor:
        seeds = np.random.SeedSequence(seed).generate_state(len(self.parts))
        return torch.cat([part._draw(n, int(s)).double() for part, s in zip(self.parts, seeds, strict=True)], -1)

    def _density(self, theta: Float64[Tensor, "*batch d"]) -> Float64[Tensor, "*batch"]:
        pieces = torch.split(theta, [part.dim for part in self.parts], dim=-1)
        densities = [part._density(piece) for part, piece in zip(self.parts, pieces, strict=True)]
        return torch.stack(densities).sum(0)


MARGIN = 0.2
"""By how much of its size the box around a posterior's samples is made larger at each end."""


@dataclass(frozen=True, eq=False)
class Truncated(Prior):
    """A prior cut to a box: p(θ)/p(box) inside, 0 outside.

    Draws are by rejection from uniform points of the box in the prior's unbounded coordinates, where a box around a
    posterior is small and the prior about even.

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

    @classmethod
    def around(
        cls, prior: Prior, samples: Float[Tensor, "n d"], margin: float, inside: Prior | None = None
    ) -> "Truncated":
        """The prior in the smallest box around samples, made larger by a share of its size at each end.

        Args:
            prior: what is cut.
            samples: inside its support.
            margin: that share, ≥ 0, in the prior's unbounded coordinates.
            inside: the box stays in the support of this one; None means in the prior's.

        Raises:
            ValueError: all samples lie at an end of the prior, so near that no number is between them and it.
        """
        z = prior.bijection.forward(samples.double())
        low, high = z.min(0).values, z.max(0).values
        reach = (margin + 1e-6) * (high - low)
        ends = prior.bijection.inverse(torch.stack([low - reach, high + reach]))
        bounds = (prior if inside is None else inside).bijection
        last = torch.tensor([bounds.low, bounds.high], dtype=torch.float64)
        first, final = torch.maximum(ends[0], last[0]), torch.minimum(ends[1], last[1])
        for i, (one, other) in enumerate(zip(first.tolist(), final.tolist(), strict=True)):
            if not one < other:
                raise ValueError(f"samples must have room around them, but in column {i} all lie at {one:g}")
        return cls(prior, first.tolist(), final.tolist())

    @property
    def names(self) -> Sequence[str] | None:
        """The prior's."""
        return self.prior.names

    @property
    def dim(self) -> int:
        """d."""
        return self.prior.dim

    @property
    def mass(self) -> float:
        """The share of the prior's probability that is in the box, by an integral over some thousand points."""
        return math.exp(self._log_mass)

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


def as_prior(prior: Any, names: Sequence[str] | None = None) -> Prior | None:
    """The `Prior` that `prior` stands for.

    Args:
        prior: a `Prior`; a distribution of torch (sbi's `MultipleIndependent` included) or a frozen one of scipy; any
            object with `sample` and `log_prob` (`OwnPrior`); a pair (low, high) of a box's ends, (d,) each; a list of
            any of these side by side; or None, which stays None.
        names: of the parameters, where the prior has none of its own.

    Raises:
        TypeError: prior is something else.
        ValueError: it cannot be a prior (its shape, discrete values, or a support that is no product of intervals).
    """
    if prior is None or isinstance(prior, Prior):
        return prior
    if isinstance(getattr(prior, "dists", None), Sequence):  # sbi's MultipleIndependent
        prior = list(prior.dists)
    if isinstance(prior, Distribution):
        return _from_torch(prior, names)
    if is_frozen(prior):
        columns = priors_of_scipy(prior, names)
        return columns[0] if len(columns) == 1 else Independent(columns)
    if isinstance(prior, list | tuple) and prior and all(_is_part(part) for part in prior):
        found = [as_prior(p) for p in prior]
        return Independent([part for part in found if part is not None])
    if isinstance(prior, list | tuple) and any(_is_part(part) for part in prior):
        i, part = next((i, part) for i, part in enumerate(prior) if not _is_part(part))
        raise TypeError(
            f"prior[{i}] must be a Prior, a distribution of torch or scipy or an object with sample and log_prob, as "
            f"the other parts of the list, got {type(part).__name__}: for a uniform one give Box(low, high)"
        )
    if isinstance(prior, list | tuple) and len(prior) == 2:
        low, high = (torch.as_tensor(end, dtype=torch.float64).flatten().tolist() for end in prior)
        return Box(low, high, names)
    if has_density(prior):
        return OwnPrior(prior, names=names)
    raise TypeError(
        "prior must be a Prior, a distribution of torch or scipy, an object with sample and log_prob, a list of them, "
        f"a pair (low, high) or None, got {type(prior).__name__}"
    )


def _is_part(value: object) -> bool:
    """Whether a value can stand in a list of priors side by side."""
    return is_frozen(value) or has_density(value)


def gaussian_of(prior: Prior) -> tuple[Float64[Tensor, " d"], Float64[Tensor, "d d"]] | None:
    """Mean and covariance of θ in the unbounded coordinates of the prior's bijection, if it is Gaussian there."""
    match prior:
        case Box():
            return torch.zeros(prior.dim, dtype=torch.float64), torch.eye(prior.dim, dtype=torch.float64)
        case Normal():
            wide = _real(prior.covariance) if prior.std is None else torch.diag(_real(prior.std).square())
            return _real(prior.mean), wide
        case LogNormal():
            return _real(prior.loc), torch.diag(_real(prior.scale).square())
        case Independent():
            found = [gaussian_of(part) for part in prior.parts]
            known = [each for each in found if each is not None]
            if len(known) == len(found):
                return torch.cat([mean for mean, _ in known]), _blocks([each for _, each in known])
    return None


def _blocks(matrices: Sequence[Float64[Tensor, "d d"]]) -> Float64[Tensor, "total total"]:
    found: Tensor = torch.block_diag(*matrices)  # type: ignore[no-untyped-call]
    return found


def _real(values: Any) -> Float64[Tensor, "*shape"]:
    return torch.tensor(values, dtype=torch.float64)


def prior_to_config(prior: Prior) -> dict[str, Any]:
    """The plain-data form of a prior, ready for JSON; that of a torch distribution is its name and parameters.

    Raises:
        ValueError: the prior wraps a distribution that is none of torch.distributions' own, or has no such parameters.
    """
    return cast(dict[str, Any], _described(to_config(prior)))


def prior_from_config(config: Mapping[str, Any]) -> Prior:
    """The prior that `prior_to_config` described; it looks classes up by name and executes nothing of the file.

    Raises:
        ValueError: a name is not known.
    """
    return from_config(Prior, _rebuilt(config))  # type: ignore[type-abstract]


def _from_torch(distribution: Distribution, names: Sequence[str] | None) -> Prior:
    """A `Box`, `Normal` or `LogNormal` where the distribution is one, else a `TorchPrior`."""
    base: Any = distribution
    while isinstance(base, distributions.Independent):
        base = base.base_dist
    if len(distribution.batch_shape) + len(distribution.event_shape) <= 1:
        match base:
            case distributions.Uniform():
                return Box(base.low.flatten().tolist(), base.high.flatten().tolist(), names)
            case distributions.Normal():
                return Normal(base.loc.flatten().tolist(), base.scale.flatten().tolist(), names=names)
            case distributions.LogNormal():
                return LogNormal(base.loc.flatten().tolist(), base.scale.flatten().tolist(), names)
            case distributions.MultivariateNormal() | distributions.LowRankMultivariateNormal():
                return Normal(base.loc.tolist(), covariance=base.covariance_matrix.tolist(), names=names)
    return TorchPrior(distribution, names)


def _described(value: Any) -> Any:
    """The value with distributions, at any depth, as plain data."""
    match value:
        case dict():
            return {key: _described(v) for key, v in value.items()}
        case list():
            return [_described(v) for v in value]
        case Distribution():
            return form_of_distribution(value)
    if not isinstance(value, str | int | float | tuple | None):
        raise ValueError(
            f"prior {type(value).__name__} cannot be saved: it is an object of your own; give one of this library, "
            "torch or scipy, or save without a prior"
        )
    return value


def _rebuilt(value: Any) -> Any:
    """The value with distributions made of what `_described` returned."""
    match value:
        case Mapping():
            return {key: distribution_of_form(v) if key == "distribution" else _rebuilt(v) for key, v in value.items()}
        case list() | tuple():
            return [_rebuilt(v) for v in value]
    return value
