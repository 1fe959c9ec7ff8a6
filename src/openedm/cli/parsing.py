"""Arguments from signatures: a command is a function, and its options are the function's (jsonargparse)."""

import dataclasses
import importlib
import inspect
import re
from abc import ABC
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace

from openedm.choices import Choice, class_path, subclasses, to_config


def parser_for(program: str, command: Callable[..., Any]) -> ArgumentParser:
    """The parser of a command: positional and named options from its signature, texts from its docstring."""
    parser = ArgumentParser(
        prog=program, exit_on_error=False, description=inspect.cleandoc(command.__doc__ or "").partition("\n\nArgs:")[0]
    )
    parser.add_argument("--config", action="config", help="read options from this YAML file")
    parser.add_function_arguments(command, as_positional=True)
    return parser


def parse(program: str, command: Callable[..., Any], arguments: Sequence[str]) -> dict[str, Any]:
    """The command's arguments as Python values, checked.

    jsonargparse carries options over when an argument changes its class: with the default `levels=Karras()`,
    `--levels VP` would keep Karras's range. So the arguments are read again, from the outside in, until every class
    that differs from the default starts from its own defaults.

    Raises:
        ArgumentError: an argument is unknown, missing or of the wrong type.
        ValueError: a value is out of its range.
    """
    parser = parser_for(program, command)
    defaults = {name: p.default for name, p in inspect.signature(command).parameters.items()}
    chosen = parser.parse_args(list(arguments))
    fresh: dict[str, Any] = {}
    while changes := {k: v for k, v in _fresh_defaults(defaults, chosen, fresh).items() if fresh.get(k) != v}:
        fresh |= changes
        parser.set_defaults(changes)
        chosen = parser.parse_args(list(arguments))
    values: dict[str, Any] = parser.instantiate(chosen).as_dict()
    values.pop("config", None)
    return values


def explain(command: Callable[..., Any], message: str) -> str:
    """jsonargparse's message on one line, with the names to choose from where an argument is a choice by name."""
    text = " ".join(line.strip() for line in message.splitlines())
    named = re.match(r'Parser key "([\w.]+)"', text)
    kind = _annotation(command, named[1].split(".")) if named else None
    if isinstance(kind, type) and issubclass(kind, Choice) and inspect.isabstract(kind):
        text += f" (known: {', '.join(sorted(c.__name__ for c in subclasses(kind) if not inspect.isabstract(c)))})"
    return text


def _annotation(command: Callable[..., Any], path: list[str]) -> Any:
    """The type of an argument, or of a field of a choice that is an argument; None where it cannot be told."""
    kind: Any = command
    for part in path:
        kind = get_type_hints(kind).get(part)
        if kind is None:
            return None
        kind = next((k for k in get_args(kind) if k is not type(None)), kind)
    return kind


def dump(values: dict[str, Any]) -> str:
    """The YAML that gives a command these values: what a run keeps, and what `--config` reads."""
    text: str = yaml.safe_dump(_plain(values), sort_keys=False, allow_unicode=True)
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, Choice) and isinstance(value, ABC):
        return {"class_path": class_path(type(value)), "init_args": _fields(value)}
    if isinstance(value, Choice):
        return _fields(value)
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


def _fields(choice: Choice) -> dict[str, Any]:
    return {f.name: _plain(getattr(choice, f.name)) for f in dataclasses.fields(choice)}


def _fresh_defaults(defaults: dict[str, Any], chosen: Namespace, fresh: dict[str, Any]) -> dict[str, Any]:
    """For every argument whose class, or a class inside it, is not the default's: the defaults of the class chosen."""
    found = {}
    for key, value in chosen.items(branches=True):
        if _is_class(value) and not _is_inside(chosen, key):
            default = _default_of(value) if key in fresh else _attribute(defaults, key)
            changed = _fresh(default, value)
            if changed is not None:
                found[key] = changed
    return found


def _fresh(default: Any, value: Namespace) -> dict[str, Any] | None:
    """What `value` starts from if its class is not `default`'s or a class inside differs; None if nothing does."""
    if not isinstance(default, _class(value)) or type(default) is not _class(value):
        return {"class_path": value["class_path"]}
    inner = vars(value["init_args"]) if value.get("init_args") else {}
    nested = {name: _fresh(getattr(default, name), v) for name, v in inner.items() if _is_class(v)}
    nested = {name: v for name, v in nested.items() if v is not None}
    if not nested:
        return None
    return {"class_path": value["class_path"], "init_args": {**to_config(default)["init_args"], **nested}}


def _attribute(defaults: dict[str, Any], key: str) -> Any:
    name, *rest = key.split(".")
    value = defaults.get(name)
    for part in rest:
        value = getattr(value, part, None)
    return value


def _default_of(value: Namespace) -> Any:
    """An instance with all defaults, where the class has a default for everything."""
    cls = _class(value)
    required = [f for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
    return None if required else cls()


def _class(value: Namespace) -> type[Any]:
    module, _, name = value["class_path"].rpartition(".")
    cls: type[Any] = getattr(importlib.import_module(module), name)
    return cls


def _is_class(value: Any) -> bool:
    return isinstance(value, Namespace) and isinstance(value.get("class_path"), str)


def _is_inside(config: Namespace, key: str) -> bool:
    parts = key.split(".")
    return any(_is_class(config.get(".".join(parts[:i]))) for i in range(1, len(parts)))
