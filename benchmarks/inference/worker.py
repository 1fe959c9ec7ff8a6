"""Trains a method on stored simulations and draws from it, in the environment of the method.

    python -m benchmarks.inference.worker METHOD FOLDER --module NAME --budget SECONDS --samples 10000 --limit SECONDS

FOLDER has simulations.npz; samples_0.npy … and report.json are written there, after every observation.
"""

import argparse
import importlib
import json
import os
import platform
import signal
import time
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from benchmarks.inference.exchange import Library, Simulations, Trained, cpu_seconds, peak_mib

REPORT = "report.json"


class Stalled(Exception):
    """Raised when drawing takes longer than is allowed."""


def stop(number: int, frame: FrameType | None) -> None:
    """End what is running."""
    raise Stalled


def write(folder: Path, report: dict[str, Any]) -> None:
    """Write the report at once or not at all: this process may be ended at any time."""
    part = folder / (REPORT + ".part")
    part.write_text(json.dumps(report), encoding="utf-8")
    os.replace(part, folder / REPORT)


def draw(trained: Trained, x: np.ndarray, given: argparse.Namespace, number: int) -> dict[str, Any]:
    """Draw for one observation within `--limit` seconds of CPU; write the samples."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    status = "done"
    signal.setitimer(signal.ITIMER_PROF, given.limit)
    try:
        samples = trained.sample(x, given.samples, given.seed + number)
    except Stalled:
        status = "stalled"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    row = {"status": status, "cpu": cpu_seconds() - cpu, "wall": time.perf_counter() - wall}
    if status == "done":
        np.save(given.folder / f"samples_{number}.npy", np.asarray(samples, np.float32), allow_pickle=False)
    return row


def main() -> None:
    """Train, draw, report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("method")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--module", required=True)
    parser.add_argument("--budget", type=float, required=True)
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--limit", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    given = parser.parse_args()
    signal.signal(signal.SIGPROF, stop)
    simulations = Simulations.load(given.folder / "simulations.npz")
    library: Library = importlib.import_module(given.module)
    versions = {name: metadata.version(name) for name in library.PACKAGES}
    report: dict[str, Any] = {"versions": {"python": platform.python_version(), **versions}, "start_mib": peak_mib()}
    cpu, wall = cpu_seconds(), time.perf_counter()
    trained = library.train(given.method, simulations, given.budget, given.seed)
    report["train_cpu"] = cpu_seconds() - cpu - trained.notes.get("uncounted_cpu", 0)
    report["train_wall"] = time.perf_counter() - wall
    report.update(trained.notes, train_mib=peak_mib(), draws=[])
    write(given.folder, report)
    for i, x in enumerate(simulations.observations):
        report["draws"].append(draw(trained, x, given, i))
        report["peak_mib"] = peak_mib()
        write(given.folder, report)


if __name__ == "__main__":
    main()
