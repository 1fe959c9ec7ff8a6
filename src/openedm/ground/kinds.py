"""What a folder or file of this library holds, for the errors of commands that were given another kind."""

import json
import os
from pathlib import Path

from openedm.ground.regular import read_limited

__all__ = ["holding"]

KINDS = {
    "openedm-denoiser": "a denoiser, which `openedm sample` draws from",
    "openedm-posterior": "a posterior, which `openedm inference sample` draws from",
    "openedm-simulations": "simulations, which `openedm inference fit` fits a posterior to",
    "openedm-shards": "converted pictures, which are trained on with `--data Shards`",
    "openedm-latents": "encoded pictures, which are trained on with `--data Latents`",
    "run": "a run of `openedm train`, which `openedm sample` draws from",
}
"""Formats without their versions, and what to do with each."""


def holding(path: Path) -> str | None:
    """What is at `path`, with the command that takes it; None if it is nothing that this library wrote.

    >>> holding(Path("nowhere")) is None
    True
    """
    for name in ("config.json", "manifest.json"):
        try:
            content = json.loads(read_limited(path / name))
        except (OSError, ValueError, RecursionError):
            continue
        form = content.get("format") if isinstance(content, dict) else None
        if isinstance(form, str):
            return KINDS.get(form.rstrip("0123456789").rstrip("-"))
    return KINDS["run"] if os.path.isdir(path / "checkpoints") and os.path.isfile(path / "config.yaml") else None
