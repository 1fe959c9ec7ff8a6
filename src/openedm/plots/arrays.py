"""Figures of samples that are not images: series as lines, fields and volumes as slices on one scale."""

import math

import numpy as np
from jaxtyping import Float, Float64
from matplotlib.figure import Figure
from torch import Tensor

from openedm.ground import checks
from openedm.plots.style import COLOURS, GREY, finite_array

__all__ = ["event_grid"]

TILE_INCHES = 1.4


def event_grid(x: Float[Tensor, "batch channels *size"], columns: int | None = None) -> Figure:
    """Samples side by side, row by row: series as lines, fields and volumes as slices.

    A series has one line for each channel. Of a field the first channel is shown, of a volume the middle slices of its
    first channel across depth, height and width, from left to right. All samples have the same scale, which fits all
    but 1 % of the values at either end.

    Args:
        x: series (batch, channels, length), fields (batch, channels, height, width) or volumes (batch, channels, depth,
            height, width).
        columns: samples in a row; ⌈√batch⌉ by default.

    Raises:
        ValueError: `x` has another number of axes or no samples, a number is not finite, or `columns` is below 1.
    """
    if x.ndim not in (3, 4, 5):
        raise ValueError(
            "x must hold series (batch, channels, length), fields (batch, channels, height, width) or volumes (batch, "
            f"channels, depth, height, width), got {tuple(x.shape)}"
        )
    checks.at_least("columns", 1 if columns is None else columns, 1)
    values = finite_array("x", x, x.ndim)
    across = min(math.ceil(math.sqrt(len(x))) if columns is None else columns, len(x))
    down = -(-len(x) // across)
    aspect = 1.6 if x.ndim == 3 else 3.0 if x.ndim == 5 else values.shape[3] / values.shape[2]
    wide = TILE_INCHES * min(max(aspect, 0.5), 3.0)
    figure = Figure(figsize=(wide * across, TILE_INCHES * down), layout="constrained")
    tiles = figure.subplots(down, across, squeeze=False).ravel()
    low, high = np.quantile(values if x.ndim == 3 else values[:, 0], (0.01, 0.99))
    margin = 0.1 * (high - low) or 1.0
    for i, axes in enumerate(tiles):
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color(GREY)
        if i >= len(x):
            axes.set_axis_off()
        elif x.ndim == 3:
            axes.set_ylim(low - margin, high + margin)
            for channel, line in enumerate(values[i]):
                axes.plot(line, color=COLOURS[channel % len(COLOURS)], linewidth=0.9)
        else:
            axes.imshow(_slices(values[i, 0]), cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
    return figure


def _slices(sample: Float64[np.ndarray, "*size"]) -> Float64[np.ndarray, "rows columns"]:
    """A field itself; the three middle slices of a volume side by side, centred, with NaN between them."""
    if sample.ndim == 2:
        return sample
    middle = [sample.take(side // 2, axis) for axis, side in enumerate(sample.shape)]
    rows = max(len(part) for part in middle)
    joined = np.full((rows, sum(part.shape[1] for part in middle) + 2), np.nan)
    left = 0
    for part in middle:
        top = (rows - len(part)) // 2
        joined[top : top + len(part), left : left + part.shape[1]] = part
        left += part.shape[1] + 1
    return joined
