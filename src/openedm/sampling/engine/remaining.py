"""The end of a path for which few evaluations are left: even steps, without control of the error.

With τ and dw/dτ of `scaled_flow`, a sample that has m evaluations left takes m − 1 even steps from where it is to
σ_end by the Adams–Bashforth methods of order 1, 2 and then 3, and the last evaluation is D at σ_end. With m = 1 it is D
where the sample is.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from openedm.denoiser import Condition, Denoiser, per_sample
from openedm.ground.devices import float64_on
from openedm.sampling.engine.formulation import scaled_flow
from openedm.sampling.engine.pairs import DORMAND_PRINCE

__all__ = ["denoise_within"]

ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12))
"""The weights of the slopes, the newest first, of orders 1, 2 and 3."""


@torch.no_grad()
def denoise_within(
    denoiser: Denoiser,
    x: Float[Tensor, "batch *event"],
    sigma: Float[Tensor, "batch"],
    sigma_end: float,
    evaluations: Int64[Tensor, "batch"],
    condition: Condition = None,
) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, "batch *event"]]:
    """The samples to which the ODE takes x, each with its own number of evaluations, and the states before the last.

    Args:
        denoiser: any denoiser; its σ_data is the width σ_d.
        x: states at `sigma`.
        sigma: the noise level of each sample, > 0.
        sigma_end: the noise level of the last evaluation, > 0.
        evaluations: m of each sample, ≥ 1; not used where `sigma` is `sigma_end`.
        condition: one row a sample, or what the denoiser takes for all.
    """
    form = scaled_flow(DORMAND_PRINCE, None, denoiser.sigma_data)
    times = float64_on(x.device)
    evaluations = torch.where(sigma == sigma_end, 1, evaluations)
    start = form.variable.time(sigma.to(times))
    end = form.variable.time(torch.full_like(start, sigma_end))
    step = (end - start) / (evaluations - 1).clamp(min=1)
    state, sigma, samples = x.clone(), sigma.clone(), torch.empty_like(x)
    slopes: list[Float[Tensor, "batch *event"]] = []
    for i in range(int(evaluations.max())):
        rows = (evaluations > i).nonzero()[:, 0]
        everything = len(rows) == len(x)
        points, levels = state[rows], sigma[rows]
        denoised = denoiser(points, levels, condition if everything else denoiser.condition_of(condition, rows))
        samples[rows] = denoised
        speed = per_sample(form.variable.sigma_derivative(start + i * step)[rows], points)
        slope = torch.zeros_like(x)
        slope[rows] = form.slope(points, denoised, per_sample(levels, points), speed)
        slopes = [slope, *slopes][: len(ADAMS_BASHFORTH)]
        moving = (evaluations > i + 1).nonzero()[:, 0]
        if not len(moving):
            break
        weights = ADAMS_BASHFORTH[len(slopes) - 1]
        change = sum(weight * past[moving] for weight, past in zip(weights, slopes, strict=True))
        last = evaluations == i + 2
        following = torch.where(last, sigma_end, form.variable.sigma(start + (i + 1) * step))
        scaled = state[moving] * per_sample(form.factor(sigma[moving]), x) + change * per_sample(step[moving], x)
        sigma[moving] = following[moving].to(sigma)
        state[moving] = scaled / per_sample(form.factor(sigma[moving]), x)
    return samples, state
