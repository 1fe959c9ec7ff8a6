"""Prior distributions of parameters: p(θ), its samples, and the bijection of its support onto R^d.

Box         θ_i ~ U(low_i, high_i)
Normal      θ ~ N(mean, covariance)
LogNormal   ln θ_i ~ N(loc_i, scale_i²)
TorchPrior  any distribution of torch with a support that is a product of intervals

Draws and densities are those of torch.distributions in float64. What is added: names of the parameters, seeds, draws
and coordinates that lie strictly inside the support. `composite` has the priors that are made of others.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, distributions
from torch.distributions import Distribution

from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.ground.seeding import global_generators_kept, seed_global_generators
from openedm.inference.bijections import Bijection
from openedm.inference.precision import as_precise_as_needed
from openedm.inference.supports import interval_of, log_density

__all__ = ["Box", "LogNormal", "Normal", "Prior", "TorchPrior", "check_names", "set_names"]

PROBES = 256
"""Draws that tell how precisely θ must be kept."""


class Prior(Choice, ABC):
    """A distribution of parameters θ (…, d) whose support is a product of intervals."""

    @property
    @abstractmethod
    def names(self) -> Sequence[str] | None:
        """The names of the parameters, or None."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """d."""

    @property
    @abstractmethod
    def bijection(self) -> Bijection:
        """The map of the support onto R^d."""

    @abstractmethod
    def _draw(self, n: int, seed: int) -> Float[Tensor, "n d"]:
        """N draws on the host; they may lie on the ends of the support."""

    @abstractmethod
    def _density(self, theta: Float64[Tensor, "*batch d"]) -> Float64[Tensor, "*batch"]:
        """Ln p(θ) of points strictly inside the support, on the host."""

    @cached_property
    def number_format(self) -> torch.dtype:
        """The number format of draws: float32, or float64 where that would not tell draws apart."""
        return as_precise_as_needed(self._draw(PROBES, 0).double()).dtype

    def sample(self, n: int | tuple[int, ...], seed: int = 0) -> Float[Tensor, "... d"]:
        """Draws of θ in `number_format`, strictly inside the support; the same for the same seed and n: (n, d).

        Args:
            n: the number of draws, ≥ 1; or their shape, as torch's distributions and sbi have it.
            seed: of the draws, ≥ 0.

        Raises:
            ValueError: n < 1 or seed < 0.
            TypeError: n or seed is not an integer.
        """
        count = math.prod(n) if isinstance(n, tuple) else n
        checks.integer("n", count, 1)
        checks.integer("seed", seed, 0)
        draws = self.bijection.clamp(self._draw(count, seed).to(self.number_format))
        return draws.reshape(*n, self.dim) if isinstance(n, tuple) else draws

    def log_prob(self, theta: Float[Tensor, "*batch d"]) -> Float64[Tensor, "*batch"]:
        """Ln p(θ); −inf outside the support, whose ends belong to it. It is computed on the host.

        Args:
            theta: (…, d), on any device.

        Raises:
            ValueError: theta has another number of columns.
        """
        point = theta.cpu()
        inside = self.bijection.contains(point)
        # Where a density has no value (outside, at NaN), that of another point takes its place.
        center = self.bijection.inverse(torch.zeros_like(point[..., :1, :] if point.ndim > 1 else point)).double()
        safe = torch.where(inside[..., None], self.bijection.clamp(point.double()), center)
        return torch.where(inside, self._density(safe), -math.inf).to(theta.device)


class _Distributed(Prior):
    """A prior that a distribution of torch describes."""

    @property
    @abstractmethod
    def _event(self) -> Distribution:
        """The distribution of one event: θ (d,), or a number."""

    @property
    def dim(self) -> int:
        """d."""
        return int(self._event.event_shape.numel())

    @cached_property
    def bijection(self) -> Bijection:
        """The map that the support of the distribution calls for."""
        low, high = interval_of(self._event)
        return Bijection(low.broadcast_to(self.dim).tolist(), high.broadcast_to(self.dim).tolist())

    def _draw(self, n: int, seed: int) -> Tensor:
        # torch's distributions draw from global generators only, on the GPU if their parameters lie there.
        with global_generators_kept(), torch.no_grad():
            seed_global_generators(seed)
            return self._event.sample((n,)).reshape(n, self.dim).cpu()

    def _density(self, theta: Float64[Tensor, "*batch d"]) -> Float64[Tensor, "*batch"]:
        return log_density(self._event, theta if self._event.event_shape else theta[..., 0]).double()


@dataclass(frozen=True)
class Box(_Distributed):
    """The uniform distribution in a box; its bijection makes it standard normal.

    >>> Box(low=(-1.0, 0.0), high=(1.0, 5.0)).log_prob(torch.tensor([[0.0, 1.0], [0.0, 6.0]]))
    tensor([-2.3026,    -inf], dtype=torch.float64)

    Args:
        low: lower ends, finite, one a parameter.
        high: upper ends, > low.
        names: of the parameters; they stand in errors and figures.

    Raises:
        ValueError: an end is not finite, low ≥ high, or lengths differ.
    """

    low: Sequence[float]
    high: Sequence[float]
    names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        _set_numbers(self, "low", "high")
        for i, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            if not low < high:
                raise ValueError(f"low must be < high in {_column(self, i)}, got low {low!r} and high {high!r}")

    @cached_property
    def _event(self) -> Distribution:
        return _vector(distributions.Uniform, self.low, self.high)


@dataclass(frozen=True)
class Normal(_Distributed):
    """The normal distribution N(mean, covariance).

    Args:
        mean: (d,).
        std: (d,), > 0: standard deviations of independent parameters; or
        covariance: (d, d), symmetric and positive definite; exactly one of the two.
        names: of the parameters.

    Raises:
        ValueError: a value is not finite or not allowed, lengths differ, or both or neither of std and covariance
            are given.
    """

    mean: Sequence[float]
    std: Sequence[float] | None = None
    covariance: Sequence[Sequence[float]] | None = None
    names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if (self.std is None) == (self.covariance is None):
            raise ValueError("exactly one of std and covariance must be given")
        if self.std is not None:
            _set_numbers(self, "mean", "std", positive="std")
            return
        _set_numbers(self, "mean")
        rows, d = tuple(_numbers("covariance", row) for row in self.covariance or ()), len(self.mean)
        object.__setattr__(self, "covariance", rows)
        if len(rows) != d or any(len(row) != d for row in rows):
            shape = f"{len(rows)} rows of {sorted({len(row) for row in rows})}"
            raise ValueError(f"covariance must have the shape ({d}, {d}) of mean, got {shape}")
        matrix = _tensor(rows)
        if not torch.allclose(matrix, matrix.mT, rtol=1e-5, atol=1e-6 * float(matrix.abs().max())):
            raise ValueError("covariance must be symmetric, got one that is not")
        if int(torch.linalg.cholesky_ex(matrix).info):
            raise ValueError("covariance must be positive definite, got one that is not")

    @cached_property
    def _event(self) -> Distribution:
        if self.std is not None:
            return _vector(distributions.Normal, self.mean, self.std)
        covariance = _tensor(self.covariance)
        return distributions.MultivariateNormal(_tensor(self.mean), covariance, validate_args=False)


@dataclass(frozen=True)
class LogNormal(_Distributed):
    """Independent parameters > 0 whose logarithms are normal: ln θ_i ~ N(loc_i, scale_i²).

    Args:
        loc: means of ln θ.
        scale: standard deviations of ln θ, > 0.
        names: of the parameters.

    Raises:
        ValueError: a value is not finite or not allowed, or lengths differ.
    """

    loc: Sequence[float]
    scale: Sequence[float]
    names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        _set_numbers(self, "loc", "scale", positive="scale")

    @cached_property
    def _event(self) -> Distribution:
        return _vector(distributions.LogNormal, self.loc, self.scale)


@dataclass(frozen=True, eq=False)
class TorchPrior(_Distributed):
    """A torch distribution of one event (d,), one number, or d independent numbers (its batch).

    Args:
        distribution: continuous, with a support that is a product of intervals.
        names: of the parameters.

    Raises:
        ValueError: its shapes or its support are others.
    """

    distribution: Distribution
    names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        batch, event = self.distribution.batch_shape, self.distribution.event_shape
        if len(batch) + len(event) > 1:
            raise ValueError(
                "prior must be a distribution of vectors (d,), got the batch shape "
                f"{tuple(batch)} and the event shape {tuple(event)} of {type(self.distribution).__name__}"
            )
        set_names(self, self.dim)
        interval_of(self.distribution)

    @cached_property
    def _event(self) -> Distribution:
        single = not self.distribution.batch_shape
        return self.distribution if single else distributions.Independent(self.distribution, 1)


def _vector(kind: Callable[..., Distribution], *parameters: Sequence[float]) -> Distribution:
    """The distribution of independent coordinates, in float64."""
    return distributions.Independent(kind(*map(_tensor, parameters), validate_args=False), 1, validate_args=False)


def _set_numbers(prior: Any, *fields: str, positive: str | None = None) -> None:
    """Make the fields tuples of finite numbers of one length, > 0 in the one named, and the names a tuple."""
    for name in fields:
        object.__setattr__(prior, name, _numbers(name, getattr(prior, name)))
    first, *others = fields
    dim = len(getattr(prior, first))
    for name in others:
        if len(getattr(prior, name)) != dim:
            raise ValueError(f"{name} must have as many entries as {first}, {dim}, got {len(getattr(prior, name))}")
    set_names(prior, dim)
    for i, value in enumerate(getattr(prior, positive) if positive else ()):
        if not value > 0:
            raise ValueError(f"{positive} must be > 0 in {_column(prior, i)}, got {value!r}")


def set_names(prior: Any, dim: int) -> None:
    """Make `prior.names` a tuple, and check that there are `dim` of them."""
    if prior.names is not None:
        object.__setattr__(prior, "names", check_names(prior.names, dim))


def check_names(given: Sequence[str], dim: int) -> tuple[str, ...]:
    """The names of `dim` parameters.

    Raises:
        TypeError: they are not strings.
        ValueError: they are not as many, or not different.
    """
    names = tuple(given)
    if isinstance(given, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"names must be strings, one a parameter, got {given!r}")
    if len(names) != dim or len(set(names)) != len(names):
        raise ValueError(f"names must be {dim} different strings, got {names!r}")
    return names


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    found = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
    if found.ndim > 1 or not found.size:
        raise ValueError(f"{name} must hold one number a parameter, got the shape {found.shape}")
    numbers = tuple(float(v) for v in np.atleast_1d(found))
    for i, value in enumerate(numbers):
        checks.finite(f"{name}[{i}]", value)
    return numbers


def _column(prior: Prior, i: int) -> str:
    return f"column {i}" if prior.names is None else f"column {i} ({prior.names[i]})"


def _tensor(values: Any) -> Float64[Tensor, "..."]:
    return torch.tensor(values, dtype=torch.float64)
