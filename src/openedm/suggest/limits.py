"""Where the noise levels begin and end: σ_max from the start of sampling, σ_min from what the data resolve.

**σ_max.** Sampling starts from N(0, σ² I) in the place of p(x; σ), the density of x = y + σ n. With K = KL(p(x; σ) ‖
N(0, σ² I)) and I = I(y; x),

    K = E‖y‖²/(2σ²) − I ≥ ½ ‖μ‖²/σ² + ½ Σ_i f(λ_i/σ²),  f(u) = u − ln(1 + u),                                        (1)

because of all densities with these second moments the Gaussian has the largest entropy; the difference falls with the
third cumulants, as σ⁻⁶, the right side as σ⁻² for data with a mean and as σ⁻⁴ for centred data. Whatever exact process
leads on from there is a map (or a Markov kernel) that treats both starts alike, and no such map makes a divergence
larger. So the samples are at most K nats from the data, as far as the start causes it, and at most √(K/2) in total
variation (Pinsker). σ_max is where the right side of (1) is a stated number of nats. Reported beside it:

- the largest pairwise distance, which Song and Ermon 2020 (technique 1) take so that noise leads from any sample to any
  other: it is where samples mix, and does not depend on the mean of the data;
- the σ at which the exact denoiser's posterior over the data is nearly uniform: exp(entropy) is `UNIFORM_SHARE` N,
  which is exp(−I) = `UNIFORM_SHARE`.

**σ_min.** Values that were rounded to steps of Δ carry the noise of rounding, uniform with standard deviation Δ/√12:
noise below it is invisible once samples are rounded, too (bytes in [-1, 1]: Δ = 2/255, σ_min = 0.00226). Without steps,
the noise that is left may move a sample, by σ_min √n, by a tenth of its distance r to the nearest other: σ_min =
r/(10 √n), a displacement that the data do not resolve; but not below σ_data/250, the ratio that Karras et al. 2022
use, since r falls without bound as more samples are drawn from the same few dimensions. Never above σ_data/10: 1 % of
the variance.
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
"""The part of the number of samples that exp(entropy) of a nearly uniform posterior is at least."""

MAX_PAIRWISE_NUMBERS = 2**34
"""The largest size of a comparison of all pairs: the number of samples squared times their dimensions."""


@dataclass(frozen=True)
class Highest:
    """The evidence for σ_max.

    Attributes:
        sigma: σ_max, where (1) is `nats`.
        nats: the divergence from the data that the start may cause.
        error: standard error of σ_max, from the samples that were used.
        mean_share: the part of those nats that is due to the mean.
        centred: what σ_max would be, were μ subtracted from the data.
        farthest: the largest distance between two of the samples that were used.
        uniform: the σ at which the exact denoiser's posterior over the data is nearly uniform.
        perplexity: at σ_max, exp(entropy) of that posterior as a part of the number of samples.
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
        step: Δ, where all values are multiples of a step apart; else None.
        neighbour: the median distance to the nearest other sample, where there is no step; else None.
        bound: "rounding", "neighbours", or where these lie outside [σ_data/250, σ_data/10] "ratio".
    """

    sigma: float
    step: float | None
    neighbour: float | None
    bound: str


@dataclass(frozen=True, eq=False)
class Posteriors:
    """Noisy samples x = y + σ n against a set of data points, at every σ at once.

    ‖x − y_i‖² − ‖σ n‖² = ‖y − y_i‖² + 2 σ n·(y − y_i), with the same n at every σ.

    Attributes:
        points: the data points y_i.
        squares: ‖y − y_i‖², up to a number for each y.
        products: n·(y − y_i), likewise.
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
        """exp of the mean entropy of the posterior, as a part of the number of points."""
        log_weights = self.log_weights(sigma)
        entropy = -(log_weights.exp() * log_weights).nan_to_num().sum(1)
        return math.exp(float(entropy.mean())) / len(self.points)


def posteriors(x: Noisy, points: Float64[Tensor, "points k"]) -> Posteriors:
    """The posteriors of noisy samples over data points, all in the coordinates of the same moments.

    The points must lie in the span of those: what x has outside is as far from all of them.
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
        moments: of the data.
        rows: samples, for the largest distance and the standard error.
        against: posteriors of other samples over some of the data.
        nats: the divergence from the data that the start may cause.
    """
    sigma = _where(moments, nats, centred=False)
    share = moments.squared_mean / (2 * sigma**2) / nats
    return Highest(
        sigma=sigma,
        nats=nats,
        error=_error(moments, rows, sigma),
        mean_share=share,
        centred=_where(moments, nats, centred=True),
        farthest=farthest(rows),
        uniform=_uniform(against, math.sqrt(moments.variance * len(moments.mean))),
        perplexity=against.perplexity(sigma),
    )


def _where(moments: Moments, nats: float, *, centred: bool) -> float:
    """The σ at which (1) is `nats`: at most `high`, because f(u) ≤ u."""
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


def _error(moments: Moments, rows: Float64[Tensor, "count n"], sigma: float) -> float:
    """Standard error of σ_max: that of (1), the mean of its influence over the samples, by the slope of (1) in σ.

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
    """The largest distance between two of the rows, or of as many of them as can be compared."""
    rows = rows[: comparable(rows)]
    return max(float(torch.cdist(part, rows).max()) for part in parts(rows, chunk))


def comparable(rows: Float64[Tensor, "count n"]) -> int:
    """How many of the rows can all be compared with each other in a few seconds."""
    return min(len(rows), 4096, max(math.isqrt(MAX_PAIRWISE_NUMBERS // rows.shape[1]), 64))


def _uniform(against: Posteriors, spread: float) -> float:
    """The smallest σ, to a thousandth, between a tenth and a hundred times √tr(Σ), with a nearly uniform posterior."""
    low, high = math.log(spread / 10), math.log(spread * 100)
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if against.perplexity(math.exp(middle)) >= UNIFORM_SHARE else (middle, high)
    return math.exp(high)


def lowest(clean: Float64[Tensor, "batch n"], rows: Float64[Tensor, "count n"], sigma_data: float) -> Lowest:
    """σ_min and the evidence for it.

    Args:
        clean: samples whose nearest neighbours are sought.
        rows: other samples, among which they are sought.
        sigma_data: standard deviation of the data.
    """
    step = rounding_step(rows)
    if step is None:
        neighbour = nearest(clean, rows)
        wanted, bound = neighbour / (10 * math.sqrt(rows.shape[1])), "neighbours"
    else:
        neighbour, wanted, bound = None, step / math.sqrt(12), "rounding"
    least = 0.0 if step is not None else sigma_data / 250
    sigma = min(max(wanted, least), sigma_data / 10)
    return Lowest(sigma, step, neighbour, bound if sigma == wanted else "ratio")


def rounding_step(rows: Float64[Tensor, "count n"], most: int = 2**20, steps: int = 4096) -> float | None:
    """Δ, where all values are whole multiples of one step apart; None where they are not.

    The step is the smallest difference between two values; it must divide all the others, up to the rounding of
    float32, and the range must be at most `steps` of it: numbers of a computer are all multiples of something.
    """
    values = torch.from_numpy(np.unique(rows[: max(most // rows.shape[1], 64)].numpy()))
    rounding = 4 * 2.0**-23 * float(values.abs().max())
    gaps = values.diff()
    gaps = gaps[gaps > rounding]
    if len(gaps) == 0:
        return None
    span = float(values[-1] - values[0])
    count = round(span / float(gaps.min()))
    step = span / count
    places = (values - values[0]) / step
    on_grid = bool(((places - places.round()).abs() * step <= 2 * rounding).all())
    return step if on_grid and count <= steps else None


def nearest(clean: Float64[Tensor, "batch n"], rows: Float64[Tensor, "count n"], chunk: int = 4096) -> float:
    """The median distance from `clean` to the nearest of the rows; copies of the same sample are left out."""
    least = torch.full((len(clean),), torch.inf, dtype=clean.dtype)
    mean = rows.mean(0)  # distances are differences of squares: those of data far from 0 have no digits left
    clean = clean - mean
    same = 1e-6 * float(rows.std()) * math.sqrt(rows.shape[1])
    for part in parts(rows, chunk):
        distances = torch.cdist(clean, part - mean)
        least = torch.minimum(least, torch.where(distances > same, distances, torch.inf).amin(1))
    found = least[least.isfinite()]
    return float(found.median()) if len(found) else 0.0
