"""Datasets in memory, of samples with labels or conditions."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from openedm.conditions import find_incomplete, pack
from openedm.data.array_files import MAX_COPIED, check_memory
from openedm.data.classes import as_labels, number_classes, read_labels
from openedm.data.columns import MAX_FLOAT32
from openedm.data.dataset import Batch, Dataset, Indices, Kind, as_index
from openedm.data.stored import (
    FULL_RANGES,
    Layout,
    Range,
    Stored,
    as_float,
    find_stored,
    seem_images,
    value_limits,
    warn_of_values,
)
from openedm.ground.tensors import ArrayLike, as_tensor

Array = np.ndarray | list[Any] | ArrayLike
"""What is taken in place of a tensor: `openedm.ground.tensors.as_tensor`."""

__all__ = ["InMemory", "Pairs", "warn_of_rounding"]


_PART = 2**24
"""The number of entries that are converted or checked at a time."""

_NUM_ROUNDED = 1000
"""The number of samples of which float64 and float32 are compared."""

_MAX_ROUNDING = 0.01
"""The part of the width of a channel that its rounding to float32 may be, without a word."""


class InMemory(Dataset):
    """A dataset in one tensor.

    >>> import torch
    >>> dataset = InMemory(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.tensor([0, 1]))
    >>> dataset.fetch([1])
    (tensor([[2., 3.]]), tensor([1]))
    >>> dataset.describe()
    '2 vectors of 2 in 2 classes'

    Args:
        x: `(num_samples, *event)`, a tensor, an array, a table or lists. Floating point is kept unchanged without a
            `range`; uint8, uint16 and bool `(num_samples, channels, height, width)` are images, kept as they are and
            scaled from their full range to [-1, 1] when fetched. Other integers require a `range`.
        labels: class of each sample, integers >= 0 or one-hot rows.
        num_classes: at least 1 + the largest label; the number of names if names are given. By default one class for
            each label that occurs: labels that start at 1 or skip numbers are renumbered, and are the names of their
            classes.
        class_names: one name per class.
        kind: "images" or "vectors"; by default samples with three axes and values in [-1, 1] are images, unless these
            differ by less than 0.1.
        range: the two numbers in `x` that become −1 and 1, such as (0, 1) for pictures of torchvision's ToTensor. (-1,
            1) says that the values are right as they are.
        layout: "channels_last" (or "NHWC" for images) if the last axis of `x` is the channels, which becomes the first
            of an event; "channels_first" (or "NCHW") if a shape such as 32×32×3 does have 32 channels.

    Raises:
        TypeError: `x` or `labels` has another dtype.
        ValueError: there are no samples or there is no event axis, a value is not finite or outside `range`, images are
            outside [-1, 1], the channels seem to be in the last axis and `layout` is not given, or labels do not fit.

    Warns:
        UserWarning: floating-point images are in another range than [-1, 1], such as [0, 1], and `range` is not given;
            or so are bytes in [0, 1] and 16 bits in [0, 255] or [0, 4095], those of 12 bits.
    """

    def __init__(
        self,
        x: Shaped[Tensor, "samples *event"] | Array,
        labels: Shaped[Tensor, "..."] | Array | None = None,
        *,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        kind: Kind | None = None,
        range: Range | None = None,
        layout: Layout | None = None,
    ) -> None:
        x = as_tensor("x", x)
        labels = None if labels is None else as_labels("labels", labels)
        self._x, self.kind, stored = _read(x, kind, range, layout)
        self.stored = None if stored.is_default else stored
        found, hot = (None, None) if labels is None else read_labels(labels, len(x))
        known = hot if num_classes is None and class_names is None else num_classes
        numbers = number_classes(found, known, class_names)
        self._labels = None if found is None else numbers.of(found)
        self.num_classes, self.class_names, self.renumbered = numbers.num_classes, numbers.names, numbers.renumbered
        self.event_shape = tuple(self._x.shape[1:])

    def __len__(self) -> int:
        return len(self._x)

    def fetch(self, indices: Indices) -> Batch:
        index = as_index(indices, len(self))
        labels = None if self._labels is None else self._labels[index]
        return self._events(index), labels

    def __getstate__(self) -> dict[str, Any]:
        """The attributes, with tensors of uint16, which torch cannot pickle, as arrays."""
        return {
            name: value.numpy() if isinstance(value, Tensor) and value.dtype == torch.uint16 else value
            for name, value in self.__dict__.items()
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {
            name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in state.items()
        }

    def _events(self, index: Int[Tensor, " batch"]) -> Float[Tensor, "batch *event"]:
        return _rows(self._x, index)


def _rows(x: Shaped[Tensor, "samples *shape"], index: Int[Tensor, " batch"]) -> Float[Tensor, "batch *shape"]:
    """Some rows as float32; torch cannot index uint16."""
    return as_float(x.view(torch.int16)[index].view(torch.uint16) if x.dtype == torch.uint16 else x[index])


class Pairs(InMemory):
    """Samples x, each with a float condition and perhaps a class, in memory.

    With classes, `fetch` returns conditions of `openedm.conditions.pack`.

    >>> import torch
    >>> pairs = Pairs(torch.zeros(5, 2), torch.arange(15.0).reshape(5, 3))
    >>> pairs.fetch([1])
    (tensor([[0., 0.]]), tensor([[3., 4., 5.]]))
    >>> pairs.describe()
    '5 vectors of 2 with conditions of 3'
    >>> both = Pairs(torch.zeros(5, 2), torch.arange(15.0).reshape(5, 3), torch.tensor([0, 1, 0, 1, 1]))
    >>> both.fetch([1])
    (tensor([[0., 0.]]), tensor([[1., 3., 4., 5.]]))
    >>> both.describe()
    '5 vectors of 2 in 2 classes with conditions of 3'

    Args:
        x: `(num_samples, *event)`, as for `InMemory`.
        condition: `(num_samples, *condition)`, floating point, in any units; kept in float32. A vector (features,) is
            for the embedding of a network; an image with the spatial sizes of x is for its input. Images in uint8,
            uint16 or bool are kept as they are and scaled from their full range to [-1, 1] when fetched.
        labels, num_classes, class_names: as for `InMemory`.
        allow_nan: whether a condition may have NaN, which marks absent entries, such as members of a set; a condition
            without any number is no condition, for training with label_dropout.
        kind, range, layout: as for `InMemory`.

    Raises:
        TypeError: `x` or `condition` has another dtype.
        ValueError: the numbers of rows differ, the condition has one axis only, a value is not finite (in float32, for
            conditions), or as for `InMemory`; the message names the first such row.
    """

    condition_shape: tuple[int, ...]

    def __init__(
        self,
        x: Shaped[Tensor, "samples *event"] | Array,
        condition: Shaped[Tensor, "rows *condition"] | Array,
        labels: Shaped[Tensor, "..."] | Array | None = None,
        *,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        allow_nan: bool = False,
        kind: Kind | None = None,
        range: Range | None = None,
        layout: Layout | None = None,
    ) -> None:
        super().__init__(
            x, labels, num_classes=num_classes, class_names=class_names, kind=kind, range=range, layout=layout
        )
        x, condition = as_tensor("x", x), as_tensor("condition", condition)
        self._condition = _check_condition(condition, len(x), allow_nan)
        self.condition_shape = tuple(condition.shape[1:])
        self.incomplete = find_incomplete(self._condition) if allow_nan else ()

    def fetch(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """The samples at `indices`, and their conditions."""
        index = as_index(indices, len(self))
        condition = _rows(self._condition, index)
        if self._labels is not None:
            condition = pack(self._labels[index], condition)
        return self._events(index), condition


def _read(
    x: Shaped[Tensor, "samples *stored"], kind: Kind | None, range: Range | None, layout: Layout | None
) -> tuple[Shaped[Tensor, "samples *event"], Kind, Stored]:
    """The samples as they are kept in memory, their kind, and how they were stored; all checked."""
    if x.dim() < 2 or x.numel() == 0:
        hint = ": give samples of one number an axis, x[:, None]" if x.dim() == 1 and len(x) else ""
        raise ValueError(f"x must be (samples, *event) with at least one value, got shape {tuple(x.shape)}{hint}")
    stored = find_stored(x, range, layout)
    x = x.detach().movedim(-1, 1) if stored.channels_last else x.detach()
    if x.is_floating_point():
        _check_finite("x", x)
    warn_of_values(x, stored, images=kind != "vectors")
    full_range = range is None and stored.dtype in FULL_RANGES
    x = _kept(x) if full_range else _scaled(x, stored)
    low, high = (-1.0, 1.0) if full_range else value_limits(x)
    highest = max(abs(low), abs(high))
    if not math.isfinite(highest):
        _refuse_overflow("x", x)
    shape = tuple(x.shape[1:])
    known = range is not None and len(shape) == 3 and highest <= 1 + 1e-3
    kind = kind or ("images" if known or seem_images(shape, low, high) else "vectors")
    if kind == "images" and highest > 1 + 1e-3:
        raise ValueError(
            f"images must be in [-1, 1], but x reaches {highest:g}: give the numbers that become -1 and 1, such as "
            "range=(0, 255) for bytes, or kind='vectors'"
        )
    if (full_range or kind == "images") and (len(shape) != 3 or kind != "images"):
        other = f"; give range={FULL_RANGES[stored.dtype]} for other data in [-1, 1]" if full_range else ""
        raise ValueError(f"images must have shape (channels, height, width), got {shape} of {stored.dtype}{other}")
    return x, kind, stored


def _kept(x: Shaped[Tensor, "samples *event"]) -> Shaped[Tensor, "samples *event"]:
    """The numbers of a sample side by side, but without a copy of a large array."""
    return x.contiguous() if x.numel() * x.element_size() <= MAX_COPIED else x


def _scaled(x: Shaped[Tensor, "samples *event"], stored: Stored) -> Float[Tensor, "samples *event"]:
    """The numbers in float32, part by part, so that there is no other copy of a large array."""
    if x.dtype == torch.float32 and stored.range in (None, (-1.0, 1.0)):
        return _kept(x)
    check_memory(
        f"x in float32, of {stored.dtype},", 4 * x.numel(), "save float32, bytes or 16 bits, which are used as they are"
    )
    if stored.range is None:
        warn_of_rounding("x", x)
    rows = max(1, _PART * len(x) // x.numel())
    if rows >= len(x):
        return stored.scale(x).contiguous()
    scaled = torch.empty(x.shape, dtype=torch.float32)
    for part, into in zip(torch.split(x, rows), torch.split(scaled, rows), strict=True):
        into.copy_(stored.scale(part))
    return scaled


def warn_of_rounding(name: str, x: Shaped[Tensor, "samples *event"]) -> None:
    """Warn where float32 does not tell the numbers of a channel apart: 1e9 ± 1 become 1e9 or 1e9 + 64."""
    if x.dtype != torch.float64 or x.dim() < 2:
        return
    some = x[:: -(-len(x) // _NUM_ROUNDED)]
    some = some.reshape(len(some), x.shape[1], -1)
    error = (some - some.float().double()).square().nanmean((0, 2)).sqrt()
    mean = some.nanmean((0, 2))
    width = (some - mean[:, None]).square().nanmean((0, 2)).sqrt()
    varies = width > 1e-12 * mean.abs()  # less is the rounding of the sums
    coarse = (varies & error.isfinite() & (error > _MAX_ROUNDING * width)).nonzero()[:, 0].tolist()
    if coarse:
        i = coarse[0]
        warnings.warn(
            f"{name} is kept in float32, which changes channel {i}, {float(mean[i]):.10g} ± {float(width[i]):.3g}, by "
            f"{float(error[i]):.2g}: subtract the mean of {name} and divide by its width before",
            stacklevel=5,
        )


def _check_finite(name: str, x: Float[Tensor, "samples *event"], *, allow_nan: bool = False) -> None:
    if not allow_nan and all(map(math.isfinite, value_limits(x))):
        return
    rows = max(1, _PART * len(x) // x.numel())
    for number, part in enumerate(torch.split(x, rows)):
        invalid = part.isinf() if allow_nan else ~part.isfinite()
        if bool(invalid.any()):
            first = int(invalid.flatten(1).any(1).nonzero()[0])
            row, share = number * rows + first, float(invalid[first].double().mean())
            allowed, found = ("finite or NaN", "infinity") if allow_nan else ("finite", "NaN or infinity")
            raise ValueError(
                f"{name} must be {allowed}, but {name}[{row}] has {found} in {share:.2g} of its entries: put numbers "
                "in their place, such as the mean of the channel, or leave such samples out"
            )


def _refuse_overflow(name: str, x: Float[Tensor, "samples *event"]) -> None:
    row = int(x.isinf().flatten(1).any(1).nonzero()[0])
    raise ValueError(
        f"{name} must be in the range of float32, up to {MAX_FLOAT32:g}, but {name}[{row}] is not: use other units"
    )


def _check_condition(
    condition: Shaped[Tensor, "..."], samples: int, allow_nan: bool
) -> Shaped[Tensor, "samples *condition"]:
    full_range = str(condition.dtype).removeprefix("torch.") in FULL_RANGES and condition.dim() > 3
    if not condition.is_floating_point() and not full_range:
        raise TypeError(f"condition must be floating point, or images in uint8, uint16 or bool, got {condition.dtype}")
    if condition.dim() < 2 or len(condition) != samples or condition.numel() == 0:
        raise ValueError(
            f"condition must have shape ({samples}, *condition), one row per sample, got {tuple(condition.shape)}"
        )
    if full_range:
        return condition.detach().contiguous()
    warn_of_rounding("condition", condition.detach())
    _check_finite("condition", condition.detach(), allow_nan=allow_nan)
    condition = condition.detach().float()
    if bool(condition.isinf().any()):
        _refuse_overflow("condition", condition)
    return condition
