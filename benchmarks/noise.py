"""What the noise of a step costs: a table, and a JSON file with versions and machine.

    OMP_NUM_THREADS=1 python -m benchmarks.noise [--out noise.json] [--threads 1] [--seconds 5]

Milliseconds for each step of EDM's levels, all of a run counted: a Brownian path makes most of itself in the first
steps, so that few steps cost more each, and `BrownianNoise` and `SeededNoise` make a generator a sample, for the noise
that sampling starts from (5 µs each: most of the cost at 10,000 × 2). Beside them are `torch.randn` and, where torchsde
is installed (`benchmarks/.venv/bin/python`), its `BrownianTree` for the whole batch and with one tree a sample. Medians
of interleaved runs, after one that is not counted.
"""

import argparse
import importlib.util
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from benchmarks.common import interleaved, machine, write_json

from openedm.levels import Karras
from openedm.sampling import BrownianNoise, SeededNoise

SHAPES = ((64, 3, 32, 32), (1, 3, 32, 32), (10_000, 2))
STEPS = (8, 18, 40, 100)
TREE_STEPS = 18
"""Trees are measured at this number only: they take seconds a run."""


def runs(shape: tuple[int, ...], steps: int) -> dict[str, Callable[[], object]]:
    """Each draws the noise of `steps` steps and forgets it."""
    batch, *rest = shape
    event, sigmas = tuple(rest), [*Karras(steps).sigmas().tolist(), 0.0]

    def brownian(dtype: torch.dtype) -> None:
        noise = BrownianNoise(range(batch))
        for sigma, sigma_next in pairwise(sigmas):
            noise.step_noise(sigma, sigma_next, event, dtype=dtype)

    def seeded() -> None:
        noise = SeededNoise(range(batch))
        for _ in range(steps):
            noise.draw(event)

    def randn(dtype: torch.dtype) -> None:
        for _ in range(steps):
            torch.randn(shape, dtype=dtype)

    return {
        "torch.randn, float32": lambda: randn(torch.float32),
        "torch.randn, float64": lambda: randn(torch.float64),
        "openedm SeededNoise": seeded,
        "openedm BrownianNoise, float32": lambda: brownian(torch.float32),
        "openedm BrownianNoise, float64": lambda: brownian(torch.float64),
    }


def trees(shape: tuple[int, ...], steps: int) -> dict[str, Callable[[], object]]:
    """The same with torchsde, float32, for time σ."""
    import torchsde

    sigmas = [*Karras(steps).sigmas().tolist(), 0.0]

    def run(count: int) -> None:
        start = torch.zeros((shape[0] // count, *shape[1:]))
        noise = [torchsde.BrownianTree(0.0, start, sigmas[0], entropy=seed) for seed in range(count)]
        for sigma, sigma_next in pairwise(sigmas):
            torch.cat([tree(sigma_next, sigma) for tree in noise]).div_((sigma - sigma_next) ** 0.5)

    return {
        "torchsde BrownianTree, one": lambda: run(1),
        "torchsde BrownianTree, one a sample": lambda: run(shape[0]),
    }


def measure(shape: tuple[int, ...], steps: int, peers: bool, seconds: float) -> list[dict[str, Any]]:
    """Milliseconds a step of each source, and how many `torch.randn` in float32 that is."""
    sources = runs(shape, steps) | (trees(shape, steps) if peers and steps == TREE_STEPS and shape[0] <= 64 else {})
    times = {name: time.median * 1e3 / steps for name, time in interleaved(sources, seconds).items()}
    unit = times["torch.randn, float32"]
    return [
        {
            "what": name,
            "shape": shape,
            "steps": steps,
            "value": value,
            "unit": "ms/step",
            "ratio to randn": value / unit,
        }
        for name, value in times.items()
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    parser.add_argument("--threads", type=int, help="torch's threads; all cores by default")
    parser.add_argument("--seconds", type=float, default=3.0, help="measuring time of each case")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    peers = importlib.util.find_spec("torchsde") is not None
    rows = []
    for shape, steps in product(SHAPES, STEPS):
        print(f"{'×'.join(map(str, shape))}, {steps} steps")
        for row in measure(shape, steps, peers, arguments.seconds):
            print(f"  {row['what']:<40} {row['value']:9.3f} ms/step {row['ratio to randn']:8.2f} × torch.randn")
            rows.append(row)
    if arguments.out is not None:
        write_json(arguments.out, {"machine": machine(("torchsde",) if peers else ()), "rows": rows})


if __name__ == "__main__":
    main()
