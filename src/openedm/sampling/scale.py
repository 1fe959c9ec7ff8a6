"""A check of the scale of samples against the σ_data of the denoiser, which noise levels and tolerances follow.

Data are called wide if both the samples and the first evaluation are: along x the denoiser of a Gaussian of width s has
the slope g = s²/(s² + σ²), so that s = σ √(g/(1 − g)). Samples alone may be wide since few steps made a solver diverge.
"""

import math
import warnings

from jaxtyping import Float
from torch import Tensor

from openedm.denoiser import Denoiser, Preconditioned
from openedm.preconditioning import EDM
from openedm.sampling.engine.growth import noise_growth
from openedm.sampling.engine.steps import Plan, State

__all__ = ["warn_of_growth", "warn_of_scale", "width_of"]

MAX_GROWTH = 5.0
"""How many times too wide the states of Gaussian data may be without a warning."""

MAX_RATIO, MIN_RATIO = 8.0, 0.02
"""The largest and smallest standard deviation of samples about their mean, in units of σ_data."""

MIN_NUMBERS, MIN_SAMPLES = 64, 8
"""The least numbers and samples from which the data are called narrow; few numbers may be close by chance."""


def width_of(first: State) -> Float[Tensor, ""]:
    """s from the first evaluation; NaN if the denoiser does not shrink x towards a mean."""
    x, denoised = (v - v.mean(0) for v in (first.x / first.scale, first.denoised))
    slope = (x * denoised).sum() / x.square().sum()
    return first.sigma * (slope / (1 - slope)).sqrt()


def warn_of_scale(denoiser: Denoiser, width: Float[Tensor, ""] | None, x: Float[Tensor, "batch *event"]) -> None:
    """Warn if the samples of a denoiser, whose σ_data is the default, have another scale.

    Args:
        denoiser: the denoiser. If it has a scale of its own or another σ_data, nothing is checked.
        width: that of the first evaluation (`width_of`); None if there was none.
        x: its samples, in data units; a single sample has no width, and is not checked.
    """
    unit = Denoiser.sigma_data
    if denoiser.sigma_data != unit or getattr(denoiser, "scale", None) is not None or len(x) < 2 or not x.numel():
        return
    if isinstance(denoiser, Preconditioned) and not isinstance(denoiser.preconditioning, EDM):
        return  # its coefficients do not depend on σ_data, and untrained networks have samples of any scale
    mean, std = float(x.mean()), float(x.var(0).mean().sqrt())
    narrow = 0 < std < MIN_RATIO * unit and len(x) >= MIN_SAMPLES and x.numel() >= MIN_NUMBERS
    wide = MAX_RATIO * unit < std < math.inf and width is not None and not float(width) < MAX_RATIO * unit / 2
    if not narrow and not wide:
        return
    warnings.warn(
        f"sigma_data is {unit:g}, the default, but the samples have mean {mean:.3g} and standard deviation {std:.3g}. "
        "Noise levels follow sigma_data, and samples may be wrong: pass sigma_data=…, the standard deviation of the "
        f"data (here about {std:.3g}), to {type(denoiser).__name__}",
        stacklevel=3,
    )


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
