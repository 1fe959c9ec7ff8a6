"""How fast `openedm sample` starts and draws, as users type it, beside the bare loop: a table, and a JSON file.

    python -m benchmarks.commands [--before OTHER/src] [--images 1000] [--rounds 3] [--out commands.json]

In turn, round after round: the command with one seed, of which nearly all is its start; the command with many seeds, as
pictures; and the loop alone, which draws the same batches in this process and writes nothing. With `--before` the same
commands run with another version's sources, too. The model is an untrained U-Net for the digits, 8×8, one thread.
Medians, and the least and the most of the rounds; images a second are without the start.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from benchmarks.common import machine, write_json

from openedm.data import Digits
from openedm.generation import CheckpointSampler, SamplingOptions
from openedm.networks import DDPMpp
from openedm.training import Model, save_checkpoint

SOURCES = Path(__file__).parents[1] / "src"
BATCH = 64
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def command(sources: Path, *arguments: object) -> tuple[float, float]:
    """Seconds and CPU seconds of a command."""
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(sources.resolve())}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    line = [sys.executable, "-m", "openedm", *map(str, arguments)]
    subprocess.run(line, env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return time.perf_counter() - started, busy


def bare(run: Path, images: int) -> tuple[float, float]:
    """Seconds and CPU seconds of the loop that draws the images, and does nothing with them."""
    source = CheckpointSampler(run, SamplingOptions())
    prepared = source.prepare()
    started, busy = time.perf_counter(), time.process_time()
    for _ in source.draw(prepared, range(images), BATCH):
        pass
    return time.perf_counter() - started, time.process_time() - busy


def measure(run: Path, folder: Path, versions: dict[str, Path], images: int, rounds: int) -> list[dict[str, Any]]:
    """The rows of the table: seconds of each round."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}

    def add(what: str, version: str, times: Callable[[], tuple[float, float]]) -> None:
        found.setdefault((what, version), []).append(times())

    many = ["--seeds", f"0-{images - 1}", f"--batch_size={BATCH}"]
    for number in range(rounds):
        for version, sources in versions.items():
            out = folder / f"{version}-{number}"
            add("start", version, lambda s=sources, o=out: command(s, "sample", run, o / "one", "--seeds=0"))
            add("draw", version, lambda s=sources, o=out: command(s, "sample", run, o / "many", *many))
        add("draw", "bare loop", lambda: bare(run, images))
    rows = []
    for (what, version), times in found.items():
        starts = found.get(("start", version), [(0.0, 0.0)] * rounds) if what == "draw" else [(0.0, 0.0)] * rounds
        wall, busy = zip(*((w - a, b - c) for (w, b), (a, c) in zip(times, starts, strict=True)), strict=True)
        rows.append({"what": what, "version": version, "images": images, "seconds": wall, "CPU seconds": busy})
    return rows


def spread(values: Iterable[float], digits: int) -> str:
    """Median, and the range in brackets."""
    values = sorted(values)
    return f"{statistics.median(values):.{digits}f} [{values[0]:.{digits}f}, {values[-1]:.{digits}f}]"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="the folder src of another version")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    parser.add_argument("--folder", type=Path, help="where pictures are written; a folder of the disk that is meant")
    given = parser.parse_args()
    torch.set_num_threads(1)
    versions = ({} if given.before is None else {"before": given.before}) | {"now": SOURCES}
    with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
        network = DDPMpp(model_channels=8, channel_mult=(1,), num_blocks=1)
        model = Model.for_data(Digits().load(), network)
        save_checkpoint(run := Path(temporary) / "run", model, model.build().network.state_dict())
        rows = measure(run, Path(temporary), versions, given.images, given.rounds)
    print(f"{'':<20}{'seconds':>24}{'CPU seconds':>24}{'images a second':>24}")
    for row in rows:
        rates = [row["images"] / seconds for seconds in row["seconds"]]
        shown = spread(rates, 0) if row["what"] == "draw" else ""
        name = f"{row['what']}, {row['version']}"
        print(f"{name:<20}{spread(row['seconds'], 2):>24}{spread(row['CPU seconds'], 2):>24}{shown:>24}")
    if given.out is not None:
        write_json(given.out, {"machine": machine(), "rows": rows})


if __name__ == "__main__":
    main()
