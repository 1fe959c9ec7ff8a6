"""The numbers of a sampling run that do not depend on x: planned once, in float64, on the host; and their execution.

Every method on fixed levels is one linear program. A step evaluates the denoiser at one or more stages and records of
each a direction r = x + q D (or D itself); states are weighted sums of the present state and of recorded directions,
newest first:

    x_{i+1} = a x_i + Σ_j w_j r_{−j} + noise.

Runge–Kutta methods forget their directions at the end of a step; multistep methods remember them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from openedm.denoiser import Condition, Denoiser
from openedm.sampling.noise import NoiseSource, unit_noise


@dataclass(frozen=True)
class State:
    """Where a run stands at one level, before the step from it.

    Attributes:
        index: i, from 0 (pure noise) to N (the finished sample).
        time: t_i; 0 at the end.
        sigma: σ_i; 0 at the end.
        scale: s(t_i); 1 at the end.
        x: the state x(t_i); the noisy sample in data units is x / scale.
        denoised: D at this level (of the churned state where churn is on); x itself at the end.
    """

    index: int
    time: float
    sigma: float
    scale: float
    x: Float[Tensor, "batch *event"]
    denoised: Float[Tensor, "batch *event"]


@dataclass(frozen=True)
class Combination:
    """`keep` · x + Σ_j `weights`[j] · r_j, with r_0 the newest direction."""

    keep: float
    weights: tuple[float, ...]

    def __call__(self, x: Tensor, directions: Sequence[Tensor]) -> Tensor:
        """The sum; x and the directions are left as they are."""
        total = x if self.keep == 1 else x * self.keep
        fresh = total is not x
        for weight, direction in zip(self.weights, directions, strict=False):
            if weight != 0:
                total = total.add_(direction, alpha=weight) if fresh else torch.add(total, direction, alpha=weight)
                fresh = True
        return total


@dataclass(frozen=True)
class Stage:
    """One evaluation D(x/`scale`; `sigma`), recorded as x + `of_denoised` · D; as D itself where that is None.

    Attributes:
        time: where the stage lies on the solver's curve.
        sigma: its noise level.
        scale: s there.
        of_denoised: the weight of D in the direction, in units of the weight of x.
        point: how its x is made; None for the state at the start of the step.
    """

    time: float
    sigma: Float64[Tensor, ""]
    scale: float
    of_denoised: float | None
    point: Combination | None = None

    def direction(self, x: Tensor, denoised: Tensor) -> Tensor:
        """What is remembered of the evaluation."""
        return denoised if self.of_denoised is None else torch.add(x, denoised, alpha=self.of_denoised)


@dataclass(frozen=True)
class Step:
    """One step, from level `index`.

    Attributes:
        index: i.
        time: t_i.
        sigma: σ_i.
        scale: s(t_i).
        stages: its evaluations, in order.
        advance: x_{i+1}; None for the last step, which returns D.
        correct: a better x_i from x_{i−1} and the directions known after the first evaluation; None without corrector.
        rescale: s(t̂)/s(t_i), the factor of x when noise is added before the step.
        noise_std: standard deviation of that noise; 0 for none.
        churned: whether that noise belongs to this step, and so to its piece of a path.
        noise_after: standard deviation of the noise added at the end of the step; 0 for none.
        sigma_after: σ_{i+1}.
        remember: how many directions the next step may use.
    """

    index: int
    time: float
    sigma: float
    scale: float
    stages: tuple[Stage, ...]
    advance: Combination | None
    correct: Combination | None = None
    rescale: float = 1.0
    noise_std: float = 0.0
    churned: bool = False
    noise_after: float = 0.0
    sigma_after: float = 0.0
    remember: int = 0

    def noisy(self, x: Tensor, source: NoiseSource | None) -> Tensor:
        """x̂ = s(t̂)/s(t) x + √(σ̂² − σ²) s(t̂) S_noise n."""
        if self.noise_std == 0:
            return x
        noise = unit_noise(source, x, self.sigma, self.sigma_after) if self.churned else unit_noise(source, x)
        return torch.add(x if self.rescale == 1 else x * self.rescale, noise, alpha=self.noise_std)


@dataclass(frozen=True)
class Plan:
    """A whole run."""

    steps: tuple[Step, ...]

    @property
    def stochastic(self) -> bool:
        """Whether any step draws noise."""
        return any(step.noise_std > 0 or step.noise_after > 0 for step in self.steps)

    @property
    def nfe(self) -> int:
        """The number of evaluations of the denoiser."""
        return sum(len(step.stages) for step in self.steps)


def execute(
    plan: Plan, denoiser: Denoiser, x: Float[Tensor, "batch *event"], condition: Condition, source: NoiseSource | None
) -> Iterator[State]:
    """Carry a plan out from state x; yields the states at its levels and, where the last step ends at 0, that one."""
    directions: list[Tensor] = []
    previous = x
    for step in plan.steps:
        start = step.noisy(x, source)
        first: Tensor | None = None
        for stage in step.stages:
            point = start if stage.point is None else stage.point(start, directions)
            denoised = denoiser(unscaled(point, stage.scale), stage.sigma, condition)
            first = denoised if first is None else first
            if step.advance is not None:
                directions.insert(0, stage.direction(point, denoised))
        assert first is not None
        yield State(step.index, step.time, step.sigma, step.scale, x, first)
        if step.advance is None:
            x = first
            continue
        if step.correct is not None:
            start = step.correct(previous, directions)
        previous = start
        x = step.advance(start, directions)
        if step.noise_after > 0:
            noise = unit_noise(source, x, step.sigma, step.sigma_after)
            x = torch.add(x, noise, alpha=step.noise_after)
        del directions[step.remember :]
    yield State(len(plan.steps), 0.0, 0.0, 1.0, x, x)


def unscaled(x: Tensor, scale: float) -> Tensor:
    """x / s."""
    return x if scale == 1 else x / scale
