"""The coordinates that networks work in: bijection and standardisation of θ, standardisation and summaries of x.

θ → z = bijection(θ) → u = (z − m)/s,      ln p(θ) = ln p(u) + Σ ln |dz/dθ| − Σ ln s
x → y = columns(x), or least-squares estimates of (u, u²) from (y, y²) where x has many columns
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from openedm.ground.choices import Choice, from_config, to_config
from openedm.inference.bijections import Bijection
from openedm.inference.transforms import Columns, is_count

__all__ = ["Coordinates", "DataMap", "ParameterMap"]


@dataclass(frozen=True)
class Coordinates(Choice):
    """Variables ↔ unbounded coordinates of mean 0 and standard deviation 1.

    Args:
        bijection: of the variables' supports onto R^d.
        columns: the standardisation of these, with or without a warp.
    """

    bijection: Bijection
    columns: Columns

    def forward(self, variables: Float[Tensor, "*batch d"]) -> Float64[Tensor, "*batch d"]:
        """u; NaN outside the support."""
        return self.columns.forward(self.bijection.forward(variables.double()))

    def inverse(self, u: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """The variables, float32, strictly inside their supports."""
        return self.bijection.clamp(self.bijection.inverse(self.columns.inverse(u)).float())

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
            logarithm on a half-line.
    """

    inputs: Columns

    @classmethod
    def of(cls, theta: Float[Tensor, "rows d"], bijection: Bijection | None) -> "ParameterMap":
        """The map for these parameters; without a bijection, tails may be warped."""
        known = Bijection.unbounded(theta.shape[1]) if bijection is None else bijection
        columns = Columns.of(known.forward(theta.double()), warp=bijection is None)
        return cls(known, columns, Columns.of(_natural(known, theta.double()), warp=False))

    def inputs_of(self, theta: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """The inputs of an emulator at θ, float32."""
        return self.inputs.forward(_natural(self.bijection, theta.double())).float()


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
        columns: standardises those; for other shapes a single column, which standardises all values alike.
        counts: which of the kept columns hold counts.
        reduction: maps (y, y², 1) to summaries, (2 columns + 1, summaries); None without summaries.
    """

    x_shape: tuple[int, ...]
    keep: tuple[int, ...]
    columns: Columns
    counts: tuple[bool, ...] = ()
    reduction: Tensor | None = None

    @classmethod
    def of(cls, x: Float[Tensor, "rows *event"], keep: tuple[int, ...]) -> "DataMap":
        """The standardisation of these data; `keep` names the columns of a vector that are used."""
        shape = tuple(x.shape[1:])
        if len(shape) == 1:
            kept = x[:, list(keep)]
            counts = tuple(is_count(column) for column in kept.T)
            return cls(shape, keep, Columns.of(kept), counts)
        return cls(shape, (), Columns.of(x[x.isfinite()][:, None], warp=False))

    @property
    def vector(self) -> bool:
        """Whether observations are vectors."""
        return bool(self.keep)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of y."""
        if self.reduction is not None:
            return (self.reduction.shape[1],)
        return (len(self.keep),) if self.vector else self.x_shape

    def forward(self, x: Float[Tensor, "rows *event"]) -> Float[Tensor, "rows *y"]:
        """y, float32."""
        if not self.vector:
            return self.columns.forward(x[..., None])[..., 0].float()
        return self.of_kept(x[:, list(self.keep)])

    def jittered(self, x: Float[Tensor, "rows columns"], seed: int) -> Float64[Tensor, "rows kept"]:
        """The kept columns, with uniform noise in ±½ on counts, so that they have a density."""
        kept = x[:, list(self.keep)].double()
        noise = torch.rand(kept.shape, generator=torch.Generator().manual_seed(seed)).to(kept) - 0.5
        return torch.where(torch.tensor(self.counts, device=kept.device), kept + noise, kept)

    def of_kept(self, kept: Float[Tensor, "rows kept"]) -> Float[Tensor, "rows y"]:
        """y of kept columns, float32."""
        y = self.columns.forward(kept)
        return (y if self.reduction is None else _quadratic(y) @ self.reduction.to(y.device)).float()

    def reduced(self, x: Float[Tensor, "rows columns"], u: Float[Tensor, "rows d"]) -> "DataMap":
        """The same map followed by the least-squares estimates of (u, u²) from (y, y²).

        Estimates that explain less than 2 % of the variance of rows that were not fitted are left out (but never all).
        """
        y = replace(self, reduction=None).forward(x)
        inputs, targets = _quadratic(y), torch.cat([u, u.square() - 1], 1).double()
        half = len(x) // 2
        first = _least_squares(inputs[:half], targets[:half])
        rest = targets[half:] - inputs[half:] @ first
        explained = 1 - rest.square().mean(0) / targets[half:].var(0)
        chosen = (explained > 0.02).nonzero()[:, 0].tolist() or [int(explained.argmax())]
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
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], reduction: Tensor | None) -> "DataMap":
        """What `to_config` described."""
        shape, keep, counts = (tuple(config[name]) for name in ("x_shape", "keep", "counts"))
        return cls(shape, keep, from_config(Columns, config["columns"]), counts, reduction)


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
