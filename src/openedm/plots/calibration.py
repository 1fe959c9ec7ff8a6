"""Figures of how far posteriors can be trusted: calibration over simulations, predictions beside an observation."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from scipy.stats import binom

from openedm.ground import checks
from openedm.plots.style import (
    COLOURS,
    GREY,
    SHADE,
    Numbers,
    balanced,
    finite_array,
    line_style,
    names_or_thetas,
    number_log_ticks,
    on_white,
    plain,
)

__all__ = ["calibration_plot", "predictive_histograms", "predictive_plot", "uniform_band"]

BANDS = (0.5, 0.8, 0.95)
POINTS = 100


def calibration_plot(
    sbc: Numbers,
    tarp: Numbers,
    density: Numbers | None = None,
    *,
    names: Sequence[str] | None = None,
    level: float = 0.95,
) -> Figure:
    """Three tests of a posterior over simulations: SBC ranks, expected coverage, TARP.

    Each line is the distribution function of numbers that are uniform for a correct posterior; the first panel shows
    it less the diagonal. The grey band holds the whole of such a line with probability `level`.

    Args:
        sbc: ranks of the true parameters divided by their number, in [0, 1], (simulations, d).
        tarp: credibilities of TARP, in [0, 1], (simulations,).
        density: credibilities of highest-density regions, likewise; None shows those of central intervals of each
            parameter, |2u − 1|, instead.
        names: of the parameters.
        level: of the bands, between 0 and 1.

    Raises:
        ValueError: values outside [0, 1], or lengths that do not fit.
    """
    ranks, balls = _unit("sbc", sbc, 2), _unit("tarp", tarp, 1)
    regions = None if density is None else _unit("density", density, 1)
    if len(balls) != len(ranks) or (regions is not None and len(regions) != len(ranks)):
        raise ValueError(f"sbc, tarp and density must have one length, got {len(ranks)} and {len(balls)}")
    checks.between("level", level, 0.5, 0.9999)
    labels = names_or_thetas(names, ranks.shape[1])
    alpha = np.linspace(0, 1, POINTS + 1)
    low, high = uniform_band(len(ranks), level, alpha)
    figure = Figure(figsize=(10.2, 3.5), layout="constrained")
    difference, coverage, tarp_axes = (plain(axes) for axes in figure.subplots(1, 3))
    band = f"{level:.0%} of right posteriors"
    difference.fill_between(alpha, low - alpha, high - alpha, color=SHADE, linewidth=0, label=band)
    for axes in (coverage, tarp_axes):
        axes.fill_between(alpha, low, high, color=SHADE, linewidth=0)
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="credibility α", ylabel="coverage")
    difference.axhline(0, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    for i, label in enumerate(labels):
        style = {**line_style(i), "marker": "none", "linewidth": 1.4}
        difference.plot(alpha, _cdf(ranks[:, i], alpha) - alpha, **style, label=label)
        if regions is None:
            coverage.plot(alpha, _cdf(np.abs(2 * ranks[:, i] - 1), alpha), **style)
    if regions is not None:
        coverage.plot(alpha, _cdf(regions, alpha), color=COLOURS[0], linewidth=1.6)
    tarp_axes.plot(alpha, _cdf(balls, alpha), color=COLOURS[0], linewidth=1.6)
    difference.set(xlim=(0, 1), xlabel="rank of the truth among samples", ylabel="distribution of ranks − diagonal")
    titles = ("SBC ranks", "central intervals" if regions is None else "highest-density regions", "TARP")
    for axes, title in zip((difference, coverage, tarp_axes), titles, strict=True):
        axes.set_title(title, fontsize=11)
    for axes in (coverage, tarp_axes):
        axes.text(0.04, 0.96, "too wide", ha="left", va="top", fontsize=8, color=GREY, transform=axes.transAxes)
        axes.text(0.96, 0.04, "too narrow", ha="right", va="bottom", fontsize=8, color=GREY, transform=axes.transAxes)
    figure.legend(loc="outside lower center", ncols=min(len(labels) + 1, 6), frameon=False, fontsize=9)
    return figure


def predictive_plot(
    observed: Numbers,
    draws: Numbers,
    t: Numbers,
    *,
    names: Sequence[str] | None = None,
    time_label: str = "time",
    scale: Literal["linear", "log"] = "linear",
) -> Figure:
    """An observed series over data simulated from posterior samples: median, and bands of 50, 80 and 95 % of them.

    Args:
        observed: (times,), or (series, times): one panel each, three in a row.
        draws: (n, times) or (n, series, times).
        t: (times,).
        names: of the series.
        time_label: of the horizontal axis.
        scale: of the vertical axis.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, or a scale that is neither.
    """
    checks.one_of("scale", scale, ("linear", "log"))
    times = finite_array("t", t, 1)
    seen = np.atleast_2d(np.asarray(torch.as_tensor(observed).double().cpu()))
    many = np.asarray(torch.as_tensor(draws).double().cpu())
    many = many[:, None] if many.ndim == 2 else many
    if seen.shape[1] != len(times) or many.shape[1:] != seen.shape or len(many) == 0:
        raise ValueError(
            f"observed and draws must be (series, {len(times)}) and (n, series, {len(times)}), got {seen.shape} and "
            f"{many.shape}"
        )
    if not (np.isfinite(seen).all() and np.isfinite(many).all()):
        raise ValueError("observed and draws must be finite")
    labels = names_or_thetas(names, len(seen)) if names is not None or len(seen) > 1 else [""]
    columns = balanced(len(seen), 3)
    rows = -(-len(seen) // columns)
    figure = Figure(figsize=(0.8 + 4.6 * columns, 0.4 + 3.2 * rows), layout="constrained")
    for i, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        if i >= len(seen):
            axes.set_visible(False)
            continue
        for share, opacity in zip(sorted(BANDS, reverse=True), (0.18, 0.3, 0.45), strict=True):
            ends = np.quantile(many[:, i], [(1 - share) / 2, (1 + share) / 2], axis=0)
            colour = on_white(COLOURS[0], opacity)
            axes.fill_between(times, *ends, color=colour, linewidth=0, label=f"{share:.0%} of draws")
        axes.plot(times, np.median(many[:, i], 0), color=COLOURS[0], linewidth=1.4, label="median")
        axes.plot(times, seen[i], "o", color="black", markersize=4, label="observed", zorder=4)
        plain(axes).set(xlabel=time_label, ylabel=labels[i] or "observed and simulated", yscale=scale)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=bool((times % 1 == 0).all())))
        if scale == "log":
            number_log_ticks(axes.yaxis)
    handles, texts = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, texts, loc="outside lower center", ncols=3 if len(seen) == 1 else 5, frameon=False, fontsize=8
    )
    return figure


def predictive_histograms(observed: Numbers, draws: Numbers, *, names: Sequence[str] | None = None) -> Figure:
    """Observed numbers over the distribution of each in data simulated from posterior samples, with its p-value.

    The p-value is two-sided: twice the share of draws on the smaller side of the observed number, ties counted half.

    Args:
        observed: (numbers,).
        draws: (n, numbers), n ≥ 2.
        names: of the numbers; None means x[0], x[1], ….

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.
    """
    seen, many = finite_array("observed", observed, 1), finite_array("draws", draws, 2)
    if many.shape[1] != len(seen) or len(many) < 2:
        raise ValueError(f"draws must be (n >= 2, {len(seen)}), got {many.shape}")
    labels = names_or_thetas(names if names is not None else [f"x[{i}]" for i in range(len(seen))], len(seen))
    columns = balanced(len(seen), 5)
    rows = -(-len(seen) // columns)
    figure = Figure(figsize=(0.4 + 2.1 * columns, 0.5 + 1.8 * rows), layout="constrained")
    for i, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        if i >= len(seen):
            axes.set_visible(False)
            continue
        values = many[:, i]
        inner = [*np.quantile(values, [0.001, 0.999]), seen[i]]
        margin = 0.05 * (max(inner) - min(inner)) or 0.5
        ends = min(inner) - margin, max(inner) + margin
        axes.hist(values, 40, range=ends, density=True, color=on_white(COLOURS[0], 0.35))
        axes.axvline(seen[i], color="black", linewidth=1.2)
        axes.set(yticks=[], xlim=ends, xlabel=labels[i])
        if i % columns == 0:
            axes.set_ylabel("density", fontsize=9)
        axes.spines[["left", "top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.tick_params(labelsize=8)
        below = float((values < seen[i]).mean() + (values == seen[i]).mean() / 2)
        axes.set_title(f"p = {2 * min(below, 1 - below):.2g}", fontsize=9)
    handles = [Line2D([], [], color="black", linewidth=1.2), Patch(color=on_white(COLOURS[0], 0.35))]
    texts = ["observed", "simulated from posterior samples"]
    figure.legend(handles, texts, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def uniform_band(
    count: int, level: float, at: Float64[np.ndarray, "points"], *, simulations: int = 1000
) -> tuple[Float64[np.ndarray, "points"], Float64[np.ndarray, "points"]]:
    """Ends of a band that holds the distribution function of `count` uniform numbers at all places with chance `level`.

    At each place it is a binomial interval; the level of those is the one that 1000 simulated sets need (Säilynoja,
    Bürkner & Vehtari 2022, eq. 11).

    Args:
        count: ≥ 1.
        level: between 0 and 1.
        at: places in [0, 1].
        simulations: how many sets.
    """
    sets = np.sort(np.random.default_rng(0).random((simulations, count)), axis=1)
    inner = at[(at > 0) & (at < 1)]
    below = np.stack([np.searchsorted(row, inner, side="right") for row in sets])
    tails = np.minimum(binom.cdf(below, count, inner), binom.sf(below - 1, count, inner))
    pointwise = np.quantile(tails.min(1), 1 - level)
    low, high = binom.ppf(pointwise, count, at), binom.isf(pointwise, count, at)
    return np.asarray(low) / count, np.asarray(high) / count


def _cdf(values: Float64[np.ndarray, "n"], at: Float64[np.ndarray, "points"]) -> Float64[np.ndarray, "points"]:
    return np.searchsorted(np.sort(values), at, side="right") / len(values)


def _unit(name: str, values: Numbers, dimensions: int) -> Float64[np.ndarray, "..."]:
    array = finite_array(name, values, dimensions)
    if array.min() < 0 or array.max() > 1:
        raise ValueError(f"{name} must lie in [0, 1], got {array.min():.3g} to {array.max():.3g}")
    return array
