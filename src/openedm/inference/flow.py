"""Samples and densities of parameters by the flow of a conditional denoiser D(r; σ, y).

    y = data(x),   u = parameters(θ),   r = P(y)(u − μ(y)),   r ~ the flow of D, from its mean at σ_max and noise there

μ and P are a conditional Gaussian fitted beforehand: posteriors that are narrow, or here narrow and there wide, become
about N(0, I), where denoisers are easy to learn and samplers make the least error. Without one r = u.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from openedm.inference.disagreement import members_of, spread_of
from openedm.inference.draws import SampleNoise, StepNoise, observation_seeds, sample_paths
from openedm.inference.parts import Parts
from openedm.likelihood import ExactTrace, Likelihood
from openedm.likelihood.density import MAX_EXACT_SIZE
from openedm.networks.mixtures import ConditionalMixture
from openedm.sampling import Auto, BrownianNoise, DormandPrince, Sampler, SamplerChoice

__all__ = ["DENSITY", "SAMPLER", "SCORE_LEVEL", "ConditionalFlow", "gaussian_at"]

SAMPLER = Auto(32, sigma_min=1e-3, sigma_max=80.0)
"""Errs by less than 0.1 % of a standard deviation on Gaussians from the size of the prior to a fiftieth of it."""

DENSITY = Likelihood(solver=DormandPrince(1e-3), sigma_min=1e-3, sigma_max=80.0)
SCORE_LEVEL = 0.05
SPREAD_SEED, PROBE_SEED = 2**40 + 4, 2**40 + 5
MAX_TRACED = 128
"""Up to so many parameters the trace is exact: networks of vectors are small, and cheap to differentiate."""

Steps = SampleNoise | BrownianNoise | None
MOMENT_ROWS = 1 << 14
"""Samples that `moments` draws at a time."""

MIN_ROWS = 32
"""Fewer samples of each observation are drawn for all observations at a time."""


@dataclass(frozen=True)
class ConditionalFlow:
    """q(u | y), as the flow of a denoiser has it.

    Attributes:
        parts: denoiser, maps and the conditional Gaussian.
        sampler: it draws r.
        likelihood: how densities of r are computed.
        noise: what a stochastic sampler adds in its steps.
    """

    parts: Parts
    sampler: SamplerChoice
    likelihood: Likelihood
    noise: StepNoise

    def samples(
        self, y: Float[Tensor, "observations *y"], n: int, seeds: Sequence[int]
    ) -> Float64[Tensor, "observations n dim"]:
        """u, n for each observation; many are drawn one observation at a time, whose summary is then made once.

        Args:
            y: observations as the denoiser takes them.
            n: samples of each, ≥ 1.
            seeds: one for each observation.
        """
        if n < MIN_ROWS:
            return self._samples(y, n, seeds)
        return torch.cat([self._samples(y[i : i + 1], n, [seed]) for i, seed in enumerate(seeds)])

    def _samples(
        self, y: Float[Tensor, "observations *y"], n: int, seeds: Sequence[int]
    ) -> Float64[Tensor, "observations n dim"]:
        """u by the flow from the denoiser's own mean at σ_max and noise there.

        From zero and noise, as samplers start, the mean of samples would be short by |mean|/σ_max standard deviations.
        """
        denoiser, sampler = self.parts.denoiser, self.sampler.choose(self.parts.denoiser)
        source = SampleNoise(seeds, n)
        noise = source.draw(denoiser.event_shape or (self._dim,)).to(y)
        steps = None if not sampler.stochastic else source if self.noise == "independent" else sample_paths(seeds, n)
        return self._moved(noise, y, sampler, steps)

    def moments(
        self, y: Float[Tensor, "observations *y"], n: int, seeds: Sequence[int]
    ) -> Float64[Tensor, "observations n dim"]:
        """u by the ODE from noise whose own mean and covariance are exactly 0 and I, for means and covariances.

        Those of a Gaussian come out as they are, since its flow is affine; of others, they have less noise than those
        of independent samples. Arguments as for `samples`, with n above the number of parameters.
        """
        denoiser = self.parts.denoiser
        sampler = SAMPLER.choose(denoiser)
        size = max(1, MOMENT_ROWS // n) if y.ndim == 2 else 1  # a summary is made once for an observation
        drawn = []
        for rows in (slice(i, i + size) for i in range(0, len(y), size)):
            noise = SampleNoise(seeds[rows], n).draw((self._dim,)).double().reshape(-1, n, self._dim)
            noise = noise - noise.mean(1, keepdim=True)
            factor = torch.linalg.cholesky(noise.mT @ noise / (n - 1))
            white = torch.linalg.solve_triangular(factor, noise.mT, upper=False).mT
            drawn.append(self._moved(white.flatten(0, 1).to(y), y[rows], sampler, None))
        return torch.cat(drawn)

    @property
    def _dim(self) -> int:
        return self.parts.parameters.bijection.dim

    def _moved(
        self, noise: Float[Tensor, "rows *event"], y: Float[Tensor, "observations *y"], sampler: Sampler, steps: Steps
    ) -> Float64[Tensor, "observations n dim"]:
        denoiser, n = self.parts.denoiser, len(noise) // len(y)
        condition = y if len(y) == 1 else y.repeat_interleave(n, 0)
        top = float(sampler.levels_for(denoiser).sigmas().max())
        centre = denoiser(torch.zeros_like(noise), top, condition)
        shape = noise.shape[1:]
        r = sampler.sample(denoiser, steps, noise=noise + centre / top, condition=condition, event_shape=shape)
        u: Tensor = r.reshape(len(y), n, -1)[..., : self._dim].double()
        if self.parts.base is not None:
            mean, factor, _ = gaussian_at(self.parts.base, y)
            u = mean[:, None] + torch.linalg.solve_triangular(factor, u.mT, upper=False).mT
        return u

    def log_prob(
        self, theta: Float[Tensor, "observations n dim"], y: Float[Tensor, "observations *y"]
    ) -> Float64[Tensor, "observations n"]:
        """ln q(θ | y) by the change of variables; its gradient is the denoiser's score at a low level.

        Args:
            theta: inside the support of the parameters.
            y: observations as the denoiser takes them.
        """
        parameters, denoiser = self.parts.parameters, self.parts.denoiser
        r, volume = parameters.forward(theta), parameters.log_det(theta)
        if self.parts.base is not None:
            mean, factor, logs = gaussian_at(self.parts.base, y)
            r = torch.matmul(r - mean[:, None], factor.mT)
            volume = volume + logs[:, None]
        condition = y if len(y) == 1 else y.repeat_interleave(theta.shape[1], 0)
        flat = r.flatten(0, 1)
        # Random probes are the same for all points of an observation, whose densities are compared. Over observations
        # they differ: what eight probes of fifty parameters err by, nats, would not average out.
        seeds = [seed for seed in observation_seeds(y, PROBE_SEED) for _ in range(len(flat) // len(y))]
        likelihood = self.likelihood
        if likelihood.trace is None and flat[0].numel() <= MAX_TRACED:
            likelihood = replace(likelihood, trace=ExactTrace())
        found = likelihood.log_prob(denoiser, flat.detach(), condition, seeds=seeds)
        values = found.log_prob.to(r)
        if r.requires_grad:
            with torch.no_grad():
                score = denoiser.score(flat.detach(), SCORE_LEVEL, condition)
            values = values + (score * (flat - flat.detach())).sum(-1)
        return values.reshape(r.shape[:-1]) + volume

    @torch.no_grad()
    def spread(self, y: Float[Tensor, "one *y"], n: int) -> float | None:
        """How far the members of the denoiser disagree at an observation; None where it has none, or no exact density.

        Args:
            y: one observation as the denoiser takes it.
            n: the samples that this is measured with.
        """
        members = members_of(self.parts.denoiser)
        if not members or self._dim > MAX_EXACT_SIZE:
            return None
        stochastic = self.sampler.choose(self.parts.denoiser).stochastic
        drawing = replace(self, sampler=SAMPLER, noise="independent") if stochastic else self
        theta = self.parts.parameters.inverse(drawing.samples(y, n, observation_seeds(y, SPREAD_SEED))[0])[None]
        alone = [replace(drawing, parts=replace(self.parts, denoiser=member)) for member in members]
        each = torch.stack([flow.log_prob(theta, y)[0] for flow in alone])
        return spread_of(each, drawing.log_prob(theta, y)[0])


@torch.no_grad()
def gaussian_at(base: ConditionalMixture, y: Float[Tensor, "observations y"]) -> tuple[Tensor, Tensor, Tensor]:
    """μ, P and ln det P of each row, float64."""
    _, means, factors, logs = base.parameters_of(y[None])
    return means[0, :, 0].double(), factors[0, :, 0].double(), logs[0, :, 0].double()
