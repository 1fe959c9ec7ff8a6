"""A denoiser that costs next to nothing, and the arithmetic of a few samplers for it, without a library around it."""

import torch
from torch import Tensor

from openedm.denoiser import Denoiser
from openedm.sampling.engine.steps import Combination, Plan

__all__ = ["Half", "euler_by_hand", "multistep_by_hand", "two_m_by_hand"]


class Half(Denoiser):
    """D = x/2 in a new tensor, as networks return one."""

    def denoise(self, x: Tensor, sigma: Tensor, condition: object) -> Tensor:
        """x/2."""
        return x * 0.5


def euler_by_hand(plan: Plan, x: Tensor) -> Tensor:
    """Euler's method in σ: one pass a step."""
    for step, following in zip(plan.steps, [step.sigma for step in plan.steps[1:]] + [0.0], strict=True):
        x = torch.lerp(x * 0.5, x, following / step.sigma)
    return x


def two_m_by_hand(plan: Plan, x: Tensor) -> Tensor:
    """DPM-Solver++(2M): the point between D and the D before it, and then the point between that and x."""
    before: Tensor | None = None
    for step in plan.steps[:-1]:
        denoised = x * 0.5
        advance = step.advance
        assert isinstance(advance, Combination)
        assert isinstance(advance.keep, float)
        if before is None:
            x = torch.lerp(denoised, x, advance.keep)
        else:
            weight = float(advance.weights[1]) / (1 - advance.keep)
            x = torch.lerp(denoised, before, weight).lerp_(x, advance.keep)
        before = denoised
    return x * 0.5


def multistep_by_hand(plan: Plan, x: Tensor) -> Tensor:
    """A plan of predictor and corrector: a pass for each term."""
    known: list[Tensor] = []
    previous = x
    for step in plan.steps[:-1]:
        known.insert(0, torch.add(x, x * 0.5, alpha=step.stages[0].of_denoised))
        if step.correct is not None:
            x = _sum_by_hand(step.correct, previous, known)
        previous = x
        assert step.advance is not None
        x = _sum_by_hand(step.advance, previous, known)
        del known[step.remember :]
    return x * 0.5


def _sum_by_hand(combination: Combination, x: Tensor, known: list[Tensor]) -> Tensor:
    total = x * combination.keep
    for weight, direction in zip(combination.weights, known, strict=False):
        total.add_(direction, alpha=weight)
    return total
