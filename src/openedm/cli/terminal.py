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
from openedm.training import Observer, Options, TrainingProgress

FRACTION_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
COUNT_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


def update_interval(on_file: float = 15.0) -> float:
    """Seconds between two updates of a bar: `on_file` if the error stream is not a terminal."""
    return 0.5 if sys.stderr.isatty() else on_file


class Bars:
    """Progress bars on the terminal's error stream, one at a time; as a context manager it closes the last one.

    Args:
        shown: whether bars are shown.
    """

    def __init__(self, *, shown: bool = True) -> None:
        self._shown, self._name = shown, ""
        self._bar: tqdm[Any] | None = None

    def __call__(self, name: str, done: float, total: float | None = 1.0, **counts: int) -> None:
        """Update the bar of this name; another name starts a new bar.

        Args:
            name: the name of the work.
            done: the amount of finished work.
            total: the amount of all work, an integer; 1.0 if `done` is a fraction, None if it is not known.
            counts: further numbers to show, unless they are 0.
        """
        if self._bar is None or name != self._name:
            self.close()
            share = isinstance(total, float)
            form = None if total is None else FRACTION_FORMAT if share else COUNT_FORMAT
            self._bar = tqdm(
                total=total,
                desc=name,
                mininterval=update_interval(),
                bar_format=form,
                leave=not share,
                disable=not self._shown,
            )
            self._name = name
        self._bar.set_postfix({key: count for key, count in counts.items() if count}, refresh=False)
        self._bar.update((done if total is None else min(done, total)) - self._bar.n)

    def log(self, line: str) -> None:
        """End the bar and print a line below it."""
        self.close()
        print(line)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> "Bars":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TrainingBar(Observer):
    """A progress bar on the terminal."""

    def __init__(self, options: Options) -> None:
        self._total = options.images
        self._bar: tqdm[Any] | None = None
        self._loss = math.nan

    def on_progress(self, progress: TrainingProgress) -> None:
        """Advance to the images seen; the loss shown is averaged over about 50 steps."""
        if self._bar is None:
            self._bar = tqdm(
                total=self._total,
                initial=min(progress.images, self._total),
                unit="img",
                unit_scale=True,
                smoothing=0.05,
                mininterval=update_interval(),
            )
        if math.isfinite(progress.loss):
            self._loss = progress.loss if math.isnan(self._loss) else self._loss + 0.02 * (progress.loss - self._loss)
        skipped = {"skipped": progress.skipped} if progress.skipped else {}
        self._bar.set_postfix({"loss": f"{self._loss:.4f}", **skipped}, refresh=False)
        self._bar.update(min(progress.images, self._total) - self._bar.n)

    def close(self) -> None:
        """End the bar, so that later output is printed below it."""
        if self._bar is not None:
            self._bar.close()


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


def rows(values: Mapping[str, str]) -> str:
    """Names and values, one a line."""
    width = max(map(len, values))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in values.items())
