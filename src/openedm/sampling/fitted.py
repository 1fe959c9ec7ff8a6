"""Levels fitted to a denoiser and a solver: a few parameters of the levels that minimise the error of the sampler.

For pilot samples with initial states x^(m) let y^(m) be the converged solution and x̂^(m)(θ) the result of the solver
with levels θ. The objective is

    E(θ) = (mean_m ‖x̂^(m)(θ) − y^(m)‖^½)²,   ‖·‖ the root mean square over coordinates,

as a function of the centre, spread and warp of `Logistic` levels. It is the true error at the end and not an estimate
from local errors: these have signs and are transported to σ = 0 by the flow, which local criteria neglect (Tong et al.
2024, "Learning to discretize denoising diffusion ODEs", minimise the same by gradients through network and solver). The
power ½ limits the influence of the few pilots that end in another mode.

The minimum is found by Levenberg–Marquardt steps on the residuals r^(m) = x̂^(m) − y^(m), reweighted by ‖r^(m)‖^{−3/2}
so that weighted squares have the gradient of E (iteratively reweighted least squares), with forward differences in the
five parameters: about N evaluations of all pilots for each, and no derivatives of the network.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from openedm.denoiser import Condition, Denoiser
from openedm.ground import checks
from openedm.ground.progress import Progress, ShowProgress, showing
from openedm.levels import Explicit, Levels, Logistic
from openedm.preconditioning import VelocityPrediction
from openedm.sampling.engine.plan import PlannedSolver
from openedm.sampling.methods.multistep import Multistep
from openedm.sampling.sampler import Sampler
from openedm.schedules import FlowTime

__all__ = ["Fit", "fit_levels", "pilot_seeds"]

NUM_WARPS = 3
STARTS = tuple((centre, spread) for centre in (0.25, 0.5, 1.0) for spread in (1.0, 1.5, 2.2))
DIFFERENCES = (0.02, 0.02, 0.01, 0.01, 0.01)
MAX_STEP = 0.5
MIN_RELATIVE_NORM = 0.3


@dataclass(frozen=True)
class Fit:
    """The result of a fit.

    Attributes:
        sampler: the sampler with fitted levels; with its original levels if the fit did not reduce the error.
        error: its error E, in data units.
        error_before: the error E of the original sampler.
        evaluations: the number of evaluations of the denoiser for all pilots.
    """

    sampler: Sampler
    error: float
    error_before: float
    evaluations: int


def fit_levels(
    denoiser: Denoiser,
    sampler: Sampler,
    *,
    seeds: Sequence[int] | None = None,
    condition: Condition = None,
    event_shape: tuple[int, ...] | None = None,
    iterations: int = 6,
    progress: ShowProgress = None,
) -> Fit:
    """Fit the levels of a sampler to a denoiser and to the sampler's solver.

    Args:
        denoiser: any denoiser.
        sampler: a deterministic sampler on fixed levels; the fit keeps its solver and the number and range of its
            levels.
        seeds: the seeds of the pilots; None means `pilot_seeds` of the event's size, which start at 2³¹, far from usual
            seeds of samples.
        condition: one row a pilot; a single row for all if the denoiser has a `condition_shape`.
        event_shape: the shape of one sample; required if the denoiser has no `event_shape`.
        iterations: the largest number of Levenberg–Marquardt steps, ≥ 0; 0 only compares nine sets of levels.
        progress: None shows a bar in a terminal or notebook, True always, False never; a function is called with the
            number of evaluations so far.

    Raises:
        ValueError: the sampler is stochastic or chooses its steps itself, it has fewer than 3 levels, the denoiser
            returns NaN or supports too few levels, or as for its `sample`.
    """
    if sampler.stochastic or not isinstance(sampler.solver, PlannedSolver):
        raise ValueError(f"solver must be deterministic and on fixed levels for a fit, got {sampler}")
    checks.at_least("num_steps of fitted levels", sampler.levels.num_steps, 3)
    checks.at_least("iterations", iterations, 0)
    shape = denoiser.event_shape if event_shape is None else event_shape
    if shape is None:
        raise ValueError("event_shape must be given for a denoiser without event_shape, got None")
    with showing(progress) as report:
        pilots = Pilots(denoiser, sampler, pilot_seeds(shape) if seeds is None else seeds, condition, shape, report)
        before = pilots.error(pilots.residuals(sampler.levels))
        width = denoiser.sigma_data
        starts = [pilots.make_levels(c * width, w) for c, w in STARTS]
        original = sampler.levels_for(denoiser)
        if isinstance(original, Logistic):
            starts.append(replace(original, warp=(*original.warp, *[0.0] * (NUM_WARPS - len(original.warp)))))
        residuals = [pilots.residuals(start) for start in starts]
        errors = [pilots.error(r) for r in residuals]
        best = min(range(len(starts)), key=errors.__getitem__)
        minimum = _minimise(pilots, starts[best], residuals[best], iterations)
        # Sums of many terms may differ in the last bit between calls; rounded levels do not.
        fitted = _round(minimum)
        error = pilots.error(pilots.residuals(fitted))
    if not math.isfinite(min(error, before)):
        raise ValueError(f"num_steps must suit the solver and the levels that the denoiser supports, got {sampler}")
    if before <= error:  # for explicit levels, or those of an earlier fit
        return Fit(replace(sampler, levels=original), before, before, pilots.evaluations)
    return Fit(replace(sampler, levels=fitted), error, before, pilots.evaluations)


def pilot_seeds(event_shape: tuple[int, ...]) -> range:
    """The seeds of pilots with about 1,024 residuals: between 8, for images, and 64, for a few dimensions."""
    count = min(max(1024 // math.prod(event_shape), 8), 64)
    return range(2**31, 2**31 + count)


class Pilots:
    """Starts, their converged solutions, and the errors of the solver."""

    def __init__(
        self,
        denoiser: Denoiser,
        sampler: Sampler,
        seeds: Sequence[int],
        condition: Condition,
        event_shape: tuple[int, ...],
        progress: Progress,
    ) -> None:
        self.denoiser, self.sampler, self.condition, self.event_shape = denoiser, sampler, condition, event_shape
        self.seeds, self.progress = seeds, progress
        self.evaluations = 0
        width = denoiser.sigma_data
        fine = replace(self.make_levels(width / 2, 1.5), num_steps=max(128, 6 * sampler.levels.num_steps))
        # Each level once: rounding to the levels of the denoiser may repeat some.
        supported = sorted(set(denoiser.round_sigma(fine.sigmas()).tolist()), reverse=True)
        solver = Multistep(VelocityPrediction(width), FlowTime(width), 4, 5)
        try:
            self.solution = self._run(Sampler(Explicit(tuple(supported)), solver=solver))
        except FloatingPointError as error:
            raise ValueError(f"denoiser must give finite samples for a fit of levels: {error}") from error

    def make_levels(self, centre: float, spread: float) -> Logistic:
        """Levels with the sampler's number and range, and this centre and spread."""
        levels = self.sampler.levels_for(self.denoiser)
        return Logistic(levels.num_steps, *levels.ends, centre, spread, (0.0,) * NUM_WARPS)

    def _run(self, sampler: Sampler) -> Float64[Tensor, "pilots *event"]:
        x = sampler.sample(self.denoiser, self.seeds, condition=self.condition, event_shape=self.event_shape)
        self.evaluations += sampler.nfe or 0
        self.progress("fitting levels", self.evaluations, None)
        return x

    def residuals(self, levels: Levels) -> Float64[Tensor, "pilots features"]:
        """(x̂ − y)/√n of every pilot, with other levels; infinite if the solver diverges or a level is repeated."""
        return self.residuals_of(replace(self.sampler, levels=levels))

    def residuals_of(self, sampler: Sampler) -> Float64[Tensor, "pilots features"]:
        """The same of another sampler."""
        try:
            difference = (self._run(sampler) - self.solution).flatten(1)
        except (FloatingPointError, ValueError):
            return torch.full_like(self.solution.flatten(1), torch.inf)
        return difference.nan_to_num(torch.inf, torch.inf, -torch.inf) / math.sqrt(difference.shape[1])

    @staticmethod
    def error(residuals: Float[Tensor, "pilots features"]) -> float:
        """E."""
        return float(residuals.norm(dim=1).sqrt().mean().square())


def add_offset(progress: Progress, spent: int) -> Progress:
    """A progress that counts on from the evaluations of earlier fits."""

    def report(name: str, done: float, total: float | None = 1.0, **counts: int) -> None:
        progress(name, spent + done, total, **counts)

    return report


def _parameters(levels: Logistic) -> list[float]:
    assert levels.centre is not None
    return [math.log(levels.centre), math.log(levels.spread), *levels.warp]


def _round(levels: Logistic) -> Logistic:
    """The levels with their parameters rounded to six significant digits."""
    assert levels.centre is not None
    centre, spread, *warp = (float(f"{value:.6g}") for value in (levels.centre, levels.spread, *levels.warp))
    return replace(levels, centre=centre, spread=spread, warp=tuple(warp))


def _with_parameters(levels: Logistic, parameters: Sequence[float]) -> Logistic | None:
    """The levels with these parameters; None if they would not decrease strictly."""
    try:
        return replace(
            levels, centre=math.exp(parameters[0]), spread=math.exp(parameters[1]), warp=tuple(parameters[2:])
        )
    except (ValueError, OverflowError):
        return None


def _minimise(pilots: Pilots, levels: Logistic, residuals: Tensor, iterations: int) -> Logistic:
    """The best levels found by Levenberg–Marquardt steps on the reweighted squares."""
    damping, error = 1e-2, pilots.error(residuals)
    for _ in range(iterations):
        jacobian = _jacobian(pilots, levels, residuals)
        norms = residuals.norm(dim=1)
        if jacobian is None or not bool(norms.isfinite().all()) or error == 0:
            break
        weights = norms.clamp(min=MIN_RELATIVE_NORM * float(norms.median()) + 1e-300).pow(-1.5)
        weights = weights / weights.mean()
        curvature = torch.einsum("m,pmn,qmn->pq", weights, jacobian, jacobian).cpu()
        gradient = torch.einsum("m,pmn,mn->p", weights, jacobian, residuals).cpu()
        improved = False
        while not improved and damping < 1e4:
            damped = curvature + torch.diag(damping * curvature.diag() + 1e-300)
            step = torch.linalg.lstsq(damped, -gradient[:, None]).solution[:, 0].clamp(-MAX_STEP, MAX_STEP)
            parameters = [p + s for p, s in zip(_parameters(levels), step.tolist(), strict=True)]
            candidate = _with_parameters(levels, parameters)
            if candidate is not None:
                new_residuals = pilots.residuals(candidate)
                if pilots.error(new_residuals) < error:
                    levels, residuals, error, improved = candidate, new_residuals, pilots.error(new_residuals), True
            damping = max(damping / 5, 1e-4) if improved else damping * 5
        if not improved:
            break
    return levels


def _jacobian(pilots: Pilots, levels: Logistic, residuals: Tensor) -> Tensor | None:
    """∂r/∂θ by forward differences, or backward ones if levels would not decrease; (parameters, pilots, features)."""
    rows = []
    for k in range(len(_parameters(levels))):
        h = DIFFERENCES[min(k, len(DIFFERENCES) - 1)]
        for signed in (h, -h):
            parameters = _parameters(levels)
            parameters[k] += signed
            candidate = _with_parameters(levels, parameters)
            if candidate is not None:
                rows.append((pilots.residuals(candidate) - residuals) / signed)
                break
        else:
            return None
    jacobian = torch.stack(rows)
    return jacobian if bool(jacobian.isfinite().all()) else None
