"""Pictures of any kind into tar shards with a manifest.

A shard is a plain tar archive as WebDataset reads it: `00000042.png` and, where there are classes, `00000042.cls`, the
class as digits; the number is that of the picture in the source. Nothing is compressed but the pictures, so that a
reader goes to any picture directly; index.npz says where each begins, manifest.json what the set is. The manifest is
written last: a folder without one holds a conversion that was interrupted, and goes on with the shard it was at.
"""

import hashlib
import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from openedm.data.decoding import read_upright
from openedm.data.form import Form
from openedm.data.gathering import Pictures
from openedm.ground import checks
from openedm.ground.choices import to_config
from openedm.ground.storage import replacing

FORMAT = "openedm-shards"
MANIFEST = "manifest.json"
INDEX = "index.npz"
_STATE = ".converting.json"
_OURS = re.compile(r"shard-\d{6}\.tar|\.shard-\d{6}\.json|index\.npz|\..*\.tmp|\.converting\.json")


class Converted(NamedTuple):
    """How far a conversion is.

    Attributes:
        done: pictures of the source that have been dealt with.
        total: how many there are.
        dropped: how many of those done were damaged and left out.
    """

    done: int
    total: int
    dropped: int


@dataclass
class _Shard:
    """What one shard holds: written beside it as JSON."""

    file: str
    bytes: int = 0
    sha256: str = ""
    shape: list[int] | None = None
    first: str = ""
    keys: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    dropped: list[dict[str, str]] = field(default_factory=list)


def convert(
    pictures: Pictures,
    out: str | Path,
    form: Form,
    *,
    per_shard: int = 10_000,
    damaged: Literal["refuse", "drop"] = "refuse",
    resume: bool = False,
    threads: int = 1,
    about: Mapping[str, Any] | None = None,
    progress: Callable[[Converted], object] = lambda _: None,
) -> dict[str, Any]:
    """Write `pictures` as shards into the folder `out`; returns the manifest.

    The same pictures and form give the same bytes with the same version of Pillow.

    Args:
        pictures: what to convert.
        out: a new or empty folder; with `resume`, one with an interrupted conversion of the same pictures.
        form: size, crop, channels and encoding of the results.
        per_shard: pictures a shard.
        damaged: whether a picture that cannot be decoded ends the conversion, or is left out and named in the manifest.
        resume: go on with an interrupted conversion; the shards that are complete stay.
        threads: how many decode and encode; the result is the same.
        about: further entries of the manifest, such as source and licence.
        progress: told about the pictures done, several times a shard.

    Raises:
        ValueError: `out` holds something else, or a conversion and `resume` is false; the pictures or the form are not
            those of the interrupted conversion; a picture is damaged or of another size than the first, by name.
    """
    checks.at_least("per_shard", per_shard, 1)
    checks.at_least("threads", threads, 1)
    checks.one_of("damaged", damaged, ("refuse", "drop"))
    out = Path(out)
    settings = {
        "form": to_config(form)["init_args"],
        "per_shard": per_shard,
        "damaged": damaged,
        "pictures": len(pictures),
        "fingerprint": pictures.fingerprint(),
    }
    _begin(out, settings, resume=resume)
    shards: list[_Shard] = []
    dropped = 0
    with ThreadPoolExecutor(threads) as pool:
        for number, start in enumerate(range(0, len(pictures), per_shard)):
            file = f"shard-{number:06d}.tar"
            shard = _finished(out, file)
            if shard is None:
                chosen = range(start, min(start + per_shard, len(pictures)))
                shape = next((s.shape for s in shards if s.shape is not None), None)
                job = _Job(pictures, form, damaged, shape, next((s.first for s in shards if s.first), ""))
                shard = _write(out, file, chosen, job, pool, partial(_tell, progress, len(pictures), dropped))
            dropped += len(shard.dropped)
            shards.append(shard)
            progress(Converted(min(start + per_shard, len(pictures)), len(pictures), dropped))
    return _end(out, pictures, form, shards, about or {})


def _tell(progress: Callable[[Converted], object], total: int, before: int, done: int, here: int) -> None:
    progress(Converted(done, total, before + here))


@dataclass(frozen=True)
class _Job:
    pictures: Pictures
    form: Form
    damaged: str
    shape: list[int] | None
    first: str

    def result(self, index: int, content: bytes | ValueError) -> tuple[bytes, list[int]] | ValueError:
        """The encoded result and its shape, or what is wrong with the picture."""
        if isinstance(content, ValueError):
            return content
        try:
            picture = read_upright(io.BytesIO(content), self.pictures.describe(index), self.form.channels)
            picture = self.form.apply(picture)
        except ValueError as error:
            return error
        return self.form.encode(picture), [self.form.channels, picture.height, picture.width]

    def read(self, index: int) -> bytes | ValueError:
        try:
            return self.pictures.read(index)
        except ValueError as error:
            return error


def _begin(out: Path, settings: dict[str, Any], *, resume: bool) -> None:
    if (out / MANIFEST).exists():
        raise ValueError(f"out={out} holds a converted set already: choose another folder")
    state = out / _STATE
    if not state.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ValueError(f"out={out} is not empty: choose another folder")
        out.mkdir(parents=True, exist_ok=True)
        with replacing(state) as path:
            path.write_text(json.dumps(settings), encoding="utf-8")
        return
    if not resume:
        raise ValueError(f"out={out} holds an interrupted conversion: resume it (--resume true), or choose another")
    before = json.loads(state.read_text(encoding="utf-8"))
    changed = [name for name in settings if before.get(name) != settings[name]]
    if changed:
        raise ValueError(
            f"out={out} was begun with other {', '.join(changed)}: give the same, or choose another folder"
        )
    for left in out.glob(".*.tmp"):  # by a process that was killed
        left.unlink()
    strangers = [path.name for path in out.iterdir() if not _OURS.fullmatch(path.name)]
    if strangers:
        raise ValueError(f"out={out} holds files that are no part of the conversion, such as {min(strangers)}")


def _finished(out: Path, file: str) -> _Shard | None:
    """The record of a shard that an earlier part of the conversion completed."""
    record, shard = out / f".{Path(file).stem}.json", out / file
    if not record.exists() or not shard.exists():
        return None
    found = _Shard(**json.loads(record.read_text(encoding="utf-8")))
    return found if shard.stat().st_size == found.bytes else None


def _write(
    out: Path,
    file: str,
    chosen: range,
    job: _Job,
    pool: ThreadPoolExecutor,
    progress: Callable[[int, int], object],
) -> _Shard:
    shard = _Shard(file)
    with replacing(out / file) as path:
        with tarfile.open(path, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for start in range(chosen.start, chosen.stop, 256):
                block = range(start, min(start + 256, chosen.stop))
                for index, result in zip(block, pool.map(job.result, block, map(job.read, block)), strict=True):
                    job = _take(archive, shard, job, index, result)
                progress(block.stop, len(shard.dropped))
        shard.bytes, shard.sha256 = path.stat().st_size, _digest(path)
    with replacing(out / f".{Path(file).stem}.json") as path:
        path.write_text(json.dumps(vars(shard)), encoding="utf-8")
    return shard


def _take(
    archive: tarfile.TarFile, shard: _Shard, job: _Job, index: int, result: tuple[bytes, list[int]] | ValueError
) -> _Job:
    """Add one result; returns the job, which knows the shape of the first from then on."""
    name = job.pictures.describe(index)
    if isinstance(result, ValueError):
        if job.damaged == "refuse":
            raise ValueError(f"{result}; damaged='drop' leaves such pictures out") from result
        shard.dropped.append({"name": job.pictures.names[index], "reason": str(result)})
        return job
    content, shape = result
    if job.shape is not None and shape != job.shape:
        sizes = f"is {shape[1]}×{shape[2]}, but {job.first} is {job.shape[1]}×{job.shape[2]}"
        raise ValueError(f"{name} {sizes}: give size, and a crop, to make them alike")
    labels = job.pictures.labels
    shard.keys.append(index)
    shard.offsets.append(_add(archive, f"{index:08d}.{job.form.encoding}", content))
    shard.sizes.append(len(content))
    if labels is not None:
        _add(archive, f"{index:08d}.cls", str(labels[index]).encode())
    shard.shape, shard.first = shape, shard.first or name
    return job if job.shape is not None else _Job(job.pictures, job.form, job.damaged, shape, name)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> int:
    """Append a file; returns where its content begins."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    offset = archive.offset + tarfile.BLOCKSIZE  # a header is one block
    archive.addfile(entry, io.BytesIO(content))
    return int(offset)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _end(out: Path, pictures: Pictures, form: Form, shards: list[_Shard], about: Mapping[str, Any]) -> dict[str, Any]:
    """Index, manifest, and no more hidden files."""
    keys = [key for shard in shards for key in shard.keys]
    if not keys:
        raise ValueError(f"all {len(pictures)} pictures are damaged; the first: {shards[0].dropped[0]['reason']}")
    arrays = {
        "shard": np.repeat(np.arange(len(shards), dtype=np.int32), [len(shard.keys) for shard in shards]),
        "offset": np.array([offset for shard in shards for offset in shard.offsets], dtype=np.int64),
        "size": np.array([size for shard in shards for size in shard.sizes], dtype=np.int64),
        "key": np.array(keys, dtype=np.int64),
    }
    classes: dict[str, Any] = {"num_classes": 0}
    if pictures.labels is not None:
        arrays["label"] = np.array([pictures.labels[key] for key in keys], dtype=np.int64)
        counts = Counter(pictures.labels[key] for key in keys)
        number = len(pictures.class_names) if pictures.class_names is not None else max(pictures.labels) + 1
        names = None if pictures.class_names is None else list(pictures.class_names)
        classes = {"num_classes": number, "class_names": names, "class_counts": [counts[i] for i in range(number)]}
    with replacing(out / INDEX) as path, open(path, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    shape = next(shard.shape for shard in shards if shard.shape is not None)
    manifest = {
        "format": FORMAT,
        "version": 1,
        "images": len(keys),
        "shape": shape,
        **classes,
        "form": to_config(form)["init_args"],
        **about,
        "dropped": [entry for shard in shards for entry in shard.dropped],
        "index_sha256": _digest(out / INDEX),
        "shards": [{"file": s.file, "images": len(s.keys), "bytes": s.bytes, "sha256": s.sha256} for s in shards],
    }
    with replacing(out / MANIFEST) as path:
        path.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for hidden in [out / _STATE, *out.glob(".shard-*.json")]:
        hidden.unlink(missing_ok=True)
    return manifest
