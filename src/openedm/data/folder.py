"""Any folder or archive of pictures."""

import json
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from openedm.data.archive import Archive
from openedm.data.dataset import Batch, Dataset, Indices, InMemory, Source, as_float, as_index
from openedm.data.decoding import SUFFIXES, check_form, read_picture, read_shape
from openedm.ground import checks

MEMORY = 256 * 2**20
"""Sets up to so many bytes, as files and as pixels, are decoded when loaded and kept in memory."""

_JSON = "dataset.json"


@dataclass(frozen=True)
class ImageFolder(Source):
    """All pictures in a folder, with its sub-folders, or in a zip or tar archive; in the order of their names.

    Hidden files are left out. The header of every file is read when the set is loaded, so that a picture that does not
    fit is reported by name at once. Sets up to 256 MiB are decoded then, too; larger ones as samples are fetched.

    Args:
        path: the folder, .zip or .tar file.
        resolution: crop each picture to its central square and resize it to this side. Without it, all must be of one
            size.
        channels: convert each picture to 1 (grey), 3 (RGB; transparent parts become white) or 4 (with alpha) channels.
            Without it, all must have as many.
        labels: "folders": the class is the sub-folder. "json": the class stands in dataset.json, as
            {"labels": [["file", class], ...]}. "none": there are no classes. "auto": dataset.json where there is one,
            else sub-folders where every picture is in one of several, else none.
    """

    path: str
    resolution: int | None = None
    channels: int | None = None
    labels: Literal["auto", "folders", "json", "none"] = "auto"

    def __post_init__(self) -> None:
        check_form(self.resolution, self.channels)
        checks.one_of("labels", self.labels, ("auto", "folders", "json", "none"))

    def load(self) -> Dataset:
        archive = Archive(self.path)
        sizes = archive.sizes()
        names = [name for name in sizes if name.lower().endswith(SUFFIXES)]
        if not names:
            raise ValueError(f"path holds no pictures ({', '.join(SUFFIXES)}): {self.path!r}")
        labels, class_names = class_labels(archive, names, sizes, self.labels)
        shape = self._common_shape(archive, names)
        images = _Images(archive, names, shape, self.resolution, labels, class_names)
        pixels = len(names) * shape[0] * shape[1] * shape[2]
        return images if max(pixels, sum(sizes[name] for name in names)) > MEMORY else images.decoded()

    def _common_shape(self, archive: Archive, names: list[str]) -> tuple[int, int, int]:
        """Shape of the decoded pictures; ValueError naming the first file that differs from the first of all."""
        shapes = [self._shape(archive, name) for name in names]
        channels, height, width = shapes[0]
        for name, shape in zip(names, shapes, strict=True):
            if shape[1:] != (height, width):
                sizes = f"is {shape[1]}×{shape[2]}, but {names[0]} is {height}×{width}"
                raise ValueError(f"{archive.describe(name)} {sizes}: give resolution= to crop and resize them all")
            if shape[0] != channels:
                bands = f"has {shape[0]} channels, but {names[0]} has {channels}"
                raise ValueError(f"{archive.describe(name)} {bands}: give channels= to convert them all")
        return shapes[0]

    def _shape(self, archive: Archive, name: str) -> tuple[int, int, int]:
        with archive.open(name) as file:
            channels, height, width = read_shape(file, archive.describe(name))
        return self.channels or channels, self.resolution or height, self.resolution or width


def class_labels(
    archive: Archive, names: list[str], files: Iterable[str], labels: str
) -> tuple[Tensor | None, list[str] | None]:
    """Labels of the pictures `names`, and the names of the classes, as `ImageFolder` describes them.

    Args:
        archive: where the pictures are.
        names: of the pictures.
        files: names of all files in the archive.
        labels: "auto", "folders", "json" or "none".

    Raises:
        ValueError: the labels are not there or do not fit; says which.
    """
    table = _json_file(files)
    if labels == "json" and table is None:
        raise ValueError(f"labels='json' needs a {_JSON} in {archive.path!r}")
    if table is not None and labels in ("json", "auto"):
        return _json_labels(archive, names, table, required=labels == "json"), None
    folders = _class_folders(names)
    if labels == "folders" and None in folders:
        name = archive.describe(names[folders.index(None)])
        raise ValueError(f"{name} lies in no sub-folder of its own class, which labels='folders' needs")
    known = sorted({folder for folder in folders if folder is not None})
    if labels == "none" or None in folders:
        return None, None
    index = {folder: i for i, folder in enumerate(known)}
    return torch.tensor([index[folder] for folder in folders if folder is not None]), known


class _Images(Dataset):
    """Pictures that are decoded when fetched."""

    kind = "images"

    def __init__(
        self,
        archive: Archive,
        names: list[str],
        shape: tuple[int, int, int],
        resolution: int | None,
        labels: Int[Tensor, " samples"] | None,
        class_names: Sequence[str] | None,
    ) -> None:
        self._archive, self._names, self._resolution, self._labels = archive, names, resolution, labels
        self.event_shape = shape
        self.num_classes = 0 if labels is None else int(labels.max()) + 1
        self.class_names = None if class_names is None else tuple(class_names)

    def __len__(self) -> int:
        return len(self._names)

    def fetch(self, indices: Indices) -> Batch:
        index = as_index(indices, len(self))
        return as_float(self._pixels(index.tolist())), None if self._labels is None else self._labels[index]

    def decoded(self) -> InMemory:
        pixels = self._pixels(range(len(self)))
        self._archive.close()
        return InMemory(pixels, self._labels, num_classes=self.num_classes or None, class_names=self.class_names)

    def _pixels(self, indices: Sequence[int]) -> Tensor:
        pixels = torch.empty(len(indices), *self.event_shape, dtype=torch.uint8)
        for row, index in enumerate(indices):
            name = self._names[index]
            with self._archive.open(name) as file:
                label = self._archive.describe(name)
                pixels[row] = read_picture(file, label, self.event_shape[0], self._resolution)
        return pixels


def _class_folders(names: list[str]) -> list[str | None]:
    """For each file its first folder below the one that holds them all; None where it lies directly in that."""
    common = posixpath.commonpath([posixpath.dirname(name) for name in names])
    below = [name[len(common) :].lstrip("/") for name in names]
    return [name.split("/", 1)[0] if "/" in name else None for name in below]


def _json_file(names: Iterable[str]) -> str | None:
    """The uppermost dataset.json."""
    found = [name for name in names if posixpath.basename(name) == _JSON]
    return min(found, key=lambda name: name.count("/"), default=None)


def _json_labels(archive: Archive, names: list[str], file: str, *, required: bool) -> Tensor | None:
    """Labels from dataset.json, which has the format of the EDM reference; None where it says that there are none."""
    place = archive.describe(file)
    with archive.open(file) as opened:
        content = opened.read()
    try:
        entries: Any = json.loads(content)["labels"]
        table = None if entries is None else dict(entries)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{place} must be {{"labels": [["file", class], ...]}}: {error!r}') from error
    if not table:
        if required:
            raise ValueError(f"labels='json' needs labels, but {place} has none")
        return None
    folder = posixpath.dirname(file)
    labels = {posixpath.join(folder, str(name).replace("\\", "/")): label for name, label in table.items()}
    for name in names:
        if name not in labels:
            raise ValueError(f"{archive.describe(name)} has no label in {place}")
    for name, label in labels.items():
        if not isinstance(label, int) or isinstance(label, bool) or label < 0:
            raise ValueError(f"{place}: the label of {name} must be an integer >= 0, got {label!r}")
    absent = set(labels) - set(names)
    if absent:
        raise ValueError(f"{place} has a label for {min(absent)}, which is not there")
    return torch.tensor([labels[name] for name in names])
