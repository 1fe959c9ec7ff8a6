"""Which columns of x have to do neither with θ nor with the columns that have: they tell nothing about the posterior.

If x_U is independent of (θ, x_K), then p(θ | x) = p(θ | x_K). Columns are taken as points of a graph, and joined where
tests of ranks see a dependence; those that no path joins to θ are U.

    z = ranks of a column, a = ranks of |z|,   t = products of one or two ranks of parameters, all of mean 0
    a column and θ:      corr(z_j, t),  corr(a_j, t)
    two columns:         corr(z_i, z_j),  corr(a_i, a_j),  corr(z_i, a_j)
    two columns and θ:   corr(z_i z_j, t): noise that only both columns together show

Many columns that each depend on θ too little to be seen may tell much together: a regression of t on all of U is the
last test, and where it explains more than chance does, every column is kept. So all of them are where there are too few
simulations for that test. What only three columns together show is not seen.
"""

import math

import torch
from jaxtyping import Bool, Float, Float64
from scipy.stats import f as f_distribution
from scipy.stats import norm
from torch import Tensor

__all__ = ["unrelated_columns"]

MIN_COLUMNS, MAX_COLUMNS = 8, 1024
"""Of fewer columns networks find out themselves; of more the products of two would be too many."""

SHARE = 0.5
"""At least so many of the columns must be unrelated, else all are kept: a few of them do no harm."""

CHANCE = 1e-3
"""Probability that a test of all columns, of all pairs or of all products joins any that are independent. A column that
is missed has a correlation of about 5/√n, and tells about 13/n nats."""

SIGNIFICANCE = 0.01
"""Of the regression on all columns that are to be left out."""

MAX_ROWS, MAX_PRODUCTS = 20_000, 10_000_000_000
"""How many rows are looked at, and multiplications for pairs of columns, above which there are fewer rows."""


def unrelated_columns(x: Float[Tensor, "rows columns"], u: Float[Tensor, "rows d"]) -> list[int]:
    """The columns of x that tell nothing about u; none where they are fewer than half, or where it is not certain.

    Args:
        x: rows of data, finite; no column is constant.
        u: the parameters of each row.
    """
    count = x.shape[1]
    if not MIN_COLUMNS <= count <= MAX_COLUMNS:
        return []
    targets = _targets(_scores(u))
    rows = min(len(x), MAX_ROWS, MAX_PRODUCTS // (count * count * targets.shape[1]))
    targets, z = targets[:rows], _scores(x[:rows])
    sizes = _scores(z.abs())
    each = _strongest(z, targets).maximum(_strongest(sizes, targets))
    direct = each > _critical(2 * count * targets.shape[1])
    direct |= _together(z, targets, ~direct)
    related = _connected(direct, _joined(z, sizes))
    rest = (~related).nonzero()[:, 0]
    if len(rest) < SHARE * count or len(rest) == count:
        return []
    known, unknown = (torch.cat([z[:, part], sizes[:, part]], 1) for part in (related, ~related))
    return [] if _explains(unknown, known, targets) else rest.tolist()


def _critical(tests: int) -> float:
    """Standard errors that independent numbers exceed in any of so many tests with the probability `CHANCE`."""
    return float(norm.isf(CHANCE / (2 * tests)))


def _scores(values: Float[Tensor, "rows columns"]) -> Float64[Tensor, "rows columns"]:
    """The ranks of the values in their column, standardised: bounded numbers, so that few rows make no large products.

    Equal values get their mean rank.
    """
    columns = values.double().T.contiguous()
    ordered = columns.sort(1).values
    low, high = torch.searchsorted(ordered, columns), torch.searchsorted(ordered, columns, right=True)
    return _standardised((low + high).double().T)


def _standardised(values: Float64[Tensor, "rows columns"]) -> Float64[Tensor, "rows columns"]:
    return (values - values.mean(0)) / values.std(0).clamp_min(1e-12)


def _targets(v: Float64[Tensor, "rows d"]) -> Float64[Tensor, "rows targets"]:
    """t: the parameters, their sizes, and the products of two where they are not many."""
    d = v.shape[1]
    first, second = torch.triu_indices(d, d) if d <= 8 else torch.arange(d).expand(2, d)
    return _standardised(torch.cat([v, v[:, first] * v[:, second]], 1))


def _strongest(
    features: Float64[Tensor, "rows columns"], targets: Float64[Tensor, "rows targets"]
) -> Float64[Tensor, " columns"]:
    """The largest |correlation| of each column with a target, in standard errors."""
    return (features.T @ targets).abs().amax(1) / math.sqrt(len(features))


def _together(
    z: Float64[Tensor, "rows columns"], targets: Float64[Tensor, "rows targets"], alone: Bool[Tensor, " columns"]
) -> Bool[Tensor, " columns"]:
    """The columns whose product with another depends on a target, one of the two from those given."""
    found = torch.zeros_like(alone)
    critical = _critical(len(alone) ** 2 * targets.shape[1] // 2)
    for j in alone.nonzero()[:, 0].tolist():
        products = z * z[:, j : j + 1]
        errors = (products.square().T @ targets.square()).sqrt()  # of sums of terms that depend on each other
        strong = ((products.T @ targets).abs() / errors.clamp_min(1e-12)).amax(1) > critical
        strong[j] = False
        if bool(strong.any()):
            found |= strong
            found[j] = True
    return found


def _joined(
    z: Float64[Tensor, "rows columns"], sizes: Float64[Tensor, "rows columns"]
) -> Bool[Tensor, "columns columns"]:
    """Which columns depend on each other."""
    pairs = torch.stack([z.T @ z, sizes.T @ sizes, z.T @ sizes, sizes.T @ z])
    return (pairs.abs() / math.sqrt(len(z)) > _critical(2 * z.shape[1] ** 2)).any(0)


def _connected(start: Bool[Tensor, " columns"], joined: Bool[Tensor, "columns columns"]) -> Bool[Tensor, " columns"]:
    """The columns that some path joins to those at its start."""
    reached = start.clone()
    while True:
        further = reached | joined[reached].any(0)
        if bool((further == reached).all()):
            return reached
        reached = further


def _explains(
    inputs: Float64[Tensor, "rows inputs"],
    known: Float64[Tensor, "rows others"],
    targets: Float64[Tensor, "rows targets"],
) -> bool:
    """Whether a regression on the inputs explains what one on the others leaves of a target, by an F test.

    Also where there are too few rows to tell: fewer than three for each input.
    """
    rows, freedom = len(inputs), len(inputs) - inputs.shape[1] - known.shape[1] - 1
    if rows < 3 * (inputs.shape[1] + known.shape[1]):
        return True
    base = torch.cat([known, torch.ones_like(inputs[:, :1])], 1)
    left = targets - base @ torch.linalg.lstsq(base, targets, driver="gelsd").solution
    more = torch.cat([base, inputs], 1)
    rest = targets - more @ torch.linalg.lstsq(more, targets, driver="gelsd").solution
    gained = (left.square().sum(0) - rest.square().sum(0)) / inputs.shape[1]
    ratio = gained / (rest.square().sum(0) / freedom).clamp_min(1e-300)
    return float(ratio.max()) > float(f_distribution.isf(SIGNIFICANCE / targets.shape[1], inputs.shape[1], freedom))
