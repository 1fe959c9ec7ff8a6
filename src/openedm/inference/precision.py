"""How precisely numbers must be kept: float32 has 24 binary digits, and neither numbers above 3e38 nor below 1e-38.

    e = |v − float32(v)|,      float64 where e > LOSS · std(v) in some column

A luminosity in erg/s, a date in days since an epoch long ago, or a small signal on a large offset are kept in float64.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["LOSS", "ROUNDING", "as_precise_as_needed", "coarse_columns", "varies"]

LOSS = 1e-4
"""Rounding to float32 may move a number by this share of its column's standard deviation."""

COARSE = 0.02
"""A column of float32 is coarse where neighbouring numbers differ by a larger share of its standard deviation."""

ROUNDING = {torch.float32: 5e-7, torch.float64: 1e-12}
"""A column whose numbers differ by a smaller share of them holds one number, with errors of rounding."""

MAX_ROWS = 10_000
"""Rows that tell a column's standard deviation."""


def as_precise_as_needed(values: Float[Tensor, "rows *event"]) -> Float[Tensor, "rows *event"]:
    """The numbers in float32, or as they are where they are float64 and float32 would lose what a column tells.

    >>> small = torch.linspace(0, 1, 100, dtype=torch.float64)[:, None]
    >>> as_precise_as_needed(small).dtype, as_precise_as_needed(1e6 + small).dtype
    (torch.float32, torch.float64)
    """
    rounded = values.float()
    if values.dtype != torch.float64 or values.numel() == 0:
        return rounded
    flat, near = (v[:MAX_ROWS].flatten(1) for v in (values, rounded))
    lost = (flat - near.double()).abs().nan_to_num(0.0).amax(0) > LOSS * _deviations(flat)
    lost &= varies(flat)
    beyond = bool((rounded.isinf() & values.isfinite()).any())
    return values if beyond or bool(lost.any()) else rounded


def varies(values: Float[Tensor, "rows columns"]) -> Bool[Tensor, " columns"]:
    """Which columns hold numbers that differ by more than errors of rounding; NaN counts as a number of its own."""
    first = values[:1]
    return ((values - first).abs() > ROUNDING.get(values.dtype, 0.0) * first.abs()).any(0) | (
        values.isfinite() != first.isfinite()
    ).any(0)


def coarse_columns(values: Float[Tensor, "rows columns"]) -> list[int]:
    """The columns that vary, are not whole numbers, and of which float32 tells few numbers apart."""
    part = values[:MAX_ROWS].float()
    spacing = torch.finfo(torch.float32).eps * part.abs().nan_to_num(0.0, 0.0, 0.0).amax(0)
    coarse = (spacing > COARSE * _deviations(part.double())) & varies(part)
    fractions = (part != part.round()).any(0)
    return (coarse & fractions & (values == values.float()).all(0)).nonzero()[:, 0].tolist()


def _deviations(values: Float[Tensor, "rows columns"]) -> Float[Tensor, " columns"]:
    """Standard deviations of what is finite in each column, without overflow."""
    finite = values.isfinite()
    count = finite.sum(0).clamp_min(1)
    known = values.masked_fill(~finite, 0.0)
    size = known.abs().amax(0)
    scale = torch.where(size > 0, size, 1.0)
    unit = known / scale
    rest = (unit - unit.sum(0) / count).masked_fill(~finite, 0.0)
    return (rest.square().sum(0) / count).sqrt() * scale
