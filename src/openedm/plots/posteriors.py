"""Figures of posteriors: pairs of parameters, and the paths of samples in σ."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from openedm.ground import checks
from openedm.plots.histograms import credible_thresholds, smooth_histogram
from openedm.plots.style import (
    COLOURS,
    GREY,
    Numbers,
    balanced,
    dashes,
    evenly,
    finite_array,
    names_or_thetas,
    number_log_ticks,
    on_white,
    plain,
)
from openedm.sampling import State

__all__ = ["pair_plot", "posterior_trajectories"]

MOST_NUMBERED = 3
"""Sets whose numbers stand above the panels."""
WIDER = 3.0
"""How far beyond a panel the prior's samples are counted, in widths of the panel."""
TRUTH: dict[str, Any] = {"color": "black", "linewidth": 0.9, "linestyle": (0, (4, 2))}
PRIOR: dict[str, Any] = {"color": GREY, "linewidth": 1.1, "linestyle": (0, (1.5, 1))}


def pair_plot(
    samples: Numbers | Mapping[str, Numbers],
    names: Sequence[str] | None = None,
    truth: Numbers | None = None,
    levels: Sequence[float] = (0.5, 0.9),
    *,
    prior: Numbers | None = None,
    numbers: Literal["median", "mean"] | None = "median",
) -> Figure:
    """Marginals of each parameter on the diagonal, credible regions of each pair below it.

    A region is the smallest that holds its share of the samples, by a smoothed histogram. A parameter is shown where
    its samples and its truth lie, not over all of the prior.

    Args:
        samples: (n, d), n ≥ 2; or several sets with a label each.
        names: of the parameters.
        truth: (d,), marked by lines.
        levels: shares of the samples in the regions, between 0 and 1.
        prior: samples of the prior (n, d), n ≥ 2, whose density is a dashed curve on the diagonal; ten times as many as
            of the posterior make a smooth one.
        numbers: what stands above each marginal, a line for each of at most three sets: the median and the central
            interval of 95 % ("median"), or mean ± standard deviation ("mean"); None for nothing.

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
    labels, mark, before = names_or_thetas(names, dim), _truth(truth, dim), _prior(prior, dim)
    checks.one_of("numbers", numbers, ("median", "mean", None))
    checks.at_least("the number of levels", len(levels), 1)
    for i, level in enumerate(levels):
        checks.between(f"levels[{i}]", level, 0.0, 1.0)
    bounds = [None if before is None else (before[:, i].min(), before[:, i].max()) for i in range(dim)]
    ends = [
        _ends([rows[:, i] for rows in sets.values()], None if mark is None else mark[i], bounds[i]) for i in range(dim)
    ]
    side = 3.0 if dim == 1 else 1.9 if dim <= 4 else 1.35
    key = 2.0 if dim == 1 else 0.0  # beside the only panel; else there is room above the diagonal
    figure = Figure(figsize=(0.6 + key + side * dim, 0.5 + side * dim), layout="constrained")
    grid = figure.subplots(dim, dim, squeeze=False)
    for row in range(dim):
        for column in range(dim):
            axes = grid[row, column]
            if column > row:
                axes.set_visible(False)
                continue
            for i, (rows, colour) in enumerate(zip(sets.values(), cycle(COLOURS), strict=False)):
                if column == row:
                    _draw_marginal(axes, rows[:, row], ends[row], colour, dashes(i))
                else:
                    _draw_region(axes, rows[:, [column, row]], (ends[column], ends[row]), levels, colour, dashes(i))
            if column == row:
                if before is not None:
                    _draw_prior(axes, before[:, row], ends[row])
                # The names beside and below many panels are far away.
                above = [(labels[row], "black")] if dim > 4 else []
                if numbers is not None and len(sets) <= MOST_NUMBERED:
                    shades = COLOURS if len(sets) > 1 else ["black"]
                    rows_of_sets = zip(sets.values(), shades, strict=False)
                    above += [(_numbers(rows[:, row], numbers), shade) for rows, shade in rows_of_sets]
                _write_above(axes, above, dim)
            _finish_pair(axes, row, column, ends, mark, labels)
    _pair_legend(figure, dim, list(sets), mark is not None, levels, before is not None, numbers)
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
    columns = balanced(dim, 3)
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
        plain(axes).set(xscale="log", xlim=(max(places), min(places)))
        axes.set_ylabel(labels[i], fontsize=_name_size(labels[i], 4))
        number_log_ticks(axes.xaxis)
        axes.tick_params(labelsize=8)
        _draw_beside(axes, paths[-1, :, i])
        axes.set_xlabel("noise level σ", fontsize=9)
    if mark is not None:
        figure.legend(
            [Line2D([], [], color=COLOURS[1])], ["truth"], loc="outside upper right", frameon=False, fontsize=9
        )
    figure.supylabel(r"each parameter, over $\sqrt{1 + \sigma^2/\sigma_\mathrm{data}^2}$", fontsize=10)
    return figure


def _truth(truth: Numbers | None, dim: int) -> Float64[np.ndarray, "dim"] | None:
    mark = None if truth is None else finite_array("truth", truth, 1)
    if mark is not None and len(mark) != dim:
        raise ValueError(f"truth must be {dim} values, got {len(mark)}")
    return mark


def _prior(prior: Numbers | None, dim: int) -> Float64[np.ndarray, "n dim"] | None:
    rows = None if prior is None else finite_array("prior", prior, 2)
    if rows is not None and (rows.shape[1] != dim or len(rows) < 2):
        raise ValueError(f"prior must be samples (n >= 2, {dim}), got {rows.shape}")
    return rows


def _draw_prior(axes: Axes, values: Float64[np.ndarray, "n"], ends: tuple[float, float]) -> None:
    """The density of the prior where a parameter is shown; there may be few of its samples, so more room is counted."""
    low, high = float(values.min()), float(values.max())
    room = WIDER * (ends[1] - ends[0])
    inner = max(low, ends[0] - room), min(high, ends[1] + room)
    if inner[0] >= inner[1]:  # constant, or nowhere near
        return
    x, y = _density(values, inner)
    # Down to 0 at the ends of the prior.
    x, y = ([inner[0], *x], [0.0, *y]) if inner[0] == low else (x, y)
    x, y = ([*x, inner[1]], [*y, 0.0]) if inner[1] == high else (x, y)
    axes.plot(x, y, **PRIOR)


def _density(values: Float64[np.ndarray, "n"], ends: tuple[float, float]) -> tuple[list[float], list[float]]:
    """Places from one end to the other, and the density there."""
    mass, (edges,) = smooth_histogram(values[:, None], [ends])
    height, centres = mass / (edges[1] - edges[0]), (edges[1:] + edges[:-1]) / 2
    return [edges[0], *centres, edges[-1]], [height[0], *height, height[-1]]


def _write_above(axes: Axes, lines: Sequence[tuple[str, str]], dim: int) -> None:
    """Texts and their colours above a panel, the first at the top."""
    size = 9 if dim <= 4 else 7
    for i, (text, colour) in enumerate(reversed(lines)):
        place: dict[str, Any] = {
            "xycoords": "axes fraction",
            "textcoords": "offset points",
            "ha": "center",
            "va": "bottom",
        }
        font = _name_size(text, dim, size) if i == len(lines) - 1 and dim > 4 else size
        axes.annotate(text, (0.5, 1.0), (0, 3 + 1.25 * size * i), fontsize=font, color=colour, **place)


def _numbers(values: Float64[np.ndarray, "n"], kind: Literal["median", "mean"]) -> str:
    """The numbers of one parameter, to two digits of its width.

    >>> _numbers(np.linspace(-1.0, 2.0, 1001), "median"), _numbers(np.array([12345.0, 12347.0]), "mean")
    ('0.50 [−0.93, 1.93]', '12346.0 ± 1.4')
    """
    if kind == "median":
        low, centre, high = np.quantile(values, [0.025, 0.5, 0.975])
        shown, width, form = [centre, low, high], (high - low) / 4, "{} [{}, {}]"
    else:
        shown, width, form = [values.mean(), values.std(ddof=1)], values.std(ddof=1), "{} ± {}"
    largest = max(abs(float(value)) for value in shown)
    power = math.floor(math.log10(largest)) if largest > 0 else 0
    factored = power < -2 or power > 4
    scale = 10.0**power if factored else 1.0
    digits = max(0, min(6, 1 - math.floor(math.log10(width / scale)))) if width > 0 else 3
    text = form.format(*(f"{value / scale:z.{digits}f}".replace("-", "−") for value in shown))
    return rf"{text} $\times10^{{{power}}}$" if factored else text


def _draw_marginal(
    axes: Axes, values: Float64[np.ndarray, "n"], ends: tuple[float, float], colour: str, style: Any
) -> None:
    x, y = _density(values, ends)
    axes.fill_between(x, y, color=colour, alpha=0.2, linewidth=0)
    axes.plot(x, y, color=colour, linewidth=1.4, linestyle=style)


def _draw_region(
    axes: Axes,
    points: Float64[np.ndarray, "n 2"],
    ends: tuple[tuple[float, float], tuple[float, float]],
    levels: Sequence[float],
    colour: str,
    style: Any,
) -> None:
    mass, (x_edges, y_edges) = smooth_histogram(points, ends)
    mass = mass.T
    thresholds = sorted({t for t in credible_thresholds(mass, levels) if t < mass.max()})
    if not thresholds:
        return
    x, y = (x_edges[1:] + x_edges[:-1]) / 2, (y_edges[1:] + y_edges[:-1]) / 2
    axes.contourf(x, y, mass, [*thresholds, mass.max()], colors=_shades(colour, len(thresholds)))
    axes.contour(x, y, mass, thresholds, colors=colour, linewidths=0.9, linestyles=[style])


def _shades(colour: str, count: int) -> list[tuple[float, float, float, float]]:
    """The colours of regions, the largest first."""
    return [to_rgba(colour, 0.15 + 0.35 * i / count) for i in range(count)]


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
    axes.set_xlim(*_slightly_wider(ends[column]))
    axes.tick_params(labelsize=8 if dim <= 4 else 7, labelbottom=row == dim - 1, labelleft=column == 0 and row > 0)
    _few_ticks(axes.xaxis, dim)
    if truth is not None:
        axes.axvline(truth[column], **TRUTH)
    if row == column:
        axes.set(yticks=[])
        axes.set_ylim(bottom=0)
        if row == 0:
            axes.set_ylabel("density", fontsize=_name_size("density", dim), color=GREY)
        axes.spines["left"].set_visible(False)
    else:
        axes.set_ylim(*_slightly_wider(ends[row]))
        _few_ticks(axes.yaxis, dim)
        if truth is not None:
            axes.axhline(truth[row], **TRUTH)
            axes.plot(truth[column], truth[row], "s", color="black", markersize=3.5)
    if row == dim - 1:
        axes.set_xlabel(names[column], fontsize=_name_size(names[column], dim))
    if column == 0 and row > 0:
        axes.set_ylabel(names[row], fontsize=_name_size(names[row], dim))


def _slightly_wider(ends: tuple[float, float]) -> tuple[float, float]:
    """Ends of an axis on which what lies on the ends of the data is seen."""
    margin = 0.01 * (ends[1] - ends[0])
    return ends[0] - margin, ends[1] + margin


def _few_ticks(axis: Axis, dim: int) -> None:
    """At most three ticks; powers of ten stand at the end of the axis."""
    axis.set_major_locator(MaxNLocator(3 if dim <= 4 else 2))
    form = ScalarFormatter(useMathText=True)
    form.set_powerlimits((-2, 4))
    axis.set_major_formatter(form)
    axis.get_offset_text().set_fontsize(7)


def _name_size(name: str, dim: int, size: float = 10.0) -> float:
    """The font of a parameter's name, smaller where it is long."""
    return max(6.0, min(size, 10.0 * (22 if dim <= 4 else 15) / max(1, len(name))))


def _pair_legend(
    figure: Figure,
    dim: int,
    labels: list[str],
    truth: bool,
    levels: Sequence[float],
    prior: bool,
    numbers: Literal["median", "mean"] | None,
) -> None:
    """What colours and lines mean, in the empty half of the figure, and what the numbers are."""
    shown: list[tuple[str, Any]] = [
        (label, Line2D([], [], color=colour, linewidth=2, linestyle=dashes(i)))
        for i, (label, colour) in enumerate(zip(labels, cycle(COLOURS), strict=False))
        if label
    ]
    if dim > 1:
        colour = GREY if len(labels) > 1 else COLOURS[0]
        for level, shade in zip(sorted(levels), reversed(_shades(colour, len(set(levels)))), strict=False):
            shown.append((f"{100 * level:g} % of samples", Patch(facecolor=shade, edgecolor=colour, linewidth=0.9)))
    shown += [("prior", Line2D([], [], **PRIOR))] if prior else []
    shown += [("truth", Line2D([], [], **TRUTH))] if truth else []
    words = {"median": "median [95 % interval]", "mean": "mean ± standard deviation"}
    title = words[numbers] if numbers is not None and len(labels) <= MOST_NUMBERED else ""
    if shown or title:
        where: Any = "upper right" if dim > 1 else "outside right upper"
        size = 9 if dim <= 4 else 10
        handles, texts = [handle for _, handle in shown], [text for text, _ in shown]
        figure.legend(handles, texts, loc=where, frameon=False, fontsize=size, title=title, title_fontsize=size)


def _draw_beside(axes: Axes, values: Float64[np.ndarray, "n"]) -> None:
    """The histogram of final values, on an axis of its own to the right of the panel."""
    beside = axes.inset_axes((1.02, 0, 0.16, 1), sharey=axes)
    beside.hist(values, 40, orientation="horizontal", color=on_white(COLOURS[0], 0.6))
    beside.set_axis_off()


def _ends(
    values: Sequence[Float64[np.ndarray, "_"]], truth: float | None, bounds: tuple[float, float] | None
) -> tuple[float, float]:
    """Where a parameter is shown: all but 0.1 % of the samples of each set at either end, and the truth.

    The margin beyond them ends where the prior does, unless they lie outside of it.
    """
    inner = [np.quantile(v, [0.001, 0.999]) for v in values] + ([] if truth is None else [np.array([truth, truth])])
    low, high = min(ends[0] for ends in inner), max(ends[1] for ends in inner)
    margin = 0.08 * (high - low) or 0.5
    first, last = low - margin, high + margin
    if bounds is not None and bounds[0] < bounds[1]:
        near = 0.01 * (high - low)  # samples of the prior do not quite reach its ends
        first = max(first, min(low, bounds[0])) if bounds[0] <= low + near else first
        last = min(last, max(high, bounds[1])) if bounds[1] >= high - near else last
    return float(first), float(last)
