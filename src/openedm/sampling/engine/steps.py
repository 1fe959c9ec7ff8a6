"""The steps of a sampling run as numbers, and their execution, one evaluation of the denoiser at a time.

A step of a method on fixed levels evaluates the denoiser at one or more stages. Each stage gives a direction r = x + q
D (or D itself); states are weighted sums of the present state and of known directions, newest first:

    x_{i+1} = a x_i + Σ_j w_j r_j + noise.

Runge–Kutta methods discard their directions at the end of a step; multistep methods keep them. Weights are numbers, or
tensors that broadcast over the batch, one weight for each coordinate.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from openedm.denoiser import Condition, Denoiser
from openedm.sampling.noise import EveryStepNoise, NoiseSource, unit_noise

__all__ = ["Combination", "Noise", "Plan", "Run", "Stage", "State", "Step", "execute", "unscaled"]

Weight = float | Tensor


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
        if self.is_mean and len(directions) >= len(self.weights) and directions[0].dtype == x.dtype:
            return self._mean(x, directions)
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

    @property
    def has_numbers(self) -> bool:
        """Whether all weights are numbers."""
        return not any(isinstance(weight, Tensor) for weight in (self.keep, *self.weights))

    @cached_property
    def is_mean(self) -> bool:
        """Whether it is a weighted mean of x and one or two directions: weights that are numbers, with the sum 1."""
        if len(self.weights) not in (1, 2) or not self.has_numbers or self.keep == 1:
            return False
        weights = [float(weight) for weight in (self.keep, *self.weights)]
        return abs(sum(weights) - 1) < 8 * torch.finfo(torch.float64).eps * max(1.0, *map(abs, weights))

    def _mean(
        self, x: Float[Tensor, "batch *event"], directions: Sequence[Float[Tensor, "batch *event"]]
    ) -> Float[Tensor, "batch *event"]:
        """That mean, by a pass over memory fewer than the sum: the point between the directions, then that and x."""
        if len(self.weights) == 1:
            return torch.lerp(directions[0], x, self.keep)
        return torch.lerp(directions[0], directions[1], self._share).lerp_(x, self.keep)

    @cached_property
    def _share(self) -> float:
        """Where the point between two directions is, as a fraction of the way from the newer one."""
        return float(self.weights[1]) / (1 - float(self.keep))


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

    def fused(self) -> "Step":
        """The same step with D as its directions, if this takes fewer passes over the state; otherwise itself.

        It does if the states are then weighted means of x and one or two D, which are sums of at most two passes. Steps
        of more evaluations would need more. The result is the same but for rounding, as long as no other program
        changes a point of the run.
        """
        advance, points = self.advance, [Combination(), *(stage.point for stage in self.stages[1:])]
        if advance is None or self.correct is not None or self.remember or len(points) > 2:
            return self
        if not all(each.has_numbers for each in (advance, *points)):
            return self
        known: list[list[float]] = []  # directions, newest first, each as the weights of x, the first and the second D
        stages: list[Stage] = []
        for i, (stage, point) in enumerate(zip(self.stages, points, strict=True)):
            if isinstance(stage.of_denoised, Tensor):
                return self
            expanded, denoised = _expanded(point, known), [float(j == i + 1) for j in range(3)]
            stages.append(replace(stage, of_denoised=None, point=_combination(expanded, i)))
            if stage.of_denoised is not None:
                denoised = [a + stage.of_denoised * b for a, b in zip(expanded, denoised, strict=True)]
            known.insert(0, denoised)
        advance = _combination(_expanded(advance, known), len(stages))
        has_means = all(each.is_mean for each in (advance, *(stage.point for stage in stages[1:])))
        return replace(self, stages=tuple(stages), advance=advance) if has_means else self


def _expanded(combination: Combination, known: Sequence[Sequence[float]]) -> list[float]:
    """The weights of x and of two D, for directions that are given by these weights, newest first."""
    rows = [(combination.keep, (1.0, 0.0, 0.0)), *zip(combination.weights, known, strict=False)]
    return [sum(float(weight) * row[j] for weight, row in rows) for j in range(3)]


def _combination(expanded: Sequence[float], evaluations: int) -> Combination:
    """The combination of x and the D of so many evaluations, newest first, with these weights."""
    return Combination(expanded[0], tuple(expanded[evaluations:0:-1]))


@dataclass(frozen=True)
class Plan:
    """A whole run: its steps, and the time, noise level and scale at its end."""

    steps: tuple[Step, ...]
    time: float = 0.0
    sigma: float = 0.0
    scale: float = 1.0

    @cached_property
    def fused(self) -> "Plan":
        """The same run in fewer passes over the state (`Step.fused`), if no other program changes its points."""
        return replace(self, steps=tuple(step.fused() for step in self.steps))


class Run:
    """A plan that is carried out one evaluation at a time, by whoever evaluates the denoiser.

    `point` is where D is needed, at the noise level and scale of `stage`; `advance` takes D there and moves on. It can
    be copied at any time, and copies go on independently.

    Args:
        plan: the numbers.
        x: the state at the first level.
        source: the noise of stochastic plans; None for none.

    Attributes:
        x: the state at the start of the present step, before its noise; the result once the run is finished.
        point: the state at which D is needed, or the result.
    """

    def __init__(self, plan: Plan, x: Float[Tensor, "batch *event"], source: NoiseSource | None) -> None:
        self.plan, self.source = plan, source
        # Asked once a run: to look whether something is a protocol's takes as long as several small steps.
        self._drawn_at_every_step = source if source is not None and isinstance(source, EveryStepNoise) else None
        self.x, self.point = x, x
        self._previous, self._start = x, x
        self._known: tuple[Tensor, ...] = ()  # directions, newest first
        self._step, self._stage = 0, 0
        self._enter(x)

    @property
    def finished(self) -> bool:
        """Whether no evaluation is left."""
        return self._step == len(self.plan.steps)

    @property
    def step(self) -> Step:
        """The present step."""
        return self.plan.steps[self._step]

    @property
    def stage(self) -> Stage:
        """The evaluation that `advance` waits for."""
        return self.step.stages[self._stage]

    @property
    def at_start(self) -> bool:
        """Whether that evaluation is the first of its step."""
        return self._stage == 0

    def advance(
        self, denoised: Float[Tensor, "batch *event"], point: Float[Tensor, "batch *event"] | None = None
    ) -> None:
        """Move to the next evaluation, or to the end.

        Args:
            denoised: D at `point`.
            point: the state at which D was evaluated, if another program has changed it since, as for inpainting.
        """
        step, stage = self.step, self.stage
        if point is not None:
            self.point = point
            self._start = point if self._stage == 0 else self._start
        if self._stage == 0 and step.advance is None:
            self._enter_next(denoised)
            return
        self._known = (stage.direction(self.point, denoised), *self._known)
        self._stage += 1
        if self._stage < len(step.stages):
            self.point = self.stage.point(self._start, self._known)
            return
        start = self._start if step.correct is None else step.correct(self._previous, self._known)
        # Assigned before the sum, which frees the states before it.
        self._previous = self._start = self.point = self.x = start
        x = step.advance(start, self._known) if step.advance is not None else start
        if step.after is not None:
            x = step.after.add(x, self.source)
        self._known = self._known[: step.remember]
        self._enter_next(x)

    def _enter_next(self, x: Float[Tensor, "batch *event"]) -> None:
        self._step, self._stage = self._step + 1, 0
        self._enter(x)

    def _enter(self, x: Float[Tensor, "batch *event"]) -> None:
        """Start the present step, if there is one, from x."""
        self.x = self.point = x
        if not self.finished and self.step.before is not None:
            self.point = self.step.before.add(x, self.source)
        elif not self.finished and self._drawn_at_every_step is not None:
            self._drawn_at_every_step.skip(tuple(x.shape[1:]))
        self._start = self.point


def execute(
    plan: Plan, denoiser: Denoiser, x: Float[Tensor, "batch *event"], condition: Condition, source: NoiseSource | None
) -> Iterator[State]:
    """Execute a plan from state x, and yield the states at its levels and at its end."""
    run, index = Run(plan, x, source), 0
    while not run.finished:
        step, stage = run.step, run.stage
        denoised = denoiser(unscaled(run.point, stage.scale), stage.sigma, condition)
        if run.at_start and step.reported:
            yield State(index, step.time, step.sigma, step.scale, run.x, denoised)
            index += 1
        run.advance(denoised)
    yield State(index, plan.time, plan.sigma, plan.scale, run.x, run.x)


def unscaled(x: Float[Tensor, "batch *event"], scale: float) -> Float[Tensor, "batch *event"]:
    """x / s."""
    return x if scale == 1 else x / scale
