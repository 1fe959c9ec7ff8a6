"""Figures of a run that are renewed while it trains."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from openedm import plots
from openedm.data import Dataset, save_image
from openedm.data.autoencoder import Codec
from openedm.data.pictures import MAX_CLASS_COLUMNS, captioned, grid_columns, image_grid
from openedm.denoiser import Condition, Denoiser, Preconditioned
from openedm.ground.storage import write_array
from openedm.guidance import ClassifierFree, GuidanceWeight, Interval
from openedm.objective import Objective
from openedm.plots.conditional import conditional_samples
from openedm.sampling import Sampler, class_labels, sample_batches
from openedm.training import Observer, ValidationLoss
from openedm.training.records import RunLog

__all__ = ["RunFigures", "grid_evaluations"]

GRID_ROWS = 8


def grid_evaluations(data: Dataset, sampler: Sampler, guidance: GuidanceWeight = Interval()) -> int:
    """About the number of evaluations of a sample that a grid takes, for a model of these data."""
    columns = data.num_classes if 2 <= data.num_classes <= MAX_CLASS_COLUMNS else GRID_ROWS
    return columns * GRID_ROWS * (sampler.nfe or Sampler().nfe or 1) * (1 if guidance.is_one else 2)


class RunFigures(Observer):
    """figures/: loss.png and loss_per_sigma.png, renewed as the run goes on, and a grid of samples a snapshot.

    Samples that are not images are arrays, with a figure of lines or slices where they are series, fields or volumes.

    Args:
        folder: where the figures are written.
        log: the numbers of the run.
        objective: p(σ), which the loss at each σ is compared with.
        sampler: the sampler of the grids.
        data: the data whose conditions the samples of a model with float conditions have. Without them there are no
            grids of such a model, unless it has `condition_dropout`: then the samples have no condition.
        guidance: the weight of classifier-free guidance of the samples that have a condition.
        codec: decodes the samples of a model of latents to images; without, they are drawn as fields.
    """

    def __init__(
        self,
        folder: Path,
        log: RunLog,
        objective: Objective,
        sampler: Sampler,
        data: Dataset | None = None,
        guidance: GuidanceWeight = Interval(),
        codec: Codec | None = None,
    ) -> None:
        self._folder, self._log, self._objective, self._sampler, self._data = folder, log, objective, sampler, data
        self._guidance, self._codec = guidance, codec

    def on_validation(self, images: int, loss: ValidationLoss) -> list[Path]:
        """Draw the curves anew, and return their paths."""
        validations = self._log.validations
        measured = [(seen, v.loss) for seen, v in validations]
        curve = plots.loss_curve(self._log.progress, measured, held_out=loss.held_out)
        paths = [self._folder / "loss.png", self._folder / "loss_per_sigma.png"]
        plots.save_figure(curve, paths[0])
        shown = sorted({0, len(validations) // 4, len(validations) - 1})
        moments = {f"{validations[i][0]:,} images": validations[i][1] for i in shown}
        plots.save_figure(plots.loss_per_sigma(moments, self._objective), paths[1])
        return paths

    def on_snapshot(self, images: int, denoiser: Preconditioned) -> list[Path]:
        """Draw a grid, see the class; samples that are NaN or infinite are a warning, and training goes on."""
        try:
            return self._draw(images, denoiser)
        except FloatingPointError as error:
            warnings.warn(f"no samples at {images:,} images: {error}", RuntimeWarning, stacklevel=2)
            return []

    def _draw(self, images: int, denoiser: Preconditioned) -> list[Path]:
        """Draw the same seeds every time: a column a class or a condition of the data, or a square.

        With images as conditions a row has the condition, the sample of the data and samples of the model.
        """
        if denoiser.condition_shape is None:
            x, columns = self._of_classes(denoiser)
            known = None if self._data is None else self._data.class_names
            names = list(known or map(str, range(denoiser.num_classes)))
            named = len(names) == columns == denoiser.num_classes
            return self._write(images, x, columns, names if named else None)
        if self._data is not None:
            return self._write(images, *conditional_samples(self._guided(denoiser), self._data, self._sampler))
        if denoiser.condition_dropout:
            return self._write(images, self._sample(denoiser, range(GRID_ROWS**2), None), GRID_ROWS)
        return []

    def _of_classes(self, denoiser: Preconditioned) -> tuple[Tensor, int]:
        every = class_labels(range(denoiser.num_classes), None, denoiser.num_classes)
        columns = grid_columns(every) or GRID_ROWS
        seeds = range(columns * GRID_ROWS)
        guided = self._guided(denoiser) if denoiser.num_classes else denoiser
        return self._sample(guided, seeds, class_labels(seeds, None, denoiser.num_classes)), columns

    def _guided(self, denoiser: Preconditioned) -> Denoiser:
        return denoiser if self._guidance.is_one else ClassifierFree(denoiser, self._guidance)

    def _sample(self, denoiser: Denoiser, seeds: Sequence[int], condition: Condition) -> Tensor:
        batches = sample_batches(self._sampler, denoiser, seeds, condition=condition)
        return torch.cat([samples for _, samples in batches])

    def _write(self, images: int, x: Tensor, columns: int, names: Sequence[str] | None = None) -> list[Path]:
        self._folder.mkdir(parents=True, exist_ok=True)
        x = x if self._codec is None or not bool(x.isfinite().all()) else self._codec.decode(x)
        picture = self._folder / f"samples-{images:012d}.png"
        if x.ndim == 4 and (self._data is None or self._data.kind == "images" or self._codec is not None):
            grid = image_grid(x, columns, scale=max(1, 32 // x.shape[-1]))
            save_image(captioned(grid, names) if names else grid, picture)
            return [picture]
        write_array(picture.with_suffix(".npy"), x)
        if x.ndim in (3, 4, 5) and bool(x.isfinite().all()):
            plots.save_figure(plots.event_grid(x, columns), picture)
            return [picture]
        return [picture.with_suffix(".npy")]
