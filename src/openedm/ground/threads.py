"""Threads: one that works in advance, and how many torch computes with."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

__all__ = ["ahead", "at_most_threads"]

Item = TypeVar("Item")


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The items in order; a thread makes the next one while the present one is used.

    Reading and decoding of files, and most of torch, let other threads compute meanwhile. An error is raised where the
    item would have been.
    """
    end, iterator = object(), iter(items)
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, iterator, end)
        while (item := following.result()) is not end:
            following = thread.submit(next, iterator, end)
            yield item  # type: ignore[misc]  # it is not `end`


@contextmanager
def at_most_threads(number: int) -> Iterator[None]:
    """Let operations of torch on the CPU use no more threads than this inside the block.

    For work on small tensors, of which a second thread takes over so little that it mostly waits: beside other work on
    the same cores such waiting makes everything slower by a multiple.

    Args:
        number: of threads, ≥ 1.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, number))
    try:
        yield
    finally:
        torch.set_num_threads(before)
