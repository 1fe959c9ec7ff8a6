"""`openedm inference benchmark`: simulate, fit, sample and score on the tasks of sbibm."""

import json
import math
import os
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from openedm.cli.inference.choosing import FRESH, gathered, new_file, settings_of, tasks_of
from openedm.cli.inference.progress import Stages
from openedm.cli.inference.reporting import machine, peak_mib, table, timed
from openedm.ground import checks
from openedm.ground.storage import replacing
from openedm.inference.calibration import calibrate
from openedm.inference.fitting import fit
from openedm.inference.simulation import simulate
from openedm.inference.tasks import Observations, Task
from openedm.inference.tasks import observations as read_observations
from openedm.inference.trained import DenoiserPosterior
from openedm.metrics import c2st

spelled_out = gathered


def benchmark(
    task: str = "all",
    simulations: int = 10_000,
    observations: str | None = None,
    first: int | None = None,
    num_samples: int = 10_000,
    seed: int = 0,
    calibration: int = 0,
    calibration_samples: int = 200,
    settings: str | None = None,
    out: str | None = None,
    posteriors: str | None = None,
) -> None:
    """Simulate, fit, sample and score on the benchmark tasks of sbibm (Lueckmann et al. 2021).

    The score is C2ST against reference samples of the posterior: the accuracy of a classifier that tells them from
    ours, 0.5 for perfect samples, 1 for useless ones. Ctrl-C ends it after writing what is done.

    Args:
        task: names of tasks with commas between, or all.
        simulations: how many are drawn for each task.
        observations: a folder with <task>.npz each, arrays observations, true_parameters and reference_samples; the
            folder sbibm in the one that OPENEDM_GOLDEN names (default ../shared) if none is given.
        first: take the first few observations alone.
        num_samples: drawn for each observation, and taken of its reference samples.
        seed: of simulations, fit and samples.
        calibration: test by SBC and TARP on so many fresh simulations, too; at least 20, or 0 for not.
        calibration_samples: posterior samples for each of them.
        settings: what is to differ from the rule by which a fit is made, such as --settings.images 1000000; or a YAML
            file of such fields.
        out: a JSON file for all numbers, with versions and machine; renewed after each task.
        posteriors: a folder to keep the posteriors in, one folder a task.
    """
    chosen, target, folder = tasks_of(task), new_file("out", out, (".json",)), _folder(observations)
    for name, value in (("simulations", simulations), ("num_samples", num_samples), ("first", first)):
        checks.at_least(name, 1 if value is None else value, 1)
    checks.at_least("calibration_samples", calibration_samples, 1)
    if calibration:
        checks.at_least("calibration", calibration, 20)
    known = {one.name: _taken(read_observations(one.name, folder), first, num_samples) for one in chosen}
    for one in chosen:
        if posteriors is not None and (Path(posteriors) / one.name).exists():
            raise ValueError(f"posteriors: {Path(posteriors) / one.name} exists already and is never overwritten")
        settings_of(settings, simulations, one.dim, one.x_shape)
    content: dict[str, Any] = {"machine": machine(), "seed": seed, "simulations": simulations, "tasks": []}
    rows: list[dict[str, Any]] = content["tasks"]
    try:
        for one in chosen:
            with Stages() as stages:
                row, posterior = _fitted(one, simulations, seed, settings, stages)
                if posteriors is not None:
                    posterior.save(Path(posteriors) / one.name)
                row |= _scored(posterior, known[one.name], seed, stages)
                if calibration:
                    row |= _calibrated(posterior, one, calibration, calibration_samples, seed, stages)
            rows.append(row)
            print(f"{one.name}: C2ST {' '.join(f'{v:.3f}' for v in row['c2st'])}, chosen: {row['report']['chosen']}")
            if target is not None:
                _write(target, content)
    finally:
        if rows:
            print(f"\n{_table(rows)}")
    if target is not None:
        print(f"all numbers: {target}")


def _folder(observations: str | None) -> Path:
    folder = (
        Path(os.environ.get("OPENEDM_GOLDEN", "../shared")) / "sbibm" if observations is None else Path(observations)
    )
    if not folder.is_dir():
        raise ValueError(
            f"observations must be a folder with the observations and reference samples of sbibm, one <task>.npz a "
            f"task, got {str(folder)!r}; give one, or name the folder above it by OPENEDM_GOLDEN"
        )
    return folder


def _taken(observations: Observations, first: int | None, num_samples: int) -> Observations:
    if observations.reference.shape[1] < num_samples:
        raise ValueError(
            f"num_samples must be <= {observations.reference.shape[1]}, the reference's, got {num_samples}"
        )
    x, theta, reference = (part[:first] for part in observations)
    return Observations(x, theta, reference[:, :num_samples])


def _fitted(
    task: Task, simulations: int, seed: int, changes: str | None, stages: Stages
) -> tuple[dict[str, Any], DenoiserPosterior]:
    drawn, simulating = timed(lambda: simulate(task.simulate, task.prior, simulations, seed=seed, batched=True))
    settings = settings_of(changes, simulations, task.dim, task.x_shape)
    posterior, fitting = timed(
        lambda: fit(drawn.theta, drawn.x, task.prior, seed=seed, settings=settings, progress=stages)
    )
    row = {"task": task.name, "simulate_seconds": simulating, "fit_seconds": fitting, "report": posterior.report}
    return row, posterior


def _scored(posterior: DenoiserPosterior, known: Observations, seed: int, stages: Stages) -> dict[str, Any]:
    scores, seconds, plain_scores, plain_seconds = [], [], [], []
    n = known.reference.shape[1]
    for i, (x, reference) in enumerate(zip(known.x, known.reference, strict=True)):
        samples, took = timed(partial(posterior.sample, x, n, seed=seed))
        seconds.append(took)
        scores.append(c2st(samples, reference))
        if posterior.refined:
            samples, took = timed(partial(posterior.plain().sample, x, n, seed=seed))
            plain_scores.append(c2st(samples, reference))
        plain_seconds.append(took)
        stages("scoring", (i + 1) / len(known.x))
    points = known.reference[0, :1000]
    density, density_seconds = timed(lambda: posterior.log_prob(points, known.x[0]))
    return {
        "c2st": scores,
        "c2st_mean": statistics.fmean(scores),
        "c2st_sd": statistics.stdev(scores) if len(scores) > 1 else None,
        "c2st_plain": plain_scores or scores,
        "sample_seconds_per_10000": statistics.fmean(seconds) * 10_000 / n,
        "sample_seconds_per_10000_plain": statistics.fmean(plain_seconds) * 10_000 / n,
        "log_prob_seconds_per_1000": density_seconds * 1000 / len(points),
        "log_prob_of_reference": float(density.double().mean()),
        "peak_mib": peak_mib(),
    }


def _calibrated(
    posterior: DenoiserPosterior, task: Task, count: int, num_samples: int, seed: int, stages: Stages
) -> dict[str, Any]:
    fresh = simulate(task.simulate, task.prior, count, seed=FRESH + seed, batched=True)
    stages("calibrating", 0.0)
    found, seconds = timed(lambda: calibrate(posterior, fresh.theta, fresh.x, num_samples=num_samples, seed=seed))
    return {
        "sbc_p_values": found.sbc_p_values.tolist(),
        "tarp_p_value": found.tarp_p_value,
        "tarp_area": found.tarp_area,
        "calibration_seconds": seconds,
    }


def _table(rows: Sequence[dict[str, Any]]) -> str:
    observations = range(max(len(row["c2st"]) for row in rows))
    calibrated = any("tarp_p_value" in row for row in rows)
    header = ["task", "C2ST", "± sd", *(f"{i + 1}" for i in observations), "plain", "fit s", "10k s", "plain s"]
    header += ["1k log_prob s", "peak MiB", *(["SBC p", "TARP p"] if calibrated else []), "held-out", "chosen"]
    lines = []
    for row in rows:
        scores = [f"{v:.3f}" for v in row["c2st"]] + [""] * (len(observations) - len(row["c2st"]))
        numbers = [f"{row[name]:.1f}" for name in ("fit_seconds", *TIMES)] + [f"{row['peak_mib']:.0f}"]
        tests = []
        if calibrated:
            tests = (
                [f"{min(row['sbc_p_values']):.2g}", f"{row['tarp_p_value']:.2g}"] if "tarp_area" in row else ["", ""]
            )
        held = max(row["report"].get("held_out_log_prob", {"": math.nan}).values())
        spread = "" if row["c2st_sd"] is None else f"{row['c2st_sd']:.3f}"
        plain = f"{statistics.fmean(row['c2st_plain']):.3f}"
        mean = f"{row['c2st_mean']:.3f}"
        lines.append(
            [row["task"], mean, spread, *scores, plain, *numbers, *tests, f"{held:.3f}", row["report"]["chosen"]]
        )
    if len(rows) > 1:
        mean = f"{statistics.fmean(row['c2st_mean'] for row in rows):.3f}"
        lines.append(["mean", mean, *[""] * (len(header) - 2)])
    return table(header, lines)


TIMES = ("sample_seconds_per_10000", "sample_seconds_per_10000_plain", "log_prob_seconds_per_1000")


def _write(target: Path, content: dict[str, Any]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as path:
        path.write_text(json.dumps(_finite(content), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _finite(content: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
