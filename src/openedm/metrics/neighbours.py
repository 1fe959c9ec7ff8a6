"""Fidelity and diversity as two numbers: which samples are near real ones, and which real ones are near samples.

The manifold of a set is the union of balls around its points, whose radius is the distance to the point's k-th nearest
neighbour in the set.

    precision = share of samples in the manifold of the reference
    recall    = share of the reference in the manifold of the samples
    density   = number of balls of the reference that contain a sample, on average, over k
    coverage  = share of the reference's balls that contain a sample

Precision and recall: Kynkäänniemi et al. 2019 (arXiv 1904.06991); density and coverage, which one outlier cannot
inflate: Naeem et al. 2020 (arXiv 2002.09797). torchmetrics has none of the four; sklearn finds neighbours on the CPU
only and without centring, and density needs all pairs, which are compared in tiles here.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from openedm.ground import checks

__all__ = ["Neighbours", "mean_error", "neighbours"]


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The four scores, one row at a time; each score is the mean of its rows.

    Attributes:
        precise: `(samples,)`, whether a sample is in the manifold of the reference.
        recalled: `(reference,)`, whether a row of the reference is in the manifold of the samples.
        dense: `(samples,)`, the number of balls of the reference that contain a sample, over k.
        covered: `(reference,)`, whether the ball around a row of the reference contains a sample.
    """

    precise: Bool[Tensor, " samples"]
    recalled: Bool[Tensor, " reference"]
    dense: Float[Tensor, " samples"]
    covered: Bool[Tensor, " reference"]

    @property
    def precision(self) -> float:
        """Between 0 and 1."""
        return float(self.precise.double().mean())

    @property
    def recall(self) -> float:
        """Between 0 and 1."""
        return float(self.recalled.double().mean())

    @property
    def density(self) -> float:
        """≥ 0; 1 is expected of two sets of one distribution, more where samples concentrate in dense regions."""
        return float(self.dense.mean())

    @property
    def coverage(self) -> float:
        """Between 0 and 1; 1 − (1/2)^k is expected of two large sets of one distribution and one size."""
        return float(self.covered.double().mean())


def neighbours(
    samples: Float[Tensor, "samples dim"],
    reference: Float[Tensor, "reference dim"],
    *,
    k: int = 3,
    k_density: int = 5,
    block: int = 2048,
) -> Neighbours:
    """Precision, recall, density and coverage of `samples` against `reference`, in Euclidean distance.

    Distances are computed in float64, a tile of `block` × `block` at a time: memory grows with the number of rows, not
    with its square. Scores depend on the numbers of rows; compare them at the same numbers only.

    >>> line = torch.arange(6.0)[:, None]
    >>> found = neighbours(line[:4] + 0.1, line, k=1, k_density=1)
    >>> found.precision, round(found.recall, 3), found.density, round(found.coverage, 3)
    (1.0, 0.833, 2.0, 0.833)

    Args:
        samples: `(samples, dim)`.
        reference: `(reference, dim)`.
        k: which neighbour is the edge of a ball, for precision and recall.
        k_density: likewise, for density and coverage.
        block: rows of a tile.

    Raises:
        ValueError: another number of features on either side, or too few rows for `k` or `k_density` neighbours.
    """
    checks.at_least("k", k, 1)
    checks.at_least("k_density", k_density, 1)
    checks.at_least("block", block, 1)
    if samples.shape[1] != reference.shape[1]:
        raise ValueError(
            f"samples and reference must have as many features, got {samples.shape[1]} and {reference.shape[1]}"
        )
    checks.at_least("the number of samples", len(samples), k + 1)
    checks.at_least("the number of rows of reference", len(reference), max(k, k_density) + 1)
    # Distances are differences of squares: the closer the origin, the smaller their rounding.
    centre = reference.double().mean(0)
    x, y = samples.double() - centre, reference.double() - centre
    radii_x = _radii(x, k, block)[:, k - 1]
    balls = _radii(y, max(k, k_density), block)
    radii_y, radii_density = balls[:, k - 1], balls[:, k_density - 1]
    precise = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    recalled = torch.zeros(len(y), dtype=torch.bool, device=x.device)
    covered = torch.zeros(len(y), dtype=torch.bool, device=x.device)
    dense = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for rows, columns, squares in _tiles(x, y, block):
        in_ball = squares <= radii_density[columns]
        precise[rows] |= (squares <= radii_y[columns]).any(1)
        recalled[columns] |= (squares <= radii_x[rows, None]).any(0)
        covered[columns] |= in_ball.any(0)
        dense[rows] += in_ball.sum(1)
    return Neighbours(precise.cpu(), recalled.cpu(), dense.cpu() / k_density, covered.cpu())


def mean_error(rows: Float[Tensor, " rows"] | Bool[Tensor, " rows"]) -> float:
    """The standard error of a mean, the limit of its bootstrap: the standard deviation of the rows over √n.

    Of a share that is 0 or 1 the deviation is 0, which says nothing of the error: then that of Agresti and Coull 1998,
    as if two more rows counted and two did not.

    For recall, density and coverage it is the error with the centres of the balls held fixed: too small by a fifth to a
    third, since other images would have other balls.
    """
    n, error = len(rows), float(rows.double().std(correction=0)) / math.sqrt(len(rows))
    return math.sqrt(2 * (n + 2)) / (n + 4) ** 1.5 if error == 0 and rows.dtype == torch.bool else error


def _radii(x: Float64[Tensor, "rows dim"], k: int, block: int) -> Float64[Tensor, "rows k"]:
    """Squared distances of each row to its 1st … k-th nearest among the others."""
    nearest = x.new_full((len(x), k), torch.inf)
    for rows, columns, squares in _tiles(x, x, block):
        if rows == columns:
            squares.fill_diagonal_(torch.inf)
        nearest[rows] = torch.cat([nearest[rows], squares], 1).topk(k, dim=1, largest=False).values
    return nearest


def _tiles(
    x: Float64[Tensor, "m dim"], y: Float64[Tensor, "n dim"], block: int
) -> Iterator[tuple[slice, slice, Float64[Tensor, "rows columns"]]]:
    """Squared distances between rows of x and y; distances within rounding of the squares count as 0."""
    norms_x, norms_y = x.square().sum(1), y.square().sum(1)
    rounding = 8 * torch.finfo(x.dtype).eps
    for i in range(0, len(x), block):
        for j in range(0, len(y), block):
            rows, columns = slice(i, i + block), slice(j, j + block)
            scale = norms_x[rows, None] + norms_y[columns]
            squares = scale - 2 * x[rows] @ y[columns].T
            yield rows, columns, torch.where(squares > rounding * scale, squares, 0)
