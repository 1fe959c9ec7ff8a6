"""The sampler: follows dx/dt = (σ̇/σ + ṡ/s) x − (σ̇ s/σ) D(x/s; σ) from σ_max to 0.

Karras et al. 2022, Algorithms 1–3 and eq. 81: x(t) = s(t) (y + σ(t) n); the solver steps between the times
t_i = σ⁻¹(σ_i) of the levels, and the last step returns D at the last level.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from openedm import checks
from openedm.choices import Choice
from openedm.denoiser import Condition, Denoiser
from openedm.levels import Karras, Levels
from openedm.sampling.noise import NoiseSource, SeededNoise
from openedm.sampling.plan import Plan, Stage, Step, plan_steps
from openedm.sampling.solvers import Churn, Heun, Solver, Tableau
from openedm.schedules import EDM, Scaling, Schedule


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
class Sampler(Choice):
    """How samples are drawn: any levels × any schedule and scaling × any solver × churn, on any denoiser.

    The defaults are the deterministic EDM sampler (35 evaluations).

    Args:
        levels: the noise levels, with their number and range. The range is cut to what the denoiser supports.
        schedule: σ(t); which curve the solver sees.
        scaling: s; None means the schedule's own.
        solver: the one-step method.
        churn: stochasticity.
        final: the last step, from the lowest level to 0. "denoise" returns D there; "euler" takes the plain Euler step
            in t of the reference implementation, which for schedules other than σ(t) = t leaves noise behind.

    Raises:
        ValueError: `final` is neither.

    >>> from openedm.exact import GaussianMixture
    >>> Sampler().sample(GaussianMixture([1.0], [[3.0]], [[[1e-4]]]), seeds=[0, 1]).round(decimals=1)
    tensor([[3.],
            [3.]], dtype=torch.float64)
    """

    levels: Levels = Karras()
    schedule: Schedule = EDM()
    scaling: Scaling | None = None
    solver: Solver = Heun()
    churn: Churn = Churn()
    final: Literal["denoise", "euler"] = "denoise"

    def __post_init__(self) -> None:
        checks.one_of("final", self.final, ("denoise", "euler"))

    @property
    def nfe(self) -> int:
        """The number of network evaluations of one run."""
        return (self.levels.num_steps - 1) * len(self.solver.tableau.b) + 1

    @torch.no_grad()
    def sample(
        self,
        denoiser: Denoiser,
        seeds: Sequence[int] | NoiseSource | None = None,
        *,
        noise: Float[Tensor, "batch *event"] | None = None,
        condition: Condition = None,
        event_shape: tuple[int, ...] | None = None,
        callback: Callable[[State], None] | None = None,
    ) -> Float[Tensor, "batch *event"]:
        """Draw samples; returns them in float64 (float32 on devices without it), on the denoiser's device.

        Args:
            denoiser: any denoiser.
            seeds: one seed a sample; a sample depends on its seed and condition alone. Or any source of noise.
            noise: unit Gaussian noise to start from instead of the seeds' first draw.
            condition: one row a sample, passed to the denoiser.
            event_shape: the shape of one sample; needed where neither the denoiser nor `noise` tells it.
            callback: called with the `State` at every level and at the end.

        Raises:
            TypeError: seeds are neither a sequence nor a source of noise.
            ValueError: neither seeds nor noise, churn without seeds, a shape that does not fit, dropout left on, or a
                solver that steps outside the schedule's domain.
        """
        final: Tensor | None = None
        for state in self.steps(denoiser, seeds, noise=noise, condition=condition, event_shape=event_shape):
            final = state.x
            if callback is not None:
                callback(state)
        assert final is not None
        return final

    def steps(
        self,
        denoiser: Denoiser,
        seeds: Sequence[int] | NoiseSource | None = None,
        *,
        noise: Float[Tensor, "batch *event"] | None = None,
        condition: Condition = None,
        event_shape: tuple[int, ...] | None = None,
    ) -> Iterator[State]:
        """The run as an iterator over its N + 1 states. Arguments as for `sample`; differentiable where autograd is on.

        Everything is checked before the first evaluation.
        """
        _refuse_dropout(denoiser)
        _check_classes(denoiser, condition)
        plan = self.plan(denoiser)
        source = SeededNoise(seeds) if isinstance(seeds, Sequence) else seeds
        if source is not None and not isinstance(source, NoiseSource):
            raise TypeError(f"seeds must be a sequence of integers or a NoiseSource, got {type(source).__name__}")
        if source is None and plan.stochastic:
            raise ValueError("seeds must be given when churn adds noise (s_churn > 0)")
        device, dtype = _device_and_dtype(denoiser, noise)
        if noise is None:
            if source is None:
                raise ValueError("seeds or noise must be given: sampling draws from nothing else")
            shape = denoiser.event_shape if event_shape is None else event_shape
            if shape is None:
                raise ValueError("event_shape must be given: the denoiser does not know the shape of a sample")
            noise = source.draw(shape)
        x = noise.to(device, dtype) * (plan.steps[0].sigma * plan.steps[0].scale)
        return self._run(denoiser, x, plan, source, None if condition is None else condition.to(device))

    def _run(
        self, denoiser: Denoiser, x: Tensor, plan: Plan, source: NoiseSource | None, condition: Condition
    ) -> Iterator[State]:
        for step in plan.steps:
            churned = _churn(x, step, source)
            if step.is_final and self.final == "denoise":
                stage = step.stages[0]
                x_next = denoised = denoiser(_unscaled(churned, stage.scale), stage.sigma, condition)
            else:
                x_next, denoised = _runge_kutta(denoiser, churned, step, self.solver.tableau, condition)
            yield State(step.index, step.time, step.sigma, step.scale, x, denoised)
            x = x_next
        yield State(len(plan.steps), 0.0, 0.0, 1.0, x, x)

    @torch.no_grad()
    def invert(
        self,
        denoiser: Denoiser,
        x: Float[Tensor, "batch *event"],
        *,
        condition: Condition = None,
        callback: Callable[[State], None] | None = None,
    ) -> Float[Tensor, "batch *event"]:
        """The unit noise from which `sample(noise=…)` returns x: the same ODE, followed upward from σ_min to σ_max.

        x is taken as a state at the lowest level, so the way back is exact up to σ_min and the solver's error.

        Args:
            denoiser: any denoiser.
            x: samples, in data units.
            condition: one row a sample.
            callback: called with the `State` at every level, from the lowest up; its index counts from 0.

        Raises:
            ValueError: churn is on (a noisy path has no inverse), or as for `sample`.
        """
        if self.churn.s_churn > 0:
            raise ValueError(f"churn must be off for inversion: s_churn must be 0, got {self.churn.s_churn}")
        checks.at_least("num_steps of an inversion", self.levels.num_steps, 2)
        _refuse_dropout(denoiser)
        _check_classes(denoiser, condition)
        device, dtype = _device_and_dtype(denoiser, x)
        condition = None if condition is None else condition.to(device)
        plan = self.plan(denoiser, upward=True)
        first = plan.steps[0]
        x = x.to(device, dtype) * first.scale
        for step in plan.steps[:-1]:
            x_next, denoised = _runge_kutta(denoiser, x, step, self.solver.tableau, condition)
            if callback is not None:
                callback(State(step.index, step.time, step.sigma, step.scale, x, denoised))
            x = x_next
        last = plan.steps[-1]
        if callback is not None:
            denoised = denoiser(_unscaled(x, last.scale), last.sigma, condition)
            callback(State(last.index, last.time, last.sigma, last.scale, x, denoised))
        return x / (last.sigma * last.scale)

    def plan(self, denoiser: Denoiser, *, upward: bool = False) -> Plan:
        """Every number of a run that does not depend on x, in float64 on the host.

        Raises:
            ValueError: the levels lie outside the denoiser's range, or a stage leaves the schedule's domain.
        """
        levels = self.levels.within(denoiser.sigma_min, denoiser.sigma_max)
        sigmas = denoiser.round_sigma(levels.sigmas())
        scaling = self.schedule.scaling if self.scaling is None else self.scaling
        return plan_steps(
            sigmas=sigmas.flip(0) if upward else sigmas,
            round_sigma=denoiser.round_sigma,
            schedule=self.schedule,
            scaling=scaling,
            nodes=self.solver.tableau.c,
            churn=self.churn,
        )


def _churn(x: Tensor, step: Step, source: NoiseSource | None) -> Tensor:
    """x̂ = s(t̂)/s(t) x + √(σ̂² − σ²) s(t̂) S_noise n."""
    if step.noise_std == 0:
        return x
    assert source is not None
    noise = source.draw(tuple(x.shape[1:])).to(x.device, x.dtype)
    if noise.shape != x.shape:
        raise ValueError(f"seeds must give noise of shape {tuple(x.shape)}, got {tuple(noise.shape)}")
    return torch.add(x if step.rescale == 1 else x * step.rescale, noise, alpha=step.noise_std)


def _unscaled(x: Tensor, scale: float) -> Tensor:
    return x if scale == 1 else x / scale


def _slope(denoiser: Denoiser, x: Tensor, stage: Stage, condition: Condition) -> tuple[Tensor, Tensor]:
    """dx/dt = (σ̇/σ + ṡ/s) x − (σ̇ s/σ) D(x/s; σ), and D."""
    denoised = denoiser(_unscaled(x, stage.scale), stage.sigma, condition)
    return torch.add(x * stage.of_x, denoised, alpha=-stage.of_denoised), denoised


def _runge_kutta(
    denoiser: Denoiser, x: Tensor, step: Step, tableau: Tableau, condition: Condition
) -> tuple[Tensor, Tensor]:
    """x_next = x + h Σ b_i k_i, and D of the first stage. The step to 0 has one stage: Euler's."""
    if len(step.stages) == 1:
        slope, denoised = _slope(denoiser, x, step.stages[0], condition)
        return torch.add(x, slope, alpha=step.h), denoised
    slopes: list[Tensor] = []
    first: Tensor | None = None
    for row, stage in zip(tableau.a, step.stages, strict=True):
        slope, denoised = _slope(denoiser, _combined(x, step.h, row, slopes), stage, condition)
        slopes.append(slope)
        first = denoised if first is None else first
    assert first is not None
    return _combined(x, step.h, tableau.b, slopes), first


def _combined(x: Tensor, h: float, weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    for weight, slope in zip(weights, slopes, strict=True):
        if weight != 0:
            x = torch.add(x, slope, alpha=h * weight)
    return x


DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def _refuse_dropout(denoiser: Denoiser) -> None:
    for name, module in denoiser.named_modules():
        if isinstance(module, DROPOUTS) and module.training and module.p > 0:
            raise ValueError(f"denoiser must be in evaluation mode, but dropout {name!r} is on: call denoiser.eval()")


def _check_classes(denoiser: Denoiser, condition: Condition) -> None:
    """On the host, before the run: a network on a device cannot look at its labels without waiting for them."""
    if condition is None or condition.ndim != 1 or condition.is_floating_point() or condition.device.type != "cpu":
        return
    wrong = condition[(condition < -1) | (condition >= denoiser.num_classes)]
    if denoiser.num_classes > 0 and len(wrong):
        raise ValueError(
            f"condition must hold classes between 0 and {denoiser.num_classes - 1}, or -1 for none, got {int(wrong[0])}"
        )


def _device_and_dtype(denoiser: Denoiser, given: Tensor | None) -> tuple[torch.device, torch.dtype]:
    """Where the state lives: the denoiser's device, in float64 (float32 where the device has no float64)."""
    weights = next(denoiser.parameters(), next(denoiser.buffers(), given))
    device = torch.device("cpu") if weights is None else weights.device
    return device, torch.float32 if device.type == "mps" else torch.float64


def sample_batches(
    sampler: Sampler,
    denoiser: Denoiser,
    seeds: Sequence[int],
    *,
    condition: Condition = None,
    batch_size: int = 64,
) -> Iterator[tuple[Sequence[int], Float64[Tensor, "batch *event"]]]:
    """Sample many seeds in batches; yields (seeds, samples) batch after batch, on the host.

    Args:
        sampler: how to sample.
        denoiser: what to sample; it must know its event shape.
        seeds: one seed a sample.
        condition: one row a sample.
        batch_size: samples drawn at a time, ≥ 1; changes memory and speed, not the samples.
    """
    checks.at_least("batch_size", batch_size, 1)
    if condition is not None and len(condition) != len(seeds):
        raise ValueError(f"condition must have one row a seed ({len(seeds)}), got {len(condition)} rows")
    for start in range(0, len(seeds), batch_size):
        part = slice(start, start + batch_size)
        rows = None if condition is None else condition[part]
        yield seeds[part], sampler.sample(denoiser, seeds[part], condition=rows).cpu()
