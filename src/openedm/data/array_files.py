"""Files of numpy whose arrays are read when they are needed: large .npy files are mapped, not loaded."""

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from openedm.ground.memory import available_memory
from openedm.ground.regular import check_entries, check_regular, limit_entries, reason

__all__ = ["MAX_ARRAYS", "MAX_COPIED", "ArrayFile", "check_memory"]

MAX_COPIED = 256 * 2**20
"""The size in bytes above which arrays stay in their file where they can, and the memory of copies is checked."""

MAX_ARRAYS = 10_000
"""The largest number of arrays in a .npz file."""

_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    SyntaxError,
    OverflowError,
    MemoryError,
    RecursionError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
    struct.error,
    tokenize.TokenError,
)
"""The errors of numpy and zipfile for damaged files; RuntimeError for one with a password."""


def check_memory(what: str, need: int, advice: str) -> None:
    """Check that memory suffices, where much is needed.

    Args:
        what: the array and what is done with it.
        need: bytes.
        advice: what to do where they are not there.

    Raises:
        ValueError: it does not.
    """
    if need <= MAX_COPIED:
        return
    free = available_memory()
    if need > free:
        raise ValueError(
            f"{what} needs {need / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free: {advice}"
        )


class ArrayFile:
    """The arrays in a .npy or .npz file by name; that of a .npy file is called "".

    Args:
        path: the file.
        argument: what errors call it.

    Raises:
        ValueError: it is not such a file, holds pickled objects, or, when an array is read, is damaged or needs more
            memory than there is.
    """

    def __init__(self, path: str, argument: str = "path") -> None:
        self._path, self._argument = path, argument
        self._array: np.ndarray | None = None
        try:
            check_regular(path)
            with open(path, "rb") as file:
                if file.read(2) == b"PK":
                    limit_entries(path, MAX_ARRAYS)
                file.seek(0)
                content = np.load(file, allow_pickle=False) if self._is_small() else np.load(path, mmap_mode="c")
                self._array = content if isinstance(content, np.ndarray) else None
                self._names = [""] if isinstance(content, np.ndarray) else list(content)
                if not isinstance(content, np.ndarray):
                    check_entries(path, len(content.zip.infolist()))
        except _ERRORS as error:
            raise self._unreadable(error) from error

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __getitem__(self, name: str) -> np.ndarray:
        if self._array is not None:
            return self._array
        try:
            with open(self._path, "rb") as file, np.load(file, allow_pickle=False) as content:
                sizes = {member.filename: member.file_size for member in content.zip.infolist()}
                advice = "save it as a .npy file, which is not loaded but read where it is needed"
                check_memory(f"the array {name!r}", sizes.get(f"{name}.npy", 0), advice)
                found: np.ndarray = content[name]
        except _ERRORS as error:
            raise self._unreadable(error) from error
        return found

    def find(self, name: str) -> np.ndarray | None:
        """An array, or None if there is no such array."""
        return self[name] if name in self._names else None

    def pop(self, name: str) -> np.ndarray:
        """An array, which is not listed any longer."""
        found = self[name]
        self._names.remove(name)
        return found

    def _is_small(self) -> bool:
        return Path(self._path).stat().st_size <= MAX_COPIED or zipfile.is_zipfile(self._path)

    def _unreadable(self, error: Exception) -> ValueError:
        why = reason(error)
        if "allow_pickle" in why:
            why = "it holds no arrays of numbers or text, but Python objects, or is no such file"
        return ValueError(f"{self._argument} must be a .npy or .npz file, {self._path!r} cannot be read: {why}")
