"""The random state of a run as a function of its seed and its step: nothing to save, nothing to restore.

Every step derives its generators anew. Each process draws the noise of the whole batch and keeps its own rows, so that
the numbers do not depend on how many processes share the batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

DATA, LEVELS, NOISE, DROPOUT, VALIDATION, ITEMS, AUGMENT = range(7)


def derived_seed(seed: int, *keys: int) -> int:
    """A 63-bit seed that depends on all of its arguments (numpy's SeedSequence mixes them)."""
    return int(np.random.SeedSequence([seed, *keys]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(device: torch.device, seed: int, *keys: int) -> torch.Generator:
    """A generator on `device` that depends on the seed and the keys."""
    return torch.Generator(device).manual_seed(derived_seed(seed, *keys))


@contextmanager
def host_seeded(seed: int) -> Iterator[None]:
    """Torch's global generator on the host starts from `seed` inside, and goes on as before afterwards.

    A tenth of the time of `torch.random.fork_rng` and `torch.manual_seed`, and generators of devices are left alone.
    """
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)


def seed_global(seed: int, device: torch.device) -> None:
    """Seed the global generators that modules on `device` draw from; those of other devices are left alone."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    if device.type in ("cpu", "cuda"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed takes longer than a small network's step
    else:
        torch.manual_seed(seed)


@lru_cache(maxsize=2)
def _order(seed: int, length: int, epoch: int) -> Int64[Tensor, "length"]:
    return torch.randperm(length, generator=generator(torch.device("cpu"), seed, DATA, epoch))


def batch_indices(seed: int, length: int, start: int, count: int) -> Int64[Tensor, "count"]:
    """Which samples of a dataset of `length` are the `start`-th, (start+1)-th, … that training sees.

    Each pass over the data is a random permutation of it, a function of the seed and the number of the pass.
    """
    parts, position = [], start
    while position < start + count:
        epoch, offset = divmod(position, length)
        taken = min(length - offset, start + count - position)
        parts.append(_order(seed, length, epoch)[offset : offset + taken])
        position += taken
    return torch.cat(parts)
