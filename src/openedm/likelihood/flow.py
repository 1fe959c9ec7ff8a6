"""The probability-flow ODE together with its divergence: y = (w, ℓ_1 … ℓ_k), one ℓ for each estimate of the trace.

    dw/dτ = c (c² x − D)/σ · dσ/dτ,    dℓ/dτ = (n c² − tr ∂D/∂x)/σ · dσ/dτ,    w = c(σ) x,  c = σ_d/√(σ² + σ_d²)

See `openedm.sampling.methods.adaptive` for w and τ. A sample's step is accepted if the error of w, a root mean square
over its coordinates in units of σ_d, and the error of every ℓ, in nats, are below a fraction of the tolerance: an error
δ of w in one coordinate moves ln p by about δ/σ_d times a unit Gaussian.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from openedm.denoiser import Condition, Denoiser, per_sample
from openedm.likelihood.divergence import Trace
from openedm.sampling import AdaptiveSolver, RungeKutta, Solution, Solver
from openedm.sampling.engine.formulation import width_ratio
from openedm.sampling.engine.integrate import integrate, root_mean_square
from openedm.schedules import Angle, Schedule

__all__ = ["ProbabilityFlow"]

TOLERANCE_FRACTION = 0.03
"""The fraction of the tolerance allowed to a step: most results then have an error of a tenth of the tolerance."""


@dataclass(frozen=True)
class ProbabilityFlow:
    """The flow of some samples.

    Attributes:
        denoiser: D.
        condition: one row a sample, or a single one for a denoiser with a `condition_shape`.
        event_shape: the shape of a sample.
        trace: the method for tr ∂D/∂x; None for the flow alone.
        probes: the probes of the trace.
    """

    denoiser: Denoiser
    condition: Condition
    event_shape: tuple[int, ...]
    trace: Trace | None = None
    probes: Float[Tensor, "estimates batch *event"] | None = None

    @property
    def width(self) -> float:
        """σ_d."""
        return self.denoiser.sigma_data

    def shrink(self, sigma: float) -> float:
        """c(σ)."""
        return float(width_ratio(torch.tensor(sigma, dtype=torch.float64), self.width))

    def evaluate(
        self, x: Float[Tensor, "rows *event"], sigma: Tensor, rows: Int64[Tensor, "rows"]
    ) -> tuple[Float[Tensor, "rows *event"], Float[Tensor, "rows estimates"]]:
        """D and the estimates of its trace, for some rows of the batch."""
        condition = self.denoiser.condition_of(self.condition, rows)
        if self.trace is None:
            return self.denoiser(x, sigma, condition), x.new_zeros(len(x), 0)
        probes = None if self.probes is None else self.probes[:, rows]
        return self.trace(lambda point: self.denoiser(point, sigma, condition), x, probes)

    def follow(
        self, x: Float[Tensor, "batch *event"], start: float, end: float, solver: Solver, num_steps: int | None
    ) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, "batch estimates"], Solution]:
        """The states at noise level `end`, the ℓ integrated from `start`, and the statistics.

        Raises:
            FloatingPointError: the step size of a sample fell below rounding.
        """
        estimates = 0 if self.trace is None else self.trace.estimates
        y = torch.cat([x.flatten(1) * self.shrink(start), x.new_zeros(len(x), estimates)], 1)
        if isinstance(solver, AdaptiveSolver):
            solution = self._adaptive(y, start, end, solver).check("time", "slope")
        else:
            assert isinstance(solver, RungeKutta)
            assert num_steps is not None
            solution = self._fixed(y, start, end, solver, num_steps)
        size = x[0].numel()
        return solution.x[:, :size].reshape(x.shape) / self.shrink(end), solution.x[:, size:], solution

    def _adaptive(
        self, y: Float[Tensor, "batch augmented"], start: float, end: float, solver: AdaptiveSolver
    ) -> Solution:
        form = solver.formulation(self.width)
        first, last = form.variable.time(torch.tensor([start, end], dtype=torch.float64)).tolist()
        size = math.prod(self.event_shape)
        tolerances = torch.full((y.shape[1],), TOLERANCE_FRACTION * solver.tolerance, dtype=y.dtype, device=y.device)
        tolerances[:size] *= self.width

        def norm(ratio: Tensor) -> Tensor:
            state_slope = root_mean_square(ratio[:, :size])
            return torch.maximum(state_slope, ratio[:, size:].abs().amax(1)) if ratio.shape[1] > size else state_slope

        return integrate(
            self._slope(form.variable, start, end),
            y,
            first,
            last,
            method=form.pair,
            tolerance=tolerances,
            norm=norm,
            first_step=solver.first_step,
            max_evaluations=solver.max_nfe,
        )

    def _fixed(
        self, y: Float[Tensor, "batch augmented"], start: float, end: float, solver: RungeKutta, num_steps: int
    ) -> Solution:
        """Equal steps in the default variable of adaptive solvers."""
        variable, tableau = Angle(self.width, rho=2.0), solver.tableau
        first, last = variable.time(torch.tensor([start, end], dtype=torch.float64)).tolist()
        slope = self._slope(variable, start, end)
        rows, h = torch.arange(len(y), device=y.device), (last - first) / num_steps
        for i in range(num_steps):
            slopes: list[Tensor] = []
            for row, c in zip(tableau.a, tableau.c, strict=True):
                # The last time is exact.
                time = last if i + 1 == num_steps and c == 1 else first + (i + c) * h
                point = y + h * sum(a * k for a, k in zip(row, slopes, strict=True)) if slopes else y
                slopes.append(slope(torch.full_like(y[:, 0], time), point, rows))
            y = y + h * sum(b * k for b, k in zip(tableau.b, slopes, strict=True))
        count = torch.full_like(rows, num_steps)
        done = torch.ones_like(rows, dtype=torch.bool)
        return Solution(
            x=y,
            time=torch.full_like(y[:, 0], last),
            finished=done,
            failed=~done,
            nfe=count * len(tableau.b),
            accepted=count,
            rejected=torch.zeros_like(count),
        )

    def _slope(self, variable: Schedule, start: float, end: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        low, high = sorted((start, end))
        size = math.prod(self.event_shape)

        def slope(time: Tensor, y: Tensor, rows: Tensor) -> Tensor:
            sigma = variable.sigma(time).clamp(low, high)  # rounding must not leave the denoiser's range
            shrink = per_sample(width_ratio(sigma, self.width), y)
            x = (y[:, :size] / shrink).reshape(len(y), *self.event_shape)
            denoised, traces = self.evaluate(x, sigma, rows)
            speed = per_sample(variable.sigma_derivative(time) / sigma, y)
            state_slope = shrink * (shrink.square() * x.flatten(1) - denoised.flatten(1)) * speed
            return torch.cat([state_slope, (size * shrink.square() - traces) * speed], 1)

        return slope
