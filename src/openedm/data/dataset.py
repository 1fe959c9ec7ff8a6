"""Data sets: samples x of one shape, float32, each with an optional class label or condition.

Images are (channels, height, width) in [-1, 1], x = byte / 127.5 − 1; all other data keep their own units.
"""

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple

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
    "Statistics",
    "as_index",
    "fetch_seeded",
    "measure",
]

_MAX_PROBED_CHUNKS = 32
"""The largest number of chunks from which `Dataset.spread` takes samples."""

_MARKER_GAP = 2.0
"""The distance of a number that entries share from all others, in units of their range, above which it is a marker."""

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


class Marker(NamedTuple):
    """A number that several entries of a channel have, and that is far from all others, such as −9999 for no data.

    Attributes:
        channel: the channel.
        value: the number, the lowest or the highest of the channel.
        share: the share of the entries that have it.
        low: the lowest of all others.
        high: the highest of them.
    """

    channel: int
    value: float
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of a dataset, as `measure` returns them.

    The preconditioning of EDM (Table 1) is derived for data of the variance σ_data².

    Attributes:
        mean: the mean of all entries.
        std: σ_data, the standard deviation of all entries about `mean`; √(E[x²] − mean²), without Bessel's correction.
        count: the number of samples that were read.
        channel_means: the mean of each channel, the first axis of a sample.
        channel_stds: the standard deviation of each channel about its own mean.
        outliers: the channels that have one value with more than half of the sum of squares about their mean, and more
            than 9 standard deviations from it: a few such values decide how wide the channel seems.
        channel_lows: the lowest value of each channel that was read.
        channel_highs: the highest.
        markers: the channels with a number that several entries have, and that is far from all others.
    """

    mean: float
    std: float
    count: int
    channel_means: tuple[float, ...] = ()
    channel_stds: tuple[float, ...] = ()
    outliers: tuple[int, ...] = ()
    channel_lows: tuple[float, ...] = ()
    channel_highs: tuple[float, ...] = ()
    markers: tuple[Marker, ...] = ()


def measure(dataset: Dataset, max_samples: int = 10_000, *, batch_size: int = 256) -> Statistics:
    """Mean and standard deviation over all entries of `dataset`, accumulated in float64.

    For a dataset larger than `max_samples`, that many samples at even distances are read (`Dataset.spread`).

    >>> from openedm.data import Digits
    >>> statistics = measure(Digits().load())
    >>> f"{statistics.mean:.3f} {statistics.std:.3f} {statistics.count}"
    '-0.388 0.752 1437'

    Args:
        dataset: any dataset; it is read once, `batch_size` samples at a time.
        max_samples: the largest number of samples that are read.
        batch_size: the number of samples in memory at a time; it changes the result by rounding only.

    Raises:
        ValueError: an argument is below 1, or the dataset holds a value that is not finite.
    """
    checks.instance("dataset", dataset, Dataset, "a Dataset, such as openedm.data.as_dataset(x) makes")
    checks.at_least("max_samples", max_samples, 1)
    checks.at_least("batch_size", batch_size, 1)
    chosen = dataset.spread(max_samples)
    channels = _Channels()
    for start in range(0, len(chosen), batch_size):
        indices = chosen[start : start + batch_size]
        with host_seeded(indices[0]):  # so that random data give the same numbers each time
            x = dataset.fetch(indices)[0].to(torch.float64)
        if not math.isfinite(float(x.mean())):
            raise ValueError(
                f"dataset must be finite, found NaN or infinity among samples {indices[0]} … {indices[-1]}"
            )
        channels.add(x)
    return channels.statistics(len(chosen))


class _Channels:
    """Mean and standard deviation of each channel, part by part; entries that are NaN do not count."""

    def __init__(self) -> None:
        self.mean, self.squares, self.entries = (torch.zeros((), dtype=torch.float64) for _ in range(3))
        self.lowest, self.highest = _Extreme(), _Extreme()

    def add(self, x: Float[Tensor, "batch channels *rest"]) -> None:
        """Count some samples."""
        flat = x.to(torch.float64).reshape(len(x), x.shape[1], -1) if x.ndim > 1 else x.to(torch.float64)[:, None, None]
        n = flat.isfinite().sum((0, 2)).to(torch.float64)
        mean = flat.nanmean((0, 2)).nan_to_num()
        squares = (flat - mean[:, None]).square().nansum((0, 2))
        total = (self.entries + n).clamp(min=1)
        # Chan, Golub and LeVeque 1979: merge two means and sums of squares without cancellation.
        self.squares = self.squares + squares + (mean - self.mean).square() * self.entries * n / total
        self.mean = self.mean + (mean - self.mean) * n / total
        self.entries = self.entries + n
        self.lowest.add(flat.nan_to_num(math.inf))
        self.highest.add(-flat.nan_to_num(-math.inf))

    def statistics(self, count: int) -> Statistics:
        """What `count` samples have given; mean and std are those of the channels together."""
        variances = self.squares / self.entries.clamp(min=1)
        low, high = self.lowest.value, -self.highest.value
        farthest = torch.maximum(high - self.mean, self.mean - low).square()
        alone = (farthest > 0.5 * self.squares) & (farthest > 81 * variances)
        mean = float(self.mean.mean())
        std = math.sqrt(float((variances + (self.mean - mean).square()).mean()))
        columns = (self.mean, variances.sqrt(), low, high)
        means, stds, lows, highs = (tuple(column.flatten().tolist()) for column in columns)
        outliers = tuple(alone.flatten().nonzero()[:, 0].tolist())
        return Statistics(mean, std, count, means, stds, outliers, lows, highs, self._markers())

    def _markers(self) -> tuple[Marker, ...]:
        found = []
        low, high = self.lowest, self.highest
        for value, times, others in (
            (low.value, low.times, (low.second, -high.value)),
            (-high.value, high.times, (low.value, -high.second)),
        ):
            near, far = others
            gap = torch.maximum(near - value, value - far)
            apart = (times > 1) & (far > near) & (gap > _MARKER_GAP * (far - near)) & gap.isfinite()
            for i in apart.flatten().nonzero()[:, 0].tolist():
                numbers = (column.flatten()[i] for column in (value, times / self.entries, near, far))
                found.append(Marker(i, *map(float, numbers)))
        return tuple(sorted(found))


class _Extreme:
    """The lowest number of each channel, how many entries have it, and the second lowest; part by part."""

    def __init__(self) -> None:
        self.value = self.second = torch.tensor(math.inf, dtype=torch.float64)
        self.times = torch.zeros((), dtype=torch.float64)

    def add(self, flat: Float[Tensor, "batch channels entries"]) -> None:
        """Count some samples; infinite entries are none."""
        low = flat.amin((0, 2))
        equal = flat == low[:, None]
        times, second = equal.sum((0, 2)).to(torch.float64), flat.masked_fill(equal, math.inf).amin((0, 2))
        value = torch.minimum(self.value, low)
        others = [torch.where(one == value, math.inf, one) for one in (self.value, low)]
        self.second = torch.stack([self.second.expand_as(low), second, *(one.expand_as(low) for one in others)]).amin(0)
        self.times = torch.where(self.value == value, self.times, 0) + torch.where(low == value, times, 0)
        self.value = value


def measure_conditions(
    dataset: Dataset, max_samples: int = 10_000, *, batch_size: int = 256
) -> tuple[Statistics, float]:
    """The statistics of the channels of the float conditions of a dataset, and their largest magnitude.

    Rows that are NaN, which mean no condition, do not count.

    Args:
        dataset: a dataset with a `condition_shape`.
        max_samples: the largest number of samples that are read.
        batch_size: the number of samples in memory at a time.
    """
    channels, largest, chosen = _Channels(), 0.0, dataset.spread(max_samples)
    for start in range(0, len(chosen), batch_size):
        with host_seeded(start):
            condition = dataset.fetch(chosen[start : start + batch_size])[1]
        assert condition is not None  # as its condition_shape says
        values = dataset.condition_layout.unpack(condition)[1]
        assert values is not None
        channels.add(values)
        largest = max(largest, float(values.abs().nan_to_num().max()))
    return channels.statistics(len(chosen)), largest
