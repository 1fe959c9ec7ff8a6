"""A benchmark task: a prior, a simulator for many parameters at once, and its likelihood."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.inference.priors import Prior

__all__ = ["Data", "Points", "Rows", "Task", "normal"]

Rows = Float64[Tensor, "n d"]
"""Parameters to simulate with."""
Points = Float64[Tensor, "*points d"]
Data = Float64[Tensor, "*observations dx"]
"""Parameters and data whose leading shapes broadcast."""


@dataclass(frozen=True)
class Task(Choice, ABC):
    """A benchmark task of sbibm (Lueckmann et al. 2021): θ ~ prior, x ~ p(x|θ).

    Attributes:
        name: as in sbibm.
        x_shape: of one observation.
        prior: p(θ).
    """

    name: ClassVar[str]
    x_shape: ClassVar[tuple[int, ...]]
    prior: ClassVar[Prior]

    @property
    def dim(self) -> int:
        """The number of parameters."""
        return self.prior.dim

    @abstractmethod
    def _simulate(self, theta: Rows, generator: torch.Generator) -> Tensor:
        """One x for each row of θ."""

    @abstractmethod
    def _log_likelihood(self, theta: Points, x: Data) -> Tensor:
        """Ln p(x|θ); the two broadcast against each other."""

    def simulate(self, theta: Float[Tensor, "n d"], seed: int = 0) -> Float32[Tensor, "n dx"]:
        """One observation for each row of θ.

        Args:
            theta: (n, d), on the CPU.
            seed: ≥ 0, of the whole batch.

        Raises:
            ValueError: theta has another shape, or is not finite; seed < 0.
            TypeError: seed is not an integer.
        """
        checks.integer("seed", seed, 0)
        if theta.ndim != 2 or theta.shape[1] != self.dim:
            raise ValueError(f"theta must have the shape (n, {self.dim}) for {self.name}, got {tuple(theta.shape)}")
        if not bool(theta.isfinite().all()):
            raise ValueError("theta must be finite, got NaN or infinity")
        return self._simulate(theta.double(), torch.Generator().manual_seed(seed)).float()

    def log_likelihood(
        self, theta: Float[Tensor, "*points d"], x: Float[Tensor, "*observations dx"]
    ) -> Float64[Tensor, "*broadcast"]:
        """Ln p(x|θ), up to a term free of θ where the task says so.

        Args:
            theta: (…, d).
            x: (…, dx); the leading shapes of theta and x broadcast.

        Raises:
            ValueError: a last dimension does not fit.
        """
        for name, given, size in (("theta", theta, self.dim), ("x", x, self.x_shape[0])):
            if given.shape[-1:] != (size,):
                raise ValueError(f"{name} must have the shape (…, {size}) for {self.name}, got {tuple(given.shape)}")
        return self._log_likelihood(theta.double(), x.double())


def normal(generator: torch.Generator, *shape: int) -> Float64[Tensor, "..."]:
    """Standard normal numbers, float64."""
    return torch.randn(shape, dtype=torch.float64, generator=generator)
