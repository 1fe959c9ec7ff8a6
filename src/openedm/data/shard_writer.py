"""Writing one tar shard of a conversion: images in their final form, their classes and conditions, and a record."""

import io
import json
import tarfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from openedm.data.decoding import as_array, decode_picture, decode_upright, is_animation
from openedm.data.encoded import EncodedImages
from openedm.data.forms import Form, Resize, as_size, resize_to
from openedm.data.stored import FULL_RANGE_TYPES
from openedm.ground.digests import file_digest
from openedm.ground.storage import read_json, replacing, write_json

__all__ = ["Shard", "ShardWriter", "append_member", "completed_shard", "record_path"]

BLOCK_SIZE = 256
"""The number of images that are read before the threads decode them."""


S = TypeVar("S")


@dataclass
class Shard:
    """The content of one shard, stored in a JSON file beside it until the conversion is complete."""

    file: str
    bytes: int = 0
    sha256: str = ""
    shape: list[int] | None = None
    dtype: str = ""
    first: str = ""
    keys: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    crcs: list[int] = field(default_factory=list)
    dropped: list[dict[str, str]] = field(default_factory=list)
    condition_shape: list[int] | None = None
    condition_dtype: str = ""
    condition_offsets: list[int] = field(default_factory=list)
    condition_sizes: list[int] = field(default_factory=list)
    condition_crcs: list[int] = field(default_factory=list)


@dataclass
class _Result:
    """An encoded image, its shape and its type, and the same of the image that is its condition."""

    content: bytes
    shape: list[int]
    dtype: str
    condition: "_Result | None" = None


@dataclass
class ShardWriter:
    """Writes one shard; `first` is the first shard of the set that has images, whose shape all others must have.

    Attributes:
        animations: the images that are animations, of which the first frame is written.
    """

    images: EncodedImages
    form: Form
    damaged: str
    shard: Shard
    first: Shard | None
    resize: Resize = "bicubic"
    channels: int = 0
    animations: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        partners = self.images.condition_images
        self.channels = 0 if partners is None else next(iter(partners.shapes())).channels

    def write(self, out: Path, chosen: range, pool: ThreadPoolExecutor, report: Callable[[int, int], None]) -> Shard:
        """Write the images `chosen` and the record of the shard; `report` takes the numbers done and dropped."""
        shard = self.shard
        with replacing(out / shard.file) as path:
            with tarfile.open(path, mode="w", format=tarfile.USTAR_FORMAT) as archive:
                for start in range(chosen.start, chosen.stop, BLOCK_SIZE):
                    block = range(start, min(start + BLOCK_SIZE, chosen.stop))
                    for index, result in zip(block, pool.map(self._encode, block, map(self._read, block)), strict=True):
                        if isinstance(result, ValueError):
                            self._drop(index, result)
                        else:
                            self._add(archive, index, result)
                    report(block.stop, len(shard.dropped))
            shard.bytes, shard.sha256 = path.stat().st_size, file_digest(path)
        write_json(record_path(out, shard.file), vars(shard), indent=None, files=())
        return shard

    def _read(self, index: int) -> tuple[bytes, bytes | None] | ValueError:
        """The encoded image, and that which is its condition."""
        partners = self.images.condition_images
        try:
            [(content, _)] = self.images.read([index])
            return content, None if partners is None else next(iter(partners.read([index])))[0]
        except ValueError as error:
            return error

    def _encode(self, index: int, content: tuple[bytes, bytes | None] | ValueError) -> _Result | ValueError:
        """The encoded results, or the error if there is no result."""
        if isinstance(content, ValueError):
            return content
        partners = self.images.condition_images
        try:
            name = self.images.describe(index)
            picture = self._decode(content[0], name, self.form.channels)
            found = self._result(self.form.apply(picture), name)
            if is_animation(content[0], name):
                self.animations.append(name)
            if partners is None or content[1] is None:
                return found
            name = partners.describe(index)
            partner = resize_to(self._decode(content[1], name, self.channels), as_size(picture), self.resize)
            found.condition = self._result(self.form.apply(partner, nearest=self.resize == "nearest"), name)
            return found
        except ValueError as error:
            return error

    def _decode(self, content: bytes, name: str, channels: int) -> Any:
        decode = decode_upright if self.form.bits == 8 else decode_picture
        return decode(io.BytesIO(content), name, channels)

    def _result(self, picture: Any, name: str) -> _Result:
        height, width, channels = as_array(picture).shape
        dtype = str(as_array(picture).dtype)
        if dtype not in FULL_RANGE_TYPES:
            raise ValueError(f"{name} has pixels of {dtype}, which shards do not hold: read it by ImageFolder")
        return _Result(self.form.encode(picture), [channels, height, width], dtype)

    def _drop(self, index: int, error: ValueError) -> None:
        if self.damaged == "refuse":
            raise ValueError(f"{error}; damaged='drop' (--damaged drop) leaves such images out") from error
        self.shard.dropped.append({"name": self.images.name(index), "reason": str(error)})

    def _add(self, archive: tarfile.TarFile, index: int, result: _Result) -> None:
        shard, name, shape = self.shard, self.images.describe(index), result.shape
        first = self.first or shard
        if first.shape is not None and shape != first.shape:
            sizes = f"is {shape[1]}×{shape[2]}, but {first.first} is {first.shape[1]}×{first.shape[2]}"
            raise ValueError(f"{name} {sizes}: give size and crop to make all sizes equal")
        shard.shape, shard.first = shape, shard.first or name
        shard.dtype = _wider(shard.dtype, result.dtype)
        shard.keys.append(index)
        shard.offsets.append(append_member(archive, f"{index:08d}.{self.form.encoding}", result.content))
        shard.sizes.append(len(result.content))
        shard.crcs.append(zlib.crc32(result.content))
        if result.condition is not None:
            partner = result.condition
            shard.condition_shape = partner.shape
            shard.condition_dtype = _wider(shard.condition_dtype, partner.dtype)
            name = f"{index:08d}.condition.{self.form.encoding}"
            shard.condition_offsets.append(append_member(archive, name, partner.content))
            shard.condition_sizes.append(len(partner.content))
            shard.condition_crcs.append(zlib.crc32(partner.content))
        if self.images.labels is not None:
            append_member(archive, f"{index:08d}.cls", str(self.images.labels[index]).encode())
        if self.images.num_floats:
            floats = [float(value) for value in self.images.read_conditions([index])[0]]
            append_member(archive, f"{index:08d}.json", json.dumps({"condition": floats}).encode())


def _wider(one: str, other: str) -> str:
    """The type with the more values."""
    return max(one, other, key=("", *FULL_RANGE_TYPES).index)


def completed_shard(out: Path, file: str, kind: Callable[..., S]) -> S | None:
    """The record of a shard that the interrupted conversion completed and that is as it was written, or None.

    Args:
        out: the folder.
        file: the shard.
        kind: the class of the record.

    Raises:
        ValueError: the record is damaged.
    """
    record, shard = record_path(out, file), out / file
    if not record.exists() or not shard.exists():
        return None
    try:
        found: Any = kind(**read_json(record))
    except TypeError as error:
        raise ValueError(f"{record} does not describe a shard of the conversion: {error}") from error
    whole = shard.stat().st_size == found.bytes and file_digest(shard) == found.sha256
    return found if whole else None


def record_path(out: Path, file: str) -> Path:
    return out / f".{Path(file).stem}.json"


def append_member(archive: tarfile.TarFile, name: str, content: bytes) -> int:
    """Append a file and return the offset of its content."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    offset = archive.offset + tarfile.BLOCKSIZE  # a header is one block
    archive.addfile(entry, io.BytesIO(content))
    return int(offset)
