"""What a step of training costs on many processes: a model of it, fitted here to two, and written for 8 and 64 GPUs.

    python -m benchmarks.scaling [--seconds 3] [--out scaling.json]
    python -m benchmarks.scaling --paper [--link 200 3] [--nodes 25 10]       # the second table alone, no measurement

The model is `openedm.training.scaling`, which `openedm train --plan true` prints for a run.

Two thirds of the compute are the backward pass, behind which traffic hides on a GPU, and not where processes compute
and communicate with the same cores, as here: `hidden` is 0 for gloo. α and β are fitted to the times of all-reduces of
several sizes between two processes, by least squares of relative errors. From them follows the efficiency of two
processes: the time of a step of both without communication, over that with it. It is predicted, and measured in turn.

Assumed, not measured, in the table for GPUs: β = 200 GB/s and α = 3 µs among 8 GPUs of a machine (NVLink), 25 GB/s and
10 µs a GPU among machines; hidden = 0.9; images a second of one GPU as the table says, the same at any batch; data that
arrive in time; equal processes. What the model leaves out: stragglers, the loader, the first steps, checkpoints,
validation, and averages, which are updated on every process and are part of the compute.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as processes
from benchmarks.common import machine, write_json
from torch import distributed, nn

from openedm.networks import DDPMpp
from openedm.training.scaling import GPUS, Link, Work, efficiency

SIZES = (1 << 12, 1 << 18, 1 << 21, 1 << 24)
"""Bytes of the all-reduces that are timed."""
BYTES = 4


PAPER = {
    "DDPM++, CIFAR-10": Work(56_000_000, 40, 512, 300.0),
    "ADM, ImageNet-64": Work(296_000_000, 60, 4096, 100.0),
    "EDM2-XXL, latents": Work(1_500_000_000, 60, 2048, 25.0),
}
"""Weights and batches of the papers; the images a second are assumptions for a GPU of 2023 in mixed precision."""


def _join(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)


def _measure(rank: int, folder: str, seconds: float) -> None:
    """One of two processes: times of all-reduces, and of steps alone and together."""
    _join(rank, folder)
    reduced = {size: _timed(lambda x=torch.ones(size // BYTES): distributed.all_reduce(x), seconds) for size in SIZES}
    found: list[dict[str, Any]] = []
    for channels in (16, 32):
        module = DDPMpp(channels, (1, 2), num_blocks=1).build((1, 8, 8), seed=0)
        for batch in (8, 32):
            alone, together = _steps(module, batch, seconds)
            weights = sum(p.numel() for p in module.parameters())
            found.append({"weights": weights, "batch": batch, "alone": alone, "together": together})
    if rank == 0:
        torch.save({"reduced": reduced, "steps": found}, Path(folder) / "times.pt")
    distributed.destroy_process_group()


def _timed(run: Any, seconds: float) -> float:
    """The median time of a call that both processes make; as often as the first process says."""
    times: list[float] = []
    deadline = time.perf_counter() + seconds / 4
    more = torch.ones(1)
    while float(more) > 0:
        distributed.barrier()
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
        more = torch.tensor([float(time.perf_counter() < deadline or len(times) < 5)])
        distributed.broadcast(more, 0)
    return statistics.median(times[1:])


def _steps(module: nn.Module, batch: int, seconds: float) -> tuple[float, float]:
    """Median seconds of a step of both processes without communication, and with that of DDP."""
    shared = nn.parallel.DistributedDataParallel(module)
    optimiser = torch.optim.Adam(module.parameters())
    x, sigma = torch.randn(batch, 1, 8, 8), torch.zeros(batch)

    def take(network: nn.Module) -> None:
        optimiser.zero_grad()
        network(x, sigma).square().mean().backward()
        optimiser.step()

    def alone() -> None:
        with shared.no_sync():
            take(shared)

    times: dict[str, list[float]] = {"alone": [], "together": []}
    rounds = 4
    while rounds:
        for name, run in (("alone", alone), ("together", lambda: take(shared))):
            times[name].append(_timed(run, seconds / 8))
        rounds -= 1
    return statistics.median(times["alone"]), statistics.median(times["together"])


def fit(reduced: dict[int, float]) -> Link:
    """α and β of t = 2 α + bytes/β, with the least relative errors: an all-reduce of two processes."""
    sizes = torch.tensor(list(reduced), dtype=torch.float64)
    times = torch.tensor(list(reduced.values()), dtype=torch.float64)
    columns = torch.stack([2 * torch.ones_like(sizes), sizes], 1) / times[:, None]
    latency, inverse = torch.linalg.lstsq(columns, torch.ones_like(times)[:, None]).solution[:, 0].tolist()
    return Link(1 / inverse, max(latency, 0.0))


def _shown(link: Link) -> tuple[float, float]:
    """GB/s and µs."""
    return link.bandwidth / 1e9, 1e6 * link.latency


def main() -> None:
    """Measure, fit and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paper", action="store_true", help="the table for GPUs alone")
    parser.add_argument("--seconds", type=float, default=3.0, help="measuring time of each case")
    parser.add_argument("--link", type=float, nargs=2, default=_shown(GPUS.near), help="GB/s and µs in a machine")
    parser.add_argument("--nodes", type=float, nargs=2, default=_shown(GPUS.far), help="GB/s and µs among machines")
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    given = parser.parse_args()
    found: dict[str, Any] = {"machine": machine()}
    if not given.paper:
        with tempfile.TemporaryDirectory() as folder:
            processes.start_processes(_measure, (folder, given.seconds), nprocs=2, start_method="spawn")
            times = torch.load(Path(folder) / "times.pt")
        link = fit(times["reduced"])
        print(f"two gloo processes: {link.bandwidth / 1e9:.2f} GB/s, {1e6 * link.latency:.0f} µs a call")
        print("  weights  batch  ms alone  ms together  efficiency  predicted")
        for row in times["steps"]:
            work = Work(row["weights"], 1, 2 * row["batch"], row["batch"] / row["alone"])
            row["efficiency"], row["predicted"] = row["alone"] / row["together"], efficiency(work, link, 2)
            print(
                f"{row['weights']:>9,}{row['batch']:>7}{1e3 * row['alone']:>10.1f}{1e3 * row['together']:>13.1f}"
                f"{row['efficiency']:>12.2f}{row['predicted']:>11.2f}"
            )
        found |= {"link": link._asdict(), **times}
    near, far = (Link(1e9 * gigabytes, 1e-6 * micro) for gigabytes, micro in (given.link, given.nodes))
    print("\nassumed, on paper:    weights   batch  images/s of one  efficiency of 8: DDP  FSDP2   of 64: DDP  FSDP2")
    rows = []
    for name, work in PAPER.items():
        cells = [
            efficiency(work, link, count, sharded=sharded, hidden=GPUS.hidden)
            for link, count in ((near, 8), (far, 64))
            for sharded in (False, True)
        ]
        rows.append({"name": name, **work._asdict(), "efficiencies": cells})
        print(
            f"{name:<18}{work.weights:>11,}{work.batch:>8}{work.rate:>17.0f}{cells[0]:>22.2f}{cells[1]:>7.2f}"
            f"{cells[2]:>13.2f}{cells[3]:>7.2f}"
        )
    if given.out is not None:
        write_json(given.out, {**found, "paper": rows})


if __name__ == "__main__":
    main()
