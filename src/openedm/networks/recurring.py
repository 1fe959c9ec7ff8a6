"""Which values of a column recur where others do not, and their probabilities beside those of all others."""

import math

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

__all__ = ["MOST", "all_recurring", "cut_off", "is_at", "log_shares", "recurring"]

MOST = 2
"""Values that recur in a column: a limit below and one above, or no and yes."""

LEAST_TIMES = 5
"""How often a value recurs at least, also in multiples of how often all others do: numbers of few digits all recur."""

SAME = 1e-6
"""Relative difference up to which float32 numbers are the same."""

FARTHEST = 1e4
"""Values are cut off there, as data that are far out."""

NEVER = -1e4
"""ln of a probability that is zero; minus infinity has no gradient."""


def recurring(values: Float[Tensor, " rows"]) -> tuple[float, ...]:
    """The one or two values of a column that recur, in order, where others do not; none where all or none do.

    Args:
        values: finite.
    """
    different, times = torch.unique(values, return_counts=True)
    order = times.argsort(descending=True, stable=True)
    often = [*times[order[: MOST + 1]].tolist(), *(0,) * (MOST + 1)]
    for count in range(min(MOST, len(different)), 0, -1):
        if often[count - 1] >= LEAST_TIMES * max(1, often[count]):
            return tuple(sorted(different[order[:count]].tolist()))
    return ()


def all_recurring(y: Float[Tensor, "rows columns"]) -> Float64[Tensor, "columns most"]:
    """The values that recur in each column, as float32 numbers, with NaN for none."""
    found = [recurring(column) for column in y.float().T]
    rows = [(*each, *(math.nan,) * (MOST - len(each))) for each in found]
    return torch.tensor(rows, dtype=torch.float64, device=y.device)


def cut_off(y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Values no farther than where data are cut off."""
    return y.clamp(-FARTHEST, FARTHEST)


def is_at(y: Float[Tensor, "*batch"], atoms: Float[Tensor, "*most"]) -> Bool[Tensor, "*batch most"]:
    """Which of the values that recur each number is."""
    return (y[..., None] - atoms).abs() <= SAME * (1 + atoms.abs())


def log_shares(
    odds: Float[Tensor, "*batch most"], atoms: Float[Tensor, "*most"], rest: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch shares"]:
    """ln of the probabilities of what recurs, and as the last of all others.

    Args:
        odds: logits of what recurs; those of values that there are not are ignored.
        atoms: the values, NaN for none.
        rest: the logit of all others.
    """
    return torch.cat([odds.masked_fill(atoms.isnan(), NEVER), rest[..., None]], -1).log_softmax(-1)
