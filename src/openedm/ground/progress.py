"""The progress of long functions: reported to a bar where a person looks, to a function, or not at all."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

from tqdm.auto import tqdm

__all__ = ["Bars", "Progress", "ShowProgress", "is_watched", "no_progress", "reported", "showing", "update_interval"]

Item = TypeVar("Item")

FRACTION_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
COUNT_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


@runtime_checkable
class Progress(Protocol):
    """A function that is called repeatedly during long work."""

    def __call__(self, name: str, done: float, total: float | None = 1.0, **counts: int) -> object:
        """Show the state of the work.

        Args:
            name: the name of the work.
            done: the amount of finished work.
            total: the amount of all work; 1.0 if `done` is a fraction, None if it is not known.
            counts: further numbers, such as that of failures.
        """


ShowProgress: TypeAlias = Progress | bool | None
"""The argument `progress` of long functions: None shows bars where a person looks (`is_watched`), True always, False
never; a function is called instead."""


def no_progress(name: str, done: float, total: float | None = 1.0, **counts: int) -> None:
    """Ignore the progress."""


def is_watched() -> bool:
    """Whether a person looks: the error stream is a terminal, or this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return sys.stderr.isatty() or hasattr(shell, "kernel")


def update_interval(on_file: float = 15.0) -> float:
    """Seconds between two updates of a bar: `on_file` where nobody looks."""
    return 0.5 if is_watched() else on_file


@contextmanager
def showing(progress: ShowProgress, *, here: bool = True) -> Iterator[Progress]:
    """The function that a long function reports to; bars end with the context.

    Args:
        progress: what the caller wants, see `ShowProgress`.
        here: whether bars may be shown by this process, of several.
    """
    if progress is None or isinstance(progress, bool):
        with Bars(shown=here and (is_watched() if progress is None else progress)) as bars:
            yield bars
    else:
        yield progress


def reported(items: Iterable[Item], name: str, total: int, progress: Progress) -> Iterator[Item]:
    """The items; each is reported as done when the next one is asked for.

    Args:
        items: the work, in parts.
        name: the name of the work.
        total: the number of items.
        progress: what is called.
    """
    for done, item in enumerate(items, start=1):
        yield item
        progress(name, done, total)


class Bars:
    """Progress bars on the error stream, one at a time; as a context manager it closes the last one.

    Args:
        shown: whether bars are shown.
    """

    def __init__(self, *, shown: bool = True) -> None:
        self._shown = shown
        self._work = ""
        self._bar: tqdm[Any] | None = None

    def __call__(self, name: str, done: float, total: float | None = 1.0, **counts: int) -> None:
        """Update the bar of this name and total; others start a new bar.

        Args:
            name: the name of the work.
            done: the amount of finished work.
            total: the amount of all work, an integer; 1.0 if `done` is a fraction, None if it is not known.
            counts: further numbers to show, unless they are 0.
        """
        if not self._shown:
            return
        work = f"{name}, of {total}"  # 1 is a count, 1.0 a share
        if self._bar is None or work != self._work:
            self.close()
            share = isinstance(total, float)
            form = None if total is None else FRACTION_FORMAT if share else COUNT_FORMAT
            self._bar = tqdm(total=total, desc=name, mininterval=update_interval(), bar_format=form, leave=not share)
            self._work = work
        self._bar.set_postfix({key: count for key, count in counts.items() if count}, refresh=False)
        self._bar.update((done if total is None else min(done, total)) - self._bar.n)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> "Bars":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
