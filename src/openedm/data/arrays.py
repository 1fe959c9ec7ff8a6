"""Arrays in files of numpy: images as integers, or any data in floating point."""

import warnings
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch

from openedm.data.array_files import ArrayFile, check_memory
from openedm.data.dataset import Source
from openedm.data.forms import Resize
from openedm.data.memory import InMemory, Pairs
from openedm.data.partners import resize_images
from openedm.data.stored import LAYOUTS, Layout, Range, as_float, check_range, find_stored
from openedm.ground import checks

__all__ = ["Arrays", "condition_tensor"]

_CHANNELS = (1, 3, 4)
_LONG = 16
"""How many times longer than high pictures are that may be series."""


@dataclass(frozen=True)
class Arrays(Source):
    """An array in a .npy or .npz file.

    A .npy file above 256 MiB is mapped, and stays on disk where its numbers need no conversion: float32, bytes, 16 bits
    and bool in the order of C. All else is read into memory, after a check that there is enough.

    Bytes (uint8), 16 bits (uint16) and bool are images, (samples, height, width) or with channels before or after
    height and width, and are scaled from their full range to [-1, 1]. Floating point (samples, …) of any shape and
    units is used unchanged without a `range`. Samples of a model are written in these numbers and axes again, unless
    the data were bytes.

    Args:
        path: the file. Pickled objects are not read.
        key: name of the data in a .npz; by default its only array besides the labels.
        labels_key: name of the labels in a .npz, integers, one-hot rows or names of classes; by default "labels", if
            present. Texts called "class_names" beside integers are the names of the classes.
        layout: whether the channels of a sample are its first axis ("channels_first"; "NCHW" of four axes) or its last
            ("channels_last", "NHWC"), or absent ("NHW"). "auto" infers the channels of images in integers from their
            number, and takes those of floating point to be the first, unless the shape is clearly that of channels in
            the last axis, which is an error.
        range: the two numbers that become −1 and 1, such as [0, 1]; required for other integers. "range" and "layout"
            in a .npz that `openedm sample` wrote are the defaults.
        condition: name of the conditions in a .npz, or a .npy file with them: one row a sample. Numbers (samples,) and
            vectors (samples, features) keep their units. Images (samples, channels, height, width), or without
            channels, are scaled to [-1, 1] where they are uint8, uint16 or bool, and are used unchanged as floating
            point; `layout` is theirs, too.
        condition_resize: how images that are conditions become those of the size of the samples: bicubic or nearest.
        num_classes: the number of classes of the labels, which then keep their numbers; by default one class for each
            label that occurs. Labels of samples that a model drew keep theirs.
    """

    path: str
    key: str | None = None
    labels_key: str | None = None
    layout: Literal["auto", "channels_first", "channels_last", "NCHW", "NHWC", "NHW"] = "auto"
    range: tuple[float, float] | None = None
    condition: str | None = None
    condition_resize: Resize = "bicubic"
    num_classes: int | None = None

    def __post_init__(self) -> None:
        checks.one_of("layout", self.layout, ("auto", "NHW", *LAYOUTS))
        checks.one_of("condition_resize", self.condition_resize, ("bicubic", "nearest"))
        check_range(self.range)
        if self.num_classes is not None:
            checks.integer("num_classes", self.num_classes, 1)

    def load(self) -> InMemory:
        arrays = ArrayFile(self.path)
        condition, names = self._pick_condition(arrays), arrays.pop("class_names") if "class_names" in arrays else None
        x, labels = self._pick(arrays)
        range, layout = self._form_of(arrays)
        try:
            found_names, classes = (None, None) if labels is None else _labels_tensor(labels)
            known = self._known_classes(arrays, classes, names if found_names is None else found_names)
            tensor, found = _to_tensor(x, layout)
            if condition is not None:
                shape = InMemory(tensor[:1], range=range, layout=found).event_shape
                values = condition_tensor(condition, shape, self.condition_resize, self.layout)
                return Pairs(tensor, values, classes, **known, range=range, layout=found)
            if range is not None and self.range is None:  # samples of a model, which may leave the range
                stored = find_stored(tensor, range, found)
                dataset = InMemory(stored.events(tensor), classes, **known)
                dataset.stored = stored
                return dataset
            return InMemory(tensor, classes, **known, range=range, layout=found)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.path}: {error}") from error

    def _known_classes(
        self, arrays: ArrayFile, labels: torch.Tensor | None, names: np.ndarray | None
    ) -> dict[str, Any]:
        """The number of classes whose numbers are the labels, and their names, where they are known."""
        if labels is None or labels.ndim != 1 or labels.is_floating_point() or self.num_classes is not None:
            return {"num_classes": self.num_classes}
        highest = int(labels.max()) if labels.numel() else -1
        if names is not None and names.ndim == 1 and names.dtype.kind == "U" and highest < len(names):
            return {"class_names": tuple(map(str, names))}
        if not _is_written(arrays) or highest < 0:
            return {"num_classes": None}
        checks.size("the largest of labels, which are the classes of a model,", highest, 0)
        return {"num_classes": highest + 1}

    def _pick_condition(self, arrays: ArrayFile) -> np.ndarray | None:
        """The conditions, which are taken out of the arrays of the file."""
        if self.condition is None:
            if self.condition_resize != "bicubic":
                raise ValueError(f"condition_resize={self.condition_resize!r} has no effect without condition")
            return None
        if self.condition.endswith(".npy"):
            return ArrayFile(self.condition, "condition")[""]
        if self.condition not in arrays or self.condition in ("", self.key, self.labels_key):
            names = [name for name in sorted(arrays) if name not in ("", self.key, self.labels_key)]
            raise ValueError(
                f"condition must be one of {names}, the other arrays in {self.path!r}, or a .npy file, got "
                f"{self.condition!r}"
            )
        return arrays.pop(self.condition)

    def _form_of(self, arrays: ArrayFile) -> tuple[Range | None, str]:
        """The range and the layout that are given, or else those in the file."""
        written = _written_form(arrays)
        if written is None or self.range is not None or self.layout != "auto":
            return self.range, self.layout
        return written

    def _pick(self, arrays: ArrayFile) -> tuple[np.ndarray, np.ndarray | None]:
        if "" in arrays:
            if self.key is not None or self.labels_key is not None:
                raise ValueError(
                    f"key and labels_key must be None for a .npy file, such as {self.path!r}, got {self.key!r} and "
                    f"{self.labels_key!r}"
                )
            return arrays[""], None
        names = sorted(arrays)
        for argument, name in (("key", self.key), ("labels_key", self.labels_key)):
            if name is not None and name not in arrays:
                raise ValueError(f"{argument} must be one of {names}, the arrays in {self.path!r}, got {name!r}")
        labels_key = self.labels_key or ("labels" if "labels" in arrays and self.key != "labels" else None)
        rest = [name for name in names if name != labels_key]
        if self.key is None and len(rest) != 1:
            raise ValueError(f"key must be one of {rest}, the arrays in {self.path!r}; give the name of the data")
        return arrays[self.key or rest[0]], None if labels_key is None else arrays[labels_key]


def condition_tensor(
    condition: np.ndarray, event_shape: tuple[int, ...], resize: Resize, layout: str = "auto"
) -> torch.Tensor:
    """Conditions in an array as those of samples of a shape: floats (rows, *shape), or images of integers.

    Args:
        condition: numbers (rows,), vectors (rows, features), images with or without channels, or other floats.
        event_shape: the shape of a sample, to whose height and width images are resized.
        resize: how.
        layout: as for `Arrays`, for conditions with as many axes as the samples.

    Raises:
        TypeError: they are not numbers.
        ValueError: the axes of images cannot be told apart, or a number is not finite.
    """
    if condition.dtype.kind not in "biuf":
        raise TypeError(f"condition must be numbers, got {condition.dtype}")
    if condition.ndim <= 2:
        condition = condition if condition.dtype.kind == "f" else condition.astype(np.float64)
        return torch.from_numpy(_native(condition)).reshape(len(condition), -1)
    if condition.ndim == len(event_shape) and len(event_shape) == 3:
        condition, layout = condition[:, None], "channels_first"
    tensor, found = _to_tensor(condition, layout if condition.ndim == len(event_shape) + 1 else "auto")
    stored = find_stored(tensor, None, found, name="condition")
    tensor = tensor.movedim(-1, 1) if stored.channels_last else tensor
    if tensor.ndim == 4 and len(event_shape) == 3 and tuple(tensor.shape[2:]) != event_shape[1:]:
        return resize_images(as_float(tensor), (event_shape[1], event_shape[2]), resize)
    return tensor


def _is_written(arrays: ArrayFile) -> bool:
    """Whether `openedm sample` wrote the file."""
    return "samples" in arrays and "seeds" in arrays


def _written_form(arrays: ArrayFile) -> tuple[Range | None, str] | None:
    """The range and the layout beside samples that `openedm sample` wrote; None if there are none."""
    if not _is_written(arrays) or "layout" not in arrays:
        return None
    range, layout = arrays.find("range"), str(arrays["layout"])
    if layout not in LAYOUTS or not (range is None or range.shape == (2,)):
        return None
    return None if range is None else (float(range[0]), float(range[1])), layout


def _to_tensor(x: np.ndarray, layout: str) -> tuple[torch.Tensor, Layout | None]:
    """The data as a tensor, and the layout for `InMemory`; bytes are turned here, so that samples are not."""
    if x.dtype.kind not in "biuf":
        raise TypeError(f"the data must be floating point, integers or bool, got {x.dtype}")
    pixels = x.dtype in (np.uint8, np.uint16, np.bool_)
    if pixels and layout == "auto" and x.ndim == 3:
        _check_sides(x)
    if layout == "NHW" or (pixels and layout == "auto" and x.ndim == 3):
        checks.one_of("the number of axes with layout='NHW'", x.ndim, (3,))
        x, layout = x[:, None], "channels_first"
    elif pixels and layout == "auto" and x.ndim == 4:
        last = _channels_are_last(x.shape)
        if last and x.dtype == np.uint8:
            x, last = np.moveaxis(x, -1, 1), False
        layout = "channels_last" if last else "channels_first"
    elif layout == "auto" and x.ndim == 3 and (other := _other_layout(*x.shape[1:])):
        warnings.warn(
            f"{x.shape} is taken as samples of {x.shape[1]} channels and length {x.shape[2]}: give {other}, or "
            "layout='channels_first' if this is right (on the command line --data.layout)",
            stacklevel=4,
        )
    return torch.from_numpy(_native(x)), None if layout == "auto" else cast(Layout, layout)


def _check_sides(x: np.ndarray) -> None:
    """Refuse pictures of one row or one column, which are series most likely; warn of other long ones."""
    short, long = sorted(x.shape[1:])
    if short > 1 and long < _LONG * short:
        return
    low, high = (0, np.iinfo(x.dtype).max) if x.dtype.kind == "u" else (0, 1)
    series = f"layout='channels_first' and a range, such as range=({low}, {high}), for series of {x.shape[1]} channels"
    pictures = f"layout='NHW' for pictures of {x.shape[1]}×{x.shape[2]}"
    option = "(on the command line --data.layout and --data.range)"
    if short <= 1:
        raise ValueError(f"{x.shape} of {x.dtype} may be series or pictures: give {series}, or {pictures} {option}")
    warnings.warn(
        f"{x.shape} of {x.dtype} is taken as pictures: give {series}, or {pictures} if this is right {option}",
        stacklevel=5,
    )


def _other_layout(first: int, last: int) -> str:
    """What samples of two axes may be instead of series, in words; nothing for those that are series most likely."""
    if min(first, last) >= 8 and max(first, last) <= 2 * min(first, last):
        return "layout='NHW' if they are pictures or fields without an axis of channels"
    if last <= 16 and first >= max(16, 4 * last):
        return f"layout='channels_last' for {last} channels and length {first}"
    return ""


def _native(x: np.ndarray) -> np.ndarray:
    """The array in types of torch and the byte order of the machine, each sample in one place; copied if it is not."""
    wanted = x.dtype.newbyteorder("=")
    if x.dtype.kind == "u" and x.dtype.itemsize > 2:
        if x.itemsize == 8 and x.size and int(x.max()) > np.iinfo(np.int64).max:
            raise ValueError(f"the data must be below 2⁶³, got {int(x.max())}")
        wanted = np.dtype(np.int64)
    elif x.dtype.kind == "f" and x.dtype.itemsize > 8:
        wanted = np.dtype(np.float64)
    scattered = x.ndim > 0 and x.strides[0] < max(x.strides)
    if wanted == x.dtype and not scattered:
        return x
    form = "in another order" if scattered else f"of {x.dtype}"
    check_memory(f"an array {form}", x.size * wanted.itemsize, "save it as float32 or uint8 in the order of C")
    return np.ascontiguousarray(x, dtype=wanted)


def _channels_are_last(shape: tuple[int, ...]) -> bool:
    """Whether the channels of pixels are the last axis: 1, 3 or 4 on one side only, or any beside a square.

    Raises:
        ValueError: both or neither may be the axis of channels.
    """
    first, last = shape[1], shape[3]
    if (first in _CHANNELS) != (last in _CHANNELS):
        return last in _CHANNELS
    square_behind, square_before = shape[2] == shape[3], shape[1] == shape[2]
    if first in _CHANNELS or square_behind == square_before:
        raise ValueError(f"{shape} has channels before or after height and width: give layout='NCHW' or 'NHWC'")
    return square_before


def _labels_tensor(labels: np.ndarray) -> tuple[np.ndarray | None, torch.Tensor]:
    """The names of the classes, where the labels are names, and the labels."""
    if labels.dtype.kind in "US":
        if labels.ndim != 1:
            raise ValueError(f"labels that are names must have one axis, got shape {labels.shape}")
        names, classes = np.unique(labels.astype(str), return_inverse=True)
        return names, torch.from_numpy(classes.astype(np.int64))
    if labels.dtype.kind not in "iufb":
        raise TypeError(f"labels must be integers, one-hot rows or names, got {labels.dtype} of shape {labels.shape}")
    if labels.dtype.kind == "u" and labels.size:
        checks.between("labels", int(labels.max()), 0, 2**63 - 1)
    if labels.dtype.kind == "f" and labels.ndim == 1:
        raise ValueError(
            f"labels must be integers or one-hot rows, got torch.{labels.dtype} of shape {labels.shape}: numbers that "
            "are no classes are conditions, condition='labels', as the array is called (on the command line "
            "--data.condition)"
        )
    return None, torch.from_numpy(labels.astype({"f": np.float32, "b": np.bool_}.get(labels.dtype.kind, np.int64)))
