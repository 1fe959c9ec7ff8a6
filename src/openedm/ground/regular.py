"""Files that end: no pipes, devices or sockets, which would be waited for or read for ever."""

import os
import stat
from pathlib import Path

__all__ = ["check_entries", "check_regular", "read_limited"]

END_OF_ZIP = 22
"""The bytes at the end of a zip archive without a comment."""

MAX_TEXT = 2**30
"""The size in bytes above which JSON and YAML are not read."""


def check_regular(path: str | os.PathLike[str], most: int | None = None) -> None:
    """Check that a path is that of a file, also behind a link.

    Args:
        path: the path.
        most: the largest size in bytes; None for any.

    Raises:
        OSError: there is nothing at `path`, or it may not be read.
        ValueError: it is something else, or too large.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        kind = "folder" if stat.S_ISDIR(found.st_mode) else "pipe, device or socket"
        raise ValueError(f"{path} is not a file but a {kind}")
    if most is not None and found.st_size > most:
        raise ValueError(f"{path} must have at most {most:,} bytes, got {found.st_size:,}")


def check_entries(path: str | os.PathLike[str], found: int) -> None:
    """Check that as many entries of a zip archive were found as it says; zipfile does not, and skips some if damaged.

    Raises:
        ValueError: there were more or fewer.
    """
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - END_OF_ZIP))
        end = file.read()
    said = int.from_bytes(end[10:12], "little")
    if end.startswith(b"PK\x05\x06") and said not in (found, 0xFFFF):  # which stands for more, written elsewhere
        raise ValueError(f"{path} is damaged: it has {said} entries, of which {found} were found")


def read_limited(path: str | os.PathLike[str]) -> bytes:
    """The content of a file of text. Errors as for `check_regular`, with at most 1 GiB."""
    check_regular(path, MAX_TEXT)
    return Path(path).read_bytes()
