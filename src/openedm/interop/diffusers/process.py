"""How a model of diffusers was trained, read from its scheduler: what its output means, and at which noise levels.

With α_t² = ᾱ_t, the product of 1 − β up to step t, and x = y + σ n in data units, σ_t = √(1 − ᾱ_t)/α_t:

| schedulers | model's input | its time | its output |
|---|---|---|---|
| with betas | x/√(1+σ²) = α_t x | the step t, or between two steps, linear in ln σ | ε, v or y |
| flow matching | x/(1+σ) = (1−τ) y + τ n, τ = σ/(1+σ) | 1000 τ | n − y |
| EDM | x/√(σ²+σ_d²) | ¼ ln σ | F, or −F for v |
| Euler with `timestep_type="continuous"` | x/√(1+σ²) | ¼ ln σ | v or ε |
| cosine | x/√(1+σ²) | (2/π) atan σ | v |

Settings of a scheduler that concern its own steps (their spacing, thresholds, `clip_sample`, `variance_type`, `shift`)
say nothing about the model and are not used. Of a model with learned variances the first half of the channels is used.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from openedm import schedules
from openedm.denoiser import per_sample
from openedm.ground import checks
from openedm.interop.diffusers.package import diffusers
from openedm.preconditioning import EDM, Adapter, Preconditioning
from openedm.schedules import LogSigma, VPScaling

__all__ = ["LevelRule", "Process", "process_of", "training_scheduler"]

LevelRule = Literal["continuous", "trained"]
ZERO_SNR = 2.0**-24
"""ᾱ at the last step of models trained to pure noise, whose σ would be infinite: this, as in diffusers (σ = 4096), or a
quarter of ᾱ at the step before where that is less, so that noise levels increase."""
PREDICTIONS: Mapping[str, Literal["epsilon", "v", "sample"]] = {
    "epsilon": "epsilon",
    "v_prediction": "v",
    "sample": "sample",
    "original_sample": "sample",
}

KINDS: Mapping[str, str] = {
    "snr_shift_scale": "CogVideoXDDIMScheduler",
    "timestep_type": "EulerDiscreteScheduler",
    "use_flow_sigmas": "DPMSolverMultistepScheduler",
    "beta_schedule": "DDPMScheduler",
    "shift": "FlowMatchEulerDiscreteScheduler",
    "thresholding": "EDMDPMSolverMultistepScheduler",
    "solver_order": "CosineDPMSolverMultistepScheduler",
    "sigma_data": "EDMEulerScheduler",
}
"""Options, and a scheduler that has the option and those below it do not: it reads the model's process alike."""

OPTIONS = {
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"),
    *("prediction_type", "timestep_type", "sigma_min", "sigma_max", "snr_shift_scale", "use_flow_sigmas", "flow_shift"),
}
"""The options of schedulers with betas that concern the model."""


@dataclass(frozen=True)
class LogTime(LogSigma):
    """σ(t) = e^t for inputs of constant variance: the time of `timestep_type="continuous"` is ¼ of it."""

    scaling = VPScaling()


@dataclass(frozen=True)
class Process:
    """What a diffusers model predicts, and at which noise levels it was trained.

    Attributes:
        preconditioning: the model's input, time and output as functions of σ.
        sigma_min: the lowest noise level of training, in units of y.
        sigma_max: the highest one; infinite for flow matching, whose last level is pure noise.
        sigma_data: the standard deviation of y.
        sign: the factor of the model's output, 1 or −1.
    """

    preconditioning: Preconditioning
    sigma_min: float
    sigma_max: float
    sigma_data: float
    sign: float = 1.0

    def input_scale(self, sigma: Float64[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
        """c_in: the model's input is c_in x."""
        return self.preconditioning.inputs(sigma, self.sigma_data)[0]

    def timestep(self, sigma: Float64[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
        """The time that the model is given at a noise level."""
        return self.preconditioning.inputs(sigma, self.sigma_data)[1]

    def sigma(self, timestep: Float64[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
        """The noise level at a time of the model: the inverse of `timestep`."""
        rule = self.preconditioning
        if not isinstance(rule, Adapter):
            return (4 * timestep).exp()
        if rule.table is None:
            return rule.schedule.sigma(timestep / rule.time_scale)
        levels = torch.tensor(rule.table, dtype=torch.float64, device=timestep.device)
        index = timestep.clamp(0, len(levels) - 1)
        below = index.floor().long().clamp(max=len(levels) - 2)
        between = torch.lerp(levels[below].log(), levels[below + 1].log(), index - below).exp()
        return torch.where(index == index.round(), levels[index.round().long()], between)

    def denoised(
        self,
        x: Float[Tensor, "batch *event"],
        output: Float[Tensor, "batch *event"],
        sigma: Float64[Tensor, "*batch_or_none"],
    ) -> Float[Tensor, "batch *event"]:
        """D from the model's output at x, in data units."""
        c_skip, c_out = self.preconditioning.prediction(self.sigma_data).denoising(sigma)
        return per_sample(c_skip, x) * x + per_sample(self.sign * c_out, x) * output


def training_scheduler(config: Mapping[str, Any]) -> Any:
    """The scheduler that a configuration describes; classes are looked up in diffusers only.

    Raises:
        ValueError: `_class_name` is not one of its schedulers, or it is missing and the options do not tell.
    """
    name = config["_class_name"] if "_class_name" in config else _kind_of(config)
    found = getattr(diffusers(), str(name), None)
    if not (isinstance(found, type) and issubclass(found, diffusers().SchedulerMixin)):
        raise ValueError(f"_class_name must be a scheduler of diffusers, got {name!r}")
    cls: Any = found
    known = set(inspect.signature(cls.__init__).parameters)
    if "_class_name" not in config and "beta_schedule" in config:  # Options of another class's steps may not suit.
        known &= OPTIONS
    return cls.from_config({key: value for key, value in config.items() if key in known})


def _kind_of(config: Mapping[str, Any]) -> str:
    """The kind of a scheduler from its options: schedulers that were not read from files do not state it."""
    for option, name in KINDS.items():
        if option in config:
            return name
    raise ValueError(
        f"config must have the _class_name of a scheduler of diffusers, or its options, got {sorted(config)}: give the "
        "scheduler itself instead of its config"
    )


def process_of(scheduler: Any, *, levels: LevelRule = "continuous", sigma_data: float | None = None) -> Process:
    """How the model of a scheduler was trained.

    Args:
        scheduler: a scheduler of diffusers, or the `Scheduler` of this room.
        levels: for schedulers with betas, whose models were trained at discrete steps: "continuous" to evaluate them
            between the steps as well, as most samplers do; "trained" to round noise levels to the steps.
        sigma_data: standard deviation of the data, > 0, as the model sees them; None for the scheduler's own, or 1,
            that of latents. Pictures in [−1, 1] have about 0.5.

    Raises:
        TypeError: it is not a scheduler.
        ValueError: its model cannot be used as a denoiser at given noise levels, or a value is out of its range.
    """
    checks.one_of("levels", levels, ("continuous", "trained"))
    own = getattr(scheduler, "process", None)
    if isinstance(own, Process):
        return process_of(scheduler.training, levels=levels, sigma_data=sigma_data or own.sigma_data)
    if not isinstance(scheduler, diffusers().SchedulerMixin):
        raise TypeError(
            f"scheduler must be a scheduler of diffusers, such as pipeline.scheduler, got {type(scheduler).__name__}"
        )
    name, config = type(scheduler).__name__, scheduler.config
    predicts = "flow_prediction" if name.startswith("FlowMatch") else config.get("prediction_type", "epsilon")
    if name.startswith("EDM"):
        return _edm(scheduler, predicts, levels, sigma_data)
    width = 1.0 if sigma_data is None else sigma_data
    checks.positive("sigma_data", width)
    if predicts == "flow_prediction":
        return _flow(scheduler, levels, width)
    if predicts not in PREDICTIONS:
        raise ValueError(f"prediction_type must be one of {[*PREDICTIONS, 'flow_prediction']}, got {predicts!r}")
    if name.startswith("Cosine"):
        _check_continuous(name, levels)
        rule = Adapter(PREDICTIONS[predicts], schedules.Cosine(config.sigma_min / 10, config.sigma_max * 10))
        return Process(rule, config.sigma_min, config.sigma_max, width)
    if config.get("timestep_type") == "continuous":
        return _continuous(scheduler, predicts, levels, width)
    table = _table(scheduler, predicts)
    rule = Adapter(PREDICTIONS[predicts], table=table, interpolate=levels == "continuous")
    return Process(rule, table[0], table[-1], width)


def _check_continuous(name: str, levels: LevelRule) -> None:
    if levels == "trained":
        raise ValueError(
            f"levels='trained' needs a scheduler with discrete steps, got {name}, whose model was trained at "
            "continuous noise levels: leave it at 'continuous'"
        )


def _edm(scheduler: Any, predicts: str, levels: LevelRule, sigma_data: float | None) -> Process:
    config = scheduler.config
    _check_continuous(type(scheduler).__name__, levels)
    if sigma_data not in (None, config.sigma_data):
        raise ValueError(
            f"sigma_data must be that of {type(scheduler).__name__}, {config.sigma_data}, or None, got {sigma_data}"
        )
    signs = {"epsilon": 1.0, "v_prediction": -1.0}
    checks.one_of("prediction_type", predicts, signs)
    return Process(EDM(), config.sigma_min, config.sigma_max, config.sigma_data, signs[predicts])


def _flow(scheduler: Any, levels: LevelRule, sigma_data: float) -> Process:
    _check_continuous(type(scheduler).__name__, levels)
    if scheduler.config.get("invert_sigmas"):
        raise ValueError("invert_sigmas=True is not supported: the model's time runs from noise to data")
    count = float(scheduler.config.num_train_timesteps)
    return Process(Adapter("velocity", schedules.RectifiedFlow(), count), 0.0, float("inf"), sigma_data)


def _continuous(scheduler: Any, predicts: str, levels: LevelRule, sigma_data: float) -> Process:
    _check_continuous(type(scheduler).__name__, levels)
    config, table = scheduler.config, _table(scheduler, predicts)
    low, high = config.get("sigma_min") or table[0], config.get("sigma_max") or table[-1]
    return Process(Adapter(PREDICTIONS[predicts], LogTime(), 0.25), low, high, sigma_data)


def _table(scheduler: Any, predicts: str) -> tuple[float, ...]:
    """σ_t of every step of training."""
    alpha_bar = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(alpha_bar, Tensor):
        raise ValueError(
            f"scheduler must have betas, or be one of the families FlowMatch, EDM or Cosine, got "
            f"{type(scheduler).__name__}: what its model predicts is not known here"
        )
    alpha_bar = alpha_bar.to("cpu", torch.float64, copy=True)
    if alpha_bar[-1] == 0 or scheduler.config.get("rescale_betas_zero_snr"):
        if PREDICTIONS[predicts] == "epsilon":
            raise ValueError(
                "rescale_betas_zero_snr=True needs prediction_type 'v_prediction' or 'sample', got 'epsilon': from "
                "pure noise the noise says nothing about the sample. Set rescale_betas_zero_snr=False"
            )
        alpha_bar[-1] = min(ZERO_SNR, float(alpha_bar[-2]) / 4)
    table = tuple(((1 - alpha_bar) / alpha_bar).sqrt().tolist())
    if any(not low < high for low, high in pairwise(table)):
        raise ValueError("betas must be > 0, so that the noise levels of the steps increase strictly")
    return table
