"""How figures look, set on each figure itself, and how one becomes a file."""

import os
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from openedm.ground import checks
from openedm.ground.storage import replacing

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours that colour-blind readers tell apart (Okabe & Ito 2008); lines take them in turn."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""Markers that go with them, for print without colour."""

SHADE = "#DDDDDD"
GREY = "#767676"
DOTS_PER_INCH = 150


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure; the suffix of `path` names the format. The file appears complete or not at all.

    Raises:
        ValueError: the suffix is none that matplotlib writes.
    """
    path = Path(path)
    suffix = path.suffix.lower().removeprefix(".")
    checks.one_of("the suffix of path", suffix, sorted(figure.canvas.get_supported_filetypes()))
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
