"""Conversion of encoded images to tar shards with a manifest, in the format of `openedm.data.shards`.

The manifest is written last: a folder without one has an interrupted conversion, which continues with the next shard.
"""

import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from openedm.data.decoding import as_array, decode_picture, decode_upright
from openedm.data.encoded import EncodedImages
from openedm.data.folder import FolderImages
from openedm.data.forms import Form, Resize, as_size, resize_to
from openedm.data.shards import FORMAT, INDEX, MANIFEST, TarImages
from openedm.data.stored import FULL_RANGE_TYPES
from openedm.data.table import Table, local_files
from openedm.ground import checks
from openedm.ground.choices import to_config
from openedm.ground.progress import Progress, no_progress
from openedm.ground.storage import file_digest, read_json, replacing, write_arrays, write_json

__all__ = ["convert", "encoded_images"]

_STATE = ".converting.json"
_OWN_FILES = re.compile(r"shard-\d{6}\.tar|\.shard-\d{6}\.json|index\.npz|\..*\.tmp|\.converting\.json")
_BLOCK_SIZE = 256
"""The number of images that are read before the threads decode them."""


def encoded_images(
    source: str,
    labels: str = "auto",
    table: Table | None = None,
    condition: str | tuple[str, ...] | None = None,
) -> EncodedImages:
    """The images at a path, or of a set with this name.

    Args:
        source: a folder of images, a .zip or .tar file, a folder of .tar files, Parquet or Arrow files, or the name of
            a set on the Hugging Face Hub.
        labels: as for `ImageFolder`; with "auto" a .tar file may have them in files beside the images, as in
            WebDataset.
        table: the columns, the subset and the split, if `source` is a table.
        condition: as for `ImageFolder`, or as for `Table` if `source` is a table.

    Raises:
        ValueError: there are no images, or `labels` does not fit the kind of source.
    """
    path, table = Path(source), table or Table(source)
    files = condition if condition is None or isinstance(condition, str) else ",".join(condition)
    is_folder = path.is_dir()
    if path.suffix == ".tar" or (is_folder and any(path.glob("*.tar"))):
        if is_folder and labels not in ("auto", "none"):
            raise ValueError(f"labels must be 'auto' or 'none' with a folder of .tar files, got {labels!r}")
        if is_folder or labels == "auto":
            found = TarImages(source)
            if labels == "none":
                found.labels = found.class_names = None
            if condition == "none":
                found.conditions = found.condition_images = None
            elif condition is not None and is_folder:
                raise ValueError(f"condition must be None or 'none' with a folder of .tar files, got {condition!r}")
            labelled = found.labels is not None or found.conditions is not None or found.condition_images is not None
            if condition in (None, "none") and (labelled or is_folder):
                return found
        return FolderImages(source, labels, files)
    if path.suffix == ".zip" or (is_folder and local_files(source, table.split) is None):
        return FolderImages(source, labels, files)
    if labels != "auto":
        raise ValueError(f"labels must be 'auto' with a table, which has them in a column, got {labels!r}")
    return (table if condition is None else replace(table, condition=condition)).images()


def convert(
    images: EncodedImages,
    out: str | Path,
    form: Form,
    *,
    per_shard: int = 10_000,
    damaged: Literal["refuse", "drop"] = "refuse",
    resume: bool = False,
    threads: int = 1,
    about: Mapping[str, Any] | None = None,
    condition_resize: Resize = "bicubic",
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Write `images` as shards into the folder `out`; returns the manifest.

    The same images and form give the same bytes with the same version of Pillow.

    Args:
        images: the images to convert.
        out: a new or empty folder; with `resume`, one with an interrupted conversion of the same images.
        form: size, crop, channels and encoding of the results.
        per_shard: the number of images in a shard.
        damaged: whether an image that cannot be decoded ends the conversion, or is left out and named in the manifest.
        resume: continue an interrupted conversion; complete shards are kept.
        threads: the number of threads that decode and encode, which does not change the result.
        about: further entries of the manifest, such as source and licence.
        condition_resize: how images that are conditions are resized to the size of their images, before both get the
            form.
        progress: called several times a shard with the number of processed images, and of those `dropped`.

    Raises:
        ValueError: `out` has other files, or a conversion and `resume` is false; the images or the form are not
            those of the interrupted conversion; an image is damaged or of another size than the first, by name.
    """
    checks.at_least("per_shard", per_shard, 1)
    checks.at_least("threads", threads, 1)
    checks.one_of("damaged", damaged, ("refuse", "drop"))
    checks.one_of("condition_resize", condition_resize, ("bicubic", "nearest"))
    if condition_resize != "bicubic" and images.condition_images is None:
        raise ValueError(f"condition_resize={condition_resize!r} has no effect: conditions are not images")
    out = Path(out)
    settings = {
        "form": to_config(form)["init_args"],
        "per_shard": per_shard,
        "damaged": damaged,
        "pictures": len(images),
        "fingerprint": images.fingerprint(),
    }
    settings |= {} if condition_resize == "bicubic" else {"condition_resize": condition_resize}
    _start(out, settings, resume=resume)
    shards: list[_Shard] = []

    def report(done: int, dropped: int = 0) -> None:
        progress("images", done, len(images), dropped=dropped + sum(len(shard.dropped) for shard in shards))

    with ThreadPoolExecutor(threads) as pool:
        for number, start in enumerate(range(0, len(images), per_shard)):
            chosen = range(start, min(start + per_shard, len(images)))
            shard = _completed_shard(out, f"shard-{number:06d}.tar")
            if shard is None:
                first = next((shard for shard in shards if shard.keys), None)
                writer = _Writer(images, form, damaged, _Shard(f"shard-{number:06d}.tar"), first, condition_resize)
                shard = writer.write(out, chosen, pool, report)
            shards.append(shard)
            report(chosen.stop)
    return _finish(out, images, form, shards, about or {})


@dataclass
class _Shard:
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
    dropped: list[dict[str, str]] = field(default_factory=list)
    condition_shape: list[int] | None = None
    condition_dtype: str = ""
    condition_offsets: list[int] = field(default_factory=list)
    condition_sizes: list[int] = field(default_factory=list)


@dataclass
class _Result:
    """An encoded image, its shape and its type, and the same of the image that is its condition."""

    content: bytes
    shape: list[int]
    dtype: str
    condition: "_Result | None" = None


@dataclass
class _Writer:
    """Writes one shard; `first` is the first shard of the set that has images, whose shape all others must have."""

    images: EncodedImages
    form: Form
    damaged: str
    shard: _Shard
    first: _Shard | None
    resize: Resize = "bicubic"
    channels: int = 0

    def __post_init__(self) -> None:
        partners = self.images.condition_images
        self.channels = 0 if partners is None else next(iter(partners.shapes())).channels

    def write(self, out: Path, chosen: range, pool: ThreadPoolExecutor, report: Callable[[int, int], None]) -> _Shard:
        """Write the images `chosen` and the record of the shard; `report` takes the numbers done and dropped."""
        shard = self.shard
        with replacing(out / shard.file) as path:
            with tarfile.open(path, mode="w", format=tarfile.USTAR_FORMAT) as archive:
                for start in range(chosen.start, chosen.stop, _BLOCK_SIZE):
                    block = range(start, min(start + _BLOCK_SIZE, chosen.stop))
                    for index, result in zip(block, pool.map(self._encode, block, map(self._read, block)), strict=True):
                        if isinstance(result, ValueError):
                            self._drop(index, result)
                        else:
                            self._add(archive, index, result)
                    report(block.stop, len(shard.dropped))
            shard.bytes, shard.sha256 = path.stat().st_size, file_digest(path)
        write_json(_record_path(out, shard.file), vars(shard), indent=None)
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
            raise ValueError(f"{error}; damaged='drop' leaves such images out") from error
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
        shard.offsets.append(_append(archive, f"{index:08d}.{self.form.encoding}", result.content))
        shard.sizes.append(len(result.content))
        if result.condition is not None:
            partner = result.condition
            shard.condition_shape = partner.shape
            shard.condition_dtype = _wider(shard.condition_dtype, partner.dtype)
            name = f"{index:08d}.condition.{self.form.encoding}"
            shard.condition_offsets.append(_append(archive, name, partner.content))
            shard.condition_sizes.append(len(partner.content))
        if self.images.labels is not None:
            _append(archive, f"{index:08d}.cls", str(self.images.labels[index]).encode())
        if self.images.num_floats:
            floats = [float(value) for value in self.images.read_conditions([index])[0]]
            _append(archive, f"{index:08d}.json", json.dumps({"condition": floats}).encode())


def _wider(one: str, other: str) -> str:
    """The type with the more values."""
    return max(one, other, key=("", *FULL_RANGE_TYPES).index)


def _start(out: Path, settings: dict[str, Any], *, resume: bool) -> None:
    if (out / MANIFEST).exists():
        raise ValueError(f"out={out} already has a converted set: choose another folder")
    state = out / _STATE
    if not state.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ValueError(f"out={out} is not empty: choose another folder")
        write_json(state, settings)
        return
    if not resume:
        raise ValueError(
            f"out={out} has an interrupted conversion: resume it (--resume true), or choose another folder"
        )
    before = read_json(state)
    new = {name: value for name, value in to_config(Form(crop="none"))["init_args"].items() if name in ("bits",)}
    before["form"] = {**new, **before["form"]} if isinstance(before.get("form"), dict) else None
    changed = [name for name in settings if before.get(name) != settings[name]]
    if changed:
        raise ValueError(
            f"out={out} has an interrupted conversion with other {', '.join(changed)}: give the same, "
            "or choose another folder"
        )
    for temporary in out.glob(".*.tmp"):  # left by a killed process
        temporary.unlink()
    others = [path.name for path in out.iterdir() if not _OWN_FILES.fullmatch(path.name)]
    if others:
        raise ValueError(f"out={out} has files that are not part of the conversion, such as {min(others)}")


def _completed_shard(out: Path, file: str) -> _Shard | None:
    """The record of a shard that the interrupted conversion completed, or None."""
    record, shard = _record_path(out, file), out / file
    if not record.exists() or not shard.exists():
        return None
    try:
        found = _Shard(**read_json(record))
    except TypeError as error:
        raise ValueError(f"{record} does not describe a shard of the conversion: {error}") from error
    return found if shard.stat().st_size == found.bytes else None


def _record_path(out: Path, file: str) -> Path:
    return out / f".{Path(file).stem}.json"


def _index_conditions(arrays: dict[str, np.ndarray], images: EncodedImages, shards: list[_Shard]) -> dict[str, Any]:
    """Add the conditions, or the places of those that are images, to the index; returns what the manifest says."""
    if images.num_floats:
        arrays["condition"] = images.read_conditions(arrays["key"].tolist())
        return {"condition": {"shape": [images.num_floats]}}
    if images.condition_images is None:
        return {}
    for name in ("offset", "size"):
        places = [place for shard in shards for place in getattr(shard, f"condition_{name}s")]
        arrays[f"condition_{name}"] = np.array(places, dtype=np.int64)
    dtype = max((shard.condition_dtype for shard in shards if shard.keys), key=FULL_RANGE_TYPES.index)
    shape = next(shard.condition_shape for shard in shards if shard.keys)
    return {"condition": {"shape": shape, "dtype": dtype}}


def _append(archive: tarfile.TarFile, name: str, content: bytes) -> int:
    """Append a file and return the offset of its content."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    offset = archive.offset + tarfile.BLOCKSIZE  # a header is one block
    archive.addfile(entry, io.BytesIO(content))
    return int(offset)


def _finish(
    out: Path, images: EncodedImages, form: Form, shards: list[_Shard], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the index and the manifest, and remove the hidden files."""
    keys = [key for shard in shards for key in shard.keys]
    if not keys:
        raise ValueError(
            f"images must not all be damaged, got {len(images)} damaged ones; first: {shards[0].dropped[0]['reason']}"
        )
    arrays: dict[str, np.ndarray] = {
        "shard": np.repeat(np.arange(len(shards), dtype=np.int32), [len(shard.keys) for shard in shards]),
        "offset": np.array([offset for shard in shards for offset in shard.offsets], dtype=np.int64),
        "size": np.array([size for shard in shards for size in shard.sizes], dtype=np.int64),
        "key": np.array(keys, dtype=np.int64),
    }
    classes: dict[str, Any] = {"num_classes": 0}
    if images.labels is not None:
        numbers = images.class_numbers
        number, names = numbers.num_classes, numbers.names
        arrays["label"] = numbers.of(torch.from_numpy(images.labels[keys])).numpy()
        counts = Counter(arrays["label"].tolist())
        classes = {
            "num_classes": number,
            "class_names": None if names is None else list(names),
            "class_counts": [counts[i] for i in range(number)],
        }
    about = {**_index_conditions(arrays, images, shards), **about}
    write_arrays(out / INDEX, arrays)
    manifest = {
        "format": FORMAT,
        "version": 1,
        "images": len(keys),
        "shape": next(shard.shape for shard in shards if shard.shape is not None),
        "dtype": max((shard.dtype or "uint8" for shard in shards if shard.keys), key=FULL_RANGE_TYPES.index),
        **classes,
        "form": to_config(form)["init_args"],
        **about,
        "dropped": [entry for shard in shards for entry in shard.dropped],
        "index_sha256": file_digest(out / INDEX),
        "shards": [{"file": s.file, "images": len(s.keys), "bytes": s.bytes, "sha256": s.sha256} for s in shards],
    }
    write_json(out / MANIFEST, manifest)
    for hidden in [out / _STATE, *out.glob(".shard-*.json")]:
        hidden.unlink(missing_ok=True)
    return manifest
