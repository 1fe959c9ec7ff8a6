"""Figures of posteriors: pairs of parameters, and the paths of samples in σ."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from scipy.ndimage import gaussian_filter

from openedm.ground import checks
from openedm.plots.style import (
    COLOURS,
    Numbers,
    evenly,
    finite_array,
    names_or_thetas,
    number_log_ticks,
    on_white,
    plain,
)
from openedm.sampling import State

__all__ = ["credible_thresholds", "pair_plot", "posterior_trajectories", "smooth_histogram"]

Grid = Float64[np.ndarray, "bins bins"]

BINS = 80
WIDTHS = (0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Standard deviations, in bins, that a histogram may be smoothed with."""


def pair_plot(
    samples: Numbers | Mapping[str, Numbers],
    names: Sequence[str] | None = None,
    truth: Numbers | None = None,
    levels: Sequence[float] = (0.5, 0.9),
) -> Figure:
    """Marginals of each parameter on the diagonal, credible regions of each pair below it.

    A region is the smallest that holds its share of the samples, by a smoothed histogram.

    Args:
        samples: (n, d), n ≥ 2; or several sets with a label each.
        names: of the parameters.
        truth: (d,), marked by lines.
        levels: shares of the samples in the regions, between 0 and 1.

    Raises:
        ValueError: no samples, sets of different dimensions, values that are not finite, or lengths that do not fit.
    """
    given = samples if isinstance(samples, Mapping) else {"": samples}
    sets = {k: finite_array(f"samples[{k!r}]" if k else "samples", rows, 2) for k, rows in given.items()}
    if not sets:
        raise ValueError("samples must hold at least one set, got none")
    dims = {rows.shape[1] for rows in sets.values()}
    if len(dims) != 1 or min(len(rows) for rows in sets.values()) < 2:
        raise ValueError(f"samples must be (n >= 2, d) with one d, got {[rows.shape for rows in sets.values()]}")
    dim = dims.pop()
    labels, mark = names_or_thetas(names, dim), _truth(truth, dim)
    checks.at_least("the number of levels", len(levels), 1)
    for i, level in enumerate(levels):
        checks.between(f"levels[{i}]", level, 0.0, 1.0)
    ends = [_ends([rows[:, i] for rows in sets.values()], None if mark is None else mark[i]) for i in range(dim)]
    side = 1.9 if dim <= 4 else 1.35
    figure = Figure(figsize=(0.6 + side * dim, 0.5 + side * dim), layout="constrained")
    grid = figure.subplots(dim, dim, squeeze=False)
    for row in range(dim):
        for column in range(dim):
            axes = grid[row, column]
            if column > row:
                axes.set_visible(False)
                continue
            for rows, colour in zip(sets.values(), cycle(COLOURS), strict=False):
                if column == row:
                    _draw_marginal(axes, rows[:, row], ends[row], colour)
                else:
                    _draw_region(axes, rows[:, [column, row]], (ends[column], ends[row]), levels, colour)
            _finish_pair(axes, row, column, ends, mark, labels)
    _pair_legend(figure, grid, list(sets), mark is not None, levels)
    return figure


def posterior_trajectories(
    states: Sequence[State],
    names: Sequence[str] | None = None,
    truth: Numbers | None = None,
    *,
    sigma_data: float = 1.0,
    lines: int = 60,
) -> Figure:
    """θ(σ)/√(1 + σ²/σ_data²) of posterior samples against σ, from noise on the left to the posterior on the right.

    One panel for each parameter, and beside it the histogram of the final samples.

    Args:
        states: of one sampling run, in its order, with x (samples, d).
        names: of the parameters.
        truth: (d,), in the coordinates of the states, marked by a line.
        sigma_data: standard deviation of the parameters over the prior, in those coordinates.
        lines: how many samples are drawn, evenly chosen; ≥ 1.

    Raises:
        ValueError: fewer than two states, states of another shape, or lengths that do not fit.
    """
    checks.positive("sigma_data", sigma_data)
    checks.at_least("lines", lines, 1)
    checks.at_least("the number of states", len(states), 2)
    if states[0].x.ndim != 2:
        raise ValueError(f"states must hold samples (n, d), got {tuple(states[0].x.shape)}")
    dim = states[0].x.shape[1]
    labels, mark = names_or_thetas(names, dim), _truth(truth, dim)
    above = [s.sigma for s in states if s.sigma > 0]
    # The last step, to σ = 0, has no place on a logarithmic axis: it gets a third of a decade.
    places = [s.sigma if s.sigma > 0 else min(above) / 2 for s in states]
    scaled = [s.x.double().cpu() / (s.scale * math.hypot(1, s.sigma / sigma_data)) for s in states]
    paths = torch.stack(scaled).numpy()
    drawn = evenly(paths.shape[1], lines)
    columns = min(dim, 3)
    rows = -(-dim // columns)
    figure = Figure(figsize=(0.5 + 2.9 * columns, 0.4 + 2.1 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for i, axes in enumerate(grid.flat):
        if i >= dim:
            axes.set_visible(False)
            continue
        axes.plot(places, paths[:, drawn, i], color=COLOURS[0], linewidth=0.6, alpha=0.45)
        if mark is not None:
            axes.axhline(mark[i], color=COLOURS[1], linewidth=1.2, zorder=3)
        plain(axes).set(xscale="log", xlim=(max(places), min(places)), title=labels[i])
        axes.title.set_fontsize(10)
        number_log_ticks(axes.xaxis)
        axes.tick_params(labelsize=8)
        _draw_beside(axes, paths[-1, :, i])
        if i + columns >= dim:
            axes.set_xlabel("noise level σ", fontsize=9)
    if mark is not None:
        figure.legend(
            [Line2D([], [], color=COLOURS[1])], ["truth"], loc="outside upper right", frameon=False, fontsize=9
        )
    figure.supylabel(r"$\theta \,/\, \sqrt{1 + \sigma^2/\sigma_\mathrm{data}^2}$", fontsize=10)
    return figure


def credible_thresholds(mass: Grid, levels: Sequence[float]) -> list[float]:
    """The densities above which the smallest regions with these shares of the mass lie, in the order of `levels`.

    >>> credible_thresholds(np.array([[0.5, 0.3], [0.15, 0.05]]), [0.5, 0.9])
    [0.5, 0.15]
    """
    ordered = np.sort(mass.ravel())[::-1]
    held = np.cumsum(ordered) / ordered.sum()
    last = len(ordered) - 1
    return [float(ordered[min(int(np.searchsorted(held, level - 1e-12)), last)]) for level in levels]


def smooth_histogram(
    points: Float64[np.ndarray, "n d"], ends: Sequence[tuple[float, float]]
) -> tuple[Float64[np.ndarray, "..."], Sequence[Float64[np.ndarray, "edges"]]]:
    """The shares of the points in 80 bins along each coordinate, smoothed, and the bins' edges.

    By the Gaussian of `WIDTHS` under which one half of the points makes the other half most likely: narrow where there
    is detail or many points, wide where there is neither.

    Args:
        points: (n, d), n ≥ 2.
        ends: of the histogram along each coordinate.
    """
    halves = [np.histogramdd(half, BINS, ends) for half in (points[::2], points[1::2])]
    (first, edges), (second, _) = halves

    def fit(width: float) -> float:
        smoothed = [gaussian_filter(half, width) + 1e-6 for half in (first, second)]
        return float((second * np.log(smoothed[0])).sum() + (first * np.log(smoothed[1])).sum())

    return gaussian_filter(first + second, max(WIDTHS, key=fit)) / len(points), edges


def _truth(truth: Numbers | None, dim: int) -> Float64[np.ndarray, "dim"] | None:
    mark = None if truth is None else finite_array("truth", truth, 1)
    if mark is not None and len(mark) != dim:
        raise ValueError(f"truth must be {dim} values, got {len(mark)}")
    return mark


def _draw_marginal(axes: Axes, values: Float64[np.ndarray, "n"], ends: tuple[float, float], colour: str) -> None:
    mass, (edges,) = smooth_histogram(values[:, None], [ends])
    height, centres = mass / (edges[1] - edges[0]), (edges[1:] + edges[:-1]) / 2
    axes.fill_between(centres, height, color=colour, alpha=0.2, linewidth=0)
    axes.plot(centres, height, color=colour, linewidth=1.4)


def _draw_region(
    axes: Axes,
    points: Float64[np.ndarray, "n 2"],
    ends: tuple[tuple[float, float], tuple[float, float]],
    levels: Sequence[float],
    colour: str,
) -> None:
    mass, (x_edges, y_edges) = smooth_histogram(points, ends)
    mass = mass.T
    thresholds = sorted({t for t in credible_thresholds(mass, levels) if t < mass.max()})
    if not thresholds:
        return
    x, y = (x_edges[1:] + x_edges[:-1]) / 2, (y_edges[1:] + y_edges[:-1]) / 2
    shades = [to_rgba(colour, 0.15 + 0.35 * i / len(thresholds)) for i in range(len(thresholds))]
    axes.contourf(x, y, mass, [*thresholds, mass.max()], colors=shades)
    axes.contour(x, y, mass, thresholds, colors=colour, linewidths=0.9)


def _finish_pair(
    axes: Axes,
    row: int,
    column: int,
    ends: Sequence[tuple[float, float]],
    truth: Float64[np.ndarray, "d"] | None,
    names: Sequence[str],
) -> None:
    dim = len(ends)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(*ends[column])
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.tick_params(labelsize=8, labelbottom=row == dim - 1, labelleft=column == 0 and row > 0)
    if truth is not None:
        axes.axvline(truth[column], color="black", linewidth=0.9, linestyle=(0, (4, 2)))
    if row == column:
        axes.set(yticks=[])
        axes.set_ylim(bottom=0)
        axes.spines["left"].set_visible(False)
    else:
        axes.set_ylim(*ends[row])
        axes.yaxis.set_major_locator(MaxNLocator(3))
        if truth is not None:
            axes.axhline(truth[row], color="black", linewidth=0.9, linestyle=(0, (4, 2)))
            axes.plot(truth[column], truth[row], "s", color="black", markersize=3.5)
    if row == dim - 1:
        axes.set_xlabel(names[column], fontsize=10)
    if column == 0 and row > 0:
        axes.set_ylabel(names[row], fontsize=10)


def _pair_legend(figure: Figure, grid: np.ndarray, labels: list[str], truth: bool, levels: Sequence[float]) -> None:
    shown = [(k, Line2D([], [], color=c, linewidth=3)) for k, c in zip(labels, cycle(COLOURS), strict=False) if k]
    if truth:
        shown.append(("truth", Line2D([], [], color="black", linewidth=0.9, linestyle=(0, (4, 2)))))
    title = "regions of " + ", ".join(f"{level:.0%}" for level in sorted(levels)) if len(grid) > 1 else None
    if shown or title:
        where: Any = "upper right" if len(grid) > 1 else "outside upper right"
        texts, handles = [k for k, _ in shown], [handle for _, handle in shown]
        figure.legend(handles, texts, loc=where, frameon=False, fontsize=9, title=title or "", title_fontsize=9)


def _draw_beside(axes: Axes, values: Float64[np.ndarray, "n"]) -> None:
    """The histogram of final values, on an axis of its own to the right of the panel."""
    beside = axes.inset_axes((1.02, 0, 0.16, 1), sharey=axes)
    beside.hist(values, 40, orientation="horizontal", color=on_white(COLOURS[0], 0.6))
    beside.set_axis_off()


def _ends(values: Sequence[Float64[np.ndarray, "_"]], truth: float | None) -> tuple[float, float]:
    """Where a parameter is shown: all but 0.1 % of the samples of each set at either end, and the truth."""
    inner = [np.quantile(v, [0.001, 0.999]) for v in values] + ([] if truth is None else [np.array([truth, truth])])
    low, high = min(ends[0] for ends in inner), max(ends[1] for ends in inner)
    margin = 0.08 * (high - low) or 0.5
    return float(low - margin), float(high + margin)
