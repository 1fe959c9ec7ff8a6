"""The flow of a denoiser refined at given observations: samples and densities of prior × learned likelihood.

    π(u | x) = p(u) q(x | u) / Z(x),      Z(x) = ∫ p(θ) q(x | θ) dθ

Samples of the flow are moved by the Markov chains of `refine` towards π; importance sampling gives ln Z, from kernels
around pilots where those have settled, else from samples of the flow. Where the emulator remembers its simulations, q
is corrected by those near the pilots, which then settle anew: the better they are placed, the nearer the simulations.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from openedm.inference.disagreement import spread_of
from openedm.inference.draws import SampleNoise, observation_seeds, section_seeds
from openedm.inference.flow import SAMPLER, ConditionalFlow
from openedm.inference.kernels import FREEDOM, Kernels
from openedm.inference.maps import ParameterMap
from openedm.inference.priors import Prior
from openedm.inference.refine import EachTarget, LearnedTarget, Refinement, Target, evidence, evidence_near
from openedm.networks.mixtures import ConditionalDensity
from openedm.networks.nearby import RememberingDensity

__all__ = ["RefinedFlow"]

MAX_CHAINS = 1 << 14
"""The chains that run at a time."""

EVIDENCE_DRAWS, MAX_EVIDENCES = 1024, 64
"""Samples that normalise an observation's density; of how many observations these numbers and densities are kept."""

CORRECTIONS = 3
"""So often q is corrected near the pilots, which then settle anew."""

START_SECTION = 10_000
"""Of an observation's seeds: where chains start, after the sections of pilots."""

PILOT_SEED, EVIDENCE_SEED, SPREAD_SEED = 2**40 + 1, 2**40 + 2, 2**40 + 3


class Settled(NamedTuple):
    """Pilots that have settled.

    Attributes:
        pilots: samples u of prior × learned likelihood.
        steps: how many further chains need.
        densities: q of each observation; None where all have the emulator's.
    """

    pilots: Float[Tensor, "observations pilots dim"]
    steps: Int64[Tensor, " observations"]
    densities: list[ConditionalDensity] | None


@dataclass(frozen=True)
class RefinedFlow:
    """Prior × learned likelihood, whose chains start from a flow.

    Attributes:
        flow: samples to start from.
        prior: of θ.
        evidences: ln Z of the last few observations, by their bytes; to be kept from one such object to the next.
        densities: q of the last few observations, where it is corrected for each; to be kept as well.
    """

    flow: ConditionalFlow
    prior: Prior | None
    evidences: OrderedDict[bytes, float] = field(default_factory=OrderedDict, repr=False)
    densities: OrderedDict[bytes, ConditionalDensity] = field(default_factory=OrderedDict, repr=False)

    def target(
        self,
        x: Float[Tensor, "observations ..."],
        num_chains: int = 1,
        density: ConditionalDensity | None = None,
    ) -> LearnedTarget:
        """prior × learned likelihood, for so many chains of each observation, or for any points of a single one.

        Args:
            x: observations.
            num_chains: of each.
            density: q; None means the emulator.

        Raises:
            ValueError: the emulator or the prior is missing.
        """
        parts = self.flow.parts
        if parts.emulator is None or self.prior is None or not isinstance(parts.parameters, ParameterMap):
            raise ValueError("posterior must have an emulator and a prior, one of them is None")
        observed = parts.emulated(x).repeat_interleave(num_chains, 0)
        return LearnedTarget(parts.emulator if density is None else density, self.prior, parts.parameters, observed)

    def target_of(
        self,
        x: Float[Tensor, "observations ..."],
        num_chains: int,
        densities: Sequence[ConditionalDensity] | None,
    ) -> Target:
        """The same, with a q for each observation."""
        if densities is None:
            return self.target(x, num_chains)
        targets = [self.target(x[i : i + 1], num_chains, density) for i, density in enumerate(densities)]
        return targets[0] if len(targets) == 1 else EachTarget(targets, num_chains)

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
        pilots, steps, densities = self.settled_pilots(x, refinement, PILOT_SEED, y)
        if densities is not None:
            u = _started(u, pilots, densities, self.flow.parts.emulator, seeds)
        moved = u.clone()
        for count in sorted(set(steps.tolist())):
            rows = (steps == count).nonzero()[:, 0].tolist()
            chains = replace(refinement, num_steps=count, max_steps=None)
            target = self.target_of(x[rows], u.shape[1], densities and [densities[i] for i in rows])
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
    ) -> Settled:
        """Samples u of prior × learned likelihood that further chains are made with, and how many steps those need.

        Args:
            x: observations.
            refinement: how many pilots, and steps.
            seed: of the pilots, beside the observations.
            y: `parts.data.forward(x)` if it is known.
        """
        seeds = observation_seeds(x, seed)
        pilots = self.flow.samples(self.flow.parts.data.forward(x) if y is None else y, refinement.num_pilots, seeds)
        pilots, steps = refinement.settle(pilots, self.target(x, refinement.num_pilots), seeds)
        emulator, parameters = self.flow.parts.emulator, self.flow.parts.parameters
        if not isinstance(emulator, RememberingDensity) or not isinstance(parameters, ParameterMap):
            return Settled(pilots, steps, None)
        densities: list[ConditionalDensity] = [emulator.density] * len(x)
        active = torch.arange(len(x))
        for number in range(CORRECTIONS):
            near = {i: emulator.near(parameters.inputs_of(parameters.inverse(pilots[i]))) for i in active.tolist()}
            active = torch.tensor([i for i, density in near.items() if density is not emulator.density])
            if len(active) == 0:
                break
            rows = active.tolist()
            for i in rows:
                densities[i] = near[i]
            target = self.target_of(x[rows], refinement.num_pilots, [densities[i] for i in rows])
            now = section_seeds([seeds[i] for i in rows], 1000 * (number + 1))
            pilots[rows], steps[rows] = refinement.settle(pilots[rows], target, now)
        return Settled(pilots, steps, densities)

    def density_of(self, x: Float[Tensor, "one ..."]) -> ConditionalDensity | None:
        """q of one observation; None where all have the emulator's."""
        if not isinstance(self.flow.parts.emulator, RememberingDensity):
            return None
        key = x[0].cpu().numpy().tobytes()
        if key not in self.densities:
            self._keep(key, self.settled_pilots(x, self._refinement, PILOT_SEED).densities)
        return self.densities[key]

    def _keep(self, key: bytes, densities: Sequence[ConditionalDensity] | None, number: int = 0) -> None:
        if densities is not None:
            self.densities[key] = densities[number]
            while len(self.densities) > MAX_EVIDENCES:
                self.densities.popitem(last=False)

    def relative_log_prob(
        self, theta: Float[Tensor, "observations n dim"], x: Float[Tensor, "observations ..."]
    ) -> Float64[Tensor, "observations n"]:
        """ln p(θ) + ln q(x | θ), for θ inside the prior's support."""
        if not isinstance(self.flow.parts.emulator, RememberingDensity):
            return self.target(x, theta.shape[1]).log_prob(theta.flatten(0, 1)).reshape(theta.shape[:-1])
        each = [(x[i : i + 1], theta[i]) for i in range(len(x))]
        return torch.stack([self.target(one, 1, self.density_of(one)).log_prob(points) for one, points in each])

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
        pilots, _, densities = self.settled_pilots(x, refinement, PILOT_SEED, y)
        seeds, found = observation_seeds(x, EVIDENCE_SEED), []
        for i, (one, _) in enumerate(each):
            self._keep(x[i].cpu().numpy().tobytes(), densities, i)
            target = self.target(one, 1, None if densities is None else densities[i]).in_coordinates
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
        target = self.target(x, 1, self.density_of(x))
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
        return evidence(self.target(x, 1, self.density_of(x)).log_prob(theta), self.flow.log_prob(theta[None], y)[0])


def _started(
    u: Float[Tensor, "observations n dim"],
    pilots: Float[Tensor, "observations pilots dim"],
    densities: Sequence[ConditionalDensity],
    emulator: ConditionalDensity | None,
    seeds: Sequence[int],
) -> Float[Tensor, "observations n dim"]:
    """Where chains start: near pilots where the density is corrected, since it may be wrong further away."""
    assert isinstance(emulator, RememberingDensity)
    rows = [i for i, density in enumerate(densities) if density is not emulator.density]
    if not rows:
        return u
    n, d = u.shape[1:]
    noise = SampleNoise(section_seeds([seeds[i] for i in rows], START_SECTION), n).draw((d + FREEDOM + 1,)).to(u.device)
    noise = noise.reshape(len(rows), n, -1)
    uniform = torch.special.ndtr(noise[..., -1]).clamp(1e-7, 1 - 1e-7)
    started = u.clone()
    kernels = Kernels.of(pilots[rows])
    started[rows] = kernels.at((uniform * pilots.shape[1]).long(), noise[..., :-1]).to(u)
    return started
