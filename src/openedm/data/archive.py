"""Files in a folder, a zip archive or tar archives, read by name or by offset.

fsspec opens the same containers, but it shares one open archive between forked processes, does not detect a tar archive
that is cut between two files, and its errors do not name the file.
"""

import os
import tarfile
import weakref
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Any, cast

from openedm.ground.regular import MAX_ENTRIES, check_entries, check_regular, limit_entries, reason

__all__ = ["Archive", "FileParts", "tar_members"]

MAX_MEMBER = 2**30
"""The largest size in bytes, without compression, of a file in an archive."""

_READ_ERRORS = (
    OSError,
    EOFError,
    LookupError,
    RuntimeError,
    NotImplementedError,
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
)
"""The errors of reading a damaged, encrypted or missing file."""


class FileParts:
    """Reads parts of files by their offset. The files used last stay open; forked processes may share them.

    Args:
        keep: the number of files that stay open.
    """

    def __init__(self, keep: int = 64) -> None:
        self._keep = keep
        self._open: OrderedDict[str, _Descriptor] = OrderedDict()

    def read(self, path: str, offset: int, size: int) -> bytes:
        """The `size` bytes at `offset`.

        Raises:
            OSError: the file cannot be read, or ends too early.
        """
        if path not in self._open:
            if len(self._open) >= self._keep:
                self._open.popitem(last=False)
            self._open[path] = _Descriptor(path)
        self._open.move_to_end(path)
        content = os.pread(self._open[path].number, size, offset)  # pread has no position that processes could share
        if len(content) != size:
            raise OSError(f"{path} ends after {offset + len(content)} bytes")
        return content

    def close(self) -> None:
        """Close all files."""
        self._open.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}


class _Descriptor:
    """A file that is closed when no reference to it is left."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.number)


class Archive:
    """The files below `path`, named by their path relative to it, with `/` as separator.

    It can be pickled and used by forked processes: each opens a zip archive separately.

    Raises:
        ValueError: `path` is neither a folder nor a zip archive nor a tar archive, which must not be compressed.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._zip: tuple[int, zipfile.ZipFile] | None = None
        self._is_folder = Path(path).is_dir()
        self._members: dict[str, tuple[int, int]] | None = None
        self._parts = FileParts()
        if not self._is_folder and Path(path).exists():
            check_regular(path)
        if not self._is_folder and not zipfile.is_zipfile(path):
            if not Path(path).is_file() or not tarfile.is_tarfile(path):
                problem = "which is neither" if Path(path).exists() else "which does not exist"
                raise ValueError(f"path must be a folder or a zip or tar archive, got {path!r}, {problem}")
            self._members = tar_members(path)
        elif not self._is_folder:
            limit_entries(path)

    def sizes(self) -> dict[str, int]:
        """Names of all files, sorted, with their stored size in bytes; hidden files and folders are left out.

        Raises:
            ValueError: the folder or archive cannot be read.
        """
        try:
            found = dict(self._files())
        except _READ_ERRORS as error:
            raise ValueError(f"path {self.path!r} cannot be read: {error}") from error
        visible = (name for name in found if not any(p.startswith(".") or p == "__MACOSX" for p in name.split("/")))
        return {name: found[name] for name in sorted(visible)}

    @contextmanager
    def open(self, name: str) -> Iterator[BufferedIOBase]:
        """The file `name`, open for reading.

        Raises:
            ValueError: it cannot be opened, or reading in the block fails; the message names it.
        """
        try:
            if self._members is not None:
                yield BytesIO(self._parts.read(self.path, *self._members[name]))
                return
            if self._is_folder:
                check_regular(Path(self.path, name))
            elif (size := self._open_zip().getinfo(name).file_size) > MAX_MEMBER:
                raise OSError(f"it must have at most {MAX_MEMBER:,} bytes, got {size:,}")
            with Path(self.path, name).open("rb") if self._is_folder else self._open_zip().open(name) as file:
                yield cast(BufferedIOBase, file)
        except _READ_ERRORS as error:
            raise ValueError(f"{self.path}/{name} cannot be read: {reason(error)}") from error

    def close(self) -> None:
        """Close the archive; it is opened again when needed."""
        self._parts.close()
        if self._zip is not None:
            self._zip[1].close()
            self._zip = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zip": None}

    def _open_zip(self) -> zipfile.ZipFile:
        if self._zip is None or self._zip[0] != os.getpid():
            self._zip = (os.getpid(), zipfile.ZipFile(self.path))
        return self._zip[1]

    def _files(self) -> Iterator[tuple[str, int]]:
        if self._members is not None:
            yield from ((name, size) for name, (_, size) in self._members.items())
        elif self._is_folder:
            inside: dict[str, tuple[str, ...]] = {}  # the real folders that a folder is in
            for folder, folders, files in os.walk(self.path, followlinks=True, onerror=_raise):
                real = os.path.realpath(folder)
                above = inside.pop(folder, ())
                if real in above:
                    raise ValueError(f"path {self.path!r} has a link to a folder that it is in: {folder}")
                inside |= {os.path.join(folder, name): (*above, real) for name in folders}
                for path in (Path(folder, file) for file in files):
                    yield path.relative_to(self.path).as_posix(), path.stat().st_size
        else:
            entries = self._open_zip().infolist()
            check_entries(self.path, len(entries))
            yield from ((entry.filename, entry.compress_size) for entry in entries if not entry.is_dir())


def tar_members(path: str) -> dict[str, tuple[int, int]]:
    """Offsets and sizes of the files in a tar archive, in bytes, by name, in the archive's order.

    Raises:
        ValueError: the archive is compressed, damaged or ends early; the message names it.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            members = {}
            for number, member in enumerate(archive, start=1):
                if number > MAX_ENTRIES:
                    raise ValueError(f"it must have at most {MAX_ENTRIES:,} entries, got more: use several archives")
                if member.isreg() and not member.issparse():
                    members[member.name.removeprefix("./")] = (member.offset_data, member.size)
                archive.members.clear()  # type: ignore[attr-defined]  # which keeps a kilobyte of each
            end = archive.offset
    except (tarfile.TarError, OverflowError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a tar archive without compression: {reason(error)}") from error
    length = Path(path).stat().st_size
    for name, (offset, size) in members.items():
        if offset + size > length:
            raise ValueError(f"{path} ends within {name}: the archive is not complete")
    # tarfile treats a damaged or cut header as the end of the archive, unless it is the first.
    with open(path, "rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError(f"{path} is damaged or not complete: no header and no end of the archive at byte {end}")
    return members


def _raise(error: OSError) -> None:
    raise error
