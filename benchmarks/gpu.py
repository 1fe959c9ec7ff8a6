"""Training and sampling on a GPU: one network eager and compiled, in TF32 and bf16, as a share of the GPU's peak.

    benchmarks/gpu.sh                                             # on a GPU: all parts, under eight minutes
    DEVICE=cpu SIZE=tiny benchmarks/gpu.sh                        # the same lines on a small network, anywhere
    python -m benchmarks.gpu PART [--device cuda] [--size full] [--rows rows.jsonl]
    python -m benchmarks.gpu table [--rows rows.jsonl]

- peak: teraflops of a product of large matrices in bf16, and in float32 with TF32 allowed.
- train-…: images a second of whole steps through `Trainer`, the DDPM++ of CIFAR-10 at batch 512 in two rounds: eager,
  TF32 and contiguous, as published code has it; with channels last, as `Trainer` has it; in bf16; compiled.
- sample-…: samples a second, 1024 at a time, Heun's method with 18 steps: eager; in bf16; and compiled, with CUDA
  graphs.

Each part is a process of its own, so that one that fails leaves the others. `table` prints the speeds beside those of
the first of its kind, and as a share of the peak in bf16: operations of convolutions and products as torch counts them,
three times those of an evaluation for a step of training.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from benchmarks.common import machine
from torch.utils.flop_counter import FlopCounterMode

from openedm.data import InMemory
from openedm.denoiser import Preconditioned, configure_execution
from openedm.levels import Karras
from openedm.networks import DDPMpp
from openedm.sampling import Sampler, sample_batches
from openedm.training import Model, Observer, Options, Trainer, TrainingProgress

Row = dict[str, Any]


class Size(NamedTuple):
    """How large the work is.

    Attributes:
        network: the network of images of this shape.
        shape: their shape.
        batch: samples of a step of training.
        steps: training steps that are timed, after two.
        samples: samples at a time.
        levels: steps of Heun's method.
        matrix: the side of the matrices of the peak.
    """

    network: DDPMpp
    shape: tuple[int, ...]
    batch: int
    steps: int
    samples: int
    levels: int
    matrix: int


SIZES = {
    "full": Size(
        DDPMpp(128, (2, 2, 2), num_blocks=4, attn_resolutions=(16,), dropout=0.13), (3, 32, 32), 512, 20, 1024, 18, 8192
    ),
    "tiny": Size(DDPMpp(8, (1,), num_blocks=1, attn_resolutions=()), (3, 8, 8), 8, 3, 8, 3, 128),
}
TRAINING: dict[str, tuple[bool, dict[str, Any]]] = {
    "train-contiguous": (False, {}),
    "train": (True, {}),
    "train-bf16": (True, {"precision": "bf16"}),
    "train-compiled": (True, {"precision": "bf16", "compile": True}),
}
"""Whether weights have channels last, and the options, of each part of training."""
SAMPLING = {"sample": ("fp32", None), "sample-bf16": ("bf16", None), "sample-graphs": ("bf16", "reduce-overhead")}
"""Precision and mode of compilation of each part of sampling; reduce-overhead is CUDA graphs."""
PARTS = ("peak", *TRAINING, *SAMPLING)


class Steps(Observer):
    """Collects seconds a step after the first ones, which compile and choose kernels."""

    def __init__(self, count: int) -> None:
        self.count, self.values = count, list[float]()

    def on_progress(self, progress: TrainingProgress) -> None:
        """Remember the speed of a step."""
        if progress.step > 2:
            self.values.append(progress.images_per_second)

    def done(self) -> bool:
        """Whether enough steps were timed."""
        return len(self.values) >= self.count


def train(part: str, size: Size, device: torch.device) -> Row:
    """Images a second of training."""
    channels_last, settings = TRAINING[part]
    random = torch.Generator().manual_seed(0)
    data = InMemory(torch.rand(4 * size.batch, *size.shape, generator=random) * 2 - 1)
    options = Options(images=10**9, batch_size=size.batch, accumulate=2, validate_every=0, snapshot_every=0, **settings)
    steps, on = Steps(size.steps), Accelerator(cpu=device.type == "cpu")
    trainer = Trainer(Model.for_data(data, size.network), data, options=options, observers=[steps], accelerator=on)
    if not channels_last:
        trainer.denoiser.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    operations = 3 * _operations(trainer.denoiser, size)
    trainer.fit(steps.done, progress=False)
    return {"rate": statistics.median(steps.values), "operations": operations}


def sample(part: str, size: Size, device: torch.device) -> Row:
    """Samples a second."""
    precision, mode = SAMPLING[part]
    model = Model(network=size.network, event_shape=size.shape)
    denoiser = model.build_on(device).eval()
    sampler = Sampler(Karras(size.levels))
    operations = sampler.nfe * _operations(denoiser, size)
    configure_execution(denoiser, precision="bf16" if precision == "bf16" else "fp32")
    if mode is not None:
        denoiser.network.compile(mode=mode)

    def draw() -> None:
        for _ in sample_batches(sampler, denoiser, range(size.samples), batch_size=size.samples):
            pass

    draw()  # compiles, and chooses kernels
    seconds = [_timed(draw, device) for _ in range(3)]
    return {"rate": size.samples / statistics.median(seconds), "operations": operations}


def peak(size: Size, device: torch.device) -> Row:
    """Operations a second of a product of large matrices."""
    found = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a, b = (torch.randn(size.matrix, size.matrix, device=device, dtype=dtype) for _ in range(2))
        for _ in range(2):
            a @ b
        seconds = [_timed(lambda a=a, b=b: a @ b, device) for _ in range(10)]
        found[name] = 2 * size.matrix**3 / statistics.median(seconds)
    return found


def _timed(run: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _operations(denoiser: Preconditioned, size: Size) -> float:
    """Operations of an evaluation of one sample."""
    device = next(denoiser.parameters()).device
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        denoiser(torch.zeros(2, *size.shape, device=device), 1.0)
    return counter.get_total_flops() / 2


def table(rows: list[Row]) -> list[str]:
    """The lines of the table."""
    by_part = {row["part"]: row for row in rows}
    lines = []
    top = by_part.get("peak", {}).get("bf16")
    if top is not None:
        found = by_part["peak"]
        lines.append(
            f"peak of a product of matrices: {top / 1e12:.3g} TFLOP/s in bf16, {found['fp32'] / 1e12:.3g} in fp32"
        )
    lines.append(f"{'part':<18}{'images/s':>10}{'ratio':>8}{'TFLOP/s':>10}{'of bf16 peak':>14}")
    for kind in (TRAINING, SAMPLING):
        first = by_part.get(next(iter(kind)))
        for part in kind:
            row = by_part.get(part)
            if row is None:
                lines.append(f"{part:<18}{'failed':>10}")
                continue
            speed = row["rate"] * row["operations"]
            ratio = "" if first is None else f"{row['rate'] / first['rate']:.2f}"
            share = "" if top is None else f"{speed / top:.1%}"
            lines.append(f"{part:<18}{row['rate']:>10.4g}{ratio:>8}{speed / 1e12:>10.3g}{share:>14}")
    return lines


def main() -> int:
    """Measure the parts, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=(*PARTS, "table"), help="what to measure")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--size", default="full", choices=tuple(SIZES))
    parser.add_argument("--rows", type=Path, default=Path("gpu.jsonl"), help="the file that rows are added to")
    given = parser.parse_args()
    if given.parts == ["table"]:
        rows = [json.loads(line) for line in given.rows.read_text().splitlines()]
        print("\n".join(table(rows)))
        missing = set(PARTS) - {row["part"] for row in rows}
        return 1 if missing else 0
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU: use --device cpu --size tiny")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    device, size = torch.device(given.device), SIZES[given.size]
    for part in given.parts:
        started = time.perf_counter()
        row = (
            peak(size, device)
            if part == "peak"
            else train(part, size, device)
            if part in TRAINING
            else sample(part, size, device)
        )
        name = torch.cuda.get_device_name() if given.device == "cuda" else "cpu"
        about = {"part": part, "device": name, "size": given.size, "seconds": time.perf_counter() - started}
        with given.rows.open("a") as file:
            file.write(json.dumps({**about, **row, "machine": machine()}) + "\n")
        print(f"{part}: {time.perf_counter() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
