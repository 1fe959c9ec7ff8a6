"""Saving and loading posteriors of any kind; `storage` describes the folder."""

from pathlib import Path

import torch

from openedm.inference import joint, storage, trained
from openedm.inference.joint import Joint
from openedm.inference.trained import DenoiserPosterior

__all__ = ["load", "save"]

KINDS: dict[str, type[DenoiserPosterior] | type[Joint]] = {trained.KIND: DenoiserPosterior, joint.KIND: Joint}


def save(posterior: DenoiserPosterior | Joint, path: str | Path) -> None:
    """Write a posterior to a new folder: the same as its own `save`."""
    posterior.save(path)


def load(path: str | Path, device: torch.device | str = "cpu") -> DenoiserPosterior | Joint:
    """The posterior, or joint distribution, that was saved there, in evaluation mode.

    Args:
        path: the folder.
        device: where it computes.

    Raises:
        ValueError: no posterior there, an unknown format or kind, a damaged file, or weights that do not fit the
            description; names the file.
    """
    stored = storage.read(path)
    if stored.kind not in KINDS:
        raise ValueError(f"{path}: kind must be one of {', '.join(map(repr, KINDS))}, got {stored.kind!r}")
    return KINDS[stored.kind].from_stored(stored, device)
