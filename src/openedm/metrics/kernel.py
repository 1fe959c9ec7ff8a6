"""The kernel distance: the squared maximum mean discrepancy between two sets of features, without bias.

    k(x, y) = (x·y / dim + 1)³
    MMD² = mean_{i≠j} k(xᵢ, xⱼ) + mean_{i≠j} k(yᵢ, yⱼ) − 2 mean_{ij} k(xᵢ, yⱼ)

Bińkowski et al. 2018 (arXiv 1801.01401), where it is called KID; the estimator is Gretton et al. 2012, lemma 6.
torchmetrics averages over random subsets, so its value depends on the global random state and its spread is not a
standard error; sklearn's `polynomial_kernel` needs memory for all pairs at once.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from openedm.ground import checks

__all__ = ["KernelDistance", "kernel_distance"]


class KernelDistance(NamedTuple):
    """An estimate without bias of a number ≥ 0, which may be negative itself, and its standard error."""

    value: float
    standard_error: float


def kernel_distance(
    samples: Float[Tensor, "samples dim"],
    reference: Float[Tensor, "reference dim"],
    *,
    degree: int = 3,
    block: int = 2048,
) -> KernelDistance:
    """The squared maximum mean discrepancy of two sets of features, and its standard error.

    All pairs are used, a tile of `block` × `block` at a time, in float64. The standard error is the jackknife's: each
    row is left out in turn, for which the sums over rows suffice. Where the two sets are of one distribution it is too
    large by up to √2, never too small.

    >>> x = torch.tensor([[0.0], [1.0], [2.0]])
    >>> round(kernel_distance(x, x, degree=1).value, 9)
    -0.666666667

    Args:
        samples: `(samples, dim)`.
        reference: `(reference, dim)`.
        degree: of the polynomial.
        block: rows of a tile.

    Raises:
        ValueError: another number of features on either side, fewer than 3 rows, or an argument out of its range.
    """
    checks.at_least("degree", degree, 1)
    checks.at_least("block", block, 1)
    if samples.shape[1] != reference.shape[1]:
        raise ValueError(
            f"samples and reference must have as many features, got {samples.shape[1]} and {reference.shape[1]}"
        )
    m, n = len(samples), len(reference)
    checks.at_least("the number of samples", m, 3)
    checks.at_least("the number of rows of reference", n, 3)
    own_x, _ = _row_sums(samples, samples, degree, block, same=True)
    own_y, _ = _row_sums(reference, reference, degree, block, same=True)
    cross_x, cross_y = _row_sums(samples, reference, degree, block)
    sum_x, sum_y, sum_xy = own_x.sum(), own_y.sum(), cross_x.sum()
    mean_x, mean_y = sum_x / (m * (m - 1)), sum_y / (n * (n - 1))
    value = mean_x + mean_y - 2 * sum_xy / (m * n)
    without_x = (sum_x - 2 * own_x) / ((m - 1) * (m - 2)) + mean_y - 2 * (sum_xy - cross_x) / ((m - 1) * n)
    without_y = (sum_y - 2 * own_y) / ((n - 1) * (n - 2)) + mean_x - 2 * (sum_xy - cross_y) / ((n - 1) * m)
    variance = sum((len(w) - 1) * w.var(correction=0) for w in (without_x, without_y))
    return KernelDistance(float(value), float(variance) ** 0.5)


def _row_sums(
    x: Float[Tensor, "m dim"], y: Float[Tensor, "n dim"], degree: int, block: int, *, same: bool = False
) -> tuple[Float64[Tensor, " m"], Float64[Tensor, " n"]]:
    """Σⱼ k(xᵢ, yⱼ) and Σᵢ k(xᵢ, yⱼ), tile by tile; with `same`, where x is y, without the pairs i = j."""
    rows = torch.zeros(len(x), dtype=torch.float64)
    columns = torch.zeros(len(y), dtype=torch.float64)
    for i in range(0, len(x), block):
        a = x[i : i + block].double()
        for j in range(0, len(y), block):
            tile = (a @ y[j : j + block].double().T / x.shape[1] + 1) ** degree
            if same and i == j:
                tile.fill_diagonal_(0)
            rows[i : i + block] += tile.sum(1).cpu()
            columns[j : j + block] += tile.sum(0).cpu()
    return rows, columns
