"""Posteriors beside exact ones: eight small simulators that nobody tuned for, three observations each.

    python -m benchmarks.inference.exact --simulations 1000 --out exact.json
    python -m benchmarks.inference.exact --simulations 1000 --methods openedm npe npse fmpe     # peers, their defaults
    python -m benchmarks.inference.exact --simulations 1000 --rounds 2 --problems decay         # fit_sequentially
    python -m benchmarks.inference.exact --simulations 10000 --problems blob                    # an image

Prints, for each problem and method, the mean C2ST of its observations, the largest error of a mean in standard
deviations and the ratio of standard deviations that is furthest from 1, with the CPU seconds of training and, of
`fit`, what was chosen; then how often its verdict on an observation is "trust" or another one where C2ST is below 0.55,
above 0.6, or between. Every method is given the same simulations, one after the other for each problem. Peers run in
the environment that `make benchmarks/.venv-sbi/installed` makes, and end their training themselves.
"""

import argparse
import math
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.common import machine, write_json
from benchmarks.inference.exchange import UNIFORM, Simulations
from benchmarks.inference.methods import METHODS, OURS, Method
from benchmarks.inference.problems import PROBLEMS, VECTORS, Problem, exact_posterior, observe
from benchmarks.inference.running import Settings, run
from torch import Tensor

from openedm.inference import fit, fit_sequentially
from openedm.metrics import c2st

METHOD_NAMES = (OURS, "npe", "npse", "fmpe")

Row = dict[str, Any]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(VECTORS), metavar="NAME")
    parser.add_argument("--methods", nargs="+", choices=METHOD_NAMES, default=[OURS], metavar="NAME")
    parser.add_argument("--simulations", type=int, default=1000, help="how many (%(default)s)")
    parser.add_argument("--samples", type=int, default=5000, help="of each posterior (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of simulations and training (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="%(default)s")
    parser.add_argument(
        "--rounds", type=int, default=1, help="of fit_sequentially, each with --simulations (%(default)s)"
    )
    parser.add_argument("--limit", type=float, default=300, help="CPU seconds of drawing for a peer (%(default)g)")
    parser.add_argument("--out", type=Path, default=None, help="a JSON file of all numbers")
    given = parser.parse_args()
    if given.rounds < 1 or (given.rounds > 1 and given.methods != [OURS]):
        parser.error(f"--rounds must be at least 1, and more than 1 only with --methods {OURS}")
    for name in given.methods:
        if not METHODS[name].python.exists():
            parser.error(f"{name} needs {METHODS[name].python}: make benchmarks/.venv-sbi/installed builds it")
    return given


def simulated(problem: Problem, simulations: int, seed: int) -> tuple[Tensor, Tensor]:
    """Parameters and data that every method is given."""
    generator = torch.Generator().manual_seed(seed)
    theta = problem.prior(simulations, generator)
    return theta, problem.simulate(theta, generator)


def compared(problem: Problem, number: int, drawn: Tensor, seed: int) -> dict[str, float]:
    """The samples of a method beside exact ones, as many of them."""
    exact = exact_posterior(problem, observe(problem, number), len(drawn), seed)
    drawn = drawn.double()
    ratio = drawn.std(0) / exact.std(0)
    return {
        "c2st": c2st(drawn.float(), exact.float()),
        "shift": float(((drawn.mean(0) - exact.mean(0)) / exact.std(0)).abs().max()),
        "width": float(ratio[ratio.log().abs().argmax()]),
    }


def with_scores(row: Row, scores: list[dict[str, float]]) -> Row:
    """The row with a list of each score, and the mean C2ST."""
    lists = {name: [score[name] for score in scores] for name in ("c2st", "shift", "width")}
    return row | lists | {"c2st_mean": statistics.fmean(lists["c2st"]) if scores else math.nan}


def ours(problem: Problem, theta: Tensor, x: Tensor, given: argparse.Namespace) -> Row:
    """`fit` with nothing but the simulations and the prior, its samples and its verdicts."""
    started = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        posterior = fit(theta.float(), problem.shaped(x), (problem.low, problem.high), seed=given.seed)
    row: Row = {"cpu_seconds": time.process_time() - started, "warnings": [str(w.message) for w in caught]}
    observed = [problem.shaped(observe(problem, number)) for number in range(len(problem.truths))]
    scores = [compared(problem, i, posterior.sample(x, given.samples), given.seed) for i, x in enumerate(observed)]
    verdicts = [posterior.verdict(x) for x in observed]
    row |= {"advice": [verdict.advice for verdict in verdicts], "effective": [v.effective for v in verdicts]}
    return with_scores(row | {"report": posterior.report}, scores)


def in_rounds(problem: Problem, given: argparse.Namespace) -> list[Row]:
    """`fit_sequentially` at each observation: a row for each round, with as many simulations in each."""

    def simulator(theta: Tensor, seed: int) -> Tensor:
        return problem.shaped(problem.simulate(theta.double(), torch.Generator().manual_seed(seed)))

    observed = [problem.shaped(observe(problem, number)) for number in range(len(problem.truths))]
    found: list[list[dict[str, float]]] = [[] for _ in range(given.rounds)]
    advice: list[list[str]] = [[] for _ in range(given.rounds)]
    started = time.process_time()
    for number, x in enumerate(observed):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rounds = fit_sequentially(
                simulator,
                (problem.low, problem.high),
                x,
                rounds=given.rounds,
                simulations=given.simulations,
                seed=given.seed,
            )
        for each, scores, words in zip(rounds, found, advice, strict=True):
            scores.append(compared(problem, number, each.posterior.sample(x, given.samples), given.seed))
            words.append(each.posterior.verdict(x).advice)
    seconds = {"cpu_seconds": time.process_time() - started}
    return [with_scores({"advice": words} | seconds, scores) for scores, words in zip(found, advice, strict=True)]


def peer(method: Method, problem: Problem, theta: Tensor, x: Tensor, given: argparse.Namespace) -> Row:
    """A method of another library with its defaults, in its own environment.

    An observation whose samples are not there, or are not finite, has no scores; the row says how many are missing.
    """
    observed = torch.stack([observe(problem, number) for number in range(len(problem.truths))])
    ends = np.asarray(problem.low), np.asarray(problem.high)
    arrays = [values.float().numpy() for values in (theta, x, observed)]
    settings = Settings(given.simulations, given.seed, given.samples, given.threads, given.limit)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / method.name
        found = run(method, Simulations("exact", *arrays, UNIFORM, *ends), math.inf, settings, work)
        scores, missing = [], []
        for number in range(len(observed)):
            path = work / f"samples_{number}.npy"
            drawn = torch.as_tensor(np.load(path, allow_pickle=False)) if path.exists() else None
            if drawn is not None and drawn.isfinite().all():
                scores.append(compared(problem, number, drawn, given.seed))
            else:
                missing.append(number)
    return with_scores({"cpu_seconds": found.get("train_cpu", math.nan), "missing": missing, "peer": found}, scores)


def line(row: Row) -> str:
    """A line of the table."""
    text = f"{row['problem']:10} {row['method']:8} {row['c2st_mean']:6.3f} "
    if row["c2st"]:
        width = max(row["width"], key=lambda ratio: max(ratio, 1 / ratio))
        text += f"{max(row['shift']):7.2f} {width:7.2f} {row['cpu_seconds']:7.0f}  "
    if "report" in row:
        noise = row["report"].get("emulated", {}).get("noise", "")
        text += f"{row['report']['chosen']} {f'({noise})' if 'refined' in row['report']['chosen'] else ''}"
    if row.get("missing"):
        text += f"no samples at observations {row['missing']}: {row['peer'].get('failed', 'not finite, or too slow')}"
    return text


def judgements(rows: list[Row]) -> list[str]:
    """The table of verdicts and C2ST."""
    pairs = [pair for row in rows if "advice" in row for pair in zip(row["c2st"], row["advice"], strict=True)]
    text = [f"{'C2ST':10} {'trust':>6} {'other':>6}"]
    for name, low, high in (("< 0.55", 0.0, 0.55), ("0.55-0.6", 0.55, 0.6), ("> 0.6", 0.6, 1.1)):
        found = [advice == "trust" for score, advice in pairs if low <= score < high]
        text.append(f"{name:10} {sum(found):6} {len(found) - sum(found):6}")
    return text if pairs else []


def means(rows: list[Row], methods: list[str]) -> list[str]:
    """The mean C2ST of each method over the problems, and on how many of them openedm is the more accurate."""
    scores = {(row["problem"], row["method"]): row["c2st_mean"] for row in rows}
    text = []
    for method in methods:
        mine = {problem: score for (problem, name), score in scores.items() if name == method}
        line = f"{'mean':10} {method:8} {statistics.fmean(mine.values()):6.3f}"
        if method != OURS and OURS in methods:
            lower = sum(scores[problem, OURS] < score for problem, score in mine.items())
            line += f"  openedm is lower on {lower} of {len(mine)}"
        text.append(line)
    return text


def main() -> None:
    """Run it."""
    given = arguments()
    torch.set_num_threads(given.threads)
    print(f"{'problem':10} {'method':8} {'C2ST':>6} {'shift':>7} {'width':>7} {'CPU s':>7}  chosen", flush=True)
    rows: list[Row] = []
    for name in given.problems:
        problem = PROBLEMS[name]
        if given.rounds > 1:
            for number, row in enumerate(in_rounds(problem, given), start=1):
                rows.append({"problem": name, "method": f"round {number}"} | row)
                print(line(rows[-1]), flush=True)
            continue
        theta, x = simulated(problem, given.simulations, given.seed)
        for method in given.methods:
            row = ours(problem, theta, x, given) if method == OURS else peer(METHODS[method], problem, theta, x, given)
            rows.append({"problem": name, "method": method} | row)
            print(line(rows[-1]), flush=True)
    methods = given.methods if given.rounds == 1 else [f"round {number + 1}" for number in range(given.rounds)]
    print(*means(rows, methods), *judgements(rows), sep="\n")
    if given.out is not None:
        write_json(given.out, {"machine": machine(), "simulations": given.simulations, "rows": rows})


if __name__ == "__main__":
    main()
