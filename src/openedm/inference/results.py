"""What a simulator may return: an array, or a mapping of several kinds of data, kept as the numbers of all in a row."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from openedm.inference.arrays import as_array
from openedm.networks import JoinedSummary

__all__ = ["Form", "Kinds", "as_rows_of_numbers"]

Kinds = tuple[tuple[str, tuple[int, ...]], ...]
"""The name and the shape of each kind of data."""


class Form(NamedTuple):
    """The form of the data of one simulation.

    Attributes:
        shape: of x.
        kinds: of several kinds of data, their names and shapes; x then holds the numbers of all, one after the other.
            None for one kind.
    """

    shape: tuple[int, ...]
    kinds: Kinds | None = None

    @classmethod
    def of(cls, kinds: Kinds) -> "Form":
        """The form of several kinds of data.

        Raises:
            ValueError: there are none, or one is neither a vector, a series nor an image.
        """
        JoinedSummary(tuple(name for name, _ in kinds), tuple(shape for _, shape in kinds))
        return cls((sum(math.prod(shape) for _, shape in kinds),), kinds)

    def split(self, x: Float[Tensor, "rows ..."]) -> Float[Tensor, "rows ..."] | dict[str, Tensor]:
        """Data as `fit` takes them: as they are, or of several kinds a mapping from names.

        >>> parts = Form.of((("a", (3,)), ("b", (1, 8)))).split(torch.zeros(5, 11))
        >>> {name: tuple(part.shape) for name, part in parts.items()}
        {'a': (5, 3), 'b': (5, 1, 8)}
        """
        if self.kinds is None:
            return x
        parts = torch.split(x, [math.prod(shape) for _, shape in self.kinds], 1)
        return {name: part.reshape(len(x), *shape) for (name, shape), part in zip(self.kinds, parts, strict=True)}

    def __str__(self) -> str:
        if self.kinds is None:
            return f"{self.shape}"
        return f"{{{', '.join(f'{name}: {shape}' for name, shape in self.kinds)}}}"


def as_rows_of_numbers(x: Any, rows: int | None) -> tuple[Float[ndarray, "rows *x_shape"], Form]:
    """What a simulator returned, one row a simulation, and its form; NaN and infinities stay.

    Numbers are float32 where that is exact, else float64: what is lost by rounding shows in many simulations alone.

    Args:
        x: an array, or a mapping from names to arrays.
        rows: how many simulations it holds; None where it is that of one, not in a batch.

    Raises:
        TypeError: it holds no real numbers.
        ValueError: it is empty, or has another number of rows.
    """
    if not isinstance(x, Mapping):
        data = _rows("", x, rows)
        return data, Form(data.shape[1:])
    parts = {str(name): _rows(f"[{name!r}]", values, rows) for name, values in x.items()}
    form = Form.of(tuple((name, part.shape[1:]) for name, part in parts.items()))
    return np.concatenate([part.reshape(len(part), -1) for part in parts.values()], 1), form


def _rows(name: str, x: Any, rows: int | None) -> Float[ndarray, "rows *x_shape"]:
    what = f"simulator must return {f'x{name} as ' if name else ''}"
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        x = (x.float() if x.is_floating_point() and x.dtype != torch.float64 else x).numpy()
    array = as_array(x) if np.ma.is_masked(x) else np.asarray(x)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{what}real numbers, got {type(x).__name__} of dtype {array.dtype}")
    if array.size == 0:
        raise ValueError(f"{what}at least one number, got shape {array.shape}")
    array = _exact(array)
    if rows is None:
        array = array[None]
    elif array.ndim == 0 or len(array) != rows:
        raise ValueError(f"{what}one row for each of the {rows} rows of theta (batched=True), got shape {array.shape}")
    return array if array.ndim > 1 else array[:, None]


def _exact(array: ndarray) -> Float[ndarray, "..."]:
    with np.errstate(over="ignore", under="ignore"):
        single = array.astype(np.float32)
    return single if np.array_equal(single, array, equal_nan=True) else array.astype(np.float64)
