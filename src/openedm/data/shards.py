"""Tar shards as training data: those of `openedm data convert`, or any WebDataset.

Every picture is read from where it lies in its shard, so that any order is possible and a run goes on exactly where it
stopped; nothing is unpacked and only the index is held in memory.
"""

import hashlib
import io
import json
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openedm import checks
from openedm.data.archive import tar_members
from openedm.data.converting import FORMAT, INDEX, MANIFEST
from openedm.data.dataset import Batch, Chunks, Dataset, Indices, InMemory, Source, as_float, as_index
from openedm.data.decoding import SUFFIXES, read_picture, read_shape
from openedm.data.folder import MEMORY

_HANDLES = 64


@dataclass(frozen=True)
class Shards(Source):
    """Pictures in tar archives: a folder of shards from `openedm data convert`, or from WebDataset.

    Sets up to 256 MiB are decoded when loaded, larger ones as samples are fetched. Shards without a manifest are looked
    through when loaded: the class of NAME.png is the number in NAME.cls, or "label" or "cls" in NAME.json.

    Args:
        path: a folder of .tar files, which are taken in the order of their names, or one such file; not compressed.
        streaming: visit the shards one after another, shuffled within a window, instead of jumping to and fro in all of
            them: faster where the files are far away. The order does not depend on the number of processes.
        window: of `streaming`: images that are shuffled among each other.
        lanes: of `streaming`: shards that are read side by side; a multiple of the number of processes.
        resolution: crop each picture to its central square and resize it to this side. Without it, all must be of one
            size.
        channels: convert each picture to 1, 3 or 4 channels. Without it, all must have as many.
    """

    path: str
    streaming: bool = False
    window: int = 8192
    lanes: int = 8
    resolution: int | None = None
    channels: int | None = None

    def __post_init__(self) -> None:
        checks.at_least("window", self.window, 1)
        checks.at_least("lanes", self.lanes, 1)
        if self.resolution is not None:
            checks.at_least("resolution", self.resolution, 1)
        if self.channels is not None:
            checks.one_of("channels", self.channels, (1, 3, 4))

    def load(self) -> Dataset:
        root = Path(self.path)
        table = _converted(root) if (root / MANIFEST).exists() else _foreign(root, self.resolution, self.channels)
        channels, height, width = table.shape
        shape = (self.channels or channels, self.resolution or height, self.resolution or width)
        images = _Images(table, shape, self.resolution)
        if self.streaming:
            sizes = np.bincount(table.shard, minlength=len(table.files))
            images.chunks = Chunks(tuple(sizes[sizes > 0].tolist()), self.window, self.lanes)
            return images
        size = max(len(images) * shape[0] * shape[1] * shape[2], int(table.size.sum()))
        return images if size > MEMORY else images.decoded()


@dataclass
class _Table:
    """Where each picture is."""

    files: list[str]
    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    label: np.ndarray | None
    shape: tuple[int, int, int]
    num_classes: int
    class_names: list[str] | None


class _Images(Dataset):
    """Pictures that are read and decoded when fetched."""

    kind = "images"

    def __init__(self, table: _Table, shape: tuple[int, int, int], resolution: int | None) -> None:
        self._table, self._resolution = table, resolution
        self._open: tuple[int, OrderedDict[int, io.FileIO]] = (os.getpid(), OrderedDict())
        self.event_shape = shape
        self.num_classes = table.num_classes
        self.class_names = None if table.class_names is None else tuple(table.class_names)

    def __len__(self) -> int:
        return len(self._table.offset)

    def fetch(self, indices: Indices) -> Batch:
        index = as_index(indices, len(self)).numpy()
        labels = None if self._table.label is None else torch.from_numpy(self._table.label[index])
        return as_float(self._pixels(index.tolist())), labels

    def decoded(self) -> InMemory:
        """All of it in memory."""
        pixels = self._pixels(range(len(self)))
        self._open = (os.getpid(), OrderedDict())
        labels = None if self._table.label is None else torch.from_numpy(self._table.label)
        return InMemory(pixels, labels, num_classes=self.num_classes or None, class_names=self.class_names)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": (0, OrderedDict())}

    def _pixels(self, indices: Sequence[int]) -> Tensor:
        pixels = torch.empty(len(indices), *self.event_shape, dtype=torch.uint8)
        for row, index in enumerate(indices):
            name = f"picture {index} in {self._table.files[self._table.shard[index]]}"
            pixels[row] = read_picture(
                io.BytesIO(self._content(index, name)), name, self.event_shape[0], self._resolution
            )
        return pixels

    def _content(self, index: int, name: str) -> bytes:
        offset, size = int(self._table.offset[index]), int(self._table.size[index])
        try:
            content = os.pread(self._file(int(self._table.shard[index])).fileno(), size, offset)
        except OSError as error:
            raise ValueError(f"{name} cannot be read: {error}") from error
        if len(content) != size:
            raise ValueError(f"{name} cannot be read: the shard ends at it")
        return content

    def _file(self, shard: int) -> io.FileIO:
        """The open shard; at most so many at a time, and each process its own."""
        if self._open[0] != os.getpid():
            self._open = (os.getpid(), OrderedDict())
        files = self._open[1]
        if shard not in files:
            if len(files) >= _HANDLES:
                files.popitem(last=False)[1].close()
            files[shard] = io.FileIO(self._table.files[shard])
        files.move_to_end(shard)
        return files[shard]


def _converted(root: Path) -> _Table:
    """The set that `convert` wrote, after cheap checks: the index is the manifest's, no shard is missing or cut."""
    try:
        manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
        if manifest.get("format") != FORMAT or manifest.get("version") != 1:
            raise ValueError(f"its format is {manifest.get('format')!r}, version {manifest.get('version')!r}")
        content = (root / INDEX).read_bytes()
        if hashlib.sha256(content).hexdigest() != manifest["index_sha256"]:
            raise ValueError(f"{INDEX} is damaged or that of another set")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            shard, offset, size = (arrays[name] for name in ("shard", "offset", "size"))
            label = arrays.get("label")
        files = [root / entry["file"] for entry in manifest["shards"]]
        for file, entry in zip(files, manifest["shards"], strict=True):
            if file.stat().st_size != entry["bytes"]:
                raise ValueError(f"{file.name} must have {entry['bytes']} bytes, but has {file.stat().st_size}")
        channels, height, width = manifest["shape"]
        names = manifest.get("class_names")
        return _Table(
            list(map(str, files)), shard, offset, size, label, (channels, height, width), manifest["num_classes"], names
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"path {str(root)!r} is no complete set of shards: {error}") from error


def _foreign(root: Path, resolution: int | None, channels: int | None) -> _Table:
    """Shards without a manifest: every file's header is read."""
    files = sorted(root.glob("*.tar")) if root.is_dir() else [root]
    if not files or not files[0].is_file():
        raise ValueError(f"path must be a folder of .tar files, or one of them, got {str(root)!r}")
    found = _Found(resolution, channels)
    for number, file in enumerate(files):
        found.add(number, file)
    if found.shape is None:
        raise ValueError(f"path holds no pictures ({', '.join(SUFFIXES)}): {str(root)!r}")
    labels = None if None in found.labels else np.array(found.labels, dtype=np.int64)
    if labels is None and any(label is not None for label in found.labels):
        raise ValueError(f"{found.names[found.labels.index(None)]} has no class, but others have one")
    places = np.array(found.places, dtype=np.int64)
    number = 0 if labels is None else int(labels.max()) + 1
    return _Table(list(map(str, files)), places[:, 0], places[:, 1], places[:, 2], labels, found.shape, number, None)


class _Found:
    """Pictures and classes of the shards looked at so far."""

    def __init__(self, resolution: int | None, channels: int | None) -> None:
        self._resolution, self._channels = resolution, channels
        self.places: list[tuple[int, int, int]] = []
        self.labels: list[int | None] = []
        self.names: list[str] = []
        self.shape: tuple[int, int, int] | None = None

    def add(self, number: int, file: Path) -> None:
        """Look through one shard."""
        members = tar_members(str(file))
        with open(file, "rb") as opened:

            def content(name: str) -> bytes:
                opened.seek(members[name][0])
                return opened.read(members[name][1])

            for name, (offset, size) in members.items():
                if not name.lower().endswith(SUFFIXES):
                    continue
                where = f"{file}/{name}"
                self._fits(read_shape(io.BytesIO(content(name)), where), where)
                stem = _stem(name)
                beside = {suffix: content(stem + suffix) for suffix in (".cls", ".json") if stem + suffix in members}
                self.places.append((number, offset, size))
                self.labels.append(_label(beside, where))
                self.names.append(where)

    def _fits(self, shape: tuple[int, int, int], where: str) -> None:
        resolution = self._resolution
        shape = (self._channels or shape[0], resolution or shape[1], resolution or shape[2])
        if self.shape is not None and shape != self.shape:
            raise ValueError(
                f"{where} is {shape[0]}×{shape[1]}×{shape[2]}, but {self.names[0]} is "
                f"{self.shape[0]}×{self.shape[1]}×{self.shape[2]}: give resolution= and channels= to make them alike"
            )
        self.shape = shape


def _stem(name: str) -> str:
    """The key of WebDataset: up to the first dot of the last part."""
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
