"""The plan of a sampler for a model of diffusers, with a number of steps or noise levels that a pipeline sets."""

import dataclasses
import math
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import nn

from openedm.denoiser import Preconditioned
from openedm.ground import checks
from openedm.interop.diffusers.process import Process
from openedm.levels import Explicit, Karras, Levels, Logistic
from openedm.preconditioning import EpsilonPrediction
from openedm.sampling import DDIM, Auto, Multistep, Sampler, SamplerChoice
from openedm.sampling.engine.plan import Grid, PlannedSolver
from openedm.sampling.engine.steps import Plan, Stage, Step
from openedm.schedules import LogSigma

__all__ = ["SteppedPlan", "check_sampler", "evaluations_per_step", "stepped_plan"]

MAX_SIGMA, MAX_SIGMA_EPSILON = 1e4, 1e3
"""Where runs start that could start higher: their first sample is unit noise, which the data change by 1/σ. Errors of a
network that predicts ε are σ times larger in D."""
FEWEST_FOR_AUTO, FEWEST_FOR_KARRAS = 3, 10
START_OF_FEW, CENTRE_OF_FEW, SPREAD_OF_FEW = 160.0, 2.0, 4.0
"""With fewer evaluations than Karras's levels need: the highest level and the centre of logistic ones, in σ_data."""


@dataclass(frozen=True)
class SteppedPlan:
    """A plan that another program executes, and the grid that it was made from.

    Attributes:
        plan: the numbers. Its first step adds no noise: the run starts at the level after it.
        solver: the solver that made it.
        grid: its noise levels.
    """

    plan: Plan
    solver: PlannedSolver
    grid: Grid

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All evaluations, in order."""
        return tuple(stage for step in self.plan.steps for stage in step.stages)

    @property
    def starts(self) -> dict[int, Step]:
        """The steps by the number of their first evaluation."""
        numbers = accumulate((len(step.stages) for step in self.plan.steps), initial=0)
        return dict(zip(numbers, self.plan.steps, strict=False))

    def starting_at(self, index: int) -> "SteppedPlan":
        """The plan of the evaluations from number `index` on, for a state at its noise level.

        Raises:
            ValueError: evaluation `index` is not the first of a step from one of the noise levels.
        """
        if index == 0:
            return self
        checks.integer("begin_index", index, 0)
        total, step = len(self.stages), self.starts.get(index)
        if step is not None and step.sigma in self.grid.sigmas:
            level = self.grid.sigmas.index(step.sigma)
            rest = _stepped(self.solver, replace(self.grid, sigmas=self.grid.sigmas[level:]))
            if len(rest.stages) == total - index:
                return rest
        raise ValueError(
            f"begin_index must be an evaluation at which a step of {type(self.solver).__name__} starts, got {index} of "
            f"{total}"
        )


def check_sampler(sampler: SamplerChoice) -> None:
    """Raise an error unless the steps of a sampler can be taken from outside.

    Raises:
        TypeError: it is not a sampler.
        ValueError: its steps depend on the sample, or it fixes the number of evaluations, which the pipeline sets.
    """
    if not isinstance(sampler, Auto | Sampler):
        raise TypeError(f"sampler must be openedm.Auto or openedm.Sampler, got {sampler!r}")
    if isinstance(sampler, Auto):
        if sampler.tolerance is not None:
            raise ValueError(
                f"sampler must have fixed steps, got tolerance={sampler.tolerance}: its steps depend on the sample, so "
                "that a pipeline cannot know them. Use openedm.Auto(), or sample with openedm and denoiser_of(pipeline)"
            )
        if sampler.nfe is not None:
            raise ValueError(
                f"sampler must leave the number of evaluations to the pipeline, got nfe={sampler.nfe}: use "
                f"openedm.Auto() and num_inference_steps={sampler.nfe}"
            )
    elif not isinstance(sampler.solver, PlannedSolver):
        raise ValueError(
            f"sampler must have fixed steps, got solver={type(sampler.solver).__name__}, whose steps depend on the "
            "sample, so that a pipeline cannot know them. Use a solver on fixed levels such as openedm.Heun(), or "
            "sample with openedm and denoiser_of(pipeline)"
        )


def evaluations_per_step(sampler: SamplerChoice) -> int:
    """The number of evaluations in a step from one noise level to the next."""
    if not isinstance(sampler, Sampler):
        return 1
    return (sampler.solver.evaluations(3) or 0) - (sampler.solver.evaluations(2) or 0)


def stepped_plan(
    sampler: SamplerChoice, process: Process, num_steps: int, sigmas: tuple[float, ...] | None = None
) -> SteppedPlan:
    """The plan of a sampler.

    Args:
        sampler: the sampler; its number of steps is replaced.
        process: the noise levels and times of the model.
        num_steps: the number of noise levels, ≥ 1.
        sigmas: the noise levels, decreasing; None for those of the sampler.

    Raises:
        ValueError: a value is out of its range, or the sampler does not suit the model's noise levels.
    """
    checks.integer("num_inference_steps", num_steps, 1)
    model = _stand_in(process)
    chosen = _chosen(sampler, process, num_steps, model)
    if sigmas is not None:
        chosen = replace(chosen, levels=Explicit(sigmas))
    elif isinstance(chosen.levels, Explicit) and isinstance(sampler, Sampler):
        if len(chosen.levels.values) != num_steps:
            raise ValueError(
                f"num_inference_steps must be {len(chosen.levels.values)}, the number of levels of the sampler, got "
                f"{num_steps}"
            )
    elif isinstance(sampler, Sampler):
        chosen = replace(chosen, levels=_with_steps(chosen.levels, num_steps))
    grid = chosen.grid(model)
    solver = chosen.solver
    assert isinstance(solver, PlannedSolver)
    return _stepped(solver, replace(grid, sigmas=tuple(dict.fromkeys(grid.sigmas))))


def _stepped(solver: PlannedSolver, grid: Grid) -> SteppedPlan:
    plan = solver.planned(grid)
    first, *further = plan.steps
    return SteppedPlan(replace(plan, steps=(replace(first, before=None), *further)), solver, grid)


def _with_steps(levels: Levels, num_steps: int) -> Levels:
    return dataclasses.replace(levels, num_steps=num_steps)  # type: ignore[call-arg]


def _chosen(sampler: SamplerChoice, process: Process, num_steps: int, model: Preconditioned) -> Sampler:
    """The sampler for a number of steps; Auto's starts where the model's noise levels do.

    Errors of a network that predicts ε are even in ε, and σ times larger in D: at high σ its D is not smooth, and a
    solver that interpolates D, F or the velocity, as Auto's do, amplifies them. For such a model ε is interpolated, in
    few evaluations on logistic levels from a lower start: of Karras's too many are where ε hardly changes.
    """
    if not isinstance(sampler, Auto):
        return sampler.choose(model)
    predicts_noise = process.preconditioning.prediction(process.sigma_data) == EpsilonPrediction()
    highest = min(process.sigma_max, MAX_SIGMA_EPSILON if predicts_noise else MAX_SIGMA)
    highest = sampler.sigma_max or highest
    if num_steps < FEWEST_FOR_AUTO:
        return Sampler(Logistic(num_steps, process.sigma_min or 0.002, highest, process.sigma_data), solver=DDIM())
    if predicts_noise:
        lowest, unit = max(process.sigma_min, sampler.sigma_min or 0.002), process.sigma_data
        levels: Levels = Karras(num_steps, lowest, highest)
        if num_steps < FEWEST_FOR_KARRAS:
            start = sampler.sigma_max or min(highest, START_OF_FEW * unit)
            levels = Logistic(num_steps, lowest, start, CENTRE_OF_FEW * unit, SPREAD_OF_FEW)
        return Sampler(levels, solver=Multistep(EpsilonPrediction(), LogSigma(), 3))
    return replace(sampler, nfe=num_steps, sigma_max=highest).choose(model)


def _stand_in(process: Process) -> Preconditioned:
    """A denoiser with the noise levels of the model, which is never evaluated."""
    model = Preconditioned(nn.Identity(), process.preconditioning, process.sigma_data)
    model.sigma_min, model.sigma_max = process.sigma_min, process.sigma_max
    return model


def sigmas_of(timesteps: list[float], process: Process) -> tuple[float, ...]:
    """The noise levels of given timesteps, not above `MAX_SIGMA`.

    Raises:
        ValueError: they are not strictly decreasing.
    """
    values = process.sigma(torch.tensor(timesteps, dtype=torch.float64))
    values = values.nan_to_num(posinf=math.inf).clamp(max=min(process.sigma_max, MAX_SIGMA))
    sigmas = tuple(values.tolist())
    checks.decreasing("timesteps", sigmas)
    return sigmas
