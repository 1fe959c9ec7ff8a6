"""Trained denoisers side by side: validation losses while training and by noise level, and metrics of their samples."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from openedm.plots.losses import Rows
from openedm.plots.style import GREY, balanced, line_style, number_log_ticks, plain
from openedm.training import ValidationLoss

__all__ = ["MetricValues", "comparison"]

MAX_METRICS = 4
ROW = 0.26
"""Inches of a line in the panels of metrics."""


class MetricValues(NamedTuple):
    """One metric of all denoisers.

    Attributes:
        values: by the names of denoisers: the value, and the ends of its interval (both the value itself for none).
        floor: the value of real data in place of samples; None for none.
    """

    values: Mapping[str, tuple[float, float, float]]
    floor: float | None = None


def comparison(
    names: Sequence[str],
    losses: Mapping[str, Rows] | None = None,
    by_sigma: Mapping[str, ValidationLoss] | None = None,
    metrics: Mapping[str, MetricValues] | None = None,
) -> Figure:
    """Loss against images, loss by noise level, and metrics with their intervals, of several denoisers.

    Args:
        names: of the denoisers, in order; each has its colour, marker and dashes in all panels.
        losses: (images seen, validation loss) by the name of the denoiser.
        by_sigma: the validation loss at each noise level.
        metrics: by the name of the metric; the first four are drawn.

    Raises:
        ValueError: there is nothing to draw.
    """
    losses = {name: _finite(rows) for name, rows in (losses or {}).items()}
    curves = {name: rows for name, rows in losses.items() if rows}
    by_sigma, shown = dict(by_sigma or {}), dict(list((metrics or {}).items())[:MAX_METRICS])
    if not curves and not by_sigma and not shown:
        raise ValueError("losses, by_sigma or metrics must hold something to draw, got none")
    panels = [panel for panel in (curves and "images", by_sigma and "sigma") if panel]
    heights = ([3.2] if panels else []) + ([0.75 + ROW * len(names)] if shown else [])
    key = 0.0 if shown and not panels else 0.22 * math.ceil(len(names) / _columns(names))
    figure = Figure(figsize=(8.0, sum(heights) + key + 0.1), layout="constrained")
    rows = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    if panels:
        axes = dict(zip(panels, rows[0].subplots(1, len(panels), squeeze=False)[0], strict=True))
        if curves:
            _against_images(axes["images"], names, curves)
        if by_sigma:
            _against_sigma(axes["sigma"], names, by_sigma)
        handles = [Line2D([], [], label=name, **line_style(i)) for i, name in enumerate(names)]
        figure.legend(handles=handles, loc="outside upper center", ncols=_columns(names), frameon=False)
    if shown:
        for i, (name, found) in enumerate(shown.items()):
            shared = rows[-1].axes[0] if i else None
            _metric(rows[-1].add_subplot(1, len(shown), i + 1, sharey=shared), names, name, found, labelled=i == 0)
    return figure


def _columns(names: Sequence[str]) -> int:
    """How many names of the key fit beside each other."""
    return balanced(len(names), max(1, min(len(names), 90 // (max(map(len, names)) + 7))))


def _finite(rows: Rows) -> list[tuple[int, float]]:
    return [(images, loss) for images, loss in rows if math.isfinite(loss)]


def _against_images(axes: Axes, names: Sequence[str], curves: Mapping[str, Rows]) -> None:
    plain(axes).set(xlabel="images seen", ylabel="validation loss", yscale="log")
    for i, name in enumerate(names):
        if name in curves:
            rows = curves[name]
            axes.plot(*zip(*rows, strict=True), **line_style(i), markevery=max(1, len(rows) // 8))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    number_log_ticks(axes.yaxis)


def _against_sigma(axes: Axes, names: Sequence[str], by_sigma: Mapping[str, ValidationLoss]) -> None:
    plain(axes).set(xlabel="noise level σ", ylabel="validation loss at σ", xscale="log")
    for i, name in enumerate(names):
        if name in by_sigma:
            axes.plot(*zip(*by_sigma[name].curve, strict=True), **line_style(i))
    values = [loss for found in by_sigma.values() for _, loss in found.curve if loss > 0 and math.isfinite(loss)]
    if values and max(values) > 20 * min(values):
        axes.set_yscale("log")
        number_log_ticks(axes.yaxis)
    else:
        axes.set_ylim(bottom=0)
    number_log_ticks(axes.xaxis)


def _metric(axes: Axes, names: Sequence[str], name: str, found: MetricValues, *, labelled: bool) -> None:
    """A line a denoiser, the first on top; a dashed line is the floor."""
    plain(axes).set(xlabel=textwrap.fill(name, 18))
    for i, own in enumerate(names):
        if own in found.values and math.isfinite(found.values[own][0]):
            value, low, high = found.values[own]
            style = {key: text for key, text in line_style(i).items() if key not in ("markersize", "linestyle")}
            errors = [[value - low], [high - value]]
            axes.errorbar(value, i, xerr=errors, linestyle="none", markersize=5, capsize=3, **style)
    if found.floor is not None:
        axes.axvline(found.floor, color=GREY, linestyle="--", linewidth=1)
        axes.annotate(
            "real",
            (found.floor, 1),
            xycoords=("data", "axes fraction"),
            color=GREY,
            fontsize=8,
            ha="center",
            va="bottom",
        )
    if labelled:  # the panels share their axis
        axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0, labelleft=labelled)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(3))
