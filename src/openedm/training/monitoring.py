"""Measurements during training, and the observers that receive them: validation loss, progress and snapshots.

Every measurement of the validation loss has the same samples, noise and noise levels. With new noise the loss would
vary between two measurements by more than training improves it; with noise that is a function of the seed, differences
between two measurements are differences between the denoisers.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from openedm.data import Dataset
from openedm.denoiser import Condition, Denoiser, Preconditioned
from openedm.ground import checks
from openedm.ground.seeding import derive_seed, host_seeded
from openedm.objective import Objective, weighted_loss
from openedm.sampling import SeededNoise
from openedm.training.consistency import evaluate_target
from openedm.training.options import ITEMS, TAILS, VALIDATION, Options

__all__ = ["Observer", "TrainingProgress", "Validation", "ValidationLoss", "notify"]

MAX_NOISE_BYTES = 2**26
"""Noise up to this size is kept in memory between measurements; otherwise it is drawn each time."""


@dataclass(frozen=True)
class ValidationLoss:
    """The loss of a denoiser at each of a few noise levels.

    Attributes:
        sigmas: the noise levels, increasing: quantiles of p(σ).
        errors: mean squared error per dimension at each level, in squared standard units (data units without `units`);
            for a consistency function the objective's distance from f at the next lower level.
        losses: λ(σ) times the errors; 1 for an untrained EDM network.
        loss: the mean of `losses`, an estimate of the objective.
        tail_sigmas: levels that training rarely sees, below and above the others; none if they were not measured.
        tail_losses: λ(σ) times the errors there, which are not part of the mean.
        held_out: whether it was measured on validation data, not on the training data.
    """

    sigmas: tuple[float, ...]
    errors: tuple[float, ...]
    losses: tuple[float, ...]
    loss: float
    tail_sigmas: tuple[float, ...] = ()
    tail_losses: tuple[float, ...] = ()
    held_out: bool = True

    @property
    def name(self) -> str:
        """What it is a loss of, in words."""
        return "validation loss" if self.held_out else "loss on training data"

    @property
    def curve(self) -> list[tuple[float, float]]:
        """(σ, loss) of all levels, in the order of σ."""
        both = zip(self.sigmas + self.tail_sigmas, self.losses + self.tail_losses, strict=True)
        return sorted(both)


class Validation:
    """Measures the loss at the midpoints of `levels` equally likely parts of p(σ), and in its tails for figures.

    Samples and noise are the same for every measurement; they are drawn once if they need little memory.

    Args:
        dataset: the samples; `samples` of them at even distances are used.
        objective: the objective, with p(σ) and λ(σ).
        sigma_data: standard deviation of the data.
        device: the device of the denoisers.
        levels: number of noise levels, ≥ 1.
        samples: the largest number of samples, ≥ 1.
        seed: the seed of the noise.
        batch_size: number of samples in one evaluation, which limits the memory; by default 128, and 4096 for vectors.
        tails: whether the loss is also measured at four levels in the tails of p(σ), its quantiles Φ(±2.25) and
            Φ(±3.5): at EDM's p(σ) and σ_data = 0.5, 0.0045, 0.02, 4.5 and 20.
        held_out: whether the samples are other than the training data, which the measurements say.

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
        tails: bool = False,
        held_out: bool = True,
    ) -> None:
        checks.at_least("levels", levels, 1)
        checks.at_least("samples", samples, 1)
        self._dataset, self._device, self._seed = dataset, device, seed
        # Up to 256 samples the batches are those of earlier versions: other batches change the last digits of sums.
        default = 4096 if dataset.kind == "vectors" and samples > 256 else 128
        self._batch_size = default if batch_size is None else batch_size
        middles = (torch.arange(levels, dtype=torch.float64) + 0.5) / levels
        self._levels = levels
        places = torch.tensor(TAILS if tails else (), dtype=torch.float64)
        quantiles = torch.cat([middles, torch.special.ndtr(places)])  # tails last: the noise of the others stays
        self._sigmas = objective.noise.for_data(sigma_data).quantile(quantiles)
        self._weights = objective.weighting.weight(self._sigmas, sigma_data)
        self._objective, self._held_out = objective, held_out
        self._target_sigmas = objective.target_levels(self._sigmas, sigma_data, progress=1.0)
        self._chosen = dataset.spread(samples)
        size = 4 * len(self._chosen) * len(quantiles) * math.prod(dataset.event_shape)
        self._cached_batches = [(x, c, list(n)) for x, c, n in self._batches()] if size <= MAX_NOISE_BYTES else None

    @classmethod
    def of_run(
        cls,
        dataset: Dataset,
        objective: Objective,
        options: Options,
        *,
        sigma_data: float,
        device: torch.device,
        held_out: bool = True,
    ) -> "Validation":
        """The measurement that the options of a run describe; other arguments as for the class."""
        return cls(
            dataset,
            objective,
            sigma_data=sigma_data,
            device=device,
            levels=options.validate_levels,
            samples=options.validate_samples,
            seed=options.seed,
            tails=options.validate_tails,
            held_out=held_out,
        )

    def _batches(self) -> Iterator[tuple[Tensor, Tensor | None, Iterable[Tensor]]]:
        """The batches: clean samples, their labels or conditions, and the noise of each level."""
        for start in range(0, len(self._chosen), self._batch_size):
            part = self._chosen[start : start + self._batch_size]
            with host_seeded(derive_seed(self._seed, VALIDATION, start, ITEMS)):
                clean, labels = self._dataset.fetch(part)
            random = SeededNoise([derive_seed(self._seed, VALIDATION, i) for i in part])
            shape = tuple(clean.shape[1:])
            noises = (random.draw(shape).to(self._device) for _ in range(len(self._sigmas)))
            clean, labels = clean.to(self._device), None if labels is None else labels.to(self._device)
            yield clean, labels, noises

    def _target(self, denoiser: Denoiser, clean: Tensor, noise: Tensor, level: int, condition: Condition) -> Tensor:
        """y, or f(x_r; r) of a consistency function, at the steps of the end of training and with pairs from data."""
        if self._target_sigmas is None:
            return clean
        sigma = self._target_sigmas[level]
        return evaluate_target(denoiser, clean + float(sigma) * noise, sigma.expand(len(clean)), condition)

    @torch.no_grad()
    def measure(self, denoiser: Denoiser) -> ValidationLoss:
        """The loss of a denoiser in evaluation mode; a warning says if it is NaN or infinite, and at which level."""
        if not self._objective.trains_consistency:
            denoiser.check_gives_mean()
        errors = torch.zeros(len(self._sigmas), dtype=torch.float64)
        ones = torch.ones(self._batch_size, dtype=torch.float64)
        layout = self._dataset.condition_layout
        for clean, labels, noises in self._batches() if self._cached_batches is None else self._cached_batches:
            condition = layout.select(labels, denoiser.condition_layout)
            clean = denoiser.standardise(clean)
            for i, (sigma, noise) in enumerate(zip(self._sigmas, noises, strict=True)):
                denoised = denoiser(clean + float(sigma) * noise, sigma, condition, standard=True)
                target = self._target(denoiser, clean, noise, i, condition)
                distance = self._objective.distance(denoised, target, denoiser.sigma_data)
                errors[i] += float(weighted_loss(distance, ones[: len(clean)]).weighted.cpu().double().sum())
        errors /= len(self._chosen)
        losses, n = self._weights * errors, self._levels
        mean = float(losses[:n].mean())
        sigmas, values = tuple(self._sigmas.tolist()), tuple(losses.tolist())
        tails = (sigmas[n:], values[n:])
        loss = ValidationLoss(sigmas[:n], tuple(errors[:n].tolist()), values[:n], mean, *tails, held_out=self._held_out)
        level = next((sigma for sigma, value in loss.curve if not math.isfinite(value)), None)
        if level is not None:
            of = "validation data" if loss.held_out else "data"
            outcome = f"it is {mean:.4g} without that level" if math.isfinite(mean) else "it counts as no improvement"
            warnings.warn(
                f"the {loss.name} is {'not finite' if math.isfinite(mean) else mean}, from sigma = {level:.4g} on: "
                f"the {of} or the denoiser's results are not finite there; {outcome}",
                RuntimeWarning,
                stacklevel=2,
            )
        return loss


@dataclass(frozen=True)
class TrainingProgress:
    """The progress of a run after a step.

    Attributes:
        images: number of images seen.
        step: number of optimiser steps taken or skipped.
        loss: λ ‖D − y‖²/n of the batch.
        gradient_norm: norm of the gradient before clipping.
        learning_rate: learning rate of this step.
        images_per_second: speed of this step.
        skipped: number of steps skipped so far because the loss or gradient was not finite.
    """

    images: int
    step: int
    loss: float
    gradient_norm: float
    learning_rate: float
    images_per_second: float
    skipped: int


class Observer:
    """Methods that a `Trainer` calls on the main process in training. By default they have no effect; override some.

    `on_validation` and `on_snapshot` may return the paths of figures that they have written, as a list: `on_figure` of
    all observers is then called with each.
    """

    def on_progress(self, progress: TrainingProgress) -> None:
        """Called after every step."""

    def on_validation(self, images: int, loss: ValidationLoss) -> list[Path] | None:
        """Called after a measurement of the validation loss."""

    def on_snapshot(self, images: int, denoiser: Preconditioned) -> list[Path] | None:
        """Called every `snapshot_every` images with the averaged denoiser, in evaluation mode."""

    def on_checkpoint(self, images: int, path: Path) -> None:
        """Called after a checkpoint was written."""

    def on_figure(self, images: int, path: Path) -> None:
        """Called after another observer, or this one, has written a figure."""


def notify(observers: Sequence[Observer], images: int, call: Callable[[Observer], list[Path] | None]) -> None:
    """Call a method of all observers, and `on_figure` for what it has written.

    Args:
        observers: the observers, in order.
        images: number of images seen.
        call: calls the method.
    """
    for observer in observers:
        written = call(observer)
        for path in written if isinstance(written, list) else []:
            for other in observers:
                other.on_figure(images, path)
