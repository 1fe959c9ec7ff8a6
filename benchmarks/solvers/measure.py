"""The measurements: distance to the solution of the ODE, at a budget and at a tolerance, and to the distribution."""

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from benchmarks.solvers.methods import Counted, Method
from benchmarks.solvers.problems import Problem
from torch import Tensor

from openedm.exact import GaussianMixture

Row = dict[str, Any]

SAMPLES, EXACT = 4096, 8192
"""How many samples the energy distance compares with how many exact ones."""


def run_method(method: Method, problem: Problem, budget: float, noise: Tensor) -> tuple[Tensor | None, Row]:
    """Samples, None where there are none; and what to write down about the run.

    What a solver raises is written down too: one that fails at one budget must not end the comparison of all.
    """
    denoiser = Counted(problem.denoiser, problem.sigma_data)
    row: Row = {"problem": problem.name, "library": method.library, "solver": method.name}
    started = time.perf_counter()
    try:
        run = method.prepare(budget, Counted(problem.denoiser, problem.sigma_data))
        prepared = time.perf_counter()
        if run is None:
            return None, row
        with torch.no_grad():
            x = run(denoiser, noise)
    except Exception as error:
        return None, {**row, "failed": f"{type(error).__name__}: {error}"}
    row["nfe"], row["mean_nfe"] = denoiser.calls, denoiser.samples / len(noise)
    row["prepare_seconds"] = prepared - started
    row["seconds"] = time.perf_counter() - prepared
    return x, row


def accuracy(
    problem: Problem, methods: Sequence[Method], budgets: Sequence[float], key: str = "budget"
) -> Iterator[Row]:
    """The distance of the samples to the converged solution, RMS, median and largest, at each budget or tolerance."""
    noise = problem.noise
    for budget in budgets:
        for method in methods:
            x, row = run_method(method, problem, budget, noise)
            row[key] = budget
            if x is not None:
                errors = problem.errors(x.to(torch.float64))
                row["rms"] = float(errors.square().mean().sqrt())
                row["median"] = float(errors.median())
                row["worst"] = float(errors.max())
            yield row


def rises(rows: Sequence[Row], steps: Sequence[int], floor: float) -> Iterator[Row]:
    """The ratio of the median errors at n + 1 and at n evaluations, for each solver and n of `steps`.

    Errors below the floor of the reference count as the floor. Nothing where a solver has no finite error.

    Args:
        rows: of `accuracy` of one problem.
    """
    names = ("problem", "library", "solver")
    medians = {(row["library"], row["solver"], row["budget"]): row.get("median", math.nan) for row in rows}
    for first in {(row["library"], row["solver"]): row for row in rows}.values():
        for nfe in steps:
            before, after = (medians.get((first["library"], first["solver"], n), math.nan) for n in (nfe, nfe + 1))
            if math.isfinite(before) and math.isfinite(after):
                ratio = max(after, floor) / max(before, floor)
                yield {name: first[name] for name in names} | {"nfe": nfe, "ratio": ratio}


def distributions(
    problem: Problem, methods: Sequence[Method], budgets: Sequence[float], stochastic: Sequence[Method]
) -> Iterator[Row]:
    """The energy distance of samples to the distribution; stochastic or not, from the same starts.

    A first row is of exact samples: what the others cannot go below but by chance.
    """
    assert isinstance(problem.denoiser, GaussianMixture)
    generator = torch.Generator().manual_seed(1)
    exact = problem.denoiser.sample(EXACT, generator)
    within = mean_distance(exact, exact) * EXACT / (EXACT - 1)
    draws = [problem.denoiser.sample(SAMPLES, generator) for _ in range(8)]
    values = torch.tensor([energy_distance(x, exact, within) for x in draws])
    yield {
        "problem": problem.name,
        "library": "",
        "solver": "exact samples",
        "energy_distance": float(values.mean()),
        "deviation": float(values.std()),
    }
    noise = torch.randn(SAMPLES, *exact.shape[1:], dtype=torch.float64, generator=generator)
    for budget in budgets:
        for method in [*methods, *stochastic]:
            torch.manual_seed(0)
            x, row = run_method(method, problem, budget, noise)
            row["budget"] = budget
            row["stochastic"] = method in stochastic
            if x is not None:
                row["energy_distance"] = float(energy_distance(x.to(torch.float64), exact, within))
            yield row


def energy_distance(x: Tensor, y: Tensor, within: Tensor) -> Tensor:
    """2 E‖x − y‖ − E‖x − x′‖ − E‖y − y′‖, unbiased, and so below 0 at times; `within` is the last term."""
    return 2 * mean_distance(x, y) - mean_distance(x, x) * len(x) / (len(x) - 1) - within


def mean_distance(x: Tensor, y: Tensor) -> Tensor:
    """The mean of ‖x_i − y_j‖ over all pairs, a part at a time."""
    parts = [torch.cdist(part, y, compute_mode="use_mm_for_euclid_dist").sum() for part in x.split(512)]
    return torch.stack(parts).sum() / (len(x) * len(y))
