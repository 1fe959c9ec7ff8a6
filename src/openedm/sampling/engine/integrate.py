"""An adaptive integrator of batches in which every sample has its own step size.

A step of an embedded pair of order p (`engine.pairs`) is accepted if its error ratio e = ‖error/tolerance‖ is at most
1, and sets the size of the next one (`engine.step_sizes`). Times and step sizes are float64; the dtype of the state is
unchanged.

Only the samples that have not reached the end are evaluated, and the result of a sample does not depend on the others.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from openedm.ground import checks
from openedm.ground.devices import float64_on
from openedm.sampling.engine.pairs import DORMAND_PRINCE, Pair, Row
from openedm.sampling.engine.step_sizes import MAX_FACTOR, SAFETY_FACTOR, initial_step, next_factor

__all__ = ["Norm", "Scale", "Slope", "Solution", "check_times", "integrate", "root_mean_square"]

Slope = Callable[[Float[Tensor, "rows"], Float[Tensor, "rows *event"], Int64[Tensor, "rows"]], Tensor]
"""dy/dt, or N of y' = L y + N, at (time, y, rows): `rows` are the numbers of the samples in the batch."""

Norm = Callable[[Float[Tensor, "rows *event"]], Float[Tensor, "rows"]]
Scale = Callable[[Float[Tensor, "rows"]], Float[Tensor, "rows"]]

MIN_RELATIVE_STEP = 16 * 2.0**-52


def root_mean_square(values: Float[Tensor, "rows *event"]) -> Float[Tensor, "rows"]:
    """The root of the mean square of a sample."""
    return values.flatten(1).square().mean(1).sqrt()


class StepSizeError(FloatingPointError):
    """The step size of a sample fell below rounding.

    Args:
        row: the first such sample.
        message: the message.
    """

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row = row


@dataclass(frozen=True)
class Solution:
    """The states that an adaptive integrator reached, and its statistics.

    Attributes:
        x: the state of each sample.
        time: the time at the end of its last step; the noise level if the equation is in σ.
        finished: whether the sample reached the end.
        failed: whether the step size fell below rounding, or the slope at the start was not finite. A sample that is
            neither finished nor failed needs more than the limit of evaluations.
        nfe: number of evaluations of the slope, for each sample.
        accepted: number of accepted steps.
        rejected: number of rejected steps.
        dense: the states at the times of `at`, NaN if a sample did not reach a time; None without `at`.
    """

    x: Float[Tensor, "batch *event"]
    time: Float[Tensor, "batch"]
    finished: Bool[Tensor, "batch"]
    failed: Bool[Tensor, "batch"]
    nfe: Int64[Tensor, "batch"]
    accepted: Int64[Tensor, "batch"]
    rejected: Int64[Tensor, "batch"]
    dense: Float[Tensor, "times batch *event"] | None = None

    def check(self, time: str = "sigma =", slope: str = "denoiser") -> "Solution":
        """Return the solution, or raise an error if a sample failed.

        Args:
            time: the name of the time in the message.
            slope: the name of the slope in the message.

        Raises:
            StepSizeError: a sample failed; the message names the first one and its time.
        """
        if bool(self.failed.any()):
            first = int(self.failed.nonzero()[0])
            raise StepSizeError(
                first,
                f"the step size of {int(self.failed.sum())} of {len(self.failed)} samples fell below rounding, of "
                f"sample {first} at {time} {float(self.time[first]):.6g}: the {slope} is not finite there, or varies "
                "too fast; a larger tolerance may help",
            )
        return self


@dataclass(frozen=True)
class _Rows:
    """The samples that have not stopped. `slope` is the slope at the state, except for rows that are `stale`."""

    index: Int64[Tensor, "rows"]
    time: Float[Tensor, "rows"]
    step: Float[Tensor, "rows"]
    x: Float[Tensor, "rows *event"]
    slope: Float[Tensor, "rows *event"]
    stale: Bool[Tensor, "rows"]
    last_ratio: Float[Tensor, "rows"]
    last_rejected: Bool[Tensor, "rows"]
    nfe: Int64[Tensor, "rows"]
    accepted: Int64[Tensor, "rows"]
    rejected: Int64[Tensor, "rows"]

    def __getitem__(self, keep: Tensor) -> "_Rows":
        return _Rows(**{name: value[keep] for name, value in vars(self).items()})


@torch.no_grad()
def integrate(
    slope: Slope,
    y0: Float[Tensor, "batch *event"],
    start: float,
    end: float,
    *,
    method: Pair = DORMAND_PRINCE,
    tolerance: float | Tensor = 1e-6,
    norm: Norm = root_mean_square,
    scale: Scale | None = None,
    linear: float = 0.0,
    first_step: float | None = None,
    max_evaluations: int | None = None,
    at: Float[Tensor, "times"] | None = None,
) -> Solution:
    """Solve y' = L y + N(t, y) from `start` to `end`, forward or backward, with a step size for each sample.

    Args:
        slope: N, or dy/dt for L = 0; called as `slope(time, y, rows)`, with one time a row and the numbers of the rows
            in the batch. Only samples that have not stopped are passed.
        y0: the states at the start, floating point.
        start: the time of these states.
        end: the time to integrate to, above or below `start`.
        method: the embedded pair.
        tolerance: the tolerance of the error of a step, > 0; a tensor of the shape of a sample for one value an entry.
        norm: the norm of the error of a sample, divided by the tolerance.
        scale: the factor of the tolerance at a time, one value a row, > 0; None means 1.
        linear: L; must be 0 unless the pair is exponential.
        first_step: the size of the first step, > 0; None means that one more evaluation determines it (Hairer, Nørsett
            & Wanner, II.4).
        max_evaluations: the limit of evaluations of each sample, ≥ 1; a sample stops where the steps that are left
            are too short to reach the end. None means no limit.
        at: times between `start` and `end`, in that order, whose states are also returned, by dense output.

    Raises:
        TypeError: y0 is not floating point, or max_evaluations is not an integer.
        ValueError: an argument is out of its range, L ≠ 0 with a pair that is not exponential, or times are not in
            order.

    >>> solution = integrate(lambda t, y, rows: -y, torch.ones(1, 1, dtype=torch.float64), 0.0, 1.0)
    >>> solution.x, solution.nfe
    (tensor([[0.3679]], dtype=torch.float64), tensor([50]))
    """
    _check(y0, start, end, method, tolerance, linear, first_step, max_evaluations)
    times = float64_on(y0.device)
    if at is not None:
        at = at.to(y0.device, times)
        check_times(at, start, end)
    tolerances = torch.as_tensor(tolerance).to(y0)
    run = _Run(slope, start, end, method, tolerances, norm, scale, linear, max_evaluations, at)
    rows = run.first(y0, times, first_step)
    result = Solution(
        x=y0.clone(),
        time=rows.time.clone(),
        finished=torch.zeros(len(y0), dtype=torch.bool, device=y0.device),
        failed=torch.zeros(len(y0), dtype=torch.bool, device=y0.device),
        nfe=rows.nfe.clone(),
        accepted=rows.accepted.clone(),
        rejected=rows.rejected.clone(),
        dense=None if at is None else torch.full((len(at), *y0.shape), math.nan, dtype=y0.dtype, device=y0.device),
    )
    if result.dense is not None and at is not None:
        result.dense[at == start] = y0
    while len((rows := run.without_stopped(rows, result)).index):
        rows = run.step(run.with_slopes(rows), result.dense)
    return result


@dataclass(frozen=True)
class _Run:
    """The problem and the settings of the solver; see `integrate`."""

    slope: Slope
    start: float
    end: float
    method: Pair
    tolerance: Float[Tensor, "*event"]
    norm: Norm
    scale: Scale | None
    linear: float
    max_evaluations: int | None
    at: Float[Tensor, "times"] | None

    @property
    def direction(self) -> float:
        return math.copysign(1.0, self.end - self.start)

    def first(self, y: Float[Tensor, "batch *event"], times: torch.dtype, first_step: float | None) -> _Rows:
        """All samples at the start."""
        count = torch.zeros(len(y), dtype=torch.int64, device=y.device)
        index = torch.arange(len(y), device=y.device)
        time = torch.full((len(y),), self.start, dtype=times, device=y.device)
        slope = self.slope(time, y, index)
        evaluations = 1
        if first_step is None and self.max_evaluations == 1:
            step = torch.ones_like(time)  # never taken
        elif first_step is None:
            step = self.first_step(time, y, slope, index)
            evaluations += 1
        else:
            step = torch.full_like(time, first_step)
        # If the slope is not finite, the step is 0, so that the sample fails without comparisons with NaN.
        step = torch.where(slope.flatten(1).isfinite().all(1), step, 0.0).nan_to_num(nan=0.0)
        none = torch.zeros_like(index, dtype=torch.bool)
        one = torch.ones_like(time)
        return _Rows(index, time, step, y, slope, none, one, none, count + evaluations, count, count)

    def without_stopped(self, rows: _Rows, result: Solution) -> _Rows:
        """Write the samples that stop here to the result, and return the others."""
        finished = rows.time == self.end
        smallest = MIN_RELATIVE_STEP * torch.maximum(rows.time.abs(), torch.full_like(rows.time, abs(self.end)))
        failed = ~finished & ~(rows.step > smallest)
        stopped = finished | failed
        if self.max_evaluations is not None:
            steps = (self.max_evaluations - (rows.nfe + rows.stale)) // (len(self.method.c) - 1)
            growing = (rows.accepted == 0) | (rows.last_ratio < 0.01)  # the first steps may be far too short
            growth = torch.where(growing, MAX_FACTOR, 2.0)
            reach = (growth ** steps.clamp(0, 60) - 1) / (growth - 1) * rows.step
            stopped |= reach < SAFETY_FACTOR * (self.end - rows.time).abs()
        if not bool(stopped.any()):
            return rows
        # Computed once: every index by a mask synchronises a device.
        stopped_index, active_index = stopped.nonzero()[:, 0], (~stopped).nonzero()[:, 0]
        stopped_rows = rows[stopped_index]
        for name in ("x", "time", "nfe", "accepted", "rejected"):
            getattr(result, name)[stopped_rows.index] = getattr(stopped_rows, name)
        result.finished[stopped_rows.index] = finished[stopped_index]
        result.failed[stopped_rows.index] = failed[stopped_index]
        return rows[active_index]

    def first_step(
        self,
        time: Float[Tensor, "rows"],
        y: Float[Tensor, "rows *event"],
        slope: Float[Tensor, "rows *event"],
        index: Int64[Tensor, "rows"],
    ) -> Float[Tensor, "rows"]:
        """The size of the first step; one more evaluation."""
        full = slope + self.linear * y

        def change_after(step: Float[Tensor, "rows"]) -> Float[Tensor, "rows"]:
            euler_state = y + _broadcast(self.direction * step, y) * full
            after = self.slope(time + self.direction * step, euler_state, index) + self.linear * euler_state
            return self.error_norm(after - full, time)

        size, speed = self.error_norm(y, time), self.error_norm(full, time)
        return initial_step(size, speed, change_after, self.method.order, abs(self.end - self.start))

    def error_norm(self, values: Float[Tensor, "rows *event"], time: Float[Tensor, "rows"]) -> Float[Tensor, "rows"]:
        """The norm of `values` in units of the tolerance."""
        ratio = self.norm(values / self.tolerance).to(time)
        return ratio if self.scale is None else ratio / self.scale(time)

    def with_slopes(self, rows: _Rows) -> _Rows:
        """The rows with slopes computed where the last step did not compute them."""
        if self.method.first_same_as_last or not bool(rows.stale.any()):
            return rows
        stale = rows.stale
        slope = rows.slope.clone()
        slope[stale] = self.slope(rows.time[stale], rows.x[stale], rows.index[stale])
        return replace(rows, slope=slope, stale=torch.zeros_like(stale), nfe=rows.nfe + stale.to(torch.int64))

    def step(self, rows: _Rows, dense: Float[Tensor, "times batch *event"] | None) -> _Rows:
        """One step of every row, accepted or rejected."""
        remaining = (self.end - rows.time).abs()
        last = rows.step >= SAFETY_FACTOR * remaining  # so that the last step is never very short
        length = torch.where(last, remaining, rows.step) * self.direction
        time = torch.where(last, self.end, rows.time + length)
        z = length * self.linear if self.linear else None
        weights = self.method.weights(z)
        slopes, y = [rows.slope], rows.x
        for i, c in enumerate(self.method.c[1:], start=1):
            decay = None if weights.decay is None else weights.decay[i]
            y = _weighted_sum(rows.x, length, decay, weights.a[i], slopes)
            slopes.append(self.slope(time if abs(c - 1) < 1e-12 else rows.time + c * length, y, rows.index))
        if not self.method.first_same_as_last:
            y = _weighted_sum(rows.x, length, None if weights.decay is None else weights.decay[-1], weights.b, slopes)
        error = _weighted_sum(None, length, None, weights.error, slopes)
        ratio = self.error_norm(error, time)
        accepted = (ratio <= 1) & y.flatten(1).isfinite().all(1)
        if dense is not None:
            self.write_dense(dense, rows, time, length, z, slopes, accepted)
        accepted_mask = accepted.reshape(-1, *[1] * (y.ndim - 1))
        num_accepted = accepted.to(torch.int64)
        factor = next_factor(ratio, accepted, rows.last_ratio, rows.last_rejected, self.method.order)
        return replace(
            rows,
            time=torch.where(accepted, time, rows.time),
            step=length.abs() * factor,
            x=torch.where(accepted_mask, y, rows.x),
            slope=torch.where(accepted_mask, slopes[-1], rows.slope) if self.method.first_same_as_last else rows.slope,
            stale=accepted & (not self.method.first_same_as_last),
            last_ratio=torch.where(accepted, ratio.clamp(min=1e-4), rows.last_ratio),
            last_rejected=~accepted,
            nfe=rows.nfe + len(self.method.c) - 1,
            accepted=rows.accepted + num_accepted,
            rejected=rows.rejected + 1 - num_accepted,
        )

    def write_dense(
        self,
        dense: Float[Tensor, "times batch *event"],
        rows: _Rows,
        time: Float[Tensor, "rows"],
        length: Float[Tensor, "rows"],
        z: Float[Tensor, "rows"] | None,
        slopes: list[Tensor],
        accepted: Bool[Tensor, "rows"],
    ) -> None:
        """Write the states at the times of `at` that the accepted steps passed."""
        assert self.at is not None
        euler_state = (self.at - rows.time[:, None]) * self.direction
        passed = (euler_state > 0) & ((self.at - time[:, None]) * self.direction <= 0) & accepted[:, None]
        row, number = passed.nonzero(as_tuple=True)
        theta = (self.at[number] - rows.time[row]) / length[row]
        decay, weights = self.method.dense(theta, None if z is None else z[row])
        dense[number, rows.index[row]] = _weighted_sum(
            rows.x[row], length[row], decay, weights, [k[row] for k in slopes]
        )


def _broadcast(values: Float[Tensor, "rows"], y: Float[Tensor, "rows *event"]) -> Tensor:
    """One value a row, in a shape that broadcasts against y."""
    return values.to(y.dtype).reshape(-1, *[1] * (y.ndim - 1))


def _weighted_sum(
    y: Float[Tensor, "rows *event"] | None,
    h: Float[Tensor, "rows"],
    decay: float | Tensor | None,
    weights: Row,
    slopes: list[Tensor],
) -> Float[Tensor, "rows *event"]:
    """decay · y + h Σ_i weights_i k_i; without y only the sum."""
    total: Tensor | None = None
    for weight, slope in zip(weights, slopes, strict=False):
        if isinstance(weight, Tensor):
            part = slope * _broadcast(weight, slope)
            total = part if total is None else total + part
        elif weight != 0:
            total = slope * weight if total is None else torch.add(total, slope, alpha=weight)
    assert total is not None
    moved = total * _broadcast(h, total)
    if y is None:
        return moved
    return moved + (y * _broadcast(decay, y) if isinstance(decay, Tensor) else y)


def _check(
    y0: Tensor,
    start: float,
    end: float,
    method: Pair,
    tolerance: float | Tensor,
    linear: float,
    first_step: float | None,
    max_evaluations: int | None,
) -> None:
    if not y0.is_floating_point():
        raise TypeError(f"y0 must be floating point, got {y0.dtype}")
    checks.finite("start", start)
    checks.finite("end", end)
    if start == end:
        raise ValueError(f"end must differ from start, got {start} for both")
    checks.positive("tolerance", float(torch.as_tensor(tolerance).min()))
    checks.finite("linear", linear)
    if linear != 0 and not method.exponential:
        raise ValueError(f"linear must be 0 for a pair that is not exponential, got {linear}")
    if first_step is not None:
        checks.positive("first_step", first_step)
    if max_evaluations is not None:
        checks.integer("max_evaluations", max_evaluations, 1)


def check_times(at: Float[Tensor, "times"], start: float, end: float, what: str = "times") -> None:
    """Raise ValueError unless `at` holds values from `start` to `end`, in that order."""
    along = (at - start) * math.copysign(1.0, end - start)
    inside = (along >= 0) & (along <= abs(end - start))
    if len(at) == 0 or not bool(inside.all() & (along.diff() >= 0).all()):
        raise ValueError(f"at must hold {what} from {start} to {end}, in that order, got {at.tolist()}")
