"""What the benchmarks share: the machine and the versions, interleaved timing, peak memory, the JSON file."""

import ctypes
import json
import math
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

import openedm

M_MMAP_THRESHOLD = -3
"""A parameter of glibc's `mallopt`."""


class Times(NamedTuple):
    """Seconds of repeated runs."""

    minimum: float
    median: float
    runs: int


def machine(packages: Sequence[str] = ()) -> dict[str, Any]:
    """What was measured on, with the versions of openedm, torch and `packages`."""
    return {
        "openedm": openedm.__version__,
        "torch": torch.__version__,
        **{name: metadata.version(name) for name in packages},
        "python": platform.python_version(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def interleaved(runs: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, Times]:
    """Run each in turn, round after round, until `seconds` are over: what else the machine does hits all alike.

    The first round warms up and is not counted; at least three are.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    deadline = time.perf_counter() + seconds
    rounds = 0
    while rounds < 3 or time.perf_counter() < deadline:
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
        rounds += 1
    return {name: Times(min(values), statistics.median(values), rounds) for name, values in times.items()}


def peak_memory(run: Callable[[], object]) -> float:
    """Bytes by which the process's resident memory rises at most while `run` runs; NaN where Linux does not tell.

    From the first call on, blocks of 4 MiB and more go back to the system as soon as they are free: what is measured is
    what is held, not what the allocator keeps. That costs time, so measure times before.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 4 * 2**20)
        run()
        libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return math.nan
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(field: str) -> float:
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return 1024.0 * int(match[1])


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write the numbers of a benchmark; NaN and infinity become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
