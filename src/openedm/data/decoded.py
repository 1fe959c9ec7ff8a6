"""The dataset that decodes the images of any reader.

It checks that all images have one shape, decodes them when the set is loaded or when they are fetched, and sets the
chunks of streaming.
"""

import io
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from openedm.conditions import pack
from openedm.data.dataset import Batch, Chunks, Dataset, Indices, Source, as_index
from openedm.data.decoding import Header, as_array, decode_picture, to_tensor, warn_of_animations
from openedm.data.deep import AnyPixels, DamagedImage
from openedm.data.forms import Crop, Resize, Size, as_size, crop_to, parse_size, sides
from openedm.data.memory import InMemory, Pairs
from openedm.data.partners import ConditionImages
from openedm.data.stored import (
    FULL_RANGE_TYPES,
    Range,
    Stored,
    as_float,
    check_range,
    common_type,
    promote,
    warn_of_values,
)
from openedm.ground import checks
from openedm.ground.memory import available_memory

if TYPE_CHECKING:
    from PIL.Image import Image

from openedm.data.encoded import EncodedImages

__all__ = ["ImageSource"]

MAX_BYTES_IN_MEMORY = 256 * 2**20
"""Sets up to this size, as stored and as pixels, are decoded when they are loaded and kept in memory."""


class ImageSource(Source, ABC):
    """Encoded images as a dataset. A subclass is a frozen dataclass with `resolution`, `channels`, `crop`, `range` and
    perhaps `condition_resize` among its fields.

    A source that can be streamed also has the fields `streaming`, `window` and `lanes`.
    """

    resolution: Size | None
    channels: int | None
    crop: Crop
    range: Range | None
    condition_resize: Resize = "bicubic"
    streaming: bool = False
    window: int
    lanes: int

    def __post_init__(self) -> None:
        checks.one_of("crop", self.crop, ("centre", "adm", "pad", "none"))
        checks.one_of("condition_resize", self.condition_resize, ("bicubic", "nearest"))
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
        with _advising():
            header = _common_header(images, size, self.channels, self.range)
        partners = None
        if images.condition_images is not None:
            partners = ConditionImages(
                images.condition_images,
                (header.height, header.width),
                cropped=size is not None,
                crop=self.crop,
                resize=self.condition_resize,
            )
        elif self.condition_resize != "bicubic":
            raise ValueError(f"condition_resize={self.condition_resize!r} has no effect: conditions are not images")
        dataset = _DecodedImages(images, header, size, self.crop, self.range, partners)
        if self.streaming:
            if images.chunk_sizes is not None:
                dataset.chunks = Chunks(images.chunk_sizes, self.window, self.lanes)
            return dataset
        pixels = len(images) * dataset.bytes_per_sample
        limit = min(MAX_BYTES_IN_MEMORY, available_memory() // 4)
        if max(pixels, images.num_bytes) <= limit:
            return dataset.decoded()
        dataset.warn_of_values()
        if pixels <= limit:  # large pictures that are cropped to a small size: each is decoded once, when it is fetched
            dataset.remembered = {}
        return dataset


@contextmanager
def _advising() -> Iterator[None]:
    """The error of an image that cannot be decoded says how to go on without it."""
    try:
        yield
    except DamagedImage as error:
        raise ValueError(
            f"{error} (data.convert(…, damaged='drop'), `openedm data convert DATA OUT --damaged drop`, makes a set "
            "without such images)"
        ) from error


def _common_header(
    images: EncodedImages, size: tuple[int, int] | None, channels: int | None, range: Range | None
) -> Header:
    """Shape and type of the decoded images; ValueError naming the first image that differs from the first of all.

    The type is the one with the most values, to which the others are converted without loss.
    """
    first: Header | None = None
    dtype, animations = "", []
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
        dtype = common_type(dtype or found.dtype, found.dtype, name, images.name(0))
        if found.animated:
            animations.append(name)
    assert first is not None
    warn_of_animations(animations)
    if size is not None and dtype == "bool":
        dtype = "uint8"  # resizing makes grey
    return first._replace(dtype=dtype)


def _difference(shape: Sequence[int | str], first: Sequence[int | str], name: str) -> str:
    if tuple(shape[1:3]) != tuple(first[1:3]):
        sizes = f"is {shape[1]}×{shape[2]}, but {name} is {first[1]}×{first[2]}"
        crop = "give resolution=64 (--data.resolution 64), or 64x96 for another height than width, to crop and resize"
        return f"{sizes}: {crop} all images"
    convert = "give channels=3 (--data.channels 3), or 1 or 4, to convert"
    return f"has {shape[0]} channels, but {name} has {first[0]}: {convert} all images"


class _DecodedImages(Dataset):
    """Encoded images and their conditions, decoded when they are fetched.

    Attributes:
        remembered: the stored numbers, the class and the condition of the images that were fetched, by index; None if
            images are decoded anew each time.
    """

    kind = "images"
    remembered: dict[int, tuple[Tensor | None, ...]] | None = None

    def __init__(
        self,
        images: EncodedImages,
        header: Header,
        size: tuple[int, int] | None,
        crop: Crop,
        range: Range | None,
        partners: ConditionImages | None,
    ) -> None:
        self._images, self._size, self._crop, self._partners = images, size, crop, partners
        self._stored = Stored(header.dtype, range)
        self.stored = None if self._stored.is_default else self._stored
        self.event_shape = (header.channels, header.height, header.width)
        self._classes = images.class_numbers
        self.num_classes, self.class_names = self._classes.num_classes, self._classes.names
        self.renumbered = self._classes.renumbered
        self._num_floats = images.num_floats
        if partners is not None:
            if self._num_floats:
                raise ValueError("the condition of an image must be floats or an image, got both")
            self.condition_shape = partners.shape
        elif self._num_floats:
            self.condition_shape = (self._num_floats,)

    def __len__(self) -> int:
        return len(self._images)

    @property
    def bytes_per_sample(self) -> int:
        """The memory of one sample while all images are decoded."""
        entry = np.dtype(self._stored.dtype).itemsize + (0 if self._stored.range is None else 12)
        partners = self._partners
        other = 0 if partners is None else math.prod(partners.shape) * np.dtype(partners.dtype).itemsize
        return math.prod(self.event_shape) * entry + other + 4 * self._num_floats

    def fetch(self, indices: Indices) -> Batch:
        rows: list[int] = as_index(indices, len(self)).tolist()
        pixels, labels, condition = self._decode(rows) if self.remembered is None else self._recall(rows)
        x = self._stored.scale(pixels)
        if condition is None:
            return x, labels
        condition = as_float(condition)
        return x, condition if labels is None else pack(labels, condition)

    def _recall(self, rows: Sequence[int]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What `_decode` returns; images that were not fetched before are decoded and remembered."""
        assert self.remembered is not None
        new = [row for row in dict.fromkeys(rows) if row not in self.remembered]
        if new:
            parts = self._decode(new)
            for place, row in enumerate(new):
                self.remembered[row] = tuple(None if part is None else part[place] for part in parts)
        pixels, labels, condition = (
            None if parts[0] is None else torch.stack(parts)
            for parts in zip(*(self.remembered[row] for row in rows), strict=True)
        )
        assert pixels is not None
        return pixels, labels, condition

    def decoded(self) -> InMemory:
        """All images, decoded and in memory."""
        pixels, labels, condition = self._decode(range(len(self)))
        self._images.close()
        options: dict[str, Any] = {
            "num_classes": self.num_classes or None,
            "class_names": self.class_names,
            "range": self._stored.range,
            "layout": "channels_first",
        }
        if condition is None:
            dataset = InMemory(pixels, labels, **options)
        else:
            dataset = Pairs(pixels, condition, labels, **options)
        dataset.renumbered = self.renumbered
        return dataset

    def warn_of_values(self) -> None:
        """Compare the values of the first image with the range."""
        warn_of_values(self._decode([0])[0], self._stored, images=True, name="data")

    def _decode(
        self, indices: Sequence[int]
    ) -> tuple[
        Shaped[Tensor, "batch channels height width"],
        Int64[Tensor, " batch"] | None,
        Shaped[Tensor, "batch *condition"] | None,
    ]:
        """The stored numbers, the classes and the conditions, floats or the stored numbers of images."""
        pixels = torch.empty(len(indices), *self.event_shape, dtype=getattr(torch, self._stored.dtype))
        labels = torch.empty(len(indices), dtype=torch.int64)
        sizes: list[tuple[int, int]] = []
        for row, (content, label) in enumerate(self._images.read(indices)):
            name = self._images.describe(indices[row])
            with _advising():
                picture = decode_picture(io.BytesIO(content), name, self.event_shape[0])
            sizes.append(as_size(picture))
            pixels[row] = to_tensor(self._convert(picture, name))
            if label is not None:
                if self._classes.renumbered is None and label >= self.num_classes:
                    raise ValueError(f"the class of {name} must be < {self.num_classes}, got {label}")
                labels[row] = label
        return pixels, self._classes.of(labels) if self.num_classes else None, self._conditions(indices, sizes)

    def _conditions(
        self, indices: Sequence[int], sizes: Sequence[tuple[int, int]]
    ) -> Shaped[Tensor, "batch *condition"] | None:
        if self._partners is not None:
            return self._partners.read(indices, sizes)
        return torch.from_numpy(self._images.read_conditions(indices)) if self._num_floats else None

    def _convert(self, picture: "Image | AnyPixels", name: str) -> AnyPixels:
        """The numbers of a picture in the size and the type of the data; a type with fewer values is scaled."""
        if self._size is not None:
            picture = crop_to(picture, self._size, self._crop)
        array = as_array(picture)
        shape = (array.shape[2], *array.shape[:2])
        if shape != self.event_shape:
            raise ValueError(f"{name} {_difference(shape, self.event_shape, self._images.name(0))}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} must have finite pixels, but has NaN or infinity: fill them in")
        return promote(array, self._stored.dtype, self._stored.range, name, self._images.name(0))
