"""Images in folders and archives."""

import posixpath
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Literal

import numpy as np

from openedm.data.archive import Archive
from openedm.data.classes import ClassNumbers, number_classes
from openedm.data.decoded import ImageSource
from openedm.data.decoding import SUFFIXES
from openedm.data.encoded import EncodedImages
from openedm.data.forms import Crop, Resize, Size
from openedm.data.listing import Listing, read_listing
from openedm.ground import checks
from openedm.ground.kinds import KINDS, holding

__all__ = ["FolderImages", "ImageFolder"]

_JSON = "dataset.json"
_OTHER_PICTURES = (".avif", ".exr", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl", ".pbm", ".pnm", ".psd", ".tga")
_TABLES = (".csv", ".tsv", ".xlsx")
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev"}
_FEW = 0.1
"""The share of images outside of sub-folders up to which these are most likely meant as classes."""


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
            class], ...]}, where names of the classes may be "class_names". "none": there are no classes. "auto": "json"
            if there is a dataset.json with labels, "folders" if every image is in one of several sub-folders, otherwise
            "none".
        condition: the condition of each image, besides its class. By default the floats in dataset.json, if there are
            some, as {"conditions": [["file", [0.5, 0.1]], ...]} (or as "labels", without classes). "none": no floats.
            Otherwise a folder, .zip or .tar file with an image of the same name for each image, whatever its suffix:
            what the image is made from, as for super-resolution or translation.
        condition_resize: how a condition image of another size than its image is resized to that size before both are
            cropped alike: bicubic, or nearest, which keeps the numbers of masks.
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
    condition: str | None = None
    condition_resize: Resize = "bicubic"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of("labels", self.labels, ("auto", "folders", "json", "none"))

    def images(self) -> "FolderImages":
        return FolderImages(self.path, self.labels, self.condition)


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
        condition: as for `ImageFolder`.

    Raises:
        ValueError: there are no images, or the labels or conditions are missing or do not fit.
    """

    def __init__(self, path: str, labels: str = "auto", condition: str | None = None) -> None:
        self._archive = Archive(path)
        if (kind := holding(Path(path))) not in (None, KINDS["openedm-shards"]):
            raise ValueError(f"path must be a folder or archive of images, {path!r} holds {kind}")
        self._num_classes: int | None = None
        sizes = self._archive.sizes()
        self._names = [name for name in sizes if name.lower().endswith(SUFFIXES)]
        if not self._names:
            raise ValueError(f"no images found in {path!r} ({', '.join(SUFFIXES)}){_other_files(sizes)}")
        if others := [name for name in sizes if name.lower().endswith(_OTHER_PICTURES)]:
            warnings.warn(
                f"{len(others)} pictures in {path!r} are left out, whose kind is not read, such as {others[0]}: "
                "convert them to PNG or JPEG",
                stacklevel=2,
            )
        self.num_bytes = sum(sizes[name] for name in self._names)
        tables = [name for name in sizes if posixpath.basename(name) == _JSON]
        table = min(tables, key=lambda name: name.count("/"), default=None)  # the uppermost
        if labels == "json" and table is None:
            raise ValueError(f"labels='json' requires a {_JSON} in {path!r}")
        listing = None if table is None or (labels, condition) == ("none", "none") else self._listing(table)
        if labels == "json" and listing is not None and listing.labels is None and listing.conditions is None:
            raise ValueError(f"labels='json' requires labels, but {path}/{table} has no labels")
        if labels in ("json", "auto") and listing is not None and listing.has_labels:
            self.labels, self.class_names = listing.labels, listing.class_names
            self._num_classes = listing.num_classes
        elif labels in ("auto", "folders"):
            self._label_from_folders(required=labels == "folders")
            tables = [name for name in sizes if name.lower().endswith(_TABLES)]
            if self.labels is None and tables:
                warnings.warn(
                    f"{tables[0]} in {path!r} is not read: classes are sub-folders, or in a {_JSON} as "
                    '{"labels": [["file", class], ...]}',
                    stacklevel=2,
                )
        if condition is None and listing is not None:
            self.conditions = listing.conditions
        elif condition is not None and condition != "none":
            self.condition_images = _Partners(condition, self)

    @property
    def class_numbers(self) -> ClassNumbers:
        return number_classes(self.labels, self._num_classes, self.class_names)

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
        if self.condition_images is not None:
            self.condition_images.close()

    def _listing(self, table: str) -> Listing:
        """The classes and conditions in a dataset.json, such as the EDM reference writes, which may have no labels."""
        root, folder = self._archive.path, posixpath.dirname(table)
        with self._archive.open(table) as file:
            content = file.read()
        return read_listing(content, f"{root}/{table}", {name: f"{root}/{name}" for name in self._names}, folder)

    def _label_from_folders(self, *, required: bool) -> None:
        """Take the first folder below the common folder of all images for the class, if each image is in one."""
        common = posixpath.commonpath([posixpath.dirname(name) for name in self._names])
        folders = [name[len(common) :].lstrip("/").rpartition("/")[0].partition("/")[0] for name in self._names]
        if all(folders):
            self.class_names = _in_order(set(folders))
            if len(self.class_names) > 1 and _SPLITS.issuperset(map(str.lower, self.class_names)):
                warnings.warn(
                    f"{', '.join(self.class_names)} in {self._archive.path!r} are taken as classes: give one of them "
                    "as the path, or labels='none'",
                    stacklevel=3,
                )
            if without := sorted(self._folders(common) - set(self.class_names)):
                warnings.warn(
                    f"{', '.join(map(repr, without))} in {self._archive.path!r} have no images that are read, and are "
                    "no classes",
                    stacklevel=3,
                )
            number = {folder: i for i, folder in enumerate(self.class_names)}
            self.labels = np.array([number[folder] for folder in folders], dtype=np.int64)
        elif required:
            name = self.describe(folders.index(""))
            raise ValueError(f"{name} is not in a sub-folder, as labels='folders' requires")
        elif len(set(folders)) > 2 and folders.count("") <= _FEW * len(folders):
            name = self.describe(folders.index(""))
            warnings.warn(
                f"{name} is in no sub-folder, so that these are not taken as classes: move it into one, or give "
                "labels='none'",
                stacklevel=3,
            )

    def _folders(self, common: str) -> set[str]:
        """The names of all folders in `common`, with images and without; hidden ones are left out."""
        start = f"{common}/" if common else ""
        inside = [name[len(start) :] for name in self._archive.sizes() if name.startswith(start)]
        found = {name.partition("/")[0] for name in inside if "/" in name}
        folder = Path(self._archive.path, common)
        found |= {path.name for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else set()
        return {name for name in found if not name.startswith((".", "__MACOSX"))}


class _Partners(EncodedImages):
    """The images of another folder or archive with the names of some images, in the order of those.

    Args:
        path: the folder or archive.
        images: the images, each of which must have a partner.

    Raises:
        ValueError: an image has no partner or several, or a partner has no image, by name.
    """

    def __init__(self, path: str, images: FolderImages) -> None:
        try:
            self._images = FolderImages(path, "none", "none")
        except ValueError as error:
            raise ValueError(f"condition={path!r}: {error}") from error
        count = len(self._images)
        exact = {self._images.name(i): i for i in range(count)}
        stems: dict[str, list[int]] = {}
        for name, i in exact.items():
            stems.setdefault(posixpath.splitext(name)[0], []).append(i)
        self._order: list[int] = []
        for i in range(len(images)):
            name = images.name(i)
            found = [exact[name]] if name in exact else stems.get(posixpath.splitext(name)[0], [])
            if len(found) != 1:
                names = "no image of its name" if not found else "several images of its name"
                raise ValueError(f"{images.describe(i)} has {names} in condition={path!r}")
            self._order += found
        unused = set(range(count)) - set(self._order)
        if unused:
            raise ValueError(f"{self._images.describe(min(unused))} has no image of its name among the images")
        self.num_bytes = self._images.num_bytes

    def __len__(self) -> int:
        return len(self._order)

    def name(self, index: int) -> str:
        return self._images.name(self._order[index])

    def describe(self, index: int) -> str:
        return self._images.describe(self._order[index])

    def open(self, index: int) -> AbstractContextManager[BufferedIOBase]:
        return self._images.open(self._order[index])

    def read(self, indices: Sequence[int]) -> Iterator[tuple[bytes, int | None]]:
        return self._images.read([self._order[index] for index in indices])

    def close(self) -> None:
        self._images.close()


def _other_files(names: Collection[str]) -> str:
    """What a folder without images holds instead, for the error that says so."""
    if not names:
        return ""
    return (
        f", but {len(names)} other files, such as {next(iter(names))}: numbers become data as one array (samples, "
        "channels, …), numpy.save('data.npy', array)"
    )
