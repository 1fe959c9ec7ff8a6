"""The coordinates that networks work in: bijection and standardisation of θ, standardisation and summaries of x.

θ → z = bijection(θ) → u = columns(z),      ln p(θ) = ln p(u) + Σ ln |dz/dθ| + Σ ln |du/dz|
x → y = columns(x), or least-squares estimates of (u, u²) from (y, y²) where x has many columns
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from openedm.ground.choices import Choice, from_config, to_config
from openedm.inference.absent import Absence
from openedm.inference.autocorrelations import LAGS, autocorrelations, num_features
from openedm.inference.bijections import Bijection
from openedm.inference.columns import Columns, is_count

__all__ = [
    "Coordinates",
    "DataMap",
    "ParameterMap",
    "within_reach",
]

REACH = 1e4
"""Standard deviations from the mean; of n simulations none is farther than √n."""


@dataclass(frozen=True)
class Coordinates(Choice):
    """Variables ↔ unbounded coordinates of mean 0 and standard deviation 1.

    Args:
        bijection: of the variables' supports onto R^d.
        columns: the standardisation of these, with or without a warp.
        precise: whether the variables are float64, where float32 would not tell their values apart.
    """

    bijection: Bijection
    columns: Columns
    precise: bool = field(default=False, kw_only=True)

    @classmethod
    def fitted(
        cls,
        variables: Float64[Tensor, "samples d"],
        bijection: Bijection,
        warp: Sequence[bool],
        *,
        precise: bool = False,
    ) -> "Coordinates":
        """Coordinates that suit the samples; positive variables with long tails get a logarithm, as a support above 0.

        Args:
            variables: samples, inside the bijection's support.
            bijection: of known supports.
            warp: the variables whose tails may be warped, which have no known support.
            precise: as for the class.
        """
        tails = Columns.of(variables)
        logarithm = [may and kind == "log" for may, kind in zip(warp, tails.kinds, strict=True)]
        low = [0.0 if log else end for log, end in zip(logarithm, bijection.low, strict=True)]
        bijection = Bijection(low, bijection.high)
        plain = Columns.of(bijection.forward(variables), warp=False)
        warped = [may and not log for may, log in zip(warp, logarithm, strict=True)]
        sources = [tails if take else plain for take in warped]
        chosen = (tuple(getattr(of, f.name)[i] for i, of in enumerate(sources)) for f in fields(Columns))
        return Coordinates(bijection, Columns(*chosen), precise=precise)

    def part(self, indices: Sequence[int]) -> "Coordinates":
        """The coordinates of some of the variables, in this order."""
        low, high = ([ends[i] for i in indices] for ends in (self.bijection.low, self.bijection.high))
        columns = (tuple(getattr(self.columns, f.name)[i] for i in indices) for f in fields(Columns))
        return Coordinates(Bijection(low, high), Columns(*columns), precise=self.precise)

    def forward(self, variables: Float[Tensor, "*batch d"]) -> Float64[Tensor, "*batch d"]:
        """u; NaN outside the support."""
        return self.columns.forward(self.bijection.forward(variables.double()))

    @property
    def number_format(self) -> torch.dtype:
        """The number format of variables that are made of u."""
        return torch.float64 if self.precise else torch.float32

    def inverse(self, u: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """The variables, in `number_format`, strictly inside their supports."""
        return self.bijection.clamp(self.bijection.inverse(self.columns.inverse(u)).to(self.number_format))

    def log_det(self, variables: Float[Tensor, "*batch d"]) -> Float64[Tensor, "*batch"]:
        """ln |du/dv|."""
        return self._log_det_at(self.bijection.forward(variables.double()))

    def log_det_at(self, u: Float[Tensor, "*batch d"]) -> Float64[Tensor, "*batch"]:
        """ln |du/dv| at the variables of u; it needs no quantile function."""
        return self._log_det_at(self.columns.inverse(u))

    def _log_det_at(self, z: Float64[Tensor, "*batch d"]) -> Float64[Tensor, "*batch"]:
        return self.bijection.log_det_at(z) + self.columns.log_det(z)


@dataclass(frozen=True)
class ParameterMap(Coordinates):
    """θ ↔ u, and the form in which an emulator gets θ.

    Args:
        inputs: the standardisation of that form: θ itself where it is bounded on both sides or not at all, its
            logarithm on a half-line, or where that is much nearer to a Gaussian, as between ends of different orders.
    """

    inputs: Columns

    @classmethod
    def of(cls, theta: Float[Tensor, "rows d"], bijection: Bijection | None) -> "ParameterMap":
        """The map for these parameters; without a bijection, tails may be warped."""
        known = Bijection.unbounded(theta.shape[1]) if bijection is None else bijection
        columns = Columns.of(known.forward(theta.double()), warp=bijection is None)
        positive = [low >= 0 and math.isfinite(high) for low, high in zip(known.low, known.high, strict=True)]
        inputs = _with_logarithms(_natural(known, theta.double()), positive)
        return cls(known, columns, inputs, precise=theta.dtype == torch.float64)

    def inputs_of(self, theta: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """The inputs of an emulator at θ, float32."""
        return self.inputs.forward(_natural(self.bijection, theta.double())).float()


def _with_logarithms(values: Float64[Tensor, "rows d"], positive: Sequence[bool]) -> Columns:
    """The standardisation of columns, or of logarithms of positive ones where `Columns` takes them."""
    plain, warped = Columns.of(values, warp=False), Columns.of(values)
    chosen = [warped if may and kind == "log" else plain for may, kind in zip(positive, warped.kinds, strict=True)]
    return Columns(*(tuple(getattr(of, f.name)[i] for i, of in enumerate(chosen)) for f in fields(Columns)))


def _natural(bijection: Bijection, theta: Float64[Tensor, "*batch d"]) -> Float64[Tensor, "*batch d"]:
    """θ, or its logarithm on a half-line."""
    both = [math.isfinite(a) and math.isfinite(b) for a, b in zip(bijection.low, bijection.high, strict=True)]
    if all(both):
        return theta
    return torch.where(torch.tensor(both, device=theta.device), theta, bijection.forward(theta))


@dataclass
class DataMap:
    """x → y, the form in which networks get the data.

    Attributes:
        x_shape: shape of one observation.
        keep: the columns of a vector x that are used; empty where x is not a vector.
        columns: standardises those; for other shapes the values along `axis`.
        counts: which of the kept columns hold counts.
        reduction: maps (y, y², 1) to summaries, (2 columns + 1, summaries); None without summaries.
        axis: the axis of an observation that is no vector whose entries have a column each: the features of sets, the
            channels of series and images; None for a single column, which standardises all values alike.
        absence: what of an observation may be absent, NaN; None for nothing.
        exchangeable: whether the kept columns are draws of one distribution, and sorted before they are standardised.
        lags: of the autocorrelations that stand for the kept columns; 0 for the columns themselves.
        precise: whether x is float64, where float32 would lose what it tells.
    """

    x_shape: tuple[int, ...]
    keep: tuple[int, ...]
    columns: Columns
    counts: tuple[bool, ...] = ()
    reduction: Tensor | None = None
    axis: int | None = None
    absence: Absence | None = None
    exchangeable: bool = False
    lags: int = 0
    precise: bool = False

    @classmethod
    def of(
        cls,
        x: Float[Tensor, "rows *event"],
        keep: tuple[int, ...],
        absence: Absence | None = None,
        *,
        sets: bool = False,
    ) -> "DataMap":
        """The standardisation of these data.

        Args:
            x: finite, or with the NaN that `absence` allows, which are left out.
            keep: the columns of a vector that are used.
            absence: what of an observation may be absent.
            sets: whether observations are sets (members, features), whose features are warped as columns of vectors.
        """
        shape = tuple(x.shape[1:])
        if len(shape) == 1:
            kept = x[:, list(keep)]
            counts = tuple(is_count(column) for column in kept.T)
            if not all(counts):  # zeros and ones among other columns are what they are, without noise
                counts = tuple(count and len(column.unique()) > 2 for count, column in zip(counts, kept.T, strict=True))
            return cls(shape, keep, Columns.of(kept), counts, precise=x.dtype == torch.float64)
        axis = len(shape) - 1 if sets else 0
        columns = Columns.of(x.movedim(axis + 1, -1).flatten(0, -2), warp=sets)
        return cls(shape, (), columns, axis=axis, absence=absence, precise=x.dtype == torch.float64)

    def sorted(self, x: Float[Tensor, "rows columns"]) -> "DataMap":
        """The map of columns that are draws of one distribution: to their order statistics, standardised on these."""
        kept = x[:, list(self.keep)].sort(1).values
        return replace(self, columns=Columns.of(kept), exchangeable=True)

    def correlated(self, x: Float[Tensor, "rows columns"]) -> "DataMap":
        """The map of columns that are successive values of a series: to what describes it as noise, standardised."""
        features = autocorrelations(x[:, list(self.keep)], LAGS)
        return replace(self, columns=Columns.of(features), reduction=None, lags=LAGS)

    @property
    def number_format(self) -> torch.dtype:
        """The number format of x."""
        return torch.float64 if self.precise else torch.float32

    @property
    def vector(self) -> bool:
        """Whether observations are vectors."""
        return bool(self.keep)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of y."""
        if self.reduction is not None:
            return (self.reduction.shape[1],)
        if self.lags:
            return (num_features(self.lags),)
        return (len(self.keep),) if self.vector else self.x_shape

    def forward(self, x: Float[Tensor, "rows *event"]) -> Float[Tensor, "rows *y"]:
        """y, float32."""
        if self.vector:
            return self.of_kept(x[:, list(self.keep)])
        if self.axis is None:
            return within_reach(self.columns.forward(x[..., None])[..., 0]).float()
        return within_reach(self.columns.forward(x.movedim(self.axis + 1, -1)).movedim(-1, self.axis + 1)).float()

    def jittered(self, x: Float[Tensor, "rows columns"], seed: int) -> Float64[Tensor, "rows kept"]:
        """The kept columns, with uniform noise in ±½ on counts, so that they have a density."""
        kept = x[:, list(self.keep)].double()
        noise = torch.rand(kept.shape, generator=torch.Generator().manual_seed(seed)).to(kept) - 0.5
        return torch.where(torch.tensor(self.counts, device=kept.device), kept + noise, kept)

    def of_kept(self, kept: Float[Tensor, "rows kept"]) -> Float[Tensor, "rows y"]:
        """y of kept columns, float32."""
        if self.lags:
            return within_reach(self.columns.forward(autocorrelations(kept, self.lags))).float()
        y = within_reach(self.columns.forward(kept.sort(-1).values if self.exchangeable else kept))
        return (y if self.reduction is None else _quadratic(y) @ self.reduction.to(y.device)).float()

    def reduced(self, x: Float[Tensor, "rows columns"], u: Float[Tensor, "rows d"]) -> "DataMap":
        """The same map followed by the least-squares estimates of (u, u²) from (y, y²).

        Estimates that explain less than 2 % of the variance of rows that were not fitted are left out (but never all).
        """
        y = replace(self, reduction=None).forward(x)
        explained = explained_variance(y, u)
        chosen = (explained > 0.02).nonzero()[:, 0].tolist() or [int(explained.argmax())]
        inputs, targets = _quadratic(y), torch.cat([u, u.square() - 1], 1).double()
        solution = _least_squares(inputs, targets[:, chosen])
        estimates = inputs @ solution
        solution[-1] -= estimates.mean(0)
        return replace(self, reduction=solution / estimates.std(0))

    def to_config(self) -> dict[str, Any]:
        """The plain-data part; `reduction` is a tensor and saved apart."""
        return {
            "x_shape": list(self.x_shape),
            "keep": list(self.keep),
            "counts": list(self.counts),
            "columns": to_config(self.columns),
            "axis": self.axis,
            "absence": self.absence and to_config(self.absence),
            "exchangeable": self.exchangeable,
            "lags": self.lags,
            "precise": self.precise,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], reduction: Tensor | None) -> "DataMap":
        """What `to_config` described."""
        shape, keep, counts = (tuple(config[name]) for name in ("x_shape", "keep", "counts"))
        columns, absence = from_config(Columns, config["columns"]), config.get("absence")
        known = absence and from_config(Absence, absence)
        exchangeable, lags = config.get("exchangeable", False), config.get("lags", 0)
        axis, precise = config.get("axis"), config.get("precise", False)
        return cls(shape, keep, columns, counts, reduction, axis, known, exchangeable, lags, precise)


def within_reach(y: Float64[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
    """Standardised data, cut off beyond `REACH`, where networks would overflow; NaN stay."""
    return y.clamp(-REACH, REACH)


def explained_variance(y: Float[Tensor, "rows columns"], u: Float[Tensor, "rows d"]) -> Float64[Tensor, "targets"]:
    """The share of the variance of (u, u²) that a least-squares fit to (y, y²) explains, of rows that were not fitted.

    Args:
        y: data in standard units.
        u: parameters in standard units.
    """
    inputs, targets = _quadratic(y), torch.cat([u, u.square() - 1], 1).double()
    half = len(y) // 2
    rest = targets[half:] - inputs[half:] @ _least_squares(inputs[:half], targets[:half])
    return 1 - rest.square().mean(0) / targets[half:].var(0)


def _quadratic(y: Float[Tensor, "rows columns"]) -> Float64[Tensor, "rows inputs"]:
    """(y, y² − 1, 1)."""
    y = y.double()
    return torch.cat([y, y.square() - 1, torch.ones_like(y[:, :1])], 1)


def _least_squares(
    inputs: Float64[Tensor, "rows inputs"], targets: Float64[Tensor, "rows targets"]
) -> Float64[Tensor, "inputs targets"]:
    """The ridge regression of targets on inputs."""
    ridge = 1e-4 * len(inputs) * torch.eye(inputs.shape[1], dtype=inputs.dtype, device=inputs.device)
    solution: Tensor = torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ targets)
    return solution
