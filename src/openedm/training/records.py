"""Observers that record a run: a log of losses, and curves for a tracker."""

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from accelerate import Accelerator

from openedm.ground.disks import explain_write_errors
from openedm.ground.regular import read_limited
from openedm.ground.storage import replacing
from openedm.training.monitoring import Observer, TrainingProgress, ValidationLoss
from openedm.training.options import Options

__all__ = ["RunLog", "RunTracker", "dotted_values", "read_log"]


class RunLog(Observer):
    """Writes log.jsonl, one JSON object a line: losses averaged over up to 1/2000 of the run, and validations."""

    def __init__(self, path: Path, options: Options) -> None:
        self.path = path
        self.progress: list[tuple[int, float]] = []
        self.validations: list[tuple[int, ValidationLoss]] = []
        self._window: list[TrainingProgress] = []
        self._steps = max(1, options.images // options.batch_size // 2000)

    def start(self, images: int) -> None:
        """Keep the lines that an earlier part of the run wrote up to `images`; later lines are written again."""
        content = read_limited(self.path).decode(errors="replace") if self.path.exists() else ""
        *lines, _ = content.split("\n")  # a killed process leaves a last line without its end
        rows = [(line, row) for line in lines if (row := _row(line)) is not None]
        if images > 0 and len(rows) < len(lines):
            warnings.warn(f"{self.path}: {len(lines) - len(rows)} damaged lines were left out", stacklevel=2)
        kept = [(line, row) for line, row in rows if row["images"] <= images]
        for _, row in kept:
            if "validation" in row:
                self.validations.append((row["images"], _validation(row["validation"])))
            else:
                self.progress.append((row["images"], row["loss"]))
        with replacing(self.path) as path:
            path.write_text("".join(f"{line}\n" for line, _ in kept), encoding="utf-8")

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
        with explain_write_errors(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def read_log(
    path: Path, images: int | None = None
) -> tuple[list[tuple[int, float]], list[tuple[int, ValidationLoss]], float]:
    """What a log.jsonl tells: (images seen, loss) of steps, (images seen, validation loss), and the time in seconds.

    The time is that of the steps, without validation, checkpoints and figures.

    Args:
        path: the file.
        images: later lines are left out; None for none.

    Raises:
        ValueError: a line is not one of a log.
    """
    progress: list[tuple[int, float]] = []
    validations: list[tuple[int, ValidationLoss]] = []
    seconds, seen = 0.0, 0
    limit = float("inf") if images is None else images
    for row in map(_row, read_limited(path).decode(errors="replace").split("\n")):
        if row is None or not row["images"] <= limit:  # the last line may be that of a killed process
            continue
        if "validation" in row:
            validations.append((int(row["images"]), _validation(row["validation"])))
            continue
        progress.append((int(row["images"]), float(row["loss"])))
        try:
            seconds += (progress[-1][0] - seen) / float(row["images_per_second"])
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise ValueError(f"{path} has a line that is not one of a log: {error!r}") from error
        seen = progress[-1][0]
    return progress, validations, seconds


def _validation(values: dict[str, Any]) -> ValidationLoss:
    # The levels in the tails, and what the loss is of, are newer than the first version.
    return ValidationLoss(
        tuple(values["sigmas"]),
        tuple(values["errors"]),
        tuple(values["losses"]),
        float(values["loss"]),
        tuple(values.get("tail_sigmas", ())),
        tuple(values.get("tail_losses", ())),
        held_out=values.get("held_out") is not False,
    )


def _row(line: str) -> dict[str, Any] | None:
    """A line of the log; None if it is damaged."""
    try:
        row: dict[str, Any] = json.loads(line)
        if "validation" in row:
            _validation(row["validation"])
        else:
            float(row["loss"])
        float(row["images"])
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
        return None
    return row


class RunTracker(Observer):
    """Sends curves, and the figures of a run, to the tracker that accelerate was configured with.

    Args:
        accelerator: it has the tracker.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator, self._measured = accelerator, "validation"

    def start(self, project: str, options: Mapping[str, Any], run: str | Path = "", about: str = "") -> None:
        """Begin: options are shown as hyperparameters, those of options by dotted names.

        Args:
            project: the name of the project; for TensorBoard, that of the folder in the run.
            options: the options of the run.
            run: the folder of the run, whose name the trackers give it; "" leaves the name to them.
            about: lines about the run: W&B's notes, MLflow's description, a text of TensorBoard and Comet.
        """
        name = Path(run).resolve().name if run else None
        given = {
            "wandb": {"name": name, "notes": about or None},
            "mlflow": {"run_name": name, "description": about or None},
        }
        self._accelerator.init_trackers(project, config=dict(dotted_values(options)), init_kwargs=given)
        for tracker in self._accelerator.trackers:
            if tracker.name == "comet_ml" and name:
                tracker.tracker.set_name(name)
            if tracker.name in ("tensorboard", "comet_ml") and about:
                tracker.log({"about": "".join(f"    {line}\n" for line in about.splitlines())}, step=0)

    def on_progress(self, progress: TrainingProgress) -> None:
        """Log the progress at every tenth step."""
        if progress.step % 10 == 0:
            names = ("loss", "gradient_norm", "learning_rate", "images_per_second", "skipped")
            values = {f"train/{name}": getattr(progress, name) for name in names}
            self._accelerator.log(values, step=progress.images)

    def on_validation(self, images: int, loss: ValidationLoss) -> None:
        """Log the mean loss, and the loss at each noise level; without validation data, as of training data."""
        self._measured = _group(loss)
        levels = {f"{self._measured}/sigma_{s:.3g}": v for s, v in loss.curve}
        self._accelerator.log({f"{self._measured}/loss": loss.loss, **levels}, step=images)

    def on_figure(self, images: int, path: Path) -> None:
        """Send grids of samples and the loss per sigma to the trackers that take pictures; curves they draw."""
        titles = {"loss_per_sigma": f"{self._measured}/loss_per_sigma", "samples": "samples"}
        title = titles.get(path.stem.partition("-")[0])
        if title is None or path.suffix != ".png":
            return
        with PIL.Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        for tracker in self._accelerator.trackers:
            form = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            if hasattr(tracker, "log_images"):
                tracker.log_images({title: pixels[None]}, step=images, **form)
            elif tracker.name == "mlflow":
                tracker.log_artifact(str(path), "figures")
            elif tracker.name == "comet_ml":
                tracker.tracker.log_image(pixels, name=title, step=images)


def _group(loss: ValidationLoss) -> str:
    """The name of the curves of a measurement in a tracker."""
    return "validation" if loss.held_out else "training_data"


def dotted_values(options: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    """Nested options by dotted names, as they are typed; class names without their modules."""
    for name, value in options.items():
        if name == "class_path":
            yield before.rstrip("."), str(value).rpartition(".")[2]
        elif name == "init_args":
            yield from dotted_values(value, before)
        elif isinstance(value, Mapping):
            yield from dotted_values(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value if isinstance(value, bool | int | float | str) else str(value)
