"""Writing one tar shard of latents: means and standard deviations, classes and conditions, and a record."""

import io
import json
import tarfile
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from openedm.data.autoencoder import Codec
from openedm.data.dataset import Batch, Dataset
from openedm.data.shard_writer import append_member, record_path
from openedm.ground.digests import file_digest
from openedm.ground.progress import Progress
from openedm.ground.storage import replacing, write_json

__all__ = ["LatentShard", "LatentWriter", "Moments"]


@dataclass
class LatentShard:
    """The content of one shard, stored in a JSON file beside it until the encoding is complete.

    Attributes:
        mean: the mean of each channel over the latents of the shard.
        variance: their variance about it.
    """

    file: str
    bytes: int = 0
    sha256: str = ""
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    crcs: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    conditions: list[list[float]] = field(default_factory=list)
    mean: list[float] = field(default_factory=list)
    variance: list[float] = field(default_factory=list)

    def add(
        self,
        archive: tarfile.TarFile,
        number: int,
        pair: Float32[np.ndarray, "2 bands height width"],
        label: int | None,
        values: list[float] | None,
    ) -> None:
        """Append mean and standard deviation of a latent, with its class and its condition."""
        file = io.BytesIO()
        np.save(file, pair, allow_pickle=False)
        content = file.getvalue()
        self.offsets.append(append_member(archive, f"{number:08d}.npy", content))
        self.sizes.append(len(content))
        self.crcs.append(zlib.crc32(content))
        if label is not None:
            self.labels.append(label)
            append_member(archive, f"{number:08d}.cls", str(label).encode())
        if values is not None:
            self.conditions.append(values)
            append_member(archive, f"{number:08d}.json", json.dumps({"condition": values}).encode())


@dataclass
class LatentWriter:
    """Writes shards of latents."""

    images: Dataset
    codec: Codec
    mirror: bool
    batch_size: int

    def write(
        self, out: Path, shard: LatentShard, chosen: range, pool: ThreadPoolExecutor, show: Progress, threads: int
    ) -> LatentShard:
        """Write the latents of the images `chosen`, and the record of the shard."""
        moments, copies = Moments(), 2 if self.mirror else 1
        with replacing(out / shard.file) as path:
            with tarfile.open(path, mode="w", format=tarfile.USTAR_FORMAT) as archive:
                for rows, (images, condition) in self._read(chosen, pool, threads):
                    pairs = self._encode(images, rows)
                    moments.add(pairs)
                    labels, floats = (None, None)
                    if condition is not None:
                        labels, floats = self.images.condition_layout.unpack(condition)
                    for i, pair in enumerate(pairs):
                        label = None if labels is None else int(labels[i // copies])
                        values = None if floats is None else floats[i // copies].tolist()
                        shard.add(archive, rows.start * copies + i, pair.numpy(), label, values)
                    show("images", rows.stop, len(self.images))
            shard.bytes, shard.sha256 = path.stat().st_size, file_digest(path)
        shard.mean, shard.variance = moments.mean.tolist(), moments.variance.tolist()
        write_json(record_path(out, shard.file), vars(shard), indent=None, files=())
        return shard

    def _read(self, chosen: range, pool: ThreadPoolExecutor, threads: int) -> Iterator[tuple[range, Batch]]:
        """Batches of images, of which `threads` are read ahead."""
        starts = range(chosen.start, chosen.stop, self.batch_size)
        parts = [range(start, min(start + self.batch_size, chosen.stop)) for start in starts]
        waiting: deque[Future[Batch]] = deque()
        for i, rows in enumerate(parts):
            for part in parts[i + len(waiting) : i + threads]:
                waiting.append(pool.submit(self.images.fetch, list(part)))
            yield rows, waiting.popleft().result()

    def _encode(
        self, images: Float[Tensor, "batch channels height width"], rows: range
    ) -> Float[Tensor, "latents 2 bands height_of_latent width_of_latent"]:
        """Mean and standard deviation of each image, and of its mirror image after it."""
        if self.mirror:
            images = torch.stack([images, images.flip(-1)], 1).flatten(0, 1)
        pairs = torch.stack(self.codec.encode(images), 1)
        if not bool(pairs.isfinite().all()):
            raise ValueError(f"the latents of images {rows.start} … {rows.stop - 1} are not finite")
        return pairs


class Moments:
    """Mean and variance of each channel of latents, E[mean] and E[std²] + Var[mean], batch by batch in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean, self.variance = torch.zeros(2, 1, dtype=torch.float64)

    def add(self, pairs: Float[Tensor, "latents 2 bands height width"]) -> None:
        """Count the latents of a batch."""
        mean, std = pairs.double().permute(1, 2, 0, 3, 4).flatten(2)
        self.merge(len(pairs), mean.mean(1), mean.var(1, correction=0) + std.square().mean(1))

    def merge(self, count: int, mean: Float64[Tensor, " bands"], variance: Float64[Tensor, " bands"]) -> None:
        """Count latents of which these are known."""
        total, shift = self.count + count, mean - self.mean
        self.variance = (self.variance * self.count + variance * count) / total
        self.variance = self.variance + shift.square() * self.count * count / total**2
        self.mean = self.mean + shift * count / total
        self.count = total
