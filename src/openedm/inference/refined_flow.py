"""The flow of a denoiser refined at given observations: samples and densities of prior × learned likelihood.

    π(u | x) = p(u) q(x | u) / Z(x),      Z(x) = ∫ p(θ) q(x | θ) dθ

Samples of the flow are moved by the Markov chains of `refine` towards π; importance sampling gives ln Z, from kernels
around pilots where those have settled, else from samples of the flow.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from openedm.inference.disagreement import spread_of
from openedm.inference.draws import observation_seeds
from openedm.inference.flow import SAMPLER, ConditionalFlow
from openedm.inference.maps import ParameterMap
from openedm.inference.priors import Prior
from openedm.inference.refine import LearnedTarget, Refinement, evidence, evidence_near

__all__ = ["RefinedFlow"]

MAX_CHAINS = 1 << 14
"""The chains that run at a time."""

EVIDENCE_DRAWS, MAX_EVIDENCES = 1024, 64
"""Samples that normalise an observation's density; how many of these numbers are kept."""

PILOT_SEED, EVIDENCE_SEED, SPREAD_SEED = 2**40 + 1, 2**40 + 2, 2**40 + 3


@dataclass(frozen=True)
class RefinedFlow:
    """Prior × learned likelihood, whose chains start from a flow.

    Attributes:
        flow: samples to start from.
        prior: of θ.
        evidences: ln Z of the last few observations, by their bytes; to be kept from one such object to the next.
    """

    flow: ConditionalFlow
    prior: Prior | None
    evidences: OrderedDict[bytes, float] = field(default_factory=OrderedDict, repr=False)

    def target(self, x: Float[Tensor, "observations ..."], num_chains: int = 1) -> LearnedTarget:
        """prior × learned likelihood, for so many chains of each observation, or for any points of a single one.

        Raises:
            ValueError: the emulator or the prior is missing.
        """
        parts = self.flow.parts
        if parts.emulator is None or self.prior is None or not isinstance(parts.parameters, ParameterMap):
            raise ValueError("posterior must have an emulator and a prior, one of them is None")
        observed = parts.emulated(x).repeat_interleave(num_chains, 0)
        return LearnedTarget(parts.emulator, self.prior, parts.parameters, observed)

    @torch.no_grad()
    def samples(
        self, x: Float[Tensor, "observations ..."], n: int, seeds: Sequence[int]
    ) -> Float[Tensor, "observations n dim"]:
        """u, n for each observation, moved by chains. Arguments as for the flow's, with x itself."""
        y = self.flow.parts.data.forward(x)
        u = self.flow.samples(y, n, seeds)
        size = max(1, MAX_CHAINS // n)
        chunks = (slice(i, i + size) for i in range(0, len(x), size))
        return torch.cat([self._moved(u[rows], x[rows], y[rows], seeds[rows]) for rows in chunks])

    def _moved(
        self,
        u: Float[Tensor, "observations n dim"],
        x: Float[Tensor, "observations ..."],
        y: Float[Tensor, "observations *y"],
        seeds: Sequence[int],
    ) -> Float[Tensor, "observations n dim"]:
        """u moved by chains whose target is ln p(u) + ln q(x | u), as many steps as the pilots of each x need."""
        refinement = self._refinement
        pilots, steps = self.settled_pilots(x, refinement, PILOT_SEED, y)
        moved = u.clone()
        for count in sorted(set(steps.tolist())):
            rows = (steps == count).nonzero()[:, 0].tolist()
            chains = replace(refinement, num_steps=count, max_steps=None)
            target = self.target(x[rows], u.shape[1])
            moved[rows] = chains.run(u[rows], pilots[rows], target, [seeds[i] for i in rows])
        return moved

    @property
    def _refinement(self) -> Refinement:
        refinement = self.flow.parts.refinement
        assert refinement is not None
        return refinement

    @torch.no_grad()
    def settled_pilots(
        self,
        x: Float[Tensor, "observations ..."],
        refinement: Refinement,
        seed: int,
        y: Float[Tensor, "observations *y"] | None = None,
    ) -> tuple[Float[Tensor, "observations pilots dim"], Int64[Tensor, " observations"]]:
        """Samples u of prior × learned likelihood that further chains are made with, and how many steps those need.

        Args:
            x: observations.
            refinement: how many pilots, and steps.
            seed: of the pilots, beside the observations.
            y: `parts.data.forward(x)` if it is known.
        """
        seeds = observation_seeds(x, seed)
        pilots = self.flow.samples(self.flow.parts.data.forward(x) if y is None else y, refinement.num_pilots, seeds)
        return refinement.settle(pilots, self.target(x, refinement.num_pilots), seeds)

    def relative_log_prob(
        self, theta: Float[Tensor, "observations n dim"], x: Float[Tensor, "observations ..."]
    ) -> Float64[Tensor, "observations n"]:
        """ln p(θ) + ln q(x | θ), for θ inside the prior's support."""
        return self.target(x, theta.shape[1]).log_prob(theta.flatten(0, 1)).reshape(theta.shape[:-1])

    @torch.no_grad()
    def log_evidences(self, x: Float[Tensor, "observations ..."]) -> Float64[Tensor, " observations"]:
        """ln Z of each observation. The pilots of many settle together, as many at a time as there may be chains."""
        keys = [row.cpu().numpy().tobytes() for row in x]
        found = {key: self.evidences[key] for key in keys if key in self.evidences}
        missing = list({key: i for i, key in enumerate(keys) if key not in found}.values())
        size = max(1, MAX_CHAINS // self._refinement.num_pilots)
        for rows in (missing[i : i + size] for i in range(0, len(missing), size)):
            found |= dict(zip([keys[i] for i in rows], self._log_evidences(x[rows]), strict=True))
        self.evidences.update({key: found[key] for key in keys})
        while len(self.evidences) > MAX_EVIDENCES:
            self.evidences.popitem(last=False)
        return torch.tensor([found[key] for key in keys], dtype=torch.float64, device=x.device)

    def _log_evidences(self, x: Float[Tensor, "observations ..."]) -> list[float]:
        y, refinement = self.flow.parts.data.forward(x), self._refinement
        each = [(x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
        if refinement.max_steps is None:
            return [self._weighed(*one)[0] for one in each]
        pilots, _ = self.settled_pilots(x, refinement, PILOT_SEED, y)
        seeds, found = observation_seeds(x, EVIDENCE_SEED), []
        for i, (one, _) in enumerate(each):
            target = self.target(one).in_coordinates
            found.append(evidence_near(pilots[i], target, seed=seeds[i], draws=EVIDENCE_DRAWS)[0])
        return found

    @torch.no_grad()
    def agreement(self, x: Float[Tensor, "one ..."]) -> float:
        """The share of the flow's samples of one observation that are effective for prior × learned likelihood."""
        return self._weighed(x, self.flow.parts.data.forward(x))[1]

    @torch.no_grad()
    def spread(self, x: Float[Tensor, "one ..."], n: int) -> float | None:
        """How far the members of the learned likelihood disagree at an observation; None of a single one.

        Args:
            x: one observation.
            n: the samples that this is measured with.
        """
        target = self.target(x)
        if target.members == 1:
            return None
        u = self.samples(x, n, observation_seeds(x, SPREAD_SEED))[0]
        return spread_of(target(u, torch.zeros(n, dtype=torch.long, device=u.device)))

    def _weighed(self, x: Float[Tensor, "one ..."], y: Float[Tensor, "one *y"]) -> tuple[float, float]:
        """ln Z, and the share of the flow's samples that are effective for it."""
        # The density of proposals is known where they follow the ODE.
        stochastic = self.flow.sampler.choose(self.flow.parts.denoiser).stochastic
        proposing = replace(self.flow, sampler=SAMPLER, noise="independent") if stochastic else self.flow
        u = proposing.samples(y, EVIDENCE_DRAWS, observation_seeds(x, EVIDENCE_SEED))[0]
        theta = self.flow.parts.parameters.inverse(u)
        return evidence(self.target(x).log_prob(theta), self.flow.log_prob(theta[None], y)[0])
