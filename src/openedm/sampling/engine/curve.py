"""Whether a schedule and a scaling of one's own are consistent: what their functions say of each other, at some levels.

    σ⁻¹ increases,  σ(σ⁻¹(σ_i)) = σ_i,  σ̇(t_i) = dσ/dt,  s(σ_i) > 0,  s'(σ_i) = ds/dσ

A mistake in one of them changes samples without an error. Derivatives are compared with central differences, by the
median over the levels, because a schedule may have kinks. The classes of this library have tests instead.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from openedm.ground.choices import Choice
from openedm.schedules import Scaling, Schedule, float64

__all__ = ["check_curve"]

INVERSE_TOLERANCE = 1e-3
DERIVATIVE_TOLERANCE = 0.05
"""Relative errors that a schedule in single precision stays below."""
STEP = 1e-4
"""The step of differences: a share of the distance between two levels, or of σ."""


def check_curve(schedule: Schedule, scaling: Scaling, sigmas: Sequence[float]) -> None:
    """Check a schedule and a scaling that are defined outside this library, at the levels of a run.

    Args:
        schedule: σ(t).
        scaling: s(σ).
        sigmas: the levels, > 0, in any order.

    Raises:
        TypeError: a function returns something else than numbers.
        ValueError: functions do not fit each other; the message says which, and where.
    """
    levels = torch.tensor(sorted(set(sigmas)), dtype=torch.float64)
    if _is_own(schedule):
        _check_schedule(schedule, levels)
    if _is_own(scaling):
        _check_scaling(scaling, levels)


def _is_own(choice: Choice) -> bool:
    return type(choice).__module__.partition(".")[0] != "openedm"


def _check_schedule(schedule: Schedule, levels: Tensor) -> None:
    name = type(schedule).__name__
    times = _values(f"{name}.time", schedule.time(levels), levels)
    if not bool(times.isfinite().all()) or not bool((times.diff() > 0).all()):
        raise ValueError(f"{name}.time must increase with sigma, got {_shown(times)} at sigma = {_shown(levels)}")
    back = _values(f"{name}.sigma", schedule.sigma(times), levels)
    wrong = ((back / levels - 1).abs() > INVERSE_TOLERANCE) | back.isnan()
    if bool(wrong.any()):
        i = int(wrong.nonzero()[0])
        raise ValueError(
            f"{name}.time must be the inverse of {name}.sigma, got time({levels[i]:.6g}) = {times[i]:.6g} and "
            f"sigma({times[i]:.6g}) = {back[i]:.6g}; or the schedule does not reach this level"
        )
    start = float(schedule.sigma(schedule.time_of_zero)) if math.isfinite(schedule.time_of_zero) else 0.0
    if abs(start) > levels[0] * (1 + INVERSE_TOLERANCE):
        raise ValueError(
            f"{name}.time_of_zero must be the time of sigma = 0, got {schedule.time_of_zero} with sigma = {start:.6g}"
        )
    gaps = times.diff()
    step = STEP * torch.cat([gaps[:1], gaps]) if len(gaps) else STEP * times.abs().clamp(min=STEP)
    stated = _values(f"{name}.sigma_derivative", schedule.sigma_derivative(times), levels)
    _compare(f"{name}.sigma", "sigma_derivative", schedule.sigma, times, step, stated)


def _check_scaling(scaling: Scaling, levels: Tensor) -> None:
    name = type(scaling).__name__
    scales = _values(f"{name}.scale", scaling.scale(levels), levels)
    if not bool((scales > 0).all()) or not bool(scales.isfinite().all()):
        raise ValueError(f"{name}.scale must be finite and > 0, got {_shown(scales)} at sigma = {_shown(levels)}")
    stated = _values(f"{name}.derivative", scaling.derivative(levels), levels)
    _compare(f"{name}.scale", "derivative", scaling.scale, levels, STEP * levels, stated)


def _compare(
    name: str, derivative: str, function: Callable[[Tensor], Tensor], at: Tensor, step: Tensor, stated: Tensor
) -> None:
    """Compare a derivative with differences: what both say of a relative change, up to a share of it or of 1."""
    quotient = (float64(function(at + step)) - float64(function(at - step))) / (2 * step)
    per_change = (at / float64(function(at))).abs()
    larger = torch.maximum(stated.abs(), quotient.abs())
    errors = (stated - quotient).abs() * per_change / (larger * per_change).clamp(min=DERIVATIVE_TOLERANCE)
    if float(errors.nanmedian()) > DERIVATIVE_TOLERANCE:
        i = int(errors.nan_to_num(-1.0).argmax())
        raise ValueError(
            f"{derivative} must be the derivative of {name}, got {stated[i]:.6g} at {at[i]:.6g}, where differences of "
            f"{name} give {quotient[i]:.6g}"
        )


def _values(name: str, values: object, levels: Tensor) -> Tensor:
    """What a function returns for all levels, as a tensor of their shape."""
    found = float64(values)  # type: ignore[arg-type]
    if found.ndim and found.shape != levels.shape:
        raise ValueError(
            f"{name} must return the shape {tuple(levels.shape)} that it is given, got {tuple(found.shape)}"
        )
    return found.expand(levels.shape)


def _shown(values: Tensor) -> str:
    return f"[{', '.join(f'{v:.4g}' for v in values[:4].tolist())}{', …' if len(values) > 4 else ''}]"
