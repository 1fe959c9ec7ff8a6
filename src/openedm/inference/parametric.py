"""Prior distributions of parameters: p(θ), its samples, and the bijection of its support onto R^d.

Box          θ_i ~ U(low_i, high_i)
Normal       θ ~ N(mean, covariance)
LogNormal    ln θ_i ~ N(loc_i, scale_i²)
Independent  θ = (θ_1, …, θ_k), each part with a prior of its own
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.inference.bijections import Bijection


class Prior(Choice, ABC):
    """A distribution of parameters θ (…, d)."""

    @property
    @abstractmethod
    def names(self) -> Sequence[str] | None:
        """Of the parameters, where they have any."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """d."""

    @property
    @abstractmethod
    def bijection(self) -> Bijection:
        """The map of the support onto R^d."""

    @abstractmethod
    def _draw(self, n: int, seed: int) -> Tensor:
        """N draws, (n, d)."""

    @abstractmethod
    def _density(self, theta: Float64[Tensor, "*batch d"]) -> Float64[Tensor, "*batch"]:
        """Ln p(θ) of points strictly inside the support."""

    def sample(self, n: int, seed: int = 0) -> Float32[Tensor, "n d"]:
        """Draws of θ, strictly inside the support; the same for the same seed and n.

        Args:
            n: ≥ 1, how many.
            seed: of the draws, ≥ 0.

        Raises:
            ValueError: n < 1 or seed < 0.
            TypeError: n or seed is no integer.
        """
        checks.integer("n", n)
        checks.at_least("n", n, 1)
        checks.integer("seed", seed)
        checks.at_least("seed", seed, 0)
        return self.bijection.clamp(self._draw(n, seed).float())

    def log_prob(self, theta: Float[Tensor, "*batch d"]) -> Float64[Tensor, "*batch"]:
        """Ln p(θ); −inf outside the support, whose ends belong to it.

        Args:
            theta: (…, d).

        Raises:
            ValueError: theta has another number of columns.
        """
        inside = self.bijection.contains(theta)
        # Where a density has no value (outside, at NaN), it is asked for another point's.
        center = self.bijection.inverse(torch.zeros_like(theta[..., :1, :] if theta.ndim > 1 else theta)).double()
        safe = torch.where(inside[..., None], self.bijection.clamp(theta.double()), center)
        return torch.where(inside, self._density(safe), -math.inf)


@dataclass(frozen=True)
class Box(Prior):
    """The uniform distribution in a box.

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
        _settle(self, "low", "high")
        for i, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            if not low < high:
                raise ValueError(f"low must be < high in {_column(self, i)}, got low {low!r} and high {high!r}")

    @property
    def dim(self) -> int:
        """d."""
        return len(self.low)

    @property
    def bijection(self) -> Bijection:
        """The probit of each interval: θ uniform ⇔ z standard normal."""
        return Bijection(self.low, self.high)

    def _draw(self, n: int, seed: int) -> Tensor:
        low, high = _tensor(self.low), _tensor(self.high)
        return low + (high - low) * torch.rand(n, self.dim, dtype=torch.float64, generator=_generator(seed))

    def _density(self, theta: Tensor) -> Tensor:
        volume = sum(math.log(high - low) for low, high in zip(self.low, self.high, strict=True))
        return torch.full(theta.shape[:-1], -volume, dtype=torch.float64, device=theta.device)


@dataclass(frozen=True)
class Normal(Prior):
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
        _settle(self, "mean", *([] if self.std is None else ["std"]))
        if self.std is not None:
            _all_positive(self, "std")
            return
        rows = tuple(_numbers("covariance", row) for row in self.covariance or ())
        object.__setattr__(self, "covariance", rows)
        shape = f"{len(rows)} rows of {sorted({len(row) for row in rows})}"
        if len(rows) != self.dim or any(len(row) != self.dim for row in rows):
            raise ValueError(f"covariance must have the shape ({self.dim}, {self.dim}) of mean, got {shape}")
        matrix = _tensor(rows)
        if not torch.allclose(matrix, matrix.mT, rtol=1e-5, atol=1e-6 * float(matrix.abs().max())):
            raise ValueError("covariance must be symmetric, got one that is not")
        if int(torch.linalg.cholesky_ex(matrix).info):
            raise ValueError("covariance must be positive definite, got one that is not")

    @property
    def dim(self) -> int:
        """d."""
        return len(self.mean)

    @property
    def bijection(self) -> Bijection:
        """The identity."""
        return _unbounded(self.dim)

    @property
    def scale_tril(self) -> Float64[Tensor, "d d"]:
        """L, lower triangular, with L Lᵀ the covariance."""
        if self.std is not None:
            return _tensor(self.std).diag()
        root: Tensor = torch.linalg.cholesky(_tensor(self.covariance))
        return root

    def _draw(self, n: int, seed: int) -> Tensor:
        noise = torch.randn(n, self.dim, dtype=torch.float64, generator=_generator(seed))
        return _tensor(self.mean) + noise @ self.scale_tril.mT

    def _density(self, theta: Tensor) -> Tensor:
        root = self.scale_tril.to(theta.device)
        centered = (theta - _tensor(self.mean).to(theta.device))[..., None]
        white = torch.linalg.solve_triangular(root, centered, upper=False)[..., 0]
        constant = float(root.diagonal().log().sum()) + self.dim * math.log(2 * math.pi) / 2
        squares: Tensor = (white**2).sum(-1)
        return -squares / 2 - constant


@dataclass(frozen=True)
class LogNormal(Prior):
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
        _settle(self, "loc", "scale")
        _all_positive(self, "scale")

    @property
    def dim(self) -> int:
        """d."""
        return len(self.loc)

    @property
    def bijection(self) -> Bijection:
        """The logarithm."""
        return Bijection((0.0,) * self.dim, (math.inf,) * self.dim)

    def _draw(self, n: int, seed: int) -> Tensor:
        noise = torch.randn(n, self.dim, dtype=torch.float64, generator=_generator(seed))
        return (_tensor(self.loc) + _tensor(self.scale) * noise).exp()

    def _density(self, theta: Tensor) -> Tensor:
        loc, scale, log = _tensor(self.loc).to(theta.device), _tensor(self.scale).to(theta.device), theta.log()
        normal = -(((log - loc) / scale) ** 2) / 2 - scale.log() - math.log(2 * math.pi) / 2
        return (normal - log).sum(-1)


@dataclass(frozen=True)
class Independent(Prior):
    """Parts side by side, independent of one another; θ is their concatenation.

    Args:
        parts: one prior or more.

    Raises:
        ValueError: there is no part.
        TypeError: a part is no `Prior`.
    """

    parts: Sequence[Prior]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        if not self.parts:
            raise ValueError("parts must hold at least one prior, got none")
        for i, part in enumerate(self.parts):
            if not isinstance(part, Prior):
                raise TypeError(f"parts[{i}] must be a Prior, got {type(part).__name__}; as_prior makes one")

    @property
    def dim(self) -> int:
        """d, the sum of the parts'."""
        return sum(part.dim for part in self.parts)

    @property
    def names(self) -> Sequence[str] | None:
        """The parts' names, one after the other; None unless every part has them."""
        found = [part.names for part in self.parts if part.names is not None]
        return tuple(name for names in found for name in names) if len(found) == len(self.parts) else None

    @property
    def bijection(self) -> Bijection:
        """The parts' bijections side by side."""
        found = [part.bijection for part in self.parts]
        return Bijection([v for b in found for v in b.low], [v for b in found for v in b.high])

    def _draw(self, n: int, seed: int) -> Tensor:
        seeds = np.random.SeedSequence(seed).generate_state(len(self.parts))
        return torch.cat([part._draw(n, int(s)).double() for part, s in zip(self.parts, seeds, strict=True)], -1)

    def _density(self, theta: Tensor) -> Tensor:
        pieces = torch.split(theta, [part.dim for part in self.parts], dim=-1)
        densities = [part._density(piece) for part, piece in zip(self.parts, pieces, strict=True)]
        return torch.stack(densities).sum(0)


def settle_names(prior: Any) -> None:
    """Make `prior.names` a tuple, and check it against `prior.dim`."""
    if prior.names is None:
        return
    names = tuple(prior.names)
    if isinstance(prior.names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"names must be strings, one a parameter, got {prior.names!r}")
    if len(names) != prior.dim or len(set(names)) != len(names):
        raise ValueError(f"names must be {prior.dim} different strings, got {names!r}")
    object.__setattr__(prior, "names", names)


def _settle(prior: Any, *fields: str) -> None:
    """Make the fields tuples of finite numbers of one length, and the names a tuple."""
    for name in fields:
        object.__setattr__(prior, name, _numbers(name, getattr(prior, name)))
    first = fields[0]
    for name in fields[1:]:
        if len(getattr(prior, name)) != prior.dim:
            raise ValueError(
                f"{name} must have as many entries as {first}, {prior.dim}, got {len(getattr(prior, name))}"
            )
    settle_names(prior)


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    found = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
    if found.ndim > 1 or not found.size:
        raise ValueError(f"{name} must hold one number a parameter, got the shape {found.shape}")
    numbers = tuple(float(v) for v in np.atleast_1d(found))
    for i, value in enumerate(numbers):
        checks.finite(f"{name}[{i}]", value)
    return numbers


def _all_positive(prior: Any, name: str) -> None:
    for i, value in enumerate(getattr(prior, name)):
        if not value > 0:
            raise ValueError(f"{name} must be > 0 in {_column(prior, i)}, got {value!r}")


def _column(prior: Prior, i: int) -> str:
    return f"column {i}" if prior.names is None else f"column {i} ({prior.names[i]})"


def _unbounded(dim: int) -> Bijection:
    return Bijection((-math.inf,) * dim, (math.inf,) * dim)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
