"""Refinement: samples of a posterior moved by Markov chains whose target is prior × learned likelihood.

    π(u) ∝ p(u) q(y | u);      u' = u + γ (a − b),   accepted with probability min(1, π(u')/π(u))

a and b are two of a fixed set of pilots, samples for the same observation, and γ is random: the differences know the
posterior's widths, correlations and the ways between its modes (differential evolution, ter Braak 2006), and since the
pilots are no part of the chains these are independent and the proposal is symmetric. The chains start near their
target, so that a few dozen steps suffice. Importance sampling (`evidence`) normalises the density of what they draw,
and shows whether they improve on their start at all.

Where the learned likelihood is an ensemble's mean, a step first tests a proposal with one member, in turn, and computes
the whole ensemble only for those that pass: delayed acceptance (Christen and Fox 2005), whose target is the same.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.inference.draws import SampleNoise
from openedm.inference.maps import ParameterMap
from openedm.inference.priors import Prior
from openedm.networks.mixtures import ConditionalMixture

__all__ = ["LearnedTarget", "Refinement", "Target", "evidence"]

CHUNK_ROWS = 1024
"""Rows that an emulator evaluates at a time: what they need stays in the cache."""


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
        num_steps: of each chain, ≥ 1; in `fit`, where its start is far from its target.
        num_pilots: samples that proposals are made from, ≥ 2.

    Raises:
        ValueError: a count is out of its range.
    """

    num_steps: int = 100
    num_pilots: int = 256

    def __post_init__(self) -> None:
        checks.at_least("num_steps", self.num_steps, 1)
        checks.at_least("num_pilots", self.num_pilots, 2)

    def for_share(self, share: float) -> "Refinement":
        """The same with as many steps as starts need of which `share` are effective: from all at 0 to a third at 1."""
        return replace(self, num_steps=max(1, round(self.num_steps * (1 - share + share / 3))))

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
        for step in range(self.num_steps):
            uniform = torch.special.ndtr(noise.draw((5,)).to(start)).clamp(1e-7, 1 - 1e-7)
            first, second = (uniform[:, :2] * pilots.shape[1]).long().unbind(-1)
            difference = pilots[observation, first] - pilots[observation, second]
            proposal = u + _factor(step, d, uniform[:, 2])[:, None] * difference
            member = step % target.members
            gain = target(proposal, chains, member)[0] - each[member]
            passed = (uniform[:, 3].log() < gain).nonzero()[:, 0]
            if len(passed) == 0:
                continue
            each_new = target(proposal[passed], passed)
            new = _mean(each_new)
            correction = torch.where(value[passed].isneginf() & new.isfinite(), 0.0, new - value[passed] - gain[passed])
            accepted = uniform[passed, 4].log() < correction
            moved = passed[accepted]
            u[moved], each[:, moved] = proposal[moved], each_new[:, accepted]
            value[moved] = _mean(each[:, moved])
        return u.reshape(count, n, d)


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
        self, emulator: ConditionalMixture, prior: Prior, parameters: ParameterMap, observed: Float[Tensor, "rows y"]
    ) -> None:
        self.emulator, self.prior, self.parameters, self.observed = emulator, prior, parameters, observed

    @property
    def members(self) -> int:
        """Those of the emulator."""
        return self.emulator.members

    @cached_property
    def _alone(self) -> list[ConditionalMixture]:
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

    def _chunks(self, theta: Float[Tensor, "n d"], observed: Float[Tensor, "n y"]) -> Iterator[tuple[Tensor, Tensor]]:
        inputs = self.parameters.inputs_of(theta)
        return zip(torch.split(observed, CHUNK_ROWS), torch.split(inputs, CHUNK_ROWS), strict=True)
