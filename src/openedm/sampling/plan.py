"""The numbers of a sampling run that do not depend on x: planned once, in float64, on the host."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from openedm.sampling.solvers import Churn
from openedm.schedules import Scaling, Schedule


@dataclass(frozen=True)
class Stage:
    """One evaluation of dx/dt = `of_x` · x − `of_denoised` · D(x/`scale`; `sigma`)."""

    time: float
    sigma: Float64[Tensor, ""]
    scale: float
    of_x: float
    of_denoised: float


@dataclass(frozen=True)
class Step:
    """One step of the solver, from level `index`.

    Attributes:
        index: i.
        time: t_i.
        sigma: σ_i.
        scale: s(t_i).
        rescale: s(t̂)/s(t_i), the factor of x when noise is added.
        noise_std: √(σ̂² − σ_i²) s(t̂) S_noise; 0 without churn.
        h: t_{i+1} − t̂.
        stages: the solver's evaluations; one for the last step.
        is_final: this is the step to σ = 0.
    """

    index: int
    time: float
    sigma: float
    scale: float
    rescale: float
    noise_std: float
    h: float
    stages: tuple[Stage, ...]
    is_final: bool


@dataclass(frozen=True)
class Plan:
    """A whole run."""

    steps: tuple[Step, ...]

    @property
    def stochastic(self) -> bool:
        """Whether any step draws noise."""
        return any(step.noise_std > 0 for step in self.steps)


def plan_steps(
    *,
    sigmas: Float64[Tensor, "levels"],
    round_sigma: Callable[[Tensor], Tensor],
    schedule: Schedule,
    scaling: Scaling,
    nodes: tuple[float, ...],
    churn: Churn,
) -> Plan:
    """Plan the steps through `sigmas` and on to 0 (Algorithms 2 and 3 of Karras et al. 2022).

    Args:
        sigmas: the levels, already rounded to what the denoiser knows.
        round_sigma: the denoiser's rounding, applied to churned levels.
        schedule: σ(t).
        scaling: s(σ).
        nodes: c_i of the solver.
        churn: how much noise each level gets.

    Raises:
        ValueError: a stage falls where the schedule has no finite σ > 0, for example below t = 0, or where it stands
            still because σ is clipped.
    """
    times = [*schedule.time(sigmas).tolist(), 0.0]
    levels = sigmas.tolist()
    scales = scaling.scale(sigmas).tolist()
    steps = []
    for i, (sigma, time, scale) in enumerate(zip(levels, times, scales, strict=False)):
        sigma_hat, time_hat = sigma, time
        gamma = churn.gamma(sigma, len(levels))
        if gamma > 0:
            sigma_hat = float(round_sigma(torch.tensor(sigma + gamma * sigma, dtype=torch.float64)))
            time_hat = float(schedule.time(sigma_hat))
        is_final = i == len(levels) - 1
        h = times[i + 1] - time_hat
        stages = tuple(
            _stage(schedule, scaling, i, time_hat + c * h, sigma_hat if c == 0 else None)
            for c in ((0.0,) if is_final else nodes)
        )
        added = math.sqrt(max(sigma_hat**2 - sigma**2, 0.0))
        noise_std = added * stages[0].scale * churn.s_noise
        steps.append(Step(i, time, sigma, scale, stages[0].scale / scale, noise_std, h, stages, is_final))
    return Plan(tuple(steps))


def _stage(schedule: Schedule, scaling: Scaling, index: int, time: float, sigma: float | None) -> Stage:
    """The ODE's coefficients at `time`; `sigma` is given where it is known exactly."""
    level = float(schedule.sigma(time)) if sigma is None else sigma
    speed = float(schedule.sigma_derivative(time))
    if not (time > 0 and level > 0 and math.isfinite(level) and speed > 0 and math.isfinite(speed)):
        raise ValueError(
            f"the solver would evaluate step {index} at t = {time:.6g}, where {schedule} has sigma = {level:.6g} and "
            f"derivative {speed:.6g}: a stage must stay inside the schedule's domain. Use alpha <= 1, more steps, or "
            "levels that the schedule reaches"
        )
    scale = float(scaling.scale(level))
    stretch = float(scaling.derivative(level)) * speed / scale
    return Stage(
        time=time,
        sigma=torch.tensor(level, dtype=torch.float64),
        scale=scale,
        of_x=speed / level + stretch,
        of_denoised=speed * scale / level,
    )
