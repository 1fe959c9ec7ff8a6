"""The style that figures share, set on each figure itself; checks of their numbers; and how a figure is saved."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from torch import Tensor

from openedm.ground import checks
from openedm.ground.storage import replacing

__all__ = [
    "COLOURS",
    "DASHES",
    "GREY",
    "MARKERS",
    "SHADE",
    "Numbers",
    "balanced",
    "dashes",
    "evenly",
    "finite_array",
    "format_sigma",
    "line_style",
    "names_or_thetas",
    "number_log_ticks",
    "on_white",
    "plain",
    "save_figure",
    "shrunk",
]

Numbers = Tensor | np.ndarray | Sequence[float]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours that colour-blind readers tell apart (Okabe & Ito 2008); lines take them in turn."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""Markers that go with them, for print without colour."""

DASHES = (
    "-",
    (0, (6, 2)),
    (0, (1.5, 1.2)),
    (0, (6, 1.5, 1.5, 1.5)),
    (0, (3, 1)),
    (0, (6, 1.5, 1.5, 1.5, 1.5, 1.5)),
    (0, (9, 3)),
)
"""Dashes that go with them, for lines without markers."""

SHADE = "#DDDDDD"
GREY = "#767676"
DOTS_PER_INCH = 150


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure; the suffix of `path` names the format.

    The folder is made if need be, and the file appears complete or not at all.

    Raises:
        ValueError: the suffix is none that matplotlib writes.
    """
    path = Path(path)
    suffix = path.suffix.lower().removeprefix(".")
    checks.one_of("the suffix of path", suffix, sorted(figure.canvas.get_supported_filetypes()))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=suffix, dpi=DOTS_PER_INCH, facecolor="white")


def plain(axes: Axes) -> Axes:
    """`axes` with two spines and a light grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def number_log_ticks(axis: Axis) -> None:
    """Write the ticks of a logarithmic axis as plain numbers, those between the decades too where there is room."""
    axis.set_major_formatter(_PlainNumbers())
    axis.set_minor_formatter(_PlainNumbers())


class _PlainNumbers(LogFormatter):
    """0.2 where matplotlib would write 2e-01."""

    def __init__(self) -> None:
        super().__init__(labelOnlyBase=False, minor_thresholds=(1.0, 0.4))

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def format_sigma(sigma: float) -> str:
    """A noise level to two digits, without an exponent.

    >>> format_sigma(80.0), format_sigma(0.00234), format_sigma(0.0)
    ('80', '0.0023', '0')
    """
    rounded = float(f"{sigma:.2g}")
    return f"{rounded:f}".rstrip("0").rstrip(".") if 1e-4 <= rounded < 1e4 else f"{rounded:g}"


def line_style(i: int) -> dict[str, Any]:
    """The colour, the marker and the dashes of line number `i`, from 0, as arguments of `Axes.plot`.

    From the eighth line on colours and markers are those of the first ones, with other dashes.
    """
    turn, place = divmod(i, len(COLOURS))
    return {"color": COLOURS[place], "marker": MARKERS[place], "markersize": 4, "linestyle": dashes(place + turn)}


def dashes(i: int) -> Any:
    """The dashes of line number `i`, from 0: that readers without colour tell lines apart."""
    return DASHES[i % len(DASHES)]


def balanced(count: int, most: int) -> int:
    """How many of `count` panels stand beside each other, at most `most`, so that few places are empty.

    >>> [balanced(count, 3) for count in (1, 2, 3, 4, 5, 6, 7)]
    [1, 2, 3, 2, 3, 3, 3]
    """
    rows = math.ceil(count / most)
    return math.ceil(count / rows)


def on_white(colour: str, opacity: float) -> tuple[float, float, float]:
    """A colour on white, opaque."""
    red, green, blue, _ = (1 - opacity * (1 - channel) for channel in to_rgba(colour))
    return red, green, blue


def names_or_thetas(names: Sequence[str] | None, count: int) -> list[str]:
    """`names`, or θ with an index where there are none; ValueError if they are not `count`."""
    if names is not None and len(names) != count:
        raise ValueError(f"names must be {count} names, got {list(names)}")
    return list(names) if names is not None else [rf"$\theta_{{{i + 1}}}$" for i in range(count)]


def finite_array(name: str, values: Numbers, dimensions: int) -> Float64[np.ndarray, "..."]:
    """`values` as float64 on the host; ValueError unless finite and with that many dimensions."""
    array = np.asarray(torch.as_tensor(values).detach().double().cpu())
    if array.ndim != dimensions:
        raise ValueError(f"{name} must have {dimensions} dimension(s), got the shape {array.shape}")
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"{name} must hold finite numbers only, at least one")
    return array


def shrunk(x: Tensor, ratio: float, location: float | Tensor) -> Tensor:
    """m + (x − m)/√(1 + ratio²), for noisy x at a noise level that is `ratio` times σ_data: spread as data are.

    Args:
        x: noisy samples, in data units.
        ratio: σ/σ_data.
        location: m, a number or a tensor that broadcasts against a sample.
    """
    centre = location.to(x) if isinstance(location, Tensor) else location
    return centre + (x - centre) / math.hypot(1, ratio)


def evenly(length: int, count: int) -> list[int]:
    """At most `count` of the indices 0 … length − 1, evenly spaced, with both ends (the last where count is 1).

    >>> evenly(19, 4), evenly(2, 8), evenly(5, 1)
    ([0, 6, 12, 18], [0, 1], [4])
    """
    if count == 1:
        return [length - 1]
    return sorted({round(i * (length - 1) / (count - 1)) for i in range(count)})
