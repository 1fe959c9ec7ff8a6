"""The memory that this process may use, and errors where it does not suffice."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch

__all__ = ["available_memory", "explain_out_of_memory"]

_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""The limit and the use of a container, in both versions of control groups."""


def available_memory() -> int:
    """The bytes of memory that are free for this process: those of the machine, and of a container's limit if lower."""
    found = [int(psutil.virtual_memory().available)]
    for limit, used in _LIMITS:
        try:
            found.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return max(0, min(found))


@contextmanager
def explain_out_of_memory(advice: str) -> Iterator[None]:
    """Where memory does not suffice inside the block, an error that says what to do.

    Args:
        advice: the options to lower, as a sentence without its end.

    Raises:
        MemoryError: an allocation failed, on the host or on a GPU.
    """
    try:
        yield
    except MemoryError as error:
        raise MemoryError(f"out of memory: {advice}") from error
    except RuntimeError as error:  # torch.OutOfMemoryError, and the host's allocator
        first = str(error).partition("\n")[0]
        if (
            not isinstance(error, torch.OutOfMemoryError)
            and "allocate memory" not in first
            and "not enough memory" not in first
        ):
            raise
        raise MemoryError(f"out of memory: {advice} ({first})") from error
