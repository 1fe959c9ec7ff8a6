"""How far a stochastic solver multiplies its noise: the stability of a plan, before any evaluation.

For Gaussian data of standard deviation s around 0, D = s² x/(s² + σ²) and every state of a plan is a weighted sum of
the independent noises that were drawn, so that its standard deviation is known: the root of the sum of squared weights.
It should be √(σ² + s²). A step whose weights of past evaluations are large multiplies the noise in them instead: high
orders with η > 0 and few levels, where a level is much smaller than the one before.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from openedm.sampling.engine.steps import Combination, Plan, Run, Step

__all__ = ["noise_growth"]

MAX_STEPS = 256
"""Longer plans are not examined: noise grows where steps are long."""


@dataclass
class _UnitNoise:
    """A source whose draws are unit vectors, so that a state is the list of its weights."""

    size: int
    drawn: int = field(default=1)

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """The next unit vector, (1, size)."""
        unit = torch.zeros(1, self.size, dtype=torch.float64)
        unit[0, self.drawn] = 1.0
        self.drawn += 1
        return unit


def noise_growth(plan: Plan, sigma_data: float) -> tuple[float, float]:
    """The largest ratio of the standard deviation of a state to √(σ² + s²), and the σ of its level.

    Args:
        plan: a plan; one with weights for each coordinate is not examined.
        sigma_data: s > 0, in units of σ.
    """
    draws = 1 + sum((step.before is not None) + (step.after is not None) for step in plan.steps)
    if len(plan.steps) > MAX_STEPS or any(map(_has_tensors, plan.steps)):
        return 1.0, plan.sigma
    first = plan.steps[0]
    start = torch.zeros(1, draws, dtype=torch.float64)
    start[0, 0] = math.hypot(float(first.sigma), sigma_data) * first.scale
    run, worst, at = Run(plan, start, _UnitNoise(draws)), 0.0, plan.sigma
    while not run.finished:
        step, stage = run.step, run.stage
        sigma = float(stage.sigma)
        if run.at_start:
            ratio = float(run.x.norm()) / step.scale / math.hypot(step.sigma, sigma_data)
            worst, at = (ratio, step.sigma) if not ratio <= worst else (worst, at)
        run.advance(run.point / stage.scale * (sigma_data**2 / (sigma_data**2 + sigma**2)))
    return worst, at


def _has_tensors(step: Step) -> bool:
    sums: list[Combination] = [c for c in (step.advance, step.correct) if c is not None]
    sums += [stage.point for stage in step.stages]
    weights = [w for c in sums for w in (c.keep, *c.weights)] + [stage.of_denoised for stage in step.stages]
    return any(isinstance(weight, Tensor) for weight in weights)
