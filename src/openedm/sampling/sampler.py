"""The sampler, which solves dx/dt = (σ̇/σ + ṡ/s) x − (σ̇ s/σ) D(x/s; σ) from σ_max to 0.

Karras et al. 2022, Algorithms 1–3 and eq. 81: x(t) = s(t) (y + σ(t) n); the solver steps between the times
t_i = σ⁻¹(σ_i) of the levels, and the last step returns D at the last level.

The equation is solved in standard units, (x − m)/S, with m the mean of the denoiser's data at σ_max and S its scale:
a run starts from m + σ_max S n, and its states are given in data units.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from openedm import schedules
from openedm.denoiser import Condition, Denoiser, check_condition_type, check_denoiser, check_evaluation_mode
from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.ground.devices import device_of, float64_on
from openedm.ground.tensors import check_floats
from openedm.levels import Karras, Levels
from openedm.sampling.engine.integrate import StepSizeError
from openedm.sampling.engine.plan import Churn, Final, Grid, Plan, PlannedSolver, Solver, State, supported_sigmas
from openedm.sampling.finite import check_given, check_samples, name_sample, restarted
from openedm.sampling.methods.runge_kutta import Heun
from openedm.sampling.noise import NoiseSource, SeededNoise, Seeds
from openedm.sampling.scale import (
    few_numbers,
    knows_scale,
    largest,
    warn_of_divergence,
    warn_of_growth,
    warn_of_noise,
    warn_of_scale,
)
from openedm.schedules import Scaling, Schedule
from openedm.standardised import Standardised, standardised

__all__ = ["Sampler", "SamplerChoice", "sample_batches"]


@dataclass(frozen=True)
class SamplerChoice(Choice):
    """A `Sampler`, or a rule that makes one for a denoiser, such as `Auto`."""

    def choose(self, denoiser: Denoiser) -> "Sampler":
        """The sampler for a denoiser."""
        raise NotImplementedError

    @torch.no_grad()
    def sample(
        self,
        denoiser: Denoiser,
        seeds: Seeds | NoiseSource | None = None,
        *,
        noise: Float[Tensor, "batch *event"] | None = None,
        condition: Condition = None,
        event_shape: tuple[int, ...] | None = None,
        callback: Callable[[State], None] | None = None,
    ) -> Float[Tensor, "batch *event"]:
        """Draw samples, in float64 (float32 on devices without it), on the denoiser's device.

        Args:
            denoiser: any denoiser.
            seeds: one seed a sample, or a source of noise. A sample depends on its seed, mod 2³², and condition alone.
            noise: unit Gaussian noise at the start, instead of the first draw of the seeds, one row a seed. Of a
                source of noise no draw is left out.
            condition: one row a sample, passed to the denoiser; a single row for all if it has a `condition_shape`.
            event_shape: the shape of one sample; required if neither the denoiser nor `noise` has it.
            callback: called with the `State` at every level and at the end.

        Raises:
            FloatingPointError: a sample is NaN or infinite: the message names it, its seed and the level. The check is
                one sum over the samples at the end; only if it fails is the run repeated, to find the level.
            TypeError: seeds are neither integers nor a source of noise.
            ValueError: there are neither seeds nor noise, or churn without seeds; a shape does not fit; noise is not
                finite; dropout is active; the solver needs times outside the schedule's domain; or there is churn, but
                at none of the noise levels.

        >>> from openedm.exact import GaussianMixture
        >>> kelvin = GaussianMixture([1.0], [[280.0]], [[[1.0]]])
        >>> Sampler().sample(kelvin, seeds=range(1000)).mean().round(decimals=1)
        tensor(280., dtype=torch.float64)
        """
        run = partial(self.steps, denoiser, noise=noise, condition=condition, event_shape=event_shape)
        first: State | None = None
        start: Tensor | None = None
        highest = 0.0
        final: Tensor | None = None
        check_denoiser("denoiser", denoiser)
        has_known_scale = knows_scale(denoiser)
        try:
            for state in run(seeds):
                if first is None and not has_known_scale:
                    first = few_numbers(state)
                if start is None:
                    start, highest = largest(state), state.sigma
                final = state.x
                if callback is not None:
                    callback(state)
        except StepSizeError as error:
            named = str(error).replace(f"of sample {error.row} ", f"of {name_sample(error.row, seeds)} ")
            raise FloatingPointError(named) from error
        assert final is not None
        assert start is not None
        check_samples(final, seeds, lambda: run(restarted(seeds)))
        diverged = warn_of_divergence(denoiser, start, final)
        if first is not None:
            warn_of_scale(denoiser, first, final)
        elif not diverged:
            warn_of_noise(denoiser, highest, final)
        return final

    def steps(
        self,
        denoiser: Denoiser,
        seeds: Seeds | NoiseSource | None = None,
        *,
        noise: Float[Tensor, "batch *event"] | None = None,
        condition: Condition = None,
        event_shape: tuple[int, ...] | None = None,
    ) -> Iterator[State]:
        """The run as an iterator over its N + 1 states. Arguments as for `sample`; differentiable if autograd is on.

        All arguments are checked before the first evaluation. The states are not checked for NaN.
        """
        check_evaluation_mode(denoiser)
        return self.choose(denoiser).steps(denoiser, seeds, noise=noise, condition=condition, event_shape=event_shape)


@dataclass(frozen=True)
class Sampler(SamplerChoice):
    """A sampler: any levels × any schedule and scaling × any solver × churn, for any denoiser.

    The defaults are the deterministic EDM sampler (35 evaluations).

    Args:
        levels: the noise levels, with their number and range. Numbers that are None follow the denoiser's σ_data, and
            the range is cut to what it supports.
        schedule: σ(t), in whose time Runge–Kutta solvers step.
        scaling: s; None means that of the schedule.
        solver: the method.
        churn: stochasticity, for Runge–Kutta solvers.
        final: the last step, from the lowest level to 0. "denoise" returns D at that level; "euler" is the Euler step
            in t of the reference implementation, after which some noise remains unless σ(t) = t.

    Raises:
        ValueError: `final` is neither of these, or an option has no effect on the solver.

    >>> from openedm.exact import GaussianMixture
    >>> Sampler().sample(GaussianMixture([1.0], [[3.0]], [[[1e-4]]]), seeds=[0, 1]).round(decimals=1)
    tensor([[3.],
            [3.]], dtype=torch.float64)
    """

    levels: Levels = Karras()
    schedule: Schedule = schedules.EDM()
    scaling: Scaling | None = None
    solver: Solver = Heun()
    churn: Churn = Churn()
    final: Final = "denoise"

    def __post_init__(self) -> None:
        checks.one_of("final", self.final, ("denoise", "euler"))
        name = type(self.solver).__name__
        if not self.solver.uses_schedule:
            for option, value, is_default in (
                ("schedule", self.schedule, self.schedule == schedules.EDM()),
                ("scaling", self.scaling, self.scaling is None),
                ("final", self.final, self.final == "denoise"),
            ):
                if not is_default:
                    raise ValueError(
                        f"{option} has no effect on {name}, whose steps do not depend on the schedule, and must "
                        f"be left at its default, got {value!r}"
                    )
        if self.churn.s_churn > 0 and not self.solver.allows_churn:
            raise ValueError(f"s_churn must be 0 for {name}, since churn requires a Runge-Kutta solver")

    @property
    def nfe(self) -> int | None:
        """The number of network evaluations of one run; None if it depends on the samples."""
        return self.solver.evaluations(self.levels.num_steps)

    @property
    def stochastic(self) -> bool:
        """Whether noise is drawn after the start."""
        return self.churn.s_churn > 0 or self.solver.stochastic

    @property
    def uses_path_noise(self) -> bool:
        """Whether the noise is an increment of a path for a source with paths, such as `BrownianNoise`."""
        return self.churn.s_churn > 0 or self.solver.uses_path_noise

    def choose(self, denoiser: Denoiser) -> "Sampler":
        """The sampler itself."""
        return self

    def steps(
        self,
        denoiser: Denoiser,
        seeds: Seeds | NoiseSource | None = None,
        *,
        noise: Float[Tensor, "batch *event"] | None = None,
        condition: Condition = None,
        event_shape: tuple[int, ...] | None = None,
    ) -> Iterator[State]:
        """The run as an iterator over its N + 1 states."""
        check_evaluation_mode(denoiser)
        _check_classes(denoiser, condition)
        grid = self._checked_grid(denoiser)
        if self.stochastic and isinstance(self.solver, PlannedSolver):
            warn_of_growth(type(self.solver).__name__, self.solver.planned(grid), denoiser.sigma_data)
        if noise is not None:
            check_floats("noise", noise, "a tensor of unit Gaussian noise (batch, *event)")
            check_given("noise", noise)
            if event_shape is not None and tuple(noise.shape[1:]) != tuple(event_shape):
                raise ValueError(f"event_shape must be that of noise, {tuple(noise.shape[1:])}, got {event_shape}")
        source = seeds if seeds is None or isinstance(seeds, NoiseSource) else SeededNoise(seeds)
        if source is None and self.stochastic:
            raise ValueError("seeds must be given if a run adds noise (s_churn > 0 or a stochastic solver), got None")
        device, dtype = _device_and_dtype(denoiser, noise)
        if noise is None:
            if source is None:
                raise ValueError("seeds or noise must be given, got None for both")
            shape = denoiser.event_shape if event_shape is None else event_shape
            if shape is None:
                raise ValueError("event_shape must be given for a denoiser without event_shape, got None")
            noise = source.draw(shape)
        elif isinstance(source, SeededNoise) and source is not seeds:
            if len(source.seeds) != len(noise):
                raise ValueError(f"seeds must be one a sample of the noise ({len(noise)}), got {len(source.seeds)}")
            source.draw(tuple(noise.shape[1:]))  # which `noise` replaces: it must not be the noise of a step as well
        denoiser.check_condition(condition, len(noise))
        top = grid.sigmas[0]
        x = noise.to(device, dtype) * (top * grid.scale(top))
        condition = None if condition is None else condition.to(device)
        standard = standardised(denoiser, condition, sigma_max=top, event_shape=tuple(noise.shape[1:]))
        if standard.is_identity:  # without a wrapper around every evaluation
            return _in_data_units(self.solver.run(denoiser, x, grid, condition, source), standard, dtype)
        return _in_data_units(self.solver.run(standard, x, grid, None, source), standard, dtype)

    @torch.no_grad()
    def invert(
        self,
        denoiser: Denoiser,
        x: Float[Tensor, "batch *event"],
        *,
        condition: Condition = None,
        callback: Callable[[State], None] | None = None,
    ) -> Float[Tensor, "batch *event"]:
        """The unit noise (x(σ_max) − m)/(σ_max S) from which `sample(noise=…)` returns x: the same ODE, solved upward.

        x is a state at the lowest level, so that sampling returns x except for an error of σ_min and the solver's
        error.

        Args:
            denoiser: any denoiser.
            x: samples, in data units.
            condition: as for `sample`.
            callback: called with the `State` at every level, from the lowest up; its index counts from 0.

        Raises:
            FloatingPointError: the noise of a sample is NaN or infinite.
            TypeError: x is not a tensor of floating-point numbers.
            ValueError: there is churn (a noisy path has no inverse), x is not finite, or as for `sample`.
        """
        check_floats("x", x, "a tensor of samples (batch, *event)")
        check_given("x", x)
        if self.churn.s_churn > 0:
            raise ValueError(f"s_churn must be 0 for inversion, got {self.churn.s_churn}")
        if self.stochastic:
            raise ValueError(f"solver must be deterministic for inversion, got {self.solver}")
        checks.at_least("num_steps of an inversion", self.levels.num_steps, 2)
        check_evaluation_mode(denoiser)
        _check_classes(denoiser, condition)
        denoiser.check_shape(x)
        denoiser.check_condition(condition, len(x))
        device, dtype = _device_and_dtype(denoiser, x)
        condition = None if condition is None else condition.to(device)
        grid = self.grid(denoiser, upward=True)
        top = grid.sigmas[-1]
        standard = standardised(denoiser, condition, sigma_max=top, event_shape=tuple(x.shape[1:]))
        start = standard.standard(x.to(device, dtype)) * grid.scale(grid.sigmas[0])
        last: Tensor | None = None
        for state in self.solver.run_upward(standard, start, grid, None):
            last = state.x
            if callback is None:
                continue
            if state.sigma == top:
                state = replace(state, denoised=standard(state.x / state.scale, state.sigma))
            callback(next(_in_data_units(iter([state]), standard, dtype)))
        assert last is not None
        check_samples(last, None, lambda: self.solver.run_upward(standard, start, grid, None))
        return last / (top * grid.scale(top))

    def levels_for(self, denoiser: Denoiser) -> Levels:
        """The levels with all their numbers, those that follow σ_data included, cut to the denoiser's range.

        Raises:
            ValueError: the levels are outside the denoiser's range.
        """
        return self.levels.for_data(denoiser.sigma_data).within(denoiser.sigma_min, denoiser.sigma_max)

    def grid(self, denoiser: Denoiser, *, upward: bool = False) -> Grid:
        """The levels of a run, cut to the denoiser's range and rounded to its levels, and the curve through them.

        Raises:
            ValueError: the levels are outside the denoiser's range, or the denoiser is a consistency function and the
                solver is not for them, or the reverse.
        """
        self.solver.check_denoiser(denoiser)
        levels = supported_sigmas(self.levels, denoiser.sigma_data, denoiser.sigma_min, denoiser.sigma_max)
        sigmas = tuple(denoiser.round_sigma(torch.tensor(levels, dtype=torch.float64)).tolist())
        return Grid(
            sigmas[::-1] if upward else sigmas,
            self.schedule,
            self.schedule.scaling if self.scaling is None else self.scaling,
            self.churn,
            self.final,
            denoiser.round_sigma,
            denoiser.sigma_data,
        )

    def plan(self, denoiser: Denoiser, *, upward: bool = False) -> Plan:
        """Every number of a run that does not depend on x, in float64 on the host.

        Raises:
            TypeError: the steps of the solver depend on x.
            ValueError: the levels are outside the denoiser's range, or do not suit the solver.
        """
        if not isinstance(self.solver, PlannedSolver):
            raise TypeError(
                f"solver must be a PlannedSolver, whose steps do not depend on x, got {type(self.solver).__name__}"
            )
        return self.solver.planned(self.grid(denoiser, upward=upward))

    def check(self, denoiser: Denoiser) -> None:
        """Raise an error, without an evaluation, if this sampler does not support a denoiser.

        Raises:
            ValueError: as for `sample`.
        """
        self._checked_grid(denoiser)

    def _checked_grid(self, denoiser: Denoiser) -> Grid:
        """The levels of a run, which suit the solver, with churn at one of them at least if there is churn."""
        grid, churn = self.grid(denoiser), self.churn
        self.solver.check(grid)
        if churn.s_churn > 0 and not any(churn.s_min <= sigma <= churn.s_max for sigma in grid.sigmas):
            raise ValueError(
                "s_min and s_max must have noise levels between them, of "
                f"{grid.sigmas[-1]:.3g} … {grid.sigmas[0]:.3g}, or churn has no effect, got {churn}"
            )
        return grid


def _in_data_units(states: Iterator[State], standard: Standardised, dtype: torch.dtype) -> Iterator[State]:
    """The states of a run in standard units, in data units and in this dtype."""
    for state in states:
        if not standard.is_identity:
            x, denoised = standard.restored(state.x, scale=state.scale), standard.restored(state.denoised)
            state = replace(state, x=x, denoised=denoised)
        yield state if state.x.dtype == dtype else replace(state, x=state.x.to(dtype))


def _check_classes(denoiser: Denoiser, condition: Condition) -> None:
    """Check labels on the host before the run, because on a device the check would need a synchronisation."""
    check_condition_type(condition)
    if condition is None or condition.ndim != 1 or condition.is_floating_point() or condition.device.type != "cpu":
        return
    wrong = condition[(condition < -1) | (condition >= denoiser.num_classes)]
    if denoiser.num_classes > 0 and len(wrong):
        raise ValueError(
            f"condition must hold classes between 0 and {denoiser.num_classes - 1}, or -1 for none, got {int(wrong[0])}"
        )


def _device_and_dtype(denoiser: Denoiser, given: Tensor | None) -> tuple[torch.device, torch.dtype]:
    """The device and dtype of the state: the denoiser's device, and float64 (float32 on a device without it)."""
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
    """Sample many seeds in batches, and yield (seeds, samples) for each batch, on the host.

    Args:
        sampler: the sampler.
        denoiser: the denoiser, with an `event_shape`.
        seeds: one seed a sample.
        condition: one row a sample, or a single one as for `Sampler.sample`.
        batch_size: number of samples in a batch, ≥ 1; it changes memory and speed, not the samples.
        noise: a function from seeds to a source of noise, such as `BrownianNoise`.
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
