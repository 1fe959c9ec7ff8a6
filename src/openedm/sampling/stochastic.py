"""Stochastic samplers beside EDM's churn: all have p(x; σ) as their marginals, in the limit of many steps.

The family (Karras et al. 2022, eq. 6), with β(t) = η(σ) σ̇/σ and η any function ≥ 0 of σ:

    dx = (1 + η) (x − D) dσ/σ + √(2η) σ dω,   run from high σ to low, with ω a Brownian motion in ln σ.

| solver | a step σ → σ' |
|---|---|
| EulerMaruyama(η) | x + (1+η) (σ'−σ) ε + √(2η σ (σ−σ')) n |
| `Multistep(eta=η)`, such as `DPMSolverPP2M(eta=1)` | exact linear part and noise, any order in q |
| Ancestral(η) | D + σ_down ε + σ_up n, σ_up = min(σ', η √(σ'²(σ²−σ'²)/σ²)), σ_down² = σ'² − σ_up² |
| PredictorCorrector | a solver's step, then M times x + δ s + √(2δ) n with the score s, δ = 2 (r σ)² |
| Restart | where σ first falls to σ_low, K times: noise up to σ_high, then the solver down to σ_low again |

Sources: Song et al. 2021a (DDIM's η; ancestral at η = 1), Song et al. 2021b (predictor–corrector, Algorithms 2 and 4),
Xu et al. 2023 (Restart), Lu et al. 2022b (SDE-DPM-Solver++).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from openedm.denoiser import Condition, Denoiser
from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.levels import Karras
from openedm.sampling.grid import Grid
from openedm.sampling.noise import NoiseSource, unit_noise
from openedm.sampling.plan import Combination, Plan, Stage, State, Step, execute
from openedm.sampling.solvers import Heun, PlannedSolver, Solver, planned


class Eta(Choice, ABC):
    """How strongly noise is replaced, η(σ) ≥ 0: β(t) = η(σ(t)) σ̇(t)/σ(t) of the sampling SDE."""

    @abstractmethod
    def value(self, sigma: float) -> float:
        """η at noise level σ."""


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
        low: the lowest level with noise, ≥ 0.
        high: the highest.

    Raises:
        ValueError: a value is out of its range.
    """

    eta: float = 1.0
    low: float = 0.05
    high: float = 50.0

    def __post_init__(self) -> None:
        checks.at_least("eta", self.eta, 0)
        checks.finite("eta", self.eta)
        checks.at_least("low", self.low, 0)
        checks.ordered("low", self.low, "high", self.high)

    def value(self, sigma: float) -> float:
        """η where low ≤ σ ≤ high."""
        return self.eta if self.low <= sigma <= self.high else 0.0


class _OneEvaluation(PlannedSolver):
    """One evaluation a step; x' = a x + w (x − D) + noise."""

    @property
    def stochastic(self) -> bool:
        """It draws noise at every step."""
        return True

    def evaluations(self, num_steps: int) -> int:
        """One a level."""
        return num_steps

    @abstractmethod
    def weights(self, sigma: float, sigma_next: float) -> tuple[float, float]:
        """The weight of ε = (x − D)/σ in x' − x, and the standard deviation of the noise."""

    def plan(self, grid: Grid) -> Plan:
        """Steps between neighbouring levels; the last returns D."""
        steps = []
        for i, (sigma, following) in enumerate(pairwise((*grid.sigmas, 0.0))):
            stage = Stage(sigma, torch.tensor(sigma, dtype=torch.float64), 1.0, -1.0)
            if i == len(grid.sigmas) - 1:
                steps.append(Step(i, sigma, sigma, 1.0, (stage,), None))
                continue
            weight, noise = self.weights(sigma, following)
            advance = Combination(1.0, (weight / sigma,))
            steps.append(Step(i, sigma, sigma, 1.0, (stage,), advance, noise_after=noise, sigma_after=following))
        return Plan(tuple(steps))


@dataclass(frozen=True)
class EulerMaruyama(_OneEvaluation):
    """The Euler–Maruyama method on the sampling SDE with any η(σ); strong order 1 (the noise is additive).

    Args:
        eta: η(σ), taken at the start of each step.
    """

    eta: Eta = ConstantEta()

    @property
    def order(self) -> int:
        """1."""
        return 1

    def weights(self, sigma: float, sigma_next: float) -> tuple[float, float]:
        """(1+η) (σ'−σ), √(2η σ (σ−σ'))."""
        eta = self.eta.value(sigma)
        return (1 + eta) * (sigma_next - sigma), math.sqrt(2 * eta * sigma * (sigma - sigma_next))


@dataclass(frozen=True)
class Ancestral(_OneEvaluation):
    """Ancestral sampling (DDPM at η = 1; DDIM's interpolation for 0 < η < 1): each step ends exactly at noise level σ'.

    Args:
        eta: η > 0.

    Raises:
        ValueError: eta is not > 0; `DDIM` is the deterministic limit.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        checks.positive("eta", self.eta)

    @property
    def order(self) -> int:
        """1."""
        return 1

    def weights(self, sigma: float, sigma_next: float) -> tuple[float, float]:
        """σ_down − σ, σ_up."""
        up = min(sigma_next, self.eta * sigma_next * math.sqrt(max(sigma**2 - sigma_next**2, 0.0)) / sigma)
        return math.sqrt(max(sigma_next**2 - up**2, 0.0)) - sigma, up


@dataclass(frozen=True)
class Restart(PlannedSolver):
    """Restart sampling (Xu et al. 2023): a solver of the ODE, and noise all at once instead of in every step.

    Where the levels first fall to `low` or below, noise of variance high² − low² is added and the way from `high` down
    is gone again, on levels of its own, `repeats` times.

    Args:
        solver: any deterministic solver on fixed levels.
        low: σ_low > 0, where noise is added. The level of the grid next below it is taken.
        high: σ_high > low, how far up it leads.
        repeats: K ≥ 1.
        num_steps: steps from σ_high to σ_low, ≥ 1, at Karras's levels.

    Raises:
        ValueError: a value is out of its range, or the solver is stochastic.
    """

    solver: PlannedSolver = Heun()
    low: float = 0.06
    high: float = 0.3
    repeats: int = 2
    num_steps: int = 3

    def __post_init__(self) -> None:
        checks.positive("low", self.low)
        checks.positive("high", self.high)
        checks.ordered("low", self.low, "high", self.high)
        checks.integer("repeats", self.repeats)
        checks.at_least("repeats", self.repeats, 1)
        checks.integer("num_steps", self.num_steps)
        checks.at_least("num_steps", self.num_steps, 1)
        if self.solver.stochastic:
            raise ValueError(f"solver must be deterministic, got {self.solver}")

    @property
    def order(self) -> int:
        """The solver's."""
        return self.solver.order

    @property
    def stochastic(self) -> bool:
        """It adds noise at every restart."""
        return True

    @property
    def follows_paths(self) -> bool:
        """Noise that leads back up is new each time."""
        return False

    @property
    def curved(self) -> bool:
        """As the solver."""
        return self.solver.curved

    @property
    def adds_levels(self) -> bool:
        """The ways down again."""
        return True

    def evaluations(self, num_steps: int) -> int:
        """The solver's, and those of the ways down again."""
        per_step = (self.solver.evaluations(3) or 0) - (self.solver.evaluations(2) or 0)
        return (self.solver.evaluations(num_steps) or 0) + self.repeats * self.num_steps * per_step

    def plan(self, grid: Grid) -> Plan:
        """The solver's plans of the ways between restarts, one after the other.

        Raises:
            ValueError: the levels do not pass both `low` and `high`.
        """
        turn = next((i for i, sigma in enumerate(grid.sigmas) if sigma <= self.low), None)
        if turn is None or turn == 0 or grid.sigmas[0] < self.high:
            raise ValueError(
                f"low={self.low:g} and high={self.high:g} must lie inside the levels, which go from "
                f"{grid.sigmas[0]:g} to {grid.sigmas[-1]:g}"
            )
        low = grid.sigmas[turn]
        high, *lower = (grid.rounded(sigma) for sigma in Karras(self.num_steps + 1, low, self.high).sigmas().tolist())
        sections = [grid.sigmas[: turn + 1], *[(high, *lower)] * self.repeats]
        # D is not evaluated where a section but the last ends: noise is added to what has arrived there.
        steps = [step for section in sections[:-1] for step in self._steps(grid, section)[:-1]]
        steps += self._steps(grid, (*sections[-1], *grid.sigmas[turn + 1 :]))
        bottom = self._steps(grid, sections[0])[-1]
        for k in range(self.repeats):
            at = turn + k * self.num_steps
            steps[at] = replace(
                steps[at],
                time=bottom.time,
                sigma=low,
                scale=bottom.scale,
                rescale=steps[at].scale / bottom.scale,
                noise_std=math.sqrt(high**2 - low**2) * steps[at].scale,
            )
        return Plan(tuple(replace(step, index=i) for i, step in enumerate(steps)))

    def _steps(self, grid: Grid, sigmas: tuple[float, ...]) -> tuple[Step, ...]:
        return planned(self.solver, replace(grid, sigmas=sigmas)).steps


@dataclass(frozen=True)
class PredictorCorrector(Solver):
    """Predictor–corrector sampling (Song et al. 2021b): after each step, Langevin steps at the new level.

    The paper's step size 2 (r ‖n‖/‖s‖)² has norms averaged over the batch. Here ‖n‖/‖s‖ is σ, its value for data near a
    manifold of few dimensions, such as images: then a sample does not depend on its neighbours, and the step is as
    stable in two dimensions, where single norms vary and would bias the samples, as in thousands. Langevin steps
    widen p(x; σ): variances come out up to 1/(1 − r²) times too large, and without bound at r = 1.

    Args:
        predictor: any one-step solver on fixed levels.
        snr: 0 < r < 1, the signal-to-noise ratio of a Langevin step.
        corrections: M ≥ 1, the number of Langevin steps at each level.

    Raises:
        ValueError: a value is out of its range, or the predictor remembers earlier steps or restarts.
    """

    predictor: PlannedSolver = Ancestral()
    snr: float = 0.16
    corrections: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.snr < 1:
            raise ValueError(f"snr must be between 0 and 1, both excluded, got {self.snr!r}")
        checks.integer("corrections", self.corrections)
        checks.at_least("corrections", self.corrections, 1)
        restarts = isinstance(self.predictor, Restart)
        if restarts or any(step.remember for step in self.predictor.plan(Grid((3.0, 2.9, 2.8))).steps):
            raise ValueError(f"predictor must be a one-step solver, got {self.predictor}")

    @property
    def order(self) -> int:
        """The predictor's."""
        return self.predictor.order

    @property
    def stochastic(self) -> bool:
        """Langevin steps draw noise."""
        return True

    @property
    def follows_paths(self) -> bool:
        """The predictor may; Langevin steps stay at their level."""
        return self.predictor.follows_paths

    def evaluations(self, num_steps: int) -> int:
        """The predictor's, and M at every level but the first."""
        return (self.predictor.evaluations(num_steps) or 0) + self.corrections * (num_steps - 1)

    def prepare(self, grid: Grid) -> None:
        """Plan the predictor, which refuses what cannot be followed."""
        planned(self.predictor, grid)

    def run(
        self, denoiser: Denoiser, x: Tensor, grid: Grid, condition: Condition, source: NoiseSource | None
    ) -> Iterator[State]:
        """A step of the predictor, then the Langevin steps, level by level."""
        return self._run(planned(self.predictor, grid), denoiser, x, condition, source)

    def _run(
        self, plan: Plan, denoiser: Denoiser, x: Tensor, condition: Condition, source: NoiseSource | None
    ) -> Iterator[State]:
        for step in plan.steps:
            if step.index > 0:
                for _ in range(self.corrections):
                    x = self._langevin(denoiser, x, step.stages[0].sigma, condition, source)
            state, following = execute(Plan((step,)), denoiser, x, condition, source)
            yield state
            x = following.x
        yield State(len(plan.steps), 0.0, 0.0, 1.0, x, x)

    def _langevin(
        self, denoiser: Denoiser, x: Tensor, sigma: Tensor, condition: Condition, source: NoiseSource | None
    ) -> Tensor:
        """x + δ s + √(2δ) n."""
        score = denoiser.score(x, sigma, condition)
        noise = unit_noise(source, x)
        delta = 2 * (self.snr * float(sigma)) ** 2
        return torch.add(x + delta * score, noise, alpha=math.sqrt(2 * delta))

    def climb(self, denoiser: Denoiser, x: Tensor, grid: Grid, condition: Condition) -> Iterator[State]:
        """Not to be had: noise has no inverse.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"solver must be deterministic for inversion, got {self}")
