"""The range of noise levels: σ_max from the start of sampling, σ_min from the resolution of the data.

**σ_max.** Sampling starts from N(0, σ² I) instead of p(x; σ), the density of x = y + σ n. With K = KL(p(x; σ) ‖ N(0, σ²
I)) and I = I(y; x),

    K = E‖y‖²/(2σ²) − I ≥ ½ ‖μ‖²/σ² + ½ Σ_i f(λ_i/σ²),  f(u) = u − ln(1 + u),                                        (1)

because of all densities with these second moments the Gaussian has the largest entropy; the difference falls with the
third cumulants, as σ⁻⁶, the right side as σ⁻² for data with a mean and as σ⁻⁴ for centred data. An exact sampler is a
map (or a Markov kernel) that is the same for both starts, and no such map increases a divergence. So the divergence of
samples from the data that is caused by the start is at most K nats, and at most √(K/2) in total variation (Pinsker).
σ_max is the level at which the right side of (1) is a given number of nats, and the part without the mean at most
1e-4 of it: a start that is too narrow makes all samples too narrow, by λ/(2σ²) where the variance is λ, and a higher
σ_max costs little (`benchmarks/suggested.py`). Also reported are:

- the largest pairwise distance, which Song and Ermon 2020 (technique 1) use, because noise of this size connects any
  two samples; it does not depend on the mean of the data;
- the σ at which the exact denoiser's posterior over the data is nearly uniform: exp(entropy) is `UNIFORM_SHARE` N,
  which is exp(−I) = `UNIFORM_SHARE`.

**σ_min.** Values that were rounded to steps of Δ have an error of rounding, uniform with standard deviation Δ/√12:
smaller noise is not visible after samples are rounded (bytes in [-1, 1]: Δ = 2/255, σ_min = 0.00226). Without steps,
the remaining noise may displace a sample, by σ_min √n, by a tenth of its distance r to the nearest other one: σ_min =
r/(10 √n), a displacement below the resolution of the data; but not below σ_data/250, the ratio that Karras et al. 2022
use, since r tends to 0 as more samples are drawn in a few dimensions. It is never above σ_data/10, 1 % of the variance.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from scipy.optimize import brentq
from torch import Tensor

from openedm.suggest.moments import MAX_GRAM_SAMPLES, Moments, Noisy, parts

__all__ = [
    "Highest",
    "Lowest",
    "Posteriors",
    "comparable",
    "farthest",
    "highest",
    "lowest",
    "nearest",
    "posteriors",
    "rounding_step",
    "terminal_divergence",
]

UNIFORM_SHARE = 0.9
"""The least exp(entropy) of a nearly uniform posterior, as a fraction of the number of samples."""

CENTRED_SHARE = 1e-4
"""The fraction of the allowed nats that the variance of the data may cause."""

MAX_PAIRWISE_NUMBERS = 2**34
"""The largest size of a comparison of all pairs: the squared number of samples times their dimension."""


@dataclass(frozen=True)
class Highest:
    """The evidence for σ_max.

    Attributes:
        sigma: σ_max, at which (1) is `nats`.
        nats: the divergence from the data that is caused by the start; at most the allowed one.
        error: standard error of σ_max, from the samples that were used.
        mean_share: the fraction of those nats that is due to the mean.
        centred: σ_max of the data minus μ.
        farthest: the largest distance between two of the samples that were used.
        uniform: the σ at which the exact denoiser's posterior over the data is nearly uniform.
        perplexity: exp(entropy) of that posterior at σ_max, as a fraction of the number of samples.
    """

    sigma: float
    nats: float
    error: float
    mean_share: float
    centred: float
    farthest: float
    uniform: float
    perplexity: float


@dataclass(frozen=True)
class Lowest:
    """The evidence for σ_min.

    Attributes:
        sigma: σ_min.
        step: Δ, if all differences of values are multiples of a step; otherwise None.
        neighbour: the median distance to the nearest other sample, if there is no step; otherwise None.
        bound: "rounding", "neighbours", or, if these are outside [σ_data/250, σ_data/10], "ratio".
    """

    sigma: float
    step: float | None
    neighbour: float | None
    bound: str


@dataclass(frozen=True, eq=False)
class Posteriors:
    """Posteriors of noisy samples x = y + σ n over a set of data points, for every σ.

    ‖x − y_i‖² − ‖σ n‖² = ‖y − y_i‖² + 2 σ n·(y − y_i), with the same n at every σ.

    Attributes:
        points: the data points y_i.
        squares: ‖y − y_i‖², up to a constant for each y.
        products: n·(y − y_i), up to a constant for each y.
    """

    points: Float64[Tensor, "points k"]
    squares: Float64[Tensor, "batch points"]
    products: Float64[Tensor, "batch points"]

    def log_weights(self, sigma: float) -> Float64[Tensor, "batch points"]:
        """ln of the posterior over the data points given x, that of the exact denoiser (Karras et al. 2022, B.3)."""
        return (-(self.squares / (2 * sigma**2) + self.products / sigma)).log_softmax(1)

    def denoised(self, sigma: float) -> Float64[Tensor, "batch k"]:
        """The exact denoiser of the points."""
        return self.log_weights(sigma).exp() @ self.points

    def perplexity(self, sigma: float) -> float:
        """exp of the mean entropy of the posterior, as a fraction of the number of points."""
        log_weights = self.log_weights(sigma)
        entropy = -(log_weights.exp() * log_weights).nan_to_num().sum(1)
        return math.exp(float(entropy.mean())) / len(self.points)


def posteriors(x: Noisy, points: Float64[Tensor, "points k"]) -> Posteriors:
    """The posteriors of noisy samples over data points, all in the coordinates of the same moments.

    The points must be in the span of the moments: components of x outside are at the same distance from all of them.
    """
    products = (x.noise * x.clean).sum(1, keepdim=True) - x.noise @ points.T
    return Posteriors(points, torch.cdist(x.clean, points).square(), products)


def terminal_divergence(moments: Moments, sigma: float, *, centred: bool = False) -> float:
    """The right side of (1), in nats."""
    ratios = moments.values / sigma**2
    rest = moments.rest / sigma**2
    spread = float((ratios - ratios.log1p()).sum()) + moments.others * (rest - math.log1p(rest))
    return spread / 2 + (0.0 if centred else moments.squared_mean / (2 * sigma**2))


def highest(moments: Moments, rows: Float64[Tensor, "count n"], against: Posteriors, nats: float) -> Highest:
    """σ_max and the evidence for it.

    Args:
        moments: the moments of the data.
        rows: samples, for the largest distance and the standard error.
        against: posteriors of other samples over some of the data.
        nats: the allowed divergence from the data that is caused by the start.
    """
    centred = _level_of(moments, CENTRED_SHARE * nats, centred=True)
    sigma = max(_level_of(moments, nats, centred=False), centred)
    nats = terminal_divergence(moments, sigma)
    fraction = moments.squared_mean / (2 * sigma**2) / nats
    return Highest(
        sigma=sigma,
        nats=nats,
        error=_standard_error(moments, rows, sigma),
        mean_share=fraction,
        centred=centred,
        farthest=farthest(rows),
        uniform=_uniform_level(against, math.sqrt(moments.variance * len(moments.mean))),
        perplexity=against.perplexity(sigma),
    )


def _level_of(moments: Moments, nats: float, *, centred: bool) -> float:
    """The σ at which (1) is `nats`, at most `high` because f(u) ≤ u."""
    power = moments.variance * len(moments.mean) + (0.0 if centred else moments.squared_mean)
    high = math.sqrt(power / (2 * nats))
    low = high
    while terminal_divergence(moments, low, centred=centred) < nats:
        low /= 2
    if low == high:
        return high

    def excess(log_sigma: float) -> float:
        return terminal_divergence(moments, math.exp(log_sigma), centred=centred) - nats

    return math.exp(float(brentq(excess, math.log(low), math.log(high))))


def _standard_error(moments: Moments, rows: Float64[Tensor, "count n"], sigma: float) -> float:
    """The standard error of σ_max: that of (1), from the influence of each sample, divided by the slope of (1) in σ.

    d/dλ of ½ f(λ/σ²) is λ/(2 σ² (λ + σ²)), and that of ½ ‖μ‖²/σ² along y − μ is μ·(y − μ)/σ².
    """
    rows = rows[: min(moments.count, MAX_GRAM_SAMPLES)]
    centred = rows - moments.mean
    slopes = moments.values / (2 * sigma**2 * (moments.values + sigma**2))
    shifts = centred @ moments.mean / sigma**2 if moments.squared_mean else 0.0
    influence = (centred @ moments.basis).square() @ slopes + shifts
    step = 1e-4
    change = terminal_divergence(moments, sigma * (1 + step)) - terminal_divergence(moments, sigma * (1 - step))
    return sigma * float(influence.std()) / math.sqrt(moments.count) * 2 * step / abs(change)


def farthest(rows: Float64[Tensor, "count n"], chunk: int = 512) -> float:
    """The largest distance between two of the rows, or of the first `comparable` ones."""
    rows = rows[: comparable(rows)]
    return max(float(torch.cdist(part, rows).max()) for part in parts(rows, chunk))


def comparable(rows: Float64[Tensor, "count n"]) -> int:
    """The number of rows whose pairs can all be compared in a few seconds."""
    return min(len(rows), 4096, max(math.isqrt(MAX_PAIRWISE_NUMBERS // rows.shape[1]), 64))


def _uniform_level(against: Posteriors, spread: float) -> float:
    """The smallest σ, to a thousandth, between a tenth and a hundred times √tr(Σ), with a nearly uniform posterior."""
    low, high = math.log(spread / 10), math.log(spread * 100)
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if against.perplexity(math.exp(middle)) >= UNIFORM_SHARE else (middle, high)
    return math.exp(high)


def lowest(clean: Float64[Tensor, "batch n"], rows: Float64[Tensor, "count n"], sigma_data: float) -> Lowest:
    """σ_min and the evidence for it.

    Args:
        clean: samples whose nearest neighbours are searched.
        rows: other samples, among which they are searched.
        sigma_data: standard deviation of the data.
    """
    step = rounding_step(rows)
    if step is None:
        neighbour = nearest(clean, rows)
        target, bound = neighbour / (10 * math.sqrt(rows.shape[1])), "neighbours"
    else:
        neighbour, target, bound = None, step / math.sqrt(12), "rounding"
    lower_bound = 0.0 if step is not None else sigma_data / 250
    sigma = min(max(target, lower_bound), sigma_data / 10)
    return Lowest(sigma, step, neighbour, bound if sigma == target else "ratio")


def rounding_step(rows: Float64[Tensor, "count n"], max_values: int = 2**20, steps: int = 4096) -> float | None:
    """Δ, if all differences of values are multiples of one step; otherwise None.

    The step is the smallest difference between two values; it must divide all other differences, up to the rounding of
    float32, and the range must be at most `steps` of it, because all floating-point numbers are multiples of some step.
    """
    values = torch.from_numpy(np.unique(rows[: max(max_values // rows.shape[1], 64)].numpy()))
    rounding = 4 * 2.0**-23 * float(values.abs().max())
    gaps = values.diff()
    gaps = gaps[gaps > rounding]
    if len(gaps) == 0:
        return None
    span = float(values[-1] - values[0])
    count = round(span / float(gaps.min()))
    step = span / count
    multiples = (values - values[0]) / step
    on_grid = bool(((multiples - multiples.round()).abs() * step <= 2 * rounding).all())
    return step if on_grid and count <= steps else None


def nearest(clean: Float64[Tensor, "batch n"], rows: Float64[Tensor, "count n"], chunk: int = 4096) -> float:
    """The median distance from `clean` to the nearest of the rows; copies of the same sample are left out."""
    lower_bound = torch.full((len(clean),), torch.inf, dtype=clean.dtype)
    mean = rows.mean(0)  # distances are differences of squares, which would cancel for data far from 0
    clean = clean - mean
    same = 1e-6 * float(rows.std()) * math.sqrt(rows.shape[1])
    for part in parts(rows, chunk):
        distances = torch.cdist(clean, part - mean)
        lower_bound = torch.minimum(lower_bound, torch.where(distances > same, distances, torch.inf).amin(1))
    finite = lower_bound[lower_bound.isfinite()]
    return float(finite.median()) if len(finite) else 0.0
