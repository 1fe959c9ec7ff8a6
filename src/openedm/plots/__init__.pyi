# What `openedm.plots` offers, read by type checkers and, when a name is first used, by lazy_loader.
from .arrays import event_grid as event_grid
from .calibration import (
    calibration_plot as calibration_plot,
    predictive_histograms as predictive_histograms,
    predictive_plot as predictive_plot,
)
from .images import denoising_trajectory as denoising_trajectory, sample_grid as sample_grid
from .jumps import jumps as jumps
from .losses import loss_curve as loss_curve, loss_per_sigma as loss_per_sigma, reducible_loss as reducible_loss
from .posteriors import pair_plot as pair_plot, posterior_trajectories as posterior_trajectories
from .runs import RunFigures as RunFigures
from .sampling import (
    Run as Run,
    error_versus_nfe as error_versus_nfe,
    trajectories_1d as trajectories_1d,
    trajectories_2d as trajectories_2d,
)
from .style import save_figure as save_figure
