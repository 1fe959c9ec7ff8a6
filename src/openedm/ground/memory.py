"""The memory that this process may use."""

from pathlib import Path

import psutil  # type: ignore[import-untyped]

__all__ = ["available_memory"]

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
