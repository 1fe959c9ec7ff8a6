"""A limit to the tensors that a description from a file makes the program create.

The numbers of a tensor are counted before it is created, in the functions of torch that create one from its sizes.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["LimitedCreation"]

_BY_SHAPE = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn)
_PER_NUMBER, _NUMBERS = 4, 2**24
_PER_TENSOR, _TENSORS = 10, 1000


class LimitedCreation(TorchFunctionMode):
    """Inside the block, modules for the given tensors can be built, but not many times larger ones.

    Args:
        tensors: the weights that the modules are built for.
        what: what the tensors are, for the message, such as "its weights".

    Raises:
        ValueError: what is built has more than 4 times the numbers of the tensors and 17 million, or more than 10 times
            as many tensors and 1000.
    """

    def __init__(self, tensors: Iterable[Tensor], what: str) -> None:
        super().__init__()
        sizes = [tensor.numel() for tensor in tensors]
        self._found, self._what = sum(sizes), what
        self._numbers, self._tensors = _PER_NUMBER * sum(sizes) + _NUMBERS, _PER_TENSOR * len(sizes) + _TENSORS

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        numbers = _created(function, args, kwargs)
        if numbers is not None:
            self._numbers, self._tensors = self._numbers - numbers, self._tensors - 1
            if self._numbers < 0 or self._tensors < 0:
                raise ValueError(f"it is much larger than {self._what}, which are {self._found:,} numbers")
        return function(*args, **kwargs)


def _created(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """The numbers of the tensor that a call creates from its sizes; None for other functions."""
    if function in _BY_SHAPE:
        size: Any = kwargs.get("size", args)
        return int(math.prod(size[0] if size and isinstance(size[0], tuple | list) else size))
    if function is torch.full:
        return int(math.prod(kwargs["size"] if "size" in kwargs else args[0]))
    if function is torch.arange:
        start, end, step = (0, *args, 1) if len(args) == 1 else (*args, 1)[:3]
        return max(0, int((end - start) / step))
    if function in (torch.tril_indices, torch.triu_indices, torch.eye):
        return math.prod(args[:2]) if len(args) > 1 else int(args[0]) ** 2
    if function is torch.linspace:
        return int(kwargs["steps"] if "steps" in kwargs else args[2])
    if function is functional.one_hot:
        return int(args[0].numel()) * int(args[1])
    return None
