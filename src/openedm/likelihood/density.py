"""The density of a sample by the change of variables along the probability-flow ODE.

Along dx/dσ = (x − D(x; σ))/σ the density at the moving point changes by minus the divergence, n being the size of x:

    d ln p(x(σ); σ)/dσ = −(n − tr ∂D/∂x)/σ                                  (Chen et al. 2018; Song et al. 2021, eq. 39)

With c(σ) = σ_d/√(σ²+σ_d²), of which d ln(σ c)/dσ = c²/σ, the part for Gaussian data of width σ_d is computed exactly,
and the integral is over the remainder:

    ln p(x; σ_min) = ln p(x_T; σ_max) + n ln (c(σ_min)/c(σ_max)) + ∫_σ_min^σ_max (n c² − tr ∂D/∂x) dσ/σ.

At σ_max, far above the size of the data, D at three points determines the density. By the score (D − x)/σ² (Karras et
al. 2022, eq. 3) ln p(x; σ) − ln p(0; σ) = x·∫_0^1 D(s x) ds/σ² − |x|²/(2σ²); the integral is that of a parabola through
D(−x), D(0), D(x). And ln p(0; σ) is that of a Gaussian with the same D(0) and j = tr ∂D/∂x / n there:

    ln p(0; σ) ≈ −(n/2) ln (2πσ²/(1 − j)) − |D(0)|²/(2σ²(1 − j)).

This is exact for isotropic Gaussian data; the error is of order n (λ/σ²)² and (|y|/σ)⁴, λ the data's variances. The
usual N(0, σ_max² I) has errors of m·x/σ² and n λ/(2σ²), m the data's mean.

All of this is in standard units, z = (x − m)/S with m the mean of the denoiser's data and S its scale, and
ln p(x) = ln p(z) − Σ ln S.

The result is the density of data plus noise of σ_min. Since ∂p/∂(σ²/2) = Δp, that of the data themselves is

    ln p(x; 0) = ln p(x; σ_min) − ½ (tr ∂D/∂x − n + |D − x|²/σ_min²) + O(σ_min⁴).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int64
from scipy.special import stdtrit
from torch import Tensor

from openedm.denoiser import Condition, Denoiser, check_denoiser, check_evaluation_mode, check_no_per_sample_settings
from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.ground.devices import device_of, float64_on
from openedm.ground.tensors import check_floats
from openedm.levels import Levels, numbers_for_data
from openedm.levels.rules import MAX_STEPS
from openedm.likelihood.divergence import ExactTrace, Hutchinson, Trace
from openedm.likelihood.flow import ProbabilityFlow
from openedm.sampling import AdaptiveSolver, DormandPrince, NoiseSource, RungeKutta, SeededNoise, Seeds, Solver, Tsit5
from openedm.sampling.finite import check_given, check_samples
from openedm.standardised import Standardised, standardised

__all__ = ["Likelihood", "LogProb", "log_prob"]

SKEWNESS_FACTOR = 1.5
"""What the skewness of few estimates is multiplied by in intervals."""
MAX_EXACT_SIZE = 16


@dataclass(frozen=True)
class LogProb:
    """Log-densities and their standard errors.

    Attributes:
        log_prob: ln p(x), in nats; NaN for a sample that reached the limit of evaluations.
        standard_error: the standard error of the mean over random probes; 0 for exact traces, NaN for a single probe.
        skewness: the skewness of the estimates of single probes; 0 for exact traces and fewer than three probes.
        num_probes: the number of probes; 0 for exact traces.
        noise: the unit noise (x(σ_max) − m)/(σ_max S) that the flow maps to x.
        nfe: number of evaluations of the denoiser, for each sample, without the backward passes of the trace.
        finished: whether the sample reached σ_max.
    """

    log_prob: Float[Tensor, "batch"]
    standard_error: Float[Tensor, "batch"]
    skewness: Float[Tensor, "batch"]
    num_probes: int
    noise: Float[Tensor, "batch *event"]
    nfe: Int64[Tensor, "batch"]
    finished: Bool[Tensor, "batch"]

    def interval(self, level: float = 0.95) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch"]]:
        """The two ends of an interval that covers the result of an exact trace with probability `level`.

        Estimates of single probes are skewed where few directions are coupled, and Student's interval then covers less.
        With ȳ and s the mean and the standard deviation of k estimates, g 3/2 times their skewness and q Student's
        quantile for k − 1 degrees of freedom, the interval holds that from ȳ − s q/√k to ȳ + s q/√k, Student's, and
        that from ȳ − s h(q/√k) to ȳ − s h(−q/√k),

            h(u) = 3/g ((1 + g (u − g/(6k)))^{1/3} − 1),

        Hall's (1992, On the removal of skewness by transformation). The skewness of few numbers is too small; 3/2 makes
        up for most of that. In simulations 95 % intervals of 8 probes cover 94.7 to 96.5 % from normal
        errors to those of one squared normal number (Student's 95 to 85 %), and of 4 probes 89 to 96.6 % (81 to 95 %).

        Args:
            level: the probability, between 0 and 1.

        Raises:
            ValueError: the level is not a probability, or there was a single probe.
        """
        checks.between("level", level, 0.0, 1.0)
        if self.num_probes == 1:
            raise ValueError("num_probes must be >= 2 for an interval, got 1")
        count = max(self.num_probes, 1)
        quantile = float(stdtrit(count - 1, 0.5 + level / 2)) if self.num_probes else 0.0
        symmetric = quantile / math.sqrt(count)
        below, above = (_removed(sign * symmetric, self.skewness, count) for sign in (1, -1))
        deviation = self.standard_error * math.sqrt(count)
        return (
            self.log_prob - deviation * below.clamp(min=symmetric),
            self.log_prob - deviation * above.clamp(max=-symmetric),
        )


def _removed(u: float, skewness: Float[Tensor, "batch"], count: int) -> Float[Tensor, "batch"]:
    """h(u), by its series to second order where g is small."""
    g = SKEWNESS_FACTOR * skewness
    v = u - g / (6 * count)
    inside = 1 + g * v
    root = inside.sign() * inside.abs().pow(1 / 3)
    return torch.where(g.abs() < 1e-4, v - g * v.square() / 3, 3 * (root - 1) / torch.where(g == 0, 1.0, g))


def skewness_of(estimates: Float[Tensor, "batch k"]) -> Float[Tensor, "batch"]:
    """The skewness of k numbers, k/((k−1)(k−2)) Σ ((y − ȳ)/s)³; 0 for k < 3, or where all are equal."""
    count = estimates.shape[1]
    if count < 3:
        return torch.zeros_like(estimates[:, 0])
    deviations = estimates - estimates.mean(1, keepdim=True)
    scaled = deviations / estimates.std(1, keepdim=True).clamp(min=1e-300)
    return scaled.pow(3).sum(1) * count / ((count - 1) * (count - 2))


@dataclass(frozen=True)
class Likelihood(Choice):
    """A method for log-densities: any trace and any solver, between two noise levels.

    Args:
        trace: the method for tr ∂D/∂x; None means the exact trace for samples of up to 16 coordinates, and 8 of
            Hutchinson's probes for larger ones. The exact trace is also used if the number of coordinates is at most
            twice that of Hutchinson's probes.
        solver: `DormandPrince` or `Tsit5`, with a tolerance in nats, or a Runge–Kutta solver with fixed steps.
        num_steps: the number of steps of a Runge–Kutta solver, evenly spaced in atan(σ/σ_d)^½; None for other solvers.
        sigma_min: the noise level of x, > 0; cut to the range of the denoiser. None means EDM's 0.002 times
            σ_data/0.5.
        sigma_max: the noise level at which the density is known, far above the size of the data; cut to the range of
            the denoiser. None means EDM's 80 times σ_data/0.5.
        terminal: the density at σ_max: "moments", computed from the denoiser; or "noise", N(0, σ_max² I), with which
            the result is the density of samples of the ODE, also for guided denoisers.
        extrapolate: whether to compute the density of the data without the noise of σ_min, to order σ_min⁴; for
            densities that are smooth at that scale.

    Raises:
        TypeError: the solver is another one, or num_steps is not an integer.
        ValueError: a value is out of its range, or num_steps does not fit the solver.

    >>> from openedm.exact import GaussianMixture
    >>> Likelihood().log_prob(GaussianMixture([1.0], [[0.0]], [[[1.0]]]), torch.zeros(1, 1)).log_prob
    tensor([-0.9189], dtype=torch.float64)
    """

    full_float32: ClassVar[bool] = True
    """Whether float32 convolutions must not be rounded to TF32, whose error is larger than that of the result."""

    trace: Trace | None = None
    solver: Solver = DormandPrince(1e-4)
    num_steps: int | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    terminal: Literal["moments", "noise"] = "moments"
    extrapolate: bool = False

    def __post_init__(self) -> None:
        for name, value in (("sigma_min", self.sigma_min), ("sigma_max", self.sigma_max)):
            if value is not None:
                checks.positive(name, value)
        if self.sigma_min is not None and self.sigma_max is not None:
            checks.ordered("sigma_min", self.sigma_min, "sigma_max", self.sigma_max)
        checks.one_of("terminal", self.terminal, ("moments", "noise"))
        if not isinstance(self.solver, DormandPrince | Tsit5 | RungeKutta):
            raise TypeError(f"solver must be DormandPrince, Tsit5 or a Runge-Kutta solver, got {self.solver!r}")
        if isinstance(self.solver, AdaptiveSolver):
            if self.num_steps is not None:
                raise ValueError(f"num_steps requires a Runge-Kutta solver, otherwise None, got {self.num_steps}")
        else:
            checks.integer("num_steps", self.num_steps, 1, MAX_STEPS)

    def trace_for(self, event_shape: Sequence[int]) -> Trace:
        """The trace that is used for samples of a shape."""
        size = math.prod(event_shape)
        if self.trace is None:
            return ExactTrace() if size <= MAX_EXACT_SIZE else Hutchinson()
        return ExactTrace() if isinstance(self.trace, Hutchinson) and size <= 2 * self.trace.num_probes else self.trace

    @torch.no_grad()
    def log_prob(
        self,
        denoiser: Denoiser,
        x: Float[Tensor, "batch *event"],
        condition: Condition = None,
        *,
        seeds: Seeds | NoiseSource | None = None,
    ) -> LogProb:
        """ln p(x; σ_min | condition) for each sample, in nats, in float64 (float32 on devices without it).

        Args:
            denoiser: any denoiser that is differentiable in x.
            x: samples, in data units.
            condition: one row a sample; a single row for all if the denoiser has a `condition_shape`.
            seeds: the seeds of the probes, one a sample, or any source of noise; required for random traces.

        Raises:
            FloatingPointError: the step size of a sample fell below rounding, or its density is not finite.
            TypeError: the denoiser is not differentiable, or x is not a tensor of floating-point numbers.
            ValueError: x is not finite, the rows of x and the condition do not fit, seeds are missing or not one a
                sample, the noise levels are outside the denoiser's range, or σ_max is below σ_d, where the moments do
                not determine the density.
        """
        x, condition = _on_device(denoiser, x, condition)
        low, high = self._range(denoiser)
        if self.terminal == "moments" and high < denoiser.sigma_data:
            raise ValueError(
                f"sigma_max must be far above the denoiser's sigma_data, {denoiser.sigma_data:g}, where the density is "
                f"known, got {high:g}"
            )
        trace = self.trace_for(x.shape[1:])
        probes = trace.probes(_noise_source(trace, seeds, len(x)), x)
        standard = standardised(denoiser, condition, sigma_max=high, event_shape=tuple(x.shape[1:]))
        x = standard.standard(x)
        flow = ProbabilityFlow(standard, None, tuple(x.shape[1:]), trace, probes)
        end, integral, solution = flow.follow(x, low, high, self.solver, self.num_steps)
        uses_noise = self.terminal == "noise"
        top = _noise_log_prob(end, high)[:, None] if uses_noise else _terminal_log_prob(flow, end, high)
        values = integral + x[0].numel() * math.log(flow.shrink(low) / flow.shrink(high)) + top
        values = values - standard.log_scale(tuple(x.shape[1:]))
        if self.extrapolate:
            values = values + _extrapolation(flow, x, low)
        check_samples(values.where(solution.finished[:, None], values.new_zeros(())), None, what="densities")
        values = torch.where(solution.finished[:, None], values, math.nan)
        count = trace.estimates
        error = values.std(1) / math.sqrt(count) if count > 1 else torch.full_like(values[:, 0], math.nan)
        return LogProb(
            log_prob=values.mean(1),
            standard_error=error if trace.random else torch.zeros_like(error),
            skewness=skewness_of(values),
            num_probes=count if trace.random else 0,
            noise=end / high,
            nfe=solution.nfe + (0 if uses_noise else 3) + self.extrapolate,
            finished=solution.finished,
        )

    @torch.no_grad()
    def encode(
        self, denoiser: Denoiser, x: Float[Tensor, "batch *event"], condition: Condition = None
    ) -> Float[Tensor, "batch *event"]:
        """The unit noise (x(σ_max) − m)/(σ_max S) that the flow maps to x(σ_min) = x. The trace is not used.

        Arguments as for `log_prob`.

        Raises:
            FloatingPointError: the step size of a sample fell below rounding, or the result is not finite.
            ValueError: a sample reached the limit of evaluations, the noise levels are outside the denoiser's range, or
                the rows of x and the condition do not fit.
        """
        low, high = self._range(denoiser)
        x, condition = _on_device(denoiser, x, condition)
        standard = standardised(denoiser, condition, sigma_max=high, event_shape=tuple(x.shape[1:]))
        return self._transport(standard, standard.standard(x), low, high) / high

    @torch.no_grad()
    def decode(
        self, denoiser: Denoiser, noise: Float[Tensor, "batch *event"], condition: Condition = None
    ) -> Float[Tensor, "batch *event"]:
        """x(σ_min) from the unit noise (x(σ_max) − m)/(σ_max S): the inverse of `encode`, without a last denoising.

        Arguments and errors as for `encode`.
        """
        low, high = self._range(denoiser)
        noise, condition = _on_device(denoiser, noise, condition)
        standard = standardised(denoiser, condition, sigma_max=high, event_shape=tuple(noise.shape[1:]))
        return standard.restored(self._transport(standard, noise * high, high, low))

    def _transport(self, standard: Standardised, x: Tensor, start: float, end: float) -> Tensor:
        flow = ProbabilityFlow(standard, None, tuple(x.shape[1:]))
        x_end, _, solution = flow.follow(x, start, end, self.solver, self.num_steps)
        if not bool(solution.finished.all()):
            raise ValueError(f"max_nfe must be large enough for the whole range of noise levels, got {self.solver}")
        check_samples(x_end, None)
        return x_end

    def _range(self, denoiser: Denoiser) -> tuple[float, float]:
        """σ_min and σ_max, cut to the denoiser's range; ValueError if they do not overlap, or it has no likelihoods."""
        check_evaluation_mode(denoiser)
        check_no_per_sample_settings(denoiser)
        denoiser.check_gives_mean()
        chosen = numbers_for_data(self, denoiser.sigma_data, Levels.relative_numbers)
        assert chosen.sigma_min is not None
        assert chosen.sigma_max is not None
        low, high = max(chosen.sigma_min, denoiser.sigma_min), min(chosen.sigma_max, denoiser.sigma_max)
        if low >= high:
            raise ValueError(
                f"noise levels from {chosen.sigma_min:g} to {chosen.sigma_max:g} are outside the denoiser's range "
                f"[{denoiser.sigma_min:g}, {denoiser.sigma_max:g}]"
            )
        return low, high


def log_prob(
    denoiser: Denoiser,
    x: Float[Tensor, "batch *event"],
    condition: Condition = None,
    *,
    seeds: Seeds | NoiseSource | None = None,
    **choices: Any,
) -> LogProb:
    """`Likelihood(**choices).log_prob(denoiser, x, condition, seeds=seeds)`.

    >>> from openedm.exact import GaussianMixture
    >>> log_prob(GaussianMixture([1.0], [[0.0]], [[[1.0]]]), torch.ones(1, 1), sigma_min=1e-4).log_prob
    tensor([-1.4189], dtype=torch.float64)
    """
    return Likelihood(**choices).log_prob(denoiser, x, condition, seeds=seeds)


def _noise_source(trace: Trace, seeds: Seeds | NoiseSource | None, count: int) -> NoiseSource | None:
    if not trace.random:
        return None
    if seeds is None:
        raise ValueError(f"seeds must be given, one a sample, for {trace!r}")
    if isinstance(seeds, NoiseSource):
        return seeds
    if len(seeds) != count:
        raise ValueError(f"seeds must be one a sample ({count}), got {len(seeds)}")
    return SeededNoise(seeds)


def _on_device(denoiser: Denoiser, x: Tensor, condition: Condition) -> tuple[Tensor, Condition]:
    """x and the condition on the denoiser's device, x in float64 (float32 on devices without it), after checks of both.

    Raises:
        TypeError: x is not a tensor of floating-point numbers.
        ValueError: x is empty, has another shape or is not finite, or the condition does not fit.
    """
    check_denoiser("denoiser", denoiser)
    check_floats("x", x, "a tensor (batch, *event)")
    if len(x) == 0:
        raise ValueError(f"x must hold at least one sample, got shape {tuple(x.shape)}")
    denoiser.check_shape(x)
    check_given("x", x)
    denoiser.check_condition(condition, len(x))
    device = device_of(denoiser, x)
    return x.to(device, float64_on(device)), None if condition is None else condition.to(device)


def _noise_log_prob(x: Tensor, sigma: float) -> Tensor:
    """ln N(x; 0, σ² I)."""
    return -0.5 * ((x / sigma).flatten(1).square() + math.log(2 * math.pi * sigma**2)).sum(1)


def _terminal_log_prob(flow: ProbabilityFlow, x: Tensor, sigma: float) -> Tensor:
    """ln p(x; σ) at a high level, for each estimate of the trace (batch, estimates); three evaluations."""
    rows, level = torch.arange(len(x), device=x.device), torch.tensor(sigma, dtype=torch.float64)
    centre, traces = flow.evaluate(torch.zeros_like(x), level, rows)
    denoised_plus, denoised_minus = (flow.denoiser(point, level, flow.condition) for point in (x, -x))
    odd, even = (denoised_plus - denoised_minus) / 2, (denoised_plus + denoised_minus) / 2
    line = x * (centre + odd / 2 + (even - centre) / 3 - x / 2) / sigma**2
    complement = 1 - traces / x[0].numel()
    at_zero = 0.5 * x[0].numel() * (complement.log() - math.log(2 * math.pi * sigma**2))
    at_zero = at_zero - centre.flatten(1).square().sum(1, keepdim=True) / (2 * sigma**2 * complement)
    return line.flatten(1).sum(1, keepdim=True) + at_zero


def _extrapolation(flow: ProbabilityFlow, x: Tensor, sigma: float) -> Tensor:
    """−½ (tr ∂D/∂x − n + |D − x|²/σ²), for each estimate of the trace (batch, estimates)."""
    rows = torch.arange(len(x), device=x.device)
    denoised, traces = flow.evaluate(x, torch.tensor(sigma, dtype=torch.float64), rows)
    return -0.5 * (traces - x[0].numel() + (denoised - x).flatten(1).square().sum(1, keepdim=True) / sigma**2)
