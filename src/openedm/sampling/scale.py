"""A check of the scale of samples against the σ_data of the denoiser, which noise levels and tolerances follow.

Data are called wide if both the samples and the first evaluation are: along x the denoiser of a Gaussian of width s has
the slope g = s²/(s² + σ²), so that s = σ √(g/(1 − g)). Samples alone may be wide since few steps made a solver diverge.
"""

import math
import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from openedm.denoiser import Denoiser, FunctionDenoiser, Preconditioned
from openedm.preconditioning import EDM
from openedm.sampling.engine.growth import noise_growth
from openedm.sampling.engine.steps import Plan, State, unscaled

__all__ = [
    "few_numbers",
    "knows_scale",
    "largest",
    "warn_of_divergence",
    "warn_of_growth",
    "warn_of_noise",
    "warn_of_scale",
]

MAX_GROWTH = 5.0
"""How many times too wide the states of Gaussian data may be without a warning."""

MAX_RATIO, MIN_RATIO = 8.0, 0.02
"""The largest and smallest standard deviation of samples about their mean, in units of σ_data."""

MAX_BEYOND = 1e4
"""How many times larger than the noise of the start samples may be without a warning. Data are smaller than it, but few
large steps of a low order go beyond it."""

MOST_LEFT = 0.75
"""The largest width of samples without a warning, in units of the noise at their start; two steps leave half."""

MIN_NUMBERS, MIN_SAMPLES = 64, 8
"""The least numbers and samples from which the data are called narrow, or still noise: few may be so by chance."""

ENOUGH_SAMPLES, ENOUGH_NUMBERS = 16, 2**12
"""The samples of a batch that are looked at: so many, or as many more as have so many numbers, of which about so many
are taken."""


def few_numbers(state: State) -> State:
    """The state with a copy of a few numbers of the first samples, enough to know their scale (`warn_of_scale`).

    The state itself, of which they are a copy, need not be kept in memory during the run.
    """
    x, denoised = _some(state.x).clone(), _some(state.denoised).clone()
    return State(state.index, state.time, state.sigma, state.scale, x, denoised)


def _width_of(first: State) -> Float[Tensor, ""]:
    """s from the first evaluation; NaN if the denoiser does not shrink x towards a mean."""
    x, denoised = (v - v.mean(0) for v in (unscaled(first.x, first.scale), first.denoised))
    slope = _dot(x, denoised) / _dot(x, x)
    return first.sigma * (slope / (1 - slope)).sqrt()


def knows_scale(denoiser: Denoiser) -> bool:
    """Whether nothing is checked: the denoiser has a scale of its own or another σ_data than the default, or a
    preconditioning whose coefficients do not depend on σ_data, as untrained networks have samples of any scale.
    """
    if denoiser.sigma_data != Denoiser.sigma_data or getattr(denoiser, "scale", None) is not None:
        return True
    return isinstance(denoiser, Preconditioned) and not isinstance(denoiser.preconditioning, EDM)


def _some(x: Float[Tensor, "batch *event"]) -> Float[Tensor, "some numbers"]:
    """Numbers of the first samples, enough to know their scale."""
    if not x.numel():
        return x.new_empty(0, 0)
    rows = x[: max(ENOUGH_SAMPLES, -(-ENOUGH_NUMBERS // x[0].numel()))]
    rows = rows.reshape(len(rows), -1)
    # An odd distance, so that not all numbers are of the same column of images.
    return rows[:, :: rows.numel() // ENOUGH_NUMBERS // 2 * 2 + 1]


def _dot(a: Float[Tensor, "batch *event"], b: Float[Tensor, "batch *event"]) -> Float[Tensor, ""]:
    """Σ a b, without a tensor of the products."""
    return torch.dot(a.reshape(-1), b.reshape(-1))


def warn_of_scale(denoiser: Denoiser, first: State, x: Float[Tensor, "batch *event"]) -> None:
    """Warn if the samples of a denoiser, whose σ_data is the default, have another scale.

    Args:
        denoiser: the denoiser, of which `knows_scale` is false.
        first: what `few_numbers` made of the first evaluation.
        x: its samples, in data units; a single sample has no width, and is not checked.
    """
    unit = Denoiser.sigma_data
    if len(x) < 2 or not x.numel():
        return
    x = _some(x)
    std = _deviation(x)
    narrow = 0 < std < MIN_RATIO * unit and len(x) >= MIN_SAMPLES and x.numel() >= MIN_NUMBERS
    wide = MAX_RATIO * unit < std < math.inf and not float(_width_of(first)) < MAX_RATIO * unit / 2
    if not narrow and not wide:
        return
    warnings.warn(
        f"sigma_data is {unit:g}, the default, but the samples have mean {float(x.mean()):.3g} and standard deviation "
        f"{std:.3g}. Noise levels follow sigma_data, and samples may be wrong: pass sigma_data=…, the standard "
        f"deviation of the data (here about {std:.3g}), to {type(denoiser).__name__}",
        stacklevel=3,
    )


def warn_of_noise(denoiser: Denoiser, sigma: float, x: Float[Tensor, "batch *event"]) -> None:
    """Warn if the samples of a denoiser, whose σ_data is given, are as wide as the noise that they started from.

    Args:
        denoiser: the denoiser; only a function is looked at, as what it gives is known least. Samples of an untrained
            network in a preconditioning may have any scale, and few steps with an exact denoiser may diverge.
        sigma: the noise level of the start.
        x: its samples, in data units; few of them are not checked.
    """
    few = len(x) < MIN_SAMPLES or x.numel() < MIN_NUMBERS
    if few or denoiser.scale is not None or not isinstance(denoiser, FunctionDenoiser):
        return
    std = _deviation(_some(x))
    if max(MOST_LEFT * sigma, MAX_RATIO * denoiser.sigma_data) < std < math.inf:
        warnings.warn(
            f"the samples have standard deviation {std:.3g}, where sigma_data is {denoiser.sigma_data:g} and the noise "
            f"that they started from has {sigma:.3g}: the denoiser does not remove noise, such as a network that gives "
            "the noise in place of the mean, or the solver diverges",
            stacklevel=3,
        )


def _deviation(x: Float[Tensor, "some numbers"]) -> float:
    """The standard deviation of samples about their mean."""
    centred = x - x.mean(0)  # faster than torch's variances of columns
    return math.sqrt(float(_dot(centred, centred)) / (x[0].numel() * (len(x) - 1)))


def largest(state: State) -> Float[Tensor, ""]:
    """The largest magnitude in a state, in data units, or its noise level, which is more; no host waits for it."""
    x = unscaled(state.x, state.scale)
    return x.abs().max().clamp_min(state.sigma) if x.numel() else x.new_zeros(())


def warn_of_divergence(denoiser: Denoiser, start: Float[Tensor, ""], x: Float[Tensor, "batch *event"]) -> bool:
    """Warn if samples are finite, but far beyond the noise that they started from; returns whether they are.

    Args:
        denoiser: the denoiser; samples of a network alone may have any scale, as those of untrained ones.
        start: the `largest` magnitude of the first state.
        x: the samples, in data units.
    """
    if not x.numel() or isinstance(denoiser, Preconditioned):
        return False
    low, high = float(start), float(x.abs().max())
    if high > MAX_BEYOND * low:
        warnings.warn(
            f"the samples reach {high:.3g}, {high / low:.3g} times the largest number of the noise that they started "
            "from: the solver diverges. More steps help, and for DPS a smaller zeta, a larger sigma_y or MMPS",
            stacklevel=3,
        )
    return high > MAX_BEYOND * low


def warn_of_growth(solver: str, plan: Plan, sigma_data: float) -> None:
    """Warn if a stochastic solver multiplies its noise, so that samples are far too wide (`engine.growth`).

    Args:
        solver: its name.
        plan: its plan.
        sigma_data: σ_data of the denoiser.
    """
    growth, sigma = noise_growth(plan, sigma_data)
    if growth > MAX_GROWTH or math.isnan(growth):
        warnings.warn(
            f"{solver} is unstable with {len(plan.steps)} noise levels so far apart: at sigma = {sigma:.3g} its states "
            f"would be {growth:.3g} times too wide for Gaussian data of width sigma_data. Use more levels, "
            "less noise, a lower order, or a solver that is stable, such as DPMSolverPP2M(eta=1.0) or Ancestral()",
            stacklevel=3,
        )
