"""How functions that take long report what they have done: to a progress bar, or to nobody."""

from typing import Protocol, runtime_checkable

__all__ = ["Progress", "no_progress"]


@runtime_checkable
class Progress(Protocol):
    """A function that is called as work goes on."""

    def __call__(self, name: str, done: float, total: float | None = 1.0, **counts: int) -> object:
        """Show the state of the work.

        Args:
            name: of the work.
            done: how much is done.
            total: how much there is: 1.0 where `done` is a share, None where it is not known.
            counts: further numbers, such as those of failures.
        """


def no_progress(name: str, done: float, total: float | None = 1.0, **counts: int) -> None:
    """Progress that is not shown."""
