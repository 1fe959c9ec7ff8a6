"""The random state of a run as a function of its seed and its step: nothing to save, nothing to restore.

Every step derives its generators anew. Each process draws the noise of the whole batch and keeps its own rows, so that
the numbers do not depend on how many processes share the batch.
"""

from functools import lru_cache

import torch
from jaxtyping import Int64
from torch import Tensor

from openedm.ground.seeding import generator

DATA, LEVELS, NOISE, DROPOUT, VALIDATION, ITEMS, AUGMENT = range(7)


@lru_cache(maxsize=2)
def _order(seed: int, length: int, epoch: int) -> Int64[Tensor, "length"]:
    return torch.randperm(length, generator=generator(torch.device("cpu"), seed, DATA, epoch))


def batch_indices(seed: int, length: int, start: int, count: int) -> Int64[Tensor, "count"]:
    """Which samples of a dataset of `length` are the `start`-th, (start+1)-th, … that training sees.

    Each pass over the data is a random permutation of it, a function of the seed and the number of the pass.
    """
    parts, position = [], start
    while position < start + count:
        epoch, offset = divmod(position, length)
        taken = min(length - offset, start + count - position)
        parts.append(_order(seed, length, epoch)[offset : offset + taken])
        position += taken
    return torch.cat(parts)
