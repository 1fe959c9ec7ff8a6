"""Conversion of encoded images to tar shards with a manifest, in the format of `openedm.data.shards`.

The manifest is written last: a folder without one has an interrupted conversion, which continues with the next shard.
"""

import re
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from openedm.data.arrays import Arrays
from openedm.data.dataset import Source
from openedm.data.decoding import warn_of_animations
from openedm.data.encoded import EncodedImages
from openedm.data.folder import FolderImages, ImageFolder
from openedm.data.forms import Crop, Form, Resize, Size
from openedm.data.shard_writer import Shard, ShardWriter, completed_shard
from openedm.data.shards import FORMAT, INDEX, MANIFEST, Shards, TarImages
from openedm.data.stored import FULL_RANGE_TYPES
from openedm.data.table import Table, local_files
from openedm.ground import checks
from openedm.ground.choices import to_config
from openedm.ground.digests import file_digest
from openedm.ground.locks import LOCK, locked_folder
from openedm.ground.progress import ShowProgress, showing
from openedm.ground.storage import check_folders, read_json, remove_remains, write_arrays, write_json

__all__ = ["convert", "encoded_images", "picture_source", "remove_hidden", "start_conversion"]

_STATE = ".converting.json"
_OWN_FILES = re.compile(r"shard-\d{6}\.tar|\.shard-\d{6}\.json|index\.npz|\..*\.tmp|\.converting\.json")


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
    found = _pictures(path, source, labels, table, condition)
    if found is None:
        if labels != "auto":
            raise ValueError(f"labels must be 'auto' with a table, which has them in a column, got {labels!r}")
        return (table if condition is None else replace(table, condition=condition)).images()
    given = [name for name in ("subset", "split", "image", "label") if getattr(table, name) != getattr(Table(""), name)]
    if given:
        raise ValueError(f"{', '.join(given)} must not be given with a folder or archive, source={source!r}")
    return found


def _pictures(
    path: Path, source: str, labels: str, table: Table, condition: str | tuple[str, ...] | None
) -> EncodedImages | None:
    """The images of a folder or archive; None for a table."""
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
    return None


def picture_source(
    source: str,
    size: Size | None = None,
    crop: Crop = "centre",
    channels: int | None = 3,
    labels: Literal["auto", "folders", "json", "none"] = "auto",
    subset: str | None = None,
    split: str = "train",
    image: str | None = None,
    label: str | None = None,
    condition: str | tuple[str, ...] | None = None,
) -> Source:
    """The images at a path, or of a set with this name, as a source that can be recorded and loaded again.

    Args:
        source: as for `encoded_images`; or a .npy or .npz file.
        size, crop, channels: the form of the images, as `resolution`, `crop` and `channels` of `ImageFolder`.
        labels: as for `ImageFolder`.
        subset, split, image, label: of a table, as for `Table`.
        condition: columns of a table; "none" for no conditions.

    Raises:
        ValueError: an option does not fit the kind of source.
    """
    path = Path(source)
    form: dict[str, Any] = {"resolution": size, "crop": crop if size is not None else "centre", "channels": channels}
    tabular = {"subset": subset, "split": split, "image": image, "label": label}
    given = [name for name, value in tabular.items() if value != ("train" if name == "split" else None)]
    kind: str
    found: Source
    if path.suffix in (".npy", ".npz"):
        kind, found = "a file of arrays", Arrays(source)
        given += [name for name, value in (("size", size), ("condition", condition)) if value is not None]
        given += [] if labels == "auto" else ["labels"]
    elif path.is_dir() and any(path.glob("*.tar")):
        kind, found = "a folder of .tar files", Shards(source, **form)
        given += ([] if labels == "auto" else ["labels"]) + ([] if condition is None else ["condition"])
    elif path.suffix in (".zip", ".tar") or (path.is_dir() and local_files(source, split) is None):
        files = condition if condition is None or isinstance(condition, str) else ",".join(condition)
        kind, found = "a folder or archive", ImageFolder(source, labels=labels, condition=files, **form)
    else:
        return _table(Table(source, **tabular, **form), labels, condition)  # type: ignore[arg-type]
    if given:
        raise ValueError(f"{', '.join(given)} must not be given with {kind}, source={source!r}")
    return found


def _table(table: Table, labels: str, condition: str | tuple[str, ...] | None) -> Table:
    if labels != "auto":
        raise ValueError(f"labels must be 'auto' with a table, which has them in a column, got {labels!r}")
    return table if condition in (None, "none") else replace(table, condition=condition)


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
    progress: ShowProgress = None,
) -> dict[str, Any]:
    """Write `images` as shards into the folder `out`; returns the manifest.

    The same images and form give the same bytes with the same version of Pillow.

    Args:
        images: the images to convert.
        out: a new or empty folder; with `resume`, one with an interrupted conversion of the same images, or a finished
            one, which stays as it is.
        form: size, crop, channels and encoding of the results.
        per_shard: the number of images in a shard.
        damaged: whether an image that cannot be decoded ends the conversion, or is left out and named in the manifest.
        resume: continue an interrupted conversion; complete shards are kept. One that a damaged image ended goes on
            with `damaged` "drop".
        threads: the number of threads that decode and encode, which does not change the result.
        about: further entries of the manifest, such as source and licence.
        condition_resize: how images that are conditions are resized to the size of their images, before both get the
            form.
        progress: None shows a bar in a terminal or notebook, True always, False never; a function is called several
            times a shard with the number of processed images, and of those `dropped`.

    Raises:
        ValueError: `out` has other files, or a conversion and `resume` is false; the images or the form are not
            those of the interrupted conversion; an image is damaged or of another size than the first, by name; or
            another process writes into `out`.
        OSError: the disk is full, or `out` may not be written.
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
    shards: list[Shard] = []
    animations: list[str] = []

    def report(done: int, dropped: int = 0) -> None:
        show("images", done, len(images), dropped=dropped + sum(len(shard.dropped) for shard in shards))

    check_folders("out", out)
    with locked_folder(out, "out"), ThreadPoolExecutor(threads) as pool, showing(progress) as show:
        if (out / MANIFEST).exists():
            return _finished(out, images, settings, resume=resume)
        start_conversion(out, settings, resume=resume)
        for number, start in enumerate(range(0, len(images), per_shard)):
            chosen = range(start, min(start + per_shard, len(images)))
            shard = completed_shard(out, f"shard-{number:06d}.tar", Shard)
            if shard is None:
                first = next((shard for shard in shards if shard.keys), None)
                writer = ShardWriter(images, form, damaged, Shard(f"shard-{number:06d}.tar"), first, condition_resize)
                shard = writer.write(out, chosen, pool, report)
                animations += sorted(writer.animations)
            shards.append(shard)
            report(chosen.stop)
        warn_of_animations(animations)
        return _finish(out, images, form, shards, about or {})


def _finished(out: Path, images: EncodedImages, settings: dict[str, Any], *, resume: bool) -> dict[str, Any]:
    """The manifest of a finished conversion of the same images, without what a kill at its very end left.

    Raises:
        ValueError: `resume` is false, or the set was converted from other images or into another form.
    """
    if not resume:
        raise ValueError(f"out={out} already has a converted set: choose another folder")
    manifest = read_json(out / MANIFEST)
    try:
        number = int(manifest["images"]) + len(manifest["dropped"])
        same = number == len(images) and manifest["form"] == settings["form"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{out / MANIFEST} does not describe a converted set: {error!r}") from error
    if not same:
        raise ValueError(f"out={out} already has a set converted from other images or otherwise: choose another folder")
    remove_hidden(out)
    return manifest


def remove_hidden(out: Path) -> None:
    """Remove what a finished conversion no longer needs."""
    remove_remains(out)
    for hidden in [out / _STATE, *out.glob(".shard-*.json")]:
        hidden.unlink(missing_ok=True)


def start_conversion(out: Path, settings: dict[str, Any], *, resume: bool) -> None:
    """Write the settings of a conversion into its folder, or compare them with those of an interrupted one.

    Args:
        out: the folder, which is locked.
        settings: all that the result depends on, as plain data.
        resume: whether there may be an interrupted conversion.

    Raises:
        ValueError: the folder has other files, or an interrupted conversion and `resume` is false, or one of other
            settings.
    """
    state = out / _STATE
    if not state.exists():
        remove_remains(out, _STATE)
        if any(path.name != LOCK for path in out.iterdir()):
            raise ValueError(f"out={out} is not empty: choose another folder")
        write_json(state, settings, files=())
        return
    if not resume:
        raise ValueError(
            f"out={out} has an interrupted conversion: resume it (--resume true), or choose another folder"
        )
    before = read_json(state)
    new = {name: value for name, value in to_config(Form(crop="none"))["init_args"].items() if name in ("bits",)}
    before["form"] = {**new, **before["form"]} if isinstance(before.get("form"), dict) else None
    relaxed = (before.get("damaged"), settings.get("damaged")) == ("refuse", "drop")  # of complete shards the same
    changed = [name for name in settings if before.get(name) != settings[name] and not (relaxed and name == "damaged")]
    if changed:
        raise ValueError(
            f"out={out} has an interrupted conversion with other {', '.join(changed)}: give the same, "
            "or choose another folder"
        )
    remove_remains(out)
    if relaxed:
        write_json(state, settings, files=())
    others = [path.name for path in out.iterdir() if not _OWN_FILES.fullmatch(path.name) and path.name != LOCK]
    if others:
        raise ValueError(f"out={out} has files that are not part of the conversion, such as {min(others)}")


def _index_conditions(arrays: dict[str, np.ndarray], images: EncodedImages, shards: list[Shard]) -> dict[str, Any]:
    """Add the conditions, or the places of those that are images, to the index; returns what the manifest says."""
    if images.num_floats:
        arrays["condition"] = images.read_conditions(arrays["key"].tolist())
        return {"condition": {"shape": [images.num_floats]}}
    if images.condition_images is None:
        return {}
    for name in ("offset", "size", "crc"):
        numbers = [number for shard in shards for number in getattr(shard, f"condition_{name}s")]
        arrays[f"condition_{name}"] = np.array(numbers, dtype=np.int64)
    dtype = max((shard.condition_dtype for shard in shards if shard.keys), key=FULL_RANGE_TYPES.index)
    shape = next(shard.condition_shape for shard in shards if shard.keys)
    return {"condition": {"shape": shape, "dtype": dtype}}


def _finish(
    out: Path, images: EncodedImages, form: Form, shards: list[Shard], about: Mapping[str, Any]
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
        "crc": np.array([crc for shard in shards for crc in shard.crcs], dtype=np.int64),
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
    for name in ("crc", "condition_crc"):  # a conversion that an older version began has not all
        if name in arrays and len(arrays[name]) < len(keys):
            del arrays[name]
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
    write_json(out / MANIFEST, manifest, files=())
    remove_hidden(out)
    return manifest
