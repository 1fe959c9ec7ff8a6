"""The sampler: follows dx/dt = (σ̇/σ + ṡ/s) x − (σ̇ s/σ) D(x/s; σ) from σ_max to 0.

Karras et al. 2022, Algorithms 1–3 and eq. 81: x(t) = s(t) (y + σ(t) n); the solver steps between the times
t_i = σ⁻¹(σ_i) of the levels, and the last step returns D at the last level.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from openedm.denoiser import Condition, Denoiser, check_condition_type, check_evaluation_mode
from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.ground.devices import device_of, float64_on
from openedm.levels import Karras, Levels
from openedm.sampling.engine.plan import Churn, Final, Grid, Plan, PlannedSolver, Solver, State, unscaled
from openedm.sampling.methods.runge_kutta import Heun
from openedm.sampling.noise import NoiseSource, SeededNoise
from openedm.schedules import EDM, Scaling, Schedule

__all__ = ["Sampler", "SamplerChoice", "sample_batches"]


@dataclass(frozen=True)
class SamplerChoice(Choice):
    """What draws samples: a `Sampler`, or a rule that makes one for a denoiser, such as `Auto`."""

    def choose(self, denoiser: Denoiser) -> "Sampler":
        """The sampler for a denoiser."""
        raise NotImplementedError

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
            condition: one row a sample, passed to the denoiser; a single row for all where it has a `condition_shape`.
            event_shape: the shape of one sample; needed where neither the denoiser nor `noise` has it.
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
        check_evaluation_mode(denoiser)
        return self.choose(denoiser).steps(denoiser, seeds, noise=noise, condition=condition, event_shape=event_shape)


@dataclass(frozen=True)
class Sampler(SamplerChoice):
    """How samples are drawn: any levels × any schedule and scaling × any solver × churn, on any denoiser.

    The defaults are the deterministic EDM sampler (35 evaluations).

    Args:
        levels: the noise levels, with their number and range. The range is cut to what the denoiser supports.
        schedule: σ(t); which curve the solver sees.
        scaling: s; None means the schedule's own.
        solver: the method.
        churn: stochasticity, of Runge–Kutta solvers.
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
    final: Final = "denoise"

    def __post_init__(self) -> None:
        checks.one_of("final", self.final, ("denoise", "euler"))
        name = type(self.solver).__name__
        if not self.solver.uses_schedule:
            for option, value, is_default in (
                ("schedule", self.schedule, self.schedule == EDM()),
                ("scaling", self.scaling, self.scaling is None),
                ("final", self.final, self.final == "denoise"),
            ):
                if not is_default:
                    raise ValueError(
                        f"{option} has no effect on {name}, whose steps do not depend on the schedule, and must "
                        f"be left at its default, got {value!r}"
                    )
        if self.churn.s_churn > 0 and not self.solver.allows_churn:
            raise ValueError(f"churn requires a Runge-Kutta solver: s_churn must be 0 for {name}")

    @property
    def nfe(self) -> int | None:
        """The number of network evaluations of one run; None where the solver decides while it runs."""
        return self.solver.evaluations(self.levels.num_steps)

    @property
    def stochastic(self) -> bool:
        """Whether noise is drawn after the start."""
        return self.churn.s_churn > 0 or self.solver.stochastic

    @property
    def uses_path_noise(self) -> bool:
        """Whether pieces of paths are drawn from a source of noise that has them, such as `BrownianNoise`."""
        return self.churn.s_churn > 0 or self.solver.uses_path_noise

    def choose(self, denoiser: Denoiser) -> "Sampler":
        """The sampler itself."""
        return self

    def steps(
        self,
        denoiser: Denoiser,
        seeds: Sequence[int] | NoiseSource | None = None,
        *,
        noise: Float[Tensor, "batch *event"] | None = None,
        condition: Condition = None,
        event_shape: tuple[int, ...] | None = None,
    ) -> Iterator[State]:
        """The run as an iterator over its N + 1 states."""
        check_evaluation_mode(denoiser)
        _check_classes(denoiser, condition)
        grid = self.grid(denoiser)
        self.solver.check(grid)
        source = SeededNoise(seeds) if isinstance(seeds, Sequence) else seeds
        if source is not None and not isinstance(source, NoiseSource):
            raise TypeError(f"seeds must be a sequence of integers or a NoiseSource, got {type(source).__name__}")
        if source is None and self.stochastic:
            raise ValueError("seeds must be given when noise is added on the way (s_churn > 0 or a stochastic solver)")
        device, dtype = _device_and_dtype(denoiser, noise)
        if noise is None:
            if source is None:
                raise ValueError("seeds or noise must be given: sampling draws from nothing else")
            shape = denoiser.event_shape if event_shape is None else event_shape
            if shape is None:
                raise ValueError("event_shape must be given: the denoiser does not know the shape of a sample")
            noise = source.draw(shape)
        denoiser.check_condition(condition, len(noise))
        x = noise.to(device, dtype) * (grid.sigmas[0] * grid.scale(grid.sigmas[0]))
        condition = None if condition is None else condition.to(device)
        return self.solver.run(denoiser, x, grid, condition, source)

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

        x is taken as a state at the lowest level, so sampling returns x up to σ_min and the solver's error.

        Args:
            denoiser: any denoiser.
            x: samples, in data units.
            condition: as for `sample`.
            callback: called with the `State` at every level, from the lowest up; its index counts from 0.

        Raises:
            ValueError: churn is on (a noisy path has no inverse), or as for `sample`.
        """
        if self.churn.s_churn > 0:
            raise ValueError(f"churn must be off for inversion: s_churn must be 0, got {self.churn.s_churn}")
        if self.stochastic:
            raise ValueError(f"solver must be deterministic for inversion, got {self.solver}")
        checks.at_least("num_steps of an inversion", self.levels.num_steps, 2)
        check_evaluation_mode(denoiser)
        _check_classes(denoiser, condition)
        denoiser.check_condition(condition, len(x))
        device, dtype = _device_and_dtype(denoiser, x)
        condition = None if condition is None else condition.to(device)
        grid = self.grid(denoiser, upward=True)
        top = grid.sigmas[-1]
        last: Tensor | None = None
        for state in self.solver.run_upward(
            denoiser, x.to(device, dtype) * grid.scale(grid.sigmas[0]), grid, condition
        ):
            last = state.x
            if callback is None:
                continue
            if state.sigma == top:
                denoised = denoiser(unscaled(state.x, state.scale), state.sigma, condition)
                state = replace(state, denoised=denoised)
            callback(state)
        assert last is not None
        return last / (top * grid.scale(top))

    def grid(self, denoiser: Denoiser, *, upward: bool = False) -> Grid:
        """The levels of a run, cut to the denoiser's range and rounded to what it supports, and the curve through them.

        Raises:
            ValueError: the levels lie outside the denoiser's range.
        """
        levels = self.levels.within(denoiser.sigma_min, denoiser.sigma_max)
        sigmas = tuple(denoiser.round_sigma(levels.sigmas()).tolist())
        return Grid(
            sigmas[::-1] if upward else sigmas,
            self.schedule,
            self.schedule.scaling if self.scaling is None else self.scaling,
            self.churn,
            self.final,
            denoiser.round_sigma,
        )

    def plan(self, denoiser: Denoiser, *, upward: bool = False) -> Plan:
        """Every number of a run that does not depend on x, in float64 on the host.

        Raises:
            TypeError: the solver decides its steps while it runs.
            ValueError: the levels lie outside the denoiser's range, or do not suit the solver.
        """
        if not isinstance(self.solver, PlannedSolver):
            raise TypeError(f"solver must plan its steps beforehand, which {type(self.solver).__name__} does not")
        return self.solver.planned(self.grid(denoiser, upward=upward))

    def check(self, denoiser: Denoiser) -> None:
        """Raise, without an evaluation, where a denoiser cannot be sampled like this.

        Raises:
            ValueError: as for `sample`.
        """
        self.solver.check(self.grid(denoiser))


def _check_classes(denoiser: Denoiser, condition: Condition) -> None:
    """On the host, before the run: a network on a device cannot look at its labels without waiting for them."""
    check_condition_type(condition)
    if condition is None or condition.ndim != 1 or condition.is_floating_point() or condition.device.type != "cpu":
        return
    wrong = condition[(condition < -1) | (condition >= denoiser.num_classes)]
    if denoiser.num_classes > 0 and len(wrong):
        raise ValueError(
            f"condition must hold classes between 0 and {denoiser.num_classes - 1}, or -1 for none, got {int(wrong[0])}"
        )


def _device_and_dtype(denoiser: Denoiser, given: Tensor | None) -> tuple[torch.device, torch.dtype]:
    """Where the state lives: the denoiser's device, in float64 (float32 where the device has no float64)."""
    device = device_of(denoiser, given)
    return device, float64_on(device)


def sample_batches(
    sampler: Sampler,
    denoiser: Denoiser,
    seeds: Sequence[int],
    *,
    condition: Condition = None,
    batch_size: int = 64,
    noise: Callable[[Sequence[int]], NoiseSource] = SeededNoise,
) -> Iterator[tuple[Sequence[int], Float64[Tensor, "batch *event"]]]:
    """Sample many seeds in batches; yields (seeds, samples) batch after batch, on the host.

    Args:
        sampler: how to sample.
        denoiser: what to sample; it must know its event shape.
        seeds: one seed a sample.
        condition: one row a sample, or a single one as for `Sampler.sample`.
        batch_size: samples drawn at a time, ≥ 1; changes memory and speed, not the samples.
        noise: the source of noise of some seeds, such as `BrownianNoise`.
    """
    checks.at_least("batch_size", batch_size, 1)
    check_condition_type(condition)
    if denoiser.condition_shape is not None:
        denoiser.check_condition(condition, len(seeds))
    elif condition is not None and len(condition) != len(seeds):
        raise ValueError(f"condition must have one row a seed ({len(seeds)}), got {len(condition)} rows")
    for start in range(0, len(seeds), batch_size):
        part = slice(start, start + batch_size)
        rows = denoiser.condition_of(condition, part)
        yield seeds[part], sampler.sample(denoiser, noise(seeds[part]), condition=rows).cpu()
