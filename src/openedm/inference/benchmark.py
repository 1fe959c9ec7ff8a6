"""The benchmark of sbibm (Lueckmann et al. 2021): fit posteriors to the simulations of a task, and score them.

The score is C2ST against reference samples of the posterior: the accuracy of a classifier that tells the two apart, 0.5
for perfect samples, 1 for useless ones.
"""

import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from openedm import __version__
from openedm.ground.progress import Progress, ShowProgress, showing
from openedm.inference.calibration import calibrate
from openedm.inference.fitting import fit
from openedm.inference.settings import Settings
from openedm.inference.simulation import simulate
from openedm.inference.tasks import Observations, Task
from openedm.inference.tasks import observations as read_observations
from openedm.inference.trained import DenoiserPosterior
from openedm.metrics import c2st

__all__ = ["FRESH", "TIMES", "benchmark_task", "machine", "reference_folder", "references"]

FRESH = 2**31
"""Seeds of simulations that took no part in fitting are so much larger."""

TIMES = ("sample_seconds_per_10000", "sample_seconds_per_10000_plain", "log_prob_seconds_per_1000")
"""Times in the numbers of a task, beside `simulate_seconds`, `fit_seconds` and `calibration_seconds`."""

T = TypeVar("T")


def benchmark_task(
    task: Task,
    known: Observations,
    simulations: int = 10_000,
    *,
    settings: Settings | None = None,
    calibration: int = 0,
    calibration_samples: int = 200,
    keep: Path | None = None,
    seed: int = 0,
    progress: ShowProgress = None,
) -> dict[str, Any]:
    """Simulate, fit, sample and score one task; returns the numbers.

    Args:
        task: the benchmark task.
        known: observations with reference samples, see `references`.
        simulations: how many are drawn.
        settings: of the fit; None for the rule.
        calibration: also test by SBC and TARP on so many fresh simulations; 0 leaves it out.
        calibration_samples: posterior samples for each of them.
        keep: a folder to save the posterior in.
        seed: of simulations, fit and samples.
        progress: None shows a bar in a terminal or notebook, True always, False never; a function is called with a
            stage's name and the share of it that is done.
    """
    with showing(progress) as report:
        row, posterior = _fitted(task, simulations, seed, settings, report)
        if keep is not None:
            posterior.save(keep)
        row |= _scored(posterior, known, seed, report)
        if calibration:
            row |= _calibrated(posterior, task, calibration, calibration_samples, seed, report)
    return row


def reference_folder(observations: str | None = None) -> Path:
    """The folder of observations and reference samples; by default `sbibm` in the one that OPENEDM_GOLDEN names.

    Raises:
        ValueError: there is no such folder.
    """
    folder = (
        Path(os.environ.get("OPENEDM_GOLDEN", "../shared")) / "sbibm" if observations is None else Path(observations)
    )
    if not folder.is_dir():
        raise ValueError(
            f"observations must be a folder with the observations and reference samples of sbibm, one <task>.npz a "
            f"task, got {str(folder)!r}; give one, or name the folder above it by OPENEDM_GOLDEN"
        )
    return folder


def references(task: Task, folder: Path, num_samples: int, first: int | None = None) -> Observations:
    """The first few observations of a task, or all, with so many reference samples each.

    Raises:
        ValueError: the file is missing, or holds fewer reference samples.
    """
    observations = read_observations(task.name, folder)
    if observations.reference.shape[1] < num_samples:
        raise ValueError(
            f"num_samples must be <= {observations.reference.shape[1]}, the reference's, got {num_samples}"
        )
    x, theta, reference = (part[:first] for part in observations)
    return Observations(x, theta, reference[:, :num_samples])


def _fitted(
    task: Task, simulations: int, seed: int, settings: Settings | None, progress: Progress
) -> tuple[dict[str, Any], DenoiserPosterior]:
    drawn, simulating = _timed(
        lambda: simulate(task.simulate, task.prior, simulations, seed=seed, batched=True, progress=progress)
    )
    posterior, fitting = _timed(
        lambda: fit(drawn.theta, drawn.x, task.prior, seed=seed, settings=settings, progress=progress)
    )
    row = {"task": task.name, "simulate_seconds": simulating, "fit_seconds": fitting, "report": posterior.report}
    return row, posterior


def _scored(posterior: DenoiserPosterior, known: Observations, seed: int, progress: Progress) -> dict[str, Any]:
    scores, seconds, plain_scores, plain_seconds = [], [], [], []
    n = known.reference.shape[1]
    for i, (x, reference) in enumerate(zip(known.x, known.reference, strict=True)):
        samples, took = _timed(partial(posterior.sample, x, n, seed=seed))
        seconds.append(took)
        scores.append(c2st(samples, reference))
        if posterior.refined:
            samples, took = _timed(partial(posterior.plain().sample, x, n, seed=seed))
            plain_scores.append(c2st(samples, reference))
        plain_seconds.append(took)
        progress("scoring", (i + 1) / len(known.x))
    points = known.reference[0, :1000]
    density, density_seconds = _timed(lambda: posterior.log_prob(points, known.x[0]))
    return {
        "c2st": scores,
        "c2st_mean": statistics.fmean(scores),
        "c2st_sd": statistics.stdev(scores) if len(scores) > 1 else None,
        "c2st_plain": plain_scores or scores,
        "sample_seconds_per_10000": statistics.fmean(seconds) * 10_000 / n,
        "sample_seconds_per_10000_plain": statistics.fmean(plain_seconds) * 10_000 / n,
        "log_prob_seconds_per_1000": density_seconds * 1000 / len(points),
        "log_prob_of_reference": float(density.double().mean()),
        "peak_mib": _peak_mib(),
    }


def _calibrated(
    posterior: DenoiserPosterior, task: Task, count: int, num_samples: int, seed: int, progress: Progress
) -> dict[str, Any]:
    fresh = simulate(task.simulate, task.prior, count, seed=FRESH + seed, batched=True, progress=progress)
    progress("calibrating", 0.0)
    found, seconds = _timed(lambda: calibrate(posterior, fresh.theta, fresh.x, num_samples=num_samples, seed=seed))
    return {
        "sbc_p_values": found.sbc_p_values.tolist(),
        "tarp_p_value": found.tarp_p_value,
        "tarp_area": found.tarp_area,
        "calibration_seconds": seconds,
    }


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """What the work returns, and the seconds it took."""
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def machine() -> dict[str, Any]:
    """What something was measured on, with the versions."""
    return {
        "openedm": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def _peak_mib() -> float:
    """The most memory this process has held so far, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    kilobyte = 1024 if os.uname().sysname == "Linux" else 1024**2
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / kilobyte
