"""What a run tells about itself while it trains."""

from dataclasses import dataclass
from pathlib import Path

from openedm.denoiser import Preconditioned
from openedm.training.validation import ValidationLoss


@dataclass(frozen=True)
class Progress:
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
    """What a run tells, on the main process. Override what you want to hear; every method does nothing by default."""

    def on_progress(self, progress: Progress) -> None:
        """After every step."""

    def on_validation(self, images: int, loss: ValidationLoss) -> None:
        """After a measurement of the validation loss."""

    def on_snapshot(self, images: int, denoiser: Preconditioned) -> None:
        """From time to time, with the averaged denoiser in evaluation mode: draw samples."""

    def on_checkpoint(self, images: int, path: Path) -> None:
        """After a checkpoint was written."""
