"""The numbers of a sample as its features: for data of any shape, such as vectors, series, volumes and any images."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from openedm.data import Dataset
from openedm.ground.seeding import host_seeded
from openedm.metrics.extractors import Extractor, FeatureNetwork, Output

__all__ = ["MAX_VALUES", "ValueFeatures", "Values"]

MAX_VALUES = 1024
"""The largest number of entries of a sample that are features themselves: distances cost its cube."""

NUM_CELLS = 256
"""The largest number of means over cells, or of random directions, of larger samples."""

MAX_READ = 2**27
"""The largest number of entries that means and deviations are computed from, for larger samples."""

ROUNDING, COARSE = 2.0**-24, 2.0**-17
"""The part of its mean up to which the deviation of a channel is rounding to float32, and which the unit of a channel
without another deviation is at least."""

_POOLS: tuple[Callable[..., Tensor], ...] = (
    functional.adaptive_avg_pool1d,
    functional.adaptive_avg_pool2d,
    functional.adaptive_avg_pool3d,
)


@dataclass(frozen=True)
class Values(Extractor):
    """The numbers of the samples themselves, standardised; for data of any shape: see `ValueFeatures`."""

    def check(self, event_shape: tuple[int, ...]) -> None:
        """Samples of all shapes have numbers."""

    def load(self) -> FeatureNetwork:
        """Not supported: the features depend on the data.

        Raises:
            ValueError: always; `fit` makes them.
        """
        raise ValueError("Values depends on the real data: Values().fit(data)")

    def fit(self, data: Dataset) -> FeatureNetwork:
        return ValueFeatures(data)


class ValueFeatures(FeatureNetwork):
    """All numbers of a sample, each channel in standard deviations from its mean: (batch, dim).

    Distances in these features are distances between distributions of the samples themselves. They see means,
    covariances and neighbourhoods, without a notion of what matters to an eye.

    Samples with more than `MAX_VALUES` entries have fewer features, which do not depend on the data (principal
    components would favour the samples that they were fitted to): the means over the cells of a coarse grid, at most
    `NUM_CELLS` of all channels, and for each channel the root of the mean square of what is left, which any finer
    deviation changes. Large samples without a grid, such as vectors, are projected on `NUM_CELLS` fixed random
    directions.

    Args:
        data: the real data, which set the mean and the standard deviation; a channel without variation, but for
            rounding, keeps its unit.
        max_samples: the largest number of samples that are read for them, at even distances.
    """

    mean: Tensor
    std: Tensor
    directions: Tensor

    def __init__(self, data: Dataset, max_samples: int = 10_000) -> None:
        super().__init__()
        entries, self.num_classes = math.prod(data.event_shape), 0
        self.cells: tuple[int, ...] | None = None
        if entries > MAX_VALUES:
            max_samples = max(2, min(max_samples, MAX_READ // entries))
        with host_seeded(0):
            x = data.fetch(data.spread(max_samples))[0].double()
        axes = (0, *range(2, x.ndim))
        std = x.std(axes, correction=0, keepdim=True)[0]
        mean = x.mean(axes, keepdim=True)[0]
        unit = (COARSE * mean.abs()).clamp(min=1.0)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std.where(std > ROUNDING * mean.abs(), unit))
        self.dim, self.description = entries, {"name": "values", "version": 1, "dim": entries}
        if entries <= MAX_VALUES:
            return
        channels, *sides = data.event_shape
        if 1 <= len(sides) <= 3 and channels <= NUM_CELLS:
            self.cells = _grid(channels, sides)
            self.dim = channels * (math.prod(self.cells) + 1)
        else:
            self.dim = NUM_CELLS
            drawn = torch.randn(entries, NUM_CELLS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            self.register_buffer("directions", (drawn / drawn.norm(dim=0)).float())
        self.description = {"name": "values", "version": 2, "shape": list(data.event_shape), "dim": self.dim}

    def forward(self, x: Float[Tensor, "batch *event"]) -> Output:
        """See `FeatureNetwork`."""
        z = ((x - self.mean) / self.std).to(torch.float32)
        if self.description["version"] == 1:
            return z.flatten(1), None
        if self.cells is None:
            return z.flatten(1) @ self.directions, None
        means = _POOLS[len(self.cells) - 1](z, self.cells)
        left = (z - functional.interpolate(means, z.shape[2:], mode="nearest")).flatten(2).square().mean(2).sqrt()
        return torch.cat([means.flatten(1), left], 1), None

    def distances(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, " channels"]:
        """The median distance of samples from the mean of the data in each channel, in standard deviations.

        In one number for all where the features are projections of all channels.
        """
        if self.description["version"] == 2:
            if self.cells is None:
                return features.abs().median()[None]
            features = features[:, : len(self.mean) * math.prod(self.cells)]
        return features.reshape(len(features), len(self.mean), -1).abs().movedim(1, 0).flatten(1).median(1).values


def _grid(channels: int, sides: Sequence[int]) -> tuple[int, ...]:
    """The numbers of cells along each axis: the sides, the longest of which is halved until there are few enough."""
    cells = list(sides)
    while channels * math.prod(cells) > NUM_CELLS and max(cells) > 1:
        longest = cells.index(max(cells))
        cells[longest] = -(-cells[longest] // 2)
    return tuple(cells)
