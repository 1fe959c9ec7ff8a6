"""Seeds derived from seeds, and generators made of them. Only `host_seeded` and `seed_global` change a global
generator.

Two derivations: `derive_seed` mixes integers (numpy's SeedSequence), `hash_seed` hashes bytes (BLAKE2b). Both give
integers below 2⁶³ that depend on all of their arguments and are the same on every machine.
"""

import hashlib
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_GLOBAL_GENERATORS = threading.RLock()


def derive_seed(seed: int, *keys: int) -> int:
    """A 63-bit seed that depends on `seed` and on every key; all are integers ≥ 0."""
    return int(np.random.SeedSequence([seed, *keys]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def hash_seed(content: bytes) -> int:
    """A 63-bit seed that depends on every byte of `content`."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") >> 1


def generator(device: torch.device | str, seed: int, *keys: int) -> torch.Generator:
    """A generator on `device` that starts from `derive_seed(seed, *keys)`."""
    return torch.Generator(device).manual_seed(derive_seed(seed, *keys))


@contextmanager
def host_seeded(seed: int) -> Iterator[None]:
    """Inside the block, torch's global generator on the host starts from `seed`; afterwards it continues as before.

    It takes a tenth of the time of `torch.random.fork_rng` with `torch.manual_seed`, and leaves the generators of
    devices unchanged.
    """
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)


def seed_global(seed: int, device: torch.device) -> None:
    """Seed the global generators that modules on `device` (dropout) draw from; those of other devices are unchanged."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    if device.type in ("cpu", "cuda"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed takes longer than a small network's step
    else:
        torch.manual_seed(seed)


def seed_global_generators(seed: int) -> None:
    """Seed the global generators of random, numpy and torch (on the host, and on the current GPU if CUDA is in use)."""
    random.seed(seed)
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32])  # noqa: NPY002
    seed_global(seed, torch.device("cuda" if torch.cuda.is_initialized() else "cpu"))  # type: ignore[no-untyped-call]


@contextmanager
def global_generators_kept() -> Iterator[None]:
    """Restore the states of the generators that `seed_global_generators` seeds after the block.

    Only one thread at a time can be inside the block.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with _GLOBAL_GENERATORS, torch.random.fork_rng(devices=devices):
        python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
