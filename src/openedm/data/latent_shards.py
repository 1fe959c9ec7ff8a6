"""Latents in the shards that `openedm.data.encoding.encode` writes, read from their places in the archives."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from openedm.conditions import pack
from openedm.data.archive import FileParts
from openedm.data.autoencoder import Autoencoder
from openedm.data.dataset import Batch, Chunks, Dataset, Indices, as_index
from openedm.data.decoded import MAX_BYTES_IN_MEMORY
from openedm.data.encoding import LATENTS
from openedm.data.shards import MANIFEST, read_index, read_member
from openedm.ground import checks
from openedm.ground.choices import from_config
from openedm.ground.memory import available_memory
from openedm.ground.storage import read_json
from openedm.units import Units

__all__ = ["EncodedLatents", "load_encoded", "read_manifest"]


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of a folder of latents.

    Raises:
        ValueError: the folder has none, or one of other data.
    """
    try:
        manifest = read_json(Path(path) / MANIFEST)
        if manifest.get("format") != LATENTS or manifest.get("version") != 1:
            raise ValueError(f"its format is {manifest.get('format')!r}, version {manifest.get('version')!r}")
    except (OSError, AttributeError, ValueError) as error:
        raise ValueError(f"path {str(path)!r} is not a complete set of latents: {error}") from error
    return manifest


def load_encoded(path: str | Path, streaming: tuple[int, int] | None = None) -> "EncodedLatents":
    """The latents of a folder; a small set is read at once.

    Args:
        path: the folder.
        streaming: window and lanes, to visit the shards one after another.

    Raises:
        ValueError: the folder is not a complete set of latents.
    """
    manifest = read_manifest(path)
    try:
        found = EncodedLatents(Path(path), manifest)
    except (OSError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"path {str(path)!r} is not a complete set of latents: {error}") from error
    if streaming is not None:
        found.chunks = Chunks(found.chunk_sizes, *streaming)
    elif len(found) * found.bytes_per_sample <= min(MAX_BYTES_IN_MEMORY, available_memory() // 4):
        found.remember()
    return found


class EncodedLatents(Dataset):
    """Latents mean + std n in shards, with new noise at every fetch, and perhaps classes or vectors of floats.

    The noise is drawn from torch's global generator on the host, which training seeds for every sample.

    Args:
        root: the folder.
        manifest: its manifest.

    Raises:
        ValueError, LookupError, TypeError, OSError: index, manifest and shards do not fit each other.
    """

    random = True
    kind = "vectors"
    autoencoder: Autoencoder
    _memory: Float[Tensor, "samples 2 *event"] | None = None

    def __init__(self, root: Path, manifest: Mapping[str, Any]) -> None:
        self._parts = FileParts()
        arrays = read_index(root, manifest)
        self._places = np.stack([arrays[name].astype(np.int64) for name in ("shard", "offset", "size", "crc")], axis=1)
        self._files = [str(root / entry["file"]) for entry in manifest["shards"]]
        checks.one_of("the latents of the index", len(self._places), (manifest["latents"],))
        checks.at_least("the number of latents", len(self._places), 1)
        checks.between("shards of the index", int(self._places[:, 0].max()), 0, len(self._files) - 1)
        checks.at_least("places of the index", int(self._places.min()), 0)
        bands, height, width = map(int, manifest["shape"])
        for size in (bands, height, width):
            checks.size("sizes of shape", size, 1, 2**16)
        checks.between("8 bytes an entry", 8 * bands * height * width, 1, int(self._places[:, 2].min()))
        self.event_shape = (bands, height, width)
        self.units = from_config(Units, manifest["units"])
        self.autoencoder = from_config(Autoencoder, manifest["autoencoder"])
        self.units.check("units", self.event_shape)
        self.num_classes = int(manifest["num_classes"])
        names = manifest.get("class_names")
        self.class_names = None if names is None else tuple(map(str, names))
        self._labels = self._conditions = None
        if self.num_classes:
            self._labels = torch.from_numpy(arrays["label"].astype(np.int64))
            checks.one_of("the number of labels", len(self._labels), (len(self),))
            checks.between("classes of the index", int(self._labels.min()), 0, self.num_classes - 1)
            checks.between("classes of the index", int(self._labels.max()), 0, self.num_classes - 1)
        if "condition" in arrays:
            self._conditions = torch.from_numpy(arrays["condition"].astype(np.float32))
            checks.one_of("the number of conditions", len(self._conditions), (len(self),))
            self.condition_shape = tuple(self._conditions.shape[1:])
        counts = np.bincount(self._places[:, 0], minlength=len(self._files))
        self.chunk_sizes: tuple[int, ...] = tuple(counts[counts > 0].tolist())

    def __len__(self) -> int:
        return len(self._places)

    @property
    def bytes_per_sample(self) -> int:
        """The memory of mean and standard deviation of a latent."""
        return 8 * math.prod(self.event_shape)

    def remember(self) -> None:
        """Read all latents into memory."""
        self._memory = self._read(range(len(self)))
        self._parts.close()

    def fetch(self, indices: Indices) -> Batch:
        index = as_index(indices, len(self))
        mean, std = self.pairs(indices).unbind(1)
        x = mean + std * torch.randn(mean.shape)
        labels = None if self._labels is None else self._labels[index]
        if self._conditions is None:
            return x, labels
        return x, self._conditions[index] if labels is None else pack(labels, self._conditions[index])

    def pairs(self, indices: Indices) -> Float[Tensor, "batch 2 *event"]:
        """Means and standard deviations."""
        index = as_index(indices, len(self))
        return self._read(index.tolist()) if self._memory is None else self._memory[index]

    def describe(self) -> str:
        """One line such as "1437 latents of 4×8×8 for images of 3×64×64 in 10 classes"."""
        shape, image = ("×".join(map(str, sizes)) for sizes in (self.event_shape, self.autoencoder.image_shape))
        classes = f"in {self.num_classes} classes" if self.num_classes else "without labels"
        if self.condition_shape is not None:
            floats = f"with conditions of {'×'.join(map(str, self.condition_shape))}"
            classes = f"{classes} {floats}" if self.num_classes else floats
        return f"{len(self)} latents of {shape} for images of {image} {classes}"

    def _read(self, rows: Sequence[int]) -> Float[Tensor, "batch 2 *event"]:
        pairs = torch.empty(len(rows), 2, *self.event_shape)
        for i, (shard, offset, size, crc) in enumerate(self._places[list(rows)].tolist()):
            name = f"{self._files[shard]}, latent {rows[i]},"
            content = read_member(self._parts, self._files[shard], offset, size, name, crc)
            pair = np.load(io.BytesIO(content), allow_pickle=False)
            if pair.shape != tuple(pairs.shape[1:]) or pair.dtype != np.float32:
                raise ValueError(
                    f"{name} must be float32 of {tuple(pairs.shape[1:])}, got {pair.dtype} of {pair.shape}"
                )
            pairs[i] = torch.from_numpy(pair)
        return pairs
