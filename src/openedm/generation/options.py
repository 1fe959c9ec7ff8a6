"""How samples are drawn from a checkpoint: one choice, and the checkpoint that it is applied to."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from openedm.conditions import pack
from openedm.denoiser import Condition, Denoiser, configure_execution
from openedm.generation.classes import find_classes
from openedm.generation.conditions import Conditions, conditions_for
from openedm.generation.fitted_files import FittedFiles, replayed
from openedm.generation.kinds import method_for
from openedm.ground import checks
from openedm.ground.choices import Choice, to_config
from openedm.ground.digests import file_digest
from openedm.ground.progress import ShowProgress, showing
from openedm.guidance import ClassifierFree, GuidanceWeight, Guided, Interval
from openedm.sampling import (
    Auto,
    BrownianNoise,
    Consistency,
    NoiseSource,
    PublishedNoise,
    Sampler,
    SamplerChoice,
    SeededNoise,
    State,
    class_labels,
    sample_batches,
)
from openedm.sampling.learning import MAX_LEARNED
from openedm.training import Model, find_checkpoint, load_denoiser, make_accelerator, read_model
from openedm.training.checkpoints import trained_without_dropout

__all__ = ["CheckpointSampler", "PreparedSampler", "SamplingOptions"]

StepNoiseName = Literal["independent", "path", "published"]

FAR_ABOVE = 4.0
"""How far above σ_data the highest noise level is at least without a warning, in units of it; EDM's is 160."""

SEEDS_AT_A_TIME = 256
"""The seeds whose starting noise is in memory only to know their classes."""


@dataclass(frozen=True)
class SamplingOptions(Choice):
    """How samples are drawn from a checkpoint.

    Args:
        nfe: the number of network evaluations of a sample; solver and noise levels are then chosen by rule. "auto" is
            32 unless there is a tolerance or a sampler, and 2 for a consistency function.
        tolerance: the error that a sample may have instead, in standard deviations of the data; an adaptive solver then
            takes the steps.
        sigma_min: the lowest noise level with nfe or tolerance; null means EDM's 0.002 times σ_data/0.5.
        sigma_max: the highest noise level with nfe or tolerance; null means EDM's 80 times σ_data/0.5.
        levels: noise levels by rule; fitted to the checkpoint once, which takes a few hundred times as long as a
            sample; or learned together with the weights of the solver, for 3 to 20 evaluations, which takes some
            thousand times as long. What was found is kept beside the checkpoint.
        solver_file: a file with a learned solver to use again, of `levels learned` or `openedm.sampling.save_solver`;
            refused for another checkpoint, guidance, nfe or range of noise levels.
        sampler: levels, schedule, solver and stochasticity one by one, instead of nfe and tolerance. With nfe null and
            nothing else it is EDM's sampler: Heun's method with 35 evaluations.
        guidance: the weight of guidance, 1 for none, at all noise levels or some. Without `guiding` this is
            classifier-free guidance, for models trained with label_dropout.
        guiding: another checkpoint or run, smaller or less trained, to guide away from (autoguidance).
        weights: ema, the averaged weights, or raw, those of the last step.
        precision: fp32, or bf16 for networks in mixed precision: faster where the processor multiplies bfloat16, and
            accurate to two or three digits. Samples then depend on the batch size in those digits.
        compile: compile the networks with torch.compile; it pays off after some thousand samples.

    Raises:
        ValueError: a value is out of its range, or an option has no effect beside another.
    """

    nfe: int | Literal["auto"] | None = field(default="auto", metadata={"unless": ("tolerance", "sampler")})
    tolerance: float | None = field(default=None, metadata={"unless": ("sampler",)})
    sigma_min: float | None = None
    sigma_max: float | None = None
    levels: Literal["rule", "fitted", "learned"] = "rule"
    solver_file: str | None = None
    sampler: Sampler = Sampler()
    guidance: GuidanceWeight = Interval()
    guiding: str | None = None
    weights: Literal["ema", "raw"] = "ema"
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False

    def __post_init__(self) -> None:
        described = self.sampler != Sampler()
        given = self.given_nfe
        if self.tolerance is not None and given is not None:
            raise ValueError(f"tolerance and nfe are mutually exclusive, got {self.tolerance} and nfe={self.nfe}")
        if described and (given, self.tolerance) != (None, None):
            name = "nfe" if self.tolerance is None else "tolerance"
            raise ValueError(f"{name} and sampler options are mutually exclusive, got both, with {self.sampler}")
        if isinstance(self.method, Sampler) and (self.sigma_min, self.sigma_max) != (None, None):
            raise ValueError(
                "sigma_min and sigma_max require nfe or tolerance: beside sampler options, use "
                "sampler.levels.sigma_min and sampler.levels.sigma_max"
            )
        if self.levels != "rule" and self.tolerance is not None:
            raise ValueError(f"levels='{self.levels}' requires nfe or a sampler on fixed levels, got a tolerance")
        if self.levels == "learned" and self.method.nfe is not None and not 3 <= self.method.nfe <= MAX_LEARNED:
            raise ValueError(f"levels='learned' requires an nfe from 3 to {MAX_LEARNED}, got {self.method.nfe}")
        if self.solver_file is not None and (described or self.tolerance is not None or self.levels != "rule"):
            raise ValueError("solver_file is a sampler of its own: give neither levels, tolerance nor sampler options")
        if self.guidance.is_one and (self.guidance != Interval() or self.guiding is not None):
            raise ValueError(f"guidance.weight must be other than 1, which is no guidance, got {self.guidance}")

    @property
    def given_nfe(self) -> int | None:
        """The number of evaluations that was asked for; None if none was."""
        return None if self.nfe == "auto" else self.nfe

    @property
    def method(self) -> Auto | Consistency | Sampler:
        """The automatic sampler, unless another one is described."""
        nfe = self.nfe
        if nfe == "auto":
            nfe = 32 if self.tolerance is None and self.sampler == Sampler() else None
        if nfe is None and self.tolerance is None:
            return self.sampler
        if nfe is not None and nfe < 3:
            return Consistency(nfe, self.sigma_min, self.sigma_max)
        return Auto(nfe, self.tolerance, self.sigma_min, self.sigma_max)

    @property
    def full_float32(self) -> bool:
        """Whether numbers are compared that are closer than TF32's rounding: adaptive steps, and fits."""
        return self.levels != "rule" or self.tolerance is not None or self.sampler.nfe is None

    @property
    def execution(self) -> dict[str, Any]:
        """The options of `configure_execution` that change samples in their last digits, where they are set."""
        precision = {} if self.precision == "fp32" else {"precision": self.precision}
        return precision | ({"compile": True} if self.compile else {})


class PreparedSampler(NamedTuple):
    """A denoiser and the sampler for it.

    Attributes:
        denoiser: guided, where that is asked for; on its device.
        sampler: chosen by rule, fitted, or as described.
        origin: how the sampler was found, in words; empty for one that was described.
    """

    denoiser: Denoiser
    sampler: Sampler
    origin: str


class CheckpointSampler:
    """Draws samples from a checkpoint. What is wrong is refused at once; weights are loaded by `prepare`.

    A sample depends on its seed, its condition and the options alone. Seed s gets class `classes[s mod len(classes)]`
    and row s mod rows of the conditions.

    Args:
        checkpoint: a checkpoint folder, or a run folder (its newest checkpoint is taken).
        options: how samples are drawn.
        classes: the classes to draw, in turn, as indices or names (`openedm.generation.find_classes`); None means those
            of the conditions, or all of the model.
        conditions: for a model with float conditions: what `read_conditions` takes or returns, or an array of rows in
            the units of the data; "none" draws without condition, from a model that was trained with label_dropout.
        noise: what a stochastic sampler adds: independent draws; the pieces of one Brownian path a seed ("path"), so
            that more steps refine the same sample; or "published", with the classes and the noise of all steps drawn as
            the published sampling script does on a CPU (`openedm.sampling.PublishedNoise`).

    Attributes:
        folder: the checkpoint folder.
        model: what the denoiser is.
        source: the digests of the weights, and the guidance: all that samples depend on beside the sampler.

    Raises:
        ValueError: there is no such checkpoint, the model does not have a class, or an option has no effect.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        options: SamplingOptions = SamplingOptions(),
        classes: Sequence[int | str] | None = None,
        noise: StepNoiseName = "independent",
        conditions: "Conditions | Tensor | np.ndarray | str | None" = None,
    ) -> None:
        self.folder = find_checkpoint(checkpoint)
        self.model = model = read_model(self.folder)
        self.method = method = method_for(options.method, model, options.nfe, options.levels)
        checks.one_of("noise", noise, get_args(StepNoiseName))
        if noise == "path" and not (isinstance(method, Sampler) and method.uses_path_noise):
            raise ValueError(f"noise='path' has no effect: the sampler adds no noise from level to level, {method}")
        self.options, self.noise = options, noise
        self.classes = None if classes is None else find_classes(classes, model.num_classes, model.class_names)
        self.without_condition = isinstance(conditions, str) and conditions == "none"
        self.conditions = conditions_for(conditions, model)
        if self.without_condition and (classes is not None or not options.guidance.is_one):
            raise ValueError("conditions='none' leaves out the classes, too, and guidance: give neither")
        if noise == "published" and isinstance(method, SamplerChoice) and not self._published_has_effect(method):
            raise ValueError(f"noise='published' has no effect: neither classes nor noise are drawn, {method}")
        self.source = _source(self.folder, self.model, options)

    def labels(self, seeds: Sequence[int]) -> Int64[Tensor, "seeds"] | None:
        """The class of each seed; None for a model without classes, or samples without condition."""
        if self.without_condition:
            return None
        if self.classes is None and self.model.num_classes > 0 and len(seeds) > 0:
            of_rows = None if self.conditions is None else self.conditions.of_seeds(seeds)[1]
            if of_rows is not None:
                return of_rows
            if self.noise == "published":
                return self._published_classes(seeds)
        return class_labels(seeds, self.classes, self.model.num_classes)

    def values(self, seeds: Sequence[int]) -> Float[Tensor, "seeds *shape"] | None:
        """The float condition of each seed; None for a model without, or samples without condition."""
        return None if self.conditions is None else self.conditions.of_seeds(seeds)[0]

    def condition(self, seeds: Sequence[int]) -> Condition:
        """The condition of each seed, classes and floats, as the denoiser takes it."""
        labels, values = self.labels(seeds), self.values(seeds)
        if values is None:
            return labels
        return values if labels is None else pack(labels, values)

    def _published(self, seeds: Sequence[int]) -> PublishedNoise:
        return PublishedNoise(seeds, self.model.event_shape, self.model.num_classes)

    def _published_classes(self, seeds: Sequence[int]) -> Int64[Tensor, "seeds"]:
        """The classes of the seeds, some at a time: each seed draws the noise of its start before its class."""
        parts = [seeds[i : i + SEEDS_AT_A_TIME] for i in range(0, len(seeds), SEEDS_AT_A_TIME)]
        return torch.cat([classes for part in parts if (classes := self._published(part).classes) is not None])

    def _published_has_effect(self, method: SamplerChoice) -> bool:
        draws_classes = self.model.num_classes > 0 and self.classes is None and not self.without_condition
        if self.conditions is not None and self.conditions.fetch([0])[1] is not None:
            draws_classes = False
        return draws_classes or (isinstance(method, Sampler) and method.churn.s_churn > 0)

    @property
    def _source_of_noise(self) -> Callable[[Sequence[int]], NoiseSource]:
        sources: dict[str, Callable[[Sequence[int]], NoiseSource]] = {
            "independent": SeededNoise,
            "path": BrownianNoise,
            "published": self._published,
        }
        return sources[self.noise]

    def settings(self, sampler: Sampler) -> dict[str, Any]:
        """All that the samples depend on beside their seeds, as plain data."""
        noise = {} if self.noise == "independent" else {"noise": self.noise}
        chosen = {**self.source, "classes": self.classes, "sampler": to_config(sampler)}
        return {**chosen, **self._chosen_conditions, **self.options.execution, **noise}

    @property
    def _chosen_conditions(self) -> dict[str, Any]:
        if self.model.condition_shape is None:
            return {}
        return {"conditions": "none" if self.conditions is None else self.conditions.digest}

    def prepare(self, accelerator: Accelerator | None = None, progress: ShowProgress = None) -> PreparedSampler:
        """Load the weights and find the sampler; several processes must call it together.

        Args:
            accelerator: the processes and their device; None for those there are.
            progress: of a fit of levels, as for `openedm.sampling.fit_levels`.

        Raises:
            ValueError: the sampler does not fit the denoiser, or its noise levels are all outside of the guidance's.

        Warns:
            UserWarning: the noise levels end above σ_data, or begin not far above it.
        """
        options, accelerator = self.options, accelerator or make_accelerator()
        denoiser, main = _load(self.folder, options).to(accelerator.device), accelerator.is_main_process
        with accelerator.main_process_first(), showing(progress, here=main) as report:  # others read what it fits
            if options.solver_file is not None:
                sampler = replayed(
                    options.solver_file,
                    denoiser,
                    self.source,
                    nfe=options.given_nfe,
                    sigma_min=options.sigma_min,
                    sigma_max=options.sigma_max,
                )
                origin = f"sampler, learned before ({options.solver_file})"
            elif options.levels != "rule":
                settings = {**self.source, "classes": self.classes, **self._chosen_conditions}
                fits = FittedFiles(self.folder, settings, self.condition, self.model.event_shape)
                find = fits.levels if options.levels == "fitted" else fits.solver
                sampler, origin = find(denoiser, self.method, report, main=main)
            else:
                sampler = self.method.choose(denoiser)
                origin = "" if isinstance(self.method, Sampler) else "sampler"
        sampler.check(denoiser)
        sigmas = sampler.levels_for(denoiser).sigmas()
        _check_guidance(options.guidance, sigmas)
        if not self.model.consistency:
            _warn_of_ends(float(sigmas[0]), float(sigmas[-1]), denoiser.sigma_data)
        configure_execution(denoiser, precision=options.precision, compile=options.compile)
        return PreparedSampler(denoiser, sampler, origin)

    def by_earlier_rule(self, prepared: PreparedSampler) -> PreparedSampler:
        """With the sampler that version 0.1 chose, whose noise levels and tolerance were not relative to σ_data."""
        method = self.method
        if self.options.levels != "rule" or self.options.solver_file or not isinstance(method, Auto):
            return prepared
        return prepared._replace(sampler=replace(method, relative=False).choose(prepared.denoiser))

    def draw(
        self, prepared: PreparedSampler, seeds: Sequence[int], batch_size: int = 64
    ) -> Iterator[tuple[Sequence[int], Float64[Tensor, "batch *event"]]]:
        """Yields (seeds, samples) batch after batch, on the host.

        Args:
            prepared: what `prepare` returned.
            seeds: one seed a sample.
            batch_size: samples drawn at a time; changes memory and speed, not the samples.
        """
        checks.at_least("batch_size", batch_size, 1)
        for start in range(0, len(seeds), batch_size):
            part = seeds[start : start + batch_size]
            yield from sample_batches(
                prepared.sampler,
                prepared.denoiser,
                part,
                condition=self.condition(part),
                batch_size=batch_size,
                noise=self._source_of_noise,
            )

    def trajectory(self, prepared: PreparedSampler, seeds: Sequence[int]) -> list[State]:
        """The states of the samples at each noise level, as the sampler passes through them."""
        states: list[State] = []
        noise = self._source_of_noise(seeds)
        prepared.sampler.sample(prepared.denoiser, noise, condition=self.condition(seeds), callback=states.append)
        return states


def _source(folder: Path, model: Model, options: SamplingOptions) -> dict[str, Any]:
    """Digests of the weights and the guidance; refuses guidance that the models cannot give."""
    source: dict[str, Any] = {"weights": _digest(folder, options.weights)}
    if options.guidance.is_one:
        return source
    if options.guiding is not None:
        other = _digest(find_checkpoint(options.guiding), options.weights)
        if other == source["weights"]:
            raise ValueError(
                f"guiding must have other weights than the checkpoint, got {options.guiding!r} with the same"
            )
        return {**source, "guidance": to_config(options.guidance), "guiding": other}
    if model.num_classes == 0 and model.condition_shape is None:
        raise ValueError("guidance must not be given: the model is unconditional; give another checkpoint as guiding")
    no_dropout = model.condition_shape is not None and not model.condition_dropout
    if no_dropout or trained_without_dropout(folder):
        raise ValueError(
            "guidance requires a model that was also trained without its condition, this one was trained with "
            "label_dropout 0: train with --options.label_dropout 0.1, or give another checkpoint as guiding"
        )
    return {**source, "guidance": to_config(options.guidance)}


def _digest(folder: Path, weights: Literal["ema", "raw"]) -> str:
    """SHA-256 of the file of a checkpoint's weights."""
    return file_digest(folder / ("model.safetensors" if weights == "ema" else "training.safetensors"))


def _load(folder: Path, options: SamplingOptions) -> Denoiser:
    """The denoiser of a checkpoint, guided where that is asked for: by itself without classes, or by another one."""
    denoiser = load_denoiser(folder, options.weights)
    if options.guiding is not None:
        return Guided(denoiser, load_denoiser(options.guiding, options.weights), options.guidance)
    return denoiser if options.guidance.is_one else ClassifierFree(denoiser, options.guidance)


def _check_guidance(guidance: GuidanceWeight, sigmas: Float64[Tensor, " levels"]) -> None:
    """Refuse guidance that has a weight of 1 everywhere between the highest and the lowest level of a sampler."""
    high, low = float(sigmas[0]), float(sigmas[-1])
    between = torch.linspace(math.log(low), math.log(high), 1000, dtype=torch.float64).exp()
    if not guidance.is_one and bool((guidance.at(torch.cat([sigmas.cpu(), between])) == 1).all()):
        raise ValueError(
            f"guidance must have another weight than 1 at a noise level of the sampler, from {low:.4g} to {high:.4g}, "
            f"got {guidance}"
        )


def _warn_of_ends(high: float, low: float, sigma_data: float) -> None:
    """Warn of levels between which data cannot come out of noise."""
    if low > sigma_data:
        warnings.warn(
            f"the lowest noise level, {low:.4g}, is above sigma_data, {sigma_data:.4g}: samples are averages over data "
            "that this noise hides; lower sigma_min",
            stacklevel=3,
        )
    if high < FAR_ABOVE * sigma_data:
        warnings.warn(
            f"the highest noise level, {high:.4g}, is not far above sigma_data, {sigma_data:.4g}: samples start from "
            "noise alone, which noisy data are not at that level; raise sigma_max",
            stacklevel=3,
        )
