"""What tar archives in the manner of WebDataset hold: files that belong together share a name up to its first dot."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from openedm.data.archive import tar_members
from openedm.data.decoding import SUFFIXES


class Place(NamedTuple):
    """Where a picture is.

    Attributes:
        shard: which archive.
        name: the file's name in it.
        offset: where it begins, in bytes.
        size: in bytes.
        label: its class, where it has one.
    """

    shard: int
    name: str
    offset: int
    size: int
    label: int | None


def tar_files(path: Path) -> list[Path]:
    """The .tar files in a folder, in the order of their names; of one such file, it alone.

    Raises:
        ValueError: there are none.
    """
    files = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise ValueError(f"path must be a folder of .tar files, or one of them, got {str(path)!r}")
    return files


def places(files: Sequence[Path]) -> list[Place]:
    """All pictures of the archives; the class of NAME.png is the number in NAME.cls, or "label" or "cls" in NAME.json.

    Raises:
        ValueError: no pictures; an archive is compressed or damaged; a class is no integer ≥ 0; some pictures have a
            class and others have none.
    """
    found: list[Place] = []
    for number, file in enumerate(files):
        members = tar_members(str(file))
        with open(file, "rb") as opened:
            for name, (offset, size) in members.items():
                if name.lower().endswith(SUFFIXES):
                    stem = _stem(name)
                    beside = {
                        end: _content(opened, *members[stem + end])
                        for end in (".cls", ".json")
                        if stem + end in members
                    }
                    found.append(Place(number, name, offset, size, _label(beside, f"{file}/{name}")))
    if not found:
        raise ValueError(f"{files[0]} and its like hold no pictures ({', '.join(SUFFIXES)})")
    without = next((place for place in found if place.label is None), None)
    if without is not None and any(place.label is not None for place in found):
        raise ValueError(f"{files[without.shard]}/{without.name} has no class, but others have one")
    return found


def _content(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _stem(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _label(beside: dict[str, bytes], where: str) -> int | None:
    try:
        if ".cls" in beside:
            label: Any = int(beside[".cls"])
        elif ".json" in beside:
            entries = json.loads(beside[".json"])
            label = entries.get("label", entries.get("cls"))
        else:
            return None
    except (ValueError, AttributeError) as error:
        raise ValueError(f"the class of {where} cannot be read: {error}") from error
    if label is not None and (not isinstance(label, int) or isinstance(label, bool) or label < 0):
        raise ValueError(f"the class of {where} must be an integer >= 0, got {label!r}")
    return label
