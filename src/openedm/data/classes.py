"""Which class a label is: integers or one-hot rows in, classes 0 … k − 1 and their names out, for every source."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, Integer, Shaped
from torch import Tensor

from openedm.ground import checks
from openedm.ground.tensors import as_tensor

__all__ = ["ClassNumbers", "as_labels", "number_classes", "read_labels"]


@dataclass(frozen=True)
class ClassNumbers:
    """The classes of some labels.

    Labels that do not start at 0 or skip numbers are renumbered in increasing order, and the names are the labels.

    Attributes:
        num_classes: the number of classes; 0 without labels.
        names: one name per class, if known.
        renumbered: the labels of the classes in increasing order; None where a label is its class.
    """

    num_classes: int = 0
    names: tuple[str, ...] | None = None
    renumbered: tuple[int, ...] | None = None

    def of(self, labels: Integer[Tensor, " rows"]) -> Int64[Tensor, " rows"]:
        """The classes of labels, all of which are among those that were numbered."""
        labels = labels.to(torch.int64)
        return labels if self.renumbered is None else torch.searchsorted(torch.tensor(self.renumbered), labels)


def number_classes(
    labels: Integer[Tensor, " rows"] | Integer[np.ndarray, " rows"] | None,
    num_classes: int | None = None,
    names: Sequence[str] | None = None,
) -> ClassNumbers:
    """The classes of labels: those of `num_classes` or `names` if given, otherwise one for each label that occurs.

    >>> number_classes(torch.tensor([3, 1, 3]))
    ClassNumbers(num_classes=2, names=('1', '3'), renumbered=(1, 3))

    Args:
        labels: integers ≥ 0; None without labels.
        num_classes: the number of classes, if it is known; then a label is its class.
        names: one name per class; then a label is its class.

    Raises:
        ValueError: a label is not below the number of classes, the number of names is not that of the classes, or there
            are classes without labels.
    """
    if labels is None:
        if num_classes or (names is not None and len(names)):
            raise ValueError(
                f"num_classes and class_names must be None for data without labels, got {num_classes} and {names}"
            )
        return ClassNumbers()
    found = tuple(int(label) for label in np.unique(np.asarray(labels)))
    if num_classes is None and names is None:
        if found == tuple(range(len(found))):
            return ClassNumbers(len(found))
        return ClassNumbers(len(found), tuple(map(str, found)), found)
    count = num_classes if num_classes is not None else len(() if names is None else names)
    if num_classes is None and count <= found[-1]:
        raise ValueError(
            f"class_names must hold a name for each class up to the largest label {found[-1]}, got {count}"
        )
    if count <= found[-1]:
        raise ValueError(f"num_classes must be > the largest label {found[-1]}, got {count}")
    if names is not None and len(names) != count:
        raise ValueError(f"class_names must have {count} names, one per class, got {len(names)}")
    return ClassNumbers(count, None if names is None else tuple(map(str, names)))


def as_labels(name: str, labels: Any) -> Shaped[Tensor, "..."]:
    """Labels as a tensor.

    Args:
        name: the name of the argument, for messages.
        labels: a tensor, an array, a column of a table or a list.

    Raises:
        TypeError: they are names of classes, and the message says how these are given; or no numbers.
    """
    if not isinstance(labels, Tensor):
        first = (
            np.asarray(labels[:1] if isinstance(labels, list | tuple) else labels, dtype=object).ravel()[:1].tolist()
        )
        if first and isinstance(first[0], str | bytes):
            raise TypeError(
                f"{name} must be integers or one-hot rows, got names such as {first[0]!r}: names, labels = "
                "numpy.unique(labels, return_inverse=True), and class_names=names of InMemory or Pairs"
            )
    return as_tensor(name, labels)


def read_labels(labels: Shaped[Tensor, "..."], samples: int) -> tuple[Int64[Tensor, " samples"], int | None]:
    """The labels as int64, and the number of classes where the labels say it, as one-hot rows do; otherwise None.

    Args:
        labels: integers ≥ 0, (samples,) or (samples, 1); or one-hot rows of any dtype, (samples, num_classes).
        samples: the number of samples.

    Raises:
        TypeError: labels are neither integers nor one-hot rows.
        ValueError: the number of rows is not that of the samples, a row is not one-hot, or a label is negative.
    """
    labels = labels.detach().cpu()
    if labels.ndim == 2 and len(labels) == samples and labels.shape[1] > 1:
        wrong = ((labels != 0) & (labels != 1)).any(1) | ((labels == 1).sum(1) != 1)
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"labels must be integers, one a sample, or one-hot rows, but labels[{row}] is {labels[row].tolist()}: "
                "other vectors are conditions, Pairs(x, condition)"
            )
        return (labels == 1).to(torch.uint8).argmax(1), labels.shape[1]
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(
            f"labels must be integers or one-hot rows, got {labels.dtype} of shape {tuple(labels.shape)}: numbers that "
            "are not classes are conditions, Pairs(x, condition)"
        )
    if labels.shape == (samples, 1):
        labels = labels[:, 0]
    if tuple(labels.shape) != (samples,):
        raise ValueError(f"labels must have shape ({samples},), one per sample, got {tuple(labels.shape)}")
    array = labels.numpy()  # torch finds no minimum of unsigned types but bytes
    if int(array.min()) < 0:
        raise ValueError(f"labels must be >= 0, got {int(array.min())}")
    checks.between("labels", int(array.max()), 0, 2**63 - 1)
    return labels.to(torch.int64), None
