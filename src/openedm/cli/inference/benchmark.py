"""`openedm inference benchmark`: simulate, fit, sample and score on the tasks of sbibm."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openedm.cli.inference.arguments import settings_of, tasks_of
from openedm.cli.parsing import Changes
from openedm.cli.terminal import Bars, table
from openedm.ground import checks
from openedm.ground.storage import new_path, replace_nonfinite, write_json
from openedm.inference.benchmark import TIMES, benchmark_task, machine, reference_folder, references


def benchmark(
    task: str = "all",
    simulations: int = 10_000,
    observations: str | None = None,
    first: int | None = None,
    num_samples: int = 10_000,
    seed: int = 0,
    calibration: int = 0,
    calibration_samples: int = 200,
    settings: Changes | None = None,
    out: str | None = None,
    posteriors: str | None = None,
) -> None:
    """Simulate, fit, sample and score on the benchmark tasks of sbibm (Lueckmann et al. 2021).

    The score is C2ST against reference samples of the posterior: the accuracy of a classifier that distinguishes the
    two, 0.5 for perfect samples and 1 for the worst. After Ctrl-C the results of finished tasks are written.

    Args:
        task: names of tasks separated by commas, or all.
        simulations: number of simulations for each task.
        observations: a folder with <task>.npz each, arrays observations, true_parameters and reference_samples; the
            folder sbibm in the one that OPENEDM_GOLDEN names (default ../shared) if none is given.
        first: number of observations, the first ones; by default all.
        num_samples: number of samples for each observation, and of reference samples.
        seed: seed of simulations, fit and samples.
        calibration: number of new simulations for tests by SBC and TARP, at least 20; 0 for no tests.
        calibration_samples: number of posterior samples for each of them.
        settings: settings that differ from the rule, such as --settings.images 1000000; or a YAML file of such fields.
        out: a JSON file for all numbers, with versions and machine; rewritten after each task.
        posteriors: a folder for the posteriors, with one folder a task.
    """
    for name, value in (("simulations", simulations), ("num_samples", num_samples), ("first", first)):
        checks.at_least(name, 1 if value is None else value, 1)
    checks.at_least("calibration_samples", calibration_samples, 1)
    if calibration:
        checks.at_least("calibration", calibration, 20)
    chosen, target, folder = tasks_of(task), new_path("out", out, [".json"]), reference_folder(observations)
    known = {item.name: references(item, folder, num_samples, first) for item in chosen}
    changed = {item.name: settings_of(settings, simulations, item.dim, item.x_shape) for item in chosen}
    kept = {item.name: None if posteriors is None else Path(posteriors) / item.name for item in chosen}
    for path in kept.values():
        new_path("posteriors", path, what="a posterior")
    content: dict[str, Any] = {"machine": machine(), "seed": seed, "simulations": simulations, "tasks": []}
    rows: list[dict[str, Any]] = content["tasks"]
    try:
        for item in chosen:
            with Bars() as bars:
                row = benchmark_task(
                    item,
                    known[item.name],
                    simulations,
                    settings=changed[item.name],
                    calibration=calibration,
                    calibration_samples=calibration_samples,
                    keep=kept[item.name],
                    seed=seed,
                    progress=bars,
                )
            rows.append(row)
            print(f"{item.name}: C2ST {' '.join(f'{v:.3f}' for v in row['c2st'])}, chosen: {row['report']['chosen']}")
            if target is not None:
                write_json(target, replace_nonfinite(content))
    finally:
        if rows:
            print(f"\n{_table(rows)}")
    if target is not None:
        print(f"all numbers: {target}")


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
