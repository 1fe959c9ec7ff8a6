"""Presets: configurations of the paper by name, each a YAML file of the package that `--preset NAME` starts from."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentError

FOLDER = Path(__file__).parents[1] / "presets"


def names() -> list[str]:
    """The presets there are."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """The arguments with `--preset NAME` as a --config file that comes before all others, which overrule it.

    Raises:
        ArgumentError: there is no such preset, or there are several.

    >>> spelled_out(["run", "--preset", "ffhq64-ddpmpp"])[0].endswith("ffhq64-ddpmpp.yaml")
    True
    """
    chosen, others, rest = [], [], iter(arguments)
    for argument in rest:
        if argument == "--preset" or argument.startswith("--preset="):
            chosen.append(argument.removeprefix("--preset=") if "=" in argument else next(rest, ""))
        else:
            others.append(argument)
    if len(chosen) > 1:
        raise ArgumentError(None, f"preset must be given once, got {', '.join(map(repr, chosen))}")
    return [*(f"--config={_file(name)}" for name in chosen), *others]


def _file(name: str) -> Path:
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ArgumentError(None, f"preset must be one of {', '.join(names())}, got {name!r}{hint}")
    return FOLDER / f"{name}.yaml"
