"""Tar shards as training data: those of `openedm data convert`, or any WebDataset.

Every picture is read from where it lies in its shard, so that any order is possible and a run goes on exactly where it
stopped; nothing is unpacked and only the index is held in memory.
"""

import hashlib
import io
import json
import os
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openedm.data.converting import FORMAT, INDEX, MANIFEST
from openedm.data.dataset import Batch, Chunks, Dataset, Indices, InMemory, Source, as_float, as_index
from openedm.data.decoding import check_form, read_picture, read_shape
from openedm.data.folder import MEMORY
from openedm.data.webdataset import places, tar_files
from openedm.ground import checks

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
        check_form(self.resolution, self.channels)

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
        self._handles: OrderedDict[int, _Handle] = OrderedDict()
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
        self._handles.clear()
        labels = None if self._table.label is None else torch.from_numpy(self._table.label)
        return InMemory(pixels, labels, num_classes=self.num_classes or None, class_names=self.class_names)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": OrderedDict()}

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
            content = self._handle(int(self._table.shard[index])).read(offset, size)
        except OSError as error:
            raise ValueError(f"{name} cannot be read: {error}") from error
        if len(content) != size:
            raise ValueError(f"{name} cannot be read: the shard ends at it")
        return content

    def _handle(self, shard: int) -> "_Handle":
        """The open shard; those used last stay open."""
        if shard not in self._handles:
            if len(self._handles) >= _HANDLES:
                self._handles.popitem(last=False)
            self._handles[shard] = _Handle(self._table.files[shard])
        self._handles.move_to_end(shard)
        return self._handles[shard]


class _Handle:
    """A file that is read at any place without a position of its own: forked processes may share it."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, offset)


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
    files = tar_files(root)
    found = places(files)
    first: tuple[int, int, int] | None = None
    for place in found:
        with open(files[place.shard], "rb") as file:
            file.seek(place.offset)
            where = f"{files[place.shard]}/{place.name}"
            bands, height, width = read_shape(io.BytesIO(file.read(place.size)), where)
        shape = (channels or bands, resolution or height, resolution or width)
        if first is not None and shape != first:
            raise ValueError(
                f"{where} is {'×'.join(map(str, shape))}, but {found[0].name} is {'×'.join(map(str, first))}: give "
                "resolution= and channels= to make them alike"
            )
        first = shape
    assert first is not None
    columns = np.array([(place.shard, place.offset, place.size) for place in found], dtype=np.int64)
    labelled = found[0].label is not None
    labels = np.array([place.label for place in found], dtype=np.int64) if labelled else None
    number = 0 if labels is None else int(labels.max()) + 1
    return _Table(list(map(str, files)), columns[:, 0], columns[:, 1], columns[:, 2], labels, first, number, None)
