"""Where a run stands, as a checkpoint's training.json tells it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


@dataclass
class Run:
    """What changes while training; with the tensors it is the whole state."""

    images: int = 0
    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    best_loss: float | None = None
    without_improvement: int = 0


LATER = ("best_loss", "without_improvement")
"""What the first checkpoints do not hold."""


def run_of(content: Mapping[str, Any], folder: Path) -> Run:
    """The content of a training.json as a `Run`.

    Args:
        content: of the file.
        folder: the checkpoint, for the message.

    Raises:
        ValueError: a number is missing or is none.
    """
    try:
        counts = {f.name: int(content[f.name]) for f in fields(Run) if f.name not in LATER}
        best = content.get("best_loss")
        stalled = int(content.get("without_improvement", 0))
        return Run(**counts, best_loss=None if best is None else float(best), without_improvement=stalled)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'training.json'} does not say where the run stands: {error!r}") from error
