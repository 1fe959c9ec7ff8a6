"""An adaptive integrator of batches in which every sample has its own step size.

A step of an embedded pair of order p (`engine.pairs`) is accepted where its error ratio e = ‖error/tolerance‖ is at
most 1. The next step of a sample is its last one times

    0.9 e^{−0.6/p} e_before^{0.2/p}    after an accepted step, within [1/5, 8]; not above 1 after a rejection,
    0.9 e^{−1/p}                       after a rejected one, within [1/5, 1],

Söderlind's PI controller 4.2 (Söderlind 2003, Digital filters in adaptive time-stepping, Table II), e_before being the
ratio of the accepted step before. Times and step sizes are float64, the state keeps its own dtype.

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

__all__ = ["Norm", "Scale", "Slope", "Solution", "check_times", "integrate", "root_mean_square"]

Slope = Callable[[Float[Tensor, "rows"], Float[Tensor, "rows *event"], Int64[Tensor, "rows"]], Tensor]
"""dy/dt, or N of y' = L y + N, at (time, y, rows): `rows` are the numbers of the samples in the batch."""

Norm = Callable[[Float[Tensor, "rows *event"]], Float[Tensor, "rows"]]
Scale = Callable[[Float[Tensor, "rows"]], Float[Tensor, "rows"]]

SAFETY, SHRINK, GROW = 0.9, 0.2, 8.0
PROPORTIONAL, MEMORY = 0.6, 0.2
SMALLEST_STEP = 16 * 2.0**-52


def root_mean_square(values: Float[Tensor, "rows *event"]) -> Float[Tensor, "rows"]:
    """√ of the mean square over a sample."""
    return values.flatten(1).square().mean(1).sqrt()


@dataclass(frozen=True)
class Solution:
    """The states that an adaptive integrator reached, and what it took.

    Attributes:
        x: the state of each sample.
        time: where its last step ended, the end for finished samples; the noise level where the equation is in σ.
        finished: whether the end was reached.
        failed: whether the step size shrank to nothing, or the slope at the start was not finite. A sample that is
            neither finished nor failed used up its evaluations.
        nfe: evaluations of the slope, for each sample.
        accepted: steps taken.
        rejected: steps tried and rejected.
        dense: the states at the times of `at`, NaN where a sample did not get that far; None if none were.
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
        """The solution itself, unless a sample failed.

        Args:
            time: what the error calls the time.
            slope: what it calls the function that is not finite.

        Raises:
            FloatingPointError: a sample failed; names the first, and where.
        """
        if bool(self.failed.any()):
            first = int(self.failed.nonzero()[0])
            raise FloatingPointError(
                f"the step size of {int(self.failed.sum())} of {len(self.failed)} samples shrank to nothing, of "
                f"sample {first} at {time} {float(self.time[first]):.6g}: the {slope} there is not finite, or changes "
                "faster than numbers can tell; a larger tolerance may help"
            )
        return self


@dataclass(frozen=True)
class _Rows:
    """The samples that have not stopped. `slope` is that of the state where it is not `stale`."""

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
        slope: N, or dy/dt where L = 0; called as `slope(time, y, rows)`, with one time a row and the numbers of the
            rows in the batch. Only samples that have not stopped are passed.
        y0: the states at the start, floating point.
        start: where they are.
        end: where to integrate to; may lie below `start`.
        method: the embedded pair.
        tolerance: of the error of a step, > 0; a tensor of the shape of a sample weighs its parts.
        norm: of the error of a sample, divided by the tolerance.
        scale: what the tolerance is multiplied by at a time, one value a row, > 0; None means 1.
        linear: L; other than 0 only for exponential pairs.
        first_step: its size, > 0; None means chosen by one more evaluation (Hairer, Nørsett & Wanner, II.4).
        max_evaluations: of each sample, ≥ 1; one that needs more stops where it is. None means no limit.
        at: times between `start` and `end`, in that order, whose states are returned too, by dense output.

    Raises:
        TypeError: y0 is not floating point, or max_evaluations is not an integer.
        ValueError: an argument is out of its range, L ≠ 0 with a pair that is not exponential, or times not in order.

    >>> solution = integrate(lambda t, y, rows: -y, torch.ones(1, 1, dtype=torch.float64), 0.0, 1.0)
    >>> solution.x, solution.nfe
    (tensor([[0.3679]], dtype=torch.float64), tensor([50]))
    """
    _check(y0, start, end, method, tolerance, linear, first_step, max_evaluations)
    times = float64_on(y0.device)
    if at is not None:
        at = at.to(y0.device, times)
        check_times(at, start, end)
    allowed = torch.as_tensor(tolerance).to(y0)
    run = _Run(slope, start, end, method, allowed, norm, scale, linear, max_evaluations, at)
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
        rows = run.step(run.refreshed(rows), result.dense)
    return result


@dataclass(frozen=True)
class _Run:
    """The problem and how it is solved; see `integrate`."""

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
        # A slope that is not finite has no step: the sample fails here, and nothing is compared with NaN.
        step = torch.where(slope.flatten(1).isfinite().all(1), step, 0.0).nan_to_num(nan=0.0)
        no = torch.zeros_like(index, dtype=torch.bool)
        one = torch.ones_like(time)
        return _Rows(index, time, step, y, slope, no, one, no, count + evaluations, count, count)

    def without_stopped(self, rows: _Rows, result: Solution) -> _Rows:
        """Write the samples that stop here into the result, and keep the others."""
        finished = rows.time == self.end
        smallest = SMALLEST_STEP * torch.maximum(rows.time.abs(), torch.full_like(rows.time, abs(self.end)))
        failed = ~finished & ~(rows.step > smallest)
        stopped = finished | failed
        if self.max_evaluations is not None:
            stopped |= rows.nfe + rows.stale + len(self.method.c) - 1 > self.max_evaluations
        if not bool(stopped.any()):
            return rows
        # Found once: a mask as an index waits for the device each time.
        leaving, staying = stopped.nonzero()[:, 0], (~stopped).nonzero()[:, 0]
        gone = rows[leaving]
        for name in ("x", "time", "nfe", "accepted", "rejected"):
            getattr(result, name)[gone.index] = getattr(gone, name)
        result.finished[gone.index] = finished[leaving]
        result.failed[gone.index] = failed[leaving]
        return rows[staying]

    def first_step(
        self,
        time: Float[Tensor, "rows"],
        y: Float[Tensor, "rows *event"],
        slope: Float[Tensor, "rows *event"],
        index: Int64[Tensor, "rows"],
    ) -> Float[Tensor, "rows"]:
        """The step after which an Euler step's error is expected to be about 0.01 tolerances."""
        order, span = self.method.order, abs(self.end - self.start)
        full = slope + self.linear * y
        size, speed = self.measured(y, time), self.measured(full, time)
        trial = torch.where((size < 1e-5) | (speed < 1e-5), 1e-6 * span, 0.01 * size / speed).clamp(max=0.1 * span)
        trial = trial.to(time)
        ahead = y + _wide(self.direction * trial, y) * full
        change = self.slope(time + self.direction * trial, ahead, index) + self.linear * ahead - full
        curvature = self.measured(change, time) / trial
        steepest = torch.maximum(speed, curvature)
        step = torch.where(steepest <= 1e-15, (1e-3 * trial).clamp(min=1e-6), (0.01 / steepest) ** (1 / order))
        return torch.minimum(100 * trial, step.to(time)).clamp(max=span)

    def measured(self, values: Float[Tensor, "rows *event"], time: Float[Tensor, "rows"]) -> Float[Tensor, "rows"]:
        """The norm of `values` in units of the tolerance."""
        ratio = self.norm(values / self.tolerance).to(time)
        return ratio if self.scale is None else ratio / self.scale(time)

    def refreshed(self, rows: _Rows) -> _Rows:
        """With the slopes that the last step did not leave behind."""
        if self.method.first_same_as_last or not bool(rows.stale.any()):
            return rows
        stale = rows.stale
        slope = rows.slope.clone()
        slope[stale] = self.slope(rows.time[stale], rows.x[stale], rows.index[stale])
        return replace(rows, slope=slope, stale=torch.zeros_like(stale), nfe=rows.nfe + stale.to(torch.int64))

    def step(self, rows: _Rows, dense: Float[Tensor, "times batch *event"] | None) -> _Rows:
        """One step of every row, accepted or rejected."""
        left = (self.end - rows.time).abs()
        last = rows.step >= SAFETY * left  # so that no very short step is left for the end
        length = torch.where(last, left, rows.step) * self.direction
        time = torch.where(last, self.end, rows.time + length)
        z = length * self.linear if self.linear else None
        weights = self.method.weights(z)
        slopes, y = [rows.slope], rows.x
        for i, c in enumerate(self.method.c[1:], start=1):
            decay = None if weights.decay is None else weights.decay[i]
            y = _moved(rows.x, length, decay, weights.a[i], slopes)
            slopes.append(self.slope(time if abs(c - 1) < 1e-12 else rows.time + c * length, y, rows.index))
        if not self.method.first_same_as_last:
            y = _moved(rows.x, length, None if weights.decay is None else weights.decay[-1], weights.b, slopes)
        error = _moved(None, length, None, weights.error, slopes)
        ratio = self.measured(error, time)
        accepted = (ratio <= 1) & y.flatten(1).isfinite().all(1)
        if dense is not None:
            self.write_dense(dense, rows, time, length, z, slopes, accepted)
        wide = accepted.reshape(-1, *[1] * (y.ndim - 1))
        taken = accepted.to(torch.int64)
        return replace(
            rows,
            time=torch.where(accepted, time, rows.time),
            step=length.abs() * self.factor(ratio, accepted, rows),
            x=torch.where(wide, y, rows.x),
            slope=torch.where(wide, slopes[-1], rows.slope) if self.method.first_same_as_last else rows.slope,
            stale=accepted & (not self.method.first_same_as_last),
            last_ratio=torch.where(accepted, ratio.clamp(min=1e-4), rows.last_ratio),
            last_rejected=~accepted,
            nfe=rows.nfe + len(self.method.c) - 1,
            accepted=rows.accepted + taken,
            rejected=rows.rejected + 1 - taken,
        )

    def factor(
        self, ratio: Float[Tensor, "rows"], accepted: Bool[Tensor, "rows"], rows: _Rows
    ) -> Float[Tensor, "rows"]:
        """What the step size is multiplied by."""
        order = self.method.order
        ratio = ratio.nan_to_num(nan=math.inf).clamp(min=1e-10)
        onward = SAFETY * ratio ** (-PROPORTIONAL / order) * rows.last_ratio ** (MEMORY / order)
        onward = torch.where(rows.last_rejected, onward.clamp(max=1.0), onward).clamp(SHRINK, GROW)
        back = (SAFETY * ratio ** (-1 / order)).clamp(SHRINK, 1.0)
        # A step whose result was not finite although its error was small is shortened the most.
        back = torch.where(ratio <= 1, SHRINK, back)
        return torch.where(accepted, onward, back)

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
        """Fill in the states at the times of `at` that the accepted steps passed."""
        assert self.at is not None
        ahead = (self.at - rows.time[:, None]) * self.direction
        passed = (ahead > 0) & ((self.at - time[:, None]) * self.direction <= 0) & accepted[:, None]
        row, number = passed.nonzero(as_tuple=True)
        theta = (self.at[number] - rows.time[row]) / length[row]
        decay, weights = self.method.dense(theta, None if z is None else z[row])
        dense[number, rows.index[row]] = _moved(rows.x[row], length[row], decay, weights, [k[row] for k in slopes])


def _wide(values: Float[Tensor, "rows"], y: Float[Tensor, "rows *event"]) -> Tensor:
    """One value a row, shaped to be multiplied with y."""
    return values.to(y.dtype).reshape(-1, *[1] * (y.ndim - 1))


def _moved(
    y: Float[Tensor, "rows *event"] | None,
    h: Float[Tensor, "rows"],
    decay: float | Tensor | None,
    weights: Row,
    slopes: list[Tensor],
) -> Float[Tensor, "rows *event"]:
    """decay · y + h Σ_i weights_i k_i; without y the sum alone."""
    total: Tensor | None = None
    for weight, slope in zip(weights, slopes, strict=False):
        if isinstance(weight, Tensor):
            part = slope * _wide(weight, slope)
            total = part if total is None else total + part
        elif weight != 0:
            total = slope * weight if total is None else torch.add(total, slope, alpha=weight)
    assert total is not None
    moved = total * _wide(h, total)
    if y is None:
        return moved
    return moved + (y * _wide(decay, y) if isinstance(decay, Tensor) else y)


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
