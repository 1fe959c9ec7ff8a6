"""Fidelity and diversity told apart: which samples lie among real ones, and which real ones lie among samples.

A set's manifold is the union of balls about its points, each out to the point's k-th nearest neighbour in the set.

    precision = share of samples in the manifold of the reference
    recall    = share of the reference in the manifold of the samples
    density   = how many balls of the reference hold a sample, on average, over k
    coverage  = share of the reference's balls that hold a sample

Precision and recall: Kynkäänniemi et al. 2019 (arXiv 1904.06991); density and coverage, which one outlier cannot
inflate: Naeem et al. 2020 (arXiv 2002.09797).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from openedm.ground import checks


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The four scores, one row at a time; each score is the mean of its rows.

    Attributes:
        precise: `(samples,)`, whether a sample is in the manifold of the reference.
        recalled: `(reference,)`, whether a row of the reference is in the manifold of the samples.
        dense: `(samples,)`, the number of balls of the reference that hold a sample, over k.
        covered: `(reference,)`, whether the ball about a row of the reference holds a sample.
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
        """≥ 0; 1 is expected of two sets of one distribution, and more where samples crowd where data are dense."""
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
        ValueError: another number of features on either side, or fewer rows than neighbours are asked for.
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
    # Distances are differences of squares: the closer the origin, the less is lost.
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


def _radii(x: Tensor, k: int, block: int) -> Tensor:
    """Squared distances of each row to its 1st … k-th nearest among the others."""
    nearest = x.new_full((len(x), k), torch.inf)
    for rows, columns, squares in _tiles(x, x, block):
        if rows == columns:
            squares.fill_diagonal_(torch.inf)
        nearest[rows] = torch.cat([nearest[rows], squares], 1).topk(k, dim=1, largest=False).values
    return nearest


def _tiles(x: Tensor, y: Tensor, block: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Squared distances between rows of x and y; what is rounding beside the squares themselves counts as 0."""
    norms_x, norms_y = x.square().sum(1), y.square().sum(1)
    rounding = 8 * torch.finfo(x.dtype).eps
    for i in range(0, len(x), block):
        for j in range(0, len(y), block):
            rows, columns = slice(i, i + block), slice(j, j + block)
            scale = norms_x[rows, None] + norms_y[columns]
            squares = scale - 2 * x[rows] @ y[columns].T
            yield rows, columns, torch.where(squares > rounding * scale, squares, 0)
