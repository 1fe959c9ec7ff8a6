"""σ_data: the standard deviation of all entries of the data about their global mean.

The preconditioning of EDM (Table 1) is derived for data of this variance.
"""

import math
from dataclasses import dataclass

import torch

from openedm.data.dataset import Dataset
from openedm.ground import checks

__all__ = ["Statistics", "measure"]


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of a dataset, as `measure` returns them.

    Attributes:
        mean: of all entries.
        std: σ_data, of all entries about `mean`; √(E[x²] − mean²), without Bessel's correction.
        count: number of samples that were read.
    """

    mean: float
    std: float
    count: int


def measure(dataset: Dataset, max_samples: int = 10_000, *, batch_size: int = 256) -> Statistics:
    """Mean and standard deviation over all entries of `dataset`, accumulated in float64.

    Of a dataset larger than `max_samples`, that many samples at even distances are read (`Dataset.spread`).

    >>> from openedm.data import Digits
    >>> statistics = measure(Digits().load())
    >>> f"{statistics.mean:.3f} {statistics.std:.3f} {statistics.count}"
    '-0.388 0.752 1437'

    Args:
        dataset: any dataset; it is read once, `batch_size` samples at a time.
        max_samples: at most so many samples are read.
        batch_size: how many are held at once; changes the result by rounding only.

    Raises:
        ValueError: an argument is below 1, or the dataset holds a value that is not finite.
    """
    checks.at_least("max_samples", max_samples, 1)
    checks.at_least("batch_size", batch_size, 1)
    chosen = dataset.spread(max_samples)
    count = len(chosen)
    mean, squares, entries = 0.0, 0.0, 0
    for start in range(0, count, batch_size):
        indices = chosen[start : start + batch_size]
        x = dataset.fetch(indices)[0].to(torch.float64)
        n, m = x.numel(), float(x.mean())
        if not math.isfinite(m):
            raise ValueError(
                f"dataset must be finite, found NaN or infinity among samples {indices[0]} … {indices[-1]}"
            )
        # Chan, Golub and LeVeque 1979: merge two means and sums of squares without cancellation.
        squares += float((x - m).square().sum()) + (m - mean) ** 2 * entries * n / (entries + n)
        mean += (m - mean) * n / (entries + n)
        entries += n
    return Statistics(mean=mean, std=math.sqrt(squares / entries), count=count)
