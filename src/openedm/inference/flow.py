"""Samples by the flow of a denoiser, from its own mean at σ_max and noise there.

From zero and noise, as samplers start, the mean of samples would be short by |mean|/σ_max standard deviations.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from openedm.denoiser import Condition, Denoiser
from openedm.sampling import Auto, Sampler


def flow(
    denoiser: Denoiser, sampler: Auto | Sampler, noise: Float[Tensor, "rows dim"], condition: Condition
) -> Float[Tensor, "rows dim"]:
    """One sample for each row of unit noise.

    Args:
        denoiser: of vectors.
        sampler: any sampler of the library.
        noise: unit Gaussian, on the denoiser's device.
        condition: as the denoiser takes it.
    """
    chosen = sampler.choose(denoiser) if isinstance(sampler, Auto) else sampler
    top = float(chosen.levels.within(denoiser.sigma_min, denoiser.sigma_max).sigmas().max())
    centre = denoiser(torch.zeros_like(noise), top, condition)
    return chosen.sample(denoiser, noise=noise + centre / top, condition=condition, event_shape=noise.shape[1:])
