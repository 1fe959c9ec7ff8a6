"""The order of training on data that are read part by part: a function of the seed and the position, like any other.

A pass lays the chunks end to end in a random order π and cuts the line into L lanes of equal length. In each lane the
samples of successive stretches of window / L are shuffled, and the lanes are dealt in turn: position p of the pass is
sample ⌊p / L⌋ of lane p mod L. Nothing depends on what was read before, so that a run goes on anywhere.
"""

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from openedm.data import Chunks
from openedm.ground.seeding import derive_seed
from openedm.training.randomness import DATA


def chunked_indices(seed: int, chunks: Chunks, start: int, count: int) -> Int64[Tensor, "count"]:
    """Which samples are the `start`-th, (start+1)-th, … that training sees, ordered by lane within these `count`.

    Every pass takes each sample once. Rows that follow one another are of the same lane, so that a process which
    handles a part of them reads the lanes of this part.

    Args:
        seed: of the run.
        chunks: how the samples lie together.
        start: samples seen so far.
        count: how many are wanted; those of one batch.
    """
    length = sum(chunks.sizes)
    lanes, found = [], []
    position = start
    while position < start + count:
        number, offset = divmod(position, length)
        taken = min(length - offset, start + count - position)
        places = np.arange(offset, offset + taken)
        lanes.append(places % chunks.lanes)
        found.append(_pass(seed, chunks, number)[places])
        position += taken
    return torch.from_numpy(np.concatenate(found)[np.argsort(np.concatenate(lanes), kind="stable")])


@lru_cache(maxsize=2)
def _pass(seed: int, chunks: Chunks, number: int) -> Int64[np.ndarray, "length"]:
    """All samples in the order of one pass."""
    random = np.random.default_rng(derive_seed(seed, DATA, number))
    sizes = np.array(chunks.sizes)
    starts = np.cumsum(sizes) - sizes
    order = random.permutation(len(sizes))
    line = np.concatenate([np.arange(starts[i], starts[i] + sizes[i]) for i in order])
    length, lanes = len(line), chunks.lanes
    dealt = np.empty(length, dtype=np.int64)
    stretch = max(1, chunks.window // lanes)
    begin = 0
    for lane in range(lanes):
        own = line[begin : begin + len(range(lane, length, lanes))]
        begin += len(own)
        # Where stretches end differs between passes: two samples on either side of an end may meet in the next.
        number_of = (np.arange(len(own)) + random.integers(stretch)) // stretch
        dealt[lane::lanes] = own[np.lexsort((random.random(len(own)), number_of))]
    return dealt
