"""The posterior of a trained conditional denoiser D(r; σ, y).

    y = data(x),   u = parameters(θ),   r = P(y)(u − μ(y)),   r ~ the flow of D, from its mean at σ_max and noise there

μ and P are a conditional Gaussian fitted beforehand: posteriors that are narrow, or here narrow and there wide, become
about N(0, I), where denoisers are easy to learn and samplers make the least error. Without one r = u.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from openedm.denoiser import Condition, Denoiser
from openedm.ground import checks
from openedm.inference.draws import SampleNoise, observation_seeds
from openedm.inference.flow import flow
from openedm.inference.maps import DataMap, ParameterMap
from openedm.inference.posterior import Posterior
from openedm.inference.priors import Prior
from openedm.inference.refinement import Refinement, Target, evidence
from openedm.inference.transforms import Columns
from openedm.likelihood import Likelihood
from openedm.networks.mixtures import ConditionalMixture
from openedm.sampling import Auto, DormandPrince, Sampler

SAMPLER = Auto(32, sigma_min=1e-3, sigma_max=80.0)
"""Errs by less than 0.1 % of a standard deviation on Gaussians from the size of the prior to a fiftieth of it."""

DENSITY = Likelihood(solver=DormandPrince(1e-3), sigma_min=1e-3)
SCORE_LEVEL = 0.05
LEAST_ROWS, CHAINS = 32, 1 << 14
TOGETHER = 1024
"""Rows that an emulator evaluates at a time: what they need stays in the cache."""

EVIDENCE_DRAWS = 1024
PILOT_SEED, EVIDENCE_SEED = 2**40 + 1, 2**40 + 2


def _split(values: Sequence[int], size: int) -> list[Sequence[int]]:
    return [values[i : i + size] for i in range(0, len(values), size)]


class Average(Denoiser):
    """The mean of denoisers of one shape: an ensemble.

    Args:
        members: at least one, on one device.

    Raises:
        ValueError: no members, or of different shapes.
    """

    def __init__(self, members: Sequence[Denoiser]) -> None:
        super().__init__()
        checks.at_least("the number of members", len(members), 1)
        shapes = {(m.event_shape, m.condition_shape) for m in members}
        if len(shapes) > 1:
            raise ValueError(f"members must have one shape, got {sorted(map(str, shapes))}")
        self.members = nn.ModuleList(members)
        first = members[0]
        self.event_shape, self.condition_shape = first.event_shape, first.condition_shape
        self.sigma_data, self.num_classes = first.sigma_data, first.num_classes
        self.sigma_min, self.sigma_max = max(m.sigma_min for m in members), min(m.sigma_max for m in members)

    def denoise(
        self, x: Float[Tensor, "batch *event"], sigma: Float64[Tensor, "*batch_or_none"], condition: Condition
    ) -> Float[Tensor, "batch *event"]:
        """The members' mean."""
        total = self.members[0](x, sigma, condition)
        for member in self.members[1:]:
            total = total + member(x, sigma, condition)
        mean: Tensor = total / len(self.members)
        return mean


@dataclass(frozen=True)
class Parts:
    """What a `DenoiserPosterior` is made of.

    Attributes:
        denoiser: D(r; σ, y), with y as its condition.
        parameters: θ ↔ u.
        data: x → y.
        base: the conditional Gaussian that makes r of u; None means r = u.
        emulator: the learned likelihood, told of `parameters.inputs_of(θ)`; None without one.
        target: how the emulator sees the kept columns of x; None means as y.
        refinement: how samples are refined by it; None leaves them. Needs a prior.
    """

    denoiser: Denoiser
    parameters: ParameterMap
    data: DataMap
    base: ConditionalMixture | None = None
    emulator: ConditionalMixture | None = None
    target: Columns | None = None
    refinement: Refinement | None = None

    def emulated(self, x: Float[Tensor, "rows ..."]) -> Float[Tensor, "rows dim"]:
        """x as the emulator sees it."""
        if self.target is None:
            return self.data.forward(x)
        return self.target.forward(x[:, list(self.data.keep)]).float()


class DenoiserPosterior(Posterior):
    """p(θ | x) from a conditional denoiser, trained or exact.

    Args:
        parts: denoiser, maps and what belongs to them.
        prior: of θ; None where there is none.
        names: of the parameters.
        sampler: any sampler of the library; it draws r.
        likelihood: how densities of r are computed.
        report: what `fit` found, plain data.

    Raises:
        ValueError: a refinement without emulator or prior, or as `Posterior`.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        prior: Prior | None = None,
        names: Sequence[str] | None = None,
        sampler: Auto | Sampler = SAMPLER,
        likelihood: Likelihood = DENSITY,
        report: dict[str, Any] | None = None,
    ) -> None:
        if parts.refinement is not None and (parts.emulator is None or prior is None):
            raise ValueError("refinement needs an emulator and a prior, one of them is None")
        weights = next(parts.denoiser.parameters(), torch.zeros(0))
        super().__init__(
            parts.parameters.bijection.dim, parts.data.x_shape, prior=prior, names=names, device=weights.device
        )
        self.parts, self.sampler, self.likelihood = parts, sampler, likelihood
        self.report: dict[str, Any] = {} if report is None else report
        self._evidences: OrderedDict[bytes, float] = OrderedDict()

    @property
    def refined(self) -> bool:
        """Whether samples and densities are those of prior × learned likelihood."""
        return self.parts.refinement is not None

    def plain(self) -> "DenoiserPosterior":
        """The same posterior without refinement: the denoiser alone, which is faster."""
        return self._with(replace(self.parts, refinement=None))

    def with_sampler(self, sampler: Auto | Sampler) -> "DenoiserPosterior":
        """The same posterior, drawn with another sampler of the library."""
        return DenoiserPosterior(
            self.parts,
            prior=self.prior,
            names=self.names,
            sampler=sampler,
            likelihood=self.likelihood,
            report=self.report,
        )

    def save(self, path: str | Path) -> None:
        """Write the posterior to a new folder; see `files.save`."""
        from openedm.inference import files

        files.save(self, path)

    @staticmethod
    def load(path: str | Path, device: torch.device | str = "cpu") -> "DenoiserPosterior":
        """The posterior that was saved there; see `files.load`."""
        from openedm.inference import files

        return files.load(path, device)

    def _with(self, parts: Parts) -> "DenoiserPosterior":
        return DenoiserPosterior(
            parts,
            prior=self.prior,
            names=self.names,
            sampler=self.sampler,
            likelihood=self.likelihood,
            report=self.report,
        )

    def _draw(
        self, x: Float[Tensor, "observations ..."], n: int, seeds: Sequence[int]
    ) -> Float[Tensor, "observations n dim"]:
        y = self.parts.data.forward(x)
        u = self._flows(y, n, seeds)
        if self.parts.refinement is not None:
            together = max(1, CHAINS // n)
            parts = zip(*(torch.split(t, together) for t in (u, x, y)), _split(seeds, together), strict=True)
            u = torch.cat([self._refine(*part) for part in parts])
        return self.parts.parameters.inverse(u)

    def _flows(self, y: Tensor, n: int, seeds: Sequence[int]) -> Tensor:
        """u by the flow: many samples one observation at a time, whose summary is then made once."""
        if n < LEAST_ROWS:
            return self._flow(y, n, seeds)
        return torch.cat([self._flow(y[i : i + 1], n, [seed]) for i, seed in enumerate(seeds)])

    def _flow(self, y: Tensor, n: int, seeds: Sequence[int]) -> Tensor:
        """u (observations, n, dim) by the flow of the denoiser."""
        noise = SampleNoise(seeds, n).draw((self.dim,)).to(y)
        condition = y if len(y) == 1 else y.repeat_interleave(n, 0)
        r = flow(self.parts.denoiser, self.sampler, noise, condition)
        u: Tensor = r.reshape(len(y), n, self.dim).double()
        if self.parts.base is not None:
            mean, factor, _ = self._base(y)
            u = mean[:, None] + torch.linalg.solve_triangular(factor, u.mT, upper=False).mT
        return u

    def _base(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """μ, P and ln det P of each row, float64."""
        assert self.parts.base is not None
        with torch.no_grad():
            _, means, factors, logs = self.parts.base.parameters_of(y[None])
        return means[0, :, 0].double(), factors[0, :, 0].double(), logs[0, :, 0].double()

    def _density(
        self, theta: Float[Tensor, "observations n dim"], x: Float[Tensor, "observations ..."]
    ) -> Float[Tensor, "observations n"]:
        y = self.parts.data.forward(x)
        if not self.refined:
            return self._flow_density(theta, y)
        seen = self.parts.emulated(x)
        rows = [
            self.joint_log_prob(points, seen[i : i + 1]) - self._evidence(x[i : i + 1], y[i], seen[i : i + 1])
            for i, points in enumerate(theta)
        ]
        return torch.stack(rows)

    def _flow_density(self, theta: Tensor, y: Tensor) -> Tensor:
        """ln q(θ | y) by the change of variables; its gradient is the denoiser's score at a low level."""
        parameters, count = self.parts.parameters, theta.shape[1]
        r = parameters.forward(theta)
        volume = parameters.log_det(theta)
        if self.parts.base is not None:
            mean, factor, logs = self._base(y)
            r = torch.matmul(r - mean[:, None], factor.mT)
            volume = volume + logs[:, None]
        condition = y if len(y) == 1 else y.repeat_interleave(count, 0)
        flat = r.flatten(0, 1)
        values = self.likelihood.log_prob(self.parts.denoiser, flat.detach(), condition).log_prob.to(r)
        if r.requires_grad:
            with torch.no_grad():
                score = self.parts.denoiser.score(flat.detach(), SCORE_LEVEL, condition)
            values = values + (score * (flat - flat.detach())).sum(-1)
        return values.reshape(r.shape[:-1]) + volume

    def joint_log_prob(self, theta: Float[Tensor, "n dim"], seen: Float[Tensor, "rows y"]) -> Float64[Tensor, " n"]:
        """ln p(θ) + ln q(x | θ) by the emulator, (n,).

        Args:
            theta: inside the prior's support.
            seen: observations as the emulator sees them (`Parts.emulated`), one for each θ or one for all.
        """
        assert self.parts.emulator is not None
        assert self.prior is not None
        inputs, rows = self.parts.parameters.inputs_of(theta), seen.expand(len(theta), -1)
        parts = zip(torch.split(rows, TOGETHER), torch.split(inputs, TOGETHER), strict=True)
        likelihood = torch.cat([self.parts.emulator.log_prob(theirs, ours) for theirs, ours in parts])
        return likelihood.double() + self.prior.log_prob(theta.cpu()).to(theta.device)

    @torch.no_grad()
    def _refine(self, u: Tensor, x: Tensor, y: Tensor, seeds: Sequence[int]) -> Tensor:
        """u (observations, n, dim) moved by chains whose target is ln p(u) + ln q(x | u)."""
        assert self.parts.refinement is not None
        seen = self.parts.emulated(x).repeat_interleave(u.shape[1], 0)
        pilots = self._flows(y, self.parts.refinement.num_pilots, observation_seeds(x, PILOT_SEED))
        return self.parts.refinement.run(u, pilots, _Chains(self, seen), seeds)

    @torch.no_grad()
    def _evidence(self, x: Tensor, y: Tensor, seen: Tensor) -> float:
        """ln ∫ p(θ) q(x | θ) dθ, kept for the last few observations."""
        key = x.cpu().numpy().tobytes()
        if key not in self._evidences:
            u = self._flow(y[None], EVIDENCE_DRAWS, observation_seeds(x, EVIDENCE_SEED))[0]
            theta = self.parts.parameters.inverse(u)
            proposal = self._flow_density(theta[None], y[None])[0]
            self._evidences[key] = evidence(self.joint_log_prob(theta, seen), proposal)[0]
            while len(self._evidences) > 64:
                self._evidences.popitem(last=False)
        return self._evidences[key]


class _Chains(Target):
    """prior × learned likelihood in the coordinates u, as the chains of a refinement ask for it."""

    def __init__(self, posterior: DenoiserPosterior, seen: Float[Tensor, "chains y"]) -> None:
        emulator, prior = posterior.parts.emulator, posterior.prior
        assert emulator is not None
        assert prior is not None
        self.emulator, self.prior, self.parameters, self.seen = emulator, prior, posterior.parts.parameters, seen
        self.alone = [emulator.member(e) for e in range(emulator.members)]

    @property
    def members(self) -> int:
        return len(self.alone)

    def __call__(self, u: Tensor, chains: Tensor, member: int | None = None) -> Tensor:
        theta = self.parameters.inverse(u)
        prior = self.prior.log_prob(theta.cpu()).to(u.device) - self.parameters.log_det_at(u)
        inputs, rows = self.parameters.inputs_of(theta), self.seen[chains]
        mixture = self.emulator if member is None else self.alone[member]
        parts = zip(torch.split(rows, TOGETHER), torch.split(inputs, TOGETHER), strict=True)
        likelihood = [mixture.each_log_prob(theirs, ours) for theirs, ours in parts]
        return torch.cat(likelihood, 1).double() + prior
