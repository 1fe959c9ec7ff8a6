"""The data of a run, for commands that compare a model with the data that it was trained on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openedm.cli.importing import check_known_classes, listed_imports
from openedm.cli.plain import read_options

__all__ = ["recorded_data"]


def recorded_data(given: Mapping[str, Any], first: str) -> dict[str, Any]:
    """The option `data` of the run that the first argument is, or is a checkpoint of; nothing where data are named.

    Args:
        given: the options that are given, by name, and the first argument under "".
        first: the name of the first argument.

    Raises:
        ValueError: the run's configuration cannot be read, or its data are of a module that was not imported.
    """
    path = given.get("") or given.get(first)
    if "data" in given or not isinstance(path, str):
        return {}
    for folder in (Path(path), Path(path).resolve().parent.parent):
        file = folder / "config.yaml"
        if file.is_file() and (folder / "checkpoints").is_dir():
            content = read_options(str(file))
            listed_imports(str(file), content)
            found = {name: content[name] for name in ("data",) if content.get(name) is not None}
            check_known_classes(str(file), found)
            return found
    return {}
