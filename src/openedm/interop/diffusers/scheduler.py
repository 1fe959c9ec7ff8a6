"""Samplers of this library as a scheduler of diffusers, which drops into pipelines unchanged.

    pipeline.scheduler = Scheduler.from_config(pipeline.scheduler.config)

The sample that a pipeline holds is the input of its model, c_in(σ) x with x = y + σ n: √ᾱ x with betas and (1−τ) x for
flow matching, as with the schedulers of their papers. So the first sample is unit noise, and `scale_model_input` has
nothing to scale. A step turns the model's output into D, hands it to the run of the sampler's plan
(`sampling.engine.steps`), and returns where D is needed next. There is one timestep for each evaluation: solvers with
several evaluations a step have several timesteps a step, as in diffusers' Heun.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from openedm.denoiser import per_sample
from openedm.ground.choices import from_config, to_config
from openedm.ground.devices import float64_on
from openedm.interop.diffusers.package import diffusers
from openedm.interop.diffusers.planning import (
    SteppedPlan,
    check_sampler,
    evaluations_per_step,
    sigmas_of,
    stepped_plan,
)
from openedm.interop.diffusers.process import LevelRule, process_of, training_scheduler
from openedm.sampling import Auto, SamplerChoice
from openedm.sampling.engine.steps import Run

diffusers()  # An error that names the optional group, before the imports below.
from diffusers import ConfigMixin, SchedulerMixin  # noqa: E402
from diffusers.utils import BaseOutput  # noqa: E402
from diffusers.utils.torch_utils import randn_tensor  # noqa: E402

__all__ = ["Scheduler", "SchedulerOutput"]

OWN = ("sampler", "training", "levels", "sigma_data")
KEY = "_openedm"
"""Where the configuration has these options; schedulers of diffusers leave names that start with _ alone."""
LARGEST = 1e12
"""Stands for an infinite σ, at which c_in σ is 1 to rounding."""


@dataclass
class SchedulerOutput(BaseOutput):  # type: ignore[misc]  # diffusers has no types
    """What a step returns.

    Attributes:
        prev_sample: the sample for the next evaluation of the model; the finished one after the last.
        pred_original_sample: D of this evaluation.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class PipelineNoise:
    """Noise from the generators that a pipeline passes to a step; the global generator without."""

    def __init__(self) -> None:
        self.generator: Any = None
        self.like: Tensor | None = None

    def draw(self, event_shape: tuple[int, ...]) -> Float[Tensor, "batch *event"]:
        """Unit noise of the shape, dtype and device of the pipeline's sample."""
        assert self.like is not None
        noise: Tensor = randn_tensor(
            self.like.shape, generator=self.generator, device=self.like.device, dtype=self.like.dtype
        )
        return noise


class Scheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # diffusers has no types
    """A sampler of this library in a pipeline of diffusers.

    Make one with `Scheduler.from_config(pipeline.scheduler.config)`, which reads from the configuration what the
    pipeline's model predicts and at which noise levels it was trained; options of that scheduler's own steps, such as
    `timestep_spacing`, `use_karras_sigmas`, `shift` or `clip_sample`, have no effect. The pipeline sets the number of
    noise levels (`num_inference_steps`), which replaces that of the sampler.

    Args:
        sampler: `Auto()` or a `Sampler` with a solver on fixed levels; or its `to_config`. `Auto()` evaluates the model
            `num_inference_steps` times: for models that predict noise by an exponential multistep solver in ε on
            Karras's levels, below 10 steps on logistic ones; for others by Auto's rule; below 3 steps by DDIM. A solver
            with k evaluations a step evaluates it k times a step and once at the end.
        training: the configuration of the scheduler that the model was trained with; None for `DDPMScheduler()`.
        levels: "continuous" or "trained", see `process_of`.
        sigma_data: standard deviation of the data, > 0; None for the model's own, or 1, that of latents. About 0.5 for
            pictures in [−1, 1].

    Attributes:
        timesteps: the time of every evaluation, in order.
        num_inference_steps: the number of noise levels.
        init_noise_sigma: the standard deviation of the first sample.

    Raises:
        TypeError, ValueError: the sampler's steps depend on the sample or fix their number, or the model's process is
            not known.
    """

    order = 1
    init_noise_sigma = 1.0
    _compatibles = [e.name for e in diffusers().schedulers.KarrasDiffusionSchedulers]  # noqa: RUF012

    def __init__(
        self,
        sampler: SamplerChoice | Mapping[str, Any] = Auto(),
        training: Mapping[str, Any] | None = None,
        levels: LevelRule = "continuous",
        sigma_data: float | None = None,
    ) -> None:
        if isinstance(sampler, Mapping):
            sampler = from_config(SamplerChoice, sampler)
        check_sampler(sampler)
        self.sampler = sampler
        self.training = training_scheduler({"_class_name": "DDPMScheduler"} if training is None else training)
        self.process = process_of(self.training, levels=levels, sigma_data=sigma_data)
        self.levels = levels
        original = {**self.training.config, **(training or {})}
        original = {key: value for key, value in original.items() if not key.startswith("_")}
        own = {
            "sampler": to_config(sampler),
            "training": {**self.training.config, "_class_name": type(self.training).__name__},
            "levels": levels,
            "sigma_data": self.process.sigma_data,
        }
        # The training's options, too, for pipelines that read them and for schedulers made from this configuration.
        self.register_to_config(**original, **{KEY: own})
        self.order = evaluations_per_step(sampler)
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(self.config.num_train_timesteps - 1, -1, -1)
        self._stepped: SteppedPlan | None = None
        self._run: Run | None = None
        self._noise = PipelineNoise()
        self._begin: int | None = None
        self._index: int | None = None

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any] | Any, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> "Scheduler | tuple[Scheduler, dict[str, Any]]":
        """The scheduler for the model of another one, from that one's `config`; or the one that was saved.

        Args:
            config: `pipeline.scheduler.config`, the scheduler itself, or what `save_pretrained` wrote.
            return_unused_kwargs: whether to return options that are not known as well, instead of an error.
            kwargs: options of this class, such as `sampler`, or of the training's scheduler, such as `prediction_type`.

        Raises:
            TypeError: config is not a configuration, or an option is not known.
            ValueError: as for the class.
        """
        if isinstance(config, SchedulerMixin):
            config = {"_class_name": type(config).__name__, **config.config}
        if not isinstance(config, Mapping):
            raise TypeError(f"config must be scheduler.config, a mapping, got {type(config).__name__}")
        saved = config.get(KEY) if config.get("_class_name", cls.__name__) == cls.__name__ else None
        options = dict(saved or {"training": config})
        training = dict(options["training"])
        known = inspect.signature(training_scheduler(training).__init__).parameters
        training |= {key: kwargs.pop(key) for key in set(kwargs) & set(known) - set(OWN)}
        options |= {"training": training} | {key: kwargs.pop(key) for key in OWN if key in kwargs}
        if kwargs and not return_unused_kwargs:
            raise TypeError(f"from_config has no option {sorted(kwargs)}, and neither has the training's scheduler")
        scheduler = cls(**options)
        return (scheduler, kwargs) if return_unused_kwargs else scheduler

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    @property
    def step_index(self) -> int | None:
        """The number of the next evaluation; None before the first."""
        return self._index

    @property
    def begin_index(self) -> int | None:
        """The number of the evaluation that a run starts with; None if `set_begin_index` has not been called."""
        return self._begin

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start the run with a later evaluation, as for image to image."""
        self._begin = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        sigmas: Sequence[float] | None = None,
        timesteps: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Plan a run.

        Args:
            num_inference_steps: the number of noise levels, ≥ 1.
            device: the device of `timesteps`.
            sigmas: noise levels of the pipeline's choice, instead of the sampler's, in the units of the training's
                scheduler, whose shift is applied.
            timesteps: times of the model, instead of `sigmas`.
            mu: the shift of `sigmas`; without them it has no effect, as the sampler has its own levels.

        Raises:
            ValueError: neither of the three or several are given, or the sampler does not suit the levels.
        """
        given = self._given_levels(sigmas, timesteps, mu)
        count = num_inference_steps if given is None else len(given)
        if count is None:
            raise ValueError("num_inference_steps, sigmas or timesteps must be given, got None for all")
        self._stepped = stepped_plan(self.sampler, self.process, int(count), given)
        self.num_inference_steps = int(count)
        levels = torch.stack([stage.sigma for stage in self._stepped.stages])
        times = self.process.timestep(levels)
        whole = self.levels == "trained"
        self.timesteps = times.to(torch.int64 if whole else torch.float32).to(device)
        self._run = self._index = self._begin = None

    def _given_levels(
        self, sigmas: Sequence[float] | None, timesteps: Sequence[float] | None, mu: float | None
    ) -> tuple[float, ...] | None:
        """The noise levels that a pipeline sets; None if it leaves them to the sampler."""
        if sigmas is not None and timesteps is not None:
            raise ValueError("sigmas and timesteps are mutually exclusive, got both")
        if sigmas is not None:
            names = inspect.signature(self.training.set_timesteps).parameters
            if "sigmas" not in names:
                raise ValueError(f"sigmas are not an option of {type(self.training).__name__}: give timesteps")
            shift = {"mu": mu} if "mu" in names and mu is not None else {}
            values = torch.as_tensor(sigmas, dtype=torch.float64).tolist()
            number = {} if "FlowMatch" in type(self.training).__name__ else {"num_inference_steps": len(values)}
            self.training.set_timesteps(sigmas=values, **number, **shift)
            timesteps = self.training.timesteps
        if timesteps is None:
            return None
        return sigmas_of(torch.as_tensor(timesteps, dtype=torch.float64).tolist(), self.process)

    def scale_model_input(
        self, sample: Float[Tensor, "batch *event"], timestep: Any = None
    ) -> Float[Tensor, "batch *event"]:
        """The sample itself, which is the model's input."""
        return sample

    def step(
        self,
        model_output: Float[Tensor, "batch *out"],
        timestep: Any,
        sample: Float[Tensor, "batch *event"],
        generator: Any = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """Take the model's output at a timestep, and return the sample for the next one.

        Args:
            model_output: the output; of further channels than the sample has, such as variances, the first are used.
            timestep: that of `timesteps` whose turn it is.
            sample: the model's input.
            generator: the generator of the noise that stochastic samplers add, or one a sample; None for the global.
            return_dict: whether to return an object instead of a tuple.

        Raises:
            ValueError: `set_timesteps` has not been called, the run is finished, or it is another timestep's turn.
        """
        run, index = self._running(timestep)
        stage, dtype = run.stage, float64_on(sample.device)
        x = sample.to(dtype) / float(self.process.input_scale(stage.sigma))
        output = model_output[:, : sample.shape[1]].to(dtype)
        denoised = self.process.denoised(x, output, stage.sigma)
        self._noise.generator, self._noise.like = generator, sample
        run.advance(denoised, x if stage.scale == 1 else x * stage.scale)
        self._noise.generator = self._noise.like = None
        self._index = index + 1
        result = run.point
        if not run.finished:
            result = run.point * float(self.process.input_scale(run.stage.sigma) / run.stage.scale)
        result, denoised = result.to(sample.dtype), denoised.to(sample.dtype)
        return SchedulerOutput(result, denoised) if return_dict else (result, denoised)

    def _running(self, timestep: Any) -> tuple[Run, int]:
        """The run, started if this is its first evaluation, and the number of the evaluation."""
        if self._stepped is None:
            raise ValueError("set_timesteps must be called before step")
        time = float(torch.as_tensor(timestep).flatten()[0])
        if self._index is None or self._run is None:
            index = self._index_of(time) if self._begin is None else self._begin
            # The run learns its state from the first step.
            self._run = Run(self._stepped.starting_at(index).plan, torch.empty(0), self._noise)
            self._index = index
        if self._run.finished:
            raise ValueError("timestep must be one of timesteps, but all have had their turn: call set_timesteps")
        expected = float(self.timesteps[self._index])
        if abs(time - expected) > 0.01 * max(1.0, abs(expected)):
            raise ValueError(f"timestep must be {expected:g}, number {self._index} of timesteps, got {time:g}")
        return self._run, self._index

    def _index_of(self, time: float) -> int:
        """The number of the evaluation at a time; where a step ends and another starts, the latter."""
        assert self._stepped is not None
        nearest = (self.timesteps.double() - time).abs()
        candidates = (nearest <= nearest.min()).nonzero()[:, 0].tolist()
        starts = self._stepped.starts
        return int(next((index for index in candidates if index in starts), candidates[0]))

    def add_noise(
        self,
        original_samples: Float[Tensor, "batch *event"],
        noise: Float[Tensor, "batch *event"],
        timesteps: Tensor,
    ) -> Float[Tensor, "batch *event"]:
        """The model's input for clean samples at given times: c_in(σ) (y + σ n).

        Args:
            original_samples: y.
            noise: n, unit noise.
            timesteps: one time a sample, or a single one.
        """
        times = torch.as_tensor(timesteps).flatten().to(original_samples.device, float64_on(original_samples.device))
        sigma = self.process.sigma(times.expand(len(original_samples))).clamp(max=LARGEST)
        scale = self.process.input_scale(sigma)
        return per_sample(scale, noise) * original_samples + per_sample(scale * sigma, noise) * noise

    def scale_noise(
        self, sample: Float[Tensor, "batch *event"], timestep: Tensor, noise: Float[Tensor, "batch *event"]
    ) -> Float[Tensor, "batch *event"]:
        """`add_noise` under the name that flow-matching pipelines use."""
        return self.add_noise(sample, noise, timestep)
