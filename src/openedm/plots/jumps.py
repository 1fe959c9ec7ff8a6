"""The estimate of the sample after each evaluation: the path of a denoiser, the jumps of a consistency function."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, stack

from openedm.data.pictures import image_grid
from openedm.ground import checks
from openedm.plots.style import COLOURS, GREY, evenly, format_sigma
from openedm.sampling import State

__all__ = ["jumps"]

PANEL = 1.3


def jumps(runs: Mapping[str, Sequence[State]], samples: int = 4, columns: int = 8) -> Figure:
    """The estimate x̂ of the sample at each evaluation, the panels of a run side by side.

    Short runs share a row of panels where all of theirs, and an empty one between them, find room in it. Images are
    shown one below the other. Points in two dimensions are shown with a line from the estimate before, so that a row
    shows how far each evaluation moves it.

    Args:
        runs: a title and the states of one sampling run, all of the same seeds, such as those of a teacher and of the
            consistency function that was made of it.
        samples: how many images to show, the first of the batch; ≥ 1. Points are all shown.
        columns: how many evaluations to show of a run, evenly chosen, the first and last included; ≥ 1.

    Raises:
        ValueError: no runs, a run without states, samples that are neither images nor points in two dimensions, or a
            number out of its range.
    """
    checks.at_least("the number of runs", len(runs), 1)
    checks.at_least("samples", samples, 1)
    checks.at_least("columns", columns, 1)
    chosen = {title: _evaluations(states, columns) for title, states in runs.items()}
    shape = next(iter(chosen.values()))[0].denoised.shape
    is_image = len(shape) == 4
    if not is_image and (len(shape) != 2 or shape[1] != 2):
        raise ValueError(f"runs must hold images or points in two dimensions, got samples of shape {tuple(shape[1:])}")
    places = _places([len(states) for states in chosen.values()])
    rows, width = places[-1][0] + 1, max(map(len, chosen.values()))
    height = PANEL * (0.8 * min(samples, shape[0]) if is_image else 1.0) + 0.35
    figure = Figure(figsize=(1.2 + PANEL * width, height * rows), layout="constrained")
    grid = figure.add_gridspec(rows, width)
    for (row, left), (title, states) in zip(places, chosen.items(), strict=True):
        for i, state in enumerate(states):
            axes = figure.add_subplot(grid[row, left + i])
            axes.set_axis_off()
            axes.set_title(f"σ = {format_sigma(state.sigma)}", fontsize=9, color=GREY)
            if is_image:
                pixels = image_grid(state.denoised[:samples], 1)
                axes.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=255)
            else:
                _draw_points(axes, [s.denoised for s in states], i)
            if i == 0:
                axes.text(
                    -0.15, 0.5, title, transform=axes.transAxes, fontsize=10, rotation=90, va="center", ha="right"
                )
    return figure


def _places(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """The row and the first column of each run, in their order, in rows as wide as the longest run.

    >>> _places([8, 2, 1]), _places([3, 3]), _places([1, 4])
    ([(0, 0), (1, 0), (1, 3)], [(0, 0), (1, 0)], [(0, 0), (1, 0)])
    """
    found = []
    row = left = 0
    for length in lengths:
        if left and left + length > max(lengths):
            row, left = row + 1, 0
        found.append((row, left))
        left += length + 1
    return found


def _evaluations(states: Sequence[State], columns: int) -> list[State]:
    """States with an evaluation, which the finished sample at σ = 0 is not."""
    evaluated = [state for state in states if state.sigma > 0]
    if not evaluated:
        raise ValueError("runs must hold states of at least one evaluation each, got a run without")
    return [evaluated[i] for i in evenly(len(evaluated), columns)]


def _draw_points(axes: Axes, estimates: Sequence[Tensor], i: int) -> None:
    everything = np.asarray(stack(list(estimates)).cpu()).reshape(-1, 2)
    x = np.asarray(estimates[i].cpu())
    if i > 0:
        before = np.asarray(estimates[i - 1].cpu())
        axes.plot(*np.stack([before, x]).transpose(2, 0, 1), color=GREY, linewidth=0.3, alpha=0.5)
    axes.scatter(x[:, 0], x[:, 1], s=2, color=COLOURS[0], linewidths=0)
    low, high = everything.min(0), everything.max(0)
    margin = 0.05 * float((high - low).max()) + 1e-9
    axes.set_xlim(low[0] - margin, high[0] + margin)
    axes.set_ylim(low[1] - margin, high[1] + margin)
    axes.set_aspect("equal")
