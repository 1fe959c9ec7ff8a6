"""What may be given for a dataset: tensors, arrays, pairs with labels or conditions, and torch datasets."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from openedm.data.dataset import Dataset, Source
from openedm.data.memory import InMemory, Pairs, wrap
from openedm.ground.tensors import as_tensor

__all__ = ["as_dataset"]


def as_dataset(value: Any, name: str = "dataset") -> Dataset:
    """A `Dataset` from what users have; a `Dataset` itself is returned unchanged.

    Args:
        value: a `Dataset`; a `Source`, which is loaded; a tensor or array (samples, *event); a pair (x, labels) with
            integer labels (samples,), or (x, conditions) with floats (samples, *condition); or a map-style torch
            dataset, as for `wrap`.
        name: the name of the argument, for messages.

    Raises:
        TypeError: it is something else; the message says what a dataset is.
        ValueError: the values do not fit, as for `InMemory`, `Pairs` and `wrap`.

    >>> as_dataset((torch.zeros(5, 2), torch.arange(5))).describe()
    '5 vectors of 2 in 5 classes'
    """
    if isinstance(value, Dataset):
        return value
    if isinstance(value, Source):
        return value.load()
    if isinstance(value, Tensor | np.ndarray):
        return InMemory(as_tensor(name, value))
    if isinstance(value, tuple) and len(value) == 2 and all(isinstance(v, Tensor | np.ndarray) for v in value):
        x, labels = as_tensor(name, value[0]), as_tensor(name, value[1])
        return Pairs(x, labels) if labels.is_floating_point() else InMemory(x, labels)
    if isinstance(value, torch.utils.data.Dataset) or (
        hasattr(value, "__len__") and hasattr(value, "__getitem__") and not isinstance(value, str | list | tuple | dict)
    ):
        return wrap(value)
    raise TypeError(
        f"{name} must be a Dataset (openedm.data.Dataset, with __len__ and fetch(indices)), a Source, a tensor or "
        f"array (samples, *event), a pair (x, labels), or a torch dataset with __len__ and __getitem__, got "
        f"{type(value).__name__}"
    )
