"""Which default suits models that predict noise: candidates beside the best of diffusers, on problems for the choice.

    python -m benchmarks.diffusers_rules --weights judges --out rules.json

Each candidate is a multistep solver on a rule for levels. The table has, at each budget, the candidates with the
highest geometric mean over problems of (best error of diffusers)/(error of the candidate). The problems are the first
mixture and the first digits of `benchmarks.diffusers_pipelines`, with networks that were trained for different times;
that script reports the others.
"""

import argparse
import itertools
import json
import logging
import math
import warnings
from pathlib import Path
from typing import Any

import diffusers
import torch
from benchmarks.diffusers_pipelines import (
    BUDGETS,
    Problem,
    error,
    errors_of_diffusers,
    exact,
    reference,
    sample,
    trained,
)
from torch import Tensor

from openedm import Sampler
from openedm.interop.diffusers import Scheduler
from openedm.levels import Karras, Levels, Logistic, LogLinear
from openedm.preconditioning import DataPrediction, EpsilonPrediction, Prediction
from openedm.sampling import Multistep
from openedm.schedules import LogSigma, PowerSigma

SHOWN = 6


def solvers() -> dict[str, Multistep]:
    """The solvers by name: the quantity and the variable of the interpolation, predictor and corrector."""
    kinds: list[tuple[str, Prediction, Any]] = [
        ("ε, ln σ", EpsilonPrediction(), LogSigma()),
        ("ε, σ^⅐", EpsilonPrediction(), PowerSigma(7.0)),
        ("D, ln σ", DataPrediction(), LogSigma()),
    ]
    orders = ((2, 0), (3, 0), (2, 3))
    return {
        f"{name}, {order}": Multistep(prediction, variable, *order)
        for (name, prediction, variable), order in itertools.product(kinds, orders)
    }


def rules(num_steps: int, low: float, high: float, sigma_data: float) -> dict[str, Levels]:
    """The rules for levels by name."""
    ends = (num_steps, low, high)
    logistic = {
        f"logistic {centre:g} {spread:g}": Logistic(*ends, centre * sigma_data, spread)
        for centre, spread in ((0.5, 1.5), (1.0, 2.0), (2.0, 2.0), (2.0, 4.0))
    }
    return {"Karras 7": Karras(*ends), "log-linear": LogLinear(*ends), **logistic}


@torch.no_grad()
def ratios(problem: Problem, expected: Tensor, budget: int) -> dict[str, float]:
    """Of each candidate, the best error of diffusers over its own."""
    errors = errors_of_diffusers(
        lambda theirs, count: sample(problem, theirs, count), problem.scheduler, budget, expected
    )
    best = min(errors.values())
    process = Scheduler.from_config(problem.scheduler).process
    found = {}
    levels = rules(budget, process.sigma_min, process.sigma_max, problem.sigma_data)
    for (solver_name, solver), (rule, values) in itertools.product(solvers().items(), levels.items()):
        scheduler = Scheduler.from_config(
            problem.scheduler, sampler=Sampler(values, solver=solver), sigma_data=problem.sigma_data
        )
        samples = sample(problem, scheduler, budget)
        assert samples is not None
        found[f"{solver_name}; {rule}"] = best / error(samples, expected)
    return found


def main() -> None:
    """Compare the candidates, print the best ones and write all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=32, help="samples of each problem")
    parser.add_argument("--steps", type=int, nargs="*", default=[300, 1500], help="steps of training of digits' models")
    parser.add_argument("--weights", type=Path, default=None, help="a folder in which trained weights are kept")
    parser.add_argument("--budgets", type=int, nargs="*", default=list(BUDGETS))
    parser.add_argument("--out", type=Path, default=None, help="a JSON file for all ratios")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    diffusers.utils.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    problems = {
        "mixture": exact(diffusers.DDPMScheduler(clip_sample=False), options.samples),
        **{
            f"digits, {steps} steps": trained(options.samples, steps, 8, {}, options.weights) for steps in options.steps
        },
    }
    expected = {name: reference(problem)[0] for name, problem in problems.items()}
    found = {
        budget: {name: ratios(problem, expected[name], budget) for name, problem in problems.items()}
        for budget in options.budgets
    }
    for budget, by_problem in found.items():
        means = {
            name: math.exp(sum(math.log(ratio[name]) for ratio in by_problem.values()) / len(by_problem))
            for name in by_problem["mixture"]
        }
        print(f"{budget} evaluations: candidate, geometric mean, {', '.join(by_problem)}")
        for name in sorted(means, key=means.__getitem__, reverse=True)[:SHOWN]:
            each = ", ".join(f"{ratio[name]:.2f}" for ratio in by_problem.values())
            print(f"  {name}: {means[name]:.2f}, {each}", flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
