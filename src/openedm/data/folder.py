"""Images in folders and archives."""

import json
import posixpath
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BufferedIOBase
from typing import Any, Literal

import numpy as np

from openedm.data.archive import Archive
from openedm.data.decoding import SUFFIXES
from openedm.data.encoded import EncodedImages, ImageSource, check_class
from openedm.data.forms import Crop, Size
from openedm.ground import checks

__all__ = ["FolderImages", "ImageFolder"]

_JSON = "dataset.json"


@dataclass(frozen=True)
class ImageFolder(ImageSource):
    """All images in a folder and its sub-folders, or in a zip or tar archive, in the order of their names.

    Hidden files are left out. The header of every file is read when the set is loaded, so that an error names an image
    that does not fit. Sets up to 256 MiB are decoded when they are loaded, larger ones when samples are fetched.

    Args:
        path: the folder, .zip or .tar file.
        resolution: crop and resize each image to a square of this side, or to height x width: "64x96". Without it, all
            must have the same size.
        channels: convert each image to 1 (grey), 3 (RGB; transparent parts become white) or 4 (with alpha) channels.
            Without it, all must have the same number.
        labels: "folders": the class is the sub-folder, in the order of the numbers if all are
            numbers. "json": the class is in dataset.json, as {"labels": [["file",
            class], ...]}. "none": there are no classes. "auto": "json" if there is a dataset.json, "folders" if every
            image is in one of several sub-folders, otherwise "none".
        crop: how images of other proportions become those of `resolution`: "centre", the largest central part with
            them; "adm", likewise, as for ADM; "pad", the whole image between black bars; "none", the whole image,
            distorted.
        range: the numbers of pixels that become −1 and 1; by default the full range of 1, 8 or 16 bits. TIFF of
            floating point or 32 bits requires it.
    """

    path: str
    resolution: Size | None = None
    channels: int | None = None
    labels: Literal["auto", "folders", "json", "none"] = "auto"
    crop: Crop = "centre"
    range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of("labels", self.labels, ("auto", "folders", "json", "none"))

    def images(self) -> "FolderImages":
        return FolderImages(self.path, self.labels)


def _in_order(names: Collection[str]) -> tuple[str, ...]:
    """The names of classes in their order: that of the numbers if all are numbers, 1, 2, 10; else the alphabet's."""
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


class FolderImages(EncodedImages):
    """The images in a folder, zip or tar archive, in the order of their names.

    Args:
        path: a folder with its sub-folders, or a .zip or .tar file.
        labels: as for `ImageFolder`.

    Raises:
        ValueError: there are no images, or the labels are missing or do not fit.
    """

    def __init__(self, path: str, labels: str = "auto") -> None:
        self._archive = Archive(path)
        sizes = self._archive.sizes()
        self._names = [name for name in sizes if name.lower().endswith(SUFFIXES)]
        if not self._names:
            raise ValueError(f"no images found in {path!r} ({', '.join(SUFFIXES)})")
        self.num_bytes = sum(sizes[name] for name in self._names)
        tables = [name for name in sizes if posixpath.basename(name) == _JSON]
        table = min(tables, key=lambda name: name.count("/"), default=None)  # the uppermost
        if labels == "json" and table is None:
            raise ValueError(f"labels='json' requires a {_JSON} in {path!r}")
        if table is not None and labels in ("json", "auto"):
            self._label_from_json(table, required=labels == "json")
        elif labels != "none":
            self._label_from_folders(required=labels == "folders")

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    def describe(self, index: int) -> str:
        return f"{self._archive.path}/{self._names[index]}"

    def open(self, index: int) -> AbstractContextManager[BufferedIOBase]:
        return self._archive.open(self._names[index])

    def read(self, indices: Sequence[int]) -> Iterator[tuple[bytes, int | None]]:
        for index in indices:
            with self.open(index) as file:
                content = file.read()
            yield content, None if self.labels is None else int(self.labels[index])

    def close(self) -> None:
        self._archive.close()

    def _label_from_json(self, table: str, *, required: bool) -> None:
        """Read the classes from a dataset.json in the format of the EDM reference, which may have no labels.

        Raises:
            ValueError: it has another format, its entries are not those of the images, or a class is invalid.
        """
        root = self._archive.path
        place = f"{root}/{table}"
        with self._archive.open(table) as file:
            content = file.read()
        try:
            entries: Any = json.loads(content)["labels"]
            found = {} if entries is None else dict(entries)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{place} must be {{"labels": [["file", class], ...]}}: {error!r}') from error
        if not found:
            if required:
                raise ValueError(f"labels='json' requires labels, but {place} has no labels")
            return
        folder = posixpath.dirname(table)
        labels = {posixpath.join(folder, str(name).replace("\\", "/")): label for name, label in found.items()}
        for name in self._names:
            if name not in labels:
                raise ValueError(f"{root}/{name} has no label in {place}")
        for name, label in labels.items():
            check_class(f"{name} in {place}", label)
        absent = set(labels) - set(self._names)
        if absent:
            raise ValueError(f"{place} has a label for {min(absent)}, which does not exist")
        self.labels = np.array([labels[name] for name in self._names], dtype=np.int64)

    def _label_from_folders(self, *, required: bool) -> None:
        """Take the first folder below the common folder of all images for the class, if each image is in one."""
        common = posixpath.commonpath([posixpath.dirname(name) for name in self._names])
        folders = [name[len(common) :].lstrip("/").rpartition("/")[0].partition("/")[0] for name in self._names]
        if all(folders):
            self.class_names = _in_order(set(folders))
            number = {folder: i for i, folder in enumerate(self.class_names)}
            self.labels = np.array([number[folder] for folder in folders], dtype=np.int64)
        elif required:
            name = self.describe(folders.index(""))
            raise ValueError(f"{name} is not in a sub-folder, as labels='folders' requires")
