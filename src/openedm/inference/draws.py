"""The noise of a posterior's samples: a function of (seed, observation, i) alone.

Each observation has a seed of its own, a hash of the given seed and of the observation's values, so that different
observations get independent noise: with the noise shared, the ranks of simulation-based calibration would all carry the
error of the same few samples, and one sample for each of many observations would be one sample many times. Of each
seed, blocks of `BLOCK` samples have a generator each, so that sample i does not depend on how many samples are drawn.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from openedm.ground import checks
from openedm.ground.seeding import hash_seed
from openedm.sampling import BrownianNoise

__all__ = [
    "BLOCK",
    "SampleNoise",
    "StepNoise",
    "fingerprints",
    "numbered_seeds",
    "observation_seeds",
    "sample_paths",
    "section_seeds",
]

BLOCK = 64

StepNoise = Literal["independent", "path"]
"""What a stochastic sampler adds in its steps: draws of `SampleNoise`, or the increments of `sample_paths`."""


def observation_seeds(x: Float[Tensor, "observations ..."], seed: int) -> tuple[int, ...]:
    """One seed for each observation: a hash of `seed` and of the observation's values; below 2⁶³.

    Args:
        x: observations, float64, or else taken as float32; −0 counts as 0, and all NaN are one.
        seed: any integer ≥ 0.

    >>> one, two = observation_seeds(torch.tensor([[1.0], [2.0]]), 0)
    >>> (one,) == observation_seeds(torch.tensor([[1.0]]), 0), one == two
    (True, False)
    """
    precise = x.dtype == torch.float64
    values = x.detach().to("cpu", torch.float64 if precise else torch.float32) + 0.0
    rows = torch.where(values.isnan(), torch.nan, values).contiguous().numpy()
    return tuple(hash_seed(f"{seed}:".encode() + row.tobytes()) for row in rows)


def fingerprints(theta: Float[Tensor, "rows dim"], x: Float[Tensor, "rows ..."]) -> Int64[Tensor, " rows"]:
    """A number below 2⁶³ for each simulation, by which it is recognised: a hash of its values."""
    return torch.tensor(observation_seeds(torch.cat([theta.cpu(), x.cpu().flatten(1)], 1), 0))


def numbered_seeds(seed: int, count: int) -> tuple[int, ...]:
    """A seed for each of `count` observations by its number, not by its values: for observations that may repeat."""
    return tuple(hash_seed(f"{seed}[{j}]".encode()) for j in range(count))


def section_seeds(seeds: Sequence[int], section: int) -> tuple[int, ...]:
    """The seeds of the section-th part of a long row of samples; those of the first are `seeds` themselves."""
    return tuple(hash_seed(f"{seed}#{section}".encode()) for seed in seeds) if section else tuple(seeds)


class SampleNoise:
    """Unit noise for `num_samples` samples of each of several observations: a `NoiseSource` for samplers.

    Row j·num_samples + i is sample i of observation j, and a function of `seeds[j]`, i, the shape and of how many draws
    came before it; float32 on the host, the same on every device.

    Args:
        seeds: one integer ≥ 0 for each observation.
        num_samples: of each observation, ≥ 1.

    Raises:
        ValueError: no seeds, a negative one, or no samples.

    >>> few, many = SampleNoise([5], 2).draw((3,)), SampleNoise([4, 5], 100).draw((3,))
    >>> bool((few == many[100:102]).all())
    True
    """

    def __init__(self, seeds: Sequence[int], num_samples: int) -> None:
        checks.at_least("the number of seeds", len(seeds), 1)
        checks.at_least("the least of seeds", min(seeds), 0)
        checks.at_least("num_samples", num_samples, 1)
        self.num_samples = num_samples
        blocks = range(-(-num_samples // BLOCK))
        self._generators = [
            [torch.Generator().manual_seed(hash_seed(f"{seed}/{block}".encode())) for block in blocks] for seed in seeds
        ]

    def __len__(self) -> int:
        return len(self._generators) * self.num_samples

    def draw(self, event_shape: tuple[int, ...]) -> Float[Tensor, "rows *event"]:
        """The next unit Gaussian noise, one row a sample."""
        noise = torch.empty(len(self._generators), self.num_samples, *event_shape)
        for row, generators in zip(noise, self._generators, strict=True):
            for block, generator in zip(row.split(BLOCK), generators, strict=True):
                block.copy_(torch.randn(BLOCK, *event_shape, generator=generator)[: len(block)])
        return noise.flatten(0, 1)


def sample_paths(seeds: Sequence[int], num_samples: int) -> BrownianNoise:
    """One Brownian path for each of `num_samples` samples of each observation, in rows as those of `SampleNoise`.

    The path of sample i of observation j is a function of `seeds[j]` and i alone.

    Args:
        seeds: one integer ≥ 0 for each observation.
        num_samples: of each observation, ≥ 1.

    Raises:
        ValueError: as for `SampleNoise`.

    >>> few, many = (sample_paths([5], n).increment(0.2, 0.5, (3,)) for n in (2, 100))
    >>> bool((few == many[:2]).all())
    True
    """
    checks.at_least("num_samples", num_samples, 1)
    streams = [np.random.PCG64(hash_seed(f"{seed}~".encode())) for seed in seeds]
    return BrownianNoise([int(raw) % 2**32 for stream in streams for raw in stream.random_raw(num_samples)])
