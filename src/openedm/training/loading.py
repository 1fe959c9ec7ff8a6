"""The batches of a run: which samples each process sees at each step, fetched directly or by worker processes.

The order is a function of the seed and the position in the run, whatever was read before, so that a run resumes
anywhere. A pass is a random permutation of the samples. Of data that are read part by part (`Chunks`), a pass puts the
chunks end to end in a random order and cuts this line into L lanes of equal length; in each lane the samples of
successive stretches of window / L are shuffled, and position p of the pass is sample ⌊p / L⌋ of lane p mod L.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import count

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import DataLoader

from openedm.data import Batch, Chunks, Dataset
from openedm.ground.seeding import derive_seed, generator, host_seeded
from openedm.training.options import DATA, ITEMS, Options

__all__ = ["Prefetcher", "batch_indices", "batches", "rows_of"]


def batches(
    dataset: Dataset, options: Options, *, start: int, rank: int, processes: int, pin: bool = False
) -> Iterator[Batch]:
    """Batches (x, labels) without end, from image `start` of the run on; one for each accumulation round.

    Args:
        dataset: what is trained on.
        options: seed, batch size, rounds and the number of worker processes.
        start: images seen so far; a multiple of the batch size.
        rank: this process.
        processes: how many there are.
        pin: page-lock the batches, for asynchronous copies to a GPU.
    """
    order, fetched = _order(dataset, options, start, rank, processes), _FetchedBatches(dataset)
    if options.workers == 0:
        for batch in order:
            x, labels = fetched[batch]
            yield (x.pin_memory(), None if labels is None else labels.pin_memory()) if pin else (x, labels)
    yield from DataLoader(
        fetched,
        sampler=order,
        batch_size=None,
        num_workers=options.workers,
        pin_memory=pin,
        persistent_workers=True,
        generator=torch.Generator().manual_seed(options.seed),  # else it draws from the global one, as dropout does
    )


def rows_of(round_: int, rank: int, processes: int, options: Options) -> slice:
    """The rows of a global batch that a process handles in one accumulation round."""
    share = options.batch_size // (processes * options.accumulate)
    start = (round_ * processes + rank) * share
    return slice(start, start + share)


def _order(
    dataset: Dataset, options: Options, start: int, rank: int, processes: int
) -> Iterator[tuple[int, list[int]]]:
    """A seed and the indices of each batch from image `start` on, without end."""
    for images in count(start, options.batch_size):
        indices = batch_indices(options.seed, len(dataset), images, options.batch_size, dataset.chunks)
        for round_ in range(options.accumulate):
            rows = rows_of(round_, rank, processes, options)
            yield derive_seed(options.seed, ITEMS, images, rows.start), indices[rows].tolist()


class _FetchedBatches(torch.utils.data.Dataset[Batch]):
    """A dataset whose items are whole batches; torch's global generator is seeded for each, for datasets that draw."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, batch: tuple[int, list[int]]) -> Batch:
        seed, indices = batch
        with host_seeded(seed):
            return self.dataset.fetch(indices)


class Prefetcher:
    """An iterator that can fetch its next item before it is asked for."""

    def __init__(self, items: Iterator[Batch]) -> None:
        self.items = items
        self.fetched: Batch | None = None

    def fetch(self) -> None:
        """Fetch the next item unless it is there already."""
        if self.fetched is None:
            self.fetched = next(self.items)

    def __next__(self) -> Batch:
        self.fetch()
        assert self.fetched is not None
        x, labels = self.fetched  # a list, from worker processes
        self.fetched = None
        return x, labels


def batch_indices(seed: int, length: int, start: int, size: int, chunks: Chunks | None = None) -> Int64[Tensor, "size"]:
    """Which samples of a dataset of `length` training sees at the positions `start`, …, `start + size − 1` of a run.

    Every pass takes each sample once. With `chunks` the rows are sorted by lane, so that a process which handles
    neighbouring rows reads few lanes.
    """
    parts, position = [], start
    while position < start + size:
        number, offset = divmod(position, length)
        taken = min(length - offset, start + size - position)
        order = _permutation(seed, length, number) if chunks is None else _chunked_permutation(seed, chunks, number)
        parts.append(order[offset : offset + taken])
        position += taken
    indices = torch.cat(parts)
    if chunks is None:
        return indices
    lanes = torch.arange(start, start + size) % length % chunks.lanes
    return indices[lanes.argsort(stable=True)]


@lru_cache(maxsize=2)
def _permutation(seed: int, length: int, number: int) -> Int64[Tensor, "length"]:
    """All samples in the order of pass `number`."""
    return torch.randperm(length, generator=generator(torch.device("cpu"), seed, DATA, number))


@lru_cache(maxsize=2)
def _chunked_permutation(seed: int, chunks: Chunks, number: int) -> Int64[Tensor, "length"]:
    """All samples of data in chunks in the order of pass `number`."""
    random = np.random.default_rng(derive_seed(seed, DATA, number))
    sizes = np.array(chunks.sizes)
    starts = np.cumsum(sizes) - sizes
    line = np.concatenate([np.arange(starts[i], starts[i] + sizes[i]) for i in random.permutation(len(sizes))])
    length, lanes = len(line), chunks.lanes
    order = np.empty(length, dtype=np.int64)
    stretch = max(1, chunks.window // lanes)
    begin = 0
    for lane in range(lanes):
        own = line[begin : begin + len(range(lane, length, lanes))]
        begin += len(own)
        # Where stretches end differs between passes: samples on either side of an end may meet in the next.
        number_of = (np.arange(len(own)) + random.integers(stretch)) // stretch
        order[lane::lanes] = own[np.lexsort((random.random(len(own)), number_of))]
    return torch.from_numpy(order)
