"""Posteriors of `fit` beside exact ones: eight small simulators that nobody tuned for, three observations each.

    python -m benchmarks.inference.exact --simulations 1000 --out exact.json

Prints, for each problem, the mean C2ST of its observations, the largest error of a mean in standard deviations and the
ratio of standard deviations that is furthest from 1, with the CPU seconds of the fit and what was chosen; then how
often the verdict on an observation is "trust" or another one where C2ST is below 0.55, above 0.6, or between.
"""

import argparse
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from benchmarks.common import machine, write_json
from benchmarks.inference.problems import PROBLEMS, exact_posterior, observe

from openedm.inference import fit
from openedm.metrics import c2st


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS), metavar="NAME")
    parser.add_argument("--simulations", type=int, default=1000, help="how many (%(default)s)")
    parser.add_argument("--samples", type=int, default=5000, help="of each posterior (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of simulations and fit (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="%(default)s")
    parser.add_argument("--out", type=Path, default=None, help="a JSON file of all numbers")
    return parser.parse_args()


def measured(name: str, simulations: int, samples: int, seed: int) -> dict[str, Any]:
    """Fit the posterior of a problem, and compare it with the exact one at each of its observations."""
    problem, generator = PROBLEMS[name], torch.Generator().manual_seed(seed)
    theta = problem.prior(simulations, generator)
    x = problem.simulate(theta, generator)
    started = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        posterior = fit(theta.float(), x.float(), (problem.low, problem.high), seed=seed)
    row: dict[str, Any] = {"problem": name, "cpu_seconds": time.process_time() - started}
    row |= {
        "c2st": [],
        "shift": [],
        "width": [],
        "advice": [],
        "effective": [],
        "warnings": [str(w.message) for w in caught],
    }
    for number in range(len(problem.truths)):
        observed = observe(problem, number)
        exact = exact_posterior(problem, observed, samples, seed)
        drawn = posterior.sample(observed.float(), samples).double()
        ratio = drawn.std(0) / exact.std(0)
        row["c2st"].append(c2st(drawn.float(), exact.float()))
        verdict = posterior.verdict(observed.float())
        row["advice"].append(verdict.advice)
        row["effective"].append(verdict.effective)
        row["shift"].append(float(((drawn.mean(0) - exact.mean(0)) / exact.std(0)).abs().max()))
        row["width"].append(float(ratio[ratio.log().abs().argmax()]))
    return row | {"c2st_mean": statistics.fmean(row["c2st"]), "report": posterior.report}


def line(row: dict[str, Any]) -> str:
    """A line of the table."""
    width = max(row["width"], key=lambda ratio: max(ratio, 1 / ratio))
    noise = row["report"].get("emulated", {}).get("noise", "")
    return (
        f"{row['problem']:10} {row['c2st_mean']:6.3f} {max(row['shift']):7.2f} {width:7.2f} {row['cpu_seconds']:7.0f}  "
        f"{row['report']['chosen']} {f'({noise})' if 'refined' in row['report']['chosen'] else ''}"
    )


def judgements(rows: list[dict[str, Any]]) -> list[str]:
    """The table of verdicts and C2ST."""
    pairs = [pair for row in rows for pair in zip(row["c2st"], row["advice"], strict=True)]
    text = [f"{'C2ST':10} {'trust':>6} {'other':>6}"]
    for name, low, high in (("< 0.55", 0.0, 0.55), ("0.55-0.6", 0.55, 0.6), ("> 0.6", 0.6, 1.1)):
        found = [advice == "trust" for score, advice in pairs if low <= score < high]
        text.append(f"{name:10} {sum(found):6} {len(found) - sum(found):6}")
    return text


def main() -> None:
    """Run it."""
    given = arguments()
    torch.set_num_threads(given.threads)
    print(f"{'problem':10} {'C2ST':>6} {'shift':>7} {'width':>7} {'CPU s':>7}  chosen", flush=True)
    rows = []
    for name in given.problems:
        rows.append(measured(name, given.simulations, given.samples, given.seed))
        print(line(rows[-1]), flush=True)
    print(f"{'mean':10} {statistics.fmean(row['c2st_mean'] for row in rows):6.3f}", *judgements(rows), sep="\n")
    if given.out is not None:
        write_json(given.out, {"machine": machine(), "simulations": given.simulations, "rows": rows})


if __name__ == "__main__":
    main()
