"""Memory on the host that stays with the process between the steps of a loop.

glibc hands freed blocks above a threshold, at first 128 KiB, back to the system at once, and every new tensor then pays
for its pages again: at 64×3×32×32 in float64 that is most of the cost of a solver's step. The threshold follows the
largest such block freed so far, up to 32 MiB (mallopt(3), "dynamic mmap threshold"), so freeing one block of 24 MiB
that was never touched moves it there. Elsewhere this costs some microseconds and does nothing.
"""

from functools import cache

import torch

BLOCK = 24 << 20


@cache
def keep_freed_memory() -> None:
    """Let freed tensors of up to 24 MiB be used again by the next ones; the first call counts."""
    torch.empty(BLOCK, dtype=torch.uint8, device="cpu")
