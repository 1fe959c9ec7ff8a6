"""The validation loss: the same samples with the same noise every time, at fixed noise levels.

A loss on fresh noise varies from one measurement to the next by more than training improves it. Here the noise is a
function of the seed, so that differences between two measurements are differences between the denoisers.
"""

from dataclasses import dataclass

import torch

from openedm import checks
from openedm.data import Dataset
from openedm.denoiser import Denoiser
from openedm.objective import Objective, denoising_loss
from openedm.sampling import SeededNoise
from openedm.training.randomness import VALIDATION, derived_seed


@dataclass(frozen=True)
class ValidationLoss:
    """The loss of a denoiser at each of a few noise levels.

    Attributes:
        sigmas: the noise levels, increasing: quantiles of p(σ).
        errors: mean squared error per dimension at each, in squared data units.
        losses: λ(σ) times that; 1 for an untrained EDM network.
        loss: the mean of `losses`, an estimate of the objective.
    """

    sigmas: tuple[float, ...]
    errors: tuple[float, ...]
    losses: tuple[float, ...]
    loss: float


@torch.no_grad()
def validation_loss(
    denoiser: Denoiser,
    dataset: Dataset,
    objective: Objective,
    *,
    sigma_data: float,
    device: torch.device,
    levels: int = 8,
    samples: int = 256,
    seed: int = 0,
    batch_size: int = 128,
) -> ValidationLoss:
    """Measure the loss at the midpoints of `levels` equally likely parts of p(σ).

    Args:
        denoiser: what is measured; in evaluation mode.
        dataset: the samples; `samples` of them at even distances are used.
        objective: gives p(σ) and λ(σ).
        sigma_data: standard deviation of the data.
        device: where the denoiser is.
        levels: number of noise levels, ≥ 1.
        samples: at most so many samples of the data.
        seed: of the noise.
        batch_size: samples evaluated at a time; changes memory only.
    """
    checks.at_least("levels", levels, 1)
    checks.at_least("samples", samples, 1)
    sigmas = objective.noise.quantile((torch.arange(levels, dtype=torch.float64) + 0.5) / levels)
    count = min(samples, len(dataset))
    chosen = [i * len(dataset) // count for i in range(count)]
    errors, ones = torch.zeros(levels, dtype=torch.float64), torch.ones(batch_size, dtype=torch.float64)
    for start in range(0, count, batch_size):
        part = chosen[start : start + batch_size]
        clean, given = dataset.fetch(part)
        random = SeededNoise([derived_seed(seed, VALIDATION, i) for i in part])
        clean = clean.to(device)
        conditional = denoiser.num_classes > 0 or denoiser.condition_shape is not None
        condition = given.to(device) if given is not None and conditional else None
        for i, sigma in enumerate(sigmas):
            noise = random.draw(tuple(clean.shape[1:])).to(device)
            denoised = denoiser(clean + float(sigma) * noise, sigma, condition)
            errors[i] += float(denoising_loss(denoised, clean, ones[: len(clean)]).weighted.cpu().double().sum())
    errors /= count
    losses = objective.weighting.weight(sigmas, sigma_data) * errors
    return ValidationLoss(tuple(sigmas.tolist()), tuple(errors.tolist()), tuple(losses.tolist()), float(losses.mean()))
