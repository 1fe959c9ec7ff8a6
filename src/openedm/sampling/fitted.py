"""Levels that fit a denoiser and a solver: a few numbers that place them, chosen so that the sampler errs least.

For pilot starts x^(m) let y^(m) be the converged solution and x̂^(m)(θ) what the solver makes of levels θ. Minimised is

    E(θ) = (mean_m ‖x̂^(m)(θ) − y^(m)‖^½)²,   ‖·‖ the root mean square over coordinates,

over the centre, spread and warp of `Logistic` levels. The true end error is measured rather than estimated from local
errors: these add up with signs and are carried to σ = 0 by the flow, which no local criterion sees (Tong et al. 2024,
"Learning to discretize denoising diffusion ODEs", optimise the same by gradients through network and solver). The power
½ keeps the few pilots that cross to another mode from deciding for all.

The minimum is found by Levenberg–Marquardt steps on the residuals r^(m) = x̂^(m) − y^(m), reweighted by ‖r^(m)‖^{−3/2}
so that weighted squares have the gradient of E (iteratively reweighted least squares), with forward differences in the
five numbers: about N evaluations of all pilots a difference, no derivative of the network.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from openedm.denoiser import Condition, Denoiser
from openedm.ground import checks
from openedm.ground.progress import Progress, no_progress
from openedm.levels import Explicit, Levels, Logistic
from openedm.preconditioning import VelocityPrediction
from openedm.sampling.engine.plan import PlannedSolver
from openedm.sampling.methods.multistep import Multistep
from openedm.sampling.sampler import Sampler
from openedm.schedules import FlowTime

__all__ = ["Fit", "fit_levels", "pilot_seeds"]

WARPS = 3
STARTS = tuple((centre, spread) for centre in (0.25, 0.5, 1.0) for spread in (1.0, 1.5, 2.2))
DIFFERENCES = (0.02, 0.02, 0.01, 0.01, 0.01)
LONGEST_STEP = 0.5
FLOOR = 0.3


@dataclass(frozen=True)
class Fit:
    """What a fit found.

    Attributes:
        sampler: the sampler with its levels fitted; as given where none were found on which it errs less.
        error: E of it, in data units.
        error_before: E of the sampler that was given.
        evaluations: how many times the pilots were put through the denoiser.
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
    progress: Progress = no_progress,
) -> Fit:
    """Fit the levels of a sampler to a denoiser and to the solver that will use them.

    Args:
        denoiser: any denoiser.
        sampler: a deterministic sampler on fixed levels; it gives the solver and the number and range of its levels.
        seeds: the pilots; None for `pilot_seeds` of the event's size, from 2³¹ up, apart from the seeds people sample.
        condition: one row a pilot; a single row for all where the denoiser has a `condition_shape`.
        event_shape: the shape of one sample; needed where the denoiser does not tell it.
        iterations: how many Levenberg–Marquardt steps at most, ≥ 0; 0 only compares nine placements.
        progress: called with the number of evaluations so far.

    Raises:
        ValueError: the sampler is stochastic or chooses its steps itself, it has fewer than 3 levels, the denoiser
            returns NaN or supports too few levels, or as for its `sample`.
    """
    if sampler.stochastic or not isinstance(sampler.solver, PlannedSolver):
        raise ValueError(f"solver must be deterministic, on fixed levels, for them to be fitted to it, got {sampler}")
    checks.at_least("num_steps of fitted levels", sampler.levels.num_steps, 3)
    checks.at_least("iterations", iterations, 0)
    shape = denoiser.event_shape if event_shape is None else event_shape
    if shape is None:
        raise ValueError("event_shape must be given: the denoiser does not know the shape of a sample")
    pilots = _Pilots(denoiser, sampler, pilot_seeds(shape) if seeds is None else seeds, condition, shape, progress)
    before = pilots.error(pilots.residuals(sampler.levels))
    width = denoiser.sigma_data
    starts = [pilots.placed(c * width, w) for c, w in STARTS]
    given = sampler.levels.within(denoiser.sigma_min, denoiser.sigma_max)
    if isinstance(given, Logistic):
        starts.append(replace(given, warp=(*given.warp, *[0.0] * (WARPS - len(given.warp)))))
    residuals = [pilots.residuals(start) for start in starts]
    errors = [pilots.error(r) for r in residuals]
    best = min(range(len(starts)), key=errors.__getitem__)
    found = _minimise(pilots, starts[best], residuals[best], iterations)
    # Sums of many terms differ in the last bit from call to call: what is kept does not.
    kept = _rounded(found)
    error = pilots.error(pilots.residuals(kept))
    if not math.isfinite(min(error, before)):
        raise ValueError(f"num_steps must suit the solver and the levels that the denoiser supports, got {sampler}")
    if before <= error:  # levels given one by one, or of a fit
        return Fit(replace(sampler, levels=given), before, before, pilots.evaluations)
    return Fit(replace(sampler, levels=kept), error, before, pilots.evaluations)


def pilot_seeds(event_shape: tuple[int, ...]) -> range:
    """As many pilots as give about 1,024 residuals: between 8, for images, and 64, for a few dimensions."""
    count = min(max(1024 // math.prod(event_shape), 8), 64)
    return range(2**31, 2**31 + count)


class _Pilots:
    """The pilots' converged solutions, and how far from them the solver ends."""

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
        fine = replace(self.placed(width / 2, 1.5), num_steps=max(128, 6 * sampler.levels.num_steps))
        # Each level once: a denoiser of few levels defines no more of its flow.
        known = sorted(set(denoiser.round_sigma(fine.sigmas()).tolist()), reverse=True)
        solver = Multistep(VelocityPrediction(width), FlowTime(width), 4, 5)
        self.solution = self._run(Sampler(Explicit(tuple(known)), solver=solver))
        if not bool(self.solution.isfinite().all()):
            raise ValueError(
                "denoiser must lead the pilots to finite samples for levels to be fitted, got NaN or infinity"
            )

    def placed(self, centre: float, spread: float) -> Logistic:
        """Levels of the sampler's number and range, placed so."""
        levels = self.sampler.levels.within(self.denoiser.sigma_min, self.denoiser.sigma_max)
        return Logistic(levels.num_steps, levels.sigma_min, levels.sigma_max, centre, spread, (0.0,) * WARPS)

    def _run(self, sampler: Sampler) -> Float64[Tensor, "pilots *event"]:
        x = sampler.sample(self.denoiser, self.seeds, condition=self.condition, event_shape=self.event_shape)
        self.evaluations += sampler.nfe or 0
        self.progress("fitting levels", self.evaluations, None)
        return x

    def residuals(self, levels: Levels) -> Float64[Tensor, "pilots features"]:
        """(x̂ − y)/√n of every pilot; infinite where the solver diverges or meets a level twice."""
        try:
            difference = (self._run(replace(self.sampler, levels=levels)) - self.solution).flatten(1)
        except ValueError:
            return torch.full_like(self.solution.flatten(1), torch.inf)
        return difference.nan_to_num(torch.inf, torch.inf, -torch.inf) / math.sqrt(difference.shape[1])

    @staticmethod
    def error(residuals: Float[Tensor, "pilots features"]) -> float:
        """E."""
        return float(residuals.norm(dim=1).sqrt().mean().square())


def _parameters(levels: Logistic) -> list[float]:
    return [math.log(levels.centre), math.log(levels.spread), *levels.warp]


def _rounded(levels: Logistic) -> Logistic:
    """The levels with six significant digits in each of their numbers."""
    centre, spread, *warp = (float(f"{value:.6g}") for value in (levels.centre, levels.spread, *levels.warp))
    return replace(levels, centre=centre, spread=spread, warp=tuple(warp))


def _placed(levels: Logistic, parameters: Sequence[float]) -> Logistic | None:
    """The levels at these parameters; None where they would not fall strictly."""
    try:
        return replace(
            levels, centre=math.exp(parameters[0]), spread=math.exp(parameters[1]), warp=tuple(parameters[2:])
        )
    except (ValueError, OverflowError):
        return None


def _minimise(pilots: _Pilots, levels: Logistic, residuals: Tensor, iterations: int) -> Logistic:
    """Levenberg–Marquardt on the reweighted squares; returns the best levels seen."""
    damping, error = 1e-2, pilots.error(residuals)
    for _ in range(iterations):
        jacobian = _differences(pilots, levels, residuals)
        norms = residuals.norm(dim=1)
        if jacobian is None or not bool(norms.isfinite().all()) or error == 0:
            break
        weights = norms.clamp(min=FLOOR * float(norms.median()) + 1e-300).pow(-1.5)
        weights = weights / weights.mean()
        curvature = torch.einsum("m,pmn,qmn->pq", weights, jacobian, jacobian).cpu()
        gradient = torch.einsum("m,pmn,mn->p", weights, jacobian, residuals).cpu()
        improved = False
        while not improved and damping < 1e4:
            damped = curvature + torch.diag(damping * curvature.diag() + 1e-300)
            step = torch.linalg.lstsq(damped, -gradient[:, None]).solution[:, 0].clamp(-LONGEST_STEP, LONGEST_STEP)
            moved = [p + s for p, s in zip(_parameters(levels), step.tolist(), strict=True)]
            candidate = _placed(levels, moved)
            if candidate is not None:
                there = pilots.residuals(candidate)
                if pilots.error(there) < error:
                    levels, residuals, error, improved = candidate, there, pilots.error(there), True
            damping = max(damping / 5, 1e-4) if improved else damping * 5
        if not improved:
            break
    return levels


def _differences(pilots: _Pilots, levels: Logistic, residuals: Tensor) -> Tensor | None:
    """∂r/∂θ by forward differences, backward where forward levels would not fall; (parameters, pilots, features)."""
    rows = []
    for k in range(len(_parameters(levels))):
        h = DIFFERENCES[min(k, len(DIFFERENCES) - 1)]
        for signed in (h, -h):
            moved = _parameters(levels)
            moved[k] += signed
            candidate = _placed(levels, moved)
            if candidate is not None:
                rows.append((pilots.residuals(candidate) - residuals) / signed)
                break
        else:
            return None
    jacobian = torch.stack(rows)
    return jacobian if bool(jacobian.isfinite().all()) else None
