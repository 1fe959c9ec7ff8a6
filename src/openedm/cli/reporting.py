"""What a training run shows and writes: a progress bar, a log, figures, a tracker; and how it is asked to stop."""

import json
import math
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from openedm.cli.seeds import columns_for, labels_for
from openedm.data import save_image
from openedm.data.pictures import image_grid
from openedm.denoiser import Preconditioned
from openedm.ground.storage import replacing
from openedm.objective import Objective
from openedm.plots import loss_curve, loss_per_sigma, save_figure
from openedm.sampling import Sampler, sample_batches
from openedm.training import Observer, Options, TrainingProgress, ValidationLoss

GRID_ROWS = 8


class StopSignal:
    """While active, the first Ctrl-C (or SIGTERM) asks the run to stop at the next step; a later one ends it at once.

    Under `torchrun` one Ctrl-C arrives twice, from the terminal and from the launcher: signals that follow the first
    within a second are taken as one with it.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._first = 0.0
        self._previous: dict[int, Any] = {}

    def is_set(self) -> bool:
        """Whether the run was asked to stop."""
        return self._event.is_set()

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._event.is_set():
            self._first = time.monotonic()
            self._event.set()
        elif time.monotonic() - self._first > 1:
            raise KeyboardInterrupt


class Bar(Observer):
    """A progress bar on the terminal."""

    def __init__(self, options: Options) -> None:
        self._total = options.images
        self._bar: tqdm[Any] | None = None
        self._loss = math.nan

    def on_progress(self, progress: TrainingProgress) -> None:
        """Advance to the images seen; the loss shown is averaged over about 50 steps."""
        if self._bar is None:
            pause = 1.0 if sys.stderr.isatty() else 15.0
            self._bar = tqdm(total=self._total, unit="img", unit_scale=True, smoothing=0.05, mininterval=pause)
            self._bar.n = self._bar.initial = progress.images
        if math.isfinite(progress.loss):
            self._loss = progress.loss if math.isnan(self._loss) else self._loss + 0.02 * (progress.loss - self._loss)
        skipped = {"skipped": progress.skipped} if progress.skipped else {}
        self._bar.set_postfix({"loss": f"{self._loss:.4f}", **skipped}, refresh=False)
        self._bar.update(min(progress.images, self._total) - self._bar.n)

    def close(self) -> None:
        """Leave the bar as it stands, so that what is printed next comes below it."""
        if self._bar is not None:
            self._bar.close()


class Log(Observer):
    """log.jsonl: one JSON object a line, training loss averaged over up to 1/2000 of the run, and validations."""

    def __init__(self, path: Path, options: Options) -> None:
        self.path = path
        self.progress: list[tuple[int, float]] = []
        self.validations: list[tuple[int, ValidationLoss]] = []
        self._window: list[TrainingProgress] = []
        self._steps = max(1, options.images // options.batch_size // 2000)

    def start(self, images: int) -> None:
        """Keep what an earlier part of the run wrote up to `images`; later lines will be written again."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        kept = [line for line in lines if _images(line) <= images]
        for row in map(json.loads, kept):
            if "validation" in row:
                self.validations.append((row["images"], _validation(row["validation"])))
            else:
                self.progress.append((row["images"], row["loss"]))
        with replacing(self.path) as path:
            path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def on_progress(self, progress: TrainingProgress) -> None:
        """Write a line at the end of each window."""
        self._window.append(progress)
        if progress.step % self._steps:
            return
        count = len(self._window)
        row = {
            "images": progress.images,
            "step": progress.step,
            "loss": sum(p.loss for p in self._window) / count,
            "gradient_norm": sum(p.gradient_norm for p in self._window) / count,
            "learning_rate": progress.learning_rate,
            "images_per_second": count / sum(1 / p.images_per_second for p in self._window),
            "skipped": progress.skipped,
        }
        self._window.clear()
        self.progress.append((progress.images, row["loss"]))
        self._write(row)

    def on_validation(self, images: int, loss: ValidationLoss) -> None:
        """Write the validation loss."""
        self.validations.append((images, loss))
        self._write({"images": images, "validation": vars(loss)})

    def _write(self, row: dict[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _validation(values: dict[str, Any]) -> ValidationLoss:
    return ValidationLoss(
        tuple(values["sigmas"]), tuple(values["errors"]), tuple(values["losses"]), float(values["loss"])
    )


def _images(line: str) -> float:
    try:
        return float(json.loads(line)["images"])
    except (ValueError, KeyError, TypeError):  # a line cut short when the process was killed
        return float("inf")


class Figures(Observer):
    """figures/: loss.png and loss_per_sigma.png, renewed as the run goes on, and a grid of samples a snapshot."""

    def __init__(self, folder: Path, log: Log, objective: Objective, sampler: Sampler) -> None:
        self._folder, self._log, self._objective, self._sampler = folder, log, objective, sampler

    def on_validation(self, images: int, loss: ValidationLoss) -> None:
        """Draw the curves anew."""
        self._folder.mkdir(parents=True, exist_ok=True)
        validations = self._log.validations
        curve = loss_curve(self._log.progress, [(seen, v.loss) for seen, v in validations])
        save_figure(curve, self._folder / "loss.png")
        shown = sorted({0, len(validations) // 4, len(validations) - 1})
        moments = {f"{validations[i][0]:,} images": validations[i][1] for i in shown}
        save_figure(loss_per_sigma(moments, self._objective), self._folder / "loss_per_sigma.png")

    def on_snapshot(self, images: int, denoiser: Preconditioned) -> None:
        """Draw the same seeds every time: a column a class, or a square."""
        self._folder.mkdir(parents=True, exist_ok=True)
        every = labels_for(range(denoiser.num_classes), None, denoiser.num_classes)
        columns = columns_for(every) or GRID_ROWS
        seeds = range(columns * GRID_ROWS)
        batches = sample_batches(
            self._sampler, denoiser, seeds, condition=labels_for(seeds, None, denoiser.num_classes)
        )
        x = torch.cat([samples for _, samples in batches])
        name = f"samples-{images:012d}"
        if len(x.shape) == 4 and x.shape[1] in (1, 3, 4):
            save_image(image_grid(x, columns, scale=max(1, 32 // x.shape[-1])), self._folder / f"{name}.png")
        else:
            save_array(x, self._folder / f"{name}.npy")


def save_array(x: torch.Tensor, path: Path) -> None:
    """Write a tensor as .npy, in float32; the file appears complete or not at all."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, x.float().cpu().numpy(), allow_pickle=False)


class Tracker(Observer):
    """Sends curves to the tracker that accelerate was set up with."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator

    def on_progress(self, progress: TrainingProgress) -> None:
        """Every tenth step."""
        if progress.step % 10 == 0:
            names = ("loss", "gradient_norm", "learning_rate", "images_per_second", "skipped")
            values = {f"train/{name}": getattr(progress, name) for name in names}
            self._accelerator.log(values, step=progress.images)

    def on_validation(self, images: int, loss: ValidationLoss) -> None:
        """The mean, and the loss at each noise level."""
        levels = {f"validation/sigma_{s:.3g}": v for s, v in zip(loss.sigmas, loss.losses, strict=True)}
        self._accelerator.log({"validation/loss": loss.loss, **levels}, step=images)
