"""Work that a thread does in advance."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["ahead"]

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
