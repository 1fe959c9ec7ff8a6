"""One method on one task: a process of its own environment, what it measured, and how right its samples are."""

import json
import math
import os
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.inference.exchange import LOG_NORMAL, NORMAL, UNIFORM, Simulations
from benchmarks.inference.methods import Method
from torch import Tensor

from openedm.inference import tasks
from openedm.inference.priors import Box, LogNormal, Normal
from openedm.metrics import c2st

Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What a row depends on beside its task and method.

    Attributes:
        simulations: how many.
        seed: of the simulations, of training and of drawing.
        samples: drawn for each observation.
        threads: of every method.
        limit: CPU seconds that drawing for one observation may take.
    """

    simulations: int
    seed: int
    samples: int
    threads: int
    limit: float


def simulate(name: str, observed: Tensor, settings: Settings) -> Simulations:
    """The simulations that every method is given, and the observations (5, dx)."""
    task = tasks.get(name)
    theta = task.prior.sample(settings.simulations, seed=2 * settings.seed)
    x = task.simulate(theta, seed=2 * settings.seed + 1)
    return Simulations(name, theta.numpy(), x.numpy(), observed.numpy(), *described(task.prior))


def described(prior: Any) -> tuple[str, np.ndarray, np.ndarray]:
    """A prior as a word and two arrays."""
    if isinstance(prior, Box):
        return UNIFORM, np.asarray(prior.low), np.asarray(prior.high)
    if isinstance(prior, LogNormal):
        return LOG_NORMAL, np.asarray(prior.loc), np.asarray(prior.scale)
    assert isinstance(prior, Normal), prior
    covariance = np.diag(np.square(prior.std)) if prior.covariance is None else prior.covariance
    return NORMAL, np.asarray(prior.mean), np.asarray(covariance)


def run(method: Method, simulations: Simulations, budget: float, settings: Settings, folder: Path) -> Row:
    """Train and draw in a process; the files of a method are left in `folder`.

    A process that hangs where signals do not reach it is ended after several times what it was allowed.
    """
    folder.mkdir()
    simulations.save(folder / "simulations.npz")
    options = {"module": method.module, "budget": budget, "samples": settings.samples, "limit": settings.limit}
    options["seed"] = settings.seed
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    patience = 600 + 4 * budget + 2 * settings.limit * len(simulations.observations)
    row: Row = {}
    with (folder / "log").open("w", encoding="utf-8") as log:
        try:
            ended = subprocess.run(
                [method.python, "-m", "benchmarks.inference.worker", method.name, folder, *flags],
                cwd=folder,
                env=environment(settings.threads),
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=patience if math.isfinite(patience) else None,
            )
        except subprocess.TimeoutExpired:
            row["failed"] = f"ended after {patience:.0f} s"
        else:
            if ended.returncode:
                row["failed"] = last_line(folder / "log") or f"exit status {ended.returncode}"
    if "failed" in row:
        row["log"] = (folder / "log").read_text(encoding="utf-8", errors="replace")[-2000:]
    report = folder / "report.json"
    if report.exists():
        row.update(json.loads(report.read_text(encoding="utf-8")))
    return row


def environment(threads: int) -> dict[str, str]:
    """The variables that keep every library to as many threads; NPROC and XLA_FLAGS are JAX's."""
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC")
    return {
        **os.environ,
        **dict.fromkeys(counts, str(threads)),
        "OMP_WAIT_POLICY": "PASSIVE",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false" if threads == 1 else "",
        "PYTHONPATH": os.getcwd(),
    }


def last_line(log: Path) -> str:
    """What a failed process said last."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][-200:] if lines else ""


def judged(row: Row, folder: Path, references: Tensor) -> Row:
    """The row with the C2ST of every observation whose samples are there, None for others, and the medians of times."""
    draws = row.pop("draws", [])
    scores: list[float | None] = []
    for i, reference in enumerate(references):
        path = folder / f"samples_{i}.npy"
        if not path.exists():
            scores.append(None)
            continue
        samples = torch.as_tensor(np.load(path, allow_pickle=False))
        finite = samples[samples.isfinite().all(dim=1)]
        if len(finite) < len(samples):
            row["not_finite"] = row.get("not_finite", 0) + len(samples) - len(finite)
        scores.append(c2st(finite, reference[: len(finite)]) if len(finite) > len(samples) / 2 else None)
    found = [score for score in scores if score is not None]
    done = [draw for draw in draws if draw["status"] == "done"]
    return {
        **row,
        "c2st": scores,
        "c2st_mean": statistics.fmean(found) if found else None,
        "c2st_sd": statistics.stdev(found) if len(found) > 1 else None,
        "stalled": sum(draw["status"] == "stalled" for draw in draws),
        "sample_cpu": statistics.median(draw["cpu"] for draw in done) if done else None,
        "sample_wall": statistics.median(draw["wall"] for draw in done) if done else None,
        "draw_cpu": [draw["cpu"] for draw in draws],
    }
