"""Figures: functions from numbers to matplotlib `Figure`s. They show nothing, write nothing, set nothing global."""

from openedm.plots.arrays import event_grid
from openedm.plots.calibration import calibration_plot, predictive_histograms, predictive_plot
from openedm.plots.images import denoising_trajectory, sample_grid
from openedm.plots.jumps import jumps
from openedm.plots.losses import loss_curve, loss_per_sigma, reducible_loss
from openedm.plots.posteriors import pair_plot, posterior_trajectories
from openedm.plots.runs import RunFigures
from openedm.plots.sampling import Run, error_versus_nfe, trajectories_1d, trajectories_2d
from openedm.plots.style import save_figure

__all__ = [
    "Run",
    "RunFigures",
    "calibration_plot",
    "denoising_trajectory",
    "error_versus_nfe",
    "event_grid",
    "jumps",
    "loss_curve",
    "loss_per_sigma",
    "pair_plot",
    "posterior_trajectories",
    "predictive_histograms",
    "predictive_plot",
    "reducible_loss",
    "sample_grid",
    "save_figure",
    "trajectories_1d",
    "trajectories_2d",
]
