"""What the help of the commands says, as plain values: from signatures and docstrings, without training or files.

`python -m openedm.cli.describing` writes them to help.json beside this file, which `openedm COMMAND --help` prints
without importing torch; a test compares the file with the code.
"""

import importlib
import inspect
import json
import re
import sys
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse as parse_docstring

from openedm.cli import data, inference
from openedm.cli.gathering import flat_parameters, gathered_names
from openedm.cli.helping import FILE, Plain
from openedm.cli.parsing import REQUIRED, Command, options_of
from openedm.cli.plain import arguments_of, is_abstract, is_choice, known_classes, to_plain, without_none
from openedm.ground.choices import Choice, class_path, is_outside

__all__ = ["describe_all", "describe_class", "describe_command", "find_command"]

GROUPS = {"data": data.COMMANDS, "inference": inference.COMMANDS}
OPTIONAL = "openedm.interop."
"""Classes of this room are known only where an optional library is imported: they are left out of the file."""
WORDS = {int: "INTEGER", float: "NUMBER", str: "TEXT", dict: "VALUE"}


def find_command(path: str) -> Command:
    """The function of a command by its name, such as `train` or `inference fit`."""
    module = importlib.import_module(f"openedm.cli.{path.replace(' ', '.')}")
    command: Command = getattr(module, path.rpartition(" ")[2])
    return command


def describe_command(command: Command, classes: Plain) -> Plain:
    """The texts and options of a command.

    Args:
        command: its function.
        classes: descriptions of classes, to which those of its choices are added.
    """
    texts = _texts(command)
    for cls in flat_parameters(command).values():
        texts |= _texts(cls)
    options, gathered = {}, gathered_names(command)
    for name, option in options_of(command).items():
        options[name] = _describe_option(option.kind, option.default, texts.get(name, ""), classes)
        if option.default is not REQUIRED and gathered.get(name) == "positional":
            options[name] = {"text": texts.get(name, ""), "positional": True}
        elif gathered.get(name) == "repeated":
            options[name]["form"] = "OPTION=A,B"
    about, _, details = inspect.cleandoc(command.__doc__ or "").partition("\n\nArgs:")[0].partition("\n\n")
    return {"about": _joined(about), "details": [_joined(part) for part in details.split("\n\n") if part]} | {
        "options": options
    }


def describe_class(kind: type[Choice], classes: Plain) -> str:
    """The name of a class in `classes`, to which its description is added, with those of the choices in its fields."""
    name = class_path(kind)
    if name in classes:
        return name
    described: Plain = {"name": kind.__name__, "about": _joined(inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0])}
    classes[name] = described
    if is_abstract(kind):
        described["classes"] = [describe_class(cls, classes) for cls in known_classes(kind)]
    if not inspect.isabstract(kind) and not (is_abstract(kind) and described["classes"] == []):
        hints, texts = get_type_hints(kind), _texts(kind)
        described["fields"] = {
            field: _describe_option(without_none(hints[field]), value.default, texts.get(field, ""), classes)
            for field, value in arguments_of(kind).items()
        }
    return name


def describe_all(commands: list[str]) -> Plain:
    """The descriptions of commands, by name, and of all classes of the library that their options name."""
    classes: Plain = {}
    described = {path: describe_command(find_command(path), classes) for path in commands}
    own = {name: cls for name, cls in sorted(classes.items()) if not (is_outside(name) or name.startswith(OPTIONAL))}
    for cls in own.values():
        if "classes" in cls:
            cls["classes"] = [name for name in cls["classes"] if name in own]
    return {"commands": described, "classes": own}


def _describe_option(kind: Any, default: Any, text: str, classes: Plain) -> Plain:
    """An option: its text, the form of its values, the class of its choice, and its default."""
    described: Plain = {"text": text}
    if is_choice(kind):
        described["choice"] = describe_class(kind, classes)
        described["form"] = getattr(kind, "short", "NAME" if is_abstract(kind) else "").upper()
    else:
        values = _values(kind)
        described |= {"values": values} if values else {"form": _form(kind)}
    if default is REQUIRED:
        described["required"] = True
    elif isinstance(default, str | int | float | Choice | tuple | list | dict):
        described["default"] = to_plain(default)
    return described


def _values(kind: Any) -> list[str]:
    """All values that a type has, as they are typed; none if they cannot be listed."""
    if kind is bool:
        return ["true", "false"]
    return [str(value) for value in get_args(kind)] if get_origin(kind) is Literal else []


def _form(kind: Any) -> str:
    """The form of the values of a type, such as NUMBER or INTEGER,INTEGER."""
    members = [member for member in get_args(kind) if member is not NoneType]
    if get_origin(kind) in (Union, UnionType):
        return "|".join(dict.fromkeys(_form(member) for member in members))
    if get_origin(kind) is Literal:
        return "|".join(map(str, members))
    if get_origin(kind) in (tuple, list):
        ends = [_form(member) for member in members if member is not Ellipsis]
        return ",".join(ends) if Ellipsis not in members and get_origin(kind) is tuple else f"{ends[0]},…"
    return WORDS.get(kind, "NAME" if is_choice(kind) else "VALUE")


def _texts(documented: Any) -> dict[str, str]:
    """The texts of arguments in a docstring; of a class, also in those of its base classes, and of the class that the
    docstring refers to: "as for `DDPMpp`"."""
    found: dict[str, str] = {}
    for each in inspect.getmro(documented)[::-1] if inspect.isclass(documented) else (documented,):
        text = inspect.cleandoc(each.__doc__ or "")
        if (other := re.search(r"as\s+for\s+`(\w+)`", text)) is not None:
            found |= _texts(getattr(sys.modules[each.__module__], other[1], None))
        for param in parse_docstring(text).params:
            if not (param.description or "").startswith("as for"):
                found |= dict.fromkeys(param.arg_name.split(", "), _joined(param.description or ""))
    return found


def _joined(text: str) -> str:
    return " ".join(text.split())


def write(path: Path = FILE) -> None:
    """Write the descriptions of all commands."""
    from openedm.cli.main import COMMANDS

    paths = [name for name in COMMANDS if name not in GROUPS]
    paths += [f"{group} {name}" for group, commands in GROUPS.items() for name in commands]
    text = json.dumps(describe_all(paths), indent=1, ensure_ascii=False)
    path.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    write(*map(Path, sys.argv[1:]))
