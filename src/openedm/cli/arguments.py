"""Parsing of numbers, files and functions on the command line."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from openedm.cli.importing import import_file
from openedm.data.array_files import ArrayFile

MAX_INTEGERS = 10_000_000
MAX_INTEGER = 2**63 - 1
"""The largest number that files of samples hold."""


def parse_integers(name: str, text: str) -> list[int]:
    """Integers from a list of numbers and ranges, both ends included: "0-3,7" is [0, 1, 2, 3, 7].

    Raises:
        ValueError: the text is not such a list, a range is decreasing, a number is 2⁶³ or more, or there are more than
            ten million.
    """
    values: list[int] = []
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not low.isdecimal() or (dash and not high.isdecimal()):
            raise ValueError(f"{name} must be numbers >= 0 and ranges such as 0-63,100, got {text!r}")
        if dash and int(high) < int(low):
            raise ValueError(f"{name} must have increasing ranges, got {part.strip()!r}")
        if dash and len(values) + int(high) - int(low) >= MAX_INTEGERS:
            raise ValueError(f"{name} must be at most {MAX_INTEGERS:,} numbers at a time, got {text!r}")
        if int(high if dash else low) > MAX_INTEGER:
            raise ValueError(f"{name} must be below 2^63, got {part.strip()!r}")
        values.extend(range(int(low), int(high if dash else low) + 1))
    return values


def function_of(text: str, option: str = "simulator") -> Callable[..., Any]:
    """The user's function, or class, `file.py:function`. The file is imported, with its folder first on the path.

    Raises:
        ValueError: the file or function does not exist, or another module has the file's name.
    """
    file, colon, name = text.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise ValueError(f"{option} must be file.py:function, got {text!r}")
    module = import_file(option, file)
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{option} must be file.py:function, but {file} has no function {name!r}")
    return function  # type: ignore[no-any-return]


def numbers_of(name: str, text: str | None) -> Tensor:
    """Numbers from a file, .npy or .npz (the array of that name), or separated by commas: "1.0,-2.0".

    Args:
        name: the name of the argument, for messages.
        text: the file or the numbers.

    Raises:
        ValueError: the text is None, the file does not exist, or there are no numbers.
    """
    if text is None:
        raise ValueError(f"{name} must be given: numbers separated by commas, --{name}=-1.0,2.0, or a .npy file")
    if text.endswith((".npy", ".npz")):
        arrays = arrays_of(name, text)
        if name not in arrays:
            raise ValueError(f"{name}: {text} must hold an array {name}, got {', '.join(sorted(arrays))}")
        return arrays[name]
    try:
        return torch.tensor([float(part) for part in text.split(",")], dtype=torch.float64)
    except ValueError as error:
        raise ValueError(f"{name} must be numbers separated by commas, or a .npy or .npz file, got {text!r}") from error


def arrays_of(name: str, path: str) -> dict[str, Tensor]:
    """The arrays of real numbers in a file; that of a .npy file is called `name`.

    Args:
        name: the name of the argument, for messages.
        path: the file.

    Raises:
        ValueError: the file does not exist, is damaged, or holds no array of real numbers.
    """
    content = ArrayFile(path, name)
    arrays = {key or name: content[key] for key in content}
    real = {key: array for key, array in arrays.items() if array.dtype.kind in "fiub"}
    if not real:
        listed = ", ".join(f"{key} of {array.dtype}" for key, array in arrays.items())
        raise ValueError(f"{name}: {path} must hold arrays of real numbers, got {listed or 'none'}")
    # In the byte order of this machine, which torch needs.
    return {key: torch.from_numpy(array.astype(array.dtype.newbyteorder("="))) for key, array in real.items()}
