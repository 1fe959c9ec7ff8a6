"""The help of the commands, from descriptions that are kept in a file: neither torch nor the commands are imported.

help.json holds what `openedm.cli.describing` reads from signatures and docstrings. Where modules of the user are
imported (`--import`), the descriptions are made anew, and printed by the same functions.
"""

import argparse
import functools
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from openedm.cli.examples import COMMON, EXAMPLES

__all__ = ["FILE", "Plain", "help_for", "page_of_choice", "page_of_command", "parser_of_all", "read_descriptions"]

Plain = dict[str, Any]
FILE = Path(__file__).with_name("help.json")
"""Descriptions of all commands and of the classes that their options name."""

LISTED = 60
"""Characters of a default that is shown."""


class Found(NamedTuple):
    """An option: its description, its value when it is not given, and the class that it is a field of."""

    option: Plain
    value: Any
    owner: str = ""


@functools.cache
def read_descriptions() -> Plain:
    """The content of help.json."""
    content: Plain = json.loads(FILE.read_text(encoding="utf-8"))
    return content


def help_for(path: str, arguments: Sequence[str]) -> str | None:
    """The page that the arguments of a command ask for: that of the command, or of the choice of an option.

    Args:
        path: the command, such as `train` or `inference fit`.
        arguments: what follows it.

    Returns:
        None if no help is asked for, or if it depends on modules or files that the arguments name.
    """
    if not any(argument in ("-h", "--help") or ".help" in argument for argument in arguments):
        return None
    typed = list(_typed(arguments))
    names = [name for name, _ in typed]
    content = read_descriptions()
    command, classes = content["commands"].get(path), content["classes"]
    asked = next(((name, text) for name, text in typed if name.endswith(".help")), None)
    if command is None or "import" in names:
        return None
    if any(argument in ("-h", "--help") for argument in arguments):
        return page_of_command(path, command, classes, dict(typed))
    if asked is None or "config" in names or "preset" in names:
        return None
    option = asked[0].removesuffix(".help")
    found = _find(command["options"], classes, option, dict(typed))
    if found is None or "choice" not in found.option:
        return None
    return page_of_choice(option, found.option["choice"], asked[1], classes)


def page_of_command(path: str, command: Plain, classes: Plain, typed: Mapping[str, str] | None = None) -> str:
    """The page of a command: usage, examples, the options that most people need, all others, and remarks."""
    return _parser_of(path, command, classes, typed or {}).format_help()


def page_of_choice(option: str, choice: str, name: str, classes: Plain) -> str | None:
    """The page of a choice: its classes, or the options of the class of this name; None if there is none.

    Args:
        option: the option's name, such as data.
        choice: the name of its class in `classes`.
        name: a class, by name or path; "" for the list of them.
        classes: descriptions of classes.
    """
    known = _members(choice, classes)
    if known is not None and not name:
        rows = [f"  {classes[member]['name']:<20} {classes[member]['about']}" for member in known]
        return "\n".join([f"--{option} is one of", *rows, f"--{option}.help CLASS describes one of them."]) + "\n"
    chosen = _selected(choice, None, name, classes)
    if chosen is None:
        return None
    title = f"--{option} {classes[chosen]['name']}" if known is not None else f"[--{option}.OPTION VALUE …]"
    parser = _Page(usage=f"{title} [--{option}.OPTION VALUE …]" if known is not None else title)
    parser.description = _wrapped(parser, classes[chosen]["about"])
    group = parser.add_argument_group("options")
    for field, described in classes[chosen].get("fields", {}).items():
        _add(group, f"{option}.{field}", Found(described, described.get("default")), classes, {})
    return parser.format_help()


def parser_of_all(commands: Mapping[str, str], groups: Mapping[str, Mapping[str, str]]) -> argparse.ArgumentParser:
    """A parser of all commands with their options, for scripts that complete them in a shell."""
    content = read_descriptions()
    root = argparse.ArgumentParser(prog="openedm")
    root.add_argument("--version", action="store_true", help="print the version")
    branches = root.add_subparsers()
    for name, text in commands.items():
        if name not in groups:
            _branch(branches, name, name, text, content)
            continue
        inner = branches.add_parser(name, help=text).add_subparsers()
        for each, about in groups[name].items():
            _branch(inner, each, f"{name} {each}", about, content)
    return root


def _branch(branches: Any, name: str, path: str, text: str, content: Plain) -> None:
    parser = _parser_of(path, content["commands"][path], content["classes"], {})
    branches.add_parser(name, help=text, parents=[parser], add_help=False)


class _Page(argparse.ArgumentParser):
    """A parser that is only printed."""

    def __init__(self, usage: str, prog: str = "openedm") -> None:
        formatter = functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=30)
        super().__init__(prog=prog, usage=usage, add_help=False, formatter_class=formatter)


def _parser_of(path: str, command: Plain, classes: Plain, typed: Mapping[str, str]) -> _Page:
    options = command["options"]
    required = [name for name, option in options.items() if option.get("required")]
    optional = [name for name, option in options.items() if option.get("positional")]
    words = [*map(str.upper, required), *(f"[{name.upper()} …]" for name in optional)]
    parser = _Page(" ".join([f"openedm {path}", *words, "[options]"]), f"openedm {path}")
    examples = [f"  {line}" for line in EXAMPLES.get(path, ())]
    parser.description = "\n".join([_wrapped(parser, command["about"]), "", "examples:", *examples])
    if required or optional:
        group = parser.add_argument_group("arguments")
        for name in (*required, *optional):
            group.add_argument(name, help=_escaped(options[name]["text"]), metavar=name.upper())
    shown = {*required, *optional}
    common = parser.add_argument_group("common options" if path in COMMON else "options")
    for name in COMMON.get(path, ()):
        found = _find(options, classes, name, typed)
        if found is not None:
            _add_one(common, name, found, classes, typed)
            shown.add(name)
    rest = [name for name, option in options.items() if "choice" not in option and name not in shown]
    group = parser.add_argument_group("more options") if COMMON.get(path) and rest else common
    for name in rest:
        _add(group, name, Found(options[name], options[name].get("default")), classes, typed)
    for name, option in options.items():
        if "choice" in option:
            group = parser.add_argument_group(name, None if name in shown else _escaped(option["text"]))
            _add(group, name, Found({**option, "text": ""}, option.get("default")), classes, typed, shown)
    group = parser.add_argument_group("help and files of options")
    for flags, metavar, text in GENERAL:
        if metavar is None:
            group.add_argument(*flags, action="store_true", help=text)
        else:
            group.add_argument(*flags, metavar=metavar, help=text)
    parser.epilog = "\n\n".join(_wrapped(parser, part) for part in command["details"])
    return parser


GENERAL = (
    (("-h", "--help"), None, "print this page"),
    (
        ("--config",),
        "FILE",
        "read options from this YAML file, such as config.yaml of a run; typed ones come first; may be repeated",
    ),
    (("--print_config",), None, "print all options as YAML, and end"),
    (
        ("--import",),
        "MODULE",
        "import this module before all other options are read, so that its classes can be named: a module on the path "
        "or in the current folder, such as my_nets, or a file, such as code/my_nets.py; may be repeated",
    ),
)


def _add(
    group: Any, name: str, found: Found, classes: Plain, typed: Mapping[str, str], shown: set[str] | None = None
) -> None:
    """Add an option to a page, and those of the class that it is unless another one is chosen."""
    if name not in (shown or ()):
        _add_one(group, name, found, classes, typed)
    cls = _selected(found.option.get("choice"), found.value, typed.get(name, ""), classes)
    if cls is None:
        return
    owner = classes[cls]["name"] if _members(found.option["choice"], classes) is not None else ""
    for field, described in classes[cls].get("fields", {}).items():
        inner = Found(described, _field(found.value, cls, field, described), owner)
        _add(group, f"{name}.{field}", inner, classes, typed, shown)


def _add_one(group: Any, name: str, found: Found, classes: Plain, typed: Mapping[str, str]) -> None:
    option, remarks = found.option, []
    known = _members(option["choice"], classes) if "choice" in option else None
    if "choice" in option and known is None and not option["form"] and (found.value is not None or not option["text"]):
        return  # of one form: its fields follow
    text = option["text"]
    if known is not None:
        names = ", ".join(classes[member]["name"] for member in known) or "a class of your own, see --import"
        text = "; ".join(filter(None, [text.rstrip("."), f"one of {names}: --{name}.help NAME describes one"]))
    if found.owner:
        remarks.append(f"of {found.owner}")
    if (default := _shown(found.value, classes)) is not None:
        remarks.append(f"default {default}")
    text = f"{text} ({', '.join(remarks)})" if remarks else text
    metavar = (
        f"{{{','.join(option['values'])}}}"
        if "values" in option
        else option["form"] or classes[option["choice"]]["name"]
    )
    choices = {"choices": option["values"]} if "values" in option else {}
    group.add_argument(f"--{name}", metavar=metavar, help=_escaped(text), **choices)


def _find(options: Plain, classes: Plain, name: str, typed: Mapping[str, str]) -> Found | None:
    """The option of that name, also a field inside the class that another option is; None if there is none."""
    first, *rest = name.split(".")
    if first not in options:
        return None
    found, place = Found(options[first], options[first].get("default")), first
    for field in rest:
        if "choice" not in found.option:
            return None
        cls = _selected(found.option["choice"], found.value, typed.get(place, ""), classes)
        place = f"{place}.{field}"
        if cls is not None and (described := classes[cls].get("fields", {}).get(field)) is not None:
            owner = classes[cls]["name"] if _members(found.option["choice"], classes) is not None else ""
            found = Found(described, _field(found.value, cls, field, described), owner)
            continue
        members = _members(found.option["choice"], classes) or []
        having = [member for member in members if field in classes[member].get("fields", {})]
        if place.rpartition(".")[0] in typed or not having:
            return None
        found = Found(_field_of_several(field, [classes[member] for member in having]), None)
    return found


def _field_of_several(field: str, having: Sequence[Plain]) -> Plain:
    """The description of a field that several classes have: what it is in each of them."""
    described = {key: value for key, value in having[0]["fields"][field].items() if key != "default"}
    words = [f"{cls['name']}: {cls['fields'][field]['text'].partition('. ')[0].rstrip('.')}" for cls in having]
    return described | {"text": "; ".join(words)}


def _members(choice: str, classes: Plain) -> list[str] | None:
    """The classes to choose from; None for a choice of one form."""
    members: list[str] | None = classes[choice].get("classes")
    return members


def _selected(choice: str | None, value: Any, name: str, classes: Plain) -> str | None:
    """The class that an option is: by the name that was typed, else by its value, else the only one."""
    if choice is None:
        return None
    known = _members(choice, classes)
    if known is None:
        return choice
    if name:
        return next((member for member in known if name in (member, classes[member]["name"])), None)
    path = value.get("class_path") if isinstance(value, dict) else None
    return path if path in classes else None


def _field(value: Any, cls: str, field: str, described: Plain) -> Any:
    """The value of a field of an option's value, or its own default if another class was chosen."""
    if isinstance(value, dict) and value.get("class_path", cls) == cls:
        inner: Plain = value.get("init_args", value)
        return inner.get(field, described.get("default"))
    return described.get("default")


def _shown(value: Any, classes: Plain) -> str | None:
    """A default as it would be typed; None if there is nothing to show."""
    if isinstance(value, dict):
        path = value.get("class_path")
        return classes[path]["name"] if path in classes else None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        value = ",".join(map(str, value))
    return None if value is None or not str(value) or len(str(value)) > LISTED else str(value)


def _typed(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Names and values of the options among the arguments."""
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        if argument.startswith("--"):
            name, equals, text = argument[2:].partition("=")
            yield name, text if equals else "" if following.startswith("-") else following


def _wrapped(parser: argparse.ArgumentParser, text: str) -> str:
    """A paragraph in the width of the page."""
    width = parser.formatter_class(prog="")._width
    return textwrap.fill(text, width)


def _escaped(text: str) -> str:
    return text.replace("%", "%%")
