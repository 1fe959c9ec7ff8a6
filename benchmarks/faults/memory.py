"""Peak memory of sampling and evaluating N and 8 N samples with a tiny network: what is drawn is not held."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.faults.processes import Command

HEADER = ("command", "samples", "MB of them", "peak MB", "8 times as many", "MB of them all", "peak MB of all", "ratio")
TIMES, DIM = 8, 9216
MAX_SHARE = 0.1
"""The most that the peak may grow by, as a part of what the further samples have; features and labels are kept."""

TRAINED = ["train", "run", "--data=Arrays", "--data.path=data.npy", "--network=MLP", "--network.width=8"]
TRAINED += ["--network.num_blocks=1", "--options.images=64", "--options.batch_size=64", "--options.rampup=0"]
TRAINED += ["--options.snapshot_every=0", "--options.validate_every=0", "--tracker=none"]
DRAWN = ["--nfe=3", "--batch_size=50"]
COMMANDS = {
    "sample npz": lambda n: ["sample", "run", f"{n}.npz", f"--seeds=0-{n - 1}", *DRAWN],
    "evaluate": lambda n: ["evaluate", "run", "--data=Arrays", "--data.path=data.npy", f"--num={n}", *DRAWN],
}


def measure(line: Sequence[str], folder: Path) -> float:
    """The peak memory of a command in MB; RuntimeError if it fails."""
    ended = Command(line, folder).wait()
    if ended.status:
        raise RuntimeError(f"{' '.join(line)}: {ended.printed}")
    return ended.peak / 1e6


def prepare(folder: Path) -> None:
    """Data of vectors, and a network that was trained on them for a step."""
    folder.mkdir(parents=True)
    np.save(folder / "data.npy", np.random.default_rng(0).normal(size=(64, DIM)).astype(np.float32))
    measure(TRAINED, folder)


def run(root: Path, count: int, seed: int, only: Sequence[str]) -> list[dict[str, Any]]:
    """One row a command, at `count` samples and at eight times as many."""
    prepare(root)
    rows = []
    for name, line in COMMANDS.items():
        if only and name not in only:
            continue
        few, all_ = (measure(line(n), root) for n in (count, TIMES * count))
        size = 4 * DIM * count / 1e6
        values = (name, count, size, few, TIMES * count, TIMES * size, all_, all_ / few)
        shown = (value if isinstance(value, int | str) else round(value, 2) for value in values)
        row: dict[str, Any] = dict(zip(HEADER, shown, strict=True))
        grown = all_ - few > MAX_SHARE * (TIMES - 1) * size
        row["problems"] = [f"{name}: {TIMES * count} samples take {all_ - few:.0f} MB more than {count}"] * grown
        rows.append(row)
        with contextlib.suppress(FileNotFoundError):
            (root / f"{TIMES * count}.npz").unlink()
    return rows
