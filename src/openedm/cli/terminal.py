"""Progress bars and tables on the terminal, and signals that stop a run."""

import math
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any

from tqdm.auto import tqdm

from openedm.cli.signals import hang_up_signals
from openedm.ground import progress


class Bars(progress.Bars):
    """Progress bars of a command, which prints lines between them."""

    def log(self, line: str) -> None:
        """End the bar and print a line below it."""
        self.close()
        print(line)

    def __enter__(self) -> "Bars":
        return self


def print_line(line: str) -> None:
    """Print a line, above a progress bar where there is one on a terminal."""
    if sys.stderr.isatty():
        tqdm.write(line, file=sys.stdout)
    else:
        print(line, flush=True)


class StopSignal:
    """While active, the first Ctrl-C, SIGTERM or SIGHUP stops the run at the next step; a later one ends it at once.

    Under `torchrun` one Ctrl-C arrives twice, from the terminal and from the launcher: signals within a second after
    the first have no effect.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._first = 0.0
        self._previous: dict[int, Any] = {}

    def is_set(self) -> bool:
        """Whether the run should stop."""
        return self._event.is_set()

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGINT, *hang_up_signals()):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._event.is_set():
            self._first = time.monotonic()
            self._event.set()
        elif time.monotonic() - self._first > 1:
            raise KeyboardInterrupt


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, the first flush left and the others right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(
            f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in (header, *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)


def distinct(value: float, spread: float) -> str:
    """A number in four digits, or as many more as show three of its spread.

    >>> distinct(0.123456, 0.1), distinct(2460000.00412, 0.0006), distinct(2460123.0, 100.0)
    ('0.1235', '2460000.00412', '2.46012e+06')
    """
    if not (math.isfinite(value) and 0 < spread < abs(value)):
        return f"{value:.4g}"
    return f"{value:.{min(17, max(4, math.floor(math.log10(abs(value))) - math.floor(math.log10(spread)) + 2))}g}"


def rows(values: Mapping[str, str]) -> str:
    """Names and values, one a line."""
    width = max(map(len, values))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in values.items())
