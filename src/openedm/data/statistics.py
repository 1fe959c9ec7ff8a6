"""Statistics of data: where the channels are and how wide, and what in them is unlike the rest."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from openedm.data.dataset import Dataset
from openedm.ground import checks
from openedm.ground.seeding import host_seeded

__all__ = ["Marker", "Statistics", "find_markers", "measure", "measure_conditions"]

_MARKER_GAP = 2.0
"""The distance of a number that entries share from all others, in units of their range, above which it is a marker."""


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


def find_markers(x: Float[Tensor, "samples channels *rest"]) -> tuple[Marker, ...]:
    """Numbers that several entries of a channel have, and that are far from all others; entries that are NaN are none.

    Args:
        x: some samples.
    """
    channels = _Channels()
    channels.add(x)
    return channels.statistics(len(x)).markers


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
