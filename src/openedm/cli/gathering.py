"""Arguments that a signature of named options cannot express: several values, and options of another command."""

import inspect
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from typing import Annotated, Any, get_args, get_type_hints

__all__ = [
    "Forwarded",
    "Positional",
    "Repeated",
    "as_lists",
    "flat_parameters",
    "gather",
    "gathered_names",
    "given",
    "option_words",
    "typed",
]

Positional = Annotated[list[str], "positional"]
"""The type of a parameter that takes all positional arguments."""
Repeated = Annotated[list[str], "repeated"]
"""The type of a parameter whose option may be given several times."""
Forwarded = Annotated[list[str], "forwarded"]
"""The type of a parameter that takes the options which the command does not have, and its --config and --preset, for
another command. It is no option itself."""

KINDS = ("positional", "repeated", "forwarded")

typed: ContextVar[tuple[str, ...]] = ContextVar("typed", default=())
"""The arguments of the present command as they were typed, without --import."""

given: ContextVar[tuple[tuple[str, Any], ...]] = ContextVar("given", default=())
"""The options that the present command was given, in files or as arguments: dotted names and plain values."""


def gathered_names(command: Callable[..., Any]) -> dict[str, str]:
    """The parameters of a command that are gathered, and which of the three kinds each is."""
    hints = get_type_hints(command, include_extras=True)
    marks = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    return {name: kind for name, found in marks.items() for kind in KINDS if kind in found}


def gather(
    command: Callable[..., Any], options: Collection[str], arguments: Sequence[str]
) -> tuple[list[str], dict[str, list[str]]]:
    """The arguments that are parsed as usual, and the values of the parameters that are gathered.

    Args:
        command: the command.
        options: the names of all of its options.
        arguments: what was typed.
    """
    kinds = gathered_names(command)
    if not kinds:
        return list(arguments), {}
    by_kind = {kind: name for name, kind in kinds.items()}
    forwarded, rest = by_kind.get("forwarded"), []
    found: dict[str, list[str]] = {name: [] for name in kinds}
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        if not argument.startswith("--"):
            found[by_kind["positional"]].append(argument) if "positional" in by_kind else rest.append(argument)
            position += 1
            continue
        name, equals, text = argument[2:].partition("=")
        following = arguments[position + 1 : position + 2]
        alone = bool(equals) or not following or following[0].startswith("--")
        words = list(arguments[position : position + (1 if alone else 2)])
        position += len(words)
        first = name.partition(".")[0]
        if kinds.get(first) == "repeated" and (equals or not alone):
            found[first].append(text if equals else words[1])
        elif forwarded and first != "help" and (first not in options or first in ("config", "preset")):
            found[forwarded] += words
        else:
            rest += words
    return rest, found


def as_lists(command: Callable[..., Any], gathered: Mapping[str, Sequence[str]]) -> list[str]:
    """What was gathered as arguments of a parser that has lists; without empty ones and those of another command.

    A positional parameter with a default is an option of that parser.
    """
    kinds, parameters = gathered_names(command), inspect.signature(command).parameters
    listed = {name: json.dumps(list(values)) for name, values in gathered.items() if values}
    return [
        text
        if kinds[name] == "positional" and parameters[name].default is inspect.Parameter.empty
        else f"--{name}={text}"
        for name, text in listed.items()
        if kinds[name] != "forwarded"
    ]


def flat_parameters(command: Callable[..., Any]) -> dict[str, type[Any]]:
    """The parameters of a command whose fields are options of the command itself."""
    hints = get_type_hints(command, include_extras=True)
    return {name: get_args(kind)[0] for name, kind in hints.items() if "flat" in getattr(kind, "__metadata__", ())}


def option_words(given: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The options among arguments: the name of each, and its words."""
    found: list[tuple[str, list[str]]] = []
    for argument in given:
        if argument.startswith("--"):
            found.append((argument[2:].partition("=")[0], [argument]))
        elif found:
            found[-1][1].append(argument)
    return found
