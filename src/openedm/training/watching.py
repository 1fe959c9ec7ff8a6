"""Observers for a person who looks on: a progress bar, and a line for each validation loss, figure and checkpoint."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from openedm.ground.progress import is_watched, update_interval
from openedm.training.monitoring import Observer, TrainingProgress, ValidationLoss
from openedm.training.options import Options

if TYPE_CHECKING:
    from openedm.training.trainer import Trainer

__all__ = ["LogLines", "TrainingBar", "watching"]


class TrainingBar(Observer):
    """A progress bar on the error stream: images seen, speed, time left, and the loss averaged over about 50 steps.

    Args:
        options: of the training, which tell its length.
    """

    def __init__(self, options: Options) -> None:
        self._total = options.images
        self._bar: tqdm[Any] | None = None
        self._loss = math.nan

    def on_progress(self, progress: TrainingProgress) -> None:
        """Advance to the images seen."""
        if self._bar is None:
            self._bar = tqdm(
                total=self._total,
                initial=min(progress.images, self._total),
                unit="img",
                unit_scale=True,
                smoothing=0.05,
                mininterval=update_interval(),
            )
        if math.isfinite(progress.loss):
            self._loss = progress.loss if math.isnan(self._loss) else self._loss + 0.02 * (progress.loss - self._loss)
        skipped = {"skipped": progress.skipped} if progress.skipped else {}
        self._bar.set_postfix({"loss": f"{self._loss:.4f}", **skipped}, refresh=False)
        self._bar.update(min(progress.images, self._total) - self._bar.n)

    def close(self) -> None:
        """End the bar, so that later output is below it; the next step begins another."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> "TrainingBar":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LogLines(Observer):
    """A line for each measured loss, checkpoint and figure, with its path.

    The first line of a figure that is drawn again and again, such as loss.png, is the only one.

    Args:
        write: what gets a line without its end: `print`, `logging.getLogger("training").info`; by default it is written
            to the error stream, above a bar if there is one.
    """

    def __init__(self, write: Callable[[str], object] | None = None) -> None:
        self._write = _above_bar if write is None else write
        self._lowest = math.inf
        self._named: set[Path] = set()

    def on_validation(self, images: int, loss: ValidationLoss) -> None:
        """Write the loss, and whether it is the lowest so far."""
        lowest = ", the lowest so far" if loss.loss < self._lowest < math.inf else ""
        self._lowest = min(self._lowest, loss.loss)
        self._write(f"{images:,} images: {loss.name} {loss.loss:.4f}{lowest}")

    def on_figure(self, images: int, path: Path) -> None:
        """Write the path of a figure, once."""
        if path not in self._named:
            self._named.add(path)
            self._write(f"{images:,} images: figure {path}")

    def on_checkpoint(self, images: int, path: Path) -> None:
        """Write the path of the checkpoint."""
        self._write(f"{images:,} images: checkpoint {path}")


def _above_bar(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


@contextmanager
def watching(trainer: "Trainer", progress: bool | None) -> Iterator[None]:
    """A bar and lines among the observers of a trainer, while it trains.

    Args:
        trainer: what is trained.
        progress: whether they are there; None, where a person looks and no observer of the trainer is such a bar.
    """
    others = trainer.observers
    if progress is None:
        progress = is_watched() and not any(isinstance(observer, TrainingBar) for observer in others)
    if not (progress and trainer.accelerator.is_main_process):
        yield
        return
    with TrainingBar(trainer.options) as bar:
        trainer.observers = (bar, LogLines(), *others)
        try:
            yield
        finally:
            trainer.observers = others
