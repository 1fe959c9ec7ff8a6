"""The numbers of a sampling run that do not depend on x, planned once in float64 on the host, and their execution.

A step of a method on fixed levels evaluates the denoiser at one or more stages. Each stage gives a direction r = x + q
D (or D itself); states are weighted sums of the present state and of known directions, newest first:

    x_{i+1} = a x_i + Σ_j w_j r_j + noise.

Runge–Kutta methods discard their directions at the end of a step; multistep methods keep them. Weights are numbers, or
tensors that broadcast over the batch, one weight for each coordinate.

A new method on fixed levels is a `PlannedSolver`, which makes a `Plan` from a `Grid`; this module executes the plan.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from openedm import schedules
from openedm.denoiser import Condition, Denoiser
from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.sampling.noise import NoiseSource, unit_noise
from openedm.schedules import NoScaling, Scaling, Schedule

__all__ = [
    "Churn",
    "Combination",
    "Grid",
    "Noise",
    "Plan",
    "PlannedSolver",
    "Solver",
    "Stage",
    "State",
    "Step",
    "execute",
    "unscaled",
]

Final = Literal["denoise", "euler"]
Weight = float | Tensor


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
        ValueError: a value is out of its range, or an option is set that has no effect at `s_churn = 0`.
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


def _identity(sigma: Tensor) -> Tensor:
    return sigma


@dataclass(frozen=True)
class Grid:
    """The levels of one run and the curve through them.

    Attributes:
        sigmas: σ_0 … σ_{N−1}, rounded to levels that the denoiser supports; decreasing, or increasing for an inversion.
        schedule: σ(t).
        scaling: s(σ).
        churn: the amount of noise that is added at each level.
        final: the step from the lowest level to 0.
        round_sigma: the denoiser's rounding, applied to levels that a solver adds.
    """

    sigmas: tuple[float, ...]
    schedule: Schedule = schedules.EDM()
    scaling: Scaling = NoScaling()
    churn: Churn = Churn()
    final: Final = "denoise"
    round_sigma: Callable[[Tensor], Tensor] = field(default=_identity, compare=False)

    def rounded(self, sigma: float) -> float:
        """The nearest level that the denoiser supports."""
        return float(self.round_sigma(torch.tensor(sigma, dtype=torch.float64)))

    def scale(self, sigma: float) -> float:
        """s(σ)."""
        return float(self.scaling.scale(sigma))


@dataclass(frozen=True)
class State:
    """The state of a run at one level, before the step from it.

    Attributes:
        index: i, from 0 (pure noise) to N (the finished sample).
        time: t_i; 0 at the end.
        sigma: σ_i; 0 at the end.
        scale: s(t_i); 1 at the end.
        x: the state x(t_i); the noisy sample in data units is x / scale.
        denoised: D at this level (of the churned state with churn); x itself at the end.
    """

    index: int
    time: float
    sigma: float
    scale: float
    x: Float[Tensor, "batch *event"]
    denoised: Float[Tensor, "batch *event"]


@dataclass(frozen=True)
class Combination:
    """`keep` · x + Σ_j `weights`[j] · r_j, with r_0 the newest direction; x itself by default."""

    keep: Weight = 1.0
    weights: tuple[Weight, ...] = ()

    def __call__(
        self, x: Float[Tensor, "batch *event"], directions: Sequence[Float[Tensor, "batch *event"]]
    ) -> Float[Tensor, "batch *event"]:
        """The sum; x and the directions are not modified."""
        keep, total = self.keep, x
        if isinstance(keep, Tensor):
            total = x * keep.to(x)
        elif keep != 1:
            total = x * keep
        for weight, direction in zip(self.weights, directions, strict=False):
            if isinstance(weight, Tensor):
                total = torch.addcmul(total, direction, weight.to(x))
            elif weight != 0:
                total = torch.add(x, direction, alpha=weight) if total is x else total.add_(direction, alpha=weight)
        return total


@dataclass(frozen=True)
class Noise:
    """Noise that a step adds: `rescale` · x + `std` · n, with n unit Gaussian.

    Attributes:
        std: the standard deviation, > 0.
        rescale: the factor of x, other than 1 if the scale s changes with the noise level.
        between: the two levels of the increment of a Brownian path, for sources with paths; None for new noise.
    """

    std: float
    rescale: float = 1.0
    between: tuple[float, float] | None = None

    def add(self, x: Float[Tensor, "batch *event"], source: NoiseSource | None) -> Float[Tensor, "batch *event"]:
        """The noisy state."""
        noise = unit_noise(source, x, self.between)
        return torch.add(x if self.rescale == 1 else x * self.rescale, noise, alpha=self.std)


@dataclass(frozen=True)
class Stage:
    """One evaluation D(x/`scale`; `sigma`), with the direction x + `of_denoised` · D, or D if `of_denoised` is None.

    Attributes:
        sigma: the noise level.
        scale: s at this level.
        of_denoised: the weight of D in the direction, in units of the weight of x.
        point: x, as a combination of the state at the start of the step and the directions known so far.
    """

    sigma: Float64[Tensor, ""]
    scale: float
    of_denoised: Weight | None
    point: Combination = Combination()

    def direction(
        self, x: Float[Tensor, "batch *event"], denoised: Float[Tensor, "batch *event"]
    ) -> Float[Tensor, "batch *event"]:
        """The direction of the evaluation."""
        weight = self.of_denoised
        if weight is None:
            return denoised
        return torch.addcmul(x, denoised, weight.to(x)) if isinstance(weight, Tensor) else x.add(denoised, alpha=weight)


@dataclass(frozen=True)
class Step:
    """One step, from a level to the next.

    Attributes:
        time: t_i.
        sigma: σ_i.
        scale: s(t_i).
        stages: the evaluations, in order, the first at the start of the step.
        advance: x_{i+1}; None for the last step, which returns D.
        correct: the corrected x_i from x_{i−1} and the directions known after the first evaluation; None without
            corrector.
        before: noise added before the first evaluation, which is then at a level above σ_i; None for none.
        after: noise added at the end of the step; None for none.
        remember: the number of directions that the next step may use.
        reported: whether the run yields a `State` here; false if the next step starts at the same level.
    """

    time: float
    sigma: float
    scale: float
    stages: tuple[Stage, ...]
    advance: Combination | None
    correct: Combination | None = None
    before: Noise | None = None
    after: Noise | None = None
    remember: int = 0
    reported: bool = True


@dataclass(frozen=True)
class Plan:
    """A whole run: its steps, and the time, noise level and scale at its end."""

    steps: tuple[Step, ...]
    time: float = 0.0
    sigma: float = 0.0
    scale: float = 1.0


def execute(
    plan: Plan, denoiser: Denoiser, x: Float[Tensor, "batch *event"], condition: Condition, source: NoiseSource | None
) -> Iterator[State]:
    """Execute a plan from state x, and yield the states at its levels and at its end."""
    index, previous = 0, x
    known: tuple[Tensor, ...] = ()  # directions, newest first
    for step in plan.steps:
        start = x if step.before is None else step.before.add(x, source)
        first, *further = step.stages
        denoised = denoiser(unscaled(start, first.scale), first.sigma, condition)
        if step.reported:
            yield State(index, step.time, step.sigma, step.scale, x, denoised)
            index += 1
        if step.advance is None:
            x = denoised
            continue
        known = (first.direction(start, denoised), *known)
        for stage in further:
            point = stage.point(start, known)
            denoised = denoiser(unscaled(point, stage.scale), stage.sigma, condition)
            known = (stage.direction(point, denoised), *known)
        if step.correct is not None:
            start = step.correct(previous, known)
        previous = start  # assigned before the sum, which frees the state before it
        x = step.advance(start, known)
        if step.after is not None:
            x = step.after.add(x, source)
        known = known[: step.remember]
    yield State(index, plan.time, plan.sigma, plan.scale, x, x)


def unscaled(x: Float[Tensor, "batch *event"], scale: float) -> Float[Tensor, "batch *event"]:
    """x / s."""
    return x if scale == 1 else x / scale


class Solver(Choice, ABC):
    """A method that solves the sampling equation from the first level of a grid to the last, and then to 0."""

    @property
    @abstractmethod
    def order(self) -> int:
        """The global order of convergence p: error ∝ N^{−p}."""

    @property
    def one_step(self) -> bool:
        """Whether a step depends on the state at its start alone."""
        return False

    @property
    def uses_schedule(self) -> bool:
        """Whether the steps depend on the schedule and the scaling; otherwise these must be left at their defaults."""
        return False

    @property
    def allows_churn(self) -> bool:
        """Whether noise can be added before its steps."""
        return False

    @property
    def stochastic(self) -> bool:
        """Whether the solver draws noise itself, without churn."""
        return False

    @property
    def uses_path_noise(self) -> bool:
        """Whether that noise belongs to steps from level to level, so that it can be the increment of a path."""
        return self.stochastic

    @abstractmethod
    def evaluations(self, num_steps: int) -> int | None:
        """The number of evaluations of a run through `num_steps` levels; None if it depends on the sample."""

    def check(self, grid: Grid) -> None:
        """Raise an error, before any evaluation, if the solver does not support a grid.

        Raises:
            ValueError: the grid does not suit the solver.
        """

    @abstractmethod
    def run(
        self,
        denoiser: Denoiser,
        x: Float[Tensor, "batch *event"],
        grid: Grid,
        condition: Condition,
        source: NoiseSource | None,
    ) -> Iterator[State]:
        """The states at the levels of the grid, starting from x at the first one, and then the sample."""

    @abstractmethod
    def run_upward(
        self, denoiser: Denoiser, x: Float[Tensor, "batch *event"], grid: Grid, condition: Condition
    ) -> Iterator[State]:
        """The states at the levels of an upward grid, from x at the lowest one; D is not evaluated at the highest."""


class PlannedSolver(Solver):
    """A solver whose numbers do not depend on x, so that all are known before it starts."""

    @property
    def adds_levels(self) -> bool:
        """Whether it evaluates D at levels that are not in the grid, rounded to those that the denoiser supports."""
        return False

    @abstractmethod
    def plan(self, grid: Grid) -> Plan:
        """The steps through the grid.

        Raises:
            ValueError: the grid does not suit the solver.
        """

    def planned(self, grid: Grid) -> Plan:
        """The plan; cached if all levels are those of the grid, which the denoiser has rounded."""
        if grid.churn.s_churn > 0 or self.adds_levels:
            return self.plan(grid)
        return _cached_plan(self, replace(grid, round_sigma=_identity))  # A cached grid would keep its denoiser alive.

    def check(self, grid: Grid) -> None:
        """Make the plan, which raises an error if the solver does not support the grid."""
        self.planned(grid)

    def run(
        self,
        denoiser: Denoiser,
        x: Float[Tensor, "batch *event"],
        grid: Grid,
        condition: Condition,
        source: NoiseSource | None,
    ) -> Iterator[State]:
        """Execute the plan."""
        return execute(self.planned(grid), denoiser, x, condition, source)

    def run_upward(
        self, denoiser: Denoiser, x: Float[Tensor, "batch *event"], grid: Grid, condition: Condition
    ) -> Iterator[State]:
        """Execute the plan without its last step, which would start at the highest level."""
        *steps, top = self.planned(grid).steps
        return execute(Plan(tuple(steps), top.time, top.sigma, top.scale), denoiser, x, condition, None)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _cached_plan(solver: PlannedSolver, grid: Grid) -> Plan:
    return solver.plan(grid)
