"""Datasets in memory, of samples with labels or conditions, and any torch dataset as a `Dataset`."""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from openedm.conditions import pack
from openedm.data.dataset import Batch, Dataset, Indices, Kind, as_float, as_index

__all__ = ["InMemory", "Pairs", "wrap"]


class InMemory(Dataset):
    """A dataset in one tensor.

    >>> import torch
    >>> dataset = InMemory(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.tensor([0, 1]))
    >>> dataset.fetch([1])
    (tensor([[2., 3.]]), tensor([1]))
    >>> dataset.describe()
    '2 vectors of 2 in 2 classes'

    Args:
        x: `(num_samples, *event)`. Floating point is kept unchanged; uint8 `(num_samples, channels, height, width)` is
            images, kept as bytes and scaled to [-1, 1] when fetched.
        labels: class of each sample, integers >= 0.
        num_classes: at least 1 + the largest label, which is the default; the number of names if names are given.
        class_names: one name per class.
        kind: "images" or "vectors"; by default samples with three axes and values in [-1, 1] are images.

    Raises:
        TypeError: `x` or `labels` has another dtype.
        ValueError: there are no samples or there is no event axis, a value is not finite, images are outside [-1, 1],
            or labels do not fit.
    """

    def __init__(
        self,
        x: Shaped[Tensor, "samples *event"],
        labels: Int[Tensor, " samples"] | None = None,
        *,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        kind: Kind | None = None,
    ) -> None:
        if not (x.is_floating_point() or x.dtype == torch.uint8):
            raise TypeError(f"x must be floating point or uint8, got {x.dtype}")
        if x.dim() < 2 or x.numel() == 0:
            raise ValueError(f"x must be (samples, *event) with at least one value, got shape {tuple(x.shape)}")
        self._x = x.detach() if x.dtype == torch.uint8 else x.detach().float()
        if x.dtype != torch.uint8:
            _check_finite("x", self._x)
        self._labels = None if labels is None else _check_labels(labels, len(x))
        self.event_shape = tuple(x.shape[1:])
        in_range = x.dtype == torch.uint8 or float(self._x.abs().max()) <= 1 + 1e-3
        self.kind = kind or ("images" if len(self.event_shape) == 3 and in_range else "vectors")
        if self.kind == "images" and not in_range:
            raise ValueError(
                f"images must be in [-1, 1], but x reaches {float(self._x.abs().max()):g}: scale it, for example "
                "x / 127.5 - 1 for bytes, or give kind='vectors'"
            )
        if (x.dtype == torch.uint8 or self.kind == "images") and (len(self.event_shape) != 3 or self.kind != "images"):
            raise ValueError(f"images must have shape (channels, height, width), got {self.event_shape} of {x.dtype}")
        largest = None if self._labels is None else int(self._labels.max())
        self.num_classes, self.class_names = _classes(largest, num_classes, class_names)

    def __len__(self) -> int:
        return len(self._x)

    def fetch(self, indices: Indices) -> Batch:
        index = as_index(indices, len(self))
        labels = None if self._labels is None else self._labels[index]
        return as_float(self._x[index]), labels


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
            for the embedding of a network; an image with the spatial sizes of x is for its input.
        labels, num_classes, class_names: as for `InMemory`.
        allow_nan: whether a condition may have NaN, which marks absent entries, such as members of a set.
        kind: as for `InMemory`.

    Raises:
        TypeError: `x` or `condition` has another dtype.
        ValueError: the numbers of rows differ, the condition has one axis only, a value is not finite (in float32, for
            conditions), or as for `InMemory`; the message names the first such row.
    """

    condition_shape: tuple[int, ...]

    def __init__(
        self,
        x: Shaped[Tensor, "samples *event"],
        condition: Float[Tensor, "rows *condition"],
        labels: Shaped[Tensor, "rows ..."] | None = None,
        *,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        allow_nan: bool = False,
        kind: Kind | None = None,
    ) -> None:
        super().__init__(x, labels, num_classes=num_classes, class_names=class_names, kind=kind)
        self._condition = _check_condition(condition, len(x), allow_nan)
        self.condition_shape = tuple(condition.shape[1:])

    def fetch(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """The samples at `indices`, and their conditions."""
        index = as_index(indices, len(self))
        condition = self._condition[index]
        if self._labels is not None:
            condition = pack(self._labels[index], condition)
        return as_float(self._x[index]), condition


class _WrappedDataset(Dataset):
    def __init__(
        self,
        dataset: torch.utils.data.Dataset[Any],
        num_classes: int | None,
        class_names: Sequence[str] | None,
        kind: Kind | None,
    ) -> None:
        self._dataset = dataset
        self._length = len(dataset)  # type: ignore[arg-type]
        if self._length == 0:
            raise ValueError("dataset has no samples")
        x, label = _split_item(dataset[0], 0)
        names = (
            class_names if class_names is not None else getattr(dataset, "classes", None) if label is not None else None
        )
        if label is not None and num_classes is None and names is None:
            raise ValueError("num_classes must be given: the dataset has labels, but no list `classes`")
        self.event_shape = tuple(x.shape)
        self.kind = kind or ("images" if x.dim() == 3 else "vectors")
        self.num_classes, self.class_names = _classes(None if label is None else 0, num_classes, names)

    def __len__(self) -> int:
        return self._length

    def fetch(self, indices: Indices) -> Batch:
        items = [self._item(i) for i in as_index(indices, len(self)).tolist()]
        x = torch.stack([x for x, _ in items]) if items else torch.empty(0, *self.event_shape)
        return x, torch.tensor([label for _, label in items], dtype=torch.int64) if self.num_classes else None

    def _item(self, index: int) -> tuple[Tensor, int | None]:
        x, label = _split_item(self._dataset[index], index)
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
) -> Dataset:
    """A map-style torch dataset whose items are `x`, `(x,)` or `(x, label)`, as a `Dataset`.

    Args:
        dataset: `x` is a tensor or array. Floating point is kept unchanged (scale images to [-1, 1]); uint8
            (channels, height, width) is scaled from 0 … 255 to [-1, 1].
        num_classes: required for labels, unless there are `class_names` or the dataset has a list `classes`.
        class_names: one name per class.
        kind: "images" or "vectors"; by default samples with three axes are images.

    Raises:
        ValueError: `dataset` is empty, or the number of classes is not known. When fetched: a sample differs in shape
            from the first, is not finite, or has a label that does not fit; the message names the index.

    >>> pairs = torch.utils.data.TensorDataset(torch.zeros(5, 2), torch.arange(5))
    >>> wrap(pairs, num_classes=5).describe()
    '5 vectors of 2 in 5 classes'
    """
    return _WrappedDataset(dataset, num_classes, class_names, kind)


def _split_item(item: Any, index: int) -> tuple[Tensor, int | None]:
    x, label = (*item, None)[:2] if isinstance(item, tuple | list) else (item, None)
    if isinstance(x, np.ndarray):
        x = torch.as_tensor(x)
    if not isinstance(x, Tensor) or not (x.is_floating_point() or x.dtype == torch.uint8):
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"dataset[{index}] must be a floating-point or uint8 tensor or array, got {got}")
    return as_float(x), None if label is None else operator.index(label)


def _check_finite(name: str, x: Float[Tensor, "samples *event"], *, allow_nan: bool = False) -> None:
    invalid = x.isinf() if allow_nan else ~x.isfinite()
    if bool(invalid.any()):
        row = int(invalid.flatten(1).any(1).nonzero()[0])
        allowed, found = ("finite or NaN", "infinity") if allow_nan else ("finite", "NaN or infinity")
        raise ValueError(f"{name} must be {allowed}, but {name}[{row}] has {found}")


def _check_labels(labels: Shaped[Tensor, "..."], samples: int) -> Int[Tensor, " samples"]:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    if tuple(labels.shape) != (samples,):
        raise ValueError(f"labels must have shape ({samples},), one per sample, got {tuple(labels.shape)}")
    if int(labels.min()) < 0:
        raise ValueError(f"labels must be >= 0, got {int(labels.min())}")
    return labels.detach().to(torch.int64)


def _classes(
    largest: int | None, num_classes: int | None, names: Sequence[str] | None
) -> tuple[int, tuple[str, ...] | None]:
    """The number and names of the classes, from the `largest` label (None without labels)."""
    if largest is None:
        if num_classes or names:
            raise ValueError(
                f"num_classes and class_names must be None for data without labels, got {num_classes} and {names}"
            )
        return 0, None
    count = num_classes if num_classes is not None else len(names) if names is not None else largest + 1
    if count <= largest:
        raise ValueError(f"num_classes must be > the largest label {largest}, got {count}")
    if names is not None and len(names) != count:
        raise ValueError(f"class_names must have {count} names, one per class, got {len(names)}")
    return count, None if names is None else tuple(map(str, names))


def _check_condition(
    condition: Shaped[Tensor, "..."], samples: int, allow_nan: bool
) -> Float[Tensor, "samples *condition"]:
    if not condition.is_floating_point():
        raise TypeError(f"condition must be floating point, got {condition.dtype}")
    if condition.dim() < 2 or len(condition) != samples or condition.numel() == 0:
        raise ValueError(
            f"condition must have shape ({samples}, *condition), one row per sample, got {tuple(condition.shape)}"
        )
    condition = condition.detach().float()
    _check_finite("condition", condition, allow_nan=allow_nan)
    return condition
