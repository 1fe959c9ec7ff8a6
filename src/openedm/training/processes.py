"""The processes of a run, through accelerate."""

from pathlib import Path

import torch
from accelerate import Accelerator


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
    )
