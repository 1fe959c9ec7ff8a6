"""Solvers compared on exact denoisers: openedm's and, unless --no-peers, those of peer libraries, in one process.

    python -m benchmarks.solvers [--what accuracy tolerance] [--problems gmm2d lowrank64] [--nfe 8 12] [--no-peers]
    python -m benchmarks.solvers --what rises --no-peers

`make bench-solvers` installs the peers into an environment of their own and runs everything there. See
benchmarks/README.md.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.common import machine, write_json
from benchmarks.solvers import measure, ours, report
from benchmarks.solvers.methods import OURS, Method
from benchmarks.solvers.network import network
from benchmarks.solvers.overhead import overhead
from benchmarks.solvers.problems import FACTORIES, Problem, problem

from openedm.plots import save_figure

Rows = list[dict[str, Any]]

WHAT = ("accuracy", "rises", "tolerance", "distribution", "overhead")
BUDGETS = (8, 12, 18, 35, 79)
CONSECUTIVE = tuple(range(4, 41))
"""From which numbers of evaluations to the next the change of the error is measured."""

TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5)
PLANAR = ("gmm2d", "spike2d")
"""Where the energy distance is measured: samples of two dimensions show it without many."""

QUICK = ("gmm2d", "lowrank64", "posterior5d")


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", choices=WHAT, default=list(WHAT), help="which measurements")
    parser.add_argument("--problems", nargs="*", default=list(FACTORIES), metavar="NAME", help=", ".join(FACTORIES))
    parser.add_argument("--random", nargs="+", type=int, default=[], metavar="SEED", help="random mixtures, too")
    parser.add_argument("--checkpoint", metavar="RUN", help="a trained network as a problem, too")
    parser.add_argument("--fit", action="store_true", help="openedm's solvers with fitted levels, too: minutes")
    parser.add_argument(
        "--nfe", nargs="+", type=int, help=f"budgets, {BUDGETS}; of rises those from which to the next, 4 to 40"
    )
    parser.add_argument("--tolerance", nargs="+", type=float, default=list(TOLERANCES), help="of adaptive solvers")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="compare with peers")
    parser.add_argument("--only", metavar="TEXT", help="only solvers that have this in their title")
    parser.add_argument("--quick", action="store_true", help="three problems, three budgets, short timings")
    parser.add_argument("--seconds", type=float, default=20.0, help="measuring time of the overhead at each size")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    parser.add_argument("--figure", type=Path, help="write the figure to this file")
    parser.add_argument(
        "--from", dest="files", nargs="+", type=Path, metavar="FILE", help="draw --figure from files of --out alone"
    )
    given = parser.parse_args(words)
    if given.files is not None and given.figure is None:
        parser.error("--from draws a figure and measures nothing: name the file of the figure by --figure")
    if given.quick:
        given.problems = [name for name in given.problems if name in QUICK] or given.problems[:1]
        given.nfe, given.tolerance, given.seconds = [8, 18, 35], [1e-3], 2.0
    given.steps = given.nfe or CONSECUTIVE
    given.nfe = given.nfe or BUDGETS
    given.problems += [f"random{seed}" for seed in given.random]
    return given


def chosen(methods: list[Method], only: str | None) -> list[Method]:
    """Those whose title has `only` in it."""
    return [method for method in methods if only is None or only in method.title]


def progress(rows: Iterator[dict[str, Any]], name: str) -> Rows:
    """All rows, with a word on standard error about how long they took and what failed."""
    started = time.perf_counter()
    collected = list(rows)
    print(f"{name}: {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)
    for row in collected:
        if "failed" in row:
            print(f"  {report.title(row)}: {row['failed']}", file=sys.stderr)
    return collected


def accuracy(given: argparse.Namespace, problems: Sequence[Problem], peers: Any) -> Rows:
    """The distance to the solution at budgets, as tables and as a figure."""
    entries = ours.FIXED + (ours.FITTED if given.fit else [])
    methods = chosen([*ours.methods(entries), *getattr(peers, "FIXED", [])], given.only)
    rows = [row for p in problems for row in progress(measure.accuracy(p, methods, given.nfe), f"accuracy, {p.name}")]
    report.print_accuracy(rows)
    if given.figure is not None:
        draw(rows, [described(p) for p in problems], given.figure)
    return rows


def rises(given: argparse.Namespace, problems: Sequence[Problem], peers: Any) -> Rows:
    """What one evaluation more does to the error."""
    entries = ours.FIXED + (ours.FITTED if given.fit else [])
    methods = chosen([*ours.methods(entries), *getattr(peers, "FIXED", [])], given.only)
    if given.only is None:
        methods = [method for method in methods if method.library == OURS and method.name in ours.STEPPED]
    budgets = sorted({budget for nfe in given.steps for budget in (nfe, nfe + 1)})
    rows: Rows = []
    for p in problems:
        measured = progress(measure.accuracy(p, methods, budgets), f"rises, {p.name}")
        rows += measure.rises(measured, given.steps, p.reference().floor)
    report.print_rises(rows)
    return rows


def described(problem: Problem) -> dict[str, Any]:
    """What the JSON file holds of a problem."""
    return {
        "name": problem.name,
        "title": problem.title,
        "sigma_data": problem.sigma_data,
        "starts": problem.starts,
        "floor": problem.reference().floor,
    }


def draw(rows: Rows, problems: Rows, path: Path) -> None:
    """The figure of accuracy at budgets."""
    floors, titles = ({p["name"]: p[key] for p in problems} for key in ("floor", "title"))
    save_figure(report.figure(rows, floors, ours.DRAWN, titles), path)


def drawn_again(files: Sequence[Path], path: Path) -> None:
    """The figure from what earlier runs wrote: the problems of all files, in their order."""
    contents = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    for file, content in zip(files, contents, strict=True):
        if not {"accuracy", "problems"} <= content.keys():
            raise SystemExit(f"--from must name files that --what accuracy --out wrote, got {file} without accuracy")
    rows, problems = ([row for content in contents for row in content[key]] for key in ("accuracy", "problems"))
    # Null stands for what was not finite.
    draw([{k: math.nan if v is None else v for k, v in row.items()} for row in rows], problems, path)


def tolerance(given: argparse.Namespace, problems: Sequence[Problem], peers: Any) -> Rows:
    """The distance to the solution at tolerances."""
    methods = chosen([*ours.methods(ours.ADAPTIVE), *getattr(peers, "ADAPTIVE", [])], given.only)
    found = ((p, measure.accuracy(p, methods, given.tolerance, "tolerance")) for p in problems)
    rows = [row for p, rows in found for row in progress(rows, f"tolerance, {p.name}")]
    report.print_accuracy(rows, "tolerance")
    return rows


def distribution(given: argparse.Namespace, problems: Sequence[Problem], peers: Any) -> Rows:
    """The energy distance of stochastic samplers, and of others to compare, to the distribution."""
    entries = ours.DETERMINISTIC + (ours.FITTED if given.fit else [])
    fixed = chosen([*ours.methods(entries), *getattr(peers, "DETERMINISTIC", [])], given.only)
    methods = chosen([*ours.methods(ours.STOCHASTIC), *getattr(peers, "STOCHASTIC", [])], given.only)
    budgets = [nfe for nfe in given.nfe if 8 < nfe <= 35]
    found = ((p, measure.distributions(p, fixed, budgets, methods)) for p in problems if p.name in PLANAR)
    rows = [row for p, rows in found for row in progress(rows, f"distribution, {p.name}")]
    report.print_distributions(rows)
    return rows


def timing(given: argparse.Namespace, problems: Sequence[Problem], peers: Any) -> Rows:
    """The overhead."""
    methods = chosen([*ours.OVERHEAD, *getattr(peers, "OVERHEAD", [])], given.only)
    rows = overhead(methods, given.seconds)
    report.print_overhead(rows)
    return rows


MEASUREMENTS = {
    "accuracy": accuracy,
    "rises": rises,
    "tolerance": tolerance,
    "distribution": distribution,
    "overhead": timing,
}


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    given = arguments(words)
    if given.files is not None:
        drawn_again(given.files, given.figure)
        return
    torch.set_num_threads(given.threads)
    peers: Any = None
    if given.peers:
        from benchmarks.solvers import peers
    problems = [problem(name) for name in given.problems]
    if given.checkpoint is not None:
        problems.append(network(given.checkpoint))
    versions = machine(getattr(peers, "PACKAGES", ()))
    content: dict[str, Any] = {"machine": versions, "problems": [described(p) for p in problems]}
    for what in given.what:
        content[what] = MEASUREMENTS[what](given, problems, peers)
    if given.out is not None:
        write_json(given.out, content)


if __name__ == "__main__":
    main()
