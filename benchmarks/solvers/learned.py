"""Learned solvers beside fitted levels, at 4 to 8 evaluations: errors at starts that had no part in either.

    python -m benchmarks.solvers.learned [--problems gmm2d lowrank64] [--random 500 501] [--nfe 4 6] [--starts 1024]
        [--out FILE.json]

The median and the largest distance to the converged solution, of `Auto(nfe=N).fit` (levels alone) and of `fit_solver`
(levels and weights), their ratios, and the CPU seconds of both fits. Random mixtures are made from a seed
(`problems.random_mixture`). At the end, for each budget, the geometric mean of the ratios over problems, how many of
the largest errors are above those of fitted levels, and by how much. The largest error of a few hundred starts is
often that of a single one near the border between two modes: that of more starts (`--starts`) depends less on chance.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.common import machine, write_json
from benchmarks.solvers.methods import SIGMA_MAX, SIGMA_MIN, Counted
from benchmarks.solvers.network import network
from benchmarks.solvers.problems import FACTORIES, Problem, problem

from openedm.sampling import Auto, Sampler, fit_solver

Row = dict[str, Any]
MADE_ON = ("gmm2d", "lowrank64", "spike2d", "random201")
"""The problems on which the objective and the numbers of the fit were chosen."""


def timed(make: Callable[[], Sampler]) -> tuple[Sampler, float]:
    """A sampler and the CPU seconds of its fit."""
    started = time.process_time()
    return make(), time.process_time() - started


def measured(p: Problem, nfe: int) -> Row:
    """The errors of both at one budget."""
    denoiser = Counted(p.denoiser, p.sigma_data)
    rule = Auto(nfe=nfe, sigma_min=max(SIGMA_MIN, p.sigma_min), sigma_max=min(SIGMA_MAX, p.sigma_max))
    levels, levels_seconds = timed(lambda: rule.fit(denoiser, progress=False).sampler)
    solver, solver_seconds = timed(lambda: fit_solver(denoiser, rule, progress=False).sampler)
    row: Row = {"problem": p.name, "nfe": nfe, "levels_seconds": levels_seconds, "learned_seconds": solver_seconds}
    for name, sampler in (("levels", levels), ("learned", solver)):
        errors = p.errors(sampler.sample(denoiser, noise=p.noise))
        row[name] = {"median": float(errors.median()), "largest": float(errors.max())}
    for which in ("median", "largest"):
        row[f"{which}_ratio"] = row["learned"][which] / row["levels"][which]
    return row


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive numbers."""
    return math.exp(sum(map(math.log, values)) / len(values))


def summary(rows: Sequence[Row], name: str) -> list[Row]:
    """The means over problems, for each budget."""
    found = []
    for nfe in dict.fromkeys(row["nfe"] for row in rows):
        mine = [row for row in rows if row["nfe"] == nfe]
        largest = [row["largest_ratio"] for row in mine]
        found.append(
            {
                "of": name,
                "nfe": nfe,
                "problems": len(mine),
                "median_ratio": geometric_mean([row["median_ratio"] for row in mine]),
                "worst_median_ratio": max(row["median_ratio"] for row in mine),
                "largest_ratio": geometric_mean(largest),
                "worst_largest_ratio": max(largest),
                "largest_above": sum(ratio > 1 for ratio in largest),
            }
        )
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="*", default=list(FACTORIES), metavar="NAME", help=", ".join(FACTORIES))
    parser.add_argument("--random", nargs="*", type=int, default=list(range(500, 512)), metavar="SEED")
    parser.add_argument("--checkpoint", metavar="RUN", help="a trained network as a problem, too")
    parser.add_argument("--nfe", nargs="+", type=int, default=[4, 5, 6, 8], help="budgets")
    parser.add_argument("--starts", type=int, metavar="N", help="measured starts; those of each problem if not given")
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    problems = [problem(name) for name in (*given.problems, *(f"random{seed}" for seed in given.random))]
    if given.checkpoint is not None:
        problems.append(network(given.checkpoint))
    if given.starts is not None:
        problems = [replace(p, starts=given.starts) for p in problems]
    print(f"{'median, largest':<14}{'NFE':>4}{'levels':>18}{'learned':>18}{'ratios':>14}{'seconds':>14}")
    rows: list[Row] = []
    for p in problems:
        for nfe in given.nfe:
            row = measured(p, nfe)
            rows.append(row)
            cells = [f"{row[name]['median']:.1e}, {row[name]['largest']:.1e}" for name in ("levels", "learned")]
            print(
                f"{p.name:<14}{nfe:>4}{cells[0]:>18}{cells[1]:>18}{row['median_ratio']:>7.2f}"
                f"{row['largest_ratio']:>7.2f}{row['levels_seconds']:>7.1f}{row['learned_seconds']:>7.1f}",
                flush=True,
            )
    held_out = [row for row in rows if row["problem"] not in MADE_ON]
    summaries = summary(rows, "all") + (summary(held_out, "held out") if 0 < len(held_out) < len(rows) else [])
    print("\nlearned / levels: geometric mean (worst) of medians; of largest errors; largest errors above")
    for row in summaries:
        print(
            f"{row['of']:<10}{row['nfe']:>3} {row['median_ratio']:.2f} ({row['worst_median_ratio']:.2f}); "
            f"{row['largest_ratio']:.2f} ({row['worst_largest_ratio']:.2f}); "
            f"{row['largest_above']} of {row['problems']}"
        )
    if given.out is not None:
        write_json(given.out, {"machine": machine(), "rows": rows, "summary": summaries})


if __name__ == "__main__":
    main()
