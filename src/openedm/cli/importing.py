"""`--import MODULE`: the user's own modules, whose classes then are choices like those of the package.

The option is the same for all commands and may be repeated. A file of options may name modules as well, `import:
[my_nets]`, but the config.yaml of a run only records them: like the checkpoints of the run it may come from somebody
else, and reading it imports nothing.
"""

import importlib
import sys
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any

from openedm.ground.choices import Choice, classes_named, how_to_import, is_outside

HELP = (
    "import this module before all other options are read, so that its classes can be named: a module on the path or "
    "in the current folder, such as my_nets, or a file, such as code/my_nets.py; may be repeated"
)

recorded: ContextVar[tuple[str, ...]] = ContextVar("recorded", default=())
"""What was given to --import in this command, for the configuration of a run."""


def take_imports(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The values of --import, and the other arguments.

    Raises:
        ValueError: an option has no value.
    """
    modules, others, rest = [], [], iter(arguments)
    for argument in rest:
        name, equals, text = argument.partition("=")
        if name != "--import":
            others.append(argument)
            continue
        value = text if equals else next(rest, "")
        if not value or value.startswith("-"):
            raise ValueError("--import must be followed by a module or a .py file, such as --import my_nets")
        modules.append(value)
    return modules, others


def listed_imports(file: str, content: dict[str, Any]) -> list[str]:
    """The modules under `import` in a file of options, which is removed; none for the configuration of a run.

    Args:
        file: the file.
        content: its content.

    Raises:
        ValueError: the value is neither a name nor a list of names.
    """
    names = content.pop("import", None) or []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"import in {file} must be a module or a list of modules, got {names!r}")
    return [] if is_record(file) else names


def is_record(file: str) -> bool:
    """Whether a file of options was written by a run, in whose folder it is."""
    path = Path(file)
    return path.name == "config.yaml" and any((path.parent / name).exists() for name in ("checkpoints", "log.jsonl"))


def check_known_classes(file: str, content: Any) -> None:
    """Raise ValueError if the configuration of a run names a class of a module that was not imported.

    Args:
        file: the file, for the message.
        content: its content, or a value in it.
    """
    values = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    name = content.get("class_path") if isinstance(content, dict) else None
    if isinstance(name, str) and is_outside(name) and not classes_named(Choice, name):
        raise ValueError(f"{file}: class_path {name!r} is not known; {how_to_import(name)}")
    for value in values:
        check_known_classes(file, value)


def import_modules(names: Sequence[str]) -> None:
    """Import the user's modules, in this order, and record their names for this command.

    Args:
        names: modules that are on the path or in the current folder, or .py files.

    Raises:
        ValueError: there is no such module, it cannot be imported, or another module has the name of a file.
    """
    for name in names:
        import_file("import", name) if name.endswith(".py") else _import_named(name)
    recorded.set((*recorded.get(), *(name for name in names if name not in recorded.get())))


def _import_named(name: str) -> ModuleType:
    """A module on the path; the current folder comes first during the import, and last afterwards."""
    folder = str(Path.cwd())
    found = folder in sys.path
    sys.path.insert(0, folder)
    try:
        return _import("import", name, name)
    finally:
        sys.path.remove(folder)
        if not found:
            sys.path.append(folder)  # for worker processes, and for modules that it imports later


def import_file(option: str, file: str) -> ModuleType:
    """The module in a file, imported with its folder first on the path, as Python does for scripts.

    Args:
        option: the name of the option, for messages.
        file: the file.

    Raises:
        ValueError: the file does not exist, cannot be imported, or another module has its name.
    """
    path = Path(file).resolve()
    if not path.is_file():
        raise ValueError(f"{option}: the file {file} does not exist")
    before, folder = list(sys.path), str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # and it stays, so that worker processes find the module
    try:
        module = _import(option, path.stem, file)
        if Path(getattr(module, "__file__", None) or "").resolve() != path:
            raise ValueError(
                f"{option} must be a file with a unique name, but another module is called {path.stem!r}: rename {file}"
            )
    except ValueError:
        sys.path[:] = before  # a file that hides another module would hide it from worker processes
        raise
    return module


def _import(option: str, name: str, given: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ValueError(f"{option}: {_not_found(name, given)}") from error
        raise ValueError(f"{option}: {given} cannot be imported: {error}") from error
    except Exception as error:  # whatever the user's code raises
        raise ValueError(f"{option}: {given} cannot be imported: {type(error).__name__}: {error}") from error


def _not_found(name: str, given: str) -> str:
    module, _, last = name.rpartition(".")
    if module and hasattr(sys.modules.get(module), last):
        return f"{given} is not a module but a name in one: --import {module}"
    return (
        f"there is no module {given!r} in the current folder or on the path: give the file, such as "
        f"--import PATH/{given.replace('.', '/')}.py, or add its folder to PYTHONPATH"
    )
