"""What noise in the steps does for posteriors: a table, and a JSON file with versions and machine.

    OMP_NUM_THREADS=1 python -m benchmarks.churn [--what exact trained] [--simulations 1000 10000] [--out churn.json]

Samples of posteriors of two parameters, by the default sampler, by EDM's (Heun) with and without churn, and by SDEs, at
the same numbers of network evaluations. Two kinds of denoisers: exact ones (mixtures in closed form: narrow ones, four
modes of unequal weight, modes of different width), where all errors are those of the sampler; and denoisers trained on
simulations, where noise may also correct what the network has not learned, against draws of the exact posterior from a
grid, at three observations each.

The error is the Wasserstein distance of projections on 64 directions to exact samples, in standard deviations of each
projection, averaged, in percent. Two exact sets of samples differ by the number in the first column. Beside it the
ratio of widths that is furthest from 1.
"""

import argparse
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from benchmarks.common import machine, write_json
from torch import Tensor

from openedm.exact import GaussianMixture
from openedm.inference import Box, Settings, fit
from openedm.levels import Karras, Levels
from openedm.sampling import Auto, Churn, DPMSolverPP2M, EulerMaruyama, Restart, Sampler, SamplerChoice

EVALUATIONS = (18, 36, 80, 160)
SAMPLES = 10_000
DIRECTIONS = 64
POINTS = 801
"""Cells of a parameter in the grid of an exact posterior."""


def samplers(nfe: int) -> dict[str, SamplerChoice]:
    """Samplers of at most so many evaluations, on levels from 80 to 0.002."""

    def levels(steps: int) -> Levels:
        return Karras(steps, sigma_min=0.002, sigma_max=80.0)

    heun = levels((nfe + 1) // 2)
    band = {"s_min": 0.05, "s_max": 1.0}
    return {
        "default (Auto)": Auto(nfe, sigma_min=1e-3, sigma_max=80.0),
        "Heun": Sampler(heun),
        "Heun, churn 5": Sampler(heun, churn=Churn(5.0)),
        "Heun, churn 20": Sampler(heun, churn=Churn(20.0)),
        "Heun, churn 20 in 0.05-1": Sampler(heun, churn=Churn(20.0, **band)),
        "Restart, 0.1-1, twice": Sampler(levels(max(2, (nfe - 11) // 2)), solver=Restart(low=0.1, high=1.0)),
        "SDE, DPM-Solver++ 2M": Sampler(levels(nfe), solver=DPMSolverPP2M(eta=1.0)),
        "SDE, Euler-Maruyama": Sampler(levels(nfe), solver=EulerMaruyama()),
    }


class Case(NamedTuple):
    """A posterior.

    Attributes:
        name: of the problem.
        draw: samples by a sampler.
        exact: two sets of exact samples.
    """

    name: str
    draw: Callable[[SamplerChoice], Tensor]
    exact: tuple[Tensor, Tensor]


def exact_cases() -> Iterator[Case]:
    """Posteriors whose denoisers are known."""
    eye = torch.eye(2)
    ridge = torch.tensor([[1.0, 0.999], [0.999, 1.0]])
    four = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    mixtures = {
        "ridge": ([1.0], torch.zeros(1, 2), ridge[None]),
        "narrow": ([1.0], torch.tensor([[0.7, -0.4]]), 0.02**2 * eye[None]),
        "four modes": ([0.4, 0.3, 0.2, 0.1], four, (0.05**2 * eye).repeat(4, 1, 1)),
        "wide and narrow": ([0.5, 0.5], torch.zeros(2, 2), torch.stack([eye, 0.1**2 * eye])),
    }
    for name, mixture in mixtures.items():
        denoiser = GaussianMixture(*mixture)
        first, second = (denoiser.sample(SAMPLES, torch.Generator().manual_seed(seed)) for seed in (1, 2))
        yield Case(f"exact, {name}", lambda s, d=denoiser: s.sample(d, seeds=range(SAMPLES)), (first, second))


class Problem(NamedTuple):
    """x = curve(θ) + noise · N(0, I), θ uniform in [−1, 1]²."""

    curve: Callable[[Tensor], Tensor]
    noise: float


PROBLEMS: Mapping[str, Problem] = {
    "ridge": Problem(lambda t: torch.stack([5 * (t[:, 0] + t[:, 1]), t[:, 0] - t[:, 1]], 1), 0.2),
    "four modes": Problem(lambda t: t.square(), 0.05),
    "ring": Problem(lambda t: t.square().sum(1, keepdim=True).sqrt(), 0.05),
}
TRUTHS = ((0.5, 0.4), (-0.3, 0.6), (0.7, -0.2))


def trained_cases(simulations: int, seed: int = 0) -> Iterator[Case]:
    """Posteriors of a denoiser that has learned from simulations alone."""
    prior = Box([-1.0, -1.0], [1.0, 1.0])
    for name, problem in PROBLEMS.items():
        theta = prior.sample(simulations, seed)
        clean = problem.curve(theta)
        x = clean + problem.noise * torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed + 1))
        rule = Settings.of(simulations, 2, tuple(x.shape[1:]))
        posterior = fit(theta, x, prior, settings=replace(rule, emulator=None, refinement=None), seed=seed).plain()
        for i, truth in enumerate(TRUTHS):
            true = problem.curve(torch.tensor([truth]))[0]
            observed = true + problem.noise * torch.randn(true.shape, generator=torch.Generator().manual_seed(100 + i))
            label = f"{simulations} simulations, {name}"
            yield Case(
                label,
                lambda s, p=posterior, o=observed: p.with_sampler(s).sample(o, SAMPLES).double(),
                (_grid_samples(problem, observed, 1), _grid_samples(problem, observed, 2)),
            )


def _grid_samples(problem: Problem, observed: Tensor, seed: int) -> Tensor:
    axis = (torch.arange(POINTS, dtype=torch.float64) + 0.5) * 2 / POINTS - 1
    grid = torch.cartesian_prod(axis, axis)
    logs = -(problem.curve(grid) - observed).square().sum(1) / (2 * problem.noise**2)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.multinomial((logs - logs.max()).exp(), SAMPLES, replacement=True, generator=generator)
    return grid[rows] + 2 / POINTS * (torch.rand(SAMPLES, 2, generator=generator, dtype=torch.float64) - 0.5)


def error(samples: Tensor, exact: Tensor) -> tuple[float, float]:
    """The mean Wasserstein distance of projections in percent, and the worst ratio of widths of them."""
    angles = torch.arange(DIRECTIONS, dtype=torch.float64) * math.pi / DIRECTIONS
    directions = torch.stack([angles.cos(), angles.sin()])
    ours, known = ((points.double() @ directions).sort(0).values for points in (samples, exact))
    ratios = (ours.std(0) / known.std(0)).log()
    distance = ((ours - known).abs().mean(0) / known.std(0)).mean()
    return 100 * float(distance), float(ratios[ratios.abs().argmax()].exp())


def measure(cases: Iterator[Case]) -> list[dict[str, Any]]:
    """Every sampler at every number of evaluations on every case; prints a table a problem, of means over its cases."""
    rows: list[dict[str, Any]] = []
    for case in cases:
        floor = error(*case.exact)[0]
        for nfe in EVALUATIONS:
            for name, sampler in samplers(nfe).items():
                distance, ratio = error(case.draw(sampler), case.exact[0])
                row = {"problem": case.name, "floor": floor, "nfe": nfe, "sampler": name}
                rows.append({**row, "distance": distance, "ratio": ratio})
    return rows


def tables(rows: list[dict[str, Any]]) -> str:
    """A table for each problem: distances, and the worst ratio of widths."""
    lines = []
    for problem in dict.fromkeys(row["problem"] for row in rows):
        mine = [row for row in rows if row["problem"] == problem]
        floor = sum(row["floor"] for row in mine) / len(mine)
        lines += ["", f"| {problem} (exact: {floor:.1f}) | {' | '.join(map(str, EVALUATIONS))} |", "|---" * 5 + "|"]
        for name in samplers(EVALUATIONS[0]):
            cells = []
            for nfe in EVALUATIONS:
                found = [row for row in mine if (row["sampler"], row["nfe"]) == (name, nfe)]
                worst = max((row["ratio"] for row in found), key=lambda ratio: abs(math.log(ratio)))
                cells.append(f"{sum(row['distance'] for row in found) / len(found):.1f} ({worst:.2f})")
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", choices=("exact", "trained"), default=["exact", "trained"])
    parser.add_argument("--simulations", nargs="+", type=int, default=[1000, 10_000])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if "exact" in options.what:
        rows += measure(exact_cases())
    if "trained" in options.what:
        for simulations in options.simulations:
            rows += measure(trained_cases(simulations))
    print(tables(rows))
    if options.out is not None:
        write_json(options.out, {"machine": machine(), "rows": rows})


if __name__ == "__main__":
    main()
