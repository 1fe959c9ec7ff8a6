"""Exponential integration of the sampling equation: its linear part exactly, a predicted quantity by interpolation.

In ln σ the family of sampling equations is (Karras et al. 2022, eq. 6, with β(t) = η σ̇/σ)

    dx = (1+η) (x − D(x; σ)) dσ/σ + √(2η) σ dω,

whose marginals are p(x; σ) for every η ≥ 0; η = 0 is the probability-flow ODE, η = 1 the reverse of dx = √(2σ) dω.
A network predicts q = a x + b D (`openedm.preconditioning`: ε, D, velocity, EDM's F). With D = (q − a x)/b the equation
is linear in x and q, so from σ to σ'

    x(σ') = Φ(σ')/Φ(σ) x(σ) − ∫_σ^σ' Φ(σ')/Φ(s) (1+η)/(b(s) s) q(s) ds + noise,   ln Φ = ∫ (1+η) (1 + a/b) ds/s,
    noise variance  ∫_σ'^σ (Φ(σ')/Φ(s))² 2η s ds.

q is interpolated by a polynomial in the time u(σ) of a schedule, through its values at past levels; the integrals are
taken by Gauss–Legendre quadrature in ln s. η is constant within a step, so that the equation of the step is a member of
the family.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from openedm.preconditioning import Prediction
from openedm.sampling.engine.plan import Stage
from openedm.schedules import Schedule

__all__ = ["RULES", "Rule", "RuleName", "StepWeights", "stages_at", "step_weights", "unit_of"]

NUM_POINTS = 48
"""The number of points of the quadrature in ln s."""


class Rule(NamedTuple):
    """The rule for the moments ∫ K τ^p of a step's kernel K.

    Attributes:
        shortcut: for n nodes, the n×n matrix that maps the exact moments to those of the rule.
        even: whether nodes are assumed to be equally spaced in τ.
    """

    shortcut: Callable[[int], Float64[Tensor, "n n"]]
    even: bool = False


def _exact(n: int) -> Float64[Tensor, "n n"]:
    """m_p, the exact moments."""
    return torch.eye(n, dtype=torch.float64)


def _midpoint(n: int) -> Float64[Tensor, "n n"]:
    """m_1 = m_0/2 for two nodes."""
    return torch.tensor([[1.0, 0.0], [0.5, 0.0]], dtype=torch.float64) if n == 2 else _exact(n)


def _dpm_solver_pp(n: int) -> Float64[Tensor, "n n"]:
    """m_1 = m_0/2 for two nodes, and half of m_2 for three."""
    return torch.tensor([1.0, 1.0, 0.5], dtype=torch.float64).diag() if n == 3 else _midpoint(n)


def _adams(n: int) -> Float64[Tensor, "n n"]:
    """m_p = m_0/(p+1)."""
    matrix = torch.zeros(n, n, dtype=torch.float64)
    matrix[:, 0] = 1 / torch.arange(1, n + 1, dtype=torch.float64)
    return matrix


RuleName = Literal["exact", "midpoint", "dpm-solver++", "adams-bashforth"]
RULES: dict[RuleName, Rule] = {
    "exact": Rule(_exact),
    "midpoint": Rule(_midpoint),
    "dpm-solver++": Rule(_dpm_solver_pp),
    "adams-bashforth": Rule(_adams, even=True),
}
"""The exact moments, and the approximations of published methods:

- "midpoint": DPM-Solver-2, DPM-Solver++(2M), UniPC with B(h) = e^h − 1;
- "dpm-solver++": DPM-Solver++(3M) as published;
- "adams-bashforth": τ_j = −j, as if the steps were equal (iPNDM); τ_j = 1 − j if the first node is the end, which is
  Adams–Moulton.
"""


class StepWeights(NamedTuple):
    """x(σ') = `keep` · x(σ) + Σ_j `of_past`[:, j] · q(node_j) + `noise_std` · n, one row a step."""

    keep: Float64[Tensor, "steps"]
    of_past: Float64[Tensor, "steps nodes"]
    noise_std: Float64[Tensor, "steps"]


def step_weights(
    prediction: Prediction,
    variable: Schedule,
    start: Float64[Tensor, "steps"],
    end: Float64[Tensor, "steps"],
    nodes: Float64[Tensor, "steps nodes"],
    *,
    rule: RuleName = "exact",
    eta: float | Float64[Tensor, "steps"] = 0.0,
) -> StepWeights:
    """The weights of steps from levels `start` to levels `end` that interpolate q at `nodes`.

    With τ = (u − u(start))/(u(end) − u(start)) and the moments m_p = ∫ K τ^p of the integral's kernel K, the weights
    solve Σ_j w_j τ_j^p = m_p.

    Args:
        prediction: q.
        variable: u, the time of a schedule.
        start: σ > 0.
        end: σ' > 0.
        nodes: levels at which q is known, different within a row.
        rule: the rule for the moments (`RULES`).
        eta: η ≥ 0, one for all steps or for each; 0 is the ODE.

    Raises:
        ValueError: the start and the end of a step are equal.
    """
    repeated = start[start == end]
    if len(repeated) > 0:
        raise ValueError(
            f"levels must differ for an exponential solver, got sigma = {float(repeated[0]):g} twice in a row: use "
            "fewer steps, because the denoiser does not support levels between them"
        )
    drift = 1 + torch.as_tensor(eta, dtype=torch.float64).expand_as(start)
    points, quadrature_weights = _legendre(NUM_POINTS)
    low, high = end.log()[:, None], start.log()[:, None]
    s = (high + (low - high) * points).exp()
    ds = (low - high) * quadrature_weights * s
    growth = (drift[:, None] * (prediction.log_growth(end)[:, None] - prediction.log_growth(s))).exp()
    keep = (drift * (prediction.log_growth(end) - prediction.log_growth(start))).exp()
    kernel = -drift[:, None] * growth * ds / (prediction.coefficients(s)[1] * s)
    variance = -(growth.square() * 2 * (drift - 1)[:, None] * s * ds).sum(1)
    origin = variable.time(start)[:, None]
    length = variable.time(end)[:, None] - origin
    powers = torch.arange(nodes.shape[1], dtype=torch.float64)
    moments = (kernel[:, :, None] * ((variable.time(s) - origin) / length)[:, :, None] ** powers).sum(1)
    chosen_rule = RULES[rule]
    tau = (
        (nodes[:, :1] == end[:, None]).to(powers) - powers
        if chosen_rule.even
        else (variable.time(nodes) - origin) / length
    )
    vandermonde = (tau[:, :, None] ** powers).mT
    of_past = torch.linalg.solve(vandermonde, moments @ chosen_rule.shortcut(nodes.shape[1]).T)
    return StepWeights(keep, of_past, variance.clamp(min=0).sqrt())


def unit_of(prediction: Prediction, sigma: Float64[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
    """The factor of a stage's direction x + (b/a) D, or D if a = 0, in q = a x + b D."""
    of_x, of_denoised = prediction.coefficients(sigma)
    return torch.where(of_x != 0, of_x, of_denoised)


def stages_at(prediction: Prediction, sigmas: Float64[Tensor, "levels"]) -> list[Stage]:
    """Evaluations at some levels, whose directions are q divided by `unit_of`."""
    of_x, of_denoised = prediction.coefficients(sigmas)
    ratios = (of_denoised / of_x).tolist()
    return [Stage(s, 1.0, r if math.isfinite(r) else None) for s, r in zip(sigmas.unbind(), ratios, strict=True)]


@cache
def _legendre(count: int) -> tuple[Float64[Tensor, " count"], Float64[Tensor, " count"]]:
    """Gauss–Legendre points and masses on [0, 1]."""
    points, quadrature_weights = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(count))
    return (points + 1) / 2, quadrature_weights / 2
