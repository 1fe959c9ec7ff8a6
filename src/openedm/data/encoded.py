"""Encoded images in a fixed order, independent of their storage, and the dataset that decodes them.

A reader lists images and opens them: `FolderImages` (folder, zip, tar), `TarImages` (tar shards), `TableImages`
(Parquet, Arrow, Hub), `MemoryImages`. This module does the rest for all readers: it checks that all images have one
shape, decodes them when the set is loaded or when they are fetched, and sets the chunks of streaming.
"""

import hashlib
import io
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from io import BufferedIOBase
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from openedm.data.classes import ClassNumbers, number_classes
from openedm.data.dataset import Batch, Chunks, Dataset, Indices, Source, as_index
from openedm.data.decoding import Header, as_array, decode_picture, read_header, to_tensor
from openedm.data.deep import AnyPixels
from openedm.data.forms import Crop, Size, crop_to, parse_size, sides
from openedm.data.memory import InMemory
from openedm.data.stored import FULL_RANGES, Range, Stored, check_range, warn_of_values
from openedm.ground import checks
from openedm.ground.memory import available_memory

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["EncodedImages", "ImageSource", "MemoryImages", "check_class"]

MAX_BYTES_IN_MEMORY = 256 * 2**20
"""Sets up to this size, as stored and as pixels, are decoded when they are loaded and kept in memory."""

FULL_RANGE_TYPES = ("bool", "uint8", "uint16")
"""The types of pixels that need no range, each with more values than the one before."""


def check_class(where: str, label: object) -> int:
    """The class as an int; ValueError that names the image, `where`, unless it is an integer ≥ 0."""
    if not isinstance(label, int) or isinstance(label, bool) or label < 0:
        raise ValueError(f"the class of {where} must be an integer >= 0, got {label!r}")
    return label


class EncodedImages(ABC):
    """Encoded images of any size in a fixed order, each with a unique name and, if there are classes, a class.

    A reader can be pickled and used by forked processes.

    Attributes:
        labels: class of each image, int64, or None.
        class_names: one name per class, or None.
        num_bytes: size of all encoded images; 0 if it is not known.
        chunk_sizes: numbers of images that are stored together, if reading them together is faster; None otherwise.
    """

    labels: Int64[np.ndarray, " images"] | None = None
    class_names: tuple[str, ...] | None = None
    num_bytes: int = 0
    chunk_sizes: tuple[int, ...] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def name(self, index: int) -> str:
        """The image's name in the set."""

    @abstractmethod
    def read(self, indices: Sequence[int]) -> Iterator[tuple[bytes, int | None]]:
        """The encoded images at `indices` and their classes.

        Raises:
            ValueError: an image cannot be read; the message begins with what `describe` returns.
        """

    def describe(self, index: int) -> str:
        """The image's name in messages."""
        return self.name(index)

    def open(self, index: int) -> AbstractContextManager[BufferedIOBase]:
        """One encoded image as a file; errors as for `read`."""
        [(content, _)] = self.read([index])
        return nullcontext(io.BytesIO(content))

    def shapes(self) -> Iterable[Header]:
        """The headers of all images that are checked when the set is loaded."""
        for index in range(len(self)):
            with self.open(index) as file:
                yield read_header(file, self.describe(index))

    @property
    def class_numbers(self) -> ClassNumbers:
        """The classes: those of the names; without names, one for each label that occurs."""
        if self.class_names is not None:  # whose labels need not be read yet
            return ClassNumbers(len(self.class_names), self.class_names)
        return number_classes(self.labels)

    @property
    def num_classes(self) -> int:
        """The number of classes; 0 without labels."""
        return self.class_numbers.num_classes

    def fingerprint(self) -> str:
        """A SHA-256 of names and classes, which an interrupted conversion compares before it continues."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            digest.update(f"{self.name(index)}\0{'' if self.labels is None else self.labels[index]}\n".encode())
        return digest.hexdigest()

    def close(self) -> None:  # noqa: B027
        """Close open files; they are opened again when needed."""


class MemoryImages(EncodedImages):
    """Encoded images in memory.

    Args:
        content: encoded images by name.
        labels: class of each, in the same order.
        class_names: one name per class.

    Raises:
        ValueError: the number of labels is not that of the images.
    """

    def __init__(
        self,
        content: Mapping[str, bytes],
        labels: Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self._names, self._content = list(content), list(content.values())
        if labels is not None and len(labels) != len(content):
            raise ValueError(f"labels must have {len(content)} entries, one per image, got {len(labels)}")
        self.labels = None if labels is None else np.array(labels, dtype=np.int64)
        self.class_names = None if class_names is None else tuple(class_names)
        self.num_bytes = sum(map(len, self._content))

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    def read(self, indices: Sequence[int]) -> Iterator[tuple[bytes, int | None]]:
        for index in indices:
            yield self._content[index], None if self.labels is None else int(self.labels[index])


class ImageSource(Source, ABC):
    """Encoded images as a dataset. A subclass is a frozen dataclass with `resolution`, `channels`, `crop` and `range`
    among its fields.

    A source that can be streamed also has the fields `streaming`, `window` and `lanes`.
    """

    resolution: Size | None
    channels: int | None
    crop: Crop
    range: Range | None
    streaming: bool = False
    window: int
    lanes: int

    def __post_init__(self) -> None:
        checks.one_of("crop", self.crop, ("centre", "adm", "pad", "none"))
        check_range(self.range)
        if self.resolution is not None:
            object.__setattr__(self, "resolution", parse_size("resolution", self.resolution))
        elif self.crop not in ("centre", "none"):
            raise ValueError(f"resolution must be given with crop={self.crop!r}, which has no effect without")
        if self.channels is not None:
            checks.one_of("channels", self.channels, (1, 3, 4))

    @abstractmethod
    def images(self) -> EncodedImages:
        """The images as they are stored."""

    def load(self) -> Dataset:
        return self._dataset(self.images())

    def _dataset(self, images: EncodedImages) -> Dataset:
        """The images; a small set is decoded now, a large one when images are fetched."""
        size = None if self.resolution is None else sides(self.resolution)
        header = _common_header(images, size, self.channels, self.range)
        dataset = _DecodedImages(images, header, size, self.crop, self.range)
        if self.streaming:
            if images.chunk_sizes is not None:
                dataset.chunks = Chunks(images.chunk_sizes, self.window, self.lanes)
            return dataset
        pixels = len(images) * math.prod(header[:3]) * dataset.bytes_per_entry
        limit = min(MAX_BYTES_IN_MEMORY, available_memory() // 4)
        if max(pixels, images.num_bytes) <= limit:
            return dataset.decoded()
        dataset.warn_of_values()
        return dataset


def _common_header(
    images: EncodedImages, size: tuple[int, int] | None, channels: int | None, range: Range | None
) -> Header:
    """Shape and type of the decoded images; ValueError naming the first image that differs from the first of all.

    The type is the one with the most values, to which the others are converted without loss.
    """
    first: Header | None = None
    dtype = ""
    for index, found in enumerate(images.shapes()):
        shape = Header(channels or found.channels, *(size or found[1:3]), found.dtype)
        name = images.describe(index)
        if range is None and found.dtype not in FULL_RANGE_TYPES:
            raise ValueError(
                f"{name} has pixels of {found.dtype}, whose range is not known: give the numbers that become -1 and 1, "
                "such as range=(0, 1)"
            )
        first = first or shape
        if shape[:3] != first[:3]:
            raise ValueError(f"{name} {_difference(shape, first, images.name(0))}")
        dtype = _common_type(dtype or found.dtype, found.dtype, name, images.name(0))
    assert first is not None
    if size is not None and dtype == "bool":
        dtype = "uint8"  # resizing makes grey
    return first._replace(dtype=dtype)


def _common_type(one: str, other: str, name: str, first: str) -> str:
    if one == other:
        return one
    if one not in FULL_RANGE_TYPES or other not in FULL_RANGE_TYPES:
        raise ValueError(f"{name} has pixels of {other}, but {first} has {one}: convert them to one type")
    return max(one, other, key=FULL_RANGE_TYPES.index)


def _difference(shape: Sequence[int | str], first: Sequence[int | str], name: str) -> str:
    if tuple(shape[1:3]) != tuple(first[1:3]):
        sizes = f"is {shape[1]}×{shape[2]}, but {name} is {first[1]}×{first[2]}"
        return f"{sizes}: give resolution= (height x width, such as 64x96) to crop and resize all images"
    return f"has {shape[0]} channels, but {name} has {first[0]}: give channels= to convert all images"


class _DecodedImages(Dataset):
    """Encoded images, decoded when they are fetched."""

    kind = "images"

    def __init__(
        self, images: EncodedImages, header: Header, size: tuple[int, int] | None, crop: Crop, range: Range | None
    ) -> None:
        self._images, self._size, self._crop = images, size, crop
        self._stored = Stored(header.dtype, range)
        self.stored = None if self._stored.is_default else self._stored
        self.event_shape = (header.channels, header.height, header.width)
        self._classes = images.class_numbers
        self.num_classes, self.class_names = self._classes.num_classes, self._classes.names
        self.renumbered = self._classes.renumbered

    def __len__(self) -> int:
        return len(self._images)

    @property
    def bytes_per_entry(self) -> int:
        """The memory of one entry while all images are decoded."""
        return np.dtype(self._stored.dtype).itemsize + (0 if self._stored.range is None else 12)

    def fetch(self, indices: Indices) -> Batch:
        pixels, labels = self._decode(as_index(indices, len(self)).tolist())
        return self._stored.scale(pixels), labels

    def decoded(self) -> InMemory:
        """All images, decoded and in memory."""
        pixels, labels = self._decode(range(len(self)))
        self._images.close()
        dataset = InMemory(
            pixels,
            labels,
            num_classes=self.num_classes or None,
            class_names=self.class_names,
            range=self._stored.range,
            layout="channels_first",
        )
        dataset.renumbered = self.renumbered
        return dataset

    def warn_of_values(self) -> None:
        """Compare the values of the first image with the range."""
        pixels, _ = self._decode([0])
        warn_of_values(pixels, self._stored, images=True, name="data")

    def _decode(
        self, indices: Sequence[int]
    ) -> tuple[Shaped[Tensor, "batch channels height width"], Int64[Tensor, " batch"] | None]:
        pixels = torch.empty(len(indices), *self.event_shape, dtype=getattr(torch, self._stored.dtype))
        labels = torch.empty(len(indices), dtype=torch.int64)
        for row, (content, label) in enumerate(self._images.read(indices)):
            name = self._images.describe(indices[row])
            pixels[row] = to_tensor(self._convert(decode_picture(io.BytesIO(content), name, self.event_shape[0]), name))
            if label is not None:
                if self._classes.renumbered is None and label >= self.num_classes:
                    raise ValueError(f"the class of {name} must be < {self.num_classes}, got {label}")
                labels[row] = label
        return pixels, self._classes.of(labels) if self.num_classes else None

    def _convert(self, picture: "Image | AnyPixels", name: str) -> AnyPixels:
        """The numbers of a picture in the size and the type of the data; a type with fewer values is scaled."""
        if self._size is not None:
            picture = crop_to(picture, self._size, self._crop)
        array = as_array(picture)
        shape = (array.shape[2], *array.shape[:2])
        if shape != self.event_shape:
            raise ValueError(f"{name} {_difference(shape, self.event_shape, self._images.name(0))}")
        found, wanted = str(array.dtype), self._stored.dtype
        if found == wanted:
            return array
        if wanted not in FULL_RANGE_TYPES or _common_type(found, wanted, name, self._images.name(0)) != wanted:
            raise ValueError(f"{name} has pixels of {found}, but {self._images.name(0)} has {wanted}: convert them")
        factor = 1
        if self._stored.range is None:
            factor = round(FULL_RANGES[wanted][1] / FULL_RANGES[found][1])
        promoted: AnyPixels = array.astype(wanted) * np.dtype(wanted).type(factor)
        return promoted
