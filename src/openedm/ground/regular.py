"""Files that end: no pipes, devices or sockets, which would be waited for or read for ever."""

import os
import stat
from pathlib import Path

__all__ = ["MAX_ENTRIES", "check_entries", "check_regular", "limit_entries", "read_limited", "reason"]

END_OF_ZIP, ZIP64, MAX_COMMENT = 22, 56 + 20, 2**16 - 1
"""The bytes at the end of a zip archive: a record, before it two more of large archives, and behind it a comment."""

MAX_ENTRIES = 2**22
"""The largest number of entries of an archive; ImageNet has 1.3 million pictures."""

MAX_LISTED = 2**12 + 46
"""The most bytes that a zip archive lists an entry with, on average: its path and 46 more."""

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
    said, _ = _listed_entries(path)
    if said not in (found, None):
        raise ValueError(f"{path} is damaged: it has {said} entries, of which {found} were found")


def limit_entries(path: str | os.PathLike[str], most: int = MAX_ENTRIES) -> None:
    """Check how many entries a zip archive says that it has, before they are read: a million takes 10 s and 600 MB.

    Raises:
        ValueError: there are more than `most`, or the list is longer than that of so many entries can be.
    """
    said, size = _listed_entries(path)
    if said is None:
        return
    if said > most:
        raise ValueError(f"{path} must have at most {most:,} entries, got {said:,}: use several archives")
    if size > (said + 1) * MAX_LISTED:
        raise ValueError(f"{path} is damaged: its list of {said:,} entries has {size:,} bytes")


def _listed_entries(path: str | os.PathLike[str]) -> tuple[int | None, int]:
    """How many entries a zip archive says that it has, and the bytes of their list; (None, 0) if it does not say."""
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - ZIP64 - END_OF_ZIP - MAX_COMMENT))
        end = file.read()
    at = end.rfind(b"PK\x05\x06")
    if at < 0 or len(end) < at + END_OF_ZIP:
        return None, 0
    said, size = int.from_bytes(end[at + 10 : at + 12], "little"), int.from_bytes(end[at + 12 : at + 16], "little")
    large = end[max(0, at - ZIP64) : at]
    if large.startswith(b"PK\x06\x06"):
        return int.from_bytes(large[32:40], "little"), int.from_bytes(large[40:48], "little")
    return said, size


def reason(error: Exception) -> str:
    """What went wrong, in words: of an OSError without the number of the error and the path.

    >>> reason(FileNotFoundError(2, "No such file or directory", "a.json"))
    'No such file or directory'
    """
    words = error.strerror if isinstance(error, OSError) else None
    return words or str(error) or type(error).__name__


def read_limited(path: str | os.PathLike[str]) -> bytes:
    """The content of a file of text. Errors as for `check_regular`, with at most 1 GiB."""
    check_regular(path, MAX_TEXT)
    return Path(path).read_bytes()
