"""Encoding of images to shards of latents: a mean and a standard deviation for each, made once by an autoencoder.

A shard is a plain tar archive: `00000042.npy`, float32 (2, channels, height, width), mean and standard deviation, with
the class in `00000042.cls` and float conditions in `00000042.json`. The manifest is written last, as by
`openedm.data.convert`: a folder without one has an interrupted encoding, which continues with the next shard.

The units of the latents are z' = (z − location)/scale, with mean 0 and σ_data = 0.5 of each channel: measured,
E[z] = E[mean], Var[z] = E[std²] + Var[mean]; or EDM2's, z' = 0.5 z/s − 0.5 m/s (Karras et al. 2024), whose m and s
hold for Stable Diffusion's autoencoder and pixels in [0, 1].
"""

import hashlib
import json
import math
import shutil
import tarfile
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from openedm.data.autoencoder import Codec, PixelRange, open_autoencoder
from openedm.data.converting import remove_hidden, start_conversion
from openedm.data.dataset import Dataset
from openedm.data.latent_writer import LatentShard, LatentWriter, Moments
from openedm.data.shard_writer import completed_shard
from openedm.data.shards import INDEX, MANIFEST
from openedm.ground import checks
from openedm.ground.choices import to_config
from openedm.ground.digests import file_digest
from openedm.ground.locks import locked_folder
from openedm.ground.memory import explain_out_of_memory
from openedm.ground.progress import ShowProgress, showing
from openedm.ground.storage import check_folders, read_json, write_arrays, write_json
from openedm.units import Units

__all__ = ["EDM2_UNITS", "LATENTS", "EncodingPlan", "Scaling", "encode", "plan_encoding"]

LATENTS = "openedm-latents"
"""The format in the manifest of a set of latents."""

Scaling = Literal["measured", "edm2"]
EDM2_UNITS = Units((5.81, 3.25, 0.12, -2.15), (8.34, 9.24, 7.42, 6.56))
"""m and 2 s of EDM2, whose 0.5/s is 1/scale."""

FAR_OFF = 2.0
"""The factor by which widths may differ from those that fixed units are for, without a warning."""

_COMPARED = 16
"""The number of images that an interrupted encoding compares before it continues."""


class EncodingPlan(NamedTuple):
    """What an encoding will write and need.

    Attributes:
        latents: the number of latents, twice that of images with `mirror`.
        latent_shape: (channels, height, width).
        shards: the number of shards.
        bytes_on_disk: their size.
        bytes_of_memory: about the memory of the weights and of a batch, on the device.
        batch_size: the number of images in a batch.
    """

    latents: int
    latent_shape: tuple[int, int, int]
    shards: int
    bytes_on_disk: int
    bytes_of_memory: int
    batch_size: int

    def describe(self) -> str:
        """One line such as "64 latents of 4×8×8, 0.2 MiB in 1 shard; about 90 MiB of memory for batches of 16"."""
        shape, shards = "×".join(map(str, self.latent_shape)), f"{self.shards} shard{'s' if self.shards > 1 else ''}"
        disk, memory = (f"{size / 2**20:,.1f} MiB" for size in (self.bytes_on_disk, self.bytes_of_memory))
        return (
            f"{self.latents:,} latents of {shape}, {disk} in {shards}; about {memory} of memory for batches of "
            f"{self.batch_size}"
        )


def plan_encoding(
    images: Dataset, codec: Codec, *, mirror: bool = False, batch_size: int = 16, per_shard: int = 1000
) -> EncodingPlan:
    """The size of the result and about the memory that it takes, before anything is encoded.

    Args:
        images, mirror, batch_size, per_shard: as for `encode`.
        codec: the autoencoder.
    """
    count, shape = len(images) * (2 if mirror else 1), codec.latent_shape
    member = tarfile.BLOCKSIZE + _padded(128 + 8 * math.prod(shape))
    member += 2 * tarfile.BLOCKSIZE * (bool(images.num_classes) + (images.condition_shape is not None))
    memory = codec.num_bytes + batch_size * (2 if mirror else 1) * codec.bytes_per_image
    return EncodingPlan(count, shape, -(-len(images) // per_shard), count * member, memory, batch_size)


def encode(
    images: Dataset,
    out: str | Path,
    vae: str,
    *,
    scaling: Scaling = "measured",
    pixels: PixelRange | None = None,
    mirror: bool = False,
    batch_size: int = 16,
    per_shard: int = 1000,
    threads: int = 1,
    device: torch.device | str = "cpu",
    resume: bool = False,
    about: Mapping[str, Any] | None = None,
    planned: Callable[[EncodingPlan], object] = lambda plan: None,
    progress: ShowProgress = None,
) -> dict[str, Any]:
    """Encode all images once, and write means and standard deviations into the folder `out`; returns the manifest.

    `openedm.data.Latents` reads the folder. The same images, autoencoder, settings, device and versions give the same
    bytes, also if the encoding was interrupted.

    Args:
        images: the images, in [−1, 1], with classes or vectors of floats, if there are any.
        out: a new or empty folder; with `resume`, one with an interrupted encoding of the same images, or a finished
            one, which stays as it is.
        vae: the autoencoder, as for `openedm.data.autoencoder.open_autoencoder`.
        scaling: the units in which models see the latents: measured, each channel with mean 0 and σ_data 0.5; edm2, the
            numbers of EDM2 for Stable Diffusion's autoencoder.
        pixels: what the autoencoder gets: signed, black and white are −1 and 1, as it was trained; unit, 0 and 1, as in
            EDM2. By default unit with scaling="edm2", which requires it, and otherwise signed.
        mirror: encode each image mirrored, too, as a further sample of its class: a mirrored latent is not the latent
            of the mirrored image.
        batch_size: images encoded at a time.
        per_shard: the number of images in a shard, which is what an interruption costs at most.
        threads: the number of threads that read and decode images ahead.
        device: where the autoencoder computes.
        resume: continue an interrupted encoding; complete shards are kept.
        about: further entries of the manifest, such as the source of the images.
        planned: called with size and memory before anything is encoded.
        progress: None shows a bar in a terminal or notebook, True always, False never; a function is called with the
            number of encoded images.

    Raises:
        ImportError: the package diffusers is not installed.
        ValueError: the images or the autoencoder do not fit; `out` has other files, or an encoding and `resume` is
            false; the images or settings are not those of the interrupted encoding; or latents are not finite.
        OSError: there is not enough space on the disk, or `out` may not be written.

    Warns:
        UserWarning: the fixed numbers of a scaling do not fit the latents.
    """
    for name, number in (("batch_size", batch_size), ("per_shard", per_shard), ("threads", threads)):
        checks.at_least(name, number, 1)
    checks.one_of("scaling", scaling, ("measured", "edm2"))
    if scaling == "edm2" and pixels == "signed":
        raise ValueError("pixels must be unit with scaling='edm2', whose numbers are for pixels in [0, 1], got signed")
    _check_images(images, mirror)
    shape: Any = images.event_shape
    codec = open_autoencoder(vae, shape, pixels or ("unit" if scaling == "edm2" else "signed"), device=device)
    if scaling == "edm2" and codec.latent_shape[0] != len(EDM2_UNITS.scale):
        raise ValueError(
            f"scaling must be measured for latents of {codec.latent_shape[0]} channels, got edm2, which is for "
            f"{len(EDM2_UNITS.scale)}"
        )
    writer = LatentWriter(images, codec, mirror, batch_size)
    settings = {
        "autoencoder": _identity(codec),
        "scaling": scaling,
        "mirror": mirror,
        "batch_size": batch_size,
        "per_shard": per_shard,
        "pictures": len(images),
        "fingerprint": _fingerprint(images),
    }
    out = Path(out)
    check_folders("out", out)
    with locked_folder(out, "out"), ThreadPoolExecutor(threads) as pool, showing(progress) as show:
        if (out / MANIFEST).exists():
            return _finished(out, settings, resume=resume)
        start_conversion(out, settings, resume=resume)
        plan = plan_encoding(images, codec, mirror=mirror, batch_size=batch_size, per_shard=per_shard)
        planned(plan)
        _check_space(out, plan)
        shards: list[LatentShard] = []
        for number, start in enumerate(range(0, len(images), per_shard)):
            chosen = range(start, min(start + per_shard, len(images)))
            shard = completed_shard(out, f"shard-{number:06d}.tar", LatentShard)
            if shard is None:
                with explain_out_of_memory("lower batch_size"):
                    shard = writer.write(out, LatentShard(f"shard-{number:06d}.tar"), chosen, pool, show, threads)
            shards.append(shard)
            show("images", chosen.stop, len(images))
        return _finish(out, writer, settings, shards, about or {})


def default_device() -> torch.device:
    """The GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _check_images(images: Dataset, mirror: bool) -> None:
    checks.instance("images", images, Dataset, "a Dataset, such as openedm.data.ImageFolder(path).load()")
    if images.kind != "images" or len(images.event_shape) != 3:
        raise ValueError(f"images must be images in [-1, 1], got {images.describe()}")
    if images.random:
        raise ValueError("images must be the same each time, got data that are drawn anew")
    if images.condition_shape is None:
        return
    if len(images.condition_shape) != 1 or images.incomplete:
        kind = "some with NaN" if images.incomplete else f"arrays of shape {images.condition_shape}"
        raise ValueError(f"conditions of images must be vectors of floats or classes, got {kind}: leave them out")
    if mirror:
        raise ValueError("mirror must be false with float conditions, which may differ for the mirrored image")


def _identity(codec: Codec) -> dict[str, Any]:
    """What an interrupted encoding compares of its autoencoder: not where it is."""
    described: dict[str, Any] = to_config(codec.autoencoder)["init_args"]
    return {name: value for name, value in described.items() if name not in ("path", "hub")}


def _fingerprint(images: Dataset) -> str:
    """A SHA-256 of the number of images, and of some of them with their classes and conditions."""
    digest = hashlib.sha256(images.describe().encode())
    x, condition = images.fetch(images.spread(_COMPARED))
    for tensor in (x,) if condition is None else (x, condition):
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _check_space(out: Path, plan: EncodingPlan) -> None:
    written = sum(path.stat().st_size for path in out.glob("shard-*.tar"))
    free, needed = shutil.disk_usage(out).free, plan.bytes_on_disk - written
    if needed > free:
        raise OSError(
            f"out={out} needs {needed / 2**30:.1f} GiB for {plan.latents:,} latents, but {free / 2**30:.1f} GiB are "
            "free there: free some space, or choose another disk"
        )


def _finished(out: Path, settings: dict[str, Any], *, resume: bool) -> dict[str, Any]:
    """The manifest of a finished encoding of the same images, without what a kill at its very end left."""
    if not resume:
        raise ValueError(f"out={out} already has a set: choose another folder")
    manifest = read_json(out / MANIFEST)
    if manifest.get("settings") != json.loads(json.dumps(settings)):
        raise ValueError(f"out={out} already has a set of other images or settings: choose another folder")
    remove_hidden(out)
    return manifest


def _finish(
    out: Path, writer: LatentWriter, settings: dict[str, Any], shards: list[LatentShard], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the index and the manifest, and remove the hidden files."""
    images, codec, moments = writer.images, writer.codec, Moments()
    for shard in shards:
        as_tensors = (torch.tensor(values, dtype=torch.float64) for values in (shard.mean, shard.variance))
        moments.merge(len(shard.offsets), *as_tensors)
    stds = moments.variance.sqrt().tolist()
    units = EDM2_UNITS if settings["scaling"] == "edm2" else Units.measured(moments.mean.tolist(), stds)
    _check_units(units, moments.mean.tolist(), stds)
    arrays: dict[str, np.ndarray] = {
        "shard": np.repeat(np.arange(len(shards), dtype=np.int32), [len(shard.offsets) for shard in shards]),
        **{
            name: np.array([number for shard in shards for number in getattr(shard, f"{name}s")], dtype=np.int64)
            for name in ("offset", "size", "crc")
        },
    }
    classes: dict[str, Any] = {"num_classes": images.num_classes}
    if images.num_classes:
        arrays["label"] = np.array([label for shard in shards for label in shard.labels], dtype=np.int64)
        counts = Counter(arrays["label"].tolist())
        names = None if images.class_names is None else list(images.class_names)
        classes |= {"class_names": names, "class_counts": [counts[i] for i in range(images.num_classes)]}
    if images.condition_shape is not None:
        rows = [row for shard in shards for row in shard.conditions]
        arrays["condition"] = np.array(rows, dtype=np.float32)
        classes["condition"] = {"shape": list(images.condition_shape)}
    write_arrays(out / INDEX, arrays)
    manifest = {
        "format": LATENTS,
        "version": 1,
        "latents": len(arrays["shard"]),
        "shape": list(codec.latent_shape),
        **classes,
        "channel_means": moments.mean.tolist(),
        "channel_stds": stds,
        "units": to_config(units),
        "autoencoder": to_config(codec.autoencoder),
        **about,
        "settings": settings,
        "index_sha256": file_digest(out / INDEX),
        "shards": [{"file": s.file, "latents": len(s.offsets), "bytes": s.bytes, "sha256": s.sha256} for s in shards],
    }
    write_json(out / MANIFEST, manifest, files=())
    remove_hidden(out)
    return manifest


def _check_units(units: Units, means: list[float], stds: list[float]) -> None:
    """Warn where fixed units are not those of the latents."""
    for i, (mean, std, location, scale) in enumerate(zip(means, stds, units.location, units.scale, strict=True)):
        width = 2 * std / scale  # 1 in units of σ_data
        if not 1 / FAR_OFF < width < FAR_OFF or abs(mean - location) > FAR_OFF * scale / 2:
            warnings.warn(
                f"the units of scaling='edm2' do not fit channel {i} of these latents, {mean:.3g} ± {std:.3g} instead "
                f"of {location:g} ± {scale / 2:g}: scaling='measured' fits any autoencoder",
                stacklevel=4,
            )
            return


def _padded(size: int) -> int:
    """The size of a file in a tar archive, whose parts are blocks."""
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
