"""The handwritten digits that are part of scikit-learn: the data of the demo, without a download."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from openedm.data.dataset import Source
from openedm.data.memory import InMemory
from openedm.ground import checks

__all__ = ["Digits"]


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
        chosen = _chosen(digits.target, self.split)
        x = torch.from_numpy(digits.images[chosen]).float().unsqueeze(1) / 8 - 1
        names = tuple(map(str, digits.target_names))
        return InMemory(x, torch.from_numpy(digits.target[chosen]), class_names=names)


def _chosen(labels: np.ndarray, split: str) -> np.ndarray:
    test = np.zeros(len(labels), dtype=bool)
    test[np.argsort(labels, kind="stable")[::5]] = True
    return np.flatnonzero({"train": ~test, "test": test, "all": np.ones_like(test)}[split])
