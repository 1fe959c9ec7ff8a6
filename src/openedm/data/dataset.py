"""Data as samples x of one shape, float32, with an optional class label each.

Images are (channels, height, width) in [-1, 1], x = byte / 127.5 − 1; everything else is taken in its own units.
"""

import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from openedm.ground import checks
from openedm.ground.choices import Choice

_PROBED = 32
"""So many chunks stand for all."""

Kind = Literal["images", "vectors"]
Indices = Sequence[int] | Int[Tensor, "batch"]
Batch = tuple[Float[Tensor, "batch *event"], Int[Tensor, "batch"] | Float[Tensor, "batch *condition"] | None]


@dataclass(frozen=True)
class Chunks:
    """Which samples lie together, for data that are read part by part: the order of training heeds it.

    A pass takes the chunks in a random order and deals them to `lanes`, which are read side by side; in each lane the
    samples are shuffled within its share of the `window`. Processes that share a batch read lanes of their own, and so
    chunks of their own, where their number divides that of the lanes; the order is the same for any number.

    Args:
        sizes: samples in each chunk, in the order of the samples.
        window: samples that are shuffled among each other, over all lanes. More mix better and take more memory.
        lanes: chunks that are read side by side; a multiple of the number of processes.

    Raises:
        ValueError: no chunks, an empty one, or a number below 1.
    """

    sizes: tuple[int, ...]
    window: int = 8192
    lanes: int = 8

    def __post_init__(self) -> None:
        checks.at_least("window", self.window, 1)
        checks.at_least("lanes", self.lanes, 1)
        checks.at_least("the number of chunks", len(self.sizes), 1)
        checks.at_least("the smallest of sizes", min(self.sizes), 1)

    @property
    def open_at_once(self) -> int:
        """How many chunks a reader of all lanes shuffles among at a time, at most about."""
        smallest = min(self.sizes) if len(self.sizes) == 1 else sorted(self.sizes)[len(self.sizes) // 2]
        return min(len(self.sizes), self.lanes * (2 + self.window // (self.lanes * smallest)))


class Dataset(torch.utils.data.Dataset[tuple[Tensor, int | Tensor | None]], ABC):
    """Samples of one shape with optional class labels or conditions: a map-style torch dataset with a fast path.

    A subclass sets the four attributes and defines `__len__` and `fetch`. Instances can be pickled (worker processes).
    Items of an unlabelled dataset are `(x, None)`, which torch's `default_collate` cannot stack: use `fetch` there.

    Attributes:
        event_shape: shape of one sample; (channels, height, width) for images.
        num_classes: labels are 0 … num_classes − 1; 0 when there are none.
        class_names: one name per class, where the source has names.
        kind: "images" are in [-1, 1] and can be drawn; "vectors" are everything else.
        condition_shape: shape of the float condition that each sample has in place of a label, with `num_classes` 0;
            None when there is none.
        chunks: which samples lie together, where that is to be heeded in training; None where any order is as fast.
    """

    event_shape: tuple[int, ...]
    num_classes: int
    class_names: tuple[str, ...] | None
    kind: Kind
    condition_shape: tuple[int, ...] | None = None
    chunks: Chunks | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def fetch(self, indices: Indices) -> Batch:
        """The samples at `indices`, in that order, as float32 `(batch, *event)`, and their int64 labels or None.

        With a `condition_shape`: and their float32 conditions `(batch, *condition_shape)`.

        Raises:
            IndexError: an index lies outside 0 … len − 1.
        """

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor | None]:
        """Sample `index` (counted from the end where negative) and its label or condition, None without either."""
        index = operator.index(index)
        x, labels = self.fetch([index + len(self) if index < 0 else index])
        if labels is None or self.condition_shape is not None:
            return x[0], None if labels is None else labels[0]
        return x[0], int(labels[0])

    def spread(self, count: int) -> list[int]:
        """Indices of `count` samples (or all) at even distances, the same every time, to judge the whole by.

        Of data with more than 32 chunks they are taken from 32 of these, at even distances, so that few are read.
        """
        # Integers, so that no rounding decides.
        if self.chunks is None or len(self.chunks.sizes) <= _PROBED:
            count = min(count, len(self))
            return [i * len(self) // count for i in range(count)]
        sizes = self.chunks.sizes
        starts = [0, *accumulate(sizes)]
        probed = [i * len(sizes) // _PROBED for i in range(_PROBED)]
        places = [index for i in probed for index in range(starts[i], starts[i] + sizes[i])]
        count = min(count, len(places))
        return [places[i * len(places) // count] for i in range(count)]

    def describe(self) -> str:
        """One line on what this is, such as "1437 images of 1×8×8 in 10 classes"."""
        shape = "×".join(map(str, self.event_shape))
        classes = f"in {self.num_classes} classes" if self.num_classes else "without labels"
        if self.condition_shape is not None:
            classes = f"with conditions of {'×'.join(map(str, self.condition_shape))}"
        return f"{len(self)} {self.kind} of {shape} {classes}"


class Source(Choice, ABC):
    """Where the data comes from."""

    @abstractmethod
    def load(self) -> Dataset:
        """The dataset itself, checked as far as that is cheap."""


class InMemory(Dataset):
    """A dataset held in one tensor.

    >>> import torch
    >>> dataset = InMemory(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.tensor([0, 1]))
    >>> dataset.fetch([1])
    (tensor([[2., 3.]]), tensor([1]))
    >>> dataset.describe()
    '2 vectors of 2 in 2 classes'

    Args:
        x: `(num_samples, *event)`. Floating point is taken as it is; uint8 `(num_samples, channels, height, width)` is
            images, kept as bytes and scaled to [-1, 1] when fetched.
        labels: class of each sample, integers >= 0.
        num_classes: at least 1 + the largest label, which is the default; the number of names where names are given.
        class_names: one name per class.
        kind: "images" or "vectors"; by default samples with three axes and values in [-1, 1] are images.

    Raises:
        TypeError: `x` or `labels` has another dtype.
        ValueError: no samples, no event axis, a value that is not finite, images outside [-1, 1], or labels that do not
            fit.
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
        self._x = x.detach() if x.dtype == torch.uint8 else _all_finite(x.detach().float())
        self._labels = None if labels is None else _checked_labels(labels, len(x))
        self.event_shape = tuple(x.shape[1:])
        in_range = x.dtype == torch.uint8 or float(self._x.abs().max()) <= 1 + 1e-3
        self.kind = kind or ("images" if len(self.event_shape) == 3 and in_range else "vectors")
        if self.kind == "images" and not in_range:
            raise ValueError(
                f"images must be in [-1, 1], but x reaches {float(self._x.abs().max()):g}: scale it, for example "
                "x / 127.5 - 1 for bytes, or say kind='vectors'"
            )
        if (x.dtype == torch.uint8 or self.kind == "images") and (len(self.event_shape) != 3 or self.kind != "images"):
            raise ValueError(f"images are (channels, height, width): x of {x.dtype} and {self.event_shape} is not")
        largest = None if self._labels is None else int(self._labels.max())
        self.num_classes, self.class_names = _classes(largest, num_classes, class_names)

    def __len__(self) -> int:
        return len(self._x)

    def fetch(self, indices: Indices) -> Batch:
        index = as_index(indices, len(self))
        labels = None if self._labels is None else self._labels[index]
        return as_float(self._x[index]), labels


class _Wrapped(Dataset):
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
        x, label = _split(dataset[0], 0)
        names = (
            class_names if class_names is not None else getattr(dataset, "classes", None) if label is not None else None
        )
        if label is not None and num_classes is None and names is None:
            raise ValueError("num_classes must be given: the dataset has labels, but no list `classes` to count")
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
        x, label = _split(self._dataset[index], index)
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
    """Your own map-style torch dataset, which yields `x`, `(x,)` or `(x, label)`, as a `Dataset`.

    Args:
        dataset: `x` is a tensor or array. Floating point is taken as it is (scale images to [-1, 1]); uint8
            (channels, height, width) is scaled from 0 … 255 to [-1, 1].
        num_classes: needed for labels, unless there are `class_names` or the dataset has a list `classes`.
        class_names: one name per class.
        kind: "images" or "vectors"; by default samples with three axes are images.

    Raises:
        ValueError: `dataset` is empty, or the number of classes cannot be known. When fetched: a sample differs in
            shape from the first, is not finite, or has a label that does not fit; each names the index.

    >>> pairs = torch.utils.data.TensorDataset(torch.zeros(5, 2), torch.arange(5))
    >>> wrap(pairs, num_classes=5).describe()
    '5 vectors of 2 in 5 classes'
    """
    return _Wrapped(dataset, num_classes, class_names, kind)


def as_index(indices: Indices, length: int) -> Int[Tensor, " batch"]:
    """`indices` as an int64 tensor; IndexError where one lies outside 0 … length − 1."""
    index = torch.as_tensor(indices, dtype=torch.int64)
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < length:
        raise IndexError(f"indices must be between 0 and {length - 1}, got {int(index.min())} … {int(index.max())}")
    return index


def as_float(x: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`x` as float32; bytes 0 … 255 are scaled to [-1, 1]."""
    return x.float().div_(127.5).sub_(1) if x.dtype == torch.uint8 else x.float()


def _split(item: Any, index: int) -> tuple[Tensor, int | None]:
    x, label = (*item, None)[:2] if isinstance(item, tuple | list) else (item, None)
    if isinstance(x, np.ndarray):
        x = torch.as_tensor(x)
    if not isinstance(x, Tensor) or not (x.is_floating_point() or x.dtype == torch.uint8):
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"dataset[{index}] must be a floating-point or uint8 tensor or array, got {got}")
    return as_float(x), None if label is None else operator.index(label)


def _all_finite(x: Tensor) -> Tensor:
    if not x.isfinite().all():
        bad = int((~x.isfinite()).flatten(1).any(1).nonzero()[0])
        raise ValueError(f"x must be finite, but x[{bad}] has NaN or infinity")
    return x


def _checked_labels(labels: Tensor, samples: int) -> Tensor:
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
    """Number and names of the classes, given the `largest` label seen (None: unlabelled)."""
    if largest is None:
        if num_classes or names:
            raise ValueError("num_classes and class_names need labels, but there are none")
        return 0, None
    count = num_classes if num_classes is not None else len(names) if names is not None else largest + 1
    if count <= largest:
        raise ValueError(f"num_classes must be > the largest label {largest}, got {count}")
    if names is not None and len(names) != count:
        raise ValueError(f"class_names must have {count} names, one per class, got {len(names)}")
    return count, None if names is None else tuple(map(str, names))
