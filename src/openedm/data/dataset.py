"""Data sets: samples x of one shape, float32, each with an optional class label or condition.

Images are (channels, height, width) in [-1, 1], x = byte / 127.5 − 1; all other data keep their own units.
"""

import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from openedm.conditions import ConditionLayout
from openedm.data.autoencoder import Autoencoder
from openedm.data.stored import Stored
from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.ground.seeding import host_seeded
from openedm.units import Units

__all__ = [
    "Batch",
    "Chunks",
    "Dataset",
    "Indices",
    "Kind",
    "Source",
    "as_index",
    "fetch_seeded",
]

_MAX_PROBED_CHUNKS = 32
"""The largest number of chunks from which `Dataset.spread` takes samples."""

Kind = Literal["images", "vectors"]
Indices = Sequence[int] | Int[Tensor, "batch"]
Batch = tuple[Float[Tensor, "batch *event"], Int[Tensor, "batch"] | Float[Tensor, "batch *condition"] | None]


@dataclass(frozen=True)
class Chunks:
    """The grouping of samples in storage, for data that training reads part by part.

    A pass takes the chunks in a random order and distributes them over `lanes`, which are read in parallel; in each
    lane the samples are shuffled within its part of the `window`. Processes that share a batch read separate lanes, and
    so separate chunks, if their number divides that of the lanes; the order is the same for any number.

    Args:
        sizes: the number of samples in each chunk, in the order of the samples.
        window: the number of samples that are shuffled together, over all lanes. More mix better and need more memory.
        lanes: the number of chunks that are read in parallel; a multiple of the number of processes.

    Raises:
        ValueError: there are no chunks, a chunk is empty, or a number is below 1.
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
        """About the largest number of chunks whose samples a reader of all lanes shuffles at a time."""
        middle = sorted(self.sizes)[len(self.sizes) // 2]
        return min(len(self.sizes), self.lanes * (2 + self.window // (self.lanes * middle)))


class Dataset(torch.utils.data.Dataset[tuple[Tensor, int | Tensor | None]], ABC):
    """Samples of one shape with optional class labels or conditions: a map-style torch dataset with a fast path.

    A subclass sets the four attributes and defines `__len__` and `fetch`. Instances can be pickled (worker processes).
    Items of an unlabelled dataset are `(x, None)`, which torch's `default_collate` cannot stack: use `fetch` there.

    Attributes:
        event_shape: shape of one sample; (channels, height, width) for images.
        num_classes: labels are 0 … num_classes − 1; 0 when there are no labels.
        class_names: one name per class, if the source has names.
        renumbered: the labels of the classes in increasing order, where labels that start at 1 or skip numbers were
            renumbered; None where a label is its class.
        kind: "images" are in [-1, 1] and can be shown; "vectors" are all other data.
        condition_shape: shape of the float condition that each sample has in place of a label, or beside it with
            `num_classes` > 0; None when there is none.
        stored: the numbers and axes in which the samples are stored, which samples of a model are converted back to;
            None for bytes of images, and for data that are used as they are.
        chunks: the grouping of samples in storage, if training should follow it; None if any order is as fast.
        incomplete: samples whose float conditions have NaN, one of each kind: a first without any number, and a first
            with some. Before the first step, training checks that the network takes them.
        random: whether `fetch` draws random numbers, from torch's global generator on the host.
        units: the units in which models standardise the data, if these are not to be measured.
        autoencoder: that of which the data are latents, if it is known.
    """

    event_shape: tuple[int, ...]
    num_classes: int
    class_names: tuple[str, ...] | None
    renumbered: tuple[int, ...] | None = None
    kind: Kind
    condition_shape: tuple[int, ...] | None = None
    stored: Stored | None = None
    chunks: Chunks | None = None
    incomplete: tuple[int, ...] = ()
    random: bool = False
    units: Units | None = None
    autoencoder: Autoencoder | None = None

    @property
    def condition_layout(self) -> ConditionLayout:
        """What the second value of a batch holds: classes, floats or both."""
        return ConditionLayout(self.num_classes, self.condition_shape)

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def fetch(self, indices: Indices) -> Batch:
        """The samples at `indices`, in that order, as float32 `(batch, *event)`, and their int64 labels or None.

        With a `condition_shape`: and their float32 conditions `(batch, *condition_shape)`; with classes, too, those of
        `openedm.conditions.pack`.

        Raises:
            IndexError: an index is outside 0 … len − 1.
        """

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor | None]:
        """Sample `index` (counted from the end if negative) and its label or condition; None if it has neither.

        A sample with both has the packed condition.
        """
        index = operator.index(index)
        x, labels = self.fetch([index + len(self) if index < 0 else index])
        if labels is None or self.condition_shape is not None:
            return x[0], None if labels is None else labels[0]
        return x[0], int(labels[0])

    def spread(self, count: int) -> list[int]:
        """Indices of `count` samples (or all) at even distances, the same every time, that represent the dataset.

        For data with more than 32 chunks they are taken from 32 of these, at even distances, so that few chunks are
        read.
        """
        # Integers, so that the result does not depend on rounding.
        if self.chunks is None or len(self.chunks.sizes) <= _MAX_PROBED_CHUNKS:
            count = min(count, len(self))
            return [i * len(self) // count for i in range(count)]
        sizes = self.chunks.sizes
        starts = [0, *accumulate(sizes)]
        probed = [i * len(sizes) // _MAX_PROBED_CHUNKS for i in range(_MAX_PROBED_CHUNKS)]
        places = [index for i in probed for index in range(starts[i], starts[i] + sizes[i])]
        count = min(count, len(places))
        return [places[i * len(places) // count] for i in range(count)]

    def describe(self) -> str:
        """One line such as "1437 images of 1×8×8 in 10 classes"."""
        shape = "×".join(map(str, self.event_shape))
        classes = f"in {self.num_classes} classes" if self.num_classes else "without labels"
        if self.renumbered is not None:
            first, last = self.renumbered[0], self.renumbered[-1]
            classes = f"{classes} (labels {first} … {last}, renumbered 0 … {self.num_classes - 1})"
        if self.condition_shape is not None:
            floats = f"with conditions of {'×'.join(map(str, self.condition_shape))}"
            classes = f"{classes} {floats}" if self.num_classes else floats
        names = {2: "series", 3: "fields", 4: "volumes"}
        kind = "images" if self.kind == "images" else names.get(len(self.event_shape), self.kind)
        return f"{len(self)} {kind} of {shape} {classes}"


class Source(Choice, ABC):
    """The source of a dataset."""

    @abstractmethod
    def load(self) -> Dataset:
        """The dataset, after the checks that are cheap."""


def as_index(indices: Indices, length: int) -> Int[Tensor, " batch"]:
    """`indices` as an int64 tensor; IndexError if one is outside 0 … length − 1."""
    index = torch.as_tensor(indices, dtype=torch.int64)
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < length:
        raise IndexError(f"indices must be between 0 and {length - 1}, got {int(index.min())} … {int(index.max())}")
    return index


def fetch_seeded(dataset: Dataset, indices: Indices, seeds: Sequence[int]) -> Batch:
    """The samples at `indices`; each of data that are drawn anew with its own seed, whatever the others are.

    Args:
        dataset: any dataset.
        indices: the samples.
        seeds: one for each; without effect for other data.
    """
    index = as_index(indices, len(dataset))
    if not dataset.random or len(index) == 0:
        return dataset.fetch(index)
    rows: list[Batch] = []
    for one, seed in zip(index, seeds, strict=True):
        with host_seeded(seed):
            rows.append(dataset.fetch(one[None]))
    conditions = [condition for _, condition in rows if condition is not None]
    return torch.cat([x for x, _ in rows]), torch.cat(conditions) if conditions else None
