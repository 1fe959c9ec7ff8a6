"""A recording on disk: the numbers of each group in a row, as float64, and an index of names and shapes."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

Arrays = dict[str, np.ndarray]
Named = Iterable[tuple[str, Any]]
MOST = 64
"""Arrays of more numbers, such as weights, are recorded by so many of them and four sums."""


def as_array(value: Any) -> np.ndarray:
    """Tensors, numbers and nested lists as float64; None as an empty array."""
    if value is None:
        return np.empty(0)
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().to(torch.float64).numpy()
    return np.asarray(value, np.float64)


def reduced(value: Any) -> np.ndarray:
    """The array itself, or evenly spaced entries of it, their sum, absolute sum, sum of squares and weighted sum."""
    array = as_array(value)
    if array.size <= MOST:
        return array
    flat = array.reshape(-1)
    sums = [math.fsum(flat), math.fsum(abs(flat)), math.fsum(flat**2), math.fsum(flat * np.cos(np.arange(flat.size)))]
    return np.concatenate([flat[np.linspace(0, flat.size - 1, MOST).astype(int)], sums])


def numbers_of(name: str, plain: Any) -> Named:
    """Every number in nested dictionaries and lists, by its dotted name; what is no number is left out."""
    if isinstance(plain, dict):
        for key, value in plain.items():
            yield from numbers_of(f"{name}.{key}", value)
    elif isinstance(plain, list | tuple) and not all(isinstance(v, int | float) for v in plain):
        for i, value in enumerate(plain):
            yield from numbers_of(f"{name}.{i}", value)
    elif plain is not None and not isinstance(plain, str):
        yield name, plain


def save(path: Path, groups: dict[str, Arrays]) -> None:
    """Write all groups to one compressed file."""
    content = {}
    for group, arrays in groups.items():
        index = json.dumps({name: list(array.shape) for name, array in arrays.items()}).encode()
        content[f"{group}.index"] = np.frombuffer(index, np.uint8)
        content[f"{group}.values"] = np.concatenate([np.empty(0), *(a.reshape(-1) for a in arrays.values())])
    np.savez_compressed(path, **content)


def load(path: Path) -> dict[str, Arrays]:
    """What `save` wrote."""
    with np.load(path, allow_pickle=False) as file:
        names = [name.removesuffix(".index") for name in file.files if name.endswith(".index")]
        return {name: _unpacked(bytes(file[f"{name}.index"]), file[f"{name}.values"]) for name in names}


def _unpacked(index: bytes, values: np.ndarray) -> Arrays:
    arrays, start = {}, 0
    for name, shape in json.loads(index).items():
        size = math.prod(shape)
        arrays[name] = values[start : start + size].reshape(shape)
        start += size
    return arrays
