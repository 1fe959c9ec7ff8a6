"""Files and folders that appear complete or not at all, with tensors as safetensors and plain data as JSON."""

import json
import math
import os
import re
import shutil
import stat
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file
from torch import Tensor

from openedm.ground.digests import check_listed, named, seal, unseal
from openedm.ground.disks import explain_write_errors
from openedm.ground.locks import hold_file, locked_file
from openedm.ground.regular import check_regular, read_limited, reason

REMAINS = re.compile(r"\.(?P<file>.+)\.\d+\.tmp|\.(?P<folder>.+)-\d+")
"""Names under which files and folders are written, of which a process that is killed leaves one."""

WRITERS = 4
"""Threads that write or flush files at a time."""


@contextmanager
def replacing(path: str | os.PathLike[str], *, digest: bool = False, flush: bool = True) -> Iterator[Path]:
    """A path beside `path` to write to; the file takes the place of `path` at the end of the block.

    With `digest`, the name gets the digest of the file at its end (`digests.check_digest`). Without `flush`, nothing is
    forced to the disk, so that a crash of the machine may leave a damaged file: for many small files with digests.

    A block that fails leaves what was at `path` as it was and removes what it wrote, and a process that is killed
    leaves at worst a hidden file beside it, which `remove_remains` deletes. The content is on the disk before its name
    changes, and the new name is on the disk at the end of the block. The file gets the permissions that the user's
    umask gives to new files, whatever the library that writes it thinks fit.

    Raises:
        OSError: the disk is full, or `path` may not be written; it names `path` and says what helps.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with explain_write_errors(path, temporary):
        try:
            with open(temporary, "wb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            yield temporary
            if flush:
                with open(temporary, "rb+") as file:
                    os.fsync(file.fileno())
            if stat.S_IMODE(temporary.stat().st_mode) != mode:
                temporary.chmod(mode)
            os.replace(temporary, named(path, temporary) if digest else path)
            if flush and os.name == "posix":  # elsewhere folders cannot be opened
                _flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, what: str = "a checkpoint") -> Iterator[Path]:
    """A folder under a temporary name; it gets the name `path`, durably, at the end of a block that does not fail.

    Raises:
        ValueError: `path` exists, and the message says that `what` is never overwritten; or another process writes it.
        OSError: the disk is full, or `path` may not be written; it names `path` and says what helps.
    """
    with locked_file(path):
        if path.exists():
            raise ValueError(f"{path} exists already: {what} is never overwritten")
        remove_remains(path.parent, path.name)
        temporary = path.with_name(f".{path.name}-{os.getpid()}")
        with explain_write_errors(path, temporary):
            try:
                temporary.mkdir(parents=True)
                yield temporary
                synchronise(temporary)
                os.replace(temporary, path)
                synchronise(path.parent)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise


@contextmanager
def new_files(*paths: Path) -> Iterator[Path]:
    """A hidden folder to write files to, which get these paths at the end of the block, in this order.

    All are complete then, and on the disk; a process that is killed between leaves the first ones.

    Raises:
        OSError: the disk is full, or the last path may not be written; it names that path and says what helps.
    """
    target = paths[-1]
    temporary = target.with_name(f".{target.name}-{os.getpid()}")
    with explain_write_errors(target, temporary):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            synchronise(temporary)
            for path in paths:
                os.replace(temporary / path.name, path)
            _flush(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def remove_remains(folder: Path, name: str | None = None) -> None:
    """Delete what killed processes left half-written in a folder, hidden; only with its lock, or that of the name.

    Args:
        folder: the folder.
        name: the name of the file or folder that they wrote; None for all files, but no folders.
    """
    for path in folder.glob(".*"):
        found = REMAINS.fullmatch(path.name)
        written = found and (found["file"] or (found["folder"] if name is not None else None))
        if written and name in (None, written):
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def remove_folder(path: Path) -> None:
    """Delete a folder that is never seen half-empty: it first gets a hidden name, which `remove_remains` knows."""
    hidden = path.with_name(f".{path.name}-{os.getpid()}")
    os.replace(path, hidden)
    shutil.rmtree(hidden)


def synchronise(folder: Path) -> None:
    """Make the folder's files and entries durable, so that a crash after a rename finds them complete.

    Threads flush the files: a file system writes together what it is asked to flush at the same time.
    """
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(_flush, filter(Path.is_file, folder.iterdir())))
    _flush(folder)


def _flush(path: Path) -> None:
    """Write a file's content, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_folders(name: str, folder: Path) -> None:
    """Raise ValueError if a folder, or one that it is in, is a file; `name` is the name of the argument."""
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise ValueError(f"{name} must be a folder, but {path} is a file: choose another name")


def new_path(
    name: str, path: str | os.PathLike[str] | None, suffixes: Collection[str] = (), what: str = "a file"
) -> Path | None:
    """The path for the result of some work, or None; checked before the work.

    Args:
        name: the name of the argument, for messages.
        path: the path, or None.
        suffixes: the allowed suffixes; all if empty.
        what: the kind of result, for messages.

    In a command, the path is locked until the command ends, and what a killed one left is removed.

    Raises:
        ValueError: the path exists, has another suffix, is inside a file, or another process writes it.
        OSError: its folder cannot be written.
    """
    if path is None:
        return None
    target = Path(path)
    check_folders(name, target.parent)
    if suffixes and target.suffix not in suffixes:
        raise ValueError(f"{name} must end in {' or '.join(suffixes)}, got {str(path)!r}")
    if hold_file(target, name):
        remove_remains(target.parent, target.name)
    if target.exists():
        raise ValueError(f"{name}={path} exists already: {what} is never overwritten, choose another name")
    return target


@contextmanager
def _writing(path: Path, *, digest: bool = False, flush: bool = True) -> Iterator[Path]:
    """As `replacing`, but a missing folder is created. All functions below that write use it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, digest=digest, flush=flush) as temporary:
        yield temporary


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None, *, digest: bool = False
) -> None:
    """Write tensors as safetensors, with `metadata` in the header; those that share memory are written one by one.

    With `digest`, the name gets the digest of the file at its end, as by `replacing`.
    """
    with _writing(path, digest=digest) as temporary:
        save_file(_separate(tensors), temporary, metadata)


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the host, none of which share memory, as tied weights do: safetensors refuses to write those."""
    separate: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        start = own.untyped_storage().data_ptr()
        separate[name] = own.clone() if start in taken else own
        taken.add(start)
    return separate


def read_tensors(path: Path, listed_in: Path | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Args:
        path: the file.
        listed_in: the JSON file that may have its digest, against which it is checked: 0.7 seconds a GB.

    Raises:
        ValueError: the file is missing, damaged or was changed since it was written.
    """
    if listed_in is not None:
        check_listed(path, read_json(listed_in), listed_in)
    try:
        check_regular(path)
        # safetensors opens no path that is not UTF-8.
        return load_file(path) if is_utf8(str(path)) else load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {reason(error)}") from error


def write_json(path: Path, content: Any, indent: int | None = 1, *, files: Collection[str] | None = None) -> None:
    """Write plain data as JSON.

    Args:
        path: the file.
        content: the data.
        indent: None writes one line.
        files: files beside it whose digests are written, too, and, also if there are none, that of the content itself;
            None writes no digests.
    """
    content = content if files is None else seal(content, path.parent, files)
    with _writing(path) as temporary:
        text = json.dumps(content, indent=indent, ensure_ascii=False)
        if not is_utf8(text):  # the name of a file
            text = json.dumps(content, indent=indent)
        temporary.write_text(text + "\n", encoding="utf-8")


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8, as names of files that hold other bytes cannot.

    >>> is_utf8("schön"), is_utf8(os.fsdecode(b"sch\\xf6n"))
    (True, False)
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def replace_nonfinite(content: Any) -> Any:
    """The content with null instead of NaN and infinity, which JSON does not have.

    >>> replace_nonfinite({"p": 0.5, "ratios": [1.0, float("inf")]})
    {'p': 0.5, 'ratios': [1.0, None]}
    """
    if isinstance(content, dict):
        return {key: replace_nonfinite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [replace_nonfinite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds, without its digest.

    Raises:
        ValueError: the file is missing, damaged, was changed since it was written or holds something else.
    """
    try:
        text = read_limited(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read as JSON: {reason(error)}") from error
    content = parse_json(text, path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def parse_json(text: str | bytes, origin: object, *, check: bool = True) -> Any:
    """The value that JSON describes.

    Args:
        text: the content of a file.
        origin: the file, for messages.
        check: compare the content of an object with its digest, if it has one, and leave that out.

    Raises:
        ValueError: it is empty, damaged, nested too deeply or was changed since it was written.
    """
    if not text.strip():
        raise ValueError(f"{origin} cannot be read as JSON: it is empty")
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{origin} cannot be read as JSON: it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{origin} cannot be read as JSON: {error}") from error
    return unseal(content, origin) if check and isinstance(content, dict) else content


class Rows(NamedTuple):
    """An array that is written part by part, and never held in memory as a whole.

    Attributes:
        shape: of the array.
        parts: its rows in order, some at a time, all of the type of the first part.
    """

    shape: tuple[int, ...]
    parts: Iterable[np.ndarray]


def write_arrays(path: Path, arrays: Mapping[str, "np.ndarray | Rows"]) -> None:
    """Write numpy arrays as .npz, as `numpy.savez` does, but `Rows` part by part."""
    with _writing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                if isinstance(array, Rows):
                    _write_rows(member, array)
                else:
                    np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)


def _write_rows(member: Any, rows: Rows) -> None:
    count, dtype = 0, None
    for part in rows.parts:
        if dtype is None:
            dtype = part.dtype
            kind = np.lib.format.dtype_to_descr(dtype)
            header = {"descr": kind, "fortran_order": False, "shape": tuple(rows.shape)}
            np.lib.format.write_array_header_1_0(member, header)
        if part.dtype != dtype or part.shape[1:] != tuple(rows.shape[1:]):
            raise ValueError(f"parts must be {dtype} (…, {rows.shape[1:]}), got {part.dtype} {part.shape}")
        member.write(np.ascontiguousarray(part).data)
        count += len(part)
    if count != rows.shape[0]:
        raise ValueError(f"parts must have {rows.shape[0]} rows in all, got {count}")


def write_array(path: Path, x: Tensor, *, digest: bool = False) -> None:
    """Write a tensor as .npy in float32; with `digest`, its name ends in its digest, and nothing is flushed."""
    with _writing(path, digest=digest, flush=not digest) as temporary, open(temporary, "wb") as file:
        np.save(file, x.float().cpu().numpy(), allow_pickle=False)
