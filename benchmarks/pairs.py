"""Interleaved timing of runs, and the ratios of their times."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

__all__ = ["paired", "ratio"]


def computing_clock() -> Callable[[], float]:
    """The clock for runs that only compute: with one thread, the processor's, as others may use the machine, too."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def paired(
    runs: Mapping[str, Callable[[], object]], seconds: float, clock: Callable[[], float] | None = None
) -> dict[str, list[float]]:
    """The seconds of each run in each round: each is run in turn, round after round, until `seconds` are over.

    The first round warms up and is not counted; at least three are. The clock is `computing_clock` unless it is given.
    """
    clock = computing_clock() if clock is None else clock
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    deadline = time.perf_counter() + seconds
    rounds = 0
    while rounds < 3 or time.perf_counter() < deadline:
        for name, run in runs.items():
            started = clock()
            run()
            times[name].append(clock() - started)
        rounds += 1
    return times


def ratio(times: Sequence[float], floor: Sequence[float]) -> float:
    """The median of the ratios of the rounds."""
    return statistics.median(a / b for a, b in zip(times, floor, strict=True))
