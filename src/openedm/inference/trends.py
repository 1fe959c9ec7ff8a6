"""Kernel regression of simulations: what of x is a smooth function of θ, learned in closed form.

Directions of y are found in which the mean is large beside the noise; along each a Gaussian process with lengths of its
own (Rasmussen and Williams 2006, section 5.4: by the marginal likelihood, of some of the rows) tells the lengths and
the ratio of noise, and a regression on kernels around some of the rows the mean (their section 8.3.1). Of each row its
prediction from all other rows is known in closed form, so that what is left of the rows is like what is left of new
ones.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from openedm.networks.trends import KernelTrend, gaussian_kernel

__all__ = ["FittedTrend", "fit_trend", "regressed"]

MAX_DIRECTIONS, MAX_CENTRES, TUNING_ROWS, TUNING_STEPS = 8, 256, 300, 20
MAX_NOISE = 1e3
"""Ratio of noise to mean along a direction that is left out."""

JITTER = 1e-8


class FittedTrend(NamedTuple):
    """A trend of some rows.

    Attributes:
        trend: m.
        left_out: m at each of the rows, by all other rows.
    """

    trend: KernelTrend
    left_out: Float64[Tensor, "rows dim"]


def fit_trend(y: Float[Tensor, "rows dim"], u: Float[Tensor, "rows condition"], *, seed: int = 0) -> FittedTrend | None:
    """m(u) of what a least-squares fit leaves of y, which is not part of it; None where there is nothing smooth.

    Args:
        y, u: standardised rows.
        seed: of the rows that become centres.
    """
    u, rows, dim = u.double(), len(u), y.shape[1]
    inputs = torch.cat([u, u.new_ones(rows, 1)], 1)
    rest = y.double() - inputs @ torch.linalg.lstsq(inputs.cpu(), y.double().cpu(), driver="gelsd").solution.to(u)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).to(u.device)
    some, centres = order[:TUNING_ROWS], u[order[:MAX_CENTRES]]

    axes = torch.linalg.svd(rest - rest.mean(0), full_matrices=False)[2].T  # what varies most first
    turned, count = rest @ axes, min(2 * MAX_DIRECTIONS, dim)
    smooth = torch.zeros_like(turned)
    lengths, noise = _tuned(u[some], turned[some, :count], alike=True)
    for j in range(count):
        smooth[:, j] = turned[:, j] - regressed(u, turned[:, j], centres, lengths[0], noise[j])[1]

    left = turned - smooth
    covariance = left.T @ left / rows
    covariance += JITTER * covariance.diagonal().mean() * torch.eye(dim, dtype=torch.float64, device=u.device)
    whiten = torch.linalg.inv(torch.linalg.cholesky(covariance)).T
    mean = smooth @ whiten
    axes = axes @ whiten @ torch.linalg.svd(mean - mean.mean(0), full_matrices=False)[2].T  # largest beside the noise
    turned, count = rest @ axes, min(MAX_DIRECTIONS, dim)
    lengths, noise = _tuned(u[some], turned[some, :count], alike=False)
    kept = [j for j in range(count) if float(noise[j]) < MAX_NOISE]
    if not kept:
        return None
    trend = KernelTrend(len(centres), u.shape[1], len(kept), dim).to(u.device)
    trend.centres.copy_(centres)
    trend.lengths.copy_(lengths[kept])
    trend.directions.copy_(torch.linalg.inv(axes)[kept])
    left_out = turned[:, kept].clone()
    for i, j in enumerate(kept):
        trend.weights[:, i], errors = regressed(u, turned[:, j], centres, lengths[j], noise[j])
        left_out[:, i] -= errors
    return FittedTrend(trend, left_out @ trend.directions)


def _tuned(
    u: Float64[Tensor, "rows condition"], y: Float64[Tensor, "rows columns"], *, alike: bool
) -> tuple[Float64[Tensor, "kinds condition"], Float64[Tensor, " columns"]]:
    """Lengths, of all columns alike or of each its own, and ratios of noise, of the highest marginal likelihood."""
    rows, columns = y.shape
    kinds, d = 1 if alike else columns, u.shape[1]
    logs = torch.full((kinds * d + columns,), 0.5, dtype=torch.float64, device=u.device)
    logs[kinds * d :] = -1.0
    logs.requires_grad_(True)

    def values() -> tuple[Tensor, Tensor]:
        return logs[: kinds * d].clamp(-3, 4).exp().reshape(kinds, d), logs[kinds * d :].clamp(-12, 8).exp()

    def loss() -> float:
        optimizer.zero_grad()
        lengths, noise = values()
        kernels = torch.stack([gaussian_kernel(u, u, each) for each in lengths])
        matrices = kernels + (noise + JITTER)[:, None, None] * torch.eye(rows, dtype=torch.float64, device=u.device)
        factors = torch.linalg.cholesky(matrices)
        whitened = torch.linalg.solve_triangular(factors, y.T[..., None], upper=False)[..., 0]
        fit = 0.5 * rows * whitened.square().mean(1).clamp_min(1e-30).log()
        result = (fit + factors.diagonal(dim1=1, dim2=2).log().sum(1)).sum() / rows
        result = result + 0.01 * logs[: kinds * d].square().sum()
        result.backward()
        return float(result.detach())

    optimizer = torch.optim.LBFGS([logs], max_iter=TUNING_STEPS, line_search_fn="strong_wolfe", history_size=20)
    optimizer.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return values()


def regressed(
    u: Float64[Tensor, "rows condition"],
    y: Float64[Tensor, " rows"],
    centres: Float64[Tensor, "centres condition"],
    lengths: Float64[Tensor, " condition"],
    noise: Float64[Tensor, ""],
) -> tuple[Float64[Tensor, " centres"], Float64[Tensor, " rows"]]:
    """Weights of kernels around the centres, and the error of each row's prediction from all others.

    Args:
        u, y: rows.
        centres: of the kernels.
        lengths: of the kernels.
        noise: variance of the noise, in units of that of the mean.
    """
    values, vectors = torch.linalg.eigh(gaussian_kernel(centres, centres, lengths))
    kept = values > 1e-10 * values[-1]
    root = vectors[:, kept] / values[kept].sqrt()
    features = gaussian_kernel(u, centres, lengths) @ root
    matrix = features.T @ features + (noise + JITTER) * torch.eye(
        features.shape[1], dtype=torch.float64, device=u.device
    )
    solved = torch.cholesky_solve(features.T, torch.linalg.cholesky(matrix)).T
    leverage = (features * solved).sum(1).clamp_max(1 - 1e-6)
    weights = solved.T @ y
    return root @ weights, (y - features @ weights) / (1 - leverage)
