"""Encoded images in a fixed order, independent of their storage.

A reader lists images and opens them: `FolderImages` (folder, zip, tar), `TarImages` (tar shards), `TableImages`
(Parquet, Arrow, Hub), `MemoryImages`. The dataset that decodes them is the same for all readers: `decoded`.
"""

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from io import BufferedIOBase
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from openedm.data.classes import ClassNumbers, number_classes
from openedm.data.decoding import Header, read_header
from openedm.data.listing import rows_of_floats

__all__ = ["EncodedImages", "MemoryImages"]


class EncodedImages(ABC):
    """Encoded images of any size in a fixed order, each with a unique name and, if there are classes, a class.

    A reader can be pickled and used by forked processes.

    Attributes:
        labels: class of each image, int64, or None.
        conditions: the floats that are the condition of each image, or None. A reader may read them as images are read,
            and define `num_floats` and `read_conditions`.
        condition_images: the image that is the condition of each image, in the same order, or None.
        class_names: one name per class, or None.
        num_bytes: size of all encoded images; 0 if it is not known.
        chunk_sizes: numbers of images that are stored together, if reading them together is faster; None otherwise.
    """

    labels: Int64[np.ndarray, " images"] | None = None
    conditions: Float32[np.ndarray, "images floats"] | None = None
    condition_images: "EncodedImages | None" = None
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

    @property
    def num_floats(self) -> int:
        """The number of floats of the condition of an image; 0 without."""
        return 0 if self.conditions is None else self.conditions.shape[1]

    def read_conditions(self, indices: Sequence[int]) -> Float32[np.ndarray, "rows floats"]:
        """The floats that are the conditions of the images at `indices`, for a reader with `num_floats` > 0.

        Raises:
            ValueError: a condition cannot be read, is not finite or has another length, by name.
        """
        assert self.conditions is not None
        return self.conditions[np.asarray(indices, dtype=np.int64)]

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
        """A SHA-256 of names, classes and conditions, which an interrupted conversion compares before it continues."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            line = f"{self.name(index)}\0{'' if self.labels is None else self.labels[index]}\n"
            digest.update(line.encode(errors="surrogateescape"))
        if self.num_floats:
            digest.update(self.read_conditions(range(len(self))).tobytes())
        if self.condition_images is not None:
            digest.update(self.condition_images.fingerprint().encode())
        return digest.hexdigest()

    def close(self) -> None:  # noqa: B027
        """Close open files; they are opened again when needed."""


class MemoryImages(EncodedImages):
    """Encoded images in memory.

    Args:
        content: encoded images by name.
        labels: class of each, in the same order.
        class_names: one name per class.
        conditions: a number or a vector for each, in the same order; or an encoded image for each.

    Raises:
        ValueError: the number of labels or conditions is not that of the images, or conditions are not finite or differ
            in length.
    """

    def __init__(
        self,
        content: Mapping[str, bytes],
        labels: Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
        conditions: Sequence[float] | Sequence[Sequence[float]] | Sequence[bytes] | None = None,
    ) -> None:
        self._names, self._content = list(content), list(content.values())
        if labels is not None and len(labels) != len(content):
            raise ValueError(f"labels must have {len(content)} entries, one per image, got {len(labels)}")
        self.labels = None if labels is None else np.array(labels, dtype=np.int64)
        self.class_names = None if class_names is None else tuple(class_names)
        self.num_bytes = sum(map(len, self._content))
        if conditions is not None:
            self._set_conditions(conditions)

    def _set_conditions(self, conditions: Sequence[Any]) -> None:
        if len(conditions) != len(self):
            raise ValueError(f"conditions must have {len(self)} entries, one per image, got {len(conditions)}")
        if isinstance(conditions[0], bytes):
            partners = {f"the condition of {name}": one for name, one in zip(self._names, conditions, strict=True)}
            self.condition_images = MemoryImages(partners)
        else:
            self.conditions = rows_of_floats(conditions, self._names)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return self._names[index]

    def read(self, indices: Sequence[int]) -> Iterator[tuple[bytes, int | None]]:
        for index in indices:
            yield self._content[index], None if self.labels is None else int(self.labels[index])
