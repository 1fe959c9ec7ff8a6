"""Standardisation of parameters and data: column by column, with a logarithm, a root or asinh where tails ask for it.

    y = (g(v) − m)/s,   g one of   v,   ln v,   asinh((v − c)/w),   √(v + ½)

The root is for counts (non-negative integers), whose noise it makes even; ln for positive columns and asinh for others
where it brings skewness and kurtosis clearly nearer to a Gaussian's; otherwise nothing is bent.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from openedm.ground import checks
from openedm.ground.choices import Choice

KINDS = ("identity", "log", "asinh", "root")
COSTS = {"identity": 0.0, "root": 0.0, "log": 0.5, "asinh": 1.0}
"""How much nearer to a Gaussian a column must become before it is bent; of two bends the simpler one."""


@dataclass(frozen=True)
class Columns(Choice):
    """An elementwise map of vectors to about zero mean and unit variance, and back.

    Args:
        kinds: of each column, one of `KINDS`.
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
            checks.one_of(f"kinds[{i}]", kind, KINDS)
            checks.positive(f"widths[{i}]", self.widths[i])
            checks.positive(f"scales[{i}]", self.scales[i])

    @classmethod
    def of(cls, values: Float[Tensor, "rows columns"], *, bend: bool = True) -> "Columns":
        """The map that suits these rows.

        Args:
            values: finite, at least two rows. A column without variance gets s = 1.
            bend: whether a logarithm, a root or asinh may be chosen.
        """
        columns = [_Column.of(column, bend) for column in values.double().T]
        return cls(*(tuple(getattr(c, name) for c in columns) for name in _Column.__dataclass_fields__))

    @classmethod
    def logarithms(cls, values: Float[Tensor, "rows columns"]) -> "Columns":
        """The map that takes logarithms of all positive columns, and bends no other."""
        plain = cls.of(values, bend=False)
        kinds = tuple("log" if float(v.min()) > 0 else "identity" for v in values.T)
        bent = cls(kinds, plain.centres, plain.widths, (0.0,) * len(kinds), (1.0,) * len(kinds)).forward(values)
        scales = [float(s) or 1.0 for s in bent.std(0)]
        return cls(kinds, plain.centres, plain.widths, tuple(bent.mean(0).tolist()), tuple(scales))

    def forward(self, values: Float[Tensor, "*batch columns"]) -> Float64[Tensor, "*batch columns"]:
        """y, in float64."""
        v, (c, w, m, s) = values.double(), self._numbers(values)
        bent = {
            "identity": lambda: v,
            "log": lambda: v.clamp_min(1e-300).log(),
            "asinh": lambda: ((v - c) / w).asinh(),
            "root": lambda: (v.clamp_min(-0.5) + 0.5).sqrt(),
        }
        return (self._by_kind(v, bent) - m) / s

    def inverse(self, y: Float[Tensor, "*batch columns"]) -> Float64[Tensor, "*batch columns"]:
        """v, in float64."""
        _, (c, w, m, s) = y, self._numbers(y)
        g = y.double() * s + m
        back = {
            "identity": lambda: g,
            "log": lambda: g.exp(),
            "asinh": lambda: g.sinh() * w + c,
            "root": lambda: g.clamp_min(0).square() - 0.5,
        }
        return self._by_kind(g, back)

    def log_det(self, values: Float[Tensor, "*batch columns"]) -> Float64[Tensor, "*batch"]:
        """Σ ln |dy/dv|."""
        v, (c, w, _, s) = values.double(), self._numbers(values)
        slopes = {
            "identity": lambda: torch.zeros_like(v),
            "log": lambda: -v.clamp_min(1e-300).log(),
            "asinh": lambda: -0.5 * (1 + ((v - c) / w).square()).log() - w.log(),
            "root": lambda: -math.log(2) - 0.5 * (v.clamp_min(-0.499999) + 0.5).log(),
        }
        return (self._by_kind(v, slopes) - s.log()).sum(-1)

    def _numbers(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        c, w, m, s = (
            torch.tensor(numbers, dtype=torch.float64, device=like.device)
            for numbers in (self.centres, self.widths, self.means, self.scales)
        )
        return c, w, m, s

    def _by_kind(self, values: Tensor, forms: dict[str, Any]) -> Tensor:
        result = values
        for kind in set(self.kinds):
            mine = torch.tensor([k == kind for k in self.kinds], device=values.device)
            result = torch.where(mine, forms[kind](), result)
        return result


@dataclass
class _Column:
    """The choice for one column."""

    kinds: str
    centres: float
    widths: float
    means: float
    scales: float

    @classmethod
    def of(cls, v: Float64[Tensor, " rows"], bend: bool) -> "_Column":
        centre = float(v.median())
        spread = float((v - centre).abs().median()) or float(v.std()) or 1.0
        choices = {"identity": v}
        if bend and float(v.std()) > 0:
            if is_count(v):
                choices = {"root": (v + 0.5).sqrt()} if float(v.max()) > 1 else choices
            elif float(v.min()) > 0:
                choices["log"] = v.log()
            if "root" not in choices:
                choices["asinh"] = ((v - centre) / spread).asinh()
        scores = {kind: _bentness(g) + COSTS[kind] for kind, g in choices.items()}
        kind = min(scores, key=lambda kind: scores[kind])
        g = choices[kind]
        return cls(kind, centre, spread, float(g.mean()), float(g.std()) or 1.0)


def is_count(v: Float[Tensor, " rows"]) -> bool:
    """Whether a column holds non-negative integers only."""
    return bool((v == v.round()).all()) and float(v.min()) >= 0


def _bentness(g: Float64[Tensor, " rows"]) -> float:
    """How far skewness and kurtosis are from a Gaussian's: |skewness| + |ln(kurtosis/3)|."""
    unit = (g - g.mean()) / g.std()
    return abs(float(unit.pow(3).mean())) + abs(math.log(float(unit.pow(4).mean()) / 3))


def constant_columns(values: Float[Tensor, "rows columns"]) -> list[int]:
    """The columns without variance."""
    return (values == values[:1]).all(0).nonzero()[:, 0].tolist()


def duplicated_columns(values: Float[Tensor, "rows columns"]) -> list[tuple[int, int]]:
    """Pairs (first, later) of columns that hold the same numbers, each later one once; constant columns apart."""
    seen: dict[bytes, int] = {}
    pairs = []
    constant = set(constant_columns(values))
    for i, column in enumerate(values.T.contiguous().cpu()):
        if i in constant:
            continue
        first = seen.setdefault(column.numpy().tobytes(), i)
        if first != i:
            pairs.append((first, i))
    return pairs


def named(indices: Sequence[int], most: int = 8) -> str:
    """Indices for an error message: the first few, and how many more."""
    more = f" and {len(indices) - most} more" if len(indices) > most else ""
    return ", ".join(map(str, indices[:most])) + more
