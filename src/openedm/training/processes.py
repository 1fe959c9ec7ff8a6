"""The processes of a run, through accelerate, and what they share: work, and with FSDP2 also weights.

With FSDP2 (torch's `fully_shard`) each process holds a slice of every weight, gradient, moment and average along its
first axis, and all of one block's weights while that block computes. A step is that of one process; checkpoints hold
complete tensors, under the names and in the dtypes that one process writes. `fully_shard` itself rather than
accelerate's plugin, which works on accelerators only.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor, nn

from openedm.denoiser import Preconditioned
from openedm.optimisation import full_tensor
from openedm.training.model import Model

__all__ = ["full_copy", "full_state_dict", "make_accelerator", "placed_like", "shard", "share_of"]

Item = TypeVar("Item")
PATIENCE = timedelta(hours=12)
"""How long processes wait for one that works alone (fitting levels, training a classifier, writing a checkpoint): after
NCCL's default of ten minutes the job would be ended."""


def make_accelerator(*, tracker: str | None = None, folder: str | Path | None = None) -> Accelerator:
    """An `Accelerator` on the machine's GPUs if it has any, and over all processes that were started together.

    Without a GPU, accelerate joins the processes that `torchrun` started only with `cpu=True`. Precision
    and compilation are options of the run; accelerate's environment variables for them have no effect.

    Args:
        tracker: accelerate's name of a tracker; None for none.
        folder: where the tracker writes.
    """
    return Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision="no",
        dynamo_backend="no",
        log_with=tracker,
        project_dir=folder,
        kwargs_handlers=[InitProcessGroupKwargs(backend=None, timeout=PATIENCE)],
    )


def share_of(items: Sequence[Item], batch_size: int, rank: int, processes: int) -> list[Item]:
    """The items that one of several processes handles: every n-th whole batch of n processes.

    Batches are the same for any number of processes, so results are bit-identical to those of a single process: sums
    over batches of another size would be rounded differently.

    Args:
        items: all of them, the same on every process.
        batch_size: items in a batch, ≥ 1.
        rank: the process.
        processes: how many there are.
    """
    starts = range(rank * batch_size, len(items), processes * batch_size)
    return [item for start in starts for item in items[start : start + batch_size]]


def shard(modules: Iterable[nn.Module], device: torch.device, processes: int) -> None:
    """Keep a slice of all parameters of these modules on each process, in place. Buffers are not sharded.

    Args:
        modules: the same on all processes; each is called as a whole or not at all.
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


def full_state_dict(tensors: Mapping[str, Tensor], *, keep: bool = True) -> dict[str, Tensor]:
    """The tensors, sharded ones complete and on the host; they are gathered one after the other.

    Args:
        tensors: with the same names on all processes, all of which must call.
        keep: whether this process needs them; if not, it only sends its slices and returns nothing.
    """
    found = {}
    for name, tensor in tensors.items():
        full = full_tensor(tensor)
        if keep:
            found[name] = tensor if full is tensor else full.cpu()
    return found


def placed_like(reference: Tensor, value: Tensor) -> Tensor:
    """`value`, complete on every process, sharded as `reference` is: this process's slice of it, or `value` itself."""
    if not (hasattr(reference, "device_mesh") and hasattr(reference, "placements")):
        return value
    from torch.distributed.tensor import distribute_tensor

    local = value.to(reference.device, reference.dtype)
    return distribute_tensor(local, reference.device_mesh, reference.placements, src_data_rank=None)


def full_copy(denoiser: Preconditioned, model: Model) -> Preconditioned:
    """A frozen denoiser in evaluation mode with the complete weights of a sharded one; all processes must call.

    Args:
        denoiser: the sharded one.
        model: its description.
    """
    weights = full_state_dict(denoiser.network.state_dict())
    copy = model.build()
    copy.network.load_state_dict(weights)
    device = next(denoiser.parameters()).device
    return copy.to(device).eval().requires_grad_(False)
