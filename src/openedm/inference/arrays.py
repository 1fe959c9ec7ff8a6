"""Numbers that users have, as tensors: tables, masked arrays, lists, columns of objects. What is masked or None is NaN.

Numbers keep the precision that they come with; Python's are float64, which float32 would round (a list of dates, say).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from openedm.ground.tensors import ArrayLike

__all__ = ["Values", "as_array", "as_rows", "as_tensor"]


Values = Tensor | npt.NDArray[Any] | Sequence[Any] | float | Mapping[str, Any] | ArrayLike
"""What can be read as a tensor of numbers; for data of several kinds also a mapping from names to such."""


def as_tensor(name: str, values: Values) -> Float[Tensor, "..."]:
    """`values` as a float32 tensor; float64 stays, as do integers in it that float32 would round.

    Masked entries, None and pandas' NA become NaN, which marks what is absent.

    Raises:
        TypeError: they are not real numbers; the message names the argument.
    """
    try:
        tensor = values if isinstance(values, Tensor) else _tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        got = f"{type(values).__name__}{f' of {values.dtype}' if isinstance(values, ndarray) else ''}: {error}"
        raise TypeError(f"{name} must be a tensor, an array, a table or numbers, got {got}") from error
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be dense, got a tensor of layout {tensor.layout}: give {name}.to_dense()")
    if tensor.is_complex():
        raise TypeError(f"{name} must be real, got {tensor.dtype}")
    if tensor.dtype in (torch.float32, torch.float64):
        return tensor
    if tensor.dtype in (torch.uint16, torch.uint32, torch.uint64):  # torch finds no maximum of these
        tensor = tensor.long() if tensor.dtype == torch.uint16 else tensor.double()
    whole = not tensor.is_floating_point() and tensor.numel() > 0
    large = whole and max(int(tensor.max()), -int(tensor.min())) > 1 << 24
    return tensor.double() if large or tensor.dtype == torch.float64 else tensor.float()


def as_rows(name: str, values: Values) -> Float[Tensor, "rows ..."]:
    """`values` as a tensor with rows: one number a row, (n,), becomes (n, 1). Errors as for `as_tensor`."""
    tensor = as_tensor(name, values)
    return tensor[:, None] if tensor.ndim == 1 else tensor


def _tensor(values: Any) -> Tensor:
    if isinstance(values, list | tuple) and values and all(isinstance(value, Tensor) for value in values):
        return torch.stack(list(values))
    array = as_array(values)
    return torch.from_numpy(array if array.flags.writeable and min(array.strides, default=0) >= 0 else array.copy())


def as_array(values: Any) -> npt.NDArray[Any]:
    """What numpy reads as an array of numbers, of a number format that torch has; NaN where entries are masked.

    Raises:
        TypeError: it holds no numbers, or is a structured array.
        ValueError: it is a list of rows that have different lengths.
    """
    if isinstance(values, list | tuple) and any(isinstance(value, np.ma.MaskedArray) for value in values):
        values = np.ma.stack(list(values))
    if np.ma.is_masked(values):
        return np.asarray(values.astype(np.float64).filled(np.nan))
    array = np.asarray(values)
    match array.dtype.kind:
        case "O":
            return np.array([_number(value) for value in array.flat], np.float64).reshape(array.shape)
        case "V":
            fields = ", ".join(array.dtype.names or ())
            raise TypeError(
                f"its fields {fields} are not columns: numpy.lib.recfunctions.structured_to_unstructured makes them so"
            )
        case "f" if array.dtype.itemsize > 8:  # torch has no such format
            return array.astype(np.float64)
        case "f" | "i" | "u" | "b" | "c":
            return array.astype(array.dtype.newbyteorder("="), copy=False)
    raise TypeError(f"its entries are of {array.dtype}, not numbers")


def _number(value: Any) -> float:
    """An entry of a column of objects, as a table has where its columns are of several kinds."""
    if value is None or type(value).__name__ == "NAType":
        return float("nan")
    if isinstance(value, str | bytes):
        raise TypeError(f"{value!r} is text, not a number")
    return float(value)
