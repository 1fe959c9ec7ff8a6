"""Tar shards as training data: those of `openedm data convert`, or any WebDataset.

A shard is a plain tar archive: `00000042.png` and, if there are classes, `00000042.cls`, the class as digits. Every
image is read from its offset in the shard, so that any order is possible and a run continues exactly where it stopped.
Shards are not unpacked, and only the index is in memory. The folders that `convert` writes have a manifest.json, which
describes the set, and an index.npz with the offsets.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from openedm.data.archive import FileParts, tar_members
from openedm.data.classes import ClassNumbers
from openedm.data.dataset import Chunks
from openedm.data.decoding import SUFFIXES, Header
from openedm.data.encoded import EncodedImages, ImageSource, check_class
from openedm.data.forms import Crop, Size

__all__ = ["FORMAT", "INDEX", "MANIFEST", "Shards", "TarImages"]

FORMAT = "openedm-shards"
MANIFEST = "manifest.json"
INDEX = "index.npz"


@dataclass(frozen=True)
class Shards(ImageSource):
    """Images in tar archives: a folder of shards from `openedm data convert`, or from WebDataset.

    Sets up to 256 MiB are decoded when loaded, larger ones as samples are fetched. Shards without a manifest are
    scanned when loaded: the class of NAME.png is the number in NAME.cls, or "label" or "cls" in NAME.json.

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
    """

    path: str
    streaming: bool = False
    window: int = 8192
    lanes: int = 8
    resolution: Size | None = None
    channels: int | None = None
    crop: Crop = "centre"
    range: tuple[float, float] | None = None

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
            try:
                content = self._parts.read(self._files[shard], offset, size)
            except OSError as error:
                raise ValueError(f"{self.describe(index)} cannot be read: {error}") from error
            yield content, label

    def shapes(self) -> Iterable[Header]:
        return super().shapes() if self._shape is None else [self._shape]

    def close(self) -> None:
        self._parts.close()

    def _file(self, index: int) -> str:
        return self._files[int(self._places[index, 0])]

    def _member(self, index: int) -> str:
        return f"{self._keys[index]:08d}.{self._encoding}" if self._names is None else self._names[index]

    def _read_manifest(self, root: Path) -> None:
        """Read a set that `convert` wrote, and check that the index fits the manifest and all shards are complete."""
        try:
            manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
            if manifest.get("format") != FORMAT or manifest.get("version") != 1:
                raise ValueError(f"its format is {manifest.get('format')!r}, version {manifest.get('version')!r}")
            content = (root / INDEX).read_bytes()
            if hashlib.sha256(content).hexdigest() != manifest["index_sha256"]:
                raise ValueError(f"{INDEX} is damaged or belongs to another set")
            for entry in manifest["shards"]:
                size = (root / entry["file"]).stat().st_size
                if size != entry["bytes"]:
                    raise ValueError(f"{entry['file']} must have {entry['bytes']} bytes, but has {size}")
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                self._places = np.stack([arrays[name].astype(np.int64) for name in ("shard", "offset", "size")], axis=1)
                self._keys, self.labels = arrays["key"], arrays.get("label")
            channels, height, width = manifest["shape"]
            self._shape = Header(channels, height, width, manifest.get("dtype", "uint8"))
            self._num_classes = manifest["num_classes"]
            self._files = [str(root / entry["file"]) for entry in manifest["shards"]]
            self._encoding = str(manifest["form"]["encoding"])
            names = manifest.get("class_names")
            self.class_names = None if names is None else tuple(names)
        except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"path {str(root)!r} is not a complete set of shards: {error}") from error

    def _scan(self, files: Sequence[Path]) -> None:
        """Find the images of any WebDataset: files of one sample have the same name up to its first dot."""
        found: list[tuple[str, tuple[int, int, int], int | None]] = []
        for shard, file in enumerate(files):
            members = tar_members(str(file))
            for name, place in members.items():
                if name.lower().endswith(SUFFIXES):
                    beside = {
                        suffix: self._parts.read(str(file), *members[_stem(name) + suffix])
                        for suffix in (".cls", ".json")
                        if _stem(name) + suffix in members
                    }
                    found.append((name, (shard, *place), _class_beside(beside, f"{file}/{name}")))
        if not found:
            more = f" (and {len(files) - 1} more)" if len(files) > 1 else ""
            raise ValueError(f"no images found in {files[0]}{more} ({', '.join(SUFFIXES)})")
        self._files = list(map(str, files))
        self._names = [name for name, _, _ in found]
        self._places = np.array([place for _, place, _ in found], dtype=np.int64)
        labels: list[Any] = [label for _, _, label in found]
        if any(label is not None for label in labels):
            if None in labels:
                raise ValueError(f"{self.describe(labels.index(None))} has no class, but others have one")
            self.labels = np.array(labels, dtype=np.int64)


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


def _class_beside(files: Mapping[str, bytes], where: str) -> int | None:
    """The class of an image in the manner of WebDataset: the number in its .cls, "label" or "cls" in its .json.

    Args:
        files: content of the files beside the image, by suffix.
        where: the image, for messages.

    Raises:
        ValueError: the class cannot be read or is not an integer ≥ 0.
    """
    try:
        if ".cls" in files:
            label: Any = int(files[".cls"])
        elif ".json" in files:
            entries = json.loads(files[".json"])
            label = entries.get("label", entries.get("cls"))
        else:
            return None
    except (ValueError, AttributeError) as error:
        raise ValueError(f"the class of {where} cannot be read: {error}") from error
    return None if label is None else check_class(where, label)


def _stem(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]
