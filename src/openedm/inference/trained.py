"""The posterior of a trained conditional denoiser D(r; σ, y).

    y = data(x),   u = parameters(θ),   r = P(y)(u − μ(y)),   r ~ the flow of D, from its mean at σ_max and noise there

μ and P are a conditional Gaussian fitted beforehand: posteriors that are narrow, or here narrow and there wide, become
about N(0, I), where denoisers are easy to learn and samplers make the least error. Without one r = u.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, get_args

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from openedm.ground import checks
from openedm.ground.choices import from_config, to_config
from openedm.inference import storage
from openedm.inference.assessing import FEWEST, Assessment, predicted
from openedm.inference.average import Average
from openedm.inference.columns import Columns
from openedm.inference.draws import SampleNoise, StepNoise, fingerprints, observation_seeds, sample_paths
from openedm.inference.likeness import Likeness, Reference
from openedm.inference.maps import DataMap, ParameterMap
from openedm.inference.parts import Parts
from openedm.inference.posterior import Posterior, Values
from openedm.inference.priors import Prior
from openedm.inference.refine import LearnedTarget, Refinement, evidence, evidence_near
from openedm.likelihood import Likelihood
from openedm.likelihood.density import MAX_EXACT_SIZE
from openedm.networks import JoinedSummary
from openedm.networks.mixtures import ConditionalMixture
from openedm.networks.structured import mixture_config, mixture_from_config
from openedm.sampling import Auto, DormandPrince, Sampler, SamplerChoice

__all__ = ["DENSITY", "KIND", "SAMPLER", "Average", "DenoiserPosterior", "Parts"]

SAMPLER = Auto(32, sigma_min=1e-3, sigma_max=80.0)
"""Errs by less than 0.1 % of a standard deviation on Gaussians from the size of the prior to a fiftieth of it."""

DENSITY = Likelihood(solver=DormandPrince(1e-3), sigma_min=1e-3, sigma_max=80.0)
SCORE_LEVEL = 0.05
MIN_ROWS, MAX_CHAINS = 32, 1 << 14
"""Fewer samples of each observation are drawn for all observations at a time; the chains that run at a time."""

EVIDENCE_DRAWS, MAX_EVIDENCES = 1024, 64
"""Samples that normalise an observation's density; how many of these numbers are kept."""

PILOT_SEED, EVIDENCE_SEED = 2**40 + 1, 2**40 + 2
KIND = "fit"
"""The kind of folders that hold such a posterior."""


class DenoiserPosterior(Posterior):
    """p(θ | x) from a conditional denoiser, trained or exact.

    Args:
        parts: denoiser, maps and what belongs to them.
        prior: of θ, or None.
        names: of the parameters.
        sampler: any sampler of the library; it draws r.
        likelihood: how densities of r are computed.
        report: what `fit` tried and chose, plain data.
        noise: what a stochastic sampler adds in its steps: "independent" draws, or the increments of one Brownian path
            a sample ("path"), so that more steps refine the same samples.
        reference: what the observation of `verdict` is compared with, from the simulations; None where not known.
        trained_on: fingerprints of simulations that the posterior was fitted to, by which `calibrate` recognises them;
            None where they are not known.

    Raises:
        ValueError: a refinement without emulator or prior, noise="path" for a sampler that it has no effect on, or as
            `Posterior`.
    """

    options: ClassVar[tuple[str, ...]] = (
        "parts",
        "prior",
        "names",
        "sampler",
        "likelihood",
        "report",
        "noise",
        "trained_on",
        "reference",
    )

    def __init__(
        self,
        parts: Parts,
        *,
        prior: Prior | None = None,
        names: Sequence[str] | None = None,
        sampler: SamplerChoice = SAMPLER,
        likelihood: Likelihood = DENSITY,
        report: Mapping[str, Any] | None = None,
        noise: StepNoise = "independent",
        trained_on: Int64[Tensor, " rows"] | None = None,
        reference: Reference | None = None,
    ) -> None:
        checks.one_of("noise", noise, get_args(StepNoise))
        if noise == "path" and not (isinstance(sampler, Sampler) and sampler.uses_path_noise):
            raise ValueError(f"noise='path' has no effect: the sampler adds no noise from level to level, {sampler}")
        if parts.refinement is not None and (parts.emulator is None or prior is None):
            raise ValueError("refinement needs an emulator and a prior, one of them is None")
        weights = next(parts.denoiser.parameters(), torch.zeros(0))
        support = parts.parameters.bijection
        super().__init__(
            support.dim, parts.data.x_shape, prior=prior, names=names, device=weights.device, support=support
        )
        self.parts, self.sampler, self.likelihood, self.noise = parts, sampler, likelihood, noise
        self.trained_on, self.reference = trained_on, reference
        self.report: dict[str, Any] = dict(report or {})
        self._evidences: OrderedDict[bytes, float] = OrderedDict()

    @property
    def refined(self) -> bool:
        """Whether samples and densities are those of prior × learned likelihood."""
        return self.parts.refinement is not None

    def plain(self) -> "DenoiserPosterior":
        """The same posterior without refinement: the denoiser alone, which is faster."""
        return self.with_refinement(None)

    def with_refinement(self, refinement: Refinement | None) -> "DenoiserPosterior":
        """The same posterior, refined by other Markov chains, or by none. Errors as for the posterior itself."""
        return self._with(parts=replace(self.parts, refinement=refinement))

    def with_sampler(self, sampler: SamplerChoice, noise: StepNoise = "independent") -> "DenoiserPosterior":
        """The same posterior, drawn with another sampler of the library: of the ODE, with churn, or of an SDE.

        All noise comes from the posterior's seeds, so that a sample depends on its seed, observation and number alone.
        `log_prob` stays that of the ODE's flow (or of the refined posterior): a stochastic sampler draws from nearly
        the same distribution, as far as the denoiser is exact and the steps are small.

        Args:
            sampler: a `Sampler`, or a rule that makes one, such as `Auto`.
            noise: what a stochastic sampler adds: "independent" draws or, "path", the increments of one Brownian path a
                sample, so that more steps refine the same samples.

        Raises:
            TypeError: it is not a sampler, such as a solver alone.
            ValueError: noise="path" has no effect on the sampler, or the sampler does not suit the denoiser.
        """
        if not isinstance(sampler, SamplerChoice):
            raise TypeError(f"sampler must be a Sampler or Auto, got {sampler!r}")
        sampler.choose(self.parts.denoiser).check(self.parts.denoiser)
        return self._with(sampler=sampler, noise=noise)

    def _with(self, **changes: Any) -> "DenoiserPosterior":
        return type(self)(**({name: getattr(self, name) for name in self.options} | changes))

    def save(self, path: str | Path) -> None:
        """Write the posterior to a new folder. What `load` reads there gives the same samples and densities.

        Raises:
            ValueError: `path` exists; the denoiser is not one that `fit` trained, or the prior has no plain form.
        """
        parts, mixtures = self.parts, {"base": self.parts.base, "emulator": self.parts.emulator}
        members: list[Any] = list(parts.denoiser.members) if isinstance(parts.denoiser, Average) else [parts.denoiser]
        further = {
            "parameters": to_config(parts.parameters),
            "data": parts.data.to_config(),
            "target": parts.target and to_config(parts.target),
            "refinement": parts.refinement and to_config(parts.refinement),
            "report": self.report,
            "noise": self.noise,
            "reference": self.reference and self.reference.to_config(),
            **{name: m and mixture_config(m) for name, m in mixtures.items()},
        }
        common = storage.Common(parts.model, members, self.prior, self.names, self.sampler, self.likelihood)
        tensors = {"reduction": parts.data.reduction, "trained_on": self.trained_on}
        tensors |= {} if self.reference is None else self.reference.stored
        storage.write(path, KIND, common, further, mixtures, tensors)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> "DenoiserPosterior":
        """The posterior that `save` wrote. Arguments and errors as for `openedm.inference.load`."""
        return cls.from_stored(storage.read(path, KIND), device)

    @classmethod
    def from_stored(cls, stored: storage.Stored, device: torch.device | str) -> "DenoiserPosterior":
        """The posterior of a folder that was read. Errors as for `load`."""
        config = stored.config
        with stored.described():
            common = stored.common()
            base, emulator = mixture_from_config(config["base"]), mixture_from_config(config["emulator"])
            parts = Parts(
                Average.of(common.members),
                from_config(ParameterMap, config["parameters"]),
                DataMap.from_config(config["data"], stored.tensors.get("reduction")),
                base,
                emulator,
                target=config["target"] and from_config(Columns, config["target"]),
                refinement=config["refinement"] and from_config(Refinement, config["refinement"]),
                model=common.model,
            )
        stored.load_weights(common, {"base": base, "emulator": emulator})
        for module in (parts.denoiser, base, emulator):
            if module is not None:
                module.to(device).eval().requires_grad_(False)
        if (needed := parts.denoiser.condition_shape) != parts.data.shape:
            raise ValueError(
                f"{stored.folder} holds data of shape {parts.data.shape} for networks that need {needed}: "
                f"{storage.WEIGHTS} and {storage.CONFIG} do not belong together"
            )
        with stored.described():
            return cls(
                parts,
                prior=common.prior,
                names=common.names,
                sampler=common.sampler,
                likelihood=common.likelihood,
                report=dict(config["report"]),
                noise=config.get("noise", "independent"),
                trained_on=stored.tensors.get("trained_on"),
                reference=Reference.from_stored(config.get("reference"), stored.tensors),
            )

    def trained_rows(self, theta: Float[Tensor, "rows dim"], x: Float[Tensor, "rows ..."]) -> Int64[Tensor, " trained"]:
        """The rows of simulations that are known to be among those of the fit, of which up to 4096 are remembered."""
        known = torch.empty(0, dtype=torch.int64) if self.trained_on is None else self.trained_on.cpu()
        return torch.isin(fingerprints(theta, x), known).nonzero()[:, 0]

    def verdict(
        self,
        x: Values | None = None,
        *,
        simulator: Callable[[Tensor, int], Tensor] | None = None,
        num_draws: int = 500,
        seed: int = 0,
    ) -> Assessment:
        """Whether to trust the posterior at one observation: trust, more simulations, or model does not fit.

        Args:
            x: one observation, or None for that of `set_default_x`.
            simulator: `simulator(theta, seed)` gives data (n, *x_shape), to be compared with x; None leaves that out.
            num_draws: how many data are simulated, ≥ 200.
            seed: of samples and simulations.

        Raises:
            TypeError, ValueError: as `sample`; x is a batch, num_draws < 200, or the simulator's data have another
                shape or are not finite.
        """
        checks.integer("num_draws", num_draws, FEWEST)
        observations, _ = self._observations(x)
        if len(observations) != 1:
            raise ValueError(f"x must be one observation, got {len(observations)}")
        likeness = self.likeness(observations)
        effective = self._agreement(observations)
        predictive = None
        if simulator is not None:
            with torch.no_grad():
                theta = self._samples(observations, num_draws, seed)[0].cpu()
            predictive = predicted(torch.as_tensor(self.flat(simulator(theta, seed))), observations[0])
        found = None if likeness is None else likeness[0]
        return Assessment.of(self.report, self.dim, found, effective=effective, predictive=predictive)

    def flat(self, x: Values) -> Values:
        """Data as they are, or, of several kinds (a mapping from names), in one vector each.

        Raises:
            TypeError: a mapping for a posterior of one kind of data.
            ValueError: names or shapes do not fit.
        """
        if not isinstance(x, Mapping):
            return x
        joined = getattr(self.parts.model and self.parts.model.network, "summary", None)
        if not isinstance(joined, JoinedSummary):
            raise TypeError(
                f"x must be a tensor of shape {self.x_shape}, to which the posterior was fitted, got a mapping"
            )
        return joined.flatten(x)

    def likeness(self, x: Values) -> list[Likeness] | None:
        """How like the simulations each observation is; None where the posterior does not know its simulations.

        Args:
            x: one observation or a batch of them.

        Raises:
            TypeError, ValueError: as `sample`.
        """
        if self.reference is None:
            return None
        observations, _ = self._observations(x)
        return self.reference(observations if self.parts.data.vector else self.parts.data.forward(observations))

    def accepts(self, x: Float[Tensor, "observations ..."]) -> Bool[Tensor, " observations"]:
        """Which of the observations there is a posterior for: finite ones, or not larger than those simulated."""
        absence = self.parts.data.absence
        return super().accepts(x) if absence is None else absence.accepts(x)

    def _complete(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        absence = self.parts.data.absence
        return x if absence is None else absence.complete(x, self.x_shape)

    def _check_observations(self, x: Float[Tensor, "observations ..."]) -> None:
        absence = self.parts.data.absence
        if absence is None:
            super()._check_observations(x)
        else:
            absence.check(x)

    def _draw(
        self, x: Float[Tensor, "observations ..."], n: int, seeds: Sequence[int]
    ) -> Float[Tensor, "observations n dim"]:
        y = self.parts.data.forward(x)
        u = self._flows(y, n, seeds)
        if self.parts.refinement is not None:
            size = max(1, MAX_CHAINS // n)
            chunks = (slice(i, i + size) for i in range(0, len(x), size))
            u = torch.cat([self._refine(u[rows], x[rows], y[rows], seeds[rows]) for rows in chunks])
        return self.parts.parameters.inverse(u)

    def _flows(
        self, y: Float[Tensor, "observations *y"], n: int, seeds: Sequence[int]
    ) -> Float64[Tensor, "observations n dim"]:
        """u by the flow: many samples one observation at a time, whose summary is then made once."""
        if n < MIN_ROWS:
            return self._flow(y, n, seeds)
        return torch.cat([self._flow(y[i : i + 1], n, [seed]) for i, seed in enumerate(seeds)])

    def _flow(
        self, y: Float[Tensor, "observations *y"], n: int, seeds: Sequence[int]
    ) -> Float64[Tensor, "observations n dim"]:
        """u by the flow from the denoiser's own mean at σ_max and noise there.

        From zero and noise, as samplers start, the mean of samples would be short by |mean|/σ_max standard deviations.
        """
        denoiser, sampler = self.parts.denoiser, self.sampler.choose(self.parts.denoiser)
        source = SampleNoise(seeds, n)
        noise = source.draw(denoiser.event_shape or (self.dim,)).to(y)
        condition = y if len(y) == 1 else y.repeat_interleave(n, 0)
        top = float(sampler.levels_for(denoiser).sigmas().max())
        centre = denoiser(torch.zeros_like(noise), top, condition)
        shape = noise.shape[1:]
        steps = None if not sampler.stochastic else source if self.noise == "independent" else sample_paths(seeds, n)
        r = sampler.sample(denoiser, steps, noise=noise + centre / top, condition=condition, event_shape=shape)
        u: Tensor = r.reshape(len(y), n, -1)[..., : self.dim].double()
        if self.parts.base is not None:
            mean, factor, _ = self._base(self.parts.base, y)
            u = mean[:, None] + torch.linalg.solve_triangular(factor, u.mT, upper=False).mT
        return u

    @torch.no_grad()
    def _base(self, base: ConditionalMixture, y: Float[Tensor, "observations y"]) -> tuple[Tensor, Tensor, Tensor]:
        """μ, P and ln det P of each row, float64."""
        _, means, factors, logs = base.parameters_of(y[None])
        return means[0, :, 0].double(), factors[0, :, 0].double(), logs[0, :, 0].double()

    def _density(
        self, theta: Float[Tensor, "observations n dim"], x: Float[Tensor, "observations ..."]
    ) -> Float[Tensor, "observations n"]:
        if not self.refined:
            return self._flow_density(theta, self.parts.data.forward(x))
        return self._relative_density(theta, x) - self._evidences_of(x)[:, None]

    def _relative_density(
        self, theta: Float[Tensor, "observations n dim"], x: Float[Tensor, "observations ..."]
    ) -> Float[Tensor, "observations n"]:
        if not self.refined:
            return self._density(theta, x)
        target = self.learned_target(x, theta.shape[1])
        return target.log_prob(theta.flatten(0, 1)).reshape(theta.shape[:-1])

    def _flow_density(
        self, theta: Float[Tensor, "observations n dim"], y: Float[Tensor, "observations *y"]
    ) -> Float64[Tensor, "observations n"]:
        """ln q(θ | y) by the change of variables; its gradient is the denoiser's score at a low level."""
        parameters, denoiser = self.parts.parameters, self.parts.denoiser
        r, volume = parameters.forward(theta), parameters.log_det(theta)
        if self.parts.base is not None:
            mean, factor, logs = self._base(self.parts.base, y)
            r = torch.matmul(r - mean[:, None], factor.mT)
            volume = volume + logs[:, None]
        condition = y if len(y) == 1 else y.repeat_interleave(theta.shape[1], 0)
        flat = r.flatten(0, 1)
        # Above 16 parameters the trace is estimated with random probes, the same for every point.
        found = self.likelihood.log_prob(denoiser, flat.detach(), condition, seeds=[0] * len(flat))
        values = found.log_prob.to(r)
        if r.requires_grad:
            with torch.no_grad():
                score = denoiser.score(flat.detach(), SCORE_LEVEL, condition)
            values = values + (score * (flat - flat.detach())).sum(-1)
        return values.reshape(r.shape[:-1]) + volume

    def learned_target(self, x: Float[Tensor, "observations ..."], num_chains: int = 1) -> LearnedTarget:
        """prior × learned likelihood, for so many chains of each observation, or for any points of a single one.

        Raises:
            ValueError: the emulator or the prior is missing.
        """
        parameters = self.parts.parameters
        if self.parts.emulator is None or self.prior is None or not isinstance(parameters, ParameterMap):
            raise ValueError("posterior must have an emulator and a prior, one of them is None")
        observed = self.parts.emulated(x).repeat_interleave(num_chains, 0)
        return LearnedTarget(self.parts.emulator, self.prior, parameters, observed)

    @torch.no_grad()
    def _refine(
        self,
        u: Float[Tensor, "observations n dim"],
        x: Float[Tensor, "observations ..."],
        y: Float[Tensor, "observations *y"],
        seeds: Sequence[int],
    ) -> Float[Tensor, "observations n dim"]:
        """u moved by chains whose target is ln p(u) + ln q(x | u), as many steps as the pilots of each x need."""
        refinement = self.parts.refinement
        assert refinement is not None
        pilots, steps = self.settled_pilots(x, refinement, PILOT_SEED, y)
        moved = u.clone()
        for count in sorted(set(steps.tolist())):
            rows = (steps == count).nonzero()[:, 0].tolist()
            chains = replace(refinement, num_steps=count, max_steps=None)
            target = self.learned_target(x[rows], u.shape[1])
            moved[rows] = chains.run(u[rows], pilots[rows], target, [seeds[i] for i in rows])
        return moved

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
        pilots = self._flows(self.parts.data.forward(x) if y is None else y, refinement.num_pilots, seeds)
        return refinement.settle(pilots, self.learned_target(x, refinement.num_pilots), seeds)

    @torch.no_grad()
    def _evidence(self, x: Float[Tensor, "one ..."], y: Float[Tensor, "*y"], target: LearnedTarget) -> float:
        """ln ∫ p(θ) q(x | θ) dθ, kept for the last few observations."""
        key = x.cpu().numpy().tobytes()
        refinement = self.parts.refinement
        assert refinement is not None
        if key not in self._evidences and refinement.max_steps is not None:
            pilots, _ = self.settled_pilots(x, refinement, PILOT_SEED, y[None])
            (seed,) = observation_seeds(x, EVIDENCE_SEED)
            total, _ = evidence_near(pilots[0], target.in_coordinates, seed=seed, draws=EVIDENCE_DRAWS)
            self._evidences[key] = total
        elif key not in self._evidences:
            self._evidences[key], _ = self._weighed(x, y, target)
        while len(self._evidences) > MAX_EVIDENCES:
            self._evidences.popitem(last=False)
        return self._evidences[key]

    @torch.no_grad()
    def _weighed(
        self, x: Float[Tensor, "one ..."], y: Float[Tensor, "*y"], target: LearnedTarget
    ) -> tuple[float, float]:
        """ln ∫ p(θ) q(x | θ) dθ, and the share of the denoiser's samples that are effective for it."""
        # The density of proposals is known where they follow the ODE.
        stochastic = self.sampler.choose(self.parts.denoiser).stochastic
        proposing = self.with_sampler(SAMPLER) if stochastic else self
        u = proposing._flow(y[None], EVIDENCE_DRAWS, observation_seeds(x, EVIDENCE_SEED))[0]
        theta = self.parts.parameters.inverse(u)
        return evidence(target.log_prob(theta), self._flow_density(theta[None], y[None])[0])

    def _agreement(self, x: Float[Tensor, "one ..."]) -> float | None:
        """The share of the denoiser's samples that are effective; None without learned likelihood, or exact density."""
        if self.parts.emulator is None or self.prior is None or self.dim > MAX_EXACT_SIZE:
            return None
        return self._weighed(x, self.parts.data.forward(x)[0], self.learned_target(x))[1]

    def _evidences_of(self, x: Float[Tensor, "observations ..."]) -> Float64[Tensor, " observations"]:
        """ln ∫ p(θ) q(x | θ) dθ of each observation."""
        y = self.parts.data.forward(x)
        each = [self._evidence(x[i : i + 1], y[i], self.learned_target(x[i : i + 1])) for i in range(len(x))]
        return torch.tensor(each, dtype=torch.float64, device=self.device)
