"""Pictures of training: the loss against the images seen, and against the noise level."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from openedm.objective import NoiseDistribution, Objective
from openedm.plots.style import COLOURS, MARKERS, SHADE, number_log_ticks, plain
from openedm.training import ValidationLoss

Rows = Sequence[tuple[int, float]]
"""Records (images seen, loss)."""


def loss_curve(progress: Rows, validation: Rows = ()) -> Figure:
    """The loss while training: each step faintly, their running average, and the validation loss.

    Args:
        progress: (images seen, loss of the batch), in order. Losses that are not finite (skipped steps) are left out.
        validation: (images seen, validation loss), in order.

    Raises:
        ValueError: neither has a finite loss.
    """
    steps, checked = _finite(progress), _finite(validation)
    if not steps and not checked:
        raise ValueError("progress or validation must hold at least one finite loss, got none")
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = plain(figure.subplots())
    if steps:
        thinned = steps[:: math.ceil(len(steps) / 2000)]
        axes.plot(*zip(*thinned, strict=True), color=COLOURS[0], alpha=0.25, linewidth=0.6)
        axes.plot(*zip(*running_average(steps), strict=True), color=COLOURS[0], label="training, running average")
    if checked:
        label = "validation, averaged weights"
        axes.plot(*zip(*checked, strict=True), color=COLOURS[1], marker=MARKERS[1], markersize=4, label=label)
    axes.set(xlabel="images seen", ylabel="weighted denoising loss", yscale="log")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    number_log_ticks(axes.yaxis)
    axes.legend(frameon=False)
    return figure


def running_average(rows: Rows, span: float = 0.02) -> list[tuple[int, float]]:
    """The mean of the losses around each row, over a `span` of the images that `rows` cover; it does not lag.

    >>> running_average([(0, 4.0), (10, 2.0), (20, 3.0)], span=1.0)
    [(0, 3.0), (10, 3.0), (20, 2.5)]
    """
    images, losses = np.array([i for i, _ in rows], dtype=float), np.array([loss for _, loss in rows])
    reach = span * (images[-1] - images[0]) / 2
    total = np.concatenate([[0.0], losses.cumsum()])
    first = np.searchsorted(images, images - reach, side="left")
    last = np.searchsorted(images, images + reach, side="right")
    return [
        (row[0], float(mean)) for row, mean in zip(rows, (total[last] - total[first]) / (last - first), strict=True)
    ]


def loss_per_sigma(validations: Mapping[str, ValidationLoss], objective: Objective | None = None) -> Figure:
    """The weighted loss λ(σ) ‖D − y‖²/n against σ, at one or several moments of training.

    1 is an untrained network under EDM's weighting. What remains after training is mostly what no denoiser can know:
    little at medium σ, nearly all of it at either end.

    Args:
        validations: a name and a measurement for each line.
        objective: shades its p(σ), where training looks; not to scale.

    Raises:
        ValueError: no measurements.
    """
    if not validations:
        raise ValueError("validations must hold at least one measurement, got none")
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = plain(figure.subplots())
    axes.set(xscale="log", xlabel="noise level σ (data units)", ylabel="loss λ(σ) E‖D − y‖²/n")
    for i, (label, found) in enumerate(validations.items()):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        axes.plot(found.sigmas, found.losses, color=colour, marker=marker, markersize=4, label=label)
    axes.set_ylim(bottom=0)
    number_log_ticks(axes.xaxis)
    if objective is not None:
        _shade(axes, objective.noise)
    axes.legend(frameon=False)
    return figure


def density_of_log_sigma(
    noise: NoiseDistribution, points: int = 200
) -> tuple[Float64[np.ndarray, "points"], Float64[np.ndarray, "points"]]:
    """σ and the density of ln σ there, over all but ½ % of p(σ) at either end: du/d ln F⁻¹(u), numerically.

    Args:
        noise: p(σ).
        points: how many levels, evenly spaced in ln σ.
    """
    u = torch.linspace(0.005, 0.995, 4001, dtype=torch.float64)
    log_sigma, first = np.unique(noise.quantile(u).log().numpy(), return_index=True)
    edges = np.linspace(log_sigma[0], log_sigma[-1], points + 1)
    cdf = np.interp(edges, log_sigma, u.numpy()[first])
    return np.exp((edges[1:] + edges[:-1]) / 2), np.diff(cdf) / np.diff(edges)


def _shade(axes: Axes, noise: NoiseDistribution) -> None:
    """p(σ) behind the lines, on a scale of its own that fills the lower half of the axes."""
    sigma, density = density_of_log_sigma(noise)
    bottom, top = axes.get_ylim()
    height = bottom + density / density.max() * (top - bottom) / 2
    axes.fill_between(sigma, bottom, height, color=SHADE, linewidth=0, zorder=0.5, label="p(σ) of training")


def _finite(rows: Rows) -> list[tuple[int, float]]:
    return [(images, loss) for images, loss in rows if math.isfinite(loss)]
