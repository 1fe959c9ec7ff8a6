"""Samples of networks trained and sampled with the numbers of `openedm.suggest` against those with the defaults.

    python -m benchmarks.suggested [--seeds 5] [--images 200000] [--out suggested.json]

For each problem and seed two networks are trained with the same budget, one with EDM's p(σ) and levels, one with those
that `suggest` finds; both are sampled with 32 evaluations. Vectors are in standard units (mean 0, standard deviation
0.5 a feature), the units in which a model trains and in which the suggested numbers are. The score is the sliced
Wasserstein distance of 2,000 samples to as many held-out ones in these units; the table gives its mean over seeds, that
of real data, and the ratio suggested/default with a 95 % interval (Student's t of the paired logarithms). The rules of
`suggest` may be chosen on the problems marked "design"; the others report. Results are in `benchmarks/README.md`.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student
from torch import Tensor

from openedm.data import Digits, InMemory, Toy
from openedm.networks import MLP
from openedm.objective import EDM
from openedm.sampling import Auto
from openedm.suggest import suggest
from openedm.training import HalfLife, Model, Options, Trainer

SAMPLES = 2000
PROJECTIONS = 256


@dataclass(frozen=True)
class Problem:
    """Data of some scale: a function of a seed that returns vectors, and whether rules may be chosen on it."""

    draw: Callable[[int], Tensor]
    design: bool


def of_toy(name: str, scale: float) -> Callable[[int], Tensor]:
    """A toy density in other units."""
    return lambda seed: scale * Toy(name, num_samples=8000, seed=seed).load().fetch(range(8000))[0]


def digits(seed: int) -> Tensor:
    """The 8×8 digits, as vectors, in random order."""
    data = Digits().load()
    return data.fetch(range(len(data)))[0].flatten(1)[torch.randperm(len(data), generator=_random(seed))]


def kelvin(seed: int) -> Tensor:
    """Temperatures at six places: a common seasonal cycle, and weather that is correlated from place to place."""
    random = _random(seed)
    season = torch.rand(8000, 1, generator=random) * 2 * math.pi
    weather = torch.randn(8000, 6, generator=random).cumsum(1) / 2
    phases = torch.linspace(0, 1, 6)
    return 280 + 9 * (season + phases).sin() + 2 * weather


def scales(seed: int) -> Tensor:
    """Clusters of clusters: three levels of structure, each ten times finer than the one above it."""
    random = _random(seed)
    corners = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    levels = (0.1**k * corners[torch.randint(4, (8000,), generator=random)] for k in range(3))
    return sum(levels, 0.002 * torch.randn(8000, 2, generator=random))


PROBLEMS = {
    "digits": Problem(digits, design=True),
    "two moons × 100": Problem(of_toy("two_moons", 100.0), design=True),
    "kelvin": Problem(kelvin, design=True),
    "spiral / 1000": Problem(of_toy("spiral", 1e-3), design=False),
    "three scales": Problem(scales, design=False),
}


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def standardised(x: Tensor) -> Tensor:
    """Mean 0 and standard deviation 0.5 a feature; features that are constant stay so."""
    std = x.std(0, correction=0)
    return (x - x.mean(0)) / torch.where(std > 0, 2 * std, 1.0)


def distance(x: Tensor, y: Tensor) -> float:
    """The sliced Wasserstein distance of order 1."""
    directions = torch.nn.functional.normalize(torch.randn(x.shape[1], PROJECTIONS, generator=_random(0)), dim=0)
    ends = ((z.float() @ directions).sort(0).values for z in (x, y))
    first, second = ends
    return float((first - second).abs().mean())


def score(train: Tensor, held_out: Tensor, seed: int, images: int, *, suggested: bool) -> float:
    """The distance to held-out data of samples of a network."""
    data = InMemory(train)
    objective, sampler = EDM(), Auto(32)
    if suggested:
        found = suggest(data, seed=seed)
        objective, sampler = EDM(noise=found.noise), Auto(32, sigma_min=found.sigma_min, sigma_max=found.sigma_max)
    options = Options(
        images=images, batch_size=256, average=HalfLife(images / 20), validate_every=0, snapshot_every=0, seed=seed
    )
    trainer = Trainer(Model.for_data(data, MLP(width=128, num_blocks=3)), data, objective, options)
    return distance(sampler.sample(trainer.fit(), range(len(held_out))), held_out)


def compare(name: str, problem: Problem, seeds: int, images: int) -> dict[str, Any]:
    """The scores of a problem with the defaults and with the suggested numbers."""
    floors, pairs = [], []
    for seed in range(seeds):
        x = standardised(problem.draw(seed))
        count = min(SAMPLES, len(x) // 3)
        held_out, other, train = x[:count], x[count : 2 * count], x[count:]
        floors.append(distance(other, held_out))
        pairs.append([score(train, held_out, seed, images, suggested=flag) for flag in (False, True)])
    logs = [math.log(after / before) for before, after in pairs]
    middle, half = statistics.fmean(logs), math.inf
    if seeds > 1:
        half = float(student.ppf(0.975, seeds - 1)) * statistics.stdev(logs) / math.sqrt(seeds)
    return {
        "problem": name,
        "design": problem.design,
        "real": statistics.fmean(floors),
        "default": statistics.fmean(before for before, _ in pairs),
        "suggested": statistics.fmean(after for _, after in pairs),
        "ratio": math.exp(middle),
        "interval": [math.exp(middle - half), math.exp(middle + half)],
        "scores": pairs,
    }


def main() -> None:
    """Run all problems, print the table, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--only", choices=list(PROBLEMS), nargs="*", default=list(PROBLEMS))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = []
    print("| problem | | real | default | suggested | suggested/default |\n|---|---|---|---|---|---|")
    for name in given.only:
        row = compare(name, PROBLEMS[name], given.seeds, given.images)
        rows.append(row)
        low, high = row["interval"]
        role = "design" if row["design"] else "report"
        numbers = " | ".join(f"{row[key]:.4f}" for key in ("real", "default", "suggested"))
        print(f"| {name} | {role} | {numbers} | {row['ratio']:.2f} [{low:.2f}, {high:.2f}] |", flush=True)
    if given.out is not None:
        given.out.write_text(json.dumps({"seeds": given.seeds, "images": given.images, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
