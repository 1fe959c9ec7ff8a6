"""One-step solvers as Butcher tableaux, and EDM's churn.

A step of size h from (t, x): k_i = dx/dt(x + h Σ_{j<i} a_ij k_j, t + c_i h), x_next = x + h Σ_i b_i k_i, with
c_i = Σ_j a_ij.

| solver | order | a | b |
|---|---|---|---|
| Euler | 1 | | 1 |
| Alpha(α) (Karras et al. 2022, Algorithm 3) | 2 | α | 1 − 1/(2α), 1/(2α) |
| Heun, Midpoint, Ralston | 2 | α = 1, ½, ⅔ | |
| RK4 | 4 | ½; 0 ½; 0 0 1 | ⅙ ⅓ ⅓ ⅙ |
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

from openedm import checks
from openedm.choices import Choice


class Tableau(NamedTuple):
    """An explicit Runge–Kutta method.

    Attributes:
        a: row i holds a_i0 … a_i,i−1; the first row is empty.
        b: the weights of the slopes; they sum to 1.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]

    @property
    def c(self) -> tuple[float, ...]:
        """The nodes c_i = Σ_j a_ij."""
        return tuple(sum(row) for row in self.a)


class Solver(Choice, ABC):
    """A one-step solver of the sampling ODE."""

    @property
    @abstractmethod
    def tableau(self) -> Tableau:
        """Its coefficients."""

    @property
    @abstractmethod
    def order(self) -> int:
        """The global order of convergence p: error ∝ N^{−p}."""


@dataclass(frozen=True)
class Euler(Solver):
    """Euler's method: order 1, one evaluation a step. With σ(t) = t it is DDIM."""

    @property
    def tableau(self) -> Tableau:
        """b = (1)."""
        return Tableau(((),), (1.0,))

    @property
    def order(self) -> int:
        """1."""
        return 1


@dataclass(frozen=True)
class Alpha(Solver):
    """The family of two-stage methods of order 2 (Karras et al. 2022, Algorithm 3).

    Args:
        alpha: where the second slope is taken, as a fraction of the step; > 0. 1 is Heun, ½ midpoint, ⅔ Ralston. Values
            above 1 look beyond the step's end; a step that would end below t = 0 is refused when sampling starts.

    Raises:
        ValueError: alpha is not > 0.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        checks.positive("alpha", self.alpha)

    @property
    def tableau(self) -> Tableau:
        """a = (α), b = (1 − 1/(2α), 1/(2α))."""
        return Tableau(((), (self.alpha,)), (1 - 1 / (2 * self.alpha), 1 / (2 * self.alpha)))

    @property
    def order(self) -> int:
        """2."""
        return 2


@dataclass(frozen=True)
class Heun(Solver):
    """Heun's method (Karras et al. 2022, Algorithm 1): order 2, two evaluations a step."""

    @property
    def tableau(self) -> Tableau:
        """`Alpha(1)`."""
        return Alpha(1.0).tableau

    @property
    def order(self) -> int:
        """2."""
        return 2


@dataclass(frozen=True)
class Midpoint(Solver):
    """The midpoint method: order 2, two evaluations a step."""

    @property
    def tableau(self) -> Tableau:
        """`Alpha(1/2)`."""
        return Alpha(0.5).tableau

    @property
    def order(self) -> int:
        """2."""
        return 2


@dataclass(frozen=True)
class Ralston(Solver):
    """Ralston's method: order 2 with the smallest error bound, two evaluations a step."""

    @property
    def tableau(self) -> Tableau:
        """`Alpha(2/3)`."""
        return Alpha(2 / 3).tableau

    @property
    def order(self) -> int:
        """2."""
        return 2


@dataclass(frozen=True)
class RK4(Solver):
    """The classical Runge–Kutta method: order 4, four evaluations a step."""

    @property
    def tableau(self) -> Tableau:
        """The 1901 coefficients."""
        return Tableau(((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))

    @property
    def order(self) -> int:
        """4."""
        return 4


@dataclass(frozen=True)
class Churn(Choice):
    """EDM's stochastic sampling (Karras et al. 2022, Algorithm 2): noise is added back before each step.

    γ = min(S_churn/N, √2 − 1) for σ in [S_min, S_max], else 0; σ̂ = σ + γ σ. Without churn no noise is drawn.

    Args:
        s_churn: amount of stochasticity over the whole run, ≥ 0; 0 is the deterministic sampler.
        s_min: lowest noise level at which noise is added, ≥ 0.
        s_max: highest noise level at which noise is added.
        s_noise: standard deviation of the added noise, > 0; a little above 1 counteracts the loss of detail.

    Raises:
        ValueError: a value is out of its range, or an option is set that `s_churn = 0` makes idle.
    """

    s_churn: float = 0.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        checks.at_least("s_churn", self.s_churn, 0)
        checks.at_least("s_min", self.s_min, 0)
        checks.at_least("s_max", self.s_max, self.s_min)
        checks.positive("s_noise", self.s_noise)
        if self.s_churn == 0 and (self.s_min, self.s_max, self.s_noise) != (0.0, math.inf, 1.0):
            raise ValueError(
                f"s_min={self.s_min}, s_max={self.s_max}, s_noise={self.s_noise} have no effect while s_churn is 0: "
                "set s_churn > 0 or leave them at their defaults"
            )

    def gamma(self, sigma: float, num_steps: int) -> float:
        """γ at noise level `sigma` in a run of `num_steps` steps."""
        inside = self.s_min <= sigma <= self.s_max
        return min(self.s_churn / num_steps, math.sqrt(2) - 1) if inside else 0.0
