"""The processes of a run, through accelerate, and what each of them does of work that can be shared."""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

Item = TypeVar("Item")
PATIENCE = timedelta(hours=12)
"""How long processes wait for one that works alone (it fits levels, trains a classifier, writes a checkpoint): with
NCCL's ten minutes the job would end."""


def make_accelerator(*, tracker: str | None = None, folder: str | Path | None = None) -> Accelerator:
    """An `Accelerator` on the machine's GPUs if it has any, and over all processes that were started together.

    Without a GPU, accelerate joins the processes that `torchrun` started only if it is told to use the CPU. Precision
    and compilation are options of the run; what accelerate's environment variables say of them is not heard.

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
    """The items that fall to one of n processes: every n-th whole batch.

    Batches are the same for any number of processes, and so is what is computed from them, to the last bit: sums over
    batches of another size are rounded in other places.

    Args:
        items: all of them, alike on every process.
        batch_size: as the work is done; ≥ 1.
        rank: the process.
        processes: how many there are.
    """
    starts = range(rank * batch_size, len(items), processes * batch_size)
    return [item for start in starts for item in items[start : start + batch_size]]
