"""Presets: configurations of Karras et al. 2022 by name, one YAML file each."""

import difflib
from pathlib import Path

from jsonargparse import ArgumentError

__all__ = ["PRESETS", "preset_file", "preset_names"]

PRESETS = Path(__file__).parents[1] / "presets"
"""The folder of the files."""


def preset_names() -> list[str]:
    """The names of all presets."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def preset_file(name: str) -> str:
    """The file of a preset.

    Raises:
        ArgumentError: there is no preset of this name.
    """
    if name not in preset_names():
        near = difflib.get_close_matches(name, preset_names(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ArgumentError(None, f"preset must be one of {', '.join(preset_names())}, got {name!r}{hint}")
    return str(PRESETS / f"{name}.yaml")
