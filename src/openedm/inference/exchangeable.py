"""Whether the columns of x are draws of one distribution, whose order carries no information about θ.

    z = Φ⁻¹ of ranks among all values;  E z_j, E z_j², corr(z_j, u_m), corr(z_j², u_m), corr(z_i, z_j), corr(z_i², z_j²)

are then the same for all columns j and pairs i ≠ j. Deviations of columns that are too large by a χ² test, or of a pair
by `CRITICAL` standard errors (more where pairs are many), say that they are not.
Sorted values, the order statistics, keep all the information, and let networks see at once what is extreme or central.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from scipy.stats import chi2, norm
from torch import Tensor

__all__ = ["are_exchangeable", "are_steady"]

CRITICAL = 5.0
"""Standard errors that the largest of some hundreds of deviations hardly ever reaches by chance."""

MANY = 12
"""Columns above which pairs are so many that some are far off by chance."""

RARE = 1e-5
"""How often the largest of all deviations of pairs would be beyond by chance, if they were normal: tails are longer."""

SIGNIFICANCE, EXCESS = 1e-6, 1.5
"""Of the χ² test, and how much larger the variance of a correlation may be than that of independent numbers."""

MAX_ROWS, MAX_COLUMNS = 20_000, 512
FEWEST = 8
"""Columns of a process of which a steady state can be told."""


def are_exchangeable(x: Float[Tensor, "rows columns"], u: Float[Tensor, "rows d"]) -> bool:
    """Whether the columns of x seem to be exchangeable, also in how they depend on u.

    Args:
        x: rows of data; one column, or more than 512, are not.
        u: the parameters of each row.
    """
    return 2 <= x.shape[1] <= MAX_COLUMNS and _are_alike(x[:MAX_ROWS], u[:MAX_ROWS], steady=False)


def are_steady(x: Float[Tensor, "rows columns"], u: Float[Tensor, "rows d"]) -> bool:
    """Whether the columns of x seem to be a process in its steady state: correlations of a pair depend on its distance.

    Args:
        x: rows of data; fewer than eight columns, or more than 512, are not.
        u: the parameters of each row.
    """
    return FEWEST <= x.shape[1] <= MAX_COLUMNS and _are_alike(x[:MAX_ROWS], u[:MAX_ROWS], steady=True)


def _are_alike(x: Float[Tensor, "rows columns"], u: Float[Tensor, "rows d"], *, steady: bool) -> bool:
    """Whether columns agree in what depends on one, and pairs of them, or with `steady` those of one distance."""
    x, u = x.double(), _standardised(u.double())
    z = _normal_scores(x)
    root, count = math.sqrt(len(x)), math.comb(x.shape[1], 2)
    many = (
        steady or x.shape[1] > MANY
    )  # a steady state is only tried, while the order of columns would be lost for good
    critical = max(CRITICAL, float(norm.isf(RARE / count))) if many else CRITICAL
    squares = (z.square() - 1) / math.sqrt(2)
    moments = [z.mean(0), squares.mean(0)]
    if any(_differ(moment[:, None], len(x)) for moment in moments):
        return False
    for feature in (_standardised(z), _standardised(squares)):
        if _differ(feature.T @ u / len(x), len(x)):
            return False
        pairs = feature.T @ feature / len(x)
        errors = torch.ones_like(pairs)
        if many:  # products of columns that are much alike vary more than those of independent ones
            errors = (feature.square().T @ feature.square() / len(x) - pairs.square()).clamp_min(1.0).sqrt()
        distances = range(1, x.shape[1])
        both = [torch.stack([each.diagonal(k) for each in (pairs, errors)]) for k in distances]
        groups = both if steady else [torch.cat(both, 1)]
        if any(float(((p - p.mean()).abs() / error).max()) * root > critical for p, error in groups):
            return False
        if not steady and _of_neighbours(both, groups[0][0].mean()) * root > critical:
            return False
    return True


def _of_neighbours(diagonals: Sequence[Float[Tensor, "2 pairs"]], mean: Float[Tensor, ""]) -> float:
    """The largest deviation of the mean of all pairs at one distance, times √rows: what a series shows best.

    Args:
        diagonals: for each distance 1, 2, … the pairs of columns, and the errors of these times √rows.
        mean: of all pairs.
    """
    return max(float((p.mean() - mean).abs() / error.mean()) * math.sqrt(len(p)) for p, error in diagonals)


def _normal_scores(x: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """Φ⁻¹ of the mean rank of each value among all; equal values get equal scores."""
    flat = x.flatten()
    ordered = flat.sort().values
    low, high = torch.searchsorted(ordered, flat), torch.searchsorted(ordered, flat, right=True)
    scores: Tensor = torch.special.ndtri((low + high).double() / (2 * len(flat)))
    return scores.reshape(x.shape)


def _standardised(values: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    return (values - values.mean(0)) / values.std(0).clamp_min(1e-12)


def _differ(values: Float[Tensor, "columns numbers"], rows: int) -> bool:
    """Whether numbers with a variance of 1/rows differ between columns, one of them at least."""
    statistic = rows * (values - values.mean(0)).square().sum(0)
    return float(statistic.max()) > EXCESS * float(chi2.isf(SIGNIFICANCE / values.shape[1], len(values) - 1))
