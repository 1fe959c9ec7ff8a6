"""The processes of a run, through accelerate: how they share the work and, with FSDP2, the weights.

With FSDP2 (torch's `fully_shard`) each process stores a slice of every weight, gradient, moment and average along its
first axis, and all weights of one block while that block computes. A step is that of a single process; checkpoints
contain complete tensors, with the names and dtypes of a single process. The plugin of accelerate is not used, because
it works on accelerators only.
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
from openedm.training.csv_tracker import CsvTracker
from openedm.training.model import Model

__all__ = ["full_copy", "full_state_dict", "make_accelerator", "shard", "shard_like", "share_of"]

Item = TypeVar("Item")
PROCESS_TIMEOUT = timedelta(hours=12)
"""How long processes wait for a single one (which fits levels, trains a classifier or writes a checkpoint); NCCL would
end the job after ten minutes."""


def make_accelerator(*, tracker: str | None = None, folder: str | Path | None = None) -> Accelerator:
    """An `Accelerator` on the machine's GPUs if it has any, and over all processes that were started together.

    Without a GPU, accelerate joins the processes that `torchrun` started only with `cpu=True`. Precision
    and compilation are options of the run; accelerate's environment variables for them have no effect.

    Args:
        tracker: accelerate's name of a tracker, or csv; None for none.
        folder: the folder of the tracker.
    """
    return Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision="no",
        dynamo_backend="no",
        log_with=CsvTracker(folder) if tracker == "csv" and folder is not None else tracker,
        project_dir=folder,
        kwargs_handlers=[InitProcessGroupKwargs(backend=None, timeout=PROCESS_TIMEOUT)],
    )


def share_of(items: Sequence[Item], batch_size: int, rank: int, processes: int) -> list[Item]:
    """The items that one of several processes handles: every n-th whole batch of n processes.

    Batches are the same for any number of processes, so results are bit-identical to those of a single process: sums
    over batches of another size would be rounded differently.

    Args:
        items: all items, the same on every process.
        batch_size: number of items in a batch, ≥ 1.
        rank: the number of this process.
        processes: the number of processes.
    """
    starts = range(rank * batch_size, len(items), processes * batch_size)
    return [item for start in starts for item in items[start : start + batch_size]]


def shard(modules: Iterable[nn.Module], device: torch.device, processes: int) -> None:
    """Keep a slice of all parameters of these modules on each process, in place. Buffers are not sharded.

    Args:
        modules: the modules, the same on all processes; each is only called as a whole.
        device: the device of the modules.
        processes: the number of processes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (processes,))
    for module in modules:
        module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # required by fully_shard
        for block in _blocks(module):
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)


def _blocks(module: nn.Module) -> list[nn.Module]:
    """The elements of innermost lists: outer ones append to lists that they receive, and would append to copies."""
    elements = [block for parent in module.modules() if isinstance(parent, nn.ModuleList) for block in parent]
    return [block for block in elements if not any(isinstance(inner, nn.ModuleList) for inner in block.modules())]


def full_state_dict(tensors: Mapping[str, Tensor], *, keep: bool = True) -> dict[str, Tensor]:
    """The tensors; sharded ones are complete and on the host, gathered one after the other.

    Args:
        tensors: the tensors, with the same names on all processes, all of which must call.
        keep: whether this process needs the result; if not, it only sends its slices and returns an empty dict.
    """
    found = {}
    for name, tensor in tensors.items():
        full = full_tensor(tensor)
        if keep:
            found[name] = tensor if full is tensor else full.cpu()
    return found


def shard_like(reference: Tensor, value: Tensor) -> Tensor:
    """`value`, complete on every process, sharded as `reference` is: this process's slice of it, or `value` itself."""
    if not (hasattr(reference, "device_mesh") and hasattr(reference, "placements")):
        return value
    from torch.distributed.tensor import distribute_tensor

    local = value.to(reference.device, reference.dtype)
    return distribute_tensor(local, reference.device_mesh, reference.placements, src_data_rank=None)


def full_copy(denoiser: Preconditioned, model: Model) -> Preconditioned:
    """A frozen denoiser in evaluation mode with the complete weights of a sharded one; all processes must call.

    Args:
        denoiser: the sharded denoiser.
        model: its description.
    """
    weights = full_state_dict(denoiser.network.state_dict())
    copy = model.build_on(next(denoiser.parameters()).device)
    copy.network.load_state_dict(weights)
    return copy.eval().requires_grad_(False)
