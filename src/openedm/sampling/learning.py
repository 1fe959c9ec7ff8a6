"""Levels and weights of a solver together, fitted to a denoiser: the fewest evaluations for an error.

A `LearnedSolver` of N evaluations has levels σ_i, amounts of noise a_i, weights b_ij of past evaluations and c_j of the
result: about N²/2 + 3N numbers θ. With y^(m) the converged solutions of pilots m and r^(m)(θ) the errors of the solver,
root mean squares over coordinates, what is minimised is

    (1 − τ) ln E_½ + τ ln E_4,   E_k = (mean_m ‖r^(m)‖^k)^{1/k},

a typical error and, with the weight τ, the largest ones. S4S (Frankel et al. 2025, arXiv 2502.17423) and DyWeight
(arXiv 2603.11607) minimise a mean distance, by thousands of steps along gradients through the network. Here a few dozen
steps of Levenberg and Marquardt (`learning_steps`) differentiate nothing, so that guidance, conditions and denoisers of
other libraries do not matter.

Solvers with so many numbers may err on starts that they have not seen. So a second set of starts judges every step of
the fit: of those whose largest error there is not above that of the fitted levels alone, the one with the lowest E_½ is
kept, and the levels alone if there is none.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from openedm.denoiser import Condition, Denoiser
from openedm.ground import checks
from openedm.ground.progress import Progress, ShowProgress, showing
from openedm.preconditioning import DataPrediction, VelocityPrediction
from openedm.sampling.auto import Auto
from openedm.sampling.engine.plan import PlannedSolver
from openedm.sampling.fitted import Fit, add_offset, fit_levels
from openedm.sampling.learning_steps import Numbers, Starts, improvements, objective
from openedm.sampling.methods.learned import LearnedSolver
from openedm.sampling.methods.multistep import Multistep
from openedm.sampling.sampler import Sampler, SamplerChoice
from openedm.schedules import FlowTime

__all__ = ["SolverFit", "fit_solver", "solver_seeds"]

MAX_LEARNED = 20
"""The largest number of evaluations: weights are N²/2 numbers."""
FIRST_STEPS = 10
"""The steps from each start, before the best is followed."""
TAILS = (0.2, 0.6)
"""τ; the second one where no step with the first is accepted."""


@dataclass(frozen=True)
class SolverFit(Fit):
    """The result of a fit of a solver; errors are those of starts that had no part in the fit.

    Attributes:
        sampler: the sampler with the learned solver; with fitted levels alone if that was not better on these starts.
        error: its error E_½, in data units.
        error_before: E_½ of the fitted levels alone.
        evaluations: the number of evaluations of the denoiser, each for a set of pilots.
        largest: the largest error, the root mean square over coordinates.
        largest_before: that of the fitted levels alone; `largest` is not above it.
    """

    largest: float
    largest_before: float

    @property
    def learned(self) -> bool:
        """Whether weights were learned; False if fitted levels alone are better."""
        return isinstance(self.sampler.solver, LearnedSolver)


def solver_seeds(event_shape: tuple[int, ...]) -> tuple[range, range]:
    """The seeds of the pilots and of the starts that judge: from 2³¹ on, far from usual seeds of samples.

    32 pilots for images, up to 512 for a few dimensions, and twice as many starts.
    """
    count = min(max(8192 // math.prod(event_shape), 32), 512)
    return range(2**31, 2**31 + count), range(2**31 + count, 2**31 + 3 * count)


def fit_solver(
    denoiser: Denoiser,
    sampler: SamplerChoice = Auto(nfe=6),
    *,
    seeds: tuple[Sequence[int], Sequence[int]] | None = None,
    condition: Condition = None,
    event_shape: tuple[int, ...] | None = None,
    iterations: int = 50,
    progress: ShowProgress = None,
) -> SolverFit:
    """Learn a solver for a denoiser: its levels, and the weights of all its evaluations.

    The same arguments give the same solver. It takes 5,000 to 20,000 evaluations of the pilots for N from 4 to 8:
    seconds for small networks, minutes for images on a GPU.

    Args:
        denoiser: any denoiser whose settings are the same for all samples.
        sampler: what to start from, with 3 to 20 evaluations: `Auto(nfe=N)`, or a deterministic sampler on fixed levels
            with one evaluation a level. Its levels are fitted first.
        seeds: the seeds of the pilots, and those of the starts that judge the result, none in both; None means
            `solver_seeds` of the event's size.
        condition: one row a seed, first the pilots'; a single row for all if the denoiser has a `condition_shape`.
        event_shape: the shape of one sample; required if the denoiser has no `event_shape`.
        iterations: the largest number of Levenberg–Marquardt steps, ≥ 1; the first ten are taken from each of three
            starts with `Auto`.
        progress: None shows a bar in a terminal or notebook, True always, False never; a function is called with the
            number of evaluations so far.

    Raises:
        ValueError: the sampler is stochastic, chooses its steps itself, evaluates a level twice or has another number
            of evaluations; seeds are in both sets; the denoiser returns NaN; or as for `fit_levels`.

    >>> from openedm.exact import GaussianMixture
    >>> narrow = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [[[0.01]], [[0.01]]])
    >>> fit = fit_solver(narrow, Auto(nfe=5), progress=False)
    >>> fit.error < fit.error_before / 3, fit.largest <= fit.largest_before
    (True, True)
    """
    start = sampler.choose(denoiser)
    _check(denoiser, sampler, start, iterations)
    shape = denoiser.event_shape if event_shape is None else event_shape
    if shape is None:
        raise ValueError("event_shape must be given for a denoiser without event_shape, got None")
    pilots, judges = solver_seeds(shape) if seeds is None else seeds
    if set(pilots) & set(judges) or not pilots or not judges:
        raise ValueError("seeds must be two sets without common seeds, none of them empty")
    if condition is not None:
        denoiser.check_condition(condition, len(pilots) + len(judges))
    of_pilots = denoiser.condition_of(condition, slice(0, len(pilots)))
    of_judges = denoiser.condition_of(condition, slice(len(pilots), len(pilots) + len(judges)))
    with showing(progress) as report:
        levels = _fit_levels(denoiser, sampler, pilots, of_pilots, shape, report)
        others = _other_starts(denoiser, sampler, levels.sampler, pilots, of_pilots, shape) if iterations > 1 else []
        offset = add_offset(report, sum(fit.evaluations for fit in (levels, *others)))
        train = Starts(denoiser, levels.sampler, pilots, of_pilots, shape, offset)
        judge = Starts(denoiser, levels.sampler, judges, of_judges, shape, add_offset(offset, train.evaluations))
        found = _learn(train, judge, [levels, *others], iterations)
    evaluations = sum(fit.evaluations for fit in (levels, *others)) + train.evaluations + judge.evaluations
    return replace(found, evaluations=evaluations)


def _check(denoiser: Denoiser, sampler: SamplerChoice, start: Sampler, iterations: int) -> None:
    if start.stochastic or not isinstance(start.solver, PlannedSolver):
        raise ValueError(f"solver must be deterministic and on fixed levels for a fit, got {start}")
    if isinstance(start.solver, LearnedSolver):
        raise ValueError("solver must not be a LearnedSolver already: start from Auto(nfe=…) or another solver")
    if start.nfe != start.levels.num_steps:
        raise ValueError(
            f"solver must have one evaluation a level, as Auto and multistep solvers have, got {start.nfe} evaluations "
            f"of {start.levels.num_steps} levels by {type(start.solver).__name__}"
        )
    checks.between("nfe of a learned solver", start.levels.num_steps, 3, MAX_LEARNED)
    checks.integer("iterations", iterations, 1)
    if denoiser.rows is not None:
        raise ValueError(
            f"denoiser must have the same settings for all samples, got individual ones for {denoiser.rows} samples"
        )


def _fit_levels(
    denoiser: Denoiser,
    sampler: SamplerChoice,
    seeds: Sequence[int],
    condition: Condition,
    shape: tuple[int, ...],
    progress: Progress,
) -> Fit:
    fit = sampler.fit if isinstance(sampler, Auto) else None
    if fit is not None:
        return fit(denoiser, seeds=seeds, condition=condition, event_shape=shape, progress=progress)
    own = sampler.choose(denoiser)
    return fit_levels(denoiser, own, seeds=seeds, condition=condition, event_shape=shape, progress=progress)


def _other_starts(
    denoiser: Denoiser,
    sampler: SamplerChoice,
    levels: Sampler,
    seeds: Sequence[int],
    condition: Condition,
    shape: tuple[int, ...],
) -> list[Fit]:
    """Solvers of low order with fitted levels, as further starts: the steps lead to the nearest minimum."""
    if not isinstance(sampler, Auto):
        return []
    width = denoiser.sigma_data
    solvers = (Multistep(VelocityPrediction(width), FlowTime(width), 2, 3), Multistep(DataPrediction(), predictor=2))
    return [
        fit_levels(
            denoiser,
            replace(levels, solver=solver),
            seeds=seeds,
            condition=condition,
            event_shape=shape,
            iterations=3,
            progress=False,
        )
        for solver in solvers
    ]


@torch.no_grad()
def _learn(train: Starts, judge: Starts, starts: Sequence[Fit], iterations: int) -> SolverFit:
    denoiser, levels = train.denoiser, starts[0].sampler
    owns = [
        LearnedSolver.of_plan(start.sampler.plan(denoiser), train.sigma_max, denoiser.sigma_data) for start in starts
    ]
    before = judge.residuals(levels.levels)
    bound, error_before = float(before.norm(dim=1).max()), judge.error(before)
    best = SolverFit(levels, error_before, error_before, 0, bound, bound)
    for tail in TAILS:
        for numbers in _steps(train, owns, tail, iterations):
            solver = numbers.solver(owns[0], train.lowest)
            sampler = Sampler(solver.levels, solver=solver)
            found = judge.residuals_of(sampler)
            largest, error = float(found.norm(dim=1).max()), judge.error(found)
            if largest <= bound and error < best.error:
                best = replace(best, sampler=sampler, error=error, largest=largest)
        if best.learned:
            break
    return best


def _steps(train: Starts, owns: Sequence[LearnedSolver], tail: float, iterations: int) -> Iterator[Numbers]:
    """A few steps from each start, and then the others from where the objective is lowest."""
    ends = []
    for own in owns:
        path = [Numbers.of(own)]
        for numbers in improvements(train, path[0], tail, min(iterations, FIRST_STEPS)):
            path.append(numbers)
            yield numbers
        ends.append(path[-1])
    if iterations > FIRST_STEPS:
        lowest = min(ends, key=lambda numbers: objective(train.run(numbers).errors, tail))
        yield from improvements(train, lowest, tail, iterations - FIRST_STEPS)
