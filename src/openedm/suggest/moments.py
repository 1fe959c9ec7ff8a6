"""First and second moments of a sample of the data, for the range of noise levels and the linear denoiser.

y has mean μ and covariance Σ = U diag(λ) Uᵀ. The eigenvalues of a sample's covariance are more spread out than those of
Σ; shrinkage, λ' = (1 − a) λ + a tr(Σ)/n, with the oracle-approximating a of Chen, Wiesel, Eldar and Hero 2010 (eq. 23)

    a = ((1 − 2/n) tr(Σ²) + tr²(Σ)) / ((N + 1 − 2/n) (tr(Σ²) − tr²(Σ)/n)),  at most 1,

corrects this on average. a ≈ 1 if N samples do not distinguish Σ from a multiple of I, and a → 0 as N grows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from openedm.data import Dataset
from openedm.ground.seeding import host_seeded

__all__ = ["Moments", "Noisy", "draw", "moments", "noisy", "parts"]

MAX_NUMBERS = 2**25
"""The largest number of values of the data in memory: a quarter of a gibibyte."""

MAX_DIRECT_DIMENSIONS = 2048
"""The largest dimension for which the covariance is decomposed; above it, the Gram matrix of some samples is."""

MAX_GRAM_SAMPLES = 2048


def draw(data: Dataset, max_samples: int, seed: int, batch_size: int = 256) -> Float64[Tensor, "count n"]:
    """Random samples of the data without replacement, flat, in random order.

    Raises:
        ValueError: a value is not finite.
    """
    size = data.fetch([0])[0].numel()
    count = min(len(data), max_samples, max(MAX_NUMBERS // size, 64))
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    rows = torch.empty(count, size, dtype=torch.float64)
    for start in range(0, count, batch_size):
        part = chosen[start : start + batch_size]
        with host_seeded(part[0]):
            rows[start : start + len(part)] = data.fetch(part)[0].flatten(1)
        if not bool(rows[start : start + len(part)].isfinite().all()):
            raise ValueError(f"data must be finite, found NaN or infinity among samples {sorted(part)[:8]} …")
    return rows


def parts(rows: Float64[Tensor, "count n"], size: int) -> Iterator[Float64[Tensor, "part n"]]:
    """The rows, at most `size` at a time."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and covariance of a sample.

    Attributes:
        mean: μ.
        basis: U, the computed eigenvectors of Σ, as columns.
        measured: λ, the eigenvalues of the sample's covariance.
        values: λ', the eigenvalues after shrinkage.
        rest: λ' of the n − k directions without a computed eigenvector (0 if there are none).
        variance: tr(Σ)/n, the mean over dimensions of the variance about their means.
        count: N, the number of samples.
    """

    mean: Float64[Tensor, "n"]
    basis: Float64[Tensor, "n k"]
    measured: Float64[Tensor, "k"]
    values: Float64[Tensor, "k"]
    rest: float
    variance: float
    count: int

    @property
    def others(self) -> int:
        """The number of directions without a computed eigenvector."""
        return self.basis.shape[0] - self.basis.shape[1]

    @property
    def squared_mean(self) -> float:
        """‖μ‖², minus the contribution tr(Σ)/N of the error of a mean of N samples; at least 0."""
        spread = self.variance * len(self.mean) / self.count
        return max(float(self.mean.square().sum()) - spread, 0.0)

    def gains(self, sigma: float, *, shrunk: bool) -> tuple[Float64[Tensor, "k"], float]:
        """The best linear denoiser, μ + U diag(λ/(λ+σ²)) Uᵀ (x − μ): its gains along U and in all other directions.

        Args:
            sigma: noise level.
            shrunk: whether to use the eigenvalues after shrinkage.
        """
        values, rest = (self.values, self.rest) if shrunk else (self.measured, 0.0)
        return values / (values + sigma**2), rest / (rest + sigma**2)


@dataclass(frozen=True, eq=False)
class Noisy:
    """Samples y and unit noise n in the coordinates of some moments, for x = y + σ n at every σ.

    Attributes:
        clean: Uᵀ (y − μ).
        noise: Uᵀ n.
        rest: ‖y'‖², y'·n' and ‖n'‖² of the components y' and n' orthogonal to U.
    """

    clean: Float64[Tensor, "batch k"]
    noise: Float64[Tensor, "batch k"]
    rest: Float64[Tensor, "3 batch"]

    def error(self, sigma: float, gains: Float64[Tensor, "k"], outside: float) -> Float64[Tensor, "batch"]:
        """‖D − y‖² of D = μ + U diag(gains) Uᵀ (x − μ) + outside x'."""
        inside = (gains * (self.clean + sigma * self.noise) - self.clean).square().sum(1)
        factor = outside - 1
        squares, products, noises = self.rest
        outside_error: Tensor = (
            factor**2 * squares + 2 * factor * outside * sigma * products + (outside * sigma) ** 2 * noises
        )
        return inside + outside_error

    def error_of(self, coordinates: Float64[Tensor, "batch k"]) -> Float64[Tensor, "batch"]:
        """‖D − y‖² of D = μ + U answer."""
        return (coordinates - self.clean).square().sum(1) + self.rest[0]


def noisy(moments: Moments, clean: Float64[Tensor, "batch n"], noise: Float64[Tensor, "batch n"]) -> Noisy:
    """Samples y and unit noise n in the coordinates of `moments`."""
    centred = clean - moments.mean
    inside, along = centred @ moments.basis, noise @ moments.basis
    if not moments.others:
        return Noisy(inside, along, torch.zeros(3, len(clean), dtype=clean.dtype))
    clean_rest, noise_rest = centred - inside @ moments.basis.T, noise - along @ moments.basis.T
    return Noisy(
        inside,
        along,
        torch.stack([clean_rest.square().sum(1), (clean_rest * noise_rest).sum(1), noise_rest.square().sum(1)]),
    )


def moments(rows: Float[Tensor, "count n"]) -> Moments:
    """The moments of some samples, one a row."""
    n = rows.shape[1]
    rows = rows[:MAX_GRAM_SAMPLES] if n > MAX_DIRECT_DIMENSIONS else rows
    count, mean = len(rows), rows.mean(0)
    centred = rows - mean
    if count >= n:
        measured, basis = torch.linalg.eigh(centred.T @ centred / count)
    else:
        squares, clean_rest = torch.linalg.eigh(centred @ centred.T / count)
        factor = squares > 1e-12 * squares[-1]
        measured = squares[factor]
        basis = centred.T @ (clean_rest[:, factor] / (measured * count).sqrt())
    measured = measured.clamp(min=0)
    variance = float(measured.sum()) / n
    a = _shrinkage(measured, n, count)
    return Moments(mean, basis, measured, (1 - a) * measured + a * variance, a * variance, variance, count)


def _shrinkage(values: Float64[Tensor, "k"], n: int, count: int) -> float:
    """The oracle-approximating a; 1 if all eigenvalues are equal."""
    trace, squares = float(values.sum()), float(values.square().sum())
    spread = (count + 1 - 2 / n) * (squares - trace**2 / n)
    return min(1.0, ((1 - 2 / n) * squares + trace**2) / spread) if spread > 1e-12 * squares else 1.0
