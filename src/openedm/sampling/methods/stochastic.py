"""Stochastic samplers other than EDM's churn: their marginals are p(x; σ) in the limit of many steps.

The family (Karras et al. 2022, eq. 6), with β(t) = η(σ) σ̇/σ and η any function ≥ 0 of σ:

    dx = (1 + η) (x − D) dσ/σ + √(2η) σ dω,   run from high σ to low, with ω a Brownian motion in ln σ.

| solver | a step σ → σ', ε = (x − D)/σ |
|---|---|
| EulerMaruyama(η) | x + (1+η) (σ'−σ) ε + √(2η σ (σ−σ')) n |
| `Multistep(eta=η)`, such as `DPMSolverPP2M(eta=1)` | exact linear part and noise, any order in q |
| Ancestral(η) | D + σ_down ε + σ_up n, σ_up = min(σ', η √(σ'²(σ²−σ'²)/σ²)), σ_down² = σ'² − σ_up² |
| PredictorCorrector | a solver's step, then M times x + δ s + √(2δ) n with the score s, δ = 2 (r σ)² |
| `Restart` | at the first level ≤ σ_low, K times: noise up to σ_high, then the solver from σ_high to σ_low |

Sources: Song et al. 2021a (DDIM's η; ancestral at η = 1), Song et al. 2021b (predictor–corrector, Algorithms 2 and 4),
Xu et al. 2023 (Restart), Lu et al. 2022b (SDE-DPM-Solver++).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.levels import EDM_SIGMA_DATA, numbers_for_data
from openedm.sampling.engine.plan import Combination, Grid, Noise, Plan, PlannedSolver, Stage, Step

__all__ = [
    "Ancestral",
    "BandEta",
    "ConstantEta",
    "Eta",
    "EulerMaruyama",
    "OneEvaluationSolver",
    "PredictorCorrector",
]


class Eta(Choice, ABC):
    """The rate at which noise is replaced, η(σ) ≥ 0: β(t) = η(σ(t)) σ̇(t)/σ(t) of the sampling SDE."""

    @abstractmethod
    def value(self, sigma: float) -> float:
        """η at noise level σ."""

    def for_data(self, sigma_data: float) -> "Eta":
        """The same function for data of standard deviation `sigma_data`; itself unless it has levels that follow it."""
        return self


@dataclass(frozen=True)
class ConstantEta(Eta):
    """The same η at every level; 1 is the reverse of the diffusion, 0 the ODE.

    Args:
        eta: η ≥ 0.

    Raises:
        ValueError: eta is not finite and ≥ 0.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        checks.at_least("eta", self.eta, 0)
        checks.finite("eta", self.eta)

    def value(self, sigma: float) -> float:
        """η."""
        return self.eta


@dataclass(frozen=True)
class BandEta(Eta):
    """η between two noise levels and 0 outside, as EDM's churn is used.

    Args:
        eta: η ≥ 0.
        low: the lowest level with noise, ≥ 0; None means EDM's 0.05 for σ_data = 0.5, in proportion to σ_data.
        high: the highest level with noise; None means EDM's 50, in the same proportion.

    Raises:
        ValueError: a value is out of its range.
    """

    eta: float = 1.0
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        checks.at_least("eta", self.eta, 0)
        checks.finite("eta", self.eta)
        if self.low is not None:
            checks.at_least("low", self.low, 0)
        if self.high is not None:
            checks.positive("high", self.high)
        if self.low is not None and self.high is not None:
            checks.ordered("low", self.low, "high", self.high)

    def for_data(self, sigma_data: float) -> "BandEta":
        """The band with both ends: EDM's times σ_data/0.5 where they are None."""
        return numbers_for_data(self, sigma_data, {"low": 0.05, "high": 50.0})

    def value(self, sigma: float) -> float:
        """η if low ≤ σ ≤ high, otherwise 0."""
        band = self.for_data(EDM_SIGMA_DATA)
        assert band.low is not None
        assert band.high is not None
        return self.eta if band.low <= sigma <= band.high else 0.0


class OneEvaluationSolver(PlannedSolver):
    """A solver with one evaluation a step: x' = x + w ε + noise."""

    order = 1
    one_step = True
    stochastic = True

    def evaluations(self, num_steps: int) -> int:
        """One evaluation a level."""
        return num_steps

    def for_data(self, sigma_data: float) -> "OneEvaluationSolver":
        """The same solver for data of standard deviation `sigma_data`."""
        return self

    @abstractmethod
    def weights(self, sigma: float, sigma_next: float) -> tuple[float, float]:
        """The weight of ε = (x − D)/σ in x' − x, and the standard deviation of the noise."""

    def plan(self, grid: Grid) -> Plan:
        """Steps between neighbouring levels; the last returns D."""
        steps = []
        solver = self.for_data(grid.sigma_data)
        for sigma, sigma_next in pairwise(grid.sigmas):
            weight, std = solver.weights(sigma, sigma_next)
            noise = Noise(std, between=(sigma, sigma_next)) if std > 0 else None
            advance = Combination(1.0, (weight / sigma,))
            steps.append(Step(sigma, sigma, 1.0, (_residual(sigma),), advance, after=noise))
        last = grid.sigmas[-1]
        return Plan((*steps, Step(last, last, 1.0, (_residual(last),), None)))


def _residual(sigma: float) -> Stage:
    """x − D."""
    return Stage(torch.tensor(sigma, dtype=torch.float64), 1.0, -1.0)


@dataclass(frozen=True)
class EulerMaruyama(OneEvaluationSolver):
    """The Euler–Maruyama method on the sampling SDE with any η(σ); strong order 1 (the noise is additive).

    Args:
        eta: η(σ), evaluated at the start of each step.
    """

    eta: Eta = ConstantEta()

    def for_data(self, sigma_data: float) -> "EulerMaruyama":
        """The solver with the η of these data."""
        return replace(self, eta=self.eta.for_data(sigma_data))

    def weights(self, sigma: float, sigma_next: float) -> tuple[float, float]:
        """(1+η) (σ'−σ), √(2η σ (σ−σ'))."""
        eta = self.eta.value(sigma)
        return (1 + eta) * (sigma_next - sigma), math.sqrt(2 * eta * sigma * (sigma - sigma_next))


@dataclass(frozen=True)
class Ancestral(OneEvaluationSolver):
    """Ancestral sampling (DDPM at η = 1; DDIM's interpolation for 0 < η < 1): each step ends exactly at noise level σ'.

    Args:
        eta: η > 0.

    Raises:
        ValueError: eta is not > 0; `DDIM` is the deterministic limit.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        checks.positive("eta", self.eta)

    def weights(self, sigma: float, sigma_next: float) -> tuple[float, float]:
        """σ_down − σ, σ_up."""
        up = min(sigma_next, self.eta * sigma_next * math.sqrt(max(sigma**2 - sigma_next**2, 0.0)) / sigma)
        return math.sqrt(max(sigma_next**2 - up**2, 0.0)) - sigma, up


@dataclass(frozen=True)
class PredictorCorrector(PlannedSolver):
    """Predictor–corrector sampling (Song et al. 2021b): after each step, Langevin steps at the new level.

    With δ = 2 (r σ)² and the score s = (D − x)/σ², x + δ s + √(2δ) n = x − 2r² (x − D) + 2rσ n.

    The paper's step size 2 (r ‖n‖/‖s‖)² has norms averaged over the batch. Here ‖n‖/‖s‖ is σ, its value for data near a
    manifold of few dimensions, such as images: then a sample does not depend on the batch, and the step is as stable in
    two dimensions, where norms vary between samples and would bias them, as in thousands. Langevin steps widen p(x; σ):
    variances are up to 1/(1 − r²) times too large, and diverge at r = 1. A predictor of first order narrows p(x; σ)
    more than that where levels are few, as it does alone.

    Args:
        predictor: any one-step solver on fixed levels.
        snr: 0 < r < 1, the signal-to-noise ratio of a Langevin step.
        corrections: M ≥ 1, the number of Langevin steps at each level.

    Raises:
        ValueError: a value is out of its range, or the predictor is not a one-step solver.
    """

    stochastic = True
    predictor: PlannedSolver = Ancestral()
    snr: float = 0.16
    corrections: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.snr < 1:
            raise ValueError(f"snr must be between 0 and 1, both excluded, got {self.snr!r}")
        checks.integer("corrections", self.corrections, 1)
        if not self.predictor.one_step:
            raise ValueError(f"predictor must be a one-step solver, got {self.predictor}")

    @property
    def order(self) -> int:
        """The order of the predictor."""
        return self.predictor.order

    @property
    def uses_path_noise(self) -> bool:
        """Whether the predictor uses it; Langevin steps do not change the level."""
        return self.predictor.uses_path_noise

    @property
    def adds_levels(self) -> bool:
        """Whether the predictor adds levels."""
        return self.predictor.adds_levels

    def evaluations(self, num_steps: int) -> int:
        """The evaluations of the predictor, and M at every level except the first."""
        return (self.predictor.evaluations(num_steps) or 0) + self.corrections * (num_steps - 1)

    def plan(self, grid: Grid) -> Plan:
        """The Langevin steps of a level, and then the predictor's step from it, level by level."""
        first, *further = self.predictor.planned(grid).steps
        return Plan((first, *(each for step in further for each in (*self._langevin(step.sigma), step))))

    def _langevin(self, sigma: float) -> list[Step]:
        advance = Combination(1.0, (-2 * self.snr**2,))
        noise = Noise(2 * self.snr * sigma)
        return [Step(sigma, sigma, 1.0, (_residual(sigma),), advance, after=noise, reported=False)] * self.corrections
