"""Tar shards as training data: those of `openedm data convert`, or any WebDataset.

A shard is a plain tar archive: `00000042.png` and, if there are classes, `00000042.cls`, the class as digits. Floats
are "condition" in `00000042.json`, and an image that is a condition is `00000042.condition.png`. Every image is read
from its offset in the shard, so that any order is possible and a run continues exactly where it stopped.
Shards are not unpacked, and only the index is in memory. The folders that `convert` writes have a manifest.json, which
describes the set, and an index.npz with offsets and checksums.
"""

import hashlib
import io
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from openedm.data.archive import FileParts, tar_members
from openedm.data.array_files import MAX_ARRAYS
from openedm.data.classes import ClassNumbers
from openedm.data.dataset import Chunks
from openedm.data.decoded import ImageSource
from openedm.data.decoding import SUFFIXES, Header
from openedm.data.encoded import EncodedImages
from openedm.data.forms import Crop, Resize, Size
from openedm.data.listing import check_class, rows_of_floats
from openedm.ground import checks
from openedm.ground.regular import limit_entries, reason
from openedm.ground.storage import parse_json, read_json

__all__ = ["FORMAT", "INDEX", "MANIFEST", "Shards", "TarImages", "read_index", "read_member"]

FORMAT = "openedm-shards"
MANIFEST = "manifest.json"
INDEX = "index.npz"


MAX_SIDE = 65_536


@dataclass(frozen=True)
class Shards(ImageSource):
    """Images in tar archives: a folder of shards from `openedm data convert`, or from WebDataset.

    Sets up to 256 MiB are decoded when loaded, larger ones as samples are fetched. Shards without a manifest are
    scanned when loaded: the class of NAME.png is the number in NAME.cls, or "label" or "cls" in NAME.json; its
    condition is the number or vector "condition" in NAME.json, or the image NAME.condition.png.

    Args:
        path: a folder of .tar files, which are taken in the order of their names, or one such file; not compressed.
        streaming: visit the shards one after another, shuffled within a window, instead of random access to all of
            them: faster for remote files. The order does not depend on the number of processes.
        window: for `streaming`: the number of images that are shuffled together.
        lanes: for `streaming`: the number of shards that are read in parallel; a multiple of the number of processes.
        resolution: crop and resize each image to a square of this side, or to height x width: "64x96". Without it, all
            must have the same size.
        channels: convert each image to 1, 3 or 4 channels. Without it, all must have the same number.
        crop: how images of other proportions become those of `resolution`: "centre", the largest central part with
            them; "adm", likewise, as for ADM; "pad", the whole image between black bars; "none", the whole image,
            distorted.
        range: the numbers of pixels that become −1 and 1; by default the full range of 1, 8 or 16 bits. TIFF of
            floating point or 32 bits requires it.
        condition_resize: how a condition image of another size than its image is resized to that size before both are
            cropped alike: bicubic, or nearest, which keeps the numbers of masks.
    """

    path: str
    streaming: bool = False
    window: int = 8192
    lanes: int = 8
    resolution: Size | None = None
    channels: int | None = None
    crop: Crop = "centre"
    range: tuple[float, float] | None = None
    condition_resize: Resize = "bicubic"

    def __post_init__(self) -> None:
        super().__post_init__()
        Chunks((1,), self.window, self.lanes)  # checks both

    def images(self) -> "TarImages":
        return TarImages(self.path)


class TarImages(EncodedImages):
    """The images in tar shards, listed by the manifest if there is one, otherwise by a scan of the archives.

    Args:
        path: a folder of .tar files, or one of them.

    Raises:
        ValueError: there are no archives or no images; an archive is compressed, damaged or missing; a class is not an
            integer ≥ 0; some images have a class and others do not.
    """

    def __init__(self, path: str) -> None:
        root = Path(path)
        self._parts = FileParts()
        self._names: list[str] | None = None
        self._shape: Header | None = None
        self._num_classes: int | None = None
        self._crcs: Int64[np.ndarray, " images"] | None = None
        self._files: list[str]
        self._places: Int64[np.ndarray, "images 3"]  # shard, offset and size
        if _is_converted(root):
            self._read_manifest(root)
        else:
            self._scan(_tar_files(root))
        self.num_bytes = int(self._places[:, 2].sum())
        counts = np.bincount(self._places[:, 0], minlength=len(self._files))
        self.chunk_sizes = tuple(counts[counts > 0].tolist())

    def __len__(self) -> int:
        return len(self._places)

    @property
    def class_numbers(self) -> ClassNumbers:
        if self._num_classes is None or self.labels is None:
            return super().class_numbers
        return ClassNumbers(self._num_classes, self.class_names)

    def name(self, index: int) -> str:
        return f"{Path(self._file(index)).name}/{self._member(index)}"

    def describe(self, index: int) -> str:
        return f"{self._file(index)}/{self._member(index)}"

    def read(self, indices: Sequence[int]) -> Iterator[tuple[bytes, int | None]]:
        chosen = np.asarray(indices, dtype=np.int64)
        labels = [None] * len(chosen) if self.labels is None else self.labels[chosen].tolist()
        for index, label, (shard, offset, size) in zip(indices, labels, self._places[chosen].tolist(), strict=True):
            name = self.describe(index)
            yield read_member(self._parts, self._files[shard], offset, size, name, _at(self._crcs, index)), label

    def shapes(self) -> Iterable[Header]:
        return super().shapes() if self._shape is None else [self._shape]

    def close(self) -> None:
        self._parts.close()
        if self.condition_images is not None:
            self.condition_images.close()

    def _file(self, index: int) -> str:
        return self._files[int(self._places[index, 0])]

    def _member(self, index: int) -> str:
        return f"{self._keys[index]:08d}.{self._encoding}" if self._names is None else self._names[index]

    def _read_manifest(self, root: Path) -> None:
        """Read a set that `convert` wrote, and check that the index fits the manifest and all shards are complete."""
        try:
            manifest = read_json(root / MANIFEST)
            if manifest.get("format") != FORMAT or manifest.get("version") != 1:
                raise ValueError(f"its format is {manifest.get('format')!r}, version {manifest.get('version')!r}")
            arrays = read_index(root, manifest)
            self._places = np.stack([arrays[name].astype(np.int64) for name in ("shard", "offset", "size")], axis=1)
            self._keys, self.labels, self.conditions = arrays["key"], arrays.get("label"), arrays.get("condition")
            self._crcs, partner_crcs = arrays.get("crc"), arrays.get("condition_crc")
            places = [arrays[name] for name in ("shard", "condition_offset", "condition_size") if name in arrays]
            checks.instance("shape", manifest["shape"], list, "a list of channels, height and width")
            checks.one_of("the length of shape", len(manifest["shape"]), (3,))
            channels, height, width = map(int, manifest["shape"])
            checks.one_of("channels of shape", channels, (1, 3, 4))
            checks.between("sizes of shape", min(height, width), 1, MAX_SIDE)
            checks.between("sizes of shape", max(height, width), 1, MAX_SIDE)
            self._shape = Header(channels, height, width, manifest.get("dtype", "uint8"))
            self._num_classes = manifest["num_classes"]
            self._files = [str(root / entry["file"]) for entry in manifest["shards"]]
            self._encoding = str(manifest["form"]["encoding"])
            checks.between("shards of the index", int(self._places[:, 0].max()), 0, len(self._files) - 1)
            checks.at_least("places of the index", int(self._places.min()), 0)
            if len(places) == 3:
                self.condition_images = self._partners(np.stack(places, axis=1), manifest["condition"], partner_crcs)
            names = manifest.get("class_names")
            self.class_names = None if names is None else tuple(map(str, names))
            if self.labels is not None:
                checks.between("classes of the index", int(self.labels.max()), 0, int(self._num_classes or 0) - 1)
        except (OSError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(f"path {str(root)!r} is not a complete set of shards: {error}") from error

    def _partners(
        self, places: Int64[np.ndarray, "images 3"], about: Mapping[str, Any], crcs: Int64[np.ndarray, " images"] | None
    ) -> "_ConditionMembers":
        channels, height, width = about["shape"]
        names = [f"{key:08d}.condition.{self._encoding}" for key in self._keys.tolist()]
        header = Header(channels, height, width, about["dtype"])
        return _ConditionMembers(self._files, places.astype(np.int64), names, header, crcs)

    def _scan(self, files: Sequence[Path]) -> None:
        """Find the images of any WebDataset: files of one sample have the same name up to its first dot."""
        found: list[_Member] = []
        for shard, file in enumerate(files):
            members = tar_members(str(file))
            partners = {_stem(name): name for name in members if _is_partner(name)}
            for name, place in members.items():
                if name.lower().endswith(SUFFIXES) and not _is_partner(name):
                    beside = {
                        suffix: self._parts.read(str(file), *members[_stem(name) + suffix])
                        for suffix in (".cls", ".json")
                        if _stem(name) + suffix in members
                    }
                    partner = partners.get(_stem(name))
                    other = None if partner is None else (partner, (shard, *members[partner]))
                    found.append(_Member(name, (shard, *place), other, *_values_beside(beside, f"{file}/{name}")))
        if not found:
            more = f" (and {len(files) - 1} more)" if len(files) > 1 else ""
            raise ValueError(f"no images found in {files[0]}{more} ({', '.join(SUFFIXES)})")
        self._files = list(map(str, files))
        self._names = [member.name for member in found]
        self._places = np.array([member.place for member in found], dtype=np.int64)
        labels = self._all_or_none([member.label for member in found], "class")
        floats = self._all_or_none([member.floats for member in found], "condition")
        partners_of_all = self._all_or_none([member.partner for member in found], "condition image")
        if labels is not None:
            self.labels = np.array(labels, dtype=np.int64)
        if floats is not None:
            self.conditions = rows_of_floats(floats, [self.describe(index) for index in range(len(found))])
        if partners_of_all is not None:
            places = np.array([place for _, place in partners_of_all], dtype=np.int64)
            self.condition_images = _ConditionMembers(self._files, places, [name for name, _ in partners_of_all])

    def _all_or_none(self, values: list[Any], what: str) -> list[Any] | None:
        """The values if all images have one, None if none has; ValueError naming the first image without."""
        if all(value is None for value in values):
            return None
        lacking = next((index for index, value in enumerate(values) if value is None), None)
        if lacking is not None:
            raise ValueError(f"{self.describe(lacking)} has no {what}, but others have one")
        return values


class _Member(NamedTuple):
    """An image in a shard: its name, its place (shard, offset, size), and what belongs to it."""

    name: str
    place: tuple[int, int, int]
    partner: tuple[str, tuple[int, int, int]] | None
    label: int | None
    floats: Any


class _ConditionMembers(EncodedImages):
    """The images in shards that are the conditions of others.

    Args:
        files: the shards.
        places: shard, offset and size of each image.
        names: of each in its shard.
        header: the shape and type of all, if they are known.
        crcs: the CRC-32 of each, if it is known.
    """

    def __init__(
        self,
        files: Sequence[str],
        places: Int64[np.ndarray, "images 3"],
        names: Sequence[str],
        header: Header | None = None,
        crcs: Int64[np.ndarray, " images"] | None = None,
    ) -> None:
        self._parts, self._files, self._places = FileParts(), files, places
        self._names, self._header, self._crcs = names, header, crcs
        self.num_bytes = int(places[:, 2].sum())

    def __len__(self) -> int:
        return len(self._places)

    def name(self, index: int) -> str:
        return f"{self._files[int(self._places[index, 0])]}/{self._names[index]}"

    def read(self, indices: Sequence[int]) -> Iterator[tuple[bytes, int | None]]:
        for index in indices:
            shard, offset, size = self._places[index].tolist()
            name = self.describe(index)
            yield read_member(self._parts, self._files[shard], offset, size, name, _at(self._crcs, index)), None

    def shapes(self) -> Iterable[Header]:
        return super().shapes() if self._header is None else [self._header]

    def close(self) -> None:
        self._parts.close()


def _at(crcs: Int64[np.ndarray, " images"] | None, index: int) -> int | None:
    return None if crcs is None else int(crcs[index])


def read_member(parts: FileParts, file: str, offset: int, size: int, name: str, crc: int | None) -> bytes:
    """The content of an image in a shard, compared with its CRC-32 where that is known.

    Raises:
        ValueError: it cannot be read, or was changed; the message begins with `name`.
    """
    try:
        content = parts.read(file, offset, size)
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {reason(error)}") from error
    if crc is not None and zlib.crc32(content) != crc:
        raise ValueError(f"{name} was changed since it was written (CRC-32): restore the shard from a copy")
    return content


def _is_converted(root: Path) -> bool:
    """Whether `convert` wrote the folder, and not another program that writes a manifest.json."""
    manifest = root / MANIFEST
    return manifest.exists() and ((root / INDEX).exists() or FORMAT in manifest.read_text(errors="replace"))


def _tar_files(path: Path) -> list[Path]:
    """The .tar files in a folder, in the order of their names; for a single file, that file."""
    files = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise ValueError(f"path must be a folder of .tar files, or one of them, got {str(path)!r}")
    return files


def read_index(root: Path, manifest: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of the index, which must be that of the manifest, as must the sizes of the shards."""
    limit_entries(root / INDEX, MAX_ARRAYS)
    content = (root / INDEX).read_bytes()
    if hashlib.sha256(content).hexdigest() != manifest["index_sha256"]:
        raise ValueError(f"{INDEX} is damaged or belongs to another set")
    for entry in manifest["shards"]:
        size = (root / entry["file"]).stat().st_size
        if size != entry["bytes"]:
            raise ValueError(f"{entry['file']} must have {entry['bytes']} bytes, but has {size}")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return dict(arrays)


def _values_beside(files: Mapping[str, bytes], where: str) -> tuple[int | None, Any]:
    """The class and the floats of an image in the manner of WebDataset; None for what is not there.

    The class is the number in its .cls, or "label" or "cls" in its .json, and the floats are "condition" there.

    Args:
        files: content of the files beside the image, by suffix.
        where: the image, for messages.

    Raises:
        ValueError: the class cannot be read or is not an integer ≥ 0.
    """
    try:
        entries = parse_json(files[".json"], f"the .json of {where}") if ".json" in files else {}
        label: Any = int(files[".cls"]) if ".cls" in files else entries.get("label", entries.get("cls"))
        floats = entries.get("condition")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"the class of {where} cannot be read: {error}") from error
    return None if label is None else check_class(where, label), floats


def _is_partner(name: str) -> bool:
    """Whether an image is the condition of another: NAME.condition.png."""
    return name.lower().endswith(SUFFIXES) and name[len(_stem(name)) :].startswith(".condition.")


def _stem(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]
