"""What the comparison and the processes of its methods hand each other: arrays in npz files, never pickles.

It needs numpy alone, since the environments of peers have neither openedm nor, some of them, torch.
"""

import os
import resource
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

UNIFORM, NORMAL, LOG_NORMAL = "uniform", "normal", "log_normal"


@dataclass(frozen=True)
class Simulations:
    """All that a method is given.

    Attributes:
        task: its name.
        theta: parameters (n, d).
        x: what was simulated with them (n, dx).
        observations: to condition on (5, dx).
        prior: `UNIFORM`, `NORMAL` or `LOG_NORMAL`.
        first: low ends (d,); the mean (d,); the mean of ln θ (d,).
        second: high ends (d,); the covariance (d, d); the standard deviation of ln θ (d,).
    """

    task: str
    theta: Array
    x: Array
    observations: Array
    prior: str
    first: NDArray[np.float64]
    second: NDArray[np.float64]

    def save(self, path: Path) -> None:
        """Write to an npz file."""
        np.savez(path, **{name: np.asarray(value) for name, value in asdict(self).items()})

    @classmethod
    def load(cls, path: Path) -> "Simulations":
        """Read from an npz file."""
        with np.load(path, allow_pickle=False) as stored:
            fields = {name: stored[name] for name in cls.__dataclass_fields__}
        return cls(**{**fields, "task": str(fields["task"]), "prior": str(fields["prior"])})


class Trained(Protocol):
    """A posterior estimator after training.

    Attributes:
        notes: what is to be written down about its training: `stopped`, by "itself" or by the "budget", how far, and
            `uncounted_cpu`, seconds that were no training.
    """

    notes: dict[str, Any]

    def sample(self, x: Array, n: int, seed: int) -> Array:
        """Samples (n, d) of the posterior at an observation (dx,)."""
        ...


class Library(Protocol):
    """A module that can train the methods of a library."""

    PACKAGES: tuple[str, ...]

    def train(self, method: str, given: Simulations, budget: float, seed: int) -> Trained:
        """Train for at most about `budget` seconds of CPU."""
        ...


def cpu_seconds() -> float:
    """CPU seconds of this process, all of its threads and its finished children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def peak_mib() -> float:
    """The most memory this process has held, in MiB.

    Linux's ru_maxrss begins with the parent's at the moment it started this process; VmHWM begins with none.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    kilobyte = 1024 if os.uname().sysname == "Linux" else 1024**2
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / kilobyte
