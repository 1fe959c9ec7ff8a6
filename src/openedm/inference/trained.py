"""The posterior of a trained conditional denoiser: samples, densities and a verdict for observations, kept in a folder.

Samples and densities are those of the denoiser's flow (`flow`), refined where the posterior says so (`refined_flow`).
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, get_args

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from openedm.ground import checks
from openedm.inference import storage
from openedm.inference.arrays import Values, as_tensor
from openedm.inference.assessing import FEWEST, Assessment, predicted
from openedm.inference.average import Average
from openedm.inference.composite import MARGIN, Truncated
from openedm.inference.draws import StepNoise, fingerprints
from openedm.inference.flow import DENSITY, SAMPLER, ConditionalFlow
from openedm.inference.likeness import FAR, Likeness, Reference
from openedm.inference.parts import Parts
from openedm.inference.posterior import Posterior
from openedm.inference.priors import Prior
from openedm.inference.refine import Refinement
from openedm.inference.refined_flow import RefinedFlow
from openedm.inference.repeated import RepeatedPosterior
from openedm.inference.simulation import data_for
from openedm.likelihood import Likelihood
from openedm.likelihood.density import MAX_EXACT_SIZE
from openedm.networks import JoinedSummary
from openedm.sampling import Sampler, SamplerChoice

__all__ = ["DENSITY", "KIND", "SAMPLER", "Average", "DenoiserPosterior", "Parts"]

KIND = "fit"
"""The kind of folders that hold such a posterior."""


SPREAD_DRAWS = 500
"""Samples that tell how far members of an ensemble disagree; a quarter where their densities take a flow each."""

REGION_DRAWS = 1000
"""Samples around which a box is laid."""


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
    def x_dtype(self) -> torch.dtype:
        """The number format of observations: float64 where float32 would lose what they tell."""
        return self.parts.data.number_format

    @property
    def flow(self) -> ConditionalFlow:
        """Samples and densities of the denoiser alone."""
        return ConditionalFlow(self.parts, self.sampler, self.likelihood, self.noise)

    @property
    def refined_flow(self) -> RefinedFlow:
        """Samples and densities of prior × learned likelihood, for a posterior with an emulator and a prior."""
        return RefinedFlow(self.flow, self.prior, self._evidences)

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

    def repeated(self, count: int, *, plain: bool = False) -> RepeatedPosterior:
        """The posterior of one θ given `count` independent observations of it, (count, *x_shape).

            posterior.repeated(len(measured)).sample(measured, 1000)

        By prior × product of the learned likelihood, where `fit` learned one, else by composed denoisers. Errors of the
        posterior of one observation add up, while that of all of them narrows: check with
        `calibrate(posterior.repeated(n), theta, x)`, with x (simulations, n, *x_shape).

        Args:
            count: how many, ≥ 1.
            plain: compose denoisers also where a likelihood was learned. Of more than ten, there is a warning.

        Raises:
            TypeError: count is no integer.
            ValueError: count < 1, or the posterior's denoiser has further variables.
        """
        return RepeatedPosterior(self, count, plain=plain)

    def _with(self, **changes: Any) -> "DenoiserPosterior":
        return type(self)(**({name: getattr(self, name) for name in self.options} | changes))

    def save(self, path: str | Path) -> None:
        """Write the posterior to a new folder. What `load` reads there gives the same samples and densities.

        Raises:
            ValueError: `path` exists; the denoiser is not one that `fit` trained, or the prior has no plain form.
        """
        further = {
            **self.parts.to_config(),
            "report": self.report,
            "noise": self.noise,
            "reference": self.reference and self.reference.to_config(),
        }
        parts = self.parts
        common = storage.Common(parts.model, parts.members, self.prior, self.names, self.sampler, self.likelihood)
        tensors = {"reduction": parts.data.reduction, "trained_on": self.trained_on}
        tensors |= {} if self.reference is None else self.reference.stored
        storage.write(path, KIND, common, further, parts.modules, tensors)

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
        parts = Parts.read(stored, common, device)
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
        theta, x = theta.to(self.parts.parameters.number_format), x.to(self.x_dtype)
        return torch.isin(fingerprints(theta, x), known).nonzero()[:, 0]

    def verdict(
        self,
        x: Values | None = None,
        *,
        simulator: Callable[..., Any] | None = None,
        num_draws: int = 500,
        seed: int = 0,
        batched: bool = True,
    ) -> Assessment:
        """Whether to trust the posterior at one observation: trust, more simulations, or model does not fit.

        Args:
            x: one observation, or None for that of `set_default_x`.
            simulator: `simulator(theta, seed)` gives data (n, *x_shape), to be compared with x; None leaves that out.
            num_draws: how many data are simulated, ≥ 200.
            seed: of samples and simulations.
            batched: whether the simulator takes all θ (n, dim) at once; False for one that takes a single θ, as
                `simulate` calls it by default.

        Raises:
            RuntimeError: a simulator of single θ raises; what another raises is raised with a note.
            TypeError, ValueError: as `sample`; x is a batch, num_draws < 200, or the simulator's data have another
                shape or are not finite.
        """
        checks.integer("num_draws", num_draws, FEWEST)
        observations, _ = self._observations(x)
        if len(observations) != 1:
            raise ValueError(f"x must be one observation, got {len(observations)}")
        likeness = self.likeness(observations)
        effective, spread, predictive = None, None, None
        try:
            effective, spread = self._agreement(observations), self._spread(observations)
        except FloatingPointError:
            if likeness is None or likeness[0].ratio <= FAR:
                raise  # else the network's results are not finite since x is far away, which is the verdict
        if simulator is not None:
            with torch.no_grad():
                theta = self._samples(observations, num_draws, seed)[0].cpu()
            predictive = predicted(
                as_tensor("simulator(theta)", self.flat(data_for(simulator, theta, seed, batched))), observations[0]
            )
        found = None if likeness is None else likeness[0]
        region = self._region(observations)
        known = {"effective": effective, "predictive": predictive, "spread": spread, "region": region}
        return Assessment.of(self.report, self.dim, found, **known)

    def flat(self, x: Values) -> Values:
        """Data as they are, or, of several kinds (a mapping from names), in one vector each.

        Raises:
            TypeError: a mapping for a posterior of one kind of data.
            ValueError: names or shapes do not fit.
        """
        if not isinstance(x, Mapping):
            return x
        if (joined := self._joined) is None:
            raise TypeError(
                f"x must be a tensor of shape {self.x_shape}, to which the posterior was fitted, got a mapping"
            )
        return joined.flatten(x)

    @property
    def _joined(self) -> JoinedSummary | None:
        """The summary of several kinds of data; None for a posterior of one kind."""
        found = getattr(self.parts.model and self.parts.model.network, "summary", None)
        return found if isinstance(found, JoinedSummary) else None

    def _allowed_observations(self) -> str:
        return super()._allowed_observations() if self._joined is None else self._joined.allowed

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

    def _warn_if_far(self, x: Float[Tensor, "one ..."]) -> None:
        found = self.likeness(x)
        if found is None or self.reference is None:
            return
        for text in self.reference.exceptions(x if self.parts.data.vector else self.parts.data.forward(x)):
            warnings.warn(text, stacklevel=4)
        if found[0].ratio > FAR:
            warnings.warn(
                f"x is far from all simulations, {found[0].ratio:.1f} times as far as the farthest of them: its "
                "posterior was not learned; see posterior.verdict(x)",
                stacklevel=4,
            )

    @contextmanager
    def _naming_far(self, x: Float[Tensor, "observations ..."]) -> Iterator[None]:
        """Say of numbers that are not finite that an observation is far from all simulations, where one is."""
        try:
            yield
        except FloatingPointError as error:
            ratio = max((each.ratio for each in self.likeness(x) or ()), default=0.0)
            if ratio <= FAR:
                raise
            raise FloatingPointError(
                f"x is far from all simulations, {ratio:.1f} times as far as the farthest of them: its posterior was "
                "not learned, and the network's results are not finite there; is x in the units and the order of the "
                "simulations?"
            ) from error

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
        with self._naming_far(x):
            if self.refined:
                u = self.refined_flow.samples(x, n, seeds)
            else:
                u = self.flow.samples(self.parts.data.forward(x), n, seeds)
        return self.parts.parameters.inverse(u)

    def _density(
        self, theta: Float[Tensor, "observations n dim"], x: Float[Tensor, "observations ..."]
    ) -> Float[Tensor, "observations n"]:
        if not self.refined:
            with self._naming_far(x):
                return self.flow.log_prob(theta, self.parts.data.forward(x))
        return self._relative_density(theta, x) - self.refined_flow.log_evidences(x)[:, None]

    def _relative_density(
        self, theta: Float[Tensor, "observations n dim"], x: Float[Tensor, "observations ..."]
    ) -> Float[Tensor, "observations n"]:
        return self.refined_flow.relative_log_prob(theta, x) if self.refined else self._density(theta, x)

    def _agreement(self, x: Float[Tensor, "one ..."]) -> float | None:
        """The share of the denoiser's samples that are effective; None without refinement, or exact density."""
        if not self.refined or self.dim > MAX_EXACT_SIZE:
            return None
        return self.refined_flow.agreement(x)

    def _spread(self, x: Float[Tensor, "one ..."]) -> float | None:
        """How far members of the ensemble that samples come from disagree; None where there are none, or no density."""
        if self.refined:
            return self.refined_flow.spread(x, SPREAD_DRAWS)
        return self.flow.spread(self.parts.data.forward(x), SPREAD_DRAWS // 4)

    def _region(self, x: Float[Tensor, "one ..."]) -> float | None:
        """The share of the prior in the box that `fit_sequentially` would cut around samples; None without one."""
        if self.prior is None:
            return None
        try:
            samples = self._samples(x, REGION_DRAWS, 0)[0].cpu()
            return Truncated.around(self.prior, samples, MARGIN).mass
        except (FloatingPointError, ValueError):  # x is far away: samples lie at an end of the prior or are not finite
            return None
