"""The progress of long functions, reported to a progress bar or not at all."""

from typing import Protocol, runtime_checkable

__all__ = ["Progress", "no_progress"]


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


def no_progress(name: str, done: float, total: float | None = 1.0, **counts: int) -> None:
    """Ignore the progress."""
