"""What depends on a device: where a module is, the dtype of numbers that should be float64, and process-wide settings.

The settings at the end change the whole process. Library functions call none of them. The command line does, in
`openedm.cli.main`, and other programs may.
"""

from functools import cache

import torch
from torch import Tensor, nn

MAX_KEPT_BYTES = 24 << 20


def device_of(module: nn.Module, default: Tensor | None = None) -> torch.device:
    """The device of the module's first parameter or buffer; without any, that of `default`, or the host."""
    tensor = next(module.parameters(), next(module.buffers(), default))
    return torch.device("cpu") if tensor is None else tensor.device


def has_float64(device: torch.device) -> bool:
    """Whether the device computes in float64, which Apple's `mps` does not."""
    return device.type != "mps"


def float64_on(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that does not have it."""
    return torch.float64 if has_float64(device) else torch.float32


@cache
def keep_freed_memory() -> None:
    """Let the process keep freed host tensors of up to 24 MiB for the next ones; only the first call has an effect.

    glibc returns freed blocks above a threshold, at first 128 KiB, to the system at once, and every new tensor then
    needs new pages: at 64×3×32×32 in float64 they are most of the cost of a solver's step. The threshold follows the
    largest such block freed so far, up to 32 MiB (mallopt(3), "dynamic mmap threshold"), so freeing one block of 24
    MiB, never written to, raises it to 24 MiB. On other systems the call has no effect.
    """
    torch.empty(MAX_KEPT_BYTES, dtype=torch.uint8, device="cpu")


def use_full_float32() -> None:
    """Let GPUs convolve in float32 instead of TF32, torch's default.

    Adaptive steps, fitted levels and likelihoods compare numbers that are closer than TF32's rounding of 10⁻³.
    """
    torch.backends.cudnn.allow_tf32 = False
