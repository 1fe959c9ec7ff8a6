"""Runge–Kutta methods in the time of the schedule: Algorithms 1–3 of Karras et al. 2022 and any other tableau.

A step of size h from (t, x): k_i = dx/dt(x + h Σ_{j<i} a_ij k_j, t + c_i h), x_next = x + h Σ_i b_i k_i, with
c_i = Σ_j a_ij and dx/dt = (σ̇/σ + ṡ/s) x − (σ̇ s/σ) D(x/s; σ)  (eq. 81).

    x ~ N(0, σ_0² s_0² I)                                                  Algorithm 1 (Heun), 2 (churn), 3 (α)
    for i = 0 … N − 1:
        γ = min(S_churn/N, √2 − 1) if S_min ≤ σ_i ≤ S_max else 0
        σ̂ = σ_i + γ σ_i,  t̂ = σ⁻¹(σ̂)                                      raise the noise level
        x̂ = s(t̂)/s(t_i) x + √(σ̂² − σ_i²) s(t̂) S_noise n                    n ~ N(0, I)
        h = t_{i+1} − t̂
        d = dx/dt(x̂, t̂)                                                   D at (x̂/s; σ̂)
        x = x̂ + h d                                                        Euler's step
        if t_{i+1} ≠ 0:
            d' = dx/dt(x̂ + α h d, t̂ + α h)                                second evaluation; α = 1 is Heun
            x = x̂ + h ((1 − 1/(2α)) d + 1/(2α) d')
    return x                                                               or D at the last level: `Sampler.final`

| solver | order | a | b |
|---|---|---|---|
| Euler | 1 | | 1 |
| Alpha(α) (Algorithm 3) | 2 | α | 1 − 1/(2α), 1/(2α) |
| Heun, Midpoint, Ralston | 2 | α = 1, ½, ⅔ | |
| RK4 | 4 | ½; 0 ½; 0 0 1 | ⅙ ⅓ ⅓ ⅙ |
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch

from openedm.ground import checks
from openedm.sampling.engine.curve import check_curve
from openedm.sampling.engine.plan import Combination, Grid, Noise, Plan, PlannedSolver, Stage, Step

__all__ = ["RK4", "Alpha", "Euler", "Heun", "Midpoint", "Ralston", "RungeKutta", "Tableau"]


class Tableau(NamedTuple):
    """An explicit Runge–Kutta method.

    Attributes:
        a: row i contains a_i0 … a_i,i−1; the first row is empty.
        b: the weights of the slopes; they sum to 1.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]

    @property
    def c(self) -> tuple[float, ...]:
        """The nodes c_i = Σ_j a_ij."""
        return tuple(sum(row) for row in self.a)

    def check(self, name: str) -> None:
        """Raise ValueError unless row i holds i coefficients, and the weights, one a row, sum to 1."""
        if [len(row) for row in self.a] != list(range(len(self.b))) or not math.isclose(sum(self.b), 1, abs_tol=1e-9):
            raise ValueError(
                f"tableau of {name} must have rows of 0, 1, 2, … coefficients and as many weights, with the sum 1, got "
                f"a={self.a} and b={self.b}"
            )


class RungeKutta(PlannedSolver):
    """A one-step solver in the time t of the schedule on x(t) = s(t) (y + σ(t) n), defined by its tableau."""

    one_step = True
    uses_schedule = True
    allows_churn = True

    @property
    @abstractmethod
    def tableau(self) -> Tableau:
        """The coefficients."""

    def evaluations(self, num_steps: int) -> int:
        """One evaluation a stage, and one for the last step."""
        return (num_steps - 1) * len(self.tableau.b) + 1

    def plan(self, grid: Grid) -> Plan:
        """Steps between the times of the levels.

        Raises:
            ValueError: at a stage the schedule does not have a finite σ > 0, for example below t = 0, or σ is constant
                because it is clipped; an Euler step to 0 would be infinitely long; functions of a schedule or scaling
                of one's own do not fit each other; or the tableau is not one.
        """
        self.tableau.check(type(self).__name__)
        check_curve(grid.schedule, grid.scaling, grid.sigmas)
        times = grid.schedule.time(torch.tensor(grid.sigmas, dtype=torch.float64)).tolist()
        end = grid.schedule.time_of_zero
        if math.isinf(end):
            if grid.final == "euler":
                raise ValueError(
                    f"final must be 'denoise' for {grid.schedule}, which does not reach σ = 0 in finite time"
                )
            end = times[-1]
        times.append(end)
        return Plan(tuple(self._step(grid, i, times[i], times[i + 1]) for i in range(len(grid.sigmas))))

    def _step(self, grid: Grid, i: int, time: float, time_next: float) -> Step:
        sigma = sigma_hat = grid.sigmas[i]
        time_hat, scale = time, grid.scale(sigma)
        gamma = grid.churn.gamma(sigma, len(grid.sigmas))
        if gamma > 0:
            sigma_hat = grid.rounded(sigma + gamma * sigma)
            time_hat = float(grid.schedule.time(sigma_hat))
        is_final = i == len(grid.sigmas) - 1
        tableau = Euler.tableau if is_final else self.tableau
        h = time_next - time_hat
        slopes = [_slope(grid, i, time_hat + c * h, sigma_hat if c == 0 else None) for c in tableau.c]
        stages = tuple(
            Stage(torch.tensor(s.sigma, dtype=torch.float64), s.scale, s.of_denoised, _combine(h, row, slopes))
            for s, row in zip(slopes, tableau.a, strict=True)
        )
        added = math.sqrt(max(sigma_hat**2 - sigma**2, 0.0)) * slopes[0].scale * grid.churn.s_noise
        between = (sigma, 0.0 if is_final else grid.sigmas[i + 1])
        return Step(
            time=time,
            sigma=sigma,
            scale=scale,
            stages=stages,
            advance=None if is_final and grid.final == "denoise" else _combine(h, tableau.b, slopes),
            before=Noise(added, slopes[0].scale / scale, between) if added > 0 else None,
        )


class _Slope(NamedTuple):
    """dx/dt = `weight` · (x + `of_denoised` · D), or `weight` · D if `of_denoised` is None."""

    sigma: float
    scale: float
    weight: float
    of_denoised: float | None


def _slope(grid: Grid, index: int, time: float, sigma: float | None) -> _Slope:
    """The ODE's coefficients at `time`; `sigma` is given if it is known exactly."""
    level = float(grid.schedule.sigma(time)) if sigma is None else sigma
    speed = float(grid.schedule.sigma_derivative(time))
    if not (
        time > grid.schedule.time_of_zero and level > 0 and math.isfinite(level) and speed > 0 and math.isfinite(speed)
    ):
        raise ValueError(
            f"the solver would evaluate step {index} at t = {time:.6g}, where {grid.schedule} has sigma = {level:.6g} "
            f"and derivative {speed:.6g}: a stage must stay inside the schedule's domain. Use alpha <= 1, more steps, "
            "or levels that the schedule reaches"
        )
    scale = grid.scale(level)
    scale_rate = float(grid.scaling.derivative(level)) * speed / scale
    of_x, of_denoised = speed / level + scale_rate, -speed * scale / level
    if of_x == 0:
        return _Slope(level, scale, of_denoised, None)
    return _Slope(level, scale, of_x, of_denoised / of_x)


def _combine(h: float, weights: tuple[float, ...], slopes: list[_Slope]) -> Combination:
    """x + h Σ_j weights_j k_j, the directions newest first."""
    return Combination(1.0, tuple(h * w * s.weight for w, s in reversed(list(zip(weights, slopes, strict=False)))))


@dataclass(frozen=True)
class Euler(RungeKutta):
    """Euler's method: order 1, one evaluation a step. With σ(t) = t it is DDIM."""

    order = 1
    tableau = Tableau(((),), (1.0,))


def _two_stages(alpha: float) -> Tableau:
    return Tableau(((), (alpha,)), (1 - 1 / (2 * alpha), 1 / (2 * alpha)))


@dataclass(frozen=True)
class Alpha(RungeKutta):
    """The family of two-stage methods of order 2 (Karras et al. 2022, Algorithm 3).

    Args:
        alpha: the node of the second slope, as a fraction of the step; > 0. 1 is Heun, ½ midpoint, ⅔ Ralston. Values
            above 1 are beyond the end of the step; a stage below t = 0 is an error when sampling starts.

    Raises:
        ValueError: alpha is not > 0.
    """

    order = 2
    alpha: float = 1.0

    def __post_init__(self) -> None:
        checks.positive("alpha", self.alpha)

    @property
    def tableau(self) -> Tableau:
        """a = (α), b = (1 − 1/(2α), 1/(2α))."""
        return _two_stages(self.alpha)


@dataclass(frozen=True)
class Heun(RungeKutta):
    """Heun's method (Karras et al. 2022, Algorithm 1): order 2, two evaluations a step."""

    order = 2
    tableau = _two_stages(1.0)


@dataclass(frozen=True)
class Midpoint(RungeKutta):
    """The midpoint method: order 2, two evaluations a step."""

    order = 2
    tableau = _two_stages(1 / 2)


@dataclass(frozen=True)
class Ralston(RungeKutta):
    """Ralston's method: order 2 with the smallest error bound, two evaluations a step."""

    order = 2
    tableau = _two_stages(2 / 3)


@dataclass(frozen=True)
class RK4(RungeKutta):
    """The classical Runge–Kutta method of 1901: order 4, four evaluations a step."""

    order = 4
    tableau = Tableau(((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))
