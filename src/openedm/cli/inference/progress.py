"""A progress bar for work in several stages."""

import sys
from typing import Any

from tqdm.auto import tqdm


class Stages:
    """Called with a stage's name and the share of it that is done: a bar a stage, on the terminal's error stream.

    As a context manager it closes the last bar.
    """

    def __init__(self) -> None:
        self._name = ""
        self._bar: tqdm[Any] | None = None

    def __call__(self, name: str, share: float) -> None:
        """Move the bar of that stage; another name begins another bar."""
        if self._bar is None or name != self._name:
            self.close()
            pause = 0.5 if sys.stderr.isatty() else 30.0
            shape = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
            self._bar = tqdm(total=1.0, desc=name, mininterval=pause, bar_format=shape, leave=False)
            self._name = name
        self._bar.update(min(share, 1.0) - self._bar.n)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> "Stages":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
