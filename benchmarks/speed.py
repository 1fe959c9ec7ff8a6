"""How fast training and sampling are on this machine: a table, and a JSON file with versions and machine.

    python -m benchmarks.speed [--out speed.json] [--threads 1] [--seconds 3] [--what sampler networks samples training]

- sampler: microseconds of an evaluation beyond the denoiser, x/2 in a new tensor, beside the same steps by hand: as few
  passes over the state as torch's operations allow, in float64, and in float32.
- networks: an evaluation, and a training pass (loss and gradient), beside the bare convolutions, products and
  attentions of the network (`benchmarks.roofline`), the same arithmetic written plainly, and mixed precision.
- samples: 1,000 digits by `sample_batches` beside the evaluations of the bare network that they need.
- training: images a second of whole optimiser steps through `Trainer`.

Every number is a median over interleaved repetitions, and ratios are medians of the ratios of a repetition. Peak memory
is the process's high-water mark.
"""

import argparse
import copy
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.by_hand import Half, euler_by_hand, multistep_by_hand, two_m_by_hand
from benchmarks.common import machine, write_json
from benchmarks.pairs import paired, ratio
from benchmarks.roofline import BareOperations, plain
from torch import Tensor

from openedm.data import InMemory
from openedm.denoiser import Preconditioned, configure_execution
from openedm.ground.devices import keep_freed_memory
from openedm.levels import Karras
from openedm.networks import DDPMpp
from openedm.objective import EDM
from openedm.sampling import Auto, DPMSolverPP2M, Euler, Heun, Sampler, sample_batches
from openedm.sampling.engine.steps import Plan
from openedm.training import Model, Options, Trainer, TrainingProgress, num_parameters
from openedm.training import Observer as TrainingObserver
from openedm.training.steps import LossModule

NETWORKS = {
    "digits 8×8, DDPM++ 32×(1,2)": ((1, 8, 8), DDPMpp(32, (1, 2), num_blocks=1), 64),
    "Fashion-MNIST 28×28, DDPM++ 32×(1,2,2)": ((1, 28, 28), DDPMpp(32, (1, 2, 2), num_blocks=1), 16),
}
STEPS = 20
WHAT = ("sampler", "networks", "samples", "training")

Row = dict[str, Any]


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


def training(seconds: float) -> list[Row]:
    """Images a second of each network."""
    rows = []
    for name, (shape, network, batch_size) in NETWORKS.items():
        data = _data(shape, batch_size)
        speeds = Speeds(seconds)
        options = Options(images=10**9, batch_size=batch_size, validate_every=0, snapshot_every=0)
        trainer = Trainer(Model.for_data(data, network), data, options=options, observers=[speeds])
        trainer.fit(speeds.done)
        parameters = num_parameters(trainer.denoiser)
        value = statistics.median(speeds.values)
        rows.append({"what": f"training: {name}, {parameters:,} parameters", "value": value, "unit": "images/s"})
    return rows


def _data(shape: tuple[int, ...], batch_size: int) -> InMemory:
    return InMemory(torch.rand(4 * batch_size, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1)


def sampler(seconds: float) -> list[Row]:
    """Microseconds of an evaluation beyond the denoiser, at two sizes."""
    rows = []
    denoiser = Half()
    levels = Karras(STEPS)
    cases: dict[str, tuple[Sampler, Callable[[Plan, Tensor], Tensor] | None]] = {
        "Euler": (Sampler(levels, solver=Euler()), euler_by_hand),
        "Heun": (Sampler(levels, solver=Heun()), None),
        "2M": (Sampler(levels, solver=DPMSolverPP2M()), two_m_by_hand),
        f"Auto({STEPS})": (Auto(STEPS).choose(denoiser), multistep_by_hand),
    }
    for shape in ((1, 3, 32, 32), (64, 3, 32, 32)):
        noise = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        single = noise.float()
        for name, (chosen, by_hand) in cases.items():
            plan = chosen.plan(denoiser)
            top, count = plan.steps[0].sigma, sum(len(step.stages) for step in plan.steps)
            runs: dict[str, Callable[[], object]] = {
                name: lambda c=chosen, n=noise: c.sample(denoiser, noise=n),
                "denoiser": lambda n=noise, k=count: [n * 0.5 for _ in range(k)],
                "denoiser, float32": lambda n=single, k=count: [n * 0.5 for _ in range(k)],
            }
            if by_hand is not None:
                runs |= {
                    f"{name} by hand": lambda f=by_hand, p=plan, n=noise, s=top: f(p, n * s),
                    f"{name} by hand, float32": lambda f=by_hand, p=plan, n=single, s=top: f(p, n * s),
                }
                torch.testing.assert_close(runs[name](), runs[f"{name} by hand"](), rtol=1e-9, atol=1e-9)
            times = paired(runs, seconds / len(cases))
            floor = beyond(times, f"{name} by hand", "denoiser") if by_hand is not None else None
            for key in runs:
                if key.startswith("denoiser"):
                    continue
                own = beyond(times, key, "denoiser, float32" if key.endswith("float32") else "denoiser")
                row = {"what": f"sampler: {key}, {'×'.join(map(str, shape))}", "unit": "µs/evaluation"}
                row |= {"value": statistics.median(own) / count * 1e6}
                rows.append(row if floor is None else row | {"ratios": {"by hand": ratio(own, floor)}})
    return rows


def beyond(times: dict[str, list[float]], run: str, denoiser: str) -> list[float]:
    """The seconds of each repetition beyond the denoiser's; half of it where nothing is left."""
    return [max(a - b, b / 2) for a, b in zip(times[run], times[denoiser], strict=True)]


def networks(seconds: float) -> list[Row]:
    """Milliseconds of an evaluation and of a training pass, and their ratios to what could stand for them."""
    rows = []
    for name, (shape, network, batch_size) in NETWORKS.items():
        data = _data(shape, batch_size)
        denoiser = Model.for_data(data, network).build_on(torch.device("cpu"))
        random = torch.Generator().manual_seed(0)
        clean, noise = (torch.randn(batch_size, *shape, generator=random) for _ in range(2))
        sigma = torch.rand(batch_size, generator=random, dtype=torch.float64) + 0.1
        losses = {kind: LossModule(value, EDM()) for kind, value in _kinds(denoiser).items()}

        def evaluate(kind: str, losses=losses, clean=clean, sigma=sigma) -> None:  # type: ignore[no-untyped-def]
            with torch.no_grad():
                losses[kind].denoiser(clean, sigma)

        def train(kind: str, losses=losses, clean=clean, noise=noise, sigma=sigma) -> None:  # type: ignore[no-untyped-def]
            losses[kind](clean, noise, sigma, None).total.sum().backward()
            losses[kind].zero_grad()

        for what, run, is_training in (("evaluation", evaluate, False), ("training pass", train, True)):
            for loss in losses.values():
                loss.train(is_training)
            bare = {kind: BareOperations.of(lambda k=kind: evaluate(k)) for kind in ("ours", "bf16")}
            alone = {f"bare {kind}": ops.backward if is_training else ops.forward for kind, ops in bare.items()}
            times = paired({kind: lambda k=kind, f=run: f(k) for kind in losses} | alone, seconds)
            ours = times["ours"]
            ratios = {other: ratio(ours, times[other]) for other in ("plain", "plain, channels last", "bare ours")}
            ratios["bf16 / ours"] = ratio(times["bf16"], ours)
            ratios["bf16 / its bare"] = ratio(times["bf16"], times["bare bf16"])
            row = {"what": f"{what}: {name}, batch {batch_size}", "value": statistics.median(ours) * 1e3, "unit": "ms"}
            rows.append(row | {"ratios": ratios})
    return rows


def _kinds(denoiser: Preconditioned) -> dict[str, Preconditioned]:
    """The denoiser, and others with the same weights: written plainly, in the memory format of published code and in
    that of ours, and in mixed precision."""
    contiguous, same_format = (copy.deepcopy(denoiser) for _ in range(2))
    contiguous.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for each in (contiguous, same_format):
        plain(each.network)
    mixed = configure_execution(copy.deepcopy(denoiser), precision="bf16")
    return {"ours": denoiser, "plain": contiguous, "plain, channels last": same_format, "bf16": mixed}


def samples(seconds: float) -> list[Row]:
    """Samples a second, beside evaluations of the network alone."""
    shape, network, batch_size = next(iter(NETWORKS.values()))
    count, per_batch = 1000, 250
    denoiser = Model.for_data(_data(shape, batch_size), network).build_on(torch.device("cpu")).eval()
    x, c_noise = torch.randn(per_batch, *shape), torch.zeros(per_batch)
    rows = []
    for name, rule in (("Auto(9)", Auto(9)), ("Heun", Sampler(Karras(5)))):
        chosen = rule.choose(denoiser)
        evaluations = chosen.nfe

        def bare(evaluations=evaluations) -> None:  # type: ignore[no-untyped-def]
            with torch.no_grad():
                for _ in range(count // per_batch * evaluations):
                    denoiser.network(x, c_noise)

        def drawn(chosen=chosen) -> None:  # type: ignore[no-untyped-def]
            for _ in sample_batches(chosen, denoiser, range(count), batch_size=per_batch):
                pass

        times = paired({"sample": drawn, "network": bare}, seconds)
        value = count / statistics.median(times["sample"])
        row = {"what": f"samples: 1,000 digits, {name}, {evaluations} evaluations", "value": value, "unit": "images/s"}
        rows.append(row | {"ratios": {"of the network's rate": ratio(times["network"], times["sample"])}})
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    parser.add_argument("--threads", type=int, help="torch's threads; all cores by default")
    parser.add_argument("--seconds", type=float, default=5.0, help="measuring time of each case")
    parser.add_argument("--what", nargs="+", choices=WHAT, default=list(WHAT), help="parts to measure; all by default")
    arguments = parser.parse_args()
    keep_freed_memory()  # As the command line does.
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    measure = {"sampler": sampler, "networks": networks, "samples": samples, "training": training}
    rows: list[Row] = []
    for what in arguments.what:
        for row in measure[what](arguments.seconds):
            ratios = "".join(f"  {value:.2f} {name}" for name, value in row.get("ratios", {}).items())
            print(f"{row['what']:<72} {row['value']:9.1f} {row['unit']}{ratios}", flush=True)
            rows.append(row)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{'peak memory':<72} {memory:9.1f} MiB")
    if arguments.out is not None:
        write_json(arguments.out, {"machine": machine(), "rows": rows, "peak_memory_mib": memory})


if __name__ == "__main__":
    main()
