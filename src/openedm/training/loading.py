"""The batches of a run: which samples each process sees at each step, fetched directly or by worker processes."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from openedm.data import Dataset
from openedm.ground.seeding import derive_seed, host_seeded
from openedm.training.options import Options
from openedm.training.randomness import ITEMS, batch_indices
from openedm.training.streaming import chunked_indices


def rows_of(round_: int, rank: int, processes: int, options: Options) -> slice:
    """The rows of a global batch that a process handles in one accumulation round."""
    share = options.batch_size // (processes * options.accumulate)
    start = (round_ * processes + rank) * share
    return slice(start, start + share)


class _Order(torch.utils.data.Sampler[tuple[int, list[int]]]):
    """A seed and the indices of each batch from image `start` on, without end."""

    def __init__(self, dataset: Dataset, options: Options, start: int, rank: int, processes: int) -> None:
        self.length, self.chunks = len(dataset), dataset.chunks
        self.options, self.start, self.rank, self.processes = options, start, rank, processes

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        images = self.start
        while True:
            indices = self._indices(images)
            for round_ in range(self.options.accumulate):
                rows = rows_of(round_, self.rank, self.processes, self.options)
                yield derive_seed(self.options.seed, ITEMS, images, rows.start), indices[rows].tolist()
            images += self.options.batch_size

    def _indices(self, images: int) -> Tensor:
        seed, count = self.options.seed, self.options.batch_size
        if self.chunks is not None:
            return chunked_indices(seed, self.chunks, images, count)
        return batch_indices(seed, self.length, images, count)


class _Fetched(torch.utils.data.Dataset[tuple[Tensor, Tensor | None]]):
    """A dataset whose items are whole batches; one that draws from torch's generator draws by the batch's seed."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, batch: tuple[int, list[int]]) -> tuple[Tensor, Tensor | None]:
        seed, indices = batch
        with host_seeded(seed):
            return self.dataset.fetch(indices)


class Ahead:
    """An iterator that can fetch its next item before it is asked for."""

    def __init__(self, items: Iterator[tuple[Tensor, Tensor | None]]) -> None:
        self.items = items
        self.fetched: tuple[Tensor, Tensor | None] | None = None

    def fetch(self) -> None:
        """Have the next item ready."""
        if self.fetched is None:
            self.fetched = next(self.items)

    def __next__(self) -> tuple[Tensor, Tensor | None]:
        self.fetch()
        assert self.fetched is not None
        x, labels = self.fetched  # a list, from worker processes
        self.fetched = None
        return x, labels


def batches(
    dataset: Dataset, options: Options, *, start: int, rank: int, processes: int, pin: bool = False
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Batches (x, labels) without end, from image `start` of the run on; one an accumulation round.

    Args:
        dataset: what is trained on.
        options: seed, batch size, rounds and the number of worker processes.
        start: images seen so far; a multiple of the batch size.
        rank: this process.
        processes: how many there are.
        pin: page-lock the batches, for asynchronous copies to a GPU.
    """
    order, fetched = _Order(dataset, options, start, rank, processes), _Fetched(dataset)
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
