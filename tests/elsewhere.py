"""A device that is not there: tensors that say they are on a GPU, with the host's numbers inside.

Code that never ran on a GPU fails there first on tensors left behind on the host. `elsewhere()` finds those without a
GPU: inside it, tensors made on, or moved to, "elsewhere" are computed on the host, while every operation checks its
arguments as a GPU would: all on one device, but for numbers, for copies and for indices; generators of that device;
no numpy array without a way back to the host first. What it cannot find: numbers of the host where a GPU refuses even
those (`torch.stack`), numbers that differ there, kernels that a GPU lacks, and whatever torch does below its
dispatcher.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock
from weakref import WeakValueDictionary

import torch
import torch._dynamo  # torch imports it at the first use of a mode, which must not be inside one
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend


class _Module(_DummyBackendModule):
    """What torch asks of a device's module (`torch.cuda` for a GPU): one device, whose generator is the host's."""

    open = False  # else other tests of the process would find an accelerator

    def is_available(self) -> bool:
        return self.open

    def device_count(self) -> int:
        return int(self.open)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.default_generator.get_state()

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        torch.default_generator.set_state(state)


_setup_privateuseone_for_python_backend("elsewhere", _Module())
ELSEWHERE = torch.device("elsewhere:0")
_aten = torch.ops.aten
_COPIES = {_aten._to_copy.default, _aten.copy_.default, _aten._pin_memory.default, _aten.is_pinned.default}
_INDEXING = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
}
_Generator = torch.Generator


class Remote(Tensor):
    """A tensor that reports to be on the device; its numbers are `here`, on the host."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> "Remote":
        made: Remote = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            here.shape,
            here.stride(),
            here.storage_offset(),
            dtype=here.dtype,
            device=ELSEWHERE,
            requires_grad=False,
        )
        made.here = here
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.here.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"Remote({self.here!r})"


_generators: WeakValueDictionary[int, "_AnyGenerator"] = WeakValueDictionary()


class _AnyGenerator(_Generator):
    """A generator that knows which device it is for."""

    away: bool

    def __new__(cls, device: torch.device | str = "cpu") -> "_AnyGenerator":
        made = super().__new__(cls, "cpu")
        made.away = torch.device(device).type == "elsewhere"
        _generators[made._cdata] = made  # torch wraps generators anew on their way to the dispatcher
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return ELSEWHERE if self.away else torch.device("cpu")


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})


def _dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    given = tree_flatten((args, kwargs))[0]
    remote = [a for a in given if isinstance(a, Remote)]
    local = [a for a in given if isinstance(a, Tensor) and not isinstance(a, Remote)]
    asked = kwargs.get("device")
    asked = None if asked is None else torch.device(asked)
    away = bool(remote) if asked is None else asked.type == "elsewhere"
    if remote and func not in _COPIES:
        _check_devices(func, args, local)
    for generator in (a for a in given if isinstance(a, _Generator)):
        known = _generators.get(generator._cdata, generator)
        if (known.device.type == "elsewhere") != away:
            raise RuntimeError(f"{func}: generator on {known.device}, numbers on {'elsewhere' if away else 'cpu'}")
    if func is _aten.copy_.default:
        away = isinstance(args[0], Remote)
    if func is _aten._pin_memory.default:
        return args[0]
    inner_args, inner_kwargs = tree_map_only(Remote, lambda t: t.here, (args, kwargs))
    if asked is not None:
        inner_kwargs["device"] = torch.device("cpu")
    inner_kwargs.pop("pin_memory", None)
    made = func(*inner_args, **inner_kwargs)
    if not away:
        return made
    made = tree_map(lambda t: Remote(t) if isinstance(t, Tensor) and not isinstance(t, Remote) else t, made)
    return return_and_correct_aliasing(func, args, kwargs, made)


def _check_devices(func: Any, args: tuple[Any, ...], local: list[Tensor]) -> None:
    """As torch on a GPU: the other device's tensors may be numbers, or indices into this one's."""
    if func in _INDEXING and isinstance(args[0], Remote):
        local = [t for t in local if not any(t is index for index in args[1])]
    strangers = [t for t in local if t.ndim > 0]
    if strangers:
        raise RuntimeError(
            f"{func}: expected all tensors on elsewhere:0, but one of shape {tuple(strangers[0].shape)} is on cpu"
        )


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    """Inside, "elsewhere" is a device; gives it. Not for more than one process, autocast or `torch.compile`."""
    module: Any = torch.elsewhere  # type: ignore[attr-defined]
    before = torch._C._only_lift_cpu_tensors(), torch.__future__.get_swap_module_params_on_conversion()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device=…) then asks the mode for its copy
    torch.__future__.set_swap_module_params_on_conversion(True)  # `.data = …` would leave `here` as it was
    module.open = True
    try:
        with mock.patch.object(torch, "Generator", _AnyGenerator), _Mode():
            yield ELSEWHERE
    finally:
        module.open = False
        torch._C._set_only_lift_cpu_tensors(before[0])
        torch.__future__.set_swap_module_params_on_conversion(before[1])
