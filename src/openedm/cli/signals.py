"""Signals that end a command: it ends as after Ctrl-C, without half-written files."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["Stopped", "hang_up_signals", "stopped_by_signals"]


class Stopped(KeyboardInterrupt):
    """A signal other than Ctrl-C asked the command to end.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def hang_up_signals() -> list[int]:
    """SIGTERM, and SIGHUP unless it is ignored, as under `nohup`."""
    found = [int(signal.SIGTERM)]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        found.append(int(signal.SIGHUP))
    return found


@contextmanager
def stopped_by_signals(*, first_process: bool = True) -> Iterator[None]:
    """A block that SIGTERM and SIGHUP end with `Stopped`; the handlers are put back afterwards.

    Args:
        first_process: False for the others that a launcher started: they may wait for one that has failed, where no
            handler of Python runs, and end by themselves when the launcher ends them.
    """
    if threading.current_thread() is not threading.main_thread() or not first_process:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    previous: dict[int, Any] = {number: signal.signal(number, stop) for number in hang_up_signals()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
