"""Pictures of solvers: the error against the number of network evaluations."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from openedm.plots.style import COLOURS, GREY, MARKERS, number_log_ticks, plain

Errors = Mapping[str, Sequence[tuple[int, float]]]
"""For each solver: (network evaluations, error), in increasing number of evaluations."""


def error_versus_nfe(panels: Mapping[str, Errors], orders: Sequence[int] = ()) -> Figure:
    """The error of solvers against the network evaluations of a run, both logarithmic: an order is a slope.

    Args:
        panels: a title and the errors of each solver for each picture; a solver has the same colour in all. Errors of
            0 have no place on the axis and are left out; where all are 0 the axis is linear.
        orders: orders p for which a guide of slope −p is drawn.

    Raises:
        ValueError: no panels, or one without solvers.
    """
    if not panels or not all(panels.values()):
        raise ValueError("panels must hold at least one picture, and each at least one solver")
    names = list(dict.fromkeys(name for errors in panels.values() for name in errors))
    figure = Figure(figsize=(1.2 + 4.2 * len(panels), 4.0), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, errors) in zip(grid, panels.items(), strict=True):
        _draw(axes, errors, names)
        _guide(axes, orders)
        axes.set_title(title, fontsize=11)
    grid[0].set_ylabel("median distance to the exact solution")
    grid[-1].legend(frameon=False)
    return figure


def _draw(axes: Axes, errors: Errors, names: Sequence[str]) -> None:
    plain(axes)
    axes.set_xscale("log")
    if any(error > 0 for rows in errors.values() for _, error in rows):
        axes.set_yscale("log", nonpositive="mask")
    axes.set_xlabel("network evaluations (NFE)")
    for name, rows in errors.items():
        i = names.index(name)
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        axes.plot(*zip(*rows, strict=True), color=colour, marker=marker, markersize=4, label=name)
    number_log_ticks(axes.xaxis)


def _guide(axes: Axes, orders: Sequence[int]) -> None:
    """Dashed lines of slope −p, fanning out from one point in the lower left, where a convergence plot is empty."""
    if not orders or axes.get_yscale() != "log":
        return
    (left, _), (bottom, top) = axes.dataLim.intervalx, axes.get_ylim()
    right = left * 4
    start = bottom * 4.0 ** max(orders) * 1.5
    for order in orders:
        end = start * 4.0**-order
        axes.plot([left, right], [start, end], color=GREY, linewidth=0.8, linestyle="--")
        axes.text(right * 1.08, end, f"order {order}", color=GREY, fontsize=8, va="center")
    axes.set_ylim(bottom, max(top, start))
