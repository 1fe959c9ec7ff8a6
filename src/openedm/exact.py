"""Exact denoisers: D(x; σ) in closed form, to measure solvers, networks and metrics against.

- a finite data set {y_i} (Karras et al. 2022, Appendix B.3): D = Σ_i softmax_i(−‖x − y_i‖²/(2σ²)) y_i;
- a Gaussian mixture {π_k, μ_k, Σ_k}: D = Σ_k r_k (μ_k + Σ_k (Σ_k + σ² I)⁻¹ (x − μ_k)), with responsibilities
  r_k ∝ π_k N(x; μ_k, Σ_k + σ² I);
- for one Gaussian the probability-flow ODE itself is solved: x(σ) = μ + √((λ+σ²)/(λ+σ₀²)) (x(σ₀) − μ) along each
  eigenvector of Σ, with eigenvalue λ.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from openedm.data.classes import read_labels
from openedm.denoiser import Condition, Denoiser
from openedm.ground import checks
from openedm.ground.tensors import as_tensor, float64_between
from openedm.schedules import Values, noise_levels

__all__ = ["ExactDataset", "GaussianMixture"]

LEAST_SIGMA = 1e-100
"""Smaller noise levels, and 0, are computed as this one: there D is its limit, and squares are still numbers."""

MAX_DIRECT_FEATURES = 16
"""Distances between samples of so few numbers are computed as they are defined, which is then no slower."""

MAX_ROUNDING = 4500
"""The largest error of a logit by products, in units of rounding: 1e-12 in float64."""

NEGLIGIBLE = 50.0
"""A sample whose logit is so far below the highest has no weight."""

PAIRS_ENTRIES = 2**22
"""Numbers of differences between samples and data that are held at a time."""

Logits = tuple[int, Float64[Tensor, "batch chunk"]]
"""The number of the first of some data points, and the logits of these points for each row of x."""


def _check_finite(name: str, values: Tensor) -> None:
    if not bool(values.isfinite().all()):
        raise ValueError(f"{name} must be finite, got {values[~values.isfinite()][0].item()}")


def _data_scale(variance: Tensor) -> float:
    """The square root of the mean variance of a coordinate; the default of `Denoiser` if the data is a single point."""
    return math.sqrt(float(variance)) if variance > 0 else Denoiser.sigma_data


def _squares(parts: Sequence[Tensor], centre: Float64[Tensor, "features"]) -> Float64[Tensor, "count"]:
    """‖y_i − centre‖²."""
    return torch.cat([(part - centre).square().sum(1) for part in parts])


class ExactDataset(Denoiser):
    """The denoiser of a finite data set: what a network of unlimited capacity would learn.

    Args:
        data: the samples y_i, (count, *event): a tensor, an array or lists of numbers. x and σ are in their units:
            images of bytes stay 0 to 255 here, while networks see them from −1 to 1.
        labels: the class of each sample, integers or one-hot rows; the condition then selects the samples of that class
            (−1: all).
        num_classes: the number of classes; None means the largest label + 1.
        chunk: how many data points are compared with x at a time, which limits the memory.
        dtype: of the data and of the products with them, float64 or float32. In float32 they need half of the memory
            and of the time, on many GPUs much less, and D is accurate to about 1e-5 of the size of the data instead of
            1e-12; all else is float64.

    Raises:
        TypeError: labels are neither integers nor one-hot rows.
        ValueError: another dtype, no data, values that are not finite, labels of another length or out of range, or
            `num_classes` without labels. When called: a condition other than one class a sample, or a class without
            samples.

    >>> two = ExactDataset(torch.tensor([[-1.0], [1.0]]))
    >>> two(torch.tensor([[0.0], [0.5]]), 0.01)
    tensor([[0.],
            [1.]])
    """

    data: Float[Tensor, "count features"]
    half_squares: Float64[Tensor, "count"]
    centre: Float64[Tensor, "features"]
    labels: Int[Tensor, "count"] | None

    def __init__(
        self,
        data: Float[Tensor, "count *event"] | np.ndarray | list[Any],
        labels: Int[Tensor, "count *classes"] | np.ndarray | list[Any] | None = None,
        num_classes: int | None = None,
        chunk: int = 8192,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        data = as_tensor("data", data)
        if data.ndim < 2 or len(data) == 0 or data.is_complex():
            raise ValueError(
                f"data must be real numbers (samples, *event) with at least one sample, got shape {tuple(data.shape)} "
                f"of {data.dtype}"
            )
        _check_finite("data", data)
        checks.integer("chunk", chunk, 1)
        checks.one_of("dtype", dtype, (torch.float64, torch.float32))
        known = None
        if labels is not None:
            labels, known = read_labels(as_tensor("labels", labels), len(data))
        self.event_shape = tuple(data.shape[1:])
        self.register_buffer("data", data.flatten(1).to(dtype))
        centre = self.data.mean(0, dtype=torch.float64)
        parts = torch.split(self.data, chunk)
        self.register_buffer("centre", centre, persistent=False)
        self.register_buffer("half_squares", _squares(parts, centre) / 2, persistent=False)
        self.sigma_data = _data_scale(2 * self.half_squares.mean() / max(self.data.shape[1], 1))
        self._radius = float(_squares(parts, torch.zeros_like(centre)).max()) ** 0.5
        self.register_buffer("labels", labels)
        self.chunk = chunk
        self._classes = frozenset(() if labels is None else labels.tolist())
        if labels is None and num_classes is not None:
            raise ValueError(f"num_classes has no effect without labels and must be None, got {num_classes}")
        if labels is not None:
            highest = int(labels.max()) + 1
            self.num_classes = (known or highest) if num_classes is None else num_classes
            checks.integer("num_classes", self.num_classes, highest)

    def mean(
        self, sigma_max: float, condition: Condition = None, event_shape: Sequence[int] | None = None
    ) -> Float64[Tensor, "rows *event"]:
        """The mean of the data; with a condition, that of each row's class, or of all for class −1."""
        self._check_condition(condition)
        everything = self.data.mean(0, keepdim=True)
        if condition is None or self.labels is None:
            return everything.reshape(1, *(self.event_shape or ()))
        labels, classes = self.labels.to(torch.int64), condition.to(self.data.device, torch.int64)
        sums = self.data.new_zeros(self.num_classes, self.data.shape[1]).index_add(0, labels, self.data)
        counts = labels.bincount(minlength=self.num_classes)[:, None]
        means = torch.where(classes[:, None] < 0, everything, (sums / counts)[classes.clamp(min=0)])
        return means.reshape(-1, *(self.event_shape or ()))

    def denoise(
        self,
        x: Float[Tensor, "batch *event"],
        sigma: Float64[Tensor, "*batch_or_none"],
        condition: Condition,
        **options: Any,
    ) -> Float[Tensor, "batch *event"]:
        """Σ_i softmax_i(−‖x − y_i‖²/(2σ²)) y_i, accumulated over chunks of the data with a running maximum.

        At σ = 0 it is the limit, the nearest sample.
        """
        self._check_condition(condition)
        flat = x.flatten(1).to(torch.float64)
        precision = sigma.to(x.device).clamp(min=LEAST_SIGMA).expand(len(x)).square().reciprocal()[:, None]
        logits_of = self._logits_by_definition if flat.shape[1] <= MAX_DIRECT_FEATURES else self._logits_by_products
        peak = torch.full((len(x), 1), -torch.inf, dtype=torch.float64, device=x.device)
        total, weighted = torch.zeros_like(peak), torch.zeros_like(flat)
        for start, logits in logits_of(flat, precision, condition):
            new_peak = torch.maximum(peak, logits.detach().amax(1, keepdim=True))
            reference = new_peak.masked_fill(new_peak == -torch.inf, 0.0)  # where no sample has the class yet
            kept, weights = (peak - reference).exp(), (logits - reference).exp()
            total = total * kept + weights.sum(1, keepdim=True)
            weighted = weighted * kept + weights.to(self.data.dtype) @ self.data[start : start + self.chunk]
            peak = new_peak
        return (weighted / total).reshape(x.shape).to(x.dtype)

    def _logits_by_definition(
        self, x: Float64[Tensor, "batch features"], precision: Float64[Tensor, "batch 1"], condition: Condition
    ) -> Iterator[Logits]:
        """−‖x − y_i‖²/(2σ²)."""
        for start in range(0, len(self.data), self.chunk):
            part = self.data[start : start + self.chunk].to(torch.float64)
            distances = torch.cdist(x, part, compute_mode="donot_use_mm_for_euclid_dist")
            yield start, self._masked(-0.5 * precision * distances.square(), condition, start)

    def _logits_by_products(
        self, x: Float64[Tensor, "batch features"], precision: Float64[Tensor, "batch 1"], condition: Condition
    ) -> Iterator[Logits]:
        """((x − m)·y_i − ‖y_i − m‖²/2)/σ², m the mean of the data: the logits, up to a number for each row.

        Where that loses digits, at small σ, they are computed by definition of the few samples that have any weight.
        """
        centred = x - self.centre
        rounding = centred.detach().norm(dim=1, keepdim=True) * self._radius + self.half_squares.max()
        rounding = rounding * precision * torch.finfo(self.data.dtype).eps
        careful = (rounding > MAX_ROUNDING * torch.finfo(self.data.dtype).eps)[:, 0]
        margin, some = NEGLIGIBLE + 2 * rounding, bool(careful.any())
        highest = torch.full_like(precision, -torch.inf)
        for start in range(0, len(self.data), self.chunk):
            part = self.data[start : start + self.chunk]
            products = (centred.to(part.dtype) @ part.mT).to(torch.float64)
            logits = precision * (products - self.half_squares[start : start + self.chunk])
            logits = self._masked(logits, condition, start)
            if some:
                highest = torch.maximum(highest, logits.detach().amax(1, keepdim=True))
                near = (logits.detach() > highest - margin) & careful[:, None]
                logits = torch.where(careful[:, None], self._logits_of_pairs(x, precision, part, near), logits)
            yield start, logits

    def _logits_of_pairs(
        self, x: Tensor, precision: Tensor, part: Tensor, pairs: Bool[Tensor, "batch chunk"]
    ) -> Float64[Tensor, "batch chunk"]:
        """−‖x − y_i‖²/(2σ²) of the pairs; of all others −∞."""
        rows, columns = pairs.nonzero(as_tuple=True)
        size = max(1, PAIRS_ENTRIES // x.shape[1])
        values = [
            -0.5 * precision[row, 0] * (x[row] - part[column]).square().sum(1)
            for row, column in zip(torch.split(rows, size), torch.split(columns, size), strict=True)
        ]
        return precision.new_full(pairs.shape, -torch.inf).index_put((rows, columns), torch.cat(values))

    def _check_condition(self, condition: Condition) -> None:
        if condition is None:
            return
        if self.labels is None:
            raise ValueError("condition must be None: this exact denoiser has no labels")
        if condition.ndim != 1:
            raise ValueError(f"condition must hold one class a sample, shape (batch,), got {tuple(condition.shape)}")
        absent = {c for c in condition.tolist() if c >= 0} - self._classes
        if absent:
            raise ValueError(f"condition must be -1 or classes that the data has, got {sorted(absent)}")

    def _masked(self, logits: Tensor, condition: Condition, start: int) -> Tensor:
        if condition is None or self.labels is None:
            return logits
        classes = condition[:, None].to(logits.device)
        other = (self.labels[start : start + self.chunk] != classes) & (classes >= 0)
        return logits.masked_fill(other, -torch.inf)


class GaussianMixture(Denoiser):
    """The denoiser of a mixture of Gaussians, with its density, score and samples at every noise level.

    Args:
        weights: > 0; π_k are these divided by their sum.
        means: μ_k.
        covariances: Σ_k, symmetric, positive semi-definite.

    Raises:
        ValueError: shapes do not fit, a value is not finite, a weight is not positive, or a covariance is not symmetric
            and positive semi-definite.

    >>> GaussianMixture([1.0], [[0.0]], [[[1.0]]])(torch.tensor([[2.0]]), 1.0)
    tensor([[1.]])
    """

    weights: Float64[Tensor, "components"]
    means: Float64[Tensor, "components features"]
    eigenvalues: Float64[Tensor, "components features"]
    eigenvectors: Float64[Tensor, "components features features"]

    def __init__(
        self, weights: Tensor | Sequence[Any], means: Tensor | Sequence[Any], covariances: Tensor | Sequence[Any]
    ) -> None:
        super().__init__()
        weights, means, covariances = (torch.as_tensor(v, dtype=torch.float64) for v in (weights, means, covariances))
        count, features = means.shape if means.ndim == 2 else (len(means), 0)
        if weights.shape != (count,) or means.ndim != 2 or covariances.shape != (count, features, features):
            raise ValueError(
                "weights, means, covariances must have shapes (k,), (k, n), (k, n, n), got "
                f"{tuple(weights.shape)}, {tuple(means.shape)}, {tuple(covariances.shape)}"
            )
        for name, values in (("weights", weights), ("means", means), ("covariances", covariances)):
            _check_finite(name, values)
        if not bool((weights > 0).all()):
            raise ValueError(f"weights must all be > 0, got {weights.tolist()}")
        if not torch.allclose(covariances, covariances.mT, rtol=1e-8, atol=1e-12):
            raise ValueError("covariances must be symmetric")
        eigenvalues, eigenvectors = torch.linalg.eigh(covariances)
        if bool((eigenvalues < -1e-10 * eigenvalues.amax(-1, keepdim=True).clamp(min=1)).any()):
            raise ValueError(f"covariances must be positive semi-definite, got eigenvalue {eigenvalues.min().item():g}")
        self.event_shape = (features,)
        self.register_buffer("weights", weights / weights.sum())
        self.register_buffer("means", means)
        spread = (means - self.weights @ means).square() + eigenvalues.clamp(min=0).mean(-1, keepdim=True)
        self.sigma_data = _data_scale((self.weights @ spread).mean())
        self.register_buffer("eigenvalues", eigenvalues.clamp(min=0))
        self.register_buffer("eigenvectors", eigenvectors)

    def _whitened(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates of x − μ_k along the eigenvectors, and the noisy variances λ + σ²: both (batch, k, n)."""
        centred = x.to(torch.float64)[:, None, :] - self.means
        coordinates = torch.einsum("bkn,knm->bkm", centred, self.eigenvectors)
        variances = self.eigenvalues + sigma.to(x.device).expand(len(x))[:, None, None].square()
        return coordinates, variances

    def _log_joint(self, coordinates: Tensor, variances: Tensor) -> Float64[Tensor, "batch components"]:
        """ln π_k N(x; μ_k, Σ_k + σ² I)."""
        quadratic = (coordinates.square() / variances + variances.log()).sum(-1)
        return self.weights.log() - 0.5 * (quadratic + self.means.shape[-1] * math.log(2 * math.pi))

    def log_prob(self, x: Float[Tensor, "batch features"], sigma: Values = 0.0) -> Float64[Tensor, "batch"]:
        """ln p(x; σ) in nats; σ a number or one value a sample."""
        return self._log_joint(*self._whitened(x, noise_levels(sigma))).logsumexp(-1)

    def mean(
        self, sigma_max: float, condition: Condition = None, event_shape: Sequence[int] | None = None
    ) -> Float64[Tensor, "rows features"]:
        """Σ_k π_k μ_k."""
        return (self.weights @ self.means)[None]

    def denoise(
        self,
        x: Float[Tensor, "batch *event"],
        sigma: Float64[Tensor, "*batch_or_none"],
        condition: Condition,
        **options: Any,
    ) -> Float[Tensor, "batch *event"]:
        """Σ_k r_k (μ_k + Σ_k (Σ_k + σ² I)⁻¹ (x − μ_k)); at σ = 0 its limit."""
        if condition is not None:
            raise ValueError("condition must be None: a Gaussian mixture is unconditional")
        coordinates, variances = self._whitened(x, sigma.clamp(min=LEAST_SIGMA))
        responsibilities = self._log_joint(coordinates, variances).softmax(-1)
        shrunk = coordinates * (self.eigenvalues / variances)
        estimates = self.means + torch.einsum("bkm,knm->bkn", shrunk, self.eigenvectors)
        return torch.einsum("bk,bkn->bn", responsibilities, estimates).to(x.dtype)

    def sample(self, count: int, generator: torch.Generator, sigma: float = 0.0) -> Float64[Tensor, "count features"]:
        """`count` draws from p(x; σ), on the denoiser's device; the generator may be for another device."""
        source, device = generator.device, self.means.device
        component = torch.multinomial(self.weights.to(source), count, replacement=True, generator=generator).to(device)
        shape = count, self.means.shape[1]
        unit = torch.randn(shape, dtype=torch.float64, generator=generator, device=source).to(device)
        scaled = unit * (self.eigenvalues[component] + sigma**2).sqrt()
        return self.means[component] + torch.einsum("bm,bnm->bn", scaled, self.eigenvectors[component])

    def ode_solution(self, x: Float[Tensor, "batch features"], sigma: float, sigma_to: float) -> Tensor:
        """Where the probability-flow ODE takes x from noise level `sigma` to `sigma_to`; for one component only.

        x(σ') = μ + U diag(√((λ+σ'²)/(λ+σ²))) Uᵀ (x − μ), at s = 1.

        Raises:
            ValueError: the mixture has several components (no closed form), or a noise level is not finite and ≥ 0.
        """
        to = float64_between("sigma_to", sigma_to, 0, sys.float_info.max)
        if len(self.weights) != 1:
            raise ValueError(f"ode_solution requires a mixture of one component, got {len(self.weights)} components")
        coordinates, variances = self._whitened(x, noise_levels(sigma))
        moved = coordinates * ((self.eigenvalues + to.square()) / variances).sqrt()
        return (self.means[0] + moved[:, 0] @ self.eigenvectors[0].mT).to(x.dtype)
