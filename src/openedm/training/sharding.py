"""Weights, gradients, moments and averages shared out among processes: torch's FSDP2, `fully_shard`.

Each process holds a slice of every tensor along its first axis, and the whole of one block's weights while that block
computes. A step is that of one process; in checkpoints all tensors are whole, under the names and in the dtypes that
one process writes. `fully_shard` itself rather than accelerate's plugin, which takes part on accelerators only.
"""

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

from openedm.denoiser import Preconditioned
from openedm.training.model import Model

if TYPE_CHECKING:  # half a second, which only runs that share out weights spend
    from torch.distributed.tensor import DTensor


def shard(modules: Iterable[nn.Module], device: torch.device, processes: int) -> None:
    """Keep a slice of all parameters of these modules on each process, in place. Buffers stay whole.

    Args:
        modules: alike on all processes; each is called as a whole or not at all.
        device: where they are.
        processes: how many there are.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (processes,))
    for module in modules:
        module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # fully_shard takes no other
        for block in _blocks(module):
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)


def _blocks(module: nn.Module) -> list[nn.Module]:
    """The elements of innermost lists: those of outer ones fill lists that they are given, and would fill copies."""
    elements = [block for parent in module.modules() if isinstance(parent, nn.ModuleList) for block in parent]
    return [block for block in elements if not any(isinstance(inner, nn.ModuleList) for inner in block.modules())]


def _is_shared_out(tensor: Tensor) -> "TypeGuard[DTensor]":
    module = sys.modules.get("torch.distributed.tensor")  # before it was imported there are none
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that is shared out, on every process, all of which must ask; another tensor as it is."""
    return tensor.full_tensor() if _is_shared_out(tensor) else tensor


def gathered(tensors: Mapping[str, Tensor], *, keep: bool = True) -> dict[str, Tensor]:
    """The tensors, with those that are shared out whole and on the host; one after the other.

    Args:
        tensors: alike on all processes, all of which must ask.
        keep: whether this process wants them; else it only gives its slices.
    """
    found = {}
    for name, tensor in tensors.items():
        entire = whole(tensor)
        if keep:
            found[name] = entire.cpu() if _is_shared_out(tensor) else tensor
    return found


def placed_like(mine: Tensor, value: Tensor) -> Tensor:
    """`value`, whole, as `mine` is: this process's slice of it where `mine` is shared out. Every process has it all."""
    if not _is_shared_out(mine):
        return value
    from torch.distributed.tensor import distribute_tensor

    local = value.to(mine.device, mine.dtype)
    return distribute_tensor(local, mine.device_mesh, mine.placements, src_data_rank=None)


def whole_copy(denoiser: Preconditioned, model: Model) -> Preconditioned:
    """A frozen denoiser in evaluation mode with all the weights of one that is shared out; all processes must ask.

    Args:
        denoiser: shared out.
        model: its description.
    """
    weights = gathered(denoiser.network.state_dict())
    copy = model.build()
    copy.network.load_state_dict(weights)
    device = next(denoiser.parameters()).device
    return copy.to(device).eval().requires_grad_(False)
