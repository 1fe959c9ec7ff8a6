"""Adaptive solvers of the probability-flow ODE dx/dσ = (x − D(x; σ))/σ, with steps chosen for each sample.

Along the flow of data of width σ_d an error in x at σ shrinks by c(σ) = σ_d/√(σ² + σ_d²), the ratio of the widths,
until σ = 0. So the tolerance is for errors of w = c(σ) x, whose size remains about the same, and it is the same at all
noise levels. Runge–Kutta pairs step w itself, in a variable τ of which σ is a function:

    dw/dτ = c (c² x − D(x; σ))/σ · dσ/dτ        (= −c² F dσ/dτ, with F the network's output, Karras et al. 2022, eq. 7)

It vanishes where the data are one Gaussian of mean 0 and width σ_d. The default τ = atan(σ/σ_d)^½ maps large σ, where w
depends on 1/σ, to a short interval, and is √σ for small σ, between σ and ln σ. In ln σ, error estimates of long first
steps are too small at loose tolerances, and whole modes are missed.

The exponential pair steps in u = ln σ, that is −λ, with D or ε = (x − D)/σ interpolated (L = 1 or −1):

    dx/du = x − D,    d(x/σ)/du = −x/σ + ε.

The error of a step is at most a fraction of the tolerance, 0.1 for the pairs 5(4), 0.25 for the exponential pair, so
that the median error of the samples is below a tenth of the tolerance. Where modes separate, the flow enlarges the
errors of single samples by a factor e^∫(J − c²) d ln σ, J a derivative of D, that has no bound. Measured at tolerance
1e-3 on twelve exact denoisers of 1 to 256 dimensions (`benchmarks/solvers`): median errors 1e-6 to 9e-5 with 34 to 62
evaluations, the worst of all 4,300 samples 2.7e-3.
"""

import warnings
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from openedm.denoiser import Condition, Denoiser, check_no_per_sample_settings, per_sample
from openedm.ground import checks
from openedm.preconditioning import DataPrediction, EpsilonPrediction, Prediction
from openedm.sampling.engine.formulation import Formulation, scaled_flow, width_ratio
from openedm.sampling.engine.integrate import Solution, check_times, integrate
from openedm.sampling.engine.pairs import DORMAND_PRINCE, EXPONENTIAL, TSIT5
from openedm.sampling.engine.plan import Grid, Solver, State
from openedm.sampling.engine.remaining import denoise_within
from openedm.sampling.noise import NoiseSource
from openedm.schedules import LogSigma, Schedule
from openedm.standardised import Standardised, standardised

__all__ = ["AdaptiveSolver", "DormandPrince", "Exponential23", "Tsit5", "adaptive_flow", "adaptive_sample"]


@dataclass(frozen=True)
class AdaptiveSolver(Solver):
    """A solver that chooses its steps for each sample, to a tolerance. It uses the first and the last level only.

    Args:
        tolerance: the error of a finished sample, as a root mean square over its coordinates, in units of the
            denoiser's σ_data, > 0: most samples have an error of a tenth of it or less, samples close to the border
            between two modes a larger one. For networks in float32 it should be at least 1e-5.
        max_nfe: the limit of evaluations of each sample, ≥ 2; a sample that needs more takes the rest of its path in
            even steps, as many as are left, with a warning. None means no limit.
        first_step: the size of the first step in the solver's variable, > 0; None means that one more evaluation
            determines it.
        relative: whether the tolerance is in units of σ_data; otherwise it is in data units.

    Raises:
        TypeError: max_nfe is not an integer.
        ValueError: a value is out of its range.
    """

    tolerance: float = 1e-3
    max_nfe: int | None = None
    first_step: float | None = None
    relative: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        checks.positive("tolerance", self.tolerance)
        if self.max_nfe is not None:
            checks.integer("max_nfe", self.max_nfe, 2)
        if self.first_step is not None:
            checks.positive("first_step", self.first_step)

    @abstractmethod
    def formulation(self, sigma_data: float) -> Formulation:
        """The equation that is integrated, for data of width `sigma_data`."""

    @property
    def order(self) -> int:
        """The order of the pair's result; the error is proportional to the tolerance."""
        return self.formulation(1.0).pair.order

    def evaluations(self, num_steps: int) -> None:
        """None: the number depends on the sample."""
        return

    def run(
        self,
        denoiser: Denoiser,
        x: Float[Tensor, "batch *event"],
        grid: Grid,
        condition: Condition,
        source: NoiseSource | None,
    ) -> Iterator[State]:
        """The states at the first and the last level, and the sample.

        Raises:
            FloatingPointError: the step size of a sample fell below rounding.
        """
        first, last = grid.sigmas[0], grid.sigmas[-1]
        if len(grid.sigmas) > 1:
            solution, denoised = _flow(denoiser, x, first, last, self, condition)
            solution.check()
            yield State(0, first, first, 1.0, x, denoised)
            denoised, x, _ = _end(denoiser, solution, self, last, condition)
        else:
            denoised = denoiser(x, torch.full((len(x),), first, dtype=x.dtype, device=x.device), condition)
        index = min(len(grid.sigmas) - 1, 1)
        yield State(index, last, last, 1.0, x, denoised)
        yield State(index + 1, 0.0, 0.0, 1.0, denoised, denoised)

    def run_upward(
        self, denoiser: Denoiser, x: Float[Tensor, "batch *event"], grid: Grid, condition: Condition
    ) -> Iterator[State]:
        """The states at the lowest and the highest level; D is not evaluated at the latter, whose `denoised` is x.

        Raises:
            FloatingPointError: the step size of a sample fell below rounding.
            ValueError: a sample reached the limit of evaluations before the highest level.
        """
        first, last = grid.sigmas[0], grid.sigmas[-1]
        solution, denoised = _flow(denoiser, x, first, last, self, condition)
        solution.check()
        if not bool(solution.finished.all()):
            raise ValueError(f"max_nfe must be large enough for an inversion, got {self.max_nfe}")
        yield State(0, first, first, 1.0, x, denoised)
        yield State(1, last, last, 1.0, solution.x, solution.x)


@dataclass(frozen=True)
class DormandPrince(AdaptiveSolver):
    """Dormand & Prince's pair 5(4) on w = c(σ) x: six evaluations a step.

    Args:
        tolerance: see `AdaptiveSolver`.
        max_nfe: see `AdaptiveSolver`.
        first_step: see `AdaptiveSolver`.
        relative: see `AdaptiveSolver`.
        variable: the schedule in whose time τ it steps; None means atan(σ/σ_d)^½ with the denoiser's σ_d.
    """

    variable: Schedule | None = None

    def formulation(self, sigma_data: float) -> Formulation:
        """dw/dτ."""
        return scaled_flow(DORMAND_PRINCE, self.variable, sigma_data)


@dataclass(frozen=True)
class Tsit5(AdaptiveSolver):
    """Tsitouras's pair 5(4) on w = c(σ) x: six evaluations a step.

    Args:
        tolerance: see `AdaptiveSolver`.
        max_nfe: see `AdaptiveSolver`.
        first_step: see `AdaptiveSolver`.
        relative: see `AdaptiveSolver`.
        variable: the schedule in whose time τ it steps; None means atan(σ/σ_d)^½ with the denoiser's σ_d.
    """

    variable: Schedule | None = None

    def formulation(self, sigma_data: float) -> Formulation:
        """dw/dτ."""
        return scaled_flow(TSIT5, self.variable, sigma_data)


@dataclass(frozen=True)
class Exponential23(AdaptiveSolver):
    """The exponential pair 3(2) in ln σ = −λ: DPM-Solver-12 and -3 (Lu et al. 2022) with steps for each sample.

    Args:
        tolerance: see `AdaptiveSolver`.
        max_nfe: see `AdaptiveSolver`.
        first_step: see `AdaptiveSolver`.
        relative: see `AdaptiveSolver`.
        prediction: the quantity that is interpolated, ε or D.

    Raises:
        TypeError: `prediction` is another one.
    """

    prediction: Prediction = EpsilonPrediction()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.prediction, EpsilonPrediction | DataPrediction):
            raise TypeError(f"prediction must be EpsilonPrediction or DataPrediction, got {self.prediction!r}")

    def formulation(self, sigma_data: float) -> Formulation:
        """dx/du = x − D, or d(x/σ)/du = −x/σ + ε."""
        uses_epsilon = isinstance(self.prediction, EpsilonPrediction)

        def slope(x: Tensor, denoised: Tensor, sigma: Tensor, speed: Tensor) -> Tensor:
            return (x - denoised) / sigma if uses_epsilon else -denoised

        def factor(sigma: Tensor) -> Tensor:
            return sigma.reciprocal() if uses_epsilon else torch.ones_like(sigma)

        def scale(time: Tensor) -> Tensor:
            sigma = time.exp()
            return factor(sigma) / width_ratio(sigma, sigma_data)

        return Formulation(EXPONENTIAL, LogSigma(), factor, slope, -1.0 if uses_epsilon else 1.0, scale, 0.25)


def adaptive_flow(
    denoiser: Denoiser,
    x: Float[Tensor, "batch *event"],
    sigma_start: float,
    sigma_end: float,
    *,
    solver: AdaptiveSolver,
    condition: Condition = None,
    at: Float[Tensor, "levels"] | None = None,
) -> Solution:
    """The states to which the ODE takes x from one noise level to another, downward or upward; its time is σ.

    Args:
        denoiser: any denoiser; its σ_data is the width σ_d.
        x: states at σ_start, in data units, floating point.
        sigma_start: the noise level at the start, > 0.
        sigma_end: the noise level at the end, > 0.
        solver: the solver.
        condition: one row a sample; a single row for all if the denoiser has a `condition_shape`.
        at: levels between the two, in that order, whose states are also returned, by dense output.

    Raises:
        ValueError: a level is not > 0, the two are equal, levels are not in order, or the rows of condition do not fit
            x.
    """
    return _in_data_units(*_standard_flow(denoiser, x, sigma_start, sigma_end, solver, condition, at))


@torch.no_grad()
def adaptive_sample(
    denoiser: Denoiser,
    x: Float[Tensor, "batch *event"],
    sigma_start: float,
    sigma_end: float,
    *,
    solver: AdaptiveSolver,
    condition: Condition = None,
    at: Float[Tensor, "levels"] | None = None,
) -> Solution:
    """The samples to which the ODE takes x: `adaptive_flow` to σ_end, and D at that level, one evaluation more.

    Arguments as for `adaptive_flow`. Samples that would need more than `max_nfe` evaluations take the rest of their
    path in even steps, as many as are left (`engine.remaining`), with a warning; they do not count as finished, and
    `time` is the noise level from which errors are not controlled.
    """
    standard, solution = _standard_flow(denoiser, x, sigma_start, sigma_end, solver, condition, at)
    samples, _, nfe = _end(standard, solution, solver, sigma_end, None)
    return _in_data_units(standard, replace(solution, x=samples, nfe=nfe))


def _standard_flow(
    denoiser: Denoiser,
    x: Float[Tensor, "batch *event"],
    sigma_start: float,
    sigma_end: float,
    solver: AdaptiveSolver,
    condition: Condition,
    at: Float[Tensor, "levels"] | None,
) -> tuple[Standardised, Solution]:
    """The denoiser in standard units with its condition, and the result of `adaptive_flow` in these units."""
    check_no_per_sample_settings(denoiser)
    denoiser.check_shape(x)
    denoiser.check_condition(condition, len(x))
    highest = max(sigma_start, sigma_end)
    standard = standardised(denoiser, condition, sigma_max=highest, event_shape=tuple(x.shape[1:]))
    return standard, _flow(standard, standard.standard(x), sigma_start, sigma_end, solver, None, at)[0]


def _in_data_units(standard: Standardised, solution: Solution) -> Solution:
    """A solution in standard units, in those of the data."""
    if standard.is_identity:
        return solution
    dense = None if solution.dense is None else torch.stack([standard.restored(z) for z in solution.dense])
    return replace(solution, x=standard.restored(solution.x), dense=dense)


def _end(
    denoiser: Denoiser, solution: Solution, solver: AdaptiveSolver, sigma_end: float, condition: Condition
) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, "batch *event"], Int64[Tensor, "batch"]]:
    """D at the end of the path, the states there, and the evaluations of each sample; warns as `adaptive_sample`."""
    stopped = ~solution.finished & ~solution.failed
    if not bool(stopped.any()):
        return denoiser(solution.x, solution.time, condition), solution.x, solution.nfe + 1
    warnings.warn(
        f"max_nfe={solver.max_nfe} ended the adaptive steps of {int(stopped.sum())} of {len(stopped)} samples early, "
        f"the worst at noise level {float(solution.time[stopped].max()):.3g} instead of {sigma_end:.3g}; the rest "
        "of their path had even steps, without control of the error: raise max_nfe or tolerance",
        stacklevel=3,
    )
    assert solver.max_nfe is not None
    left = torch.where(stopped, solver.max_nfe - solution.nfe, 1)
    samples, states = denoise_within(denoiser, solution.x, solution.time, sigma_end, left, condition)
    return samples, states, solution.nfe + left


def _warn_of_rounding(denoiser: Denoiser, solver: AdaptiveSolver) -> None:
    """Warn if rounding of a network decides the steps: they become so small that a run seems to have no end."""
    weights = next((p for p in denoiser.parameters() if p.is_floating_point()), None)
    tolerance = solver.tolerance / (1.0 if solver.relative else denoiser.sigma_data)
    if weights is not None and tolerance < (least := 10 * torch.finfo(weights.dtype).eps):
        warnings.warn(
            f"tolerance={solver.tolerance:g} is below what a network in {str(weights.dtype).removeprefix('torch.')} "
            f"resolves, about {least:.0e} σ_data: its rounding makes the steps ever smaller; 1e-5 is the least that is "
            "of use in float32. max_nfe limits the evaluations",
            stacklevel=2,
        )


@torch.no_grad()
def _flow(
    denoiser: Denoiser,
    x: Float[Tensor, "batch *event"],
    sigma_start: float,
    sigma_end: float,
    solver: AdaptiveSolver,
    condition: Condition,
    at: Float[Tensor, "levels"] | None = None,
) -> tuple[Solution, Float[Tensor, "batch *event"]]:
    """The result of `adaptive_flow`, and D at the start."""
    denoiser.check_condition(condition, len(x))
    check_no_per_sample_settings(denoiser)
    denoiser.check_gives_mean()
    checks.positive("sigma_start", sigma_start)
    checks.positive("sigma_end", sigma_end)
    if sigma_start == sigma_end:
        raise ValueError(f"sigma_end must differ from sigma_start, got {sigma_start} for both")
    if at is not None:
        at = at.cpu().to(torch.float64)
        check_times(at, sigma_start, sigma_end, "levels")
    _warn_of_rounding(denoiser, solver)
    form = solver.formulation(denoiser.sigma_data)
    ends = torch.tensor([sigma_start, sigma_end], dtype=torch.float64)
    start, end = form.variable.time(ends).tolist()
    first: list[Tensor] = []

    def sigma_at(time: Tensor) -> Tensor:
        """σ(τ), exact at both ends, because rounding might leave the denoiser's range."""
        sigma = form.variable.sigma(time)
        return torch.where(time == start, sigma_start, torch.where(time == end, sigma_end, sigma))

    def slope(time: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        sigma = sigma_at(time)
        state = y / per_sample(form.factor(sigma), y)
        denoised = denoiser(state, sigma, denoiser.condition_of(condition, rows))
        if not first:
            first.append(denoised)
        speed = per_sample(form.variable.sigma_derivative(time), y)
        return form.slope(state, denoised, per_sample(sigma, y), speed)

    solution = integrate(
        slope,
        x * float(form.factor(ends[0])),
        start,
        end,
        method=form.pair,
        tolerance=solver.tolerance * form.tolerance_fraction * (denoiser.sigma_data if solver.relative else 1.0),
        scale=form.scale,
        linear=form.linear,
        first_step=solver.first_step,
        max_evaluations=None if solver.max_nfe is None else solver.max_nfe - 1,
        at=None if at is None else form.variable.time(at),
    )
    sigma, dense = sigma_at(solution.time), solution.dense
    if dense is not None and at is not None:
        dense = dense / form.factor(at.to(dense)).reshape(-1, *[1] * x.ndim)
    reached = solution.x / per_sample(form.factor(sigma), x)
    return replace(solution, x=reached, time=sigma, dense=dense), first[0]
