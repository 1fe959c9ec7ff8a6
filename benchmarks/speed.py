"""How fast training and sampling are on this machine: a table, and a JSON file with versions and machine.

    python -m benchmarks.speed [--out speed.json] [--threads 1] [--seconds 3]

Training: images a second of whole optimiser steps through `Trainer`. Sampling: time of an evaluation beyond the
denoiser, with a denoiser that costs next to nothing; the floor is the arithmetic alone, written by hand. Medians of
interleaved repetitions; peak memory is the process's high-water mark.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.common import interleaved, machine, write_json
from torch import Tensor

from openedm.data import InMemory
from openedm.denoiser import FunctionDenoiser
from openedm.ground.devices import keep_freed_memory
from openedm.levels import Karras
from openedm.networks import DDPMpp
from openedm.sampling import Euler, Heun, Sampler
from openedm.training import Model, Options, Trainer, TrainingProgress, num_parameters
from openedm.training import Observer as TrainingObserver

NETWORKS = {
    "digits 8×8, DDPM++ 32×(1,2)": ((1, 8, 8), DDPMpp(32, (1, 2), num_blocks=1), 128),
    "Fashion-MNIST 28×28, DDPM++ 32×(1,2,2)": ((1, 28, 28), DDPMpp(32, (1, 2, 2), num_blocks=1), 64),
}
STEPS = 20


class Speeds(TrainingObserver):
    """Collects the speed of every step after the first two."""

    def __init__(self, seconds: float) -> None:
        self.values: list[float] = []
        self.deadline = time.perf_counter() + seconds

    def on_progress(self, progress: TrainingProgress) -> None:
        """Remember one step."""
        if progress.step > 2:
            self.values.append(progress.images_per_second)

    def done(self) -> bool:
        """Whether the time is over and something was measured."""
        return bool(self.values) and time.perf_counter() > self.deadline


def training(seconds: float) -> list[dict[str, Any]]:
    """Images a second of each network."""
    rows = []
    for name, (shape, network, batch_size) in NETWORKS.items():
        data = InMemory(torch.rand(4 * batch_size, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1)
        speeds = Speeds(seconds)
        options = Options(images=10**9, batch_size=batch_size, validate_every=0, snapshot_every=0)
        trainer = Trainer(Model.for_data(data, network), data, options=options, observers=[speeds])
        trainer.fit(speeds.done)
        parameters = num_parameters(trainer.denoiser)
        value = statistics.median(speeds.values)
        rows.append({"what": f"training: {name}, {parameters:,} parameters", "value": value, "unit": "images/s"})
    return rows


def euler_by_hand(x: Tensor, sigmas: list[float]) -> Tensor:
    """The arithmetic of Euler's method in σ with D(x) = x/2, without a library around it."""
    for sigma, following in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        x = torch.lerp(x * 0.5, x, following / sigma)
    return x


def sampling(seconds: float) -> list[dict[str, Any]]:
    """Microseconds a step beyond the denoiser, at two sizes, float64."""
    rows = []
    denoiser = FunctionDenoiser(lambda x, sigma, condition: x * 0.5)
    levels = Karras(STEPS)
    sigmas = levels.sigmas().tolist()
    for shape in ((1, 3, 32, 32), (64, 3, 32, 32)):
        noise = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        runs: dict[str, tuple[Callable[[], Tensor], int]] = {
            "Euler": (lambda n=noise: Sampler(levels, solver=Euler()).sample(denoiser, noise=n), STEPS),
            "Heun": (lambda n=noise: Sampler(levels, solver=Heun()).sample(denoiser, noise=n), 2 * STEPS - 1),
            "Euler by hand": (lambda n=noise: euler_by_hand(n * sigmas[0], sigmas), STEPS),
        }
        times = interleaved({name: run for name, (run, _) in runs.items()}, seconds)
        medians = {name: times[name].median / evaluations for name, (_, evaluations) in runs.items()}
        floor = medians["Euler by hand"]
        for name, value in medians.items():
            what = f"sampling: {name}, {'×'.join(map(str, shape))}"
            rows.append({"what": what, "value": value * 1e6, "unit": "µs/evaluation", "ratio to floor": value / floor})
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    parser.add_argument("--threads", type=int, help="torch's threads; all cores by default")
    parser.add_argument("--seconds", type=float, default=5.0, help="measuring time of each case")
    arguments = parser.parse_args()
    keep_freed_memory()  # As the command line does.
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    rows = sampling(arguments.seconds) + training(arguments.seconds)
    for row in rows:
        ratio = f"  {row['ratio to floor']:5.2f} × the floor" if "ratio to floor" in row else ""
        print(f"{row['what']:<75} {row['value']:9.1f} {row['unit']}{ratio}")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{'peak memory':<75} {memory:9.1f} MiB")
    if arguments.out is not None:
        write_json(arguments.out, {"machine": machine(), "rows": rows, "peak_memory_mib": memory})


if __name__ == "__main__":
    main()
