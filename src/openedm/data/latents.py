"""Latents that are given as means and standard deviations, and drawn anew each time they are fetched.

An autoencoder encodes an image as a Gaussian, z = mean + std n with n ~ N(0, I)   (Rombach et al. 2022, Section 3.1).
They are in a .npz file, or in the shards of `openedm data encode`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from openedm.data.array_files import ArrayFile
from openedm.data.dataset import Batch, Chunks, Dataset, Indices, Source, as_index
from openedm.data.latent_shards import load_encoded
from openedm.data.memory import Array, InMemory
from openedm.ground import checks
from openedm.ground.tensors import as_tensor

__all__ = ["LatentPairs", "Latents"]


class LatentPairs(InMemory):
    """Samples mean + std n, with new noise n at every fetch, and perhaps classes.

    The noise is drawn from torch's global generator on the host, which training seeds for every batch: a run is a
    function of its seed, and `openedm.data.measure` includes the variance of the noise.

    >>> latents = LatentPairs(torch.zeros(4, 2), torch.full((4, 2), 0.5))
    >>> latents.describe()
    '4 vectors of 2 without labels'

    Args:
        mean: (num_samples, *event), floating point, in any units.
        std: of the shape of `mean`, ≥ 0.
        labels: the class of each sample, as for `InMemory`.

    Raises:
        ValueError: the shapes differ, or a standard deviation is negative or not finite.
    """

    random = True

    def __init__(
        self,
        mean: Shaped[Tensor, "samples *event"] | Array,
        std: Shaped[Tensor, "..."] | Array,
        labels: Shaped[Tensor, "..."] | Array | None = None,
    ) -> None:
        super().__init__(mean, labels, kind="vectors")
        self._std: Float[Tensor, "samples *event"] = as_tensor("std", std).to(torch.float32)
        if self._std.shape != self._x.shape:
            raise ValueError(f"std must have the shape of mean, {tuple(self._x.shape)}, got {tuple(self._std.shape)}")
        if not bool((self._std.isfinite() & (self._std >= 0)).all()):
            raise ValueError("std must be finite and >= 0")

    def fetch(self, indices: Indices) -> Batch:
        mean, labels = super().fetch(indices)
        index = as_index(indices, len(self))
        return mean + self._std[index] * torch.randn(mean.shape), labels


@dataclass(frozen=True)
class Latents(Source):
    """Means and standard deviations as an encoder gives them; latents are drawn anew in every pass.

    A folder that `openedm data encode` wrote also has the units in which models see the latents, and knows the
    autoencoder. Sets up to 256 MiB are read when loaded, of larger ones each latent when it is fetched.

    Args:
        path: such a folder; or a .npz file. Pickled objects are not read.
        mean_key: for a file: the name of the means, (samples, *event).
        std_key: for a file: the name of the standard deviations, of the same shape.
        log_variance: for a file: whether that array holds ln std² instead.
        labels_key: for a file: the name of the labels; by default "labels", if present.
        streaming: for a folder: visit the shards one after another, shuffled within a window, as for `Shards`.
        window: for `streaming`: the number of latents that are shuffled together.
        lanes: for `streaming`: the number of shards that are read in parallel; a multiple of the number of processes.

    Raises:
        ValueError: a number is out of its range; when read: the file or the folder cannot be read, an array is missing,
            the shapes differ, or an option has no effect.
    """

    path: str
    mean_key: str = "mean"
    std_key: str = "std"
    log_variance: bool = False
    labels_key: str | None = None
    streaming: bool = False
    window: int = 8192
    lanes: int = 8

    def __post_init__(self) -> None:
        Chunks((1,), self.window, self.lanes)  # checks both

    def load(self) -> Dataset:
        if Path(self.path).is_dir():
            self._refuse(("mean_key", "std_key", "log_variance", "labels_key"), "a folder of shards")
            return load_encoded(self.path, (self.window, self.lanes) if self.streaming else None)
        self._refuse(("streaming", "window", "lanes"), "a file")
        return self._load_file()

    def _refuse(self, names: Sequence[str], what: str) -> None:
        """Refuse options that have no effect with `what`."""
        given = [
            field.name for field in fields(self) if field.name in names and getattr(self, field.name) != field.default
        ]
        if given:
            raise ValueError(f"{', '.join(given)} must not be given with {what}, path={self.path!r}")

    def _load_file(self) -> LatentPairs:
        arrays = self._read()
        labels_key = self.labels_key or ("labels" if "labels" in arrays else None)
        for name, key in (("mean_key", self.mean_key), ("std_key", self.std_key), ("labels_key", labels_key)):
            if key is not None:
                checks.one_of(f"{name} of {self.path}", key, sorted(arrays))
        try:
            mean, std = (self._numbers(arrays[key]) for key in (self.mean_key, self.std_key))
            std = (std / 2).exp() if self.log_variance else std
            return LatentPairs(mean, std, None if labels_key is None else arrays[labels_key])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.path}: {error}") from error

    def _read(self) -> dict[str, np.ndarray]:
        arrays = ArrayFile(self.path)
        if "" in arrays:
            raise ValueError(f"path must be a .npz file of several arrays, got {self.path!r}")
        return {name: arrays[name] for name in arrays}

    @staticmethod
    def _numbers(values: np.ndarray) -> Tensor:
        if values.dtype.kind != "f":
            raise TypeError(f"means and standard deviations must be floating point, got {values.dtype}")
        return torch.from_numpy(values.astype(np.float32))
