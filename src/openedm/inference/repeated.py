"""The posterior of one θ given several independent observations, from the posterior of a single one.

    p(θ | x₁, …, xₙ) ∝ p(θ) Πᵢ p(xᵢ | θ) ∝ p(θ)^(1 − n) Πᵢ p(θ | xᵢ)

Where a likelihood was learned, Markov chains move to prior × product of the learned likelihoods, also where the
posterior of one observation is the denoiser's. Else samples are those of the composed denoiser (`composition`). Both
multiply the errors of one observation by n, while the posterior narrows by √n: those of n denoisers soon are large.
"""

import math
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from openedm.ground import checks
from openedm.inference.arrays import Values
from openedm.inference.composite import gaussian_of
from openedm.inference.composition import Composed, Moments
from openedm.inference.draws import SampleNoise, observation_seeds, sample_paths
from openedm.inference.flow import gaussian_at
from openedm.inference.kernels import FREEDOM, Kernels
from openedm.inference.likeness import Likeness
from openedm.inference.posterior import Posterior
from openedm.inference.refine import MAX_KERNEL_SIZE, LearnedTarget, Refinement, evidence_near

if TYPE_CHECKING:
    from openedm.inference.trained import DenoiserPosterior

__all__ = ["RepeatedPosterior"]

MOMENT_DRAWS, PRIOR_DRAWS, PILOTS = 256, 1 << 18, 256
"""Samples of each observation's posterior and of the prior, whose moments correct the composition; and samples that
densities are normalised with."""

MOMENT_SEED, PILOT_SEED, EVIDENCE_SEED = 2**40 + 3, 2**40 + 4, 2**40 + 5
EVIDENCE_DRAWS, MAX_PILOTS = 1024, 16

CHAINS = Refinement(num_steps=25, max_steps=500, density_steps=True)
"""Where the posterior of one observation is not refined."""

MOST_COMPOSED = 10
"""With more denoisers composed, there is a warning."""

PRODUCT_ROWS = 4096
"""Points whose likelihood is computed at a time: for each observation in turn, with the networks' outputs at hand."""


class RepeatedPosterior(Posterior):
    """p(θ | x₁, …, xₙ) of n independent observations of one θ. `DenoiserPosterior.repeated` makes it.

    An observation is (n, *x_shape), in any order.

    Args:
        single: the posterior of one observation.
        count: n, ≥ 1.
        plain: compose denoisers also where a likelihood was learned.

    Raises:
        TypeError: count is no integer.
        ValueError: count < 1; or neither a learned likelihood nor the composed denoiser can be used.
    """

    def __init__(self, single: "DenoiserPosterior", count: int, *, plain: bool = False) -> None:
        checks.integer("count", count, 1)
        parts = single.parts
        super().__init__(
            single.dim,
            (count, *single.x_shape),
            prior=single.prior,
            names=single.names,
            device=single.device,
            support=parts.parameters.bijection,
        )
        self.single, self.count = single, count
        known = parts.emulator is not None and single.prior is not None and not plain
        self.refinement = (parts.refinement or CHAINS) if known else None
        if not known and count > MOST_COMPOSED:
            warnings.warn(
                f"{count} denoisers are composed, whose errors add up: of more than {MOST_COMPOSED}, widths may be far "
                f"off; test it by calibrate(posterior.repeated({count}), theta, x) on fresh simulations",
                stacklevel=3,
            )
        self._pilots: OrderedDict[bytes, tuple[Tensor, int]] = OrderedDict()
        if parts.denoiser.event_shape not in (None, (single.dim,)):
            raise ValueError(
                "count must be 1 for a posterior whose denoiser has further variables, which differ between "
                f"observations: got {count}"
            )

    @property
    def x_dtype(self) -> torch.dtype:
        """That of the posterior of one observation."""
        return self.single.x_dtype

    def flat(self, x: Values) -> Values:
        """Data as the posterior of one observation has them."""
        return self.single.flat(x)

    def likeness(self, x: Values) -> list[Likeness] | None:
        """How like the simulations each of the n observations is. As that of the posterior of one."""
        return self.single.likeness(x)

    def accepts(self, x: Float[Tensor, "observations ..."]) -> Bool[Tensor, " observations"]:
        """Which of the sets (b, n, *x_shape) there is a posterior for: those of accepted observations."""
        return self.single.accepts(x.flatten(0, 1)).reshape(len(x), -1).all(1)

    def _complete(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return self.single._complete(x)

    def _check_observations(self, x: Float[Tensor, "observations ..."]) -> None:
        self.single._check_observations(x.flatten(0, 1))

    def _draw(
        self, x: Float[Tensor, "observations ..."], n: int, seeds: Sequence[int]
    ) -> Float[Tensor, "observations n dim"]:
        drawn = [self._samples_of(one, n, seed) for one, seed in zip(x, seeds, strict=True)]
        return self.single.parts.parameters.inverse(torch.stack(drawn))

    def _samples_of(self, x: Float[Tensor, "count ..."], n: int, seed: int) -> Float64[Tensor, "n dim"]:
        """u for one set of observations."""
        refinement = self.refinement
        if refinement is None:
            return self._composed(x, n, seed)
        pilots, steps = self._settled(x)
        if self.dim <= MAX_KERNEL_SIZE:
            kernels, which = Kernels.of(pilots[None]), torch.arange(n, device=pilots.device)[None] % len(pilots)
            noise = SampleNoise([seed], n).draw((self.dim + FREEDOM,)).to(pilots)
            start = kernels.at(which, noise[None])[0]
            steps = min(steps, 10 + 5 * self.dim)  # the start is almost the target already
        else:
            start = self._composed(x, n, seed)
        chains = replace(refinement, num_steps=steps, max_steps=None)
        return chains.run(start[None], pilots[None], self._target(x), [seed + 1])[0]

    def _density(
        self, theta: Float[Tensor, "observations n dim"], x: Float[Tensor, "observations ..."]
    ) -> Float[Tensor, "observations n"]:
        return self._relative_density(theta, x) - torch.stack([self._log_evidence(one) for one in x])[:, None]

    def _relative_density(
        self, theta: Float[Tensor, "observations n dim"], x: Float[Tensor, "observations ..."]
    ) -> Float[Tensor, "observations n"]:
        return torch.stack([self._log_product(points, one) for points, one in zip(theta, x, strict=True)])

    def _log_product(self, theta: Float[Tensor, "n dim"], x: Float[Tensor, "count ..."]) -> Float64[Tensor, " n"]:
        """ln p(θ) + Σ ln q(xᵢ | θ), or (1 − n) ln p(θ) + Σ ln q(θ | xᵢ)."""
        if self.refinement is not None:
            return self._target(x).log_prob(theta)
        y = self.single.parts.data.forward(x)
        each = self.single.flow.log_prob(theta.expand(len(x), *theta.shape), y)
        return each.double().sum(0) + (1 - len(x)) * self._log_prior(theta)

    def _log_prior(self, theta: Float[Tensor, "n dim"]) -> Float64[Tensor, " n"]:
        """ln p(θ); without a prior that of the simulations, which are about N(0, I) in u."""
        parameters = self.single.parts.parameters
        if self.prior is not None:
            return self.prior.log_prob(theta)
        u = parameters.forward(theta)
        return -0.5 * (u.square() + math.log(2 * math.pi)).sum(-1) + parameters.log_det(theta)

    @torch.no_grad()
    def _log_evidence(self, x: Float[Tensor, "count ..."]) -> Float64[Tensor, ""]:
        parameters = self.single.parts.parameters

        def target(u: Float64[Tensor, "draws d"]) -> Float64[Tensor, " draws"]:
            theta = parameters.inverse(u)
            return self._log_product(theta, x) - parameters.log_det_at(u)

        (seed,) = observation_seeds(x[None], EVIDENCE_SEED)
        total, _ = evidence_near(self._settled(x)[0], target, seed=seed, draws=EVIDENCE_DRAWS)
        return torch.tensor(total, dtype=torch.float64, device=x.device)

    @torch.no_grad()
    def _settled(self, x: Float[Tensor, "count ..."]) -> tuple[Float64[Tensor, "pilots dim"], int]:
        """Samples u that chains and densities are made with, and how many steps chains need."""
        key = x.cpu().numpy().tobytes()
        if key not in self._pilots:
            refinement, (seed,) = self.refinement, observation_seeds(x[None], PILOT_SEED)
            pilots, steps = self._composed(x, PILOTS if refinement is None else refinement.num_pilots, seed), 0
            if refinement is not None:
                moved, counts = refinement.settle(pilots[None], self._target(x), [seed])
                pilots, steps = moved[0], int(counts[0])
            self._pilots[key] = pilots, steps
        while len(self._pilots) > MAX_PILOTS:
            self._pilots.popitem(last=False)
        return self._pilots[key]

    def _target(self, x: Float[Tensor, "count ..."]) -> "_Product":
        parts, prior = self.single.parts, self.prior
        single = self.single.refined_flow.target(x)
        assert prior is not None
        return _Product(single.emulator, prior, single.parameters, parts.emulated(x))

    def _composed(self, x: Float[Tensor, "count ..."], n: int, seed: int) -> Float64[Tensor, "n dim"]:
        """u by the composed denoiser."""
        flow, parts = self.single.flow, self.single.parts
        y = parts.data.forward(x)
        factor, shifts = torch.eye(self.dim).double().to(y.device), torch.zeros(len(y), self.dim).double().to(y.device)
        if parts.base is not None:
            means, factors, _ = gaussian_at(parts.base, y)
            if float((factors - factors[:1]).abs().max()) > 1e-6 * float(factors.abs().max()):
                if self.refinement is not None:
                    return self._gaussian(x, n, seed)
                raise ValueError(
                    "count must be 1 for this posterior: its conditional Gaussian has another width at each "
                    f"observation, so that denoisers cannot be composed; got {self.count}"
                )
            factor, shifts = factors[0], torch.einsum("ij,nj->ni", factors[0], means)
        prior = self._prior_moments(factor)
        denoiser = Composed(parts.denoiser, y, shifts, self._moments(x, factor).beyond(prior), prior)
        source = SampleNoise([seed], n)
        sampler = flow.sampler.choose(parts.denoiser)
        steps = None if not sampler.stochastic else source if flow.noise == "independent" else sample_paths([seed], n)
        noise = source.draw((self.dim,)).to(y)
        r = sampler.sample(denoiser, steps, noise=noise, event_shape=(self.dim,)).double()
        u: Tensor = torch.linalg.solve_triangular(factor, r.mT, upper=False).mT
        return u

    def _moments(self, x: Float[Tensor, "count ..."], factor: Float64[Tensor, "d d"]) -> Moments:
        """The moments of P u given each observation."""
        (own,) = observation_seeds(x[None], MOMENT_SEED)
        draws, seeds = max(MOMENT_DRAWS, 4 * self.dim), observation_seeds(x, own % 2**32)
        return Moments.of(self.single.flow.moments(self.single.parts.data.forward(x), draws, seeds) @ factor.mT)

    def _gaussian(self, x: Float[Tensor, "count ..."], n: int, seed: int) -> Float64[Tensor, "n dim"]:
        """u by the product of Gaussians, from which chains start where denoisers cannot be composed."""
        identity = torch.eye(self.dim, dtype=torch.float64, device=x.device)
        prior = self._prior_moments(identity)
        product = self._moments(x, identity).beyond(prior).product(prior)
        factor = torch.linalg.cholesky(torch.linalg.inv(product.precisions[0]))
        drawn: Tensor = product.means + SampleNoise([seed], n).draw((self.dim,)).to(factor) @ factor.mT
        return drawn

    def _prior_moments(self, factor: Float64[Tensor, "d d"]) -> Moments:
        """The moments of P u under the prior; N(0, I) of u where there is none."""
        mean, covariance = (value.to(factor) for value in self._prior_in_u)
        return Moments(
            (factor @ mean)[None],
            torch.linalg.inv(factor @ covariance @ factor.mT)[None],
        )

    @cached_property
    def _prior_in_u(self) -> tuple[Float64[Tensor, " d"], Float64[Tensor, "d d"]]:
        """Mean and covariance of u under the prior: exact where that is Gaussian in unbounded coordinates."""
        identity = torch.eye(self.dim, dtype=torch.float64)
        if self.prior is None:
            return identity[0] * 0, identity
        parameters = self.single.parts.parameters
        known = gaussian_of(self.prior)
        if known is None:
            u = parameters.forward(self.prior.sample(PRIOR_DRAWS)).double()
            return u.mean(0), torch.cov(u.T).reshape(self.dim, self.dim)
        mean, covariance = known
        start = parameters.columns.forward(mean)
        slope = parameters.columns.forward(mean + identity).diagonal() - start  # known supports are not warped
        return start, covariance * slope[:, None] * slope


class _Product(LearnedTarget):
    """Prior × product of the learned likelihoods of all observations, each the mean of the ensemble's."""

    @property
    def members(self) -> int:
        """One: the ensemble's mean is taken for each observation."""
        return 1

    def __call__(
        self, u: Float[Tensor, "rows d"], chains: Int[Tensor, " rows"], member: int | None = None
    ) -> Float[Tensor, "members rows"]:
        """ln p(u) + Σ ln q(yᵢ | u), the same for all chains."""
        theta = self.parameters.inverse(u)
        return (self.log_prob(theta) - self.parameters.log_det_at(u))[None]

    def log_prob(self, theta: Float[Tensor, "n d"]) -> Float64[Tensor, " n"]:
        """ln p(θ) + Σ ln q(yᵢ | θ), for θ inside the prior's support."""
        inputs = self.parameters.inputs_of(theta)
        parts = [self.emulator.product_log_prob(self.observed, rows) for rows in torch.split(inputs, PRODUCT_ROWS)]
        return torch.cat(parts) + self.prior.log_prob(theta)
