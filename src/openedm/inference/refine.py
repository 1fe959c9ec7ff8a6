"""Refinement: samples of a posterior moved by Markov chains whose target is prior × learned likelihood.

    π(u) ∝ p(u) q(y | u);      u' = u + γ (a − b),   accepted with probability min(1, π(u')/π(u))

a and b are two of a fixed set of pilots, samples for the same observation, and γ is random: the differences know the
posterior's widths, correlations and the ways between its modes (differential evolution, ter Braak 2006), and since the
pilots are no part of the chains these are independent and the proposal is symmetric. With `density_steps` every fifth
step proposes a draw of the density q that the pilots show (`Kernels`) instead, and takes it with probability
min(1, π(u') q(u) / π(u) q(u')): that sets the weights of separate modes right, which differences hardly change. Of many
parameters too few would be taken.
The pilots themselves are moved first, in blocks of steps, until their mean ln π and their widths no longer change; the
other chains then make as many steps, with the pilots where they ended.
Importance sampling from the same density (`evidence_near`) normalises that of what is drawn.

Where the learned likelihood is an ensemble's mean, a step first tests a proposal with one member, in turn, and computes
the whole ensemble only for those that pass: delayed acceptance (Christen and Fox 2005), whose target is the same.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.inference.draws import SampleNoise, section_seeds
from openedm.inference.kernels import FREEDOM, Kernels
from openedm.inference.maps import ParameterMap
from openedm.inference.priors import Prior
from openedm.networks.mixtures import ConditionalDensity

__all__ = ["LearnedTarget", "Refinement", "Target", "evidence", "evidence_near"]

CHUNK_ROWS = 1024
"""Rows that an emulator evaluates at a time: what they need stays in the cache."""

SETTLED = 2.5
"""n pilots have settled when a block moves the mean of ln π by less than this /√n of its spread, and the logarithm of
each standard deviation by less than this /√n: twice what it does by chance."""

MAX_KERNEL_SIZE = 8
"""Of more parameters no step proposes a draw of the pilots' density."""


class Target(ABC):
    """ln π_e by each member of an ensemble; π is their mean."""

    @property
    @abstractmethod
    def members(self) -> int:
        """How many there are."""

    @abstractmethod
    def __call__(
        self, u: Float[Tensor, "rows d"], chains: Int[Tensor, " rows"], member: int | None = None
    ) -> Float[Tensor, "members rows"]:
        """ln π_e up to a constant at u, each a point of the chain of that number, by all members or by one."""


@dataclass(frozen=True)
class Refinement(Choice):
    """Markov chains that refine posterior samples.

    Args:
        num_steps: of each chain, or of a block, ≥ 1.
        num_pilots: samples that proposals are made from, ≥ 2.
        max_steps: the pilots decide how many blocks of steps are made, up to so many steps; None means one block, and
            pilots that stay where they start.
        density_steps: whether every fifth step proposes a draw of the pilots' density; not with more than eight
            parameters.

    Raises:
        ValueError: a count is out of its range.
    """

    num_steps: int = 100
    num_pilots: int = 256
    max_steps: int | None = None
    density_steps: bool = False

    def __post_init__(self) -> None:
        checks.at_least("num_steps", self.num_steps, 1)
        checks.at_least("num_pilots", self.num_pilots, 2)
        if self.max_steps is not None:
            checks.at_least("max_steps", self.max_steps, self.num_steps)

    def settle(
        self, pilots: Float[Tensor, "observations pilots d"], target: Target, seeds: Sequence[int]
    ) -> tuple[Float[Tensor, "observations pilots d"], Int[Tensor, " observations"]]:
        """Pilots moved to their target, block after block until they have settled, and how many steps that took.

        Args:
            pilots: where they start.
            target: the chain of pilot i of observation j has the number j·pilots + i.
            seeds: one for each observation, ≥ 0.
        """
        count, size = len(pilots), pilots.shape[1]
        steps = torch.full((count,), self.num_steps)
        if self.max_steps is None:
            return pilots, steps
        chains = torch.arange(count * size, device=pilots.device).reshape(count, size)
        before = _state(pilots, target, chains)
        active, pilots = torch.arange(count), pilots.clone()
        for block in range(self.max_steps // self.num_steps):
            steps[active] = self.num_steps * (block + 1)
            now = section_seeds([seeds[i] for i in active.tolist()], block + 1)
            part = _Numbered(target, chains[active].flatten())
            pilots[active] = self.run(pilots[active], pilots[active], part, now)
            after = _state(pilots[active], target, chains[active])
            moved = _moved(before, after) > SETTLED / math.sqrt(size)
            active, before = active[moved.cpu()], after[moved]
            if len(active) == 0:
                break
        return pilots, steps

    def run(
        self,
        start: Float[Tensor, "observations n d"],
        pilots: Float[Tensor, "observations pilots d"],
        target: Target,
        seeds: Sequence[int],
    ) -> Float[Tensor, "observations n d"]:
        """The chains' ends; that of sample i of an observation depends on its start, the pilots, its seed and i alone.

        Args:
            start: where the chains start.
            pilots: samples for the same observations.
            target: what they come to; the chain of sample i of observation j has the number j·n + i.
            seeds: one for each observation, ≥ 0.
        """
        count, n, d = start.shape
        noise, chains = SampleNoise(seeds, n), torch.arange(count * n, device=start.device)
        u, observation = start.flatten(0, 1).clone(), chains // n
        each = target(u, chains)
        value = _mean(each)
        kernels = Kernels.of(pilots) if self.density_steps and d <= MAX_KERNEL_SIZE else None
        for step in range(self.num_steps):
            uniform = torch.special.ndtr(noise.draw((5,)).to(start)).clamp(1e-7, 1 - 1e-7)
            first, second = (uniform[:, :2] * pilots.shape[1]).long().unbind(-1)
            if kernels is not None and step % 5 == 2:
                now, normal = u.reshape(count, n, d), noise.draw((d + FREEDOM,)).to(start)
                anew = kernels.at(first.reshape(count, n), normal.reshape(count, n, -1))
                odds = (kernels.log_prob(now) - kernels.log_prob(anew)).flatten()  # ln q(u)/q(u')
                proposal = anew.flatten(0, 1).to(u)
            else:
                difference = pilots[observation, first] - pilots[observation, second]
                proposal = u + _factor(step, d, uniform[:, 2])[:, None] * difference
                odds = torch.zeros_like(value)
            member = step % target.members
            first_stage = target(proposal, chains, member)
            gain = first_stage[0] - each[member]
            passed = (uniform[:, 3].log() < gain + odds).nonzero()[:, 0]
            if len(passed) == 0:
                continue
            each_new = first_stage[:, passed] if target.members == 1 else target(proposal[passed], passed)
            new = _mean(each_new)
            correction = torch.where(value[passed].isneginf() & new.isfinite(), 0.0, new - value[passed] - gain[passed])
            accepted = uniform[passed, 4].log() < correction
            moved = passed[accepted]
            u[moved], each[:, moved] = proposal[moved], each_new[:, accepted]
            value[moved] = _mean(each[:, moved])
        return u.reshape(count, n, d)


class _Numbered(Target):
    """A target of some chains, counted anew."""

    def __init__(self, target: Target, chains: Int[Tensor, " rows"]) -> None:
        self.target, self.chains = target, chains

    @property
    def members(self) -> int:
        return self.target.members

    def __call__(
        self, u: Float[Tensor, "rows d"], chains: Int[Tensor, " rows"], member: int | None = None
    ) -> Float[Tensor, "members rows"]:
        return self.target(u, self.chains[chains], member)


def _state(
    pilots: Float[Tensor, "observations pilots d"], target: Target, chains: Int[Tensor, "observations pilots"]
) -> Float64[Tensor, "observations numbers"]:
    """What no longer changes once pilots have settled: the mean ln π, its spread, and the logarithms of widths."""
    values = _mean(target(pilots.flatten(0, 1), chains.flatten())).reshape(chains.shape).clamp_min(-1e6)
    centre = values.median(1, keepdim=True).values
    spread = (values - centre).abs().mean(1, keepdim=True).clamp_min(1e-3)
    widths = pilots.double().std(1).clamp_min(1e-12).log()
    return torch.cat([values.mean(1, keepdim=True), spread, widths], 1)


def _moved(
    before: Float64[Tensor, "observations numbers"], after: Float64[Tensor, "observations numbers"]
) -> Float64[Tensor, " observations"]:
    """By how much the mean ln π, in units of its spread, or a logarithm of a width has changed at most.

    The spread is the larger of the two, so that pilots that start far off are not taken for settled, nor are they that
    come near; a constant of ln π has no part in it.
    """
    change = (after - before).abs()
    level = change[:, 0] / torch.maximum(before[:, 1], after[:, 1])
    return torch.maximum(level, change[:, 2:].amax(1))


def _mean(each: Float[Tensor, "members rows"]) -> Float[Tensor, " rows"]:
    return each.logsumexp(0) - math.log(len(each))


def _factor(step: int, d: int, uniform: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """γ: of all sizes up to about 2.38/√(2d), the best for a Gaussian; every fifth time 1, from mode to mode."""
    if step % 5 == 4:
        return torch.ones_like(uniform)
    return 1.2 * 2.38 / math.sqrt(2 * d) * uniform**1.5


def evidence(log_target: Float[Tensor, " n"], log_proposal: Float[Tensor, " n"]) -> tuple[float, float]:
    """ln ∫π and the effective share of samples, by importance sampling from a normalised proposal.

    Args:
        log_target: ln π of samples of the proposal.
        log_proposal: their normalised log-densities.
    """
    weights = log_target.double() - log_proposal.double()
    weights = weights[weights.isfinite()]
    if len(weights) == 0:
        return -math.inf, 0.0
    total = float(weights.logsumexp(0))
    share = math.exp(2 * total - float((2 * weights).logsumexp(0))) / len(log_target)
    return total - math.log(len(log_target)), share


class LearnedTarget(Target):
    """prior × learned likelihood of given observations.

    Args:
        emulator: q(y | θ), with `parameters.inputs_of(θ)` as its condition.
        prior: of θ.
        parameters: θ ↔ u.
        observed: observations as the emulator models them, one for each chain, or one for all θ of `log_prob`.
    """

    def __init__(
        self, emulator: ConditionalDensity, prior: Prior, parameters: ParameterMap, observed: Float[Tensor, "rows y"]
    ) -> None:
        self.emulator, self.prior, self.parameters, self.observed = emulator, prior, parameters, observed

    @property
    def members(self) -> int:
        """Those of the emulator."""
        return self.emulator.members

    @cached_property
    def _alone(self) -> list[ConditionalDensity]:
        return [self.emulator.member(e) for e in range(self.members)]

    def __call__(
        self, u: Float[Tensor, "rows d"], chains: Int[Tensor, " rows"], member: int | None = None
    ) -> Float[Tensor, "members rows"]:
        """ln p(u) + ln q_e(y | u)."""
        theta = self.parameters.inverse(u)
        prior = self.prior.log_prob(theta) - self.parameters.log_det_at(u)
        mixture = self.emulator if member is None else self._alone[member]
        chunks = [mixture.each_log_prob(y, inputs) for y, inputs in self._chunks(theta, self.observed[chains])]
        return torch.cat(chunks, 1).double() + prior

    def log_prob(self, theta: Float[Tensor, "n d"]) -> Float64[Tensor, " n"]:
        """ln p(θ) + ln q(y | θ), for θ inside the prior's support."""
        chunks = self._chunks(theta, self.observed.expand(len(theta), -1))
        likelihood = torch.cat([self.emulator.log_prob(y, inputs) for y, inputs in chunks])
        return likelihood.double() + self.prior.log_prob(theta)

    def in_coordinates(self, u: Float[Tensor, "n d"]) -> Float64[Tensor, " n"]:
        """ln p(u) + ln q(y | u) of a single observation."""
        return _mean(self(u, torch.zeros(len(u), dtype=torch.long, device=u.device)))

    def _chunks(self, theta: Float[Tensor, "n d"], observed: Float[Tensor, "n y"]) -> Iterator[tuple[Tensor, Tensor]]:
        inputs = self.parameters.inputs_of(theta)
        return zip(torch.split(observed, CHUNK_ROWS), torch.split(inputs, CHUNK_ROWS), strict=True)


def evidence_near(
    pilots: Float[Tensor, "n d"],
    log_target: Callable[[Float64[Tensor, "draws d"]], Float64[Tensor, " draws"]],
    *,
    seed: int,
    draws: int,
    known: Float[Tensor, " d"] | None = None,
) -> tuple[float, float]:
    """ln ∫π and the effective share of samples, by importance sampling from Student's t kernels around pilots.

    Args:
        pilots: samples of π, n > d.
        log_target: ln π.
        seed: of the draws.
        draws: how many.
        known: another sample of π, which counts as one more draw: where the pilots missed it, the integral is large.
    """
    kernels = Kernels.of(pilots[None])
    n, d = pilots.shape
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, draws, d + FREEDOM, generator=generator, dtype=torch.float64).to(pilots.device)
    u = kernels.at(torch.arange(draws, device=pilots.device)[None] % n, noise)[0]
    if known is not None:
        u = torch.cat([u, known.double()[None]])
    return evidence(log_target(u), kernels.log_prob(u[None])[0])
