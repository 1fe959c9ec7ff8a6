"""Columns of Arrow tables: which hold images, classes and floats, and their cells."""

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Int64

MAX_FLOAT32 = 3.4e38
"""Larger numbers are infinite in float32."""

__all__ = ["MAX_FLOAT32", "are_finite", "classes_of", "float_row", "holds_images", "import_optional"]


def import_optional(name: str) -> ModuleType:
    """A module of the optional group `images`."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"tables require {name.partition('.')[0]}: pip install openedm[images] ({error})") from error


def holds_images(kind: Any) -> bool:
    """Whether a column of this Arrow type may hold encoded images."""
    types = import_optional("pyarrow").types
    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def classes_of(column: Any, name: str) -> Int64[np.ndarray, " rows"]:
    """The classes in a column; ValueError unless all rows have an integer ≥ 0."""
    if column.null_count:
        raise ValueError(f"{name} must have a class in each row, but {column.null_count} rows have no class")
    labels = np.asarray(column.to_numpy())
    if not np.issubdtype(labels.dtype, np.integer) or (len(labels) and labels.min() < 0):
        raise ValueError(f"{name} must have integers >= 0 as classes, got {labels.dtype}")
    return labels.astype(np.int64)


def are_finite(column: Any) -> bool:
    """Whether a column has a finite number in each row, or as many in the list of each row; no row is copied alone."""
    compute, types = import_optional("pyarrow.compute"), import_optional("pyarrow").types
    while types.is_list(column.type) or types.is_large_list(column.type) or types.is_fixed_size_list(column.type):
        lengths = compute.unique(compute.list_value_length(column))
        if column.null_count or len(lengths) > 1:
            return False
        column = compute.list_flatten(column)
    if column.null_count:
        return False
    if not (types.is_floating(column.type) or types.is_integer(column.type)):
        return True  # as in the first row
    return not len(column) or bool((np.abs(np.asarray(column.to_numpy(), dtype=np.float64)) < MAX_FLOAT32).all())


def float_row(where: str, columns: Sequence[str], cells: Sequence[Any], width: int | None) -> list[float]:
    """The numbers in some cells of a row, one after another.

    Args:
        where: the row, for messages.
        columns: the names of the columns.
        cells: a number or a list of numbers each.
        width: how many numbers there must be; None for any.

    Raises:
        ValueError: a cell is empty or holds something else, a number is not finite, or their number differs.
    """
    found: list[float] = []
    for name, cell in zip(columns, cells, strict=True):
        values = list(cell) if isinstance(cell, list | tuple) else [cell]
        for value in values:
            if not isinstance(value, int | float) or not abs(value) < MAX_FLOAT32:
                raise ValueError(f"{where} must have finite numbers as conditions, got {cell!r} in column {name!r}")
        found += map(float, values)
    if not found or len(found) != (width or len(found)):
        raise ValueError(f"{where} must have {width or 'some'} numbers as conditions, got {len(found)}")
    return found
