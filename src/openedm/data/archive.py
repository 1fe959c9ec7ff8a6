"""Files below one root, a folder or a zip or tar archive, read alike."""

import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Any, cast

BROKEN = (
    OSError,
    EOFError,
    KeyError,
    RuntimeError,
    NotImplementedError,
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
)
"""What reading a damaged, encrypted or vanished file raises."""


class Archive:
    """The files below `path`, named by their path from there with `/` between.

    It can be pickled, and be used by processes that were forked: each opens a zip archive for itself.

    Raises:
        ValueError: `path` is neither a folder nor a zip archive nor a tar archive, which must not be compressed.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._zip: tuple[int, zipfile.ZipFile] | None = None
        self._is_folder = Path(path).is_dir()
        self._members: dict[str, tuple[int, int]] | None = None
        if not self._is_folder and not zipfile.is_zipfile(path):
            if not Path(path).is_file() or not tarfile.is_tarfile(path):
                problem = "which is neither" if Path(path).exists() else "which does not exist"
                raise ValueError(f"path must be a folder or a zip or tar archive, got {path!r}, {problem}")
            self._members = tar_members(path)

    def sizes(self) -> dict[str, int]:
        """Names of all files, sorted, with their stored size in bytes; hidden files and folders are left out.

        Raises:
            ValueError: the folder or archive cannot be read.
        """
        try:
            found = self._found()
        except BROKEN as error:
            raise ValueError(f"path {self.path!r} cannot be read: {error}") from error
        visible = (name for name in found if not any(p.startswith(".") or p == "__MACOSX" for p in name.split("/")))
        return {name: found[name] for name in sorted(visible)}

    def describe(self, name: str) -> str:
        """What to call the file in a message."""
        return f"{self.path}/{name}"

    @contextmanager
    def open(self, name: str) -> Iterator[BufferedIOBase]:
        """The file `name`, open for reading.

        Raises:
            ValueError: it cannot be opened, or reading in the block fails; names it.
        """
        try:
            if self._members is not None:
                yield BytesIO(self._member(*self._members[name]))
                return
            with Path(self.path, name).open("rb") if self._is_folder else self._opened().open(name) as file:
                yield cast(BufferedIOBase, file)
        except BROKEN as error:
            raise ValueError(f"{self.describe(name)} cannot be read: {error}") from error

    def close(self) -> None:
        """Close the zip archive; it opens again when needed."""
        if self._zip is not None:
            self._zip[1].close()
            self._zip = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zip": None}

    def _opened(self) -> zipfile.ZipFile:
        if self._zip is None or self._zip[0] != os.getpid():
            self._zip = (os.getpid(), zipfile.ZipFile(self.path))
        return self._zip[1]

    def _found(self) -> dict[str, int]:
        if self._members is not None:
            return {name: size for name, (_, size) in self._members.items()}
        return self._folder_sizes() if self._is_folder else self._zip_sizes()

    def _member(self, offset: int, size: int) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(offset)
            return file.read(size)

    def _zip_sizes(self) -> dict[str, int]:
        return {entry.filename: entry.compress_size for entry in self._opened().infolist() if not entry.is_dir()}

    def _folder_sizes(self) -> dict[str, int]:
        walk = os.walk(self.path, followlinks=True, onerror=_raise)
        paths = (Path(folder, file) for folder, _, files in walk for file in files)
        return {path.relative_to(self.path).as_posix(): path.stat().st_size for path in paths}


BLOCK = tarfile.BLOCKSIZE


def tar_members(path: str) -> dict[str, tuple[int, int]]:
    """Where the files of a tar archive begin in it and their sizes, in bytes, by name, in the archive's order.

    Raises:
        ValueError: the archive is compressed, damaged or ends early; names it.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            members = {m.name.removeprefix("./"): (m.offset_data, m.size) for m in archive if m.isreg()}
            end = archive.offset
    except tarfile.ReadError as error:
        raise ValueError(f"{path} cannot be read as a tar archive without compression: {error}") from error
    length = Path(path).stat().st_size
    for name, (offset, size) in members.items():
        if offset + size > length:
            raise ValueError(f"{path} ends within {name}: the archive is not complete")
    # To tarfile a header that is damaged or cut is the archive's end, unless it is the first.
    with open(path, "rb") as file:
        file.seek(end)
        if file.read(BLOCK) != bytes(BLOCK):
            raise ValueError(f"{path} is damaged or not complete: no header and no end of the archive at byte {end}")
    return members


def _raise(error: OSError) -> None:
    raise error
