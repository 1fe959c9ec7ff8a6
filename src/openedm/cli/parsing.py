"""Arguments from signatures: a command is a function, and its options are the function's (jsonargparse)."""

import dataclasses
import importlib
import inspect
import pathlib
import re
from abc import ABC
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Any, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace

from openedm.ground.choices import Choice, class_path, subclasses

Path = tuple[str, ...]


def parser_for(program: str, command: Callable[..., Any], *, partial: bool = False) -> ArgumentParser:
    """The parser of a command: positional and named options from its signature, texts from its docstring.

    Args:
        program: the command's name in usage and errors.
        command: a function whose arguments have types and are described in its docstring.
        partial: whether arguments without a default may be left out.
    """
    parser = ArgumentParser(
        prog=program, exit_on_error=False, description=inspect.cleandoc(command.__doc__ or "").partition("\n\nArgs:")[0]
    )
    parser.add_argument("--config", action="config", help="read options from this YAML file")
    required: set[str | int] = {p.name for p in inspect.signature(command).parameters.values() if p.default is p.empty}
    parser.add_function_arguments(command, as_positional=True, skip=required if partial else None)
    for name in required if partial else ():
        parser.add_argument(f"--{name}", type=get_type_hints(command)[str(name)] | None)
    return parser


def parse(program: str, command: Callable[..., Any], arguments: Sequence[str]) -> dict[str, Any]:
    """The command's arguments as Python values, checked. What is typed overrules the --config file, wherever it stands.

    jsonargparse carries options over when an argument changes its class: with the default `levels=Karras()`,
    `--levels VP` would keep Karras's range, and `--objective VP` would keep EDM's noise. So the classes that are named
    are found first, from the outside in, and their own defaults take the place of the others before anything is read.

    Raises:
        ArgumentError: an argument is unknown, missing or of the wrong type.
        ValueError: a value is out of its range.
    """
    files, typed = _split(arguments)
    plain = _defaults(command)
    for file in files:
        _choose_all(command, plain, _named((), _content(file)))
        read = _read(parser_for(program, command, partial=True), command, plain, [f"--config={file}"]).as_dict()
        plain = {k: v for k, v in read.items() if k in plain or (v is not None and k != "config")}
    _choose_all(command, plain, (pair for path, text, _ in _options(typed) for pair in _named(path, _loaded(text))))
    parser = parser_for(program, command)
    chosen = _read(parser, command, plain, _readable(command, plain, typed))
    values: dict[str, Any] = parser.instantiate(chosen).as_dict()
    values.pop("config", None)
    return values


def explain(command: Callable[..., Any], message: str) -> str:
    """jsonargparse's message on one line, with the names to choose from where a class is not known."""
    text = " ".join(line.strip() for line in message.splitlines())
    named = re.match(r'Parser key "([\w.]+)"', text)
    kind: Any = command
    for part in named[1].split(".") if named else ():
        kind = _kind(kind, part)
    classes = _alternatives(kind)
    if classes and "Problem with given class_path" not in text:
        text += f" (known: {', '.join(c.__name__ for c in classes)})"
    return text


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
    return {f.name: _plain(getattr(choice, f.name)) for f in dataclasses.fields(choice) if f.init}


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files that --config names, and the other arguments."""
    files, others, rest = [], [], iter(arguments)
    for argument in rest:
        if argument.startswith("--config="):
            files.append(argument.removeprefix("--config="))
        elif argument == "--config" and (file := next(rest, None)) is not None:
            files.append(file)
        else:
            others.append(argument)
    return files, others


def _options(arguments: Sequence[str]) -> Iterator[tuple[Path, str, int]]:
    """The options that are typed, as (path, value, where): `--a.b=1` and `--a.b 1` are (("a", "b"), "1", …).

    `where` is the index of the argument that ends in the value.
    """
    for i, argument in enumerate(arguments):
        if argument.startswith("--"):
            key, equals, value = argument[2:].partition("=")
            if equals:
                yield tuple(key.split(".")), value, i
            elif i + 1 < len(arguments):
                yield tuple(key.split(".")), arguments[i + 1], i + 1


def _content(file: str) -> Any:
    try:
        return _loaded(pathlib.Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # jsonargparse reads the file, too, and says what is wrong


def _loaded(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def _named(path: Path, value: Any) -> Iterator[tuple[Path, str]]:
    """Every text in `value` that may be the name of a class, with the path of the argument or field it stands for."""
    if isinstance(value, str):
        yield tuple(part for part in path if part not in ("class_path", "init_args")), value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _named((*path, str(key)), inner)


def _choose_all(command: Callable[..., Any], plain: dict[str, Any], named: Iterable[tuple[Path, str]]) -> None:
    """Choose from the outside in."""
    for path, name in sorted(named, key=lambda pair: len(pair[0])):
        if path:
            _choose(command, plain, path, name)


def _choose(command: Callable[..., Any], plain: dict[str, Any], path: Path, name: str) -> None:
    """Put the class called `name` at `path`, with its own defaults, where there is another class or none."""
    owner, values = _owner(command, plain, path)
    classes = [c for c in _alternatives(_kind(owner, path[-1])) if name in _names(c)]
    if len(classes) == 1 and (values.get(path[-1]) or {}).get("class_path") not in _names(classes[0]):
        fields = [f for f in dataclasses.fields(classes[0]) if f.default is not dataclasses.MISSING]
        arguments = {f.name: _plain(f.default) for f in fields}
        values[path[-1]] = {"class_path": class_path(classes[0]), "init_args": arguments}


def _owner(command: Callable[..., Any], plain: dict[str, Any], path: Path) -> tuple[Any, dict[str, Any]]:
    """What the last name of `path` belongs to, the command or a class, and the values of that; None if nothing."""
    owner: Any = command
    for part in path[:-1]:
        inner = plain.get(part)
        if not isinstance(inner, dict):
            return None, {}
        if "class_path" in inner:
            owner, plain = _class(inner), inner.setdefault("init_args", {})
        else:
            owner, plain = _kind(owner, part), inner
    return owner, plain


def _readable(command: Callable[..., Any], plain: dict[str, Any], arguments: list[str]) -> list[str]:
    """The arguments with infinity as YAML has it, `.inf`, where a number belongs: `inf` would be a text."""
    readable = list(arguments)
    for path, value, i in _options(arguments):
        if value == "inf" and _kind(_owner(command, plain, path)[0], path[-1]) is float:
            readable[i] = readable[i].removesuffix("inf") + ".inf"
    return readable


def _read(
    parser: ArgumentParser, command: Callable[..., Any], plain: dict[str, Any], arguments: list[str]
) -> Namespace:
    """Read the arguments, with `plain` as defaults."""
    own = dict(_leaves(_defaults(command)))
    given = _leaves(plain, whole=own)
    parser.set_defaults({name: value for name, value in given if name not in own or own[name] != value})
    return parser.parse_args(arguments)


def _defaults(command: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(command).parameters.values()
    return {p.name: _plain(p.default) for p in parameters if p.default is not p.empty}


def _leaves(plain: dict[str, Any], prefix: str = "", whole: Container[str] = ()) -> Iterator[tuple[str, Any]]:
    """The arguments one by one: choices that come in one form are groups of arguments, but for those named in `whole`.

    The latter are those that may be left out: None is one value, and so is what stands in its place.
    """
    for name, value in plain.items():
        if isinstance(value, dict) and "class_path" not in value and prefix + name not in whole:
            yield from _leaves(value, f"{prefix}{name}.", whole)
        else:
            yield prefix + name, value


def _kind(owner: Any, name: str) -> Any:
    """The type of an argument or field, None left out; None where there is no such thing."""
    kind = get_type_hints(owner).get(name) if owner is not None else None
    return next((k for k in get_args(kind) if k is not type(None)), kind)


def _alternatives(kind: Any) -> list[type[Choice]]:
    """The classes to choose from by name, where an argument is such a choice."""
    if not (isinstance(kind, type) and issubclass(kind, Choice) and issubclass(kind, ABC)):
        return []
    return sorted((c for c in subclasses(kind) if not inspect.isabstract(c)), key=lambda c: c.__name__)


def _names(cls: type[Choice]) -> tuple[str, str, str]:
    return cls.__name__, class_path(cls), f"{cls.__module__}.{cls.__qualname__}"


def _class(value: dict[str, Any]) -> type[Any]:
    module, _, name = value["class_path"].rpartition(".")
    cls: type[Any] = getattr(importlib.import_module(module), name)
    return cls
