"""Arrays in files of numpy: images as bytes, or any data in floating point."""

import zipfile
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from openedm.data.dataset import Source
from openedm.data.memory import InMemory
from openedm.ground import checks

__all__ = ["Arrays"]

_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Arrays(Source):
    """An array in a .npy or .npz file, read into memory.

    Bytes (uint8) are images, (samples, height, width) or with 1, 3 or 4 channels before or after height and width, and
    are scaled to [-1, 1]. Floating point (samples, …) of any shape and units is used unchanged.

    Args:
        path: the file. Pickled objects are not read.
        key: name of the data in a .npz; by default its only array besides the labels.
        labels_key: name of the integer labels in a .npz; by default "labels", if present.
        layout: order of the axes of an array with four. "auto" leaves floating point unchanged and infers the channels
            of bytes from their number.
    """

    path: str
    key: str | None = None
    labels_key: str | None = None
    layout: Literal["auto", "NCHW", "NHWC"] = "auto"

    def __post_init__(self) -> None:
        checks.one_of("layout", self.layout, ("auto", "NCHW", "NHWC"))

    def load(self) -> InMemory:
        x, labels = self._read()
        try:
            return InMemory(
                _to_tensor(self._channels_first(x)), None if labels is None else _check_labels(labels, len(x))
            )
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.path}: {error}") from error

    def _read(self) -> tuple[np.ndarray, np.ndarray | None]:
        try:
            with open(self.path, "rb") as file:
                content = np.load(file, allow_pickle=False)
                arrays = {"": content} if isinstance(content, np.ndarray) else dict(content)
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"path must be a .npy or .npz file, {self.path!r} cannot be read: {error}") from error
        if "" in arrays:
            if self.key is not None or self.labels_key is not None:
                raise ValueError(
                    f"key and labels_key must be None for a .npy file, such as {self.path!r}, got {self.key!r} and "
                    f"{self.labels_key!r}"
                )
            return arrays[""], None
        return self._pick(arrays)

    def _pick(self, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
        names = sorted(arrays)
        for argument, name in (("key", self.key), ("labels_key", self.labels_key)):
            if name is not None and name not in arrays:
                raise ValueError(f"{argument} must be one of {names}, the arrays in {self.path!r}, got {name!r}")
        labels_key = self.labels_key or ("labels" if "labels" in arrays and self.key != "labels" else None)
        rest = [name for name in names if name != labels_key]
        if self.key is None and len(rest) != 1:
            raise ValueError(f"key must be one of {rest}, the arrays in {self.path!r}; give the name of the data")
        return arrays[self.key or rest[0]], None if labels_key is None else arrays[labels_key]

    def _channels_first(self, x: np.ndarray) -> np.ndarray:
        if not (x.dtype == np.uint8 or np.issubdtype(x.dtype, np.floating)):
            raise TypeError(f"the data must be uint8 (images) or floating point, got {x.dtype}")
        if self.layout != "auto" and x.ndim != 4:
            raise ValueError(f"layout={self.layout!r} requires an array with four axes, got shape {x.shape}")
        if x.dtype == np.uint8 and x.ndim == 3:
            return x[:, None]
        last = self.layout == "NHWC"
        if x.dtype == np.uint8 and self.layout == "auto":
            last = self._channels_are_last(x.shape)
        return np.moveaxis(x, -1, 1) if last else x

    @staticmethod
    def _channels_are_last(shape: tuple[int, ...]) -> bool:
        first, last = (len(shape) == 4 and shape[axis] in _CHANNELS for axis in (1, 3))
        if not first and not last:
            raise ValueError(
                f"bytes must be (N, H, W), (N, H, W, C) or (N, C, H, W) with C in {_CHANNELS}, got {shape}"
            )
        if first and last:
            raise ValueError(f"{shape} has channels before or after height and width: give layout='NCHW' or 'NHWC'")
        return last


def _to_tensor(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.uint8 if x.dtype == np.uint8 else np.float32))


def _check_labels(labels: np.ndarray, samples: int) -> torch.Tensor:
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (samples,):
        raise ValueError(f"labels must be {samples} integers, got {labels.dtype} of shape {labels.shape}")
    return torch.from_numpy(labels.astype(np.int64))
