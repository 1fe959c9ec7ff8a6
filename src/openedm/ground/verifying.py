"""Whether files are as they were written, by their digests (`digests`) and the checksums of their formats.

Nothing is built or executed, and nothing but the files below a folder is opened.
"""

import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from openedm.ground.digests import (
    FILES,
    SEAL,
    check_digest,
    check_text,
    digest_in_name,
    listed_files,
    named,
    seal,
    seal_text,
)
from openedm.ground.regular import check_entries, check_regular, limit_entries, read_limited, reason
from openedm.ground.storage import parse_json, replacing, write_json

__all__ = ["Finding", "accept", "verify"]

LOG = "log.jsonl"
PNG = b"\x89PNG\r\n\x1a\n"


class Finding(NamedTuple):
    """What was found about a file.

    Attributes:
        path: the file.
        state: whether it is as it was written; "unknown" where it has neither a digest nor a checksum.
        problem: what is wrong with a damaged file.
    """

    path: Path
    state: Literal["as written", "unknown", "damaged"]
    problem: str = ""


class _Described(NamedTuple):
    """A JSON file: its content without its digest, whether it has one, and the digests of other files in it."""

    content: Any
    sealed: bool
    files: dict[str, str]


def verify(path: str | os.PathLike[str]) -> Iterator[Finding]:
    """What is known about a file, or about each file below a folder, folder by folder.

    Files are compared with the digests that this library writes: those in JSON files, in names and in the manifests of
    shards. Of .npz, .zip and .png the checksums of the format are compared; log.jsonl, which grows line by line, has
    no digest, but its lines are checked (`check_log`). It takes 0.7 seconds a GB.

    Args:
        path: a run, a checkpoint, a posterior, a store of simulations, converted data, or samples; or a file in them.

    Raises:
        ValueError: there is nothing at `path`.
        OSError: a folder may not be read.
    """
    root = Path(path)
    if root.is_dir():
        for folder, folders, files in os.walk(root, onerror=_raised):
            folders.sort()
            # Hidden files are locks, and what killed processes left; those of a conversion are JSON.
            names = [name for name in files if not name.startswith(".") or name.endswith(".json")]
            yield from _verify_folder(Path(folder), names)
    elif root.exists():
        yield from _verify_folder(root.parent, [root.name], others=False)
    else:
        raise ValueError(f"path must be a folder or a file, there is nothing at {str(path)!r}")


def _raised(error: OSError) -> None:
    raise error


def _verify_folder(folder: Path, names: list[str], *, others: bool = True) -> Iterator[Finding]:
    """The findings about files in a folder and, with `others`, about those that its JSON files list."""
    listed: dict[str, str] = {}
    found: dict[str, Finding] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            described = _read(path)
            listed |= described.files
            found[path.name] = Finding(path, "as written" if described.sealed else "unknown")
        except ValueError as error:
            found[path.name] = _damaged(path, error)
    for name in sorted({*names, *(listed if others else ())}):
        known = found.get(name)
        yield known if known is not None else _verify_file(folder / name, listed.get(name))


def _verify_file(path: Path, digest: str | None) -> Finding:
    try:
        _check_regular(path)
        if digest is not None or digest_in_name(path) is not None:
            check_digest(path, digest)
            return Finding(path, "as written")
        if path.name == LOG:
            check_log(path)
            return Finding(path, "unknown")
        if path.suffix in (".npz", ".zip"):
            _check_zip(path)
        elif path.suffix == ".png":
            _check_png(path)
        elif path.suffix == ".yaml":
            return Finding(path, "as written" if check_text(read_limited(path), path) else "unknown")
        else:
            return Finding(path, "unknown")
    except (OSError, ValueError) as error:
        return _damaged(path, error)
    return Finding(path, "as written")


def _read(path: Path) -> _Described:
    """A JSON file.

    Raises:
        ValueError: it is no file, is too large or damaged, or names files elsewhere.
    """
    _check_regular(path)
    text = read_limited(path)
    content, sealed = parse_json(text, path), f'"{SEAL}"'.encode() in text
    files: dict[str, str] = {}
    if isinstance(content, dict):
        files = listed_files(content, path) if sealed else {}
        if isinstance(content.get("index_sha256"), str) and isinstance(content.get("shards"), list):
            entries = [entry for entry in content["shards"] if isinstance(entry, dict)]
            shards = {str(entry.get("file")): str(entry.get("sha256")) for entry in entries}
            files = files | listed_files({FILES: {**shards, "index.npz": content["index_sha256"]}}, path)
    return _Described(content, sealed, files)


def _check_regular(path: Path) -> None:
    if not path.exists():
        raise ValueError(f"{path} is missing")
    check_regular(path)


def check_log(path: Path) -> None:
    """Check that each line of a log is a JSON object, and that `images` in them never fall; it has no digest.

    A last line without its end, as a killed process leaves one, is left out.

    Raises:
        ValueError: a line is something else; the message has its number.
    """
    images = 0.0
    for number, line in enumerate(read_limited(path).splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break
        content = parse_json(line, f"{path}: line {number}")
        seen = content.get("images") if isinstance(content, dict) else None
        if not isinstance(seen, int | float) or not seen >= images:
            raise ValueError(f"{path}: line {number} must have images of at least {images:,.0f}, got {str(seen)[:40]}")
        images = seen


def _check_zip(path: Path) -> None:
    limit_entries(path)
    try:
        with zipfile.ZipFile(path) as archive:
            check_entries(path, len(archive.infolist()))
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read as an archive: {reason(error)}") from error
    if damaged is not None:
        raise ValueError(f"{path}: {damaged} in it has another checksum")


def _check_png(path: Path) -> None:
    """Compare the CRC-32 of each chunk, of which an image library reads only some."""
    content = path.read_bytes()
    at = len(PNG)
    whole, last = content.startswith(PNG), b""
    while whole and at < len(content) and last != b"IEND":
        length = int.from_bytes(content[at : at + 4])
        last, end = content[at + 4 : at + 8], at + 8 + length
        whole = zlib.crc32(content[at + 4 : end]).to_bytes(4) == content[end : end + 4]
        at = end + 4
    if not whole or last != b"IEND" or at != len(content):
        raise ValueError(f"{path} is not a whole PNG, by its checksums")


def _damaged(path: Path, error: Exception) -> Finding:
    problem = reason(error).removeprefix(f"{path}").lstrip(" :")
    return Finding(path, "damaged", problem.partition(": restore it")[0])


def accept(path: str | os.PathLike[str]) -> list[Path]:
    """Write the digests of files below a folder that were changed on purpose, as they are now.

    Args:
        path: a run, a checkpoint, a posterior, a store of simulations, or samples.

    Returns:
        The files whose digests were others.

    Raises:
        ValueError: `path` is not a folder, a JSON file cannot be read or lists a file that is missing, or a shard or
            its index was changed, of which the images have checksums, too.
    """
    if not (root := Path(path)).is_dir():
        raise ValueError(f"path must be a folder for accept, got {str(path)!r}")
    accepted: list[Path] = []
    for finding in list(verify(root)):
        if finding.state == "damaged" and finding.path.suffix != ".json":
            accepted.append(finding.path)
            _check_regular(finding.path)
            if finding.path.suffix == ".yaml":
                _seal_text_again(finding.path)
            elif digest_in_name(finding.path) is not None:
                stem = finding.path.stem.rpartition("-")[0]
                os.replace(finding.path, named(finding.path.with_stem(stem), finding.path))
    for json_file in sorted(root.rglob("*.json")):
        if _seal_again(json_file):
            accepted.append(json_file)
    if left := [finding for finding in verify(root) if finding.state == "damaged"]:
        raise ValueError(f"{left[0].path} {left[0].problem}: this cannot be accepted, restore it from a copy")
    return accepted


def _seal_text_again(path: Path) -> None:
    *lines, _ = read_limited(path).decode().splitlines(keepends=True)
    with replacing(path) as temporary:
        temporary.write_text(seal_text("".join(lines)), encoding="utf-8")


def _seal_again(path: Path) -> bool:
    """Write the digests in a JSON file again where they differ; whether they did."""
    text = read_limited(path).decode()
    content = parse_json(text, path, check=False)
    if not isinstance(content, dict) or SEAL not in content:
        return False
    files = listed_files(content, path)
    for name in files:
        _check_regular(path.parent / name)
    plain = {key: value for key, value in content.items() if key not in (SEAL, FILES)}
    if seal(plain, path.parent, files) == content:
        return False
    write_json(path, plain, 1 if "\n" in text.strip() else None, files=files)
    return True
