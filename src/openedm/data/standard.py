"""Standard sets of images: the digits of scikit-learn, Fashion-MNIST, and IDX, the file format of MNIST."""

import gzip
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64, UInt8

from openedm.data.dataset import Source
from openedm.data.memory import InMemory
from openedm.ground import checks
from openedm.ground.regular import reason

__all__ = ["CLASS_NAMES", "DEBIAN_PATH", "Digits", "FashionMNIST", "read_idx"]

DEBIAN_PATH = "/usr/share/datasets/fashion-mnist"
"""The folder in which the Debian package dataset-fashion-mnist installs the files."""

HUB_NAME = "zalando-datasets/fashion_mnist"
"""The name of Fashion-MNIST in the `datasets` library."""

CLASS_NAMES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


@dataclass(frozen=True)
class Digits(Source):
    """Handwritten digits: 1797 grey images of 8×8 pixels in 10 classes, a part of scikit-learn.

    Pixel values 0 … 16 are scaled to exactly [-1, 1]. The split is not random: with the images ordered by
    class, every fifth is for testing, which gives 1437 for training and 360 for testing, each class in proportion.
    Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI (CC BY 4.0).

    >>> Digits("test").load().describe()
    '360 images of 1×8×8 in 10 classes'

    Args:
        split: "train" (1437 images), "test" (360) or "all" (1797).
    """

    split: Literal["train", "test", "all"] = "train"

    def __post_init__(self) -> None:
        checks.one_of("split", self.split, ("train", "test", "all"))

    def load(self) -> InMemory:
        from sklearn.datasets import load_digits

        digits = load_digits()
        chosen = _split_indices(digits.target, self.split)
        x = torch.from_numpy(digits.images[chosen]).float().unsqueeze(1) / 8 - 1
        names = tuple(map(str, digits.target_names))
        return InMemory(x, torch.from_numpy(digits.target[chosen]), class_names=names)


def _split_indices(labels: Int64[np.ndarray, " images"], split: str) -> np.ndarray:
    test = np.zeros(len(labels), dtype=bool)
    test[np.argsort(labels, kind="stable")[::5]] = True
    return np.flatnonzero({"train": ~test, "test": test, "all": np.ones_like(test)}[split])


@dataclass(frozen=True)
class FashionMNIST(Source):
    """Fashion-MNIST: 60,000 grey images of 28×28 pixels in 10 classes of clothing, and 10,000 for testing.

    It is read from `path`; without `path`, from the folder of the Debian package dataset-fashion-mnist; otherwise it is
    downloaded by the `datasets` library (`pip install openedm[images]`). MNIST has the same files and can be read in
    the same way. Source: Xiao, Rasul and Vollgraf, arXiv 1708.07747 (MIT licence).

    Args:
        path: folder with {train,t10k}-images-idx3-ubyte and {train,t10k}-labels-idx1-ubyte, gzipped (.gz) or not.
        split: "train" (60,000 images) or "test" (10,000).
    """

    path: str | None = None
    split: Literal["train", "test"] = "train"

    def __post_init__(self) -> None:
        checks.one_of("split", self.split, ("train", "test"))

    def load(self) -> InMemory:
        folder = Path(DEBIAN_PATH if self.path is None else self.path)
        images, labels = (_find(folder, _file(self.split, what)) for what in ("images-idx3", "labels-idx1"))
        if images is not None and labels is not None:
            return _labelled(read_idx(images, 3), read_idx(labels, 1), images)
        if self.path is not None:
            missing = _file(self.split, "images-idx3" if images is None else "labels-idx1")
            raise ValueError(f"path must be a folder with {missing} or {missing}.gz, got {self.path!r}")
        return self._from_hub()

    def _from_hub(self) -> InMemory:
        try:
            import datasets

            table = datasets.load_dataset(HUB_NAME, split=self.split)
            images = np.stack([np.asarray(image) for image in table["image"]])
            labels = np.asarray(table["label"], dtype=np.uint8)
        except Exception as error:  # no network, no library, a hub that has moved
            raise ValueError(
                "Fashion-MNIST was not found. Either give path=, a folder with its IDX files; or install the Debian "
                f"package dataset-fashion-mnist, which installs them in {DEBIAN_PATH}; or, on a machine online, "
                f"`pip install openedm[images]`. The last was tried and failed: {type(error).__name__}: {error}"
            ) from error
        return _labelled(images, labels, Path(HUB_NAME))


def read_idx(path: str | os.PathLike[str], axes: int) -> UInt8[np.ndarray, "*shape"]:
    """The array of bytes in an IDX file, gzipped where the name ends in .gz.

    Format: two zero bytes, 8 for unsigned bytes, the number of axes, each length as 4 bytes big-endian, the values.

    Args:
        path: the file.
        axes: the number of axes that the array must have.

    Raises:
        ValueError: the file cannot be read, or is not such an array; the message names it.
    """
    path = Path(path)
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {reason(error)}") from error
    start = 4 + 4 * axes
    if content[:4] != bytes((0, 0, 8, axes)) or len(content) < start:
        raise ValueError(f"{path} must be an IDX file of bytes with {axes} axes, but starts with {content[:4]!r}")
    shape = tuple(np.frombuffer(content[4:start], dtype=">u4").astype(int).tolist())
    values = np.frombuffer(content, dtype=np.uint8, offset=start)
    if len(values) != math.prod(shape):
        raise ValueError(f"{path} must have {shape} = {math.prod(shape)} bytes, but has {len(values)}")
    return values.reshape(shape)


def _file(split: str, what: str) -> str:
    return f"{'train' if split == 'train' else 't10k'}-{what}-ubyte"


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def _labelled(images: np.ndarray, labels: np.ndarray, path: Path) -> InMemory:
    if len(images) != len(labels) or len(images) == 0 or labels.max() >= len(CLASS_NAMES):
        counts = f"{len(images)} images and {len(labels)} labels"
        raise ValueError(f"{path} must have as many labels between 0 and 9 as images, got {counts}")
    return InMemory(
        torch.from_numpy(images.copy()).unsqueeze(1), torch.from_numpy(labels.astype(np.int64)), class_names=CLASS_NAMES
    )
