"""What is measured while a run trains, and who receives it: the validation loss, progress and the observers.

The validation loss is that of the same samples with the same noise every time, at fixed noise levels. A loss on fresh
noise varies from one measurement to the next by more than training improves it. Here the noise is a function of the
seed, so that differences between two measurements are differences between the denoisers.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from openedm.data import Dataset
from openedm.denoiser import Denoiser, Preconditioned
from openedm.ground import checks
from openedm.ground.seeding import derive_seed, host_seeded
from openedm.objective import Objective, denoising_loss
from openedm.sampling import SeededNoise
from openedm.training.options import ITEMS, VALIDATION

__all__ = ["Observer", "TrainingProgress", "Validation", "ValidationLoss"]

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
    """Measures the loss at the midpoints of `levels` equally likely parts of p(σ).

    Samples and noise are drawn once, where they take little memory, and are the same for every measurement.

    Args:
        dataset: the samples; `samples` of them at even distances are used.
        objective: gives p(σ) and λ(σ).
        sigma_data: standard deviation of the data.
        device: where the denoisers are.
        levels: number of noise levels, ≥ 1.
        samples: the most samples to use, ≥ 1.
        seed: of the noise.
        batch_size: samples evaluated at a time, which bounds the memory; by default 128, and 4096 for vectors.

    Raises:
        ValueError: a count is out of its range.
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
        batch_size: int | None = None,
    ) -> None:
        checks.at_least("levels", levels, 1)
        checks.at_least("samples", samples, 1)
        self._dataset, self._device, self._seed = dataset, device, seed
        # Up to 256 samples in the parts of earlier versions: sums in other parts differ in the last digits.
        default = 4096 if dataset.kind == "vectors" and samples > 256 else 128
        self._batch_size = default if batch_size is None else batch_size
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


@dataclass(frozen=True)
class TrainingProgress:
    """Where a run stands after a step.

    Attributes:
        images: images seen.
        step: optimiser steps taken or skipped.
        loss: λ ‖D − y‖²/n of the batch.
        gradient_norm: before clipping.
        learning_rate: of this step.
        images_per_second: of this step.
        skipped: steps skipped so far because the loss or gradient was not finite.
    """

    images: int
    step: int
    loss: float
    gradient_norm: float
    learning_rate: float
    images_per_second: float
    skipped: int


class Observer:
    """Methods that a `Trainer` calls on the main process while it trains. Override some; by default they do nothing."""

    def on_progress(self, progress: TrainingProgress) -> None:
        """Called after every step."""

    def on_validation(self, images: int, loss: ValidationLoss) -> None:
        """Called after a measurement of the validation loss."""

    def on_snapshot(self, images: int, denoiser: Preconditioned) -> None:
        """Called every `snapshot_every` images with the averaged denoiser, in evaluation mode: draw samples here."""

    def on_checkpoint(self, images: int, path: Path) -> None:
        """Called after a checkpoint was written."""
