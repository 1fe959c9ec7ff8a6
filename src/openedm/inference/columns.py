"""Columns of numbers brought near to unit Gaussians, one by one.

A column v becomes (g(v) − m)/s, with g one of v, ln v, asinh((v − c)/w), √(v + ½). The root is for
counts (non-negative integers), whose noise it makes even; ln for positive columns and asinh for others where it brings
skewness and kurtosis clearly nearer to a Gaussian's; otherwise nothing is warped.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from openedm.ground import checks
from openedm.ground.choices import Choice

__all__ = ["Columns", "is_count"]

Map = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A function of values, c and w."""


class Warp(NamedTuple):
    """A kind of column: g(v), v of g, ln |dg/dv|.

    Attributes:
        cost: how much nearer to a Gaussian a column must become before it is warped; the simpler of two costs less.
    """

    forward: Map
    inverse: Map
    log_slope: Map
    cost: float


WARPS: Mapping[str, Warp] = {
    "identity": Warp(lambda v, c, w: v, lambda g, c, w: g, lambda v, c, w: torch.zeros_like(v), 0.0),
    "log": Warp(
        lambda v, c, w: v.clamp_min(1e-300).log(),
        lambda g, c, w: g.exp(),
        lambda v, c, w: -v.clamp_min(1e-300).log(),
        0.5,
    ),
    "asinh": Warp(
        lambda v, c, w: ((v - c) / w).asinh(),
        lambda g, c, w: g.sinh() * w + c,
        lambda v, c, w: -0.5 * (1 + ((v - c) / w).square()).log() - w.log(),
        1.0,
    ),
    "root": Warp(
        lambda v, c, w: (v.clamp_min(-0.5) + 0.5).sqrt(),
        lambda g, c, w: g.clamp_min(0).square() - 0.5,
        lambda v, c, w: -math.log(2) - 0.5 * (v.clamp_min(-0.499999) + 0.5).log(),
        0.0,
    ),
}


@dataclass(frozen=True)
class Columns(Choice):
    """An elementwise map of vectors to about zero mean and unit variance, and back.

    Args:
        kinds: of each column, a key of `WARPS`.
        centres, widths: c and w of each column.
        means, scales: m and s of each column; scales > 0.

    Raises:
        ValueError: lengths differ, an unknown kind, or a width or scale that is not > 0.

    >>> Columns.of(10.0 ** torch.linspace(-3, 3, 100)[:, None]).kinds
    ('log',)
    """

    kinds: tuple[str, ...]
    centres: tuple[float, ...]
    widths: tuple[float, ...]
    means: tuple[float, ...]
    scales: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("centres", "widths", "means", "scales"):
            if len(getattr(self, name)) != len(self.kinds):
                raise ValueError(f"{name} must hold {len(self.kinds)} numbers, got {len(getattr(self, name))}")
        for i, kind in enumerate(self.kinds):
            checks.one_of(f"kinds[{i}]", kind, WARPS)
            checks.positive(f"widths[{i}]", self.widths[i])
            checks.positive(f"scales[{i}]", self.scales[i])

    @classmethod
    def of(cls, values: Float[Tensor, "rows columns"], *, warp: bool = True) -> "Columns":
        """The map that suits these rows.

        Args:
            values: at least two rows, finite or NaN, which is left out. A column without variance gets s = 1.
            warp: whether a logarithm, a root or asinh may be chosen.
        """
        columns = [_fitted_column(column[~column.isnan()], warp) for column in values.double().T]
        return cls(*zip(*columns, strict=True))

    @classmethod
    def plain(cls, count: int) -> "Columns":
        """The map that leaves so many columns as they are."""
        zeros, ones = (0.0,) * count, (1.0,) * count
        return cls(("identity",) * count, zeros, ones, zeros, ones)

    @classmethod
    def alike(cls, values: Float[Tensor, "rows columns"], *, warp: bool = True) -> "Columns":
        """The map that suits these rows and treats all columns alike."""
        one, count = cls.of(values.reshape(-1, 1), warp=warp), values.shape[1]
        return cls(*(getattr(one, f.name) * count for f in fields(cls)))

    @classmethod
    def logarithms(cls, values: Float[Tensor, "rows columns"]) -> "Columns":
        """The map that takes logarithms of all positive columns, and warps no other."""
        plain = cls.of(values, warp=False)
        kinds = tuple("log" if float(v.min()) > 0 else "identity" for v in values.T)
        warped = cls(kinds, plain.centres, plain.widths, (0.0,) * len(kinds), (1.0,) * len(kinds)).forward(values)
        scales = tuple(float(s) or 1.0 for s in warped.std(0))
        return cls(kinds, plain.centres, plain.widths, tuple(warped.mean(0).tolist()), scales)

    def forward(self, values: Float[Tensor, "*batch columns"]) -> Float64[Tensor, "*batch columns"]:
        """y, in float64."""
        means, scales = self._vectors(values, self.means, self.scales)
        return (self._by_kind("forward", values.double()) - means) / scales

    def inverse(self, y: Float[Tensor, "*batch columns"]) -> Float64[Tensor, "*batch columns"]:
        """v, in float64."""
        means, scales = self._vectors(y, self.means, self.scales)
        return self._by_kind("inverse", y.double() * scales + means)

    def log_det(self, values: Float[Tensor, "*batch columns"]) -> Float64[Tensor, "*batch"]:
        """Σ ln |dy/dv|."""
        (scales,) = self._vectors(values, self.scales)
        return (self._by_kind("log_slope", values.double()) - scales.log()).sum(-1)

    def _by_kind(self, name: str, values: Float64[Tensor, "*batch columns"]) -> Float64[Tensor, "*batch columns"]:
        centres, widths = self._vectors(values, self.centres, self.widths)
        result = values
        for kind in set(self.kinds):
            chosen = torch.tensor([k == kind for k in self.kinds], device=values.device)
            result = torch.where(chosen, getattr(WARPS[kind], name)(values, centres, widths), result)
        return result

    def _vectors(self, like: Tensor, *numbers: Sequence[float]) -> list[Float64[Tensor, " columns"]]:
        return [torch.tensor(values, dtype=torch.float64, device=like.device) for values in numbers]


def _fitted_column(v: Float64[Tensor, " rows"], warp: bool) -> tuple[str, float, float, float, float]:
    """The kind, c, w, m and s of one column."""
    if len(v) < 2:
        return "identity", 0.0, 1.0, 0.0, 1.0
    centre = float(v.median())
    spread = float((v - centre).abs().median()) or float(v.std()) or 1.0
    kinds = ["identity"]
    if warp and float(v.std()) > 0:
        if not is_count(v):
            kinds += ["log", "asinh"] if float(v.min()) > 0 else ["asinh"]
        else:
            kinds = ["root"] if float(v.max()) > 1 else ["identity", "asinh"]
    c, w = torch.tensor([centre, spread], dtype=torch.float64, device=v.device)
    warped = {kind: WARPS[kind].forward(v, c, w) for kind in kinds}
    kind = min(kinds, key=lambda kind: _distance_from_gaussian(warped[kind]) + WARPS[kind].cost)
    g = warped[kind]
    return kind, centre, spread, float(g.mean()), float(g.std()) or 1.0


def _distance_from_gaussian(g: Float64[Tensor, " rows"]) -> float:
    """|skewness| + |ln(kurtosis/3)|."""
    unit = (g - g.mean()) / g.std()
    return abs(float(unit.pow(3).mean())) + abs(math.log(float(unit.pow(4).mean()) / 3))


def is_count(v: Float[Tensor, " rows"]) -> bool:
    """Whether a column holds non-negative integers only."""
    return bool((v == v.round()).all()) and float(v.min()) >= 0
