"""The numbers of a learned solver, the errors that they have, and the steps of Levenberg and Marquardt towards fewer.

Derivatives are forward differences: the end depends on b_ij through p_i alone, so that a column of the Jacobian is one
run from evaluation i on, started with p_i moved along D_j, about N³/6 evaluations of the pilots for all, and none for
c. Steps minimise squares that are reweighted to have the gradient of the objective of `learning`, and

    ½ RIDGE Σ (b − b₀)² + (c − c₀)²,

because large weights would amplify what a network is off by.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from openedm.denoiser import Condition, Denoiser
from openedm.ground.devices import device_of, float64_on
from openedm.ground.progress import Progress
from openedm.sampling.fitted import Pilots
from openedm.sampling.methods.learned import LearnedSolver, strictly_decreasing
from openedm.sampling.noise import SeededNoise
from openedm.sampling.sampler import Sampler
from openedm.standardised import Standardised, standardised

__all__ = ["Numbers", "Starts", "improvements", "objective"]

POWERS = (0.5, 4.0)
MIN_RELATIVE_NORM = 0.3
DIFFERENCE = {torch.float64: 1e-4, torch.float32: 1e-2}
"""How far differences move a state, in units of σ (of σ_data if that is smaller)."""
RIDGE = 1e-5
MAX_LEVEL_STEP = 0.5
MIN_GAIN = 2e-4
EXACT = 1e-12
"""Errors of rounding, below which there is nothing to fit."""
DIGITS = 10


class Numbers(NamedTuple):
    """θ on the host: ln σ_i, a_i σ_max/σ_i, b (N, N) below the diagonal, and c."""

    log_sigmas: Float64[Tensor, "n"]
    excess: Float64[Tensor, "n"]
    of_denoised: Float64[Tensor, "n n"]
    result: Float64[Tensor, "n"]

    @classmethod
    def of(cls, solver: LearnedSolver) -> "Numbers":
        """Those of a solver."""
        sigmas, of_noise = (torch.tensor(v, dtype=torch.float64) for v in (solver.sigmas, solver.of_noise))
        *rows, result = solver.of_denoised
        square = torch.zeros(len(rows), len(rows), dtype=torch.float64)
        for i, row in enumerate(rows):
            square[i, :i] = torch.tensor(row, dtype=torch.float64)
        excess = of_noise * solver.sigma_max / sigmas
        return cls(sigmas.log(), excess, square, torch.tensor(result, dtype=torch.float64))

    def solver(self, like: LearnedSolver, lowest: float) -> LearnedSolver:
        """The solver, its numbers rounded, its levels not below the lowest that is allowed."""
        sigmas = self.log_sigmas.exp()
        of_noise = sigmas * self.excess / like.sigma_max
        rows = [_rounded(row[:i]) for i, row in enumerate(self.of_denoised)]
        return replace(
            like,
            sigmas=tuple(min(max(sigma, lowest), like.sigma_max) for sigma in _rounded(sigmas)),
            of_noise=_rounded(of_noise),
            of_denoised=(*rows, _rounded(self.result)),
        )


def _rounded(values: Float64[Tensor, "n"]) -> tuple[float, ...]:
    return tuple(float(f"{value:.{DIGITS}g}") for value in values.tolist())


class _Place(NamedTuple):
    """The place of a number in `Numbers`."""

    field: int
    row: int
    column: int | None = None

    @property
    def entry(self) -> int | tuple[int, int]:
        """Its index in the tensor."""
        return self.row if self.column is None else (self.row, self.column)

    def of(self, numbers: Numbers) -> float:
        """The number."""
        return float(numbers[self.field][self.entry])

    def add(self, numbers: Numbers, by: float) -> None:
        """Change it, in place; levels by less than `MAX_LEVEL_STEP`."""
        numbers[self.field][self.entry] += max(-MAX_LEVEL_STEP, min(MAX_LEVEL_STEP, by)) if self.field == 0 else by


class _Run(NamedTuple):
    """The evaluations of a solver for all starts, and its result."""

    points: list[Tensor]
    denoised: list[Tensor]
    errors: Float[Tensor, "starts features"]


class Starts(Pilots):
    """Starts, their converged solutions, and the errors of solvers given by their numbers."""

    def __init__(
        self,
        denoiser: Denoiser,
        sampler: Sampler,
        seeds: Sequence[int],
        condition: Condition,
        event_shape: tuple[int, ...],
        progress: Progress,
    ) -> None:
        super().__init__(denoiser, sampler, seeds, condition, event_shape, progress)
        device = device_of(denoiser, None)
        dtype = float64_on(device)
        grid = sampler.grid(denoiser)
        self.sigma_max = grid.sigmas[0]
        condition = None if condition is None else condition.to(device)
        self.standard: Standardised = standardised(
            denoiser, condition, sigma_max=self.sigma_max, event_shape=tuple(event_shape)
        )
        self.noise = SeededNoise(seeds).draw(tuple(event_shape)).to(device, dtype)
        self.target = self.standard.standard(self.solution)
        self.lowest = grid.sigmas[-1]
        self.range = math.log(self.lowest), math.log(self.sigma_max)
        between = torch.linspace(*self.range, 7, dtype=torch.float64).exp()
        self.rounds = not torch.equal(denoiser.round_sigma(between), between)
        self.difference = DIFFERENCE.get(next((p.dtype for p in denoiser.parameters()), dtype), 1e-2)

    def evaluate(self, x: Float[Tensor, "starts *event"], sigma: float) -> Float[Tensor, "starts *event"]:
        """D in standard units."""
        self.evaluations += 1
        self.progress("learning a solver", self.evaluations, None)
        return self.standard(x, sigma)

    def run(self, numbers: Numbers) -> _Run:
        """All evaluations, and the errors in standard units, over √features."""
        sigmas, amounts = numbers.log_sigmas.exp().tolist(), (numbers.log_sigmas.exp() * numbers.excess).tolist()
        points: list[Tensor] = []
        denoised: list[Tensor] = []
        for sigma, amount, row in zip(sigmas, amounts, numbers.of_denoised.tolist(), strict=True):
            points.append(_sum(self.noise * amount, row[: len(denoised)], denoised))
            denoised.append(self.evaluate(points[-1], sigma))
        result = _sum(torch.zeros_like(self.target), numbers.result.tolist(), denoised)
        errors = (result - self.target).flatten(1)
        return _Run(points, denoised, errors / math.sqrt(errors.shape[1]))

    def moved(self, numbers: Numbers, run: _Run, i: int, along: Tensor, level: float) -> Tensor:
        """The derivative of the errors with p_i moved along a direction and ln σ_i by `level`, by differences."""
        sigmas = numbers.log_sigmas.exp().tolist()
        h = self.difference * min(sigmas[i], self.standard.sigma_data) / float(along.square().mean().sqrt() + 1e-300)
        if level:
            h = min(h, self.difference)
            h = -h if sigmas[i] * math.exp(h) > self.sigma_max else h
        changes = [self.evaluate(run.points[i] + h * along, sigmas[i] * math.exp(h * level)) - run.denoised[i]]
        for k in range(i + 1, len(sigmas)):
            point = _sum(run.points[k].clone(), numbers.of_denoised[k, i:k].tolist(), changes)
            changes.append(self.evaluate(point, sigmas[k]) - run.denoised[k])
        total = _sum(torch.zeros_like(self.target), numbers.result[i:].tolist(), changes).flatten(1)
        derivative: Tensor = total / (h * math.sqrt(total.shape[1]))
        return derivative

    def columns(self, numbers: Numbers, run: _Run) -> Iterator[tuple[_Place, Tensor]]:
        """For each number of θ: its place, and the derivative of the errors by it."""
        sigmas, amounts = numbers.log_sigmas.exp().tolist(), (numbers.log_sigmas.exp() * numbers.excess).tolist()
        count = len(sigmas)
        for i in range(count):
            if not self.rounds:
                yield _Place(0, i), self.moved(numbers, run, i, self.noise * amounts[i], 1.0)
            yield _Place(1, i), self.moved(numbers, run, i, self.noise * sigmas[i], 0.0)
            for j in range(i):
                yield _Place(2, i, j), self.moved(numbers, run, i, run.denoised[j], 0.0)
        for j in range(count):
            own = run.denoised[j].flatten(1)
            yield _Place(3, j), own / math.sqrt(own.shape[1])


def _sum(start: Tensor, weights: Sequence[float], terms: Sequence[Tensor]) -> Tensor:
    """start + Σ w_j t_j; the start is overwritten."""
    for weight, term in zip(weights, terms, strict=True):
        if weight != 0:
            start.add_(term, alpha=weight)
    return start


def objective(errors: Float[Tensor, "starts features"], tail: float) -> float:
    """(1 − τ) ln E_½ + τ ln E_4 (`learning`); infinite if an error is not finite."""
    norms = errors.norm(dim=1).to(torch.float64)
    if not bool(norms.isfinite().all()):
        return math.inf
    shares = zip(POWERS, (1 - tail, tail), strict=True)
    return sum(share / k * math.log(float(norms.pow(k).mean()) + 1e-300) for k, share in shares)


def _squares(errors: Float[Tensor, "starts features"], tail: float) -> Float64[Tensor, "starts"]:
    """The weights of squares whose gradient is that of the objective: Σ_k share_k ‖r‖^{k−2}/Σ ‖r‖^k."""
    norms = errors.norm(dim=1).to(torch.float64) + 1e-300
    least = norms.clamp(min=MIN_RELATIVE_NORM * float(norms.median()))
    typical, large = POWERS
    of_typical = least.pow(typical - 2) / least.pow(typical).sum()
    weights: Tensor = (1 - tail) * of_typical + tail * norms.pow(large - 2) / norms.pow(large).sum()
    return weights


def improvements(starts: Starts, numbers: Numbers, tail: float, iterations: int) -> Iterator[Numbers]:
    """The accepted steps of Levenberg and Marquardt."""
    run, damping, origin = starts.run(numbers), 1e-2, numbers
    value = objective(run.errors, tail)
    for _ in range(iterations):
        places, columns = zip(*starts.columns(numbers, run), strict=True)
        jacobian = torch.stack(columns).to("cpu", torch.float64)
        if not bool(jacobian.isfinite().all()) or float(run.errors.abs().max()) < EXACT:
            return
        errors = run.errors.to("cpu", torch.float64)
        weighted = _squares(errors, tail)[:, None] * jacobian
        curvature = torch.einsum("pmn,qmn->pq", weighted, jacobian)
        ridge = RIDGE * torch.tensor([float(place.field >= 2) for place in places], dtype=torch.float64)
        moved = torch.tensor([place.of(numbers) - place.of(origin) for place in places], dtype=torch.float64)
        gradient = torch.einsum("pmn,mn->p", weighted, errors) + ridge * moved
        curvature += torch.diag(ridge)
        diagonal = curvature.diag().clamp(min=1e-12 * float(curvature.diag().max()) + 1e-300)
        gain = 0.0
        while not gain and damping < 1e6:
            step = torch.linalg.lstsq(curvature + torch.diag(damping * diagonal), -gradient[:, None], driver="gelsd")
            candidate = _taken(numbers, places, step.solution[:, 0].tolist(), starts.range)
            if candidate is not None:
                new = starts.run(candidate)
                new_value = objective(new.errors, tail) + _penalty(candidate, origin)
                if new_value < value:
                    gain, numbers, run, value = value - new_value, candidate, new, new_value
            damping = max(damping / 4, 1e-7) if gain else damping * 4
        if not gain:
            return
        yield numbers
        if gain < MIN_GAIN:
            return


def _penalty(numbers: Numbers, origin: Numbers) -> float:
    """½ RIDGE Σ (b − b₀)² + (c − c₀)²."""
    changes = [a - b for a, b in zip(numbers[2:], origin[2:], strict=True)]
    return RIDGE / 2 * sum(float(change.square().sum()) for change in changes)


def _taken(
    numbers: Numbers, places: Sequence[_Place], step: Sequence[float], limits: tuple[float, float]
) -> Numbers | None:
    """The numbers after a step; None if levels would not decrease."""
    new = Numbers(*(values.clone() for values in numbers))
    for place, by in zip(places, step, strict=True):
        place.add(new, by)
    new.log_sigmas.clamp_(*limits)
    possible = strictly_decreasing(new.log_sigmas.tolist()) and bool((new.excess != 0).all()) and new.excess[0] > 0
    return new if possible else None
