"""Solvers compared on exact denoisers: openedm's and, unless --no-peers, those of peer libraries, in one process.

    python -m benchmarks.solvers [--what accuracy tolerance] [--problems gmm2d lowrank64] [--nfe 8 12] [--no-peers]

`make bench-solvers` installs the peers into an environment of their own and runs everything there. See
benchmarks/README.md.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from benchmarks.common import machine, write_json
from benchmarks.solvers import measure, ours, report
from benchmarks.solvers.methods import Method
from benchmarks.solvers.overhead import overhead
from benchmarks.solvers.problems import FACTORIES, Problem, problem

from openedm.plots import save_figure

WHAT = ("accuracy", "tolerance", "distribution", "overhead")
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5)
PLANAR = ("gmm2d", "spike2d")
"""Where the energy distance is measured: samples of two dimensions show it without many."""

QUICK = ("gmm2d", "lowrank64", "posterior5d")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", choices=WHAT, default=list(WHAT), help="which measurements")
    parser.add_argument("--problems", nargs="+", choices=list(FACTORIES), default=list(FACTORIES), metavar="NAME")
    parser.add_argument("--nfe", nargs="+", type=int, default=[8, 12, 18, 35, 79], help="budgets")
    parser.add_argument("--tolerance", nargs="+", type=float, default=list(TOLERANCES), help="of adaptive solvers")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="compare with peers")
    parser.add_argument("--only", metavar="TEXT", help="only solvers that have this in their title")
    parser.add_argument("--quick", action="store_true", help="three problems, three budgets, short timings")
    parser.add_argument("--seconds", type=float, default=20.0, help="measuring time of the overhead at each size")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    parser.add_argument("--figure", type=Path, help="write the figure to this file")
    given = parser.parse_args()
    if given.quick:
        given.problems = [name for name in given.problems if name in QUICK] or given.problems[:1]
        given.nfe, given.tolerance, given.seconds = [8, 18, 35], [1e-3], 2.0
    return given


def chosen(entries: list[tuple[str, ours.Make]], theirs: list[Method], only: str | None, **kind: bool) -> list[Method]:
    """Both sides in turn, so that neither has the machine to itself."""
    methods = [*ours.methods(entries, **kind), *theirs]
    return [method for method in methods if only is None or only in method.title]


def progress(rows: Iterator[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """All rows, with a word on standard error about how long they took."""
    started = time.perf_counter()
    collected = list(rows)
    print(f"{name}: {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)
    for row in collected:
        if "failed" in row:
            print(f"  {report.title(row)}: {row['failed']}", file=sys.stderr)
    return collected


def main() -> None:
    """Measure, print, write."""
    given = arguments()
    torch.set_num_threads(given.threads)
    peers: Any = None
    if given.peers:
        from benchmarks.solvers import peers
    problems: list[Problem] = [problem(name) for name in given.problems]
    floors = {p.name: p.reference().floor for p in problems}
    content: dict[str, Any] = {
        "machine": machine(peers.PACKAGES if peers else ()),
        "problems": [
            {"name": p.name, "title": p.title, "sigma_data": p.sigma_data, "starts": p.starts, "floor": floors[p.name]}
            for p in problems
        ],
    }
    fixed = chosen(ours.FIXED, peers.FIXED if peers else [], given.only)
    if "accuracy" in given.what:
        rows = [row for p in problems for row in progress(measure.accuracy(p, fixed, given.nfe), p.name)]
        content["accuracy"] = rows
        report.print_accuracy(rows)
        if given.figure is not None:
            save_figure(report.figure(rows, floors), given.figure)
    if "tolerance" in given.what:
        methods = chosen(ours.ADAPTIVE, peers.ADAPTIVE if peers else [], given.only)
        found = (measure.accuracy(p, methods, given.tolerance, "tolerance") for p in problems)
        content["tolerance"] = [row for rows in found for row in progress(rows, "tolerance")]
        report.print_accuracy(content["tolerance"], "tolerance")
    if "distribution" in given.what:
        methods = chosen(ours.STOCHASTIC, peers.STOCHASTIC if peers else [], given.only, stochastic=True)
        budgets = [nfe for nfe in given.nfe if 8 < nfe <= 35]
        fixed = chosen(ours.FIXED, peers.DETERMINISTIC if peers else [], given.only)
        found = (measure.distributions(p, fixed, budgets, methods) for p in problems if p.name in PLANAR)
        content["distribution"] = [row for rows in found for row in progress(rows, "distribution")]
        report.print_distributions(content["distribution"])
    if "overhead" in given.what:
        theirs = chosen([], peers.OVERHEAD if peers else [], given.only)
        content["overhead"] = overhead(chosen(ours.OVERHEAD, [], given.only), theirs, given.seconds)
        report.print_overhead(content["overhead"])
    if given.out is not None:
        write_json(given.out, content)


if __name__ == "__main__":
    main()
