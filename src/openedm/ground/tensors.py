"""Arguments that are numbers in tensors, arrays or lists."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["as_tensor"]


def as_tensor(name: str, value: Any) -> Tensor:
    """A tensor unchanged, an array or a list of numbers as a tensor.

    Args:
        name: the name of the argument, for messages.
        value: a tensor; a numpy array, whose memory is shared where possible; or nested lists of numbers, of which
            floats become float32.

    Raises:
        TypeError: it is something else, or its entries are not numbers.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        native = value.astype(value.dtype.newbyteorder("="), copy=False)
        shared = native.flags.writeable and min(native.strides, default=0) >= 0
        return torch.from_numpy(native if shared else native.copy())
    if isinstance(value, list | tuple):
        try:
            return torch.tensor([v.tolist() if isinstance(v, Tensor | np.ndarray) else v for v in value])
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name} must be a tensor, an array or a list of numbers: {error}") from error
    got = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
    raise TypeError(f"{name} must be a tensor, an array or a list of numbers, got {got}")
