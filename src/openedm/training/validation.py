"""The validation loss: the same samples with the same noise every time, at fixed noise levels.

A loss on fresh noise varies from one measurement to the next by more than training improves it. Here the noise is a
function of the seed, so that differences between two measurements are differences between the denoisers.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from openedm.data import Dataset
from openedm.denoiser import Denoiser
from openedm.ground import checks
from openedm.ground.seeding import derive_seed, host_seeded
from openedm.objective import Objective, denoising_loss
from openedm.sampling import SeededNoise
from openedm.training.randomness import ITEMS, VALIDATION

KEPT_BYTES = 2**26
"""Up to this size noise is kept from one measurement to the next; more is drawn each time."""


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


class Validation:
    """The same measurement again and again: samples and noise are drawn once, where they take little memory.

    Args as for `validation_loss`.
    """

    def __init__(
        self,
        dataset: Dataset,
        objective: Objective,
        *,
        sigma_data: float,
        device: torch.device,
        levels: int = 8,
        samples: int = 256,
        seed: int = 0,
        batch_size: int = 128,
    ) -> None:
        checks.at_least("levels", levels, 1)
        checks.at_least("samples", samples, 1)
        self._dataset, self._device, self._seed, self._batch_size = dataset, device, seed, batch_size
        self._sigmas = objective.noise.quantile((torch.arange(levels, dtype=torch.float64) + 0.5) / levels)
        self._weights = objective.weighting.weight(self._sigmas, sigma_data)
        self._chosen = dataset.spread(samples)
        size = 4 * len(self._chosen) * levels * math.prod(dataset.event_shape)
        self._kept = [(x, c, list(n)) for x, c, n in self._parts()] if size <= KEPT_BYTES else None

    def _parts(self) -> Iterator[tuple[Tensor, Tensor | None, Iterable[Tensor]]]:
        """Clean samples, their labels or conditions, and the noise of each level; part after part."""
        for start in range(0, len(self._chosen), self._batch_size):
            part = self._chosen[start : start + self._batch_size]
            with host_seeded(derive_seed(self._seed, VALIDATION, start, ITEMS)):
                clean, given = self._dataset.fetch(part)
            random = SeededNoise([derive_seed(self._seed, VALIDATION, i) for i in part])
            shape = tuple(clean.shape[1:])
            noises = (random.draw(shape).to(self._device) for _ in range(len(self._sigmas)))
            clean, given = clean.to(self._device), None if given is None else given.to(self._device)
            yield clean, given, noises

    @torch.no_grad()
    def measure(self, denoiser: Denoiser) -> ValidationLoss:
        """The loss of a denoiser in evaluation mode."""
        errors = torch.zeros(len(self._sigmas), dtype=torch.float64)
        ones = torch.ones(self._batch_size, dtype=torch.float64)
        conditional = denoiser.num_classes > 0 or denoiser.condition_shape is not None
        for clean, given, noises in self._parts() if self._kept is None else self._kept:
            condition = given if conditional else None
            for i, (sigma, noise) in enumerate(zip(self._sigmas, noises, strict=True)):
                denoised = denoiser(clean + float(sigma) * noise, sigma, condition)
                errors[i] += float(denoising_loss(denoised, clean, ones[: len(clean)]).weighted.cpu().double().sum())
        errors /= len(self._chosen)
        losses = self._weights * errors
        sigmas, mean = tuple(self._sigmas.tolist()), float(losses.mean())
        return ValidationLoss(sigmas, tuple(errors.tolist()), tuple(losses.tolist()), mean)


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
    return Validation(
        dataset,
        objective,
        sigma_data=sigma_data,
        device=device,
        levels=levels,
        samples=samples,
        seed=seed,
        batch_size=batch_size,
    ).measure(denoiser)
