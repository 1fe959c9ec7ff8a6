"""The batches of a run: the samples of each process at each step, fetched directly or by worker processes.

The order is a function of the seed and the position in the run alone, so that a run resumes at any position. A pass is
a random permutation of the samples. For data that are read part by part (`Chunks`), a pass concatenates the chunks in a
random order and divides the sequence into L lanes of equal length; in each lane, blocks of window / L successive
samples are shuffled, and position p of the pass is sample ⌊p / L⌋ of lane p mod L.

Data that are drawn anew, such as latents, are drawn from a seed for each position of the run, so that they do not
depend on the number of processes and of rounds.
"""

import signal
from collections.abc import Iterator
from functools import lru_cache
from itertools import count

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import DataLoader

from openedm.data import Batch, Chunks, Dataset
from openedm.data.dataset import fetch_seeded
from openedm.ground.seeding import derive_seed, generator, host_seeded
from openedm.training.options import DATA, ITEMS, Options

__all__ = ["Prefetcher", "batch_indices", "batches", "rows_of"]

SECONDS_TO_STOP = 30
"""So long a worker process goes on after SIGTERM."""


def batches(
    dataset: Dataset, options: Options, *, start: int, rank: int, processes: int, pin: bool = False
) -> Iterator[Batch]:
    """An endless iterator of batches (x, labels) from image `start` of the run; one for each accumulation round.

    Args:
        dataset: the training data.
        options: seed, batch size, rounds and the number of worker processes.
        start: images seen so far; a multiple of the batch size.
        rank: the number of this process.
        processes: the number of processes.
        pin: page-lock the batches, for asynchronous copies to a GPU.
    """
    order, fetched = _iterate_indices(dataset, options, start, rank, processes), _FetchedBatches(dataset)
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
        worker_init_fn=_ignore_signals,
        generator=torch.Generator().manual_seed(
            options.seed
        ),  # otherwise it draws from the global generator, as dropout does
    )


def _ignore_signals(number: int) -> None:
    """A worker process goes on after signals to all processes of a run, whose last step still needs it.

    The process that trains handles them and ends the workers. SIGTERM, by which it does where a worker is slow, ends
    one after a while.
    """
    for ignored in ("SIGINT", "SIGHUP"):
        if hasattr(signal, ignored):
            signal.signal(getattr(signal, ignored), signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, _stop_later)


def _stop_later(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.alarm(SECONDS_TO_STOP)


def rows_of(round_: int, rank: int, processes: int, options: Options) -> slice:
    """The rows of a global batch that a process handles in one accumulation round."""
    share = options.batch_size // (processes * options.rounds)
    start = (round_ * processes + rank) * share
    return slice(start, start + share)


def _iterate_indices(
    dataset: Dataset, options: Options, start: int, rank: int, processes: int
) -> Iterator[tuple[int | list[int], list[int]]]:
    """An endless iterator of a seed, or one for each sample, and the indices of each batch, from image `start`."""
    for images in count(start, options.batch_size):
        indices = batch_indices(options.seed, len(dataset), images, options.batch_size, dataset.chunks)
        for round_ in range(options.rounds):
            rows = rows_of(round_, rank, processes, options)
            chosen = indices[rows].tolist()
            if dataset.random:
                positions = range(images + rows.start, images + rows.stop)
                yield [derive_seed(options.seed, ITEMS, position) for position in positions], chosen
            else:
                yield derive_seed(options.seed, ITEMS, images, rows.start), chosen


class _FetchedBatches(torch.utils.data.Dataset[Batch]):
    """A dataset whose items are whole batches; torch's global generator is seeded for each, or for each sample."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, batch: tuple[int | list[int], list[int]]) -> Batch:
        seed, indices = batch
        if isinstance(seed, list):
            return fetch_seeded(self.dataset, indices, seed)
        with host_seeded(seed):
            return self.dataset.fetch(indices)


class Prefetcher:
    """An iterator that can fetch its next item in advance."""

    def __init__(self, items: Iterator[Batch]) -> None:
        self.items = items
        self.fetched: Batch | None = None

    def fetch(self) -> None:
        """Fetch the next item unless it has already been fetched."""
        if self.fetched is None:
            self.fetched = next(self.items)

    def __next__(self) -> Batch:
        self.fetch()
        assert self.fetched is not None
        x, labels = self.fetched  # a list, from worker processes
        self.fetched = None
        return x, labels


def batch_indices(seed: int, length: int, start: int, size: int, chunks: Chunks | None = None) -> Int64[Tensor, "size"]:
    """The indices of the samples at the positions `start`, …, `start + size − 1` of a run on a dataset of `length`.

    Every pass contains each sample once. With `chunks` the rows are sorted by lane, so that a process with neighbouring
    rows reads few lanes.
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
    sequence = np.concatenate([np.arange(starts[i], starts[i] + sizes[i]) for i in random.permutation(len(sizes))])
    length, lanes = len(sequence), chunks.lanes
    order = np.empty(length, dtype=np.int64)
    block_size = max(1, chunks.window // lanes)
    start = 0
    for lane in range(lanes):
        lane_samples = sequence[start : start + len(range(lane, length, lanes))]
        start += len(lane_samples)
        # Block boundaries differ between passes, so that samples of neighbouring blocks are mixed in later passes.
        block_numbers = (np.arange(len(lane_samples)) + random.integers(block_size)) // block_size
        order[lane::lanes] = lane_samples[np.lexsort((random.random(len(lane_samples)), block_numbers))]
    return torch.from_numpy(order)
