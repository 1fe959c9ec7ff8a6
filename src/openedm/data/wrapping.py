"""What may be given for a dataset: tensors, arrays, pairs with labels or conditions, and torch datasets."""

import operator
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from openedm.data.classes import as_labels, number_classes
from openedm.data.dataset import Batch, Dataset, Indices, Kind, Source, as_index
from openedm.data.memory import InMemory, Pairs, warn_of_rounding
from openedm.data.stored import (
    FULL_RANGES,
    Layout,
    Range,
    find_stored,
    seem_images,
    value_limits,
    warn_of_values,
)
from openedm.ground.tensors import ArrayLike, as_tensor

__all__ = ["as_dataset", "wrap"]

_NUM_PROBED = 8
"""The number of samples of a wrapped dataset whose values are compared with the range of images."""


def as_dataset(value: Any, name: str = "dataset") -> Dataset:
    """A `Dataset` from what users have; a `Dataset` itself is returned unchanged.

    Args:
        value: a `Dataset`; a `Source`, which is loaded; a tensor, array or table (samples, *event); a pair (x, labels)
            with integer labels (samples,), or (x, conditions) with floats (samples, *condition); or a map-style torch
            dataset, as for `wrap`.
        name: the name of the argument, for messages.

    Raises:
        TypeError: it is something else; the message says what a dataset is.
        ValueError: the values do not fit, as for `InMemory`, `Pairs` and `wrap`.

    >>> as_dataset((torch.zeros(5, 2), torch.arange(5))).describe()
    '5 vectors of 2 in 5 classes'
    """
    if isinstance(value, Dataset):
        return value
    if isinstance(value, Source):
        return value.load()
    if _is_array(value):
        return InMemory(as_tensor(name, value))
    if isinstance(value, tuple) and len(value) == 2 and all(map(_is_array, value)):
        x, labels = as_tensor(name, value[0]), as_labels(f"the labels of {name}", value[1])
        if labels.is_floating_point() and labels.ndim == 1:
            raise ValueError(
                f"the second of the pair {name} must be integer labels (samples,) or floats (samples, *condition), got "
                f"{labels.dtype} of shape {tuple(labels.shape)}: write labels.long() for classes, or values[:, None]"
            )
        return Pairs(x, labels) if labels.is_floating_point() else InMemory(x, labels)
    sized = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    if sized and not isinstance(value, str | list | tuple | dict | torch.utils.data.IterableDataset):
        return wrap(value)
    hint = ": openedm.data.Arrays(path) or ImageFolder(path) read files" if isinstance(value, str | os.PathLike) else ""
    raise TypeError(
        f"{name} must be a Dataset (openedm.data.Dataset, with __len__ and fetch(indices)), a Source, a tensor or "
        f"array (samples, *event), a pair (x, labels), or a torch dataset with __len__ and __getitem__, got "
        f"{type(value).__name__}{hint}"
    )


def _is_array(value: Any) -> bool:
    """Whether it is a tensor, an array or a table, as of pandas or xarray, whose items are columns or have names."""
    return isinstance(value, Tensor | np.ndarray) or (isinstance(value, ArrayLike) and hasattr(value, "to_numpy"))


class _WrappedDataset(Dataset):
    def __init__(
        self,
        dataset: torch.utils.data.Dataset[Any],
        num_classes: int | None,
        class_names: Sequence[str] | None,
        kind: Kind | None,
        range: Range | None,
        layout: Layout | None,
    ) -> None:
        self._dataset = dataset
        self._length = len(dataset)  # type: ignore[arg-type]
        if self._length == 0:
            raise ValueError("dataset has no samples")
        try:
            item = dataset[0]
        except (KeyError, TypeError) as error:
            raise TypeError(
                f"dataset must have samples dataset[0], dataset[1], …, got {type(dataset).__name__}: {error}; of "
                "several named arrays, as in a file or a Dataset of xarray, give one, such as dataset['name']"
            ) from error
        first, label = _split_item(item, 0)
        self._stored = find_stored(first[None], range, layout, name="dataset")
        self.stored = None if self._stored.is_default else self._stored
        probed = self._probe()
        warn_of_values(probed, self._stored, images=kind != "vectors", name="dataset")
        if self._stored.range is None:
            warn_of_rounding("dataset", probed)
        x = self._stored.events(first[None])[0]
        names = (
            class_names if class_names is not None else getattr(dataset, "classes", None) if label is not None else None
        )
        if label is not None and num_classes is None and names is None:
            raise ValueError("num_classes must be given: the dataset has labels, but no list `classes`")
        self.event_shape = tuple(x.shape)
        known = self._stored.range is not None or self._stored.dtype in FULL_RANGES
        limits = (-1.0, 1.0) if known else value_limits(probed)
        self.kind = kind or ("images" if seem_images(self.event_shape, *limits) else "vectors")
        numbers = number_classes(None if label is None else torch.zeros(1, dtype=torch.int64), num_classes, names)
        self.num_classes, self.class_names = numbers.num_classes, numbers.names

    def __len__(self) -> int:
        return self._length

    def fetch(self, indices: Indices) -> Batch:
        items = [self._item(i) for i in as_index(indices, len(self)).tolist()]
        x = torch.stack([x for x, _ in items]) if items else torch.empty(0, *self.event_shape)
        return x, torch.tensor([label for _, label in items], dtype=torch.int64) if self.num_classes else None

    def _probe(self) -> Shaped[Tensor, "probed *event"]:
        """Some samples in the axes of events, for their values."""
        chosen = [i * len(self) // _NUM_PROBED for i in range(min(len(self), _NUM_PROBED))]
        x = [_split_item(self._dataset[i], i)[0] for i in dict.fromkeys(chosen)]
        found = torch.stack([one for one in x if one.shape == x[0].shape])
        return found.movedim(-1, 1) if self._stored.channels_last else found

    def _item(self, index: int) -> tuple[Tensor, int | None]:
        x, label = _split_item(self._dataset[index], index)
        x = self._stored.events(x[None])[0]
        if tuple(x.shape) != self.event_shape:
            raise ValueError(f"dataset[{index}] has shape {tuple(x.shape)}, but dataset[0] has {self.event_shape}")
        if not x.isfinite().all():
            raise ValueError(f"dataset[{index}] has values that are not finite")
        if (label is None) != (self.num_classes == 0) or (label is not None and not 0 <= label < self.num_classes):
            raise ValueError(f"dataset[{index}] has label {label}, but num_classes is {self.num_classes}")
        return x, label


def wrap(
    dataset: torch.utils.data.Dataset[Any],
    *,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    kind: Kind | None = None,
    range: Range | None = None,
    layout: Layout | None = None,
) -> Dataset:
    """A map-style torch dataset whose items are `x`, `(x,)` or `(x, label)`, as a `Dataset`.

    Args:
        dataset: `x` is a tensor or array. Floating point is kept unchanged without a `range`; uint8, uint16 and bool
            are scaled from their full range to [-1, 1].
        num_classes: required for labels, unless there are `class_names` or the dataset has a list `classes`.
        class_names: one name per class.
        kind: "images" or "vectors"; by default samples with three axes are images, where the first of them are in
            [-1, 1] and differ by at least 0.1.
        range, layout: as for `InMemory`, such as range=(0, 1) after torchvision's ToTensor.

    Raises:
        ValueError: `dataset` is empty, or the number of classes is not known; or as for `InMemory`. When
            fetched: a sample differs in shape from the first, is not finite, or has a label that does not fit; the
            message names the index.

    >>> pairs = torch.utils.data.TensorDataset(torch.zeros(5, 2), torch.arange(5))
    >>> wrap(pairs, num_classes=5).describe()
    '5 vectors of 2 in 5 classes'
    """
    return _WrappedDataset(dataset, num_classes, class_names, kind, range, layout)


def _split_item(item: Any, index: int) -> tuple[Tensor, int | None]:
    x, label = (*item, None)[:2] if isinstance(item, tuple | list) else (item, None)
    if isinstance(x, np.ndarray) and x.dtype.kind in "fiub":
        x = as_tensor(f"dataset[{index}]", x)
    if not isinstance(x, Tensor) or x.is_complex():
        got = x.dtype if isinstance(x, Tensor | np.ndarray) else type(x).__name__
        raise TypeError(f"dataset[{index}] must be a floating-point, integer or bool tensor or array, got {got}")
    try:
        return x, None if label is None else operator.index(label)
    except TypeError as error:
        raise TypeError(
            f"dataset[{index}] must have an integer as its label, got {type(label).__name__}: numbers and vectors are "
            "conditions, Pairs(x, condition), or a Dataset of your own with a condition_shape"
        ) from error
