"""The numbers of a sample as its features: for vectors, series, fields and volumes, for which no network is at hand."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from openedm.data import Dataset
from openedm.metrics.extractors import FeatureNetwork, Output

__all__ = ["MAX_VALUES", "ValueFeatures"]

MAX_VALUES = 4096
"""The largest number of entries of a sample: distances need the covariance of all pairs."""


class ValueFeatures(FeatureNetwork):
    """All numbers of a sample, each channel in standard deviations from its mean: (batch, dim).

    Distances in these features are distances between distributions of the samples themselves. They see means,
    covariances and neighbourhoods, without a notion of what matters to an eye.

    Args:
        data: the real data, which set the mean and the standard deviation; a channel without variation keeps its unit.
        max_samples: the largest number of samples that are read for them, at even distances.

    Raises:
        ValueError: a sample has more than `MAX_VALUES` entries.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, data: Dataset, max_samples: int = 10_000) -> None:
        super().__init__()
        self.dim, self.num_classes = math.prod(data.event_shape), 0
        if self.dim > MAX_VALUES:
            raise ValueError(
                f"samples must have at most {MAX_VALUES} numbers to be compared without a network, got {self.dim} in "
                f"the shape {data.event_shape}: give an extractor"
            )
        x = data.fetch(data.spread(max_samples))[0].double()
        axes = (0, *range(2, x.ndim))
        std = x.std(axes, correction=0, keepdim=True)[0]
        self.register_buffer("mean", x.mean(axes, keepdim=True)[0])
        self.register_buffer("std", std.where(std > 0, 1.0))
        self.description = {"name": "values", "version": 1, "dim": self.dim}

    def forward(self, x: Float[Tensor, "batch *event"]) -> Output:
        """See `FeatureNetwork`."""
        return ((x - self.mean) / self.std).flatten(1).to(torch.float32), None
