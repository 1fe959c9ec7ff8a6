"""Tasks whose simulator solves an ordinary differential equation: sir and lotka_volterra.

The classical Runge-Kutta method runs for a whole batch at once, on the logarithms of the compartments: they stay > 0,
and exponential growth and decay, where populations cover many magnitudes, have no error at all.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float64
from torch import Tensor

from openedm.inference.priors import LogNormal
from openedm.inference.tasks.task import Data, Points, Rows, Task, normal

__all__ = ["SIR", "LotkaVolterra", "trajectory"]

State = tuple[Tensor, Tensor]
Parameters = tuple[Tensor, ...]

CHUNK_ROWS = 4096
"""Rows solved at a time, such that they stay in a processor's cache."""


def trajectory(field: Callable[[State], State], start: State, span: float, count: int, steps: int) -> list[State]:
    """The states at times 0, span, …, count·span, with `steps` equal steps of order 4 between two (Kutta 1901)."""
    states, h = [start], span / steps
    for _ in range(count):
        a, b = states[-1]
        for _ in range(steps):
            a1, b1 = field((a, b))
            a2, b2 = field((a + h / 2 * a1, b + h / 2 * b1))
            a3, b3 = field((a + h / 2 * a2, b + h / 2 * b2))
            a4, b4 = field((a + h * a3, b + h * b3))
            a = a + h / 6 * (a1 + 2 * (a2 + a3) + a4)
            b = b + h / 6 * (b1 + 2 * (b2 + b3) + b4)
        states.append((a, b))
    return states


class SIR(Task):
    """An epidemic: S' = −β S I/N, I' = β S I/N − γ I, N = 10⁶, I₀ = 1; x_k ~ Binomial(1000, I(17 k)/N), k = 0 … 9.

    Time in days. β ~ LogN(ln 0.4, 0.5), γ ~ LogN(ln 0.125, 0.2).
    """

    name = "sir"
    x_shape = (10,)
    prior = LogNormal((math.log(0.4), math.log(0.125)), (0.5, 0.2), ("beta", "gamma"))

    def infected(self, theta: Float64[Tensor, "*points 2"], steps: int = 68) -> Float64[Tensor, "*points 10"]:
        """I/N at the ten times, with `steps` steps between two of them."""

        def rates(theta: Parameters, state: State) -> State:
            (beta, gamma), (susceptible, infected) = theta, state
            return -beta * infected.exp(), beta * susceptible.exp() - gamma

        _, infected = _logarithms(theta, rates, (math.log1p(-1e-6), math.log(1e-6)), 17.0, steps)
        return infected.exp().clamp(0.0, 1.0)

    def _simulate(self, theta: Rows, generator: torch.Generator) -> Tensor:
        share = self.infected(theta)
        return torch.binomial(torch.full_like(share, 1000.0), share, generator=generator)

    def _log_likelihood(self, theta: Points, x: Data) -> Tensor:
        share = self.infected(theta)
        ways = math.lgamma(1001) - torch.lgamma(x + 1) - torch.lgamma(1001 - x)
        return torch.sum(ways + torch.xlogy(x, share) + torch.special.xlog1py(1000 - x, -share), -1)


class LotkaVolterra(Task):
    """Prey and predators: X' = αX − βXY, Y' = −γY + δXY, X₀ = 30, Y₀ = 1; x ~ LogN(ln u, 0.1).

    u is X at t = 0, 2.1, …, 18.9, then Y at these times, clipped to [10⁻¹⁰, 10⁴]. α, γ ~ LogN(−0.125, 0.5), β, δ ~
    LogN(−3, 0.5), in the order α, β, γ, δ.
    """

    name = "lotka_volterra"
    x_shape = (20,)
    prior = LogNormal((-0.125, -3.0, -0.125, -3.0), (0.5,) * 4, ("alpha", "beta", "gamma", "delta"))

    def log_populations(self, theta: Float64[Tensor, "*points 4"], steps: int = 168) -> Float64[Tensor, "*points 20"]:
        """ln X at the ten times, then ln Y, clipped, with `steps` steps between two of them."""

        def rates(theta: Parameters, state: State) -> State:
            (alpha, beta, gamma, delta), (prey, predators) = theta, state
            return alpha - beta * predators.exp(), delta * prey.exp() - gamma

        found = torch.cat(_logarithms(theta, rates, (math.log(30.0), 0.0), 2.1, steps), -1)
        # A trajectory that overflowed (far outside the prior) is clipped too.
        return found.nan_to_num(math.inf).clamp(math.log(1e-10), math.log(1e4))

    def _simulate(self, theta: Rows, generator: torch.Generator) -> Tensor:
        center = self.log_populations(theta)
        return (center + 0.1 * normal(generator, *center.shape)).exp()

    def _log_likelihood(self, theta: Points, x: Data) -> Tensor:
        log = x.log()
        residual = (log - self.log_populations(theta)) / 0.1
        return torch.sum(-(residual**2) / 2 - log - math.log(0.1 * math.sqrt(2 * math.pi)), -1)


def _logarithms(
    theta: Points,
    rates: Callable[[Parameters, State], State],
    start: tuple[float, float],
    span: float,
    steps: int,
) -> tuple[Float64[Tensor, "*points 10"], Float64[Tensor, "*points 10"]]:
    """The logarithms of both compartments at times 0, span, …, 9·span."""
    parts = []
    for rows in torch.split(theta.reshape(-1, theta.shape[-1]), CHUNK_ROWS):
        columns = rows.unbind(-1)
        initial = torch.full_like(columns[0], start[0]), torch.full_like(columns[0], start[1])
        states = trajectory(partial(rates, columns), initial, span, 9, steps)
        parts.append(torch.stack([torch.stack(state) for state in states], -1))
    first, second = torch.cat(parts, 1).reshape(2, *theta.shape[:-1], 10)
    return first, second
