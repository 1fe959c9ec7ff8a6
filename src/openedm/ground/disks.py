"""Errors of disks in words: the file that could not be written, and what helps."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

__all__ = ["explain_write_errors"]

_FULL = "free some space there, or write to another disk"
_REFUSED = "choose a folder that you may write to"
REMEDIES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "raise the limit of file sizes, or write to another disk",
    errno.EROFS: _REFUSED,
    errno.EACCES: _REFUSED,
    errno.EPERM: _REFUSED,
}
OF_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""Errors that only writing has; others count if they name the file that is written, or none."""


@contextmanager
def explain_write_errors(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Errors of writing in the block name `path` and say what helps.

    Args:
        path: the file or folder that is written.
        temporary: what it is called until it is complete; None for `path`.

    Raises:
        OSError: an error of the disk; its class, number and cause are those of the error in the block.
    """
    own = {str(path), str(temporary)}
    try:
        yield
    except SafetensorError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        raise _explained(int(found[1]), path) from error
    except OSError as error:
        if error.errno is None:
            if "written" not in str(error):  # numpy's word for a full disk: "1024 requested and 512 written"
                raise
            raise _explained(errno.ENOSPC, path) from error
        named = error.filename is not None and any(str(error.filename).startswith(name) for name in own)
        if named or error.errno in OF_WRITING or (error.filename is None and error.errno in REMEDIES):
            raise _explained(error.errno, path) from error
        raise


def _explained(number: int, path: Path) -> OSError:
    remedy = REMEDIES.get(number)
    return OSError(number, os.strerror(number) + (f": {remedy}" if remedy else ""), str(path))
