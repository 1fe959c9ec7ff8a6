"""Figures of a run that are renewed while it trains."""

from pathlib import Path

import torch

from openedm.data import save_image
from openedm.data.pictures import grid_columns, image_grid
from openedm.denoiser import Preconditioned
from openedm.ground.storage import write_array
from openedm.objective import Objective
from openedm.plots.losses import loss_curve, loss_per_sigma
from openedm.plots.style import save_figure
from openedm.sampling import Sampler, class_labels, sample_batches
from openedm.training import Observer, ValidationLoss
from openedm.training.records import RunLog

__all__ = ["RunFigures"]

GRID_ROWS = 8


class RunFigures(Observer):
    """figures/: loss.png and loss_per_sigma.png, renewed as the run goes on, and a grid of samples a snapshot."""

    def __init__(self, folder: Path, log: RunLog, objective: Objective, sampler: Sampler) -> None:
        self._folder, self._log, self._objective, self._sampler = folder, log, objective, sampler

    def on_validation(self, images: int, loss: ValidationLoss) -> None:
        """Draw the curves anew."""
        validations = self._log.validations
        curve = loss_curve(self._log.progress, [(seen, v.loss) for seen, v in validations])
        save_figure(curve, self._folder / "loss.png")
        shown = sorted({0, len(validations) // 4, len(validations) - 1})
        moments = {f"{validations[i][0]:,} images": validations[i][1] for i in shown}
        save_figure(loss_per_sigma(moments, self._objective), self._folder / "loss_per_sigma.png")

    def on_snapshot(self, images: int, denoiser: Preconditioned) -> None:
        """Draw the same seeds every time: a column a class, or a square."""
        self._folder.mkdir(parents=True, exist_ok=True)
        every = class_labels(range(denoiser.num_classes), None, denoiser.num_classes)
        columns = grid_columns(every) or GRID_ROWS
        seeds = range(columns * GRID_ROWS)
        labels = class_labels(seeds, None, denoiser.num_classes)
        batches = sample_batches(self._sampler, denoiser, seeds, condition=labels)
        x = torch.cat([samples for _, samples in batches])
        name = f"samples-{images:012d}"
        if len(x.shape) == 4 and x.shape[1] in (1, 3, 4):
            save_image(image_grid(x, columns, scale=max(1, 32 // x.shape[-1])), self._folder / f"{name}.png")
        else:
            write_array(self._folder / f"{name}.npy", x)
