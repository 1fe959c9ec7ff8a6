"""Arguments that are numbers, alone, in tensors, arrays or lists."""

import cmath
import sys
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float64
from torch import Tensor

from openedm.ground import checks
from openedm.ground.devices import float64_on

__all__ = [
    "ArrayLike",
    "Values",
    "all_finite",
    "as_tensor",
    "check_floats",
    "count_not_finite",
    "first_not_finite",
    "float64",
    "float64_between",
    "misfits",
    "noise_levels",
]


@runtime_checkable
class ArrayLike(Protocol):
    """What numpy reads as an array, such as a table of pandas."""

    def __array__(self, *args: Any, **kwargs: Any) -> npt.NDArray[Any]:
        """Its numbers."""


Values = Tensor | float
"""A time, a noise level or several: a Python number or a tensor of any shape and dtype."""


def float64(value: Values) -> Float64[Tensor, "*shape"]:
    """`value` as a float64 tensor (float32 on devices without float64); differentiable.

    Raises:
        TypeError: it is complex, or not a number or several.
    """
    if isinstance(value, Tensor):
        if value.is_complex():
            raise TypeError(f"times and noise levels must be real, got {value.dtype}")
        return value if value.dtype == torch.float64 else value.to(float64_on(value.device))
    try:
        return torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"times and noise levels must be real numbers, or a tensor of them, got {value!r}") from error


def float64_between(name: str, value: Values, low: float, high: float) -> Float64[Tensor, "*shape"]:
    """`value` as a float64 tensor, of which each number on the host is between two others.

    Numbers on an accelerator are not checked: training would wait for it in each step.

    Args:
        name: the name of the argument, for messages.
        value: a number or a tensor.
        low: the lowest number that is allowed.
        high: the highest.

    Raises:
        TypeError: it is complex, or not a number or several.
        ValueError: a number is out of the range or NaN.
    """
    tensor = float64(value)
    if not tensor.is_cpu or torch.compiler.is_compiling():
        return tensor
    # One number is the usual case; as a tensor its comparison would take as long as a step of a small state.
    if tensor.ndim == 0 and low <= tensor.item() <= high:
        return tensor
    inside = (tensor >= low) & (tensor <= high)
    if not bool(inside.all()):
        wrong = float(tensor[~inside].flatten()[0])
        if high >= sys.float_info.max:
            checks.at_least(name, wrong, low)
            checks.finite(name, wrong)
        checks.between(name, wrong, low, high)
    return tensor


def noise_levels(sigma: Values) -> Float64[Tensor, "*shape"]:
    """σ as a float64 tensor; TypeError unless it is real, ValueError for one on the host not finite and ≥ 0."""
    return float64_between("sigma", sigma, 0, sys.float_info.max)


def as_tensor(name: str, value: Any) -> Tensor:
    """A tensor unchanged, an array or a list of numbers as a tensor.

    Args:
        name: the name of the argument, for messages.
        value: a tensor; a numpy array, whose memory is shared where possible, or what numpy reads as one, such as a
            table of pandas; or nested lists of numbers, of which floats become float32.

    Raises:
        TypeError: it is something else, its entries are not numbers, or it is a sparse tensor or one without numbers.
    """
    if isinstance(value, Tensor):
        if value.is_nested:
            raise TypeError(f"{name} must have rows of one length, got a nested tensor: pad or cut them")
        if value.layout != torch.strided or value.is_meta:
            kind, way = ("on the meta device", "") if value.is_meta else (f"{value.layout}", f": {name}.to_dense()")
            raise TypeError(f"{name} must be a tensor with its numbers in memory, got one that is {kind}{way}")
        return value
    if isinstance(value, ArrayLike) and not isinstance(value, np.ndarray | np.generic):
        others = _not_numbers(value)
        value = np.asarray(value)
        if others and value.dtype.kind not in "fiub":
            raise TypeError(f"{name} must have columns of numbers, got {', '.join(others)}")
    if isinstance(value, np.ma.MaskedArray):
        if np.ma.is_masked(value):
            count = int(np.ma.getmaskarray(value).sum())
            raise TypeError(f"{name} must have no masked entries, got {count}: fill them, {name}.filled(0)")
        value = value.data
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        longer = value.dtype.kind == "f" and value.dtype.itemsize > 8  # torch has no such type
        native = value.astype("float64" if longer else value.dtype.newbyteorder("="), copy=False)
        shared = native.flags.writeable and min(native.strides, default=0) >= 0
        return torch.from_numpy(native if shared else native.copy())
    if isinstance(value, list | tuple):
        try:
            return torch.tensor([v.tolist() if isinstance(v, Tensor | np.ndarray) else v for v in value])
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name} must be a tensor, an array or a list of numbers: {error}") from error
    got = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
    raise TypeError(f"{name} must be a tensor, an array or a list of numbers, got {got}")


def _not_numbers(table: ArrayLike) -> list[str]:
    """The first columns of a table of pandas that are not plain numbers, with their types."""
    types: Any = getattr(table, "dtypes", None)
    columns = dict(types) if hasattr(types, "items") and hasattr(types, "index") else {}
    found = [f"{column!r} of {kind}" for column, kind in columns.items() if not isinstance(kind, np.dtype)]
    found += [f"{c!r} of {k}" for c, k in columns.items() if isinstance(k, np.dtype) and k.kind not in "fiub"]
    return found[:3]


def check_floats(name: str, value: Any, expected: str) -> None:
    """Raise TypeError unless `value` is a tensor of floating-point numbers; integers would be computed as integers."""
    checks.instance(name, value, Tensor, expected)
    if not value.is_floating_point():
        raise TypeError(f"{name} must hold floating-point numbers, got {value.dtype}: write {name}.float()")


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity, by one sum over it (its entries only if the sum is neither)."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    return cmath.isfinite(tensor.sum().item()) or bool(tensor.isfinite().all())


def first_not_finite(x: Tensor) -> int:
    """The first row of a tensor with a NaN or an infinity."""
    return int((~x.isfinite()).flatten(1).any(1).nonzero()[0])


def count_not_finite(tensor: Tensor) -> str:
    """How many entries of a tensor are NaN and infinite, in words."""
    nan, infinite = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    parts = [f"{count} {name}" for count, name in ((nan, "NaN"), (infinite, "infinite")) if count]
    return f"{' and '.join(parts)} of {tensor.numel()} numbers"


def misfits(expected: Tensor, given: Tensor) -> Iterator[str]:
    """What is wrong with a tensor of a file in place of that of a new module: its shape, its kind of numbers, or NaN.

    Half and double precision are accepted where single precision is expected, unless a number overflows in it, and NaN
    or infinity where the new module has them, as in a mask.
    """
    if given.shape != expected.shape:
        yield f"has shape {tuple(given.shape)} instead of {tuple(expected.shape)}"
    elif _kind(given) != _kind(expected):
        yield f"holds {given.dtype} instead of {expected.dtype}"
    elif not all_finite(used := given.to(expected.dtype)) and bool(expected.isfinite().all()):
        overflow = f" as {expected.dtype}" if all_finite(given) else ""
        yield f"holds {count_not_finite(used)}{overflow}, with which all samples would be NaN"


def _kind(tensor: Tensor) -> str:
    if tensor.is_floating_point():
        return "real"
    return "complex" if tensor.is_complex() else "truth" if tensor.dtype == torch.bool else "integer"
