"""Encoded images in a fixed order, independent of their storage, and the dataset that decodes them.

A reader lists images and opens them: `FolderImages` (folder, zip, tar), `TarImages` (tar shards), `TableImages`
(Parquet, Arrow, Hub), `MemoryImages`. This module does the rest for all readers: it checks that all images have one
shape, decodes them when the set is loaded or when they are fetched, and sets the chunks of streaming.
"""

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from io import BufferedIOBase

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from openedm.data.classes import ClassNumbers, number_classes
from openedm.data.dataset import Batch, Chunks, Dataset, Indices, Source, as_index
from openedm.data.decoding import decode_image, read_shape
from openedm.data.memory import InMemory
from openedm.data.stored import as_float
from openedm.ground import checks

__all__ = ["EncodedImages", "ImageSource", "MemoryImages", "check_class"]

MAX_BYTES_IN_MEMORY = 256 * 2**20
"""Sets up to this size, as stored and as pixels, are decoded when they are loaded and kept in memory."""

Shape = tuple[int, int, int]


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

    def shapes(self) -> Iterable[Shape]:
        """(channels, height, width) of all images that are checked when the set is loaded, from their headers."""
        for index in range(len(self)):
            with self.open(index) as file:
                yield read_shape(file, self.describe(index))

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
    """Encoded images as a dataset. A subclass is a frozen dataclass with `resolution` and `channels` among its fields.

    A source that can be streamed also has the fields `streaming`, `window` and `lanes`.
    """

    resolution: int | None
    channels: int | None
    streaming: bool = False
    window: int
    lanes: int

    def __post_init__(self) -> None:
        if self.resolution is not None:
            checks.at_least("resolution", self.resolution, 1)
        if self.channels is not None:
            checks.one_of("channels", self.channels, (1, 3, 4))

    @abstractmethod
    def images(self) -> EncodedImages:
        """The images as they are stored."""

    def load(self) -> Dataset:
        return self._dataset(self.images())

    def _dataset(self, images: EncodedImages) -> Dataset:
        """The images; a small set is decoded now, a large one when images are fetched."""
        shape = _common_shape(images, self.resolution, self.channels)
        dataset = _DecodedImages(images, shape, self.resolution)
        if self.streaming:
            if images.chunk_sizes is not None:
                dataset.chunks = Chunks(images.chunk_sizes, self.window, self.lanes)
            return dataset
        pixels = len(images) * shape[0] * shape[1] * shape[2]
        return dataset if max(pixels, images.num_bytes) > MAX_BYTES_IN_MEMORY else dataset.decoded()


def _common_shape(images: EncodedImages, resolution: int | None, channels: int | None) -> Shape:
    """Shape of the decoded images; ValueError naming the first image that differs from the first of all."""
    first: Shape | None = None
    for index, (bands, height, width) in enumerate(images.shapes()):
        shape = (channels or bands, resolution or height, resolution or width)
        first = first or shape
        if shape != first:
            raise ValueError(f"{images.describe(index)} {_difference(shape, first, images.name(0))}")
    assert first is not None
    return first


def _difference(shape: Sequence[int], first: Sequence[int], name: str) -> str:
    if tuple(shape[1:]) != tuple(first[1:]):
        sizes = f"is {shape[1]}×{shape[2]}, but {name} is {first[1]}×{first[2]}"
        return f"{sizes}: give resolution= to crop and resize all images"
    return f"has {shape[0]} channels, but {name} has {first[0]}: give channels= to convert all images"


class _DecodedImages(Dataset):
    """Encoded images, decoded when they are fetched."""

    kind = "images"

    def __init__(self, images: EncodedImages, shape: Shape, resolution: int | None) -> None:
        self._images, self._resolution = images, resolution
        self.event_shape = shape
        self._classes = images.class_numbers
        self.num_classes, self.class_names = self._classes.num_classes, self._classes.names
        self.renumbered = self._classes.renumbered

    def __len__(self) -> int:
        return len(self._images)

    def fetch(self, indices: Indices) -> Batch:
        pixels, labels = self._decode(as_index(indices, len(self)).tolist())
        return as_float(pixels), labels

    def decoded(self) -> InMemory:
        """All images, decoded and in memory."""
        pixels, labels = self._decode(range(len(self)))
        self._images.close()
        dataset = InMemory(pixels, labels, num_classes=self.num_classes or None, class_names=self.class_names)
        dataset.renumbered = self.renumbered
        return dataset

    def _decode(
        self, indices: Sequence[int]
    ) -> tuple[UInt8[Tensor, "batch channels height width"], Int64[Tensor, " batch"] | None]:
        pixels = torch.empty(len(indices), *self.event_shape, dtype=torch.uint8)
        labels = torch.empty(len(indices), dtype=torch.int64)
        for row, (content, label) in enumerate(self._images.read(indices)):
            name = self._images.describe(indices[row])
            image = decode_image(io.BytesIO(content), name, self.event_shape[0], self._resolution)
            if image.shape != self.event_shape:
                raise ValueError(f"{name} {_difference(image.shape, self.event_shape, self._images.name(0))}")
            pixels[row] = image
            if label is not None:
                if self._classes.renumbered is None and label >= self.num_classes:
                    raise ValueError(f"the class of {name} must be < {self.num_classes}, got {label}")
                labels[row] = label
        return pixels, self._classes.of(labels) if self.num_classes else None
