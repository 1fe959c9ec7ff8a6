"""The numbers and axes in which samples are stored, and their conversion to events and back.

An image is (channels, height, width) in [-1, 1] while it is computed with, x = 2 (v − low) / (high − low) − 1, where v
is the stored number: a byte (0 … 255), 16 bits (0 … 65535), a bool, or any number of a range that is given. Other data
keep their own units unless a range is given.
"""

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from openedm.ground import checks
from openedm.ground.choices import Choice

__all__ = [
    "LAYOUTS",
    "Layout",
    "Range",
    "Stored",
    "as_float",
    "check_range",
    "common_type",
    "find_stored",
    "promote",
    "warn_of_values",
]

Range = tuple[float, float]
Layout = Literal["channels_first", "channels_last", "NCHW", "NHWC"]
LAYOUTS = ("channels_first", "channels_last", "NCHW", "NHWC")
FULL_RANGES: dict[str, Range] = {"bool": (0, 1), "uint8": (0, 255), "uint16": (0, 65535)}
"""The stored numbers that become −1 and 1 unless a range is given, by dtype."""

FULL_RANGE_TYPES = tuple(FULL_RANGES)
"""The types of pixels that need no range, each with more values than the one before."""

_DTYPES = (*FULL_RANGES, "int8", "int16", "int32", "int64", "uint32", "uint64")
_FLOATS = ("float16", "bfloat16", "float32", "float64")
_TOLERANCE = 1e-3
MIN_CONTRAST = 0.1
"""Floating-point numbers in [-1, 1] that differ by less are no images, whose 8 bits would tell at most 13 of them
apart: rain in metres a day, a small anomaly, data in units of 1e-12."""

_PROBED = 100_000
"""The largest number of entries that are compared with whole numbers."""


@dataclass(frozen=True)
class Stored(Choice):
    """The numbers and axes in which samples are stored, which samples of a model are converted back to.

    >>> stored = Stored("uint16")
    >>> x = stored.events(torch.tensor([[[[0, 65535]]]], dtype=torch.uint16))
    >>> x.tolist(), stored.restore(x).tolist()
    ([[[[-1.0, 1.0]]]], [[[[0, 65535]]]])

    Args:
        dtype: the type of the stored numbers.
        range: the stored numbers that become −1 and 1. None means 0 and 255 for bytes, 0 and 65535 for 16 bits, 0 and 1
            for bool; floating point is unchanged.
        channels_last: whether the axis of the channels is stored last.

    Raises:
        ValueError: the type is not one of numpy's for numbers; the range is not finite and increasing.
    """

    dtype: str = "uint8"
    range: tuple[float, float] | None = None
    channels_last: bool = False

    def __post_init__(self) -> None:
        checks.one_of("dtype", self.dtype, (*_DTYPES, *_FLOATS))
        check_range(self.range)

    @property
    def is_default(self) -> bool:
        """Whether samples are written as bytes of images or unchanged numbers: the form of models without `stored`."""
        return self.range is None and not self.channels_last and self.dtype in ("uint8", *_FLOATS)

    @property
    def bits(self) -> int:
        """The bits of a channel in an image file: 1, 8 or 16."""
        return {"bool": 1, "uint16": 16}.get(self.dtype, 8)

    @property
    def num_values(self) -> int:
        """The number of values that a stored number can have; 256 for floating point."""
        limits = self.range or FULL_RANGES.get(self.dtype)
        return 256 if limits is None or self.dtype in _FLOATS else round(limits[1] - limits[0]) + 1

    def events(self, x: Shaped[Tensor, "batch *stored"]) -> Float[Tensor, "batch *event"]:
        """Stored numbers as float32 events."""
        return self.scale(x.movedim(-1, 1) if self.channels_last else x)

    def scale(self, x: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Stored numbers, in the axes of events, as float32 in [-1, 1], or in their own units without a range."""
        if self.range is None or self.range == (-1, 1):
            return as_float(x)
        low, high = self.range
        return x.double().sub(low).mul_(2 / (high - low)).sub_(1).float()

    def restore(self, x: Shaped[Tensor, "batch *event"]) -> np.ndarray:
        """Events as stored numbers of `dtype`, `(batch, *stored)`; integers are rounded and cut to the range.

        Raises:
            ValueError: `x` has NaN, which integers cannot represent.
        """
        x = x.detach().cpu().double()
        x = x.movedim(1, -1) if self.channels_last else x
        limits = self.range or FULL_RANGES.get(self.dtype)
        if limits is not None and limits != (-1, 1):
            x = x.add(1).mul((limits[1] - limits[0]) / 2).add(limits[0])
        if self.dtype in _FLOATS:
            return x.numpy().astype("float64" if self.dtype == "float64" else "float32")
        if x.isnan().any():
            raise ValueError(f"x must not have NaN, got {int(x.isnan().sum())} among {x.numel()} values")
        if limits is not None:
            x = x.clamp(*limits)
        return x.round().numpy().astype(self.dtype)


def common_type(one: str, other: str, name: str, first: str) -> str:
    """The type with the more values of two types of pixels; ValueError naming the image `name` if there is none.

    Args:
        one: the type so far.
        other: the type of the image `name`.
        name: the image.
        first: the first of all images.
    """
    if one == other:
        return one
    if one not in FULL_RANGE_TYPES or other not in FULL_RANGE_TYPES:
        raise ValueError(f"{name} has pixels of {other}, but {first} has {one}: convert them to one type")
    return max(one, other, key=FULL_RANGE_TYPES.index)


def promote(
    array: Shaped[np.ndarray, "*shape"], wanted: str, range: Range | None, name: str, first: str
) -> Shaped[np.ndarray, "*shape"]:
    """Pixels in a type with more values, scaled from full range to full range unless a range is given."""
    found = str(array.dtype)
    if found == wanted:
        return array
    if wanted not in FULL_RANGE_TYPES or common_type(found, wanted, name, first) != wanted:
        raise ValueError(f"{name} has pixels of {found}, but {first} has {wanted}: convert them")
    factor = round(FULL_RANGES[wanted][1] / FULL_RANGES[found][1]) if range is None else 1
    return np.asarray(array.astype(wanted) * np.dtype(wanted).type(factor))


def as_float(x: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`x` as float32; bytes, 16 bits and bool are scaled from their full range to [-1, 1]."""
    if x.dtype == torch.uint8:
        return x.float().div_(127.5).sub_(1)
    if x.dtype == torch.uint16:
        return x.float().div_(32767.5).sub_(1)
    return x.float().mul_(2).sub_(1) if x.dtype == torch.bool else x.float()


def check_range(range: Range | None) -> None:
    """Raise ValueError unless `range` is None or two increasing, finite numbers."""
    if range is None:
        return
    if len(range) != 2 or not all(np.isfinite(range)) or not range[0] < range[1]:
        raise ValueError(f"range must be two increasing numbers, those that become -1 and 1, got {range}")


def find_stored(
    x: Shaped[Tensor, "samples *stored"], range: Range | None = None, layout: str | None = None, *, name: str = "x"
) -> Stored:
    """How an array is stored, from its type and shape and what is known.

    Args:
        x: the samples as they are stored.
        range: the numbers that become −1 and 1, if known.
        layout: whether the channels are the first axis of a sample or its last, if known; None for the first.
        name: of the array in messages.

    Raises:
        TypeError: the type needs a range.
        ValueError: the layout is not known, and the shape is that of channels in the last axis.
    """
    dtype = str(x.dtype).removeprefix("torch.")
    if dtype not in (*_DTYPES, *_FLOATS):
        raise TypeError(f"{name} must be floating point, integers or bool, got {x.dtype}")
    if range is None and dtype not in (*FULL_RANGES, *_FLOATS):
        raise TypeError(
            f"{name} must be floating point, uint8, uint16 or bool, got {x.dtype}, whose full range is not that of "
            f"images: give the numbers that become -1 and 1, such as range=(0, 255), or convert {name} to "
            "floating point for numbers in their own units"
        )
    if layout is not None:
        checks.one_of("layout", layout, LAYOUTS)
        if layout in ("NCHW", "NHWC") and x.dim() != 4:
            raise ValueError(f"layout={layout!r} requires an array with four axes, got shape {tuple(x.shape)}")
    elif channels_seem_last(tuple(x.shape[1:]), pixels=dtype in FULL_RANGES):
        raise ValueError(
            f"{name} of shape {tuple(x.shape)} seems to have its channels in the last axis: give "
            f"layout='channels_last' for {x.shape[-1]} channels, or layout='channels_first' for {x.shape[1]}"
        )
    return Stored(dtype, None if range is None else (float(range[0]), float(range[1])), layout in LAYOUTS[1::2])


def channels_seem_last(shape: tuple[int, ...], *, pixels: bool = False) -> bool:
    """Whether a sample of this shape most likely has its channels in the last axis: 32×32×3, but not 3×32×32.

    True for at least three axes of which all but the last have 8 or more entries, and the last 1, 3 or 4; or up to 16
    and at most a quarter of each of the others; or up to 16 and the others are equal and at least 32, or 8 for pixels,
    bytes or 16 bits, and more than the last.
    """
    if len(shape) < 3:
        return False
    *others, last = shape
    few = min(others) >= 8 and (last in (1, 3, 4) or last <= min(16, min(others) // 4))
    least = max(8, last + 1) if pixels else 32
    return few or (1 <= last <= 16 and len(set(others)) == 1 and others[0] >= least)


def warn_of_values(x: Shaped[Tensor, "samples *event"], stored: Stored, *, images: bool, name: str = "x") -> None:
    """Compare the values with the range that is given, or warn where they seem to be pixels in another range.

    Args:
        x: some samples, in the axes of events.
        stored: how they are stored.
        images: whether they may be images.
        name: of the array in messages.

    Raises:
        ValueError: a value is outside the range that is given.
    """
    low, high = value_limits(x)
    if stored.range is not None:
        outside = _TOLERANCE * (stored.range[1] - stored.range[0])
        if low < stored.range[0] - outside or high > stored.range[1] + outside:
            raise ValueError(f"{name} must be in range={_show(stored.range)}, got values from {low:g} to {high:g}")
        return
    found = _other_range(x, low, high, stored.dtype) if images and x.dim() == 4 else None
    if found is None:
        return
    usual = FULL_RANGES.get(stored.dtype, (-1, 1))
    means = (
        "they are taken as numbers in their own units, not as images"
        if stored.dtype in _FLOATS and high > 1 + _TOLERANCE
        else f"images of {stored.dtype} are taken to be in {_show(usual)}"
    )
    warnings.warn(
        f"{name} has values from {low:g} to {high:g}, but {means}: give range={_show(found)}, the numbers that become "
        f"-1 and 1 (on the command line --data.range {found[0]:g},{found[1]:g}); or range={_show(usual)}"
        f"{' or kind=vectors' if stored.dtype in _FLOATS else ''} if they are right as they are",
        stacklevel=4,
    )


def _other_range(x: Tensor, low: float, high: float, dtype: str) -> Range | None:
    """The range that the values seem to have, if it is not the one that their type stands for."""
    if dtype == "uint8":
        return (0, 1) if high == 1 and low == 0 else None
    if dtype == "uint16":
        return (0, 255) if 1 < high <= 255 else (0, 4095) if 255 < high <= 4095 else None
    if dtype not in _FLOATS or low < 0 or low == high:
        return None
    if high <= 1 + _TOLERANCE:
        return (0, 1) if high >= MIN_CONTRAST else None
    some = x[:: max(1, len(x) // 1000)]
    entries = some.reshape(-1)[:: max(1, some.numel() // _PROBED)]
    whole = bool((entries == entries.round()).all())
    if high <= 255.5 and (whole or (high > 200 and x.shape[1] in (1, 3, 4))):
        return (0, 255)
    return (0, 65535) if whole and high <= 65535 and x.shape[1] in (1, 3, 4) else None


def seem_images(shape: tuple[int, ...], low: float, high: float) -> bool:
    """Whether floating-point samples of a shape, with numbers from `low` to `high`, may be images in [-1, 1].

    They have three axes, and numbers in this range that differ by at least `MIN_CONTRAST`, or not at all.
    """
    inside = low >= -1 - _TOLERANCE and high <= 1 + _TOLERANCE
    return len(shape) == 3 and inside and not 0 < high - low < MIN_CONTRAST


def value_limits(x: Tensor) -> Range:
    """The lowest and the highest value; numpy has them for every type."""
    if x.is_floating_point():
        return float(x.min()), float(x.max())
    array = x.numpy(force=True)
    return float(array.min()), float(array.max())


def _show(range: Range) -> str:
    return f"({range[0]:g}, {range[1]:g})"
