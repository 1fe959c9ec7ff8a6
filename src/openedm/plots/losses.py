"""Figures of losses: against the images seen, against the noise level, and the part of it that can be reduced."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from openedm.objective import NoiseDistribution, Objective
from openedm.plots.style import COLOURS, GREY, SHADE, balanced, format_sigma, line_style, number_log_ticks, plain
from openedm.suggest import Suggestion
from openedm.training import ValidationLoss

__all__ = ["density_of_log_sigma", "loss_curve", "loss_per_sigma", "reducible_loss", "running_average"]

Rows = Sequence[tuple[int, float]]
"""Records (images seen, loss)."""

DENSITY = "density of ln σ in training\n(height not to scale)"

REACH = 3.0
"""A suggested p(σ) is drawn up to so many standard deviations of ln σ from its mean."""


def loss_curve(progress: Rows, validation: Rows = (), *, held_out: bool = True) -> Figure:
    """The loss while training: each step faintly, their running average, and the validation loss.

    Args:
        progress: (images seen, loss of the batch), in order. Losses that are not finite (skipped steps) are left out.
        validation: (images seen, validation loss), in order.
        held_out: whether that is a loss on validation data, not on the training data.

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
        label = f"{'validation' if held_out else 'training data'}, averaged weights"
        axes.plot(*zip(*checked, strict=True), **line_style(1), label=label)
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
        objective: its p(σ) is shaded, not to scale; None shades nothing.

    Raises:
        ValueError: no measurements.
    """
    if not validations:
        raise ValueError("validations must hold at least one measurement, got none")
    figure, axes = _against_sigma((6.4, 4.2))
    for i, (label, found) in enumerate(validations.items()):
        axes.plot(*zip(*found.curve, strict=True), **line_style(i), label=label)
    axes.set_ylim(bottom=0)
    number_log_ticks(axes.xaxis)
    if objective is not None:
        _shade(axes, objective.noise)
    names = axes.get_legend_handles_labels()[1]
    figure.legend(frameon=False, loc="outside lower center", ncols=balanced(len(names), 3))
    return figure


def reducible_loss(suggestion: Suggestion) -> Figure:
    """The reducible loss at each σ over the suggested p(σ), with σ_min, σ_max and σ_data marked.

    The lines are losses λ(σ) E‖D − y‖²/n on held-out samples: of the trivial denoiser, of the best that were tried, and
    their difference, with a band of two standard errors. p(σ) is drawn as the density of ln σ whose area is that of the
    reducible loss.

    Args:
        suggestion: what `suggest` found.
    """
    curve = suggestion.reducible
    sigmas, values, trivial = (np.array(v) for v in (curve.sigmas, curve.values, curve.trivial))
    errors = 2 * np.array(curve.errors)
    figure, axes = _against_sigma((6.8, 4.0))
    _shade_suggested(axes, suggestion)
    axes.plot(sigmas, trivial, color=GREY, linestyle="--", label="trivial denoiser")
    axes.plot(sigmas, trivial - values, **line_style(1) | {"markersize": 3}, label="best denoiser found")
    axes.plot(sigmas, values, **line_style(0), label="reducible: the difference")
    axes.fill_between(sigmas, values - errors, values + errors, color=COLOURS[0], alpha=0.2, linewidth=0)
    top = 1.12 * float(trivial.max())
    for name, sigma in (("min", suggestion.sigma_min), ("data", suggestion.sigma_data), ("max", suggestion.sigma_max)):
        axes.axvline(sigma, color=GREY, linewidth=0.8, linestyle=":" if name == "data" else "-")
        text = f"$σ_\\mathrm{{{name}}}$ {format_sigma(sigma)}"
        axes.text(sigma, top, text, fontsize=8, color=GREY, ha="center", va="bottom")
    axes.set_ylim(0, top)
    number_log_ticks(axes.xaxis)
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    return figure


def _shade_suggested(axes: Axes, suggestion: Suggestion) -> None:
    """p(σ), with the area of the reducible loss over ln σ."""
    curve = suggestion.reducible
    area = float(np.trapezoid(curve.values, np.log(curve.sigmas)))
    z = np.linspace(-REACH, REACH, 200)
    height = area / (suggestion.p_std * math.sqrt(2 * math.pi)) * np.exp(-(z**2) / 2)
    numbers = f"$P_\\mathrm{{mean}}$ {suggestion.p_mean:.2f}, $P_\\mathrm{{std}}$ {suggestion.p_std:.2f}"
    label = f"p(σ): {numbers} (height not to scale)"
    axes.fill_between(np.exp(suggestion.p_mean + suggestion.p_std * z), height, color=SHADE, linewidth=0, label=label)


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


def _against_sigma(size: tuple[float, float]) -> tuple[Figure, Axes]:
    """An empty figure of losses against σ."""
    figure = Figure(figsize=size, layout="constrained")
    axes = plain(figure.subplots())
    axes.set(xscale="log", xlabel="noise level σ (data units)", ylabel="loss λ(σ) E‖D − y‖²/n")
    return figure, axes


def _shade(axes: Axes, noise: NoiseDistribution) -> None:
    """p(σ) behind the lines, on a scale of its own that fills the lower half of the axes."""
    sigma, density = density_of_log_sigma(noise)
    bottom, top = axes.get_ylim()
    height = bottom + density / density.max() * (top - bottom) / 2
    axes.fill_between(sigma, bottom, height, color=SHADE, linewidth=0, zorder=0.5, label=DENSITY)


def _finite(rows: Rows) -> list[tuple[int, float]]:
    return [(images, loss) for images, loss in rows if math.isfinite(loss)]
