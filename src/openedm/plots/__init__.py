"""Figures: functions from numbers to matplotlib `Figure`s. They show nothing, write nothing, set nothing global."""

from openedm.plots.images import denoising_trajectory, sample_grid
from openedm.plots.losses import loss_curve, loss_per_sigma
from openedm.plots.style import save_figure

__all__ = [
    "denoising_trajectory",
    "loss_curve",
    "loss_per_sigma",
    "sample_grid",
    "save_figure",
]
