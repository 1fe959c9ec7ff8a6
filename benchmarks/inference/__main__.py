"""Posterior estimation compared: openedm's, NPE, NPSE and FMPE of sbi, EDM of GenSBI, each in its own environment.

    python -m benchmarks.inference --tasks two_moons slcp --simulations 10000 --observations-folder ../shared/sbibm

`make bench-inference` makes the environments and runs everything. Every method is given the same simulations, threads
and CPU time, and measured by the same C2ST; a run that was ended goes on where it was. See benchmarks/README.md.
"""

import argparse
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from benchmarks.common import machine, write_json
from benchmarks.inference import report
from benchmarks.inference.methods import DEFAULT, METHODS, OURS, Method
from benchmarks.inference.running import Row, Settings, judged, run, simulate

from openedm.inference import tasks

TASKS = tasks.names()


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="NAME", help=", ".join(TASKS))
    parser.add_argument("--simulations", type=int, default=10_000, help="how many (%(default)s)")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        metavar="NAME",
        default=list(DEFAULT),
        help=f"{', '.join(METHODS)} (all but gensbi-flux1)",
    )
    parser.add_argument("--observations-folder", type=Path, default=Path("../shared/sbibm"), help="%(default)s")
    parser.add_argument(
        "--budget",
        default="ours",
        help="CPU seconds for the training of each peer; 'ours', as many as openedm took; 'none' (%(default)s)",
    )
    parser.add_argument("--samples", type=int, default=10_000, help="drawn for each observation (%(default)s)")
    parser.add_argument("--limit", type=float, default=300, help="CPU seconds for drawing them (%(default)g)")
    parser.add_argument("--threads", type=int, default=1, help="of every method (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="%(default)s")
    parser.add_argument(
        "--again", nargs="*", choices=METHODS, metavar="NAME", default=[], help="run these though --out has them"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/inference.json"), help="%(default)s")
    given = parser.parse_args()
    if given.budget not in ("ours", "none"):
        try:
            given.budget = float(given.budget)
        except ValueError:
            parser.error(f"--budget must be 'ours', 'none' or a number of seconds, got {given.budget!r}")
    if not 100 <= given.samples <= 10_000:
        parser.error(f"--samples must be between 100 and 10000, as many as the references have, got {given.samples}")
    for name in given.tasks:
        if not (given.observations_folder / f"{name}.npz").exists():
            parser.error(f"--observations-folder must have {name}.npz, got {given.observations_folder}")
    for name in given.methods:
        if not METHODS[name].python.exists():
            parser.error(f"{name} needs {METHODS[name].python}: make bench-inference builds it, or leave {name} out")
    if given.budget == "ours" and OURS not in given.methods:
        parser.error(f"--budget ours needs {OURS} among --methods, or give a number of seconds")
    given.methods.sort(key=list(METHODS).index)
    return given


class Results:
    """The rows, on disk after every method, so that a run which was ended goes on.

    Attributes:
        rows: those of this run's settings.
    """

    def __init__(self, path: Path, described: dict[str, Any], again: list[str]) -> None:
        self.path = path
        self.described = described
        stored = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
        mine = [row for row in stored if described.items() <= row.items()]
        self.others = [row for row in stored if row not in mine]
        self.rows = [row for row in mine if row["method"] not in again and "failed" not in row]

    def find(self, task: str, method: str) -> Row | None:
        """A row, if it is there."""
        found = report.find(self.rows, task, method)
        return None if found is None else dict(found)

    def add(self, row: Row) -> None:
        """Add a row and write all."""
        self.rows.append(row)
        part = self.path.with_suffix(".part")
        write_json(part, {"machine": machine(), "rows": self.others + self.rows})
        os.replace(part, self.path)


def budget_of(given: argparse.Namespace, method: Method, ours: Row | None) -> float:
    """CPU seconds for training; openedm's own training has its own rule."""
    if given.budget == "none" or method.name == OURS:
        return math.inf
    return float(ours["train_cpu"] if ours is not None and given.budget == "ours" else given.budget)


def main() -> None:
    """Run, print, write."""
    given = arguments()
    torch.set_num_threads(given.threads)
    settings = Settings(given.simulations, given.seed, given.samples, given.threads, given.limit)
    described = {**vars(settings), "budget": given.budget}
    results = Results(given.out, described, given.again)
    print(f"{'':<26}{report.HEADER}", flush=True)
    for task in given.tasks:
        observed = tasks.observations(task, given.observations_folder)
        simulations = simulate(task, observed.x, settings)
        for name in given.methods:
            row = results.find(task, name)
            if row is None:
                budget = budget_of(given, METHODS[name], results.find(task, OURS))
                with tempfile.TemporaryDirectory() as folder:
                    run_in = Path(folder) / name
                    found = run(METHODS[name], simulations, budget, settings, run_in)
                    found = judged(found, run_in, observed.reference)
                row = {"task": task, "method": name, **described, "allowed_cpu": budget, **found}
                results.add(row)
            print(f"{task:<26}{report.line(row, results.find(task, OURS))}", flush=True)
            if given.budget == "ours" and "train_cpu" not in (results.find(task, OURS) or {}):
                print(f"{task:<26}without openedm's training its peers have no budget", flush=True)
                break
    chosen = [row for row in results.rows if row["task"] in given.tasks and row["method"] in given.methods]
    report.print_tables(sorted(chosen, key=lambda row: (TASKS.index(row["task"]), list(METHODS).index(row["method"]))))


if __name__ == "__main__":
    main()
