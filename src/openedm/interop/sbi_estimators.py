"""Score and flow estimators of the package `sbi` (NPSE, FMPE) as denoisers D(θ; σ, x).

    θ_t = m(t) θ + s(t) n,      σ = s/m,      y = θ_t/m = θ + σ n

    score (VP, sub-VP, VE)      D(y; σ) = y + σ² m ∇ ln p(m y; t)
    flow, v = E[n − θ]          D(y; σ) = (m y − s v(m y; t)) / (m + s),   m = 1 − t,  s = t + ε

Every sampler of this library then draws from an estimator that sbi trained, where sbi itself takes 500 steps of an SDE
or an adaptive ODE. An estimator's own standardisation of θ, if it has one, becomes the denoiser's location and scale.
"""

from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from openedm.denoiser import Condition, StandardisedInside
from openedm.denoiser.interface import per_sample

__all__ = ["SbiDenoiser", "from_sbi"]

NODES = 8193
"""Points at which σ(t) of a score estimator is tabulated; between them its inverse errs by less than 1e-6."""

FLOW_SIGMA_MAX = 1000.0
"""A flow's σ grows without end towards t = 1; this is t = 0.999."""


class SbiDenoiser(StandardisedInside):
    """D(θ; σ, x) of a vector-field estimator of sbi. `from_sbi` makes it.

    Args:
        estimator: a `ConditionalScoreEstimator` or `FlowMatchingEstimator` of sbi, trained.

    Raises:
        TypeError: it is something else.
        ValueError: its noise level does not grow with its time.
    """

    def __init__(self, estimator: Any) -> None:
        super().__init__()
        score, flow = _kinds()
        if not isinstance(estimator, (score, flow)):
            raise TypeError(
                "estimator must be a score or flow estimator of sbi (of NPSE or FMPE), "
                f"got {type(estimator).__name__}: only these have noise levels"
            )
        parts: Any = estimator
        self.estimator = parts.eval()
        self.event_shape = tuple(parts.input_shape)
        self.condition_shape = tuple(parts.condition_shape)
        if parts.compose_enabled:
            self.location = parts._theta_shift[0].detach().clone()
            self.scale = parts._theta_scale[0].detach().clone()
        self.sigma_data = float(torch.as_tensor(parts.std_0).double().square().mean().sqrt())
        self._is_flow = isinstance(estimator, flow)
        if self._is_flow:
            self.sigma_min, self.sigma_max = float(parts.noise_scale), FLOW_SIGMA_MAX
            return
        times = parts.t_min + (parts.t_max - parts.t_min) * torch.linspace(0, 1, NODES).double().square()
        sigmas = _flat(parts.std_fn(times)) / _flat(parts.mean_t_fn(times))
        if not bool((sigmas.diff() > 0).all()):
            raise ValueError("estimator must have a noise level std_fn(t)/mean_t_fn(t) that grows with t")
        self.sigma_min, self.sigma_max = float(sigmas[0]), float(sigmas[-1])
        self._times, self._logs = times, sigmas.clamp_min(1e-30).log()

    def denoise_standardised(
        self,
        x: Float[Tensor, "batch *event"],
        sigma: Float64[Tensor, "*batch_or_none"],
        condition: Condition,
        **options: Any,
    ) -> Float[Tensor, "batch *event"]:
        """D of standardised parameters, or of parameters as they are where the estimator takes those."""
        assert condition is not None
        parameter = self.estimator.mean_0
        observed = condition.to(parameter).expand(len(x), *condition.shape[1:])
        sigma = sigma.double().cpu()
        time = self._flow_time(sigma) if self._is_flow else self._score_time(sigma)
        # At σ below what the estimator knows, m and s are those of its lowest level, and y is taken to be at that.
        m, s = (per_sample(value, x) for value in self._coefficients(time))
        state = m * x
        given = time.expand(len(x)).to(parameter)
        value = self.estimator(state.to(parameter), observed, given).to(x)
        denoised: Tensor = (state - s * value) / (m + s) if self._is_flow else x + s.square() / m * value
        return denoised

    def _coefficients(self, time: Float64[Tensor, "*shape"]) -> tuple[Tensor, Tensor]:
        """The factors m and s at a time of the estimator."""
        if self._is_flow:
            return 1 - time, time + float(self.estimator.noise_scale)
        m, s = (_flat(f(time)).reshape(time.shape) for f in (self.estimator.mean_t_fn, self.estimator.std_fn))
        return m, s

    def _flow_time(self, sigma: Float64[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
        return ((sigma - float(self.estimator.noise_scale)) / (1 + sigma)).clamp(0, 1)

    def _score_time(self, sigma: Float64[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
        """The time of a score estimator, by linear interpolation in ln σ."""
        logs = sigma.clamp_min(1e-30).log().clamp(self._logs[0], self._logs[-1])
        above = torch.searchsorted(self._logs, logs.contiguous()).clamp(1, NODES - 1)
        low, high = self._logs[above - 1], self._logs[above]
        share = (logs - low) / (high - low)
        return torch.lerp(self._times[above - 1], self._times[above], share)


def from_sbi(posterior: Any) -> SbiDenoiser:
    """The denoiser of a posterior that sbi's NPSE or FMPE trained, or of the estimator in it.

    Its condition is one observation x, or one for each sample. Samples are not cut to the prior's support, which sbi
    does by rejection; below the last level that the estimator was trained for (σ(t_min)) there is one step to D.

        >>> from sbi.inference import NPSE  # doctest: +SKIP
        >>> posterior = NPSE(prior).append_simulations(theta, x).train() ...  # doctest: +SKIP
        >>> Auto(32).sample(from_sbi(posterior), seeds=range(1000), condition=x_observed[None])  # doctest: +SKIP

    Args:
        posterior: what `build_posterior` of `NPSE` or `FMPE` returns, or what their `train` returns.

    Raises:
        ImportError: sbi is not installed.
        TypeError: the posterior is of another kind, such as NPE's, whose flow has no noise levels.
    """
    return SbiDenoiser(getattr(posterior, "vector_field_estimator", posterior))


def _kinds() -> tuple[type, type]:
    try:
        from sbi.neural_nets.estimators import ConditionalScoreEstimator, FlowMatchingEstimator
    except ImportError as error:
        raise ImportError("from_sbi needs sbi: pip install 'openedm[sbi]'") from error
    return ConditionalScoreEstimator, FlowMatchingEstimator


def _flat(values: Tensor) -> Float64[Tensor, " values"]:
    return values.double().flatten()
