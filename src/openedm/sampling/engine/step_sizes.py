"""How large the steps of an adaptive integrator are, from ratios of norms to tolerances, one a sample.

A step of a method of order p is accepted if its error ratio e = ‖error/tolerance‖ is at most 1. The size of the next
step is that of the last one times

    0.9 e^{−0.6/p} e_before^{0.2/p}    after an accepted step, within [1/5, 8]; not above 1 after a rejection,
    0.9 e^{−1/p}                       after a rejected one, within [1/5, 1],

Söderlind's PI controller 4.2 (Söderlind 2003, Digital filters in adaptive time-stepping, Table II), with e_before the
ratio of the previous accepted step. The first step follows Hairer, Nørsett & Wanner, II.4.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["MAX_FACTOR", "SAFETY_FACTOR", "initial_step", "next_factor"]

SAFETY_FACTOR, MIN_FACTOR, MAX_FACTOR = 0.9, 0.2, 8.0
CURRENT_EXPONENT, PREVIOUS_EXPONENT = 0.6, 0.2


def initial_step(
    size: Float[Tensor, "rows"],
    speed: Float[Tensor, "rows"],
    change_after: Callable[[Float[Tensor, "rows"]], Float[Tensor, "rows"]],
    order: int,
    span: float,
) -> Float[Tensor, "rows"]:
    """The size of a step for which Euler's method is expected to have an error of about 0.01 tolerances.

    Args:
        size: ‖y‖ in units of the tolerance.
        speed: ‖dy/dt‖, likewise.
        change_after: that of the change of dy/dt after Euler steps of given sizes; called once.
        order: p.
        span: the time from start to end, > 0.
    """
    trial_step = torch.where((size < 1e-5) | (speed < 1e-5), 1e-6 * span, 0.01 * size / speed).clamp(max=0.1 * span)
    trial_step = trial_step.to(size).nan_to_num(nan=1e-6 * span)  # of samples that fail here: times stay finite
    curvature = change_after(trial_step) / trial_step
    rate = torch.maximum(speed, curvature)
    step = torch.where(rate <= 1e-15, (1e-3 * trial_step).clamp(min=1e-6), (0.01 / rate) ** (1 / order))
    return torch.minimum(100 * trial_step, step.to(size)).clamp(max=span)


def next_factor(
    ratio: Float[Tensor, "rows"],
    accepted: Bool[Tensor, "rows"],
    last_ratio: Float[Tensor, "rows"],
    last_rejected: Bool[Tensor, "rows"],
    order: int,
) -> Float[Tensor, "rows"]:
    """The factor of the step size.

    Args:
        ratio: e of the step; NaN counts as infinity.
        accepted: whether the step was; one whose result is not finite is rejected for any e.
        last_ratio: e_before.
        last_rejected: whether the step before this one was rejected.
        order: p.
    """
    ratio = ratio.nan_to_num(nan=math.inf).clamp(min=1e-10)
    accepted_factor = SAFETY_FACTOR * ratio ** (-CURRENT_EXPONENT / order) * last_ratio ** (PREVIOUS_EXPONENT / order)
    accepted_factor = torch.where(last_rejected, accepted_factor.clamp(max=1.0), accepted_factor)
    accepted_factor = accepted_factor.clamp(MIN_FACTOR, MAX_FACTOR)
    rejected_factor = (SAFETY_FACTOR * ratio ** (-1 / order)).clamp(MIN_FACTOR, 1.0)
    # If the result was not finite although the error was small, the factor is the smallest.
    rejected_factor = torch.where(ratio <= 1, MIN_FACTOR, rejected_factor)
    return torch.where(accepted, accepted_factor, rejected_factor)
