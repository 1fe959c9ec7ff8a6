"""The picture of a suggestion: where the loss is reducible, and the noise levels that follow from it."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from openedm.plots.style import COLOURS, GREY, MARKERS, SHADE, format_sigma, number_log_ticks, plain
from openedm.suggest import Suggestion

REACH = 3.0
"""The suggested p(σ) is drawn up to so many standard deviations of ln σ from its mean."""


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
    figure = Figure(figsize=(6.8, 4.0), layout="constrained")
    axes = plain(figure.subplots())
    axes.set(xscale="log", xlabel="noise level σ (data units)", ylabel="loss λ(σ) E‖D − y‖²/n")
    _shade(axes, suggestion)
    axes.plot(sigmas, trivial, color=GREY, linestyle="--", label="trivial denoiser")
    axes.plot(sigmas, trivial - values, color=COLOURS[1], marker=MARKERS[1], markersize=3, label="best denoiser found")
    axes.plot(sigmas, values, color=COLOURS[0], marker=MARKERS[0], markersize=4, label="reducible: the difference")
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


def _shade(axes: Axes, suggestion: Suggestion) -> None:
    """p(σ), with the area of the reducible loss over ln σ."""
    curve = suggestion.reducible
    area = float(np.trapezoid(curve.values, np.log(curve.sigmas)))
    z = np.linspace(-REACH, REACH, 200)
    height = area / (suggestion.p_std * math.sqrt(2 * math.pi)) * np.exp(-(z**2) / 2)
    label = f"p(σ): $P_\\mathrm{{mean}}$ {suggestion.p_mean:.2f}, $P_\\mathrm{{std}}$ {suggestion.p_std:.2f}"
    axes.fill_between(np.exp(suggestion.p_mean + suggestion.p_std * z), height, color=SHADE, linewidth=0, label=label)
