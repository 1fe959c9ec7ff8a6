"""Choices as dotted names and texts, `sampler.levels.num_steps` and `9`: as on the command line and in a URL.

A class is given by its name, and its fields start from their defaults. Classes are looked up among those of this
library and of modules that the user imported: a text imports nothing, reads no file and runs nothing.
"""

import dataclasses
import inspect
import json
import math
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from openedm.ground.choices import Choice, class_path, subclasses
from openedm.guidance import Piecewise

__all__ = ["changed", "classes_of", "defaults_of", "kind_of", "made_defaults", "name_of", "parse", "text_of"]

C = TypeVar("C", bound=Choice)

FIRST_VALUES: Mapping[type[Choice], Mapping[str, Any]] = {Piecewise: {"sigmas": (0.3, 3.0), "weights": (1.0, 2.0)}}
"""Values for fields without default, to start from."""

MAX_TEXT, MAX_FIELDS, MAX_DEPTH, MAX_INTEGER = 2000, 100, 8, 10_000
"""Bounds of texts, since a link can hold anything: an integer inside a choice may be the length of a table."""


def kind_of(annotation: Any) -> type[Choice] | None:
    """The kind of choice that a field holds; None for numbers, texts and tuples."""
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return next((m for m in members if isinstance(m, type) and issubclass(m, Choice)), None)


def classes_of(kind: type[Choice]) -> list[type[Choice]]:
    """The classes of a kind that can be chosen by name: those with values to start from for all of their fields."""
    return [
        cls
        for cls in subclasses(kind)
        if not inspect.isabstract(cls) and not cls.__name__.startswith("_") and _can_start(cls)
    ]


def _can_start(cls: type[Choice]) -> bool:
    """Whether all fields have a default or one of `FIRST_VALUES`: a learned solver's numbers come from a fit."""
    required = {f.name for f in dataclasses.fields(cls) if f.init and f.default is dataclasses.MISSING}
    factories = {f.name for f in dataclasses.fields(cls) if f.default_factory is not dataclasses.MISSING}
    return required - factories <= set(FIRST_VALUES.get(cls, {}))


def defaults_of(cls: type[Choice]) -> dict[str, Any]:
    """The values that the fields of a class start from."""
    first = FIRST_VALUES.get(cls, {})
    return {
        f.name: f.default if f.default is not dataclasses.MISSING else first.get(f.name)
        for f in dataclasses.fields(cls)
        if f.init
    }


def parse(default: C, given: Mapping[str, str]) -> C:
    """`default` with the fields that are given.

    Args:
        default: a choice.
        given: texts by dotted names of fields: a class name for a choice, JSON or a word for all else.

    Raises:
        TypeError: a value has another type.
        ValueError: a field or class is unknown, or a value is out of its range.

    >>> from openedm.sampling import Sampler
    >>> parse(Sampler(), {"levels.num_steps": "9", "solver": "Euler"})
    Sampler(levels=Karras(num_steps=9, sigma_min=None, sigma_max=None, rho=7.0), schedule=EDM(), scaling=None, \
solver=Euler(), churn=Churn(s_churn=0.0, s_min=0.0, s_max=inf, s_noise=1.0), final='denoise')
    """
    if len(given) > MAX_FIELDS:
        raise ValueError(f"at most {MAX_FIELDS} options can be given, got {len(given)}")
    for name, text in given.items():
        if len(name) + len(text) > MAX_TEXT:
            raise ValueError(f"{name[:40]} must have at most {MAX_TEXT} characters, got {len(text)}")
        if name.count(".") > MAX_DEPTH:
            raise ValueError(f"there is no option {name!r}")
    return _built(type(default), _values_of(default), given, "")


def _built(cls: type[C], values: Mapping[str, Any], given: Mapping[str, str], prefix: str) -> C:
    hints, found = get_type_hints(cls), dict(values)
    for name in dict.fromkeys(name.partition(".")[0] for name in given):
        if name not in found:
            raise ValueError(
                f"there is no option {prefix}{name}; known: {', '.join(prefix + known for known in found)}"
            )
    for name, value in values.items():
        text = given.get(name)
        below = {n.partition(".")[2]: t for n, t in given.items() if n.startswith(f"{name}.")}
        kind = kind_of(hints[name])
        if text is None and not below:
            continue
        if kind is None or (text in ("", "null") and type(None) in get_args(hints[name])):
            if below:
                raise ValueError(f"{prefix}{name} has no options, got {prefix}{name}.{next(iter(below))}")
            found[name] = _parsed(f"{prefix}{name}", text or "", hints[name])
            continue
        chosen = type(value) if text is None else _class_named(kind, text, f"{prefix}{name}")
        if chosen is type(None):
            raise ValueError(f"{prefix}{name} must be chosen before its options, one of {_names(kind)}")
        start = _values_of(value) if chosen is type(value) else defaults_of(chosen)
        found[name] = _built(chosen, start, below, f"{prefix}{name}.")
    return cls(**found)


def _values_of(choice: Choice) -> dict[str, Any]:
    return {f.name: getattr(choice, f.name) for f in dataclasses.fields(choice) if f.init}


def _class_named(kind: type[Choice], text: str, name: str) -> type[Choice]:
    matches = [cls for cls in classes_of(kind) if text in (name_of(cls), class_path(cls))]
    if len(matches) != 1:
        raise ValueError(f"{name} must be one of {_names(kind)}, got {text!r}")
    return matches[0]


def _names(kind: type[Choice]) -> str:
    return ", ".join(name_of(cls) for cls in classes_of(kind))


def _parsed(name: str, text: str, annotation: Any) -> Any:
    """The value of a text; the choice that it is for checks its type and range."""
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    if text in ("", "null") and type(None) in members:
        return None
    if str in members or any(isinstance(value, str) for m in members for value in get_args(m)):
        return text
    if text in ("inf", "-inf"):
        return float(text)
    try:
        value = json.loads(text, parse_constant=lambda word: word)
    except (ValueError, RecursionError):
        return text
    if isinstance(value, int) and abs(value) > MAX_INTEGER and "." in name:
        raise ValueError(f"{name} must be at most {MAX_INTEGER:,} here, got {text}")
    return tuple(value) if isinstance(value, list) else value


def text_of(value: Any) -> str:
    """The text of a field's value, which `parse` reads."""
    if isinstance(value, Choice):
        return name_of(type(value))
    if isinstance(value, str):
        return value
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return json.dumps(value)


def name_of(cls: type[Choice]) -> str:
    """The name of a class in a text: the class path for classes outside this library."""
    return cls.__name__ if cls.__module__.startswith("openedm.") else class_path(cls)


def changed(value: Choice, default: Choice | Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The names and texts of the fields in which a choice differs from `default`, outer ones first.

    >>> from openedm.sampling import Euler, Sampler
    >>> list(changed(Sampler(solver=Euler()), Sampler()))
    [('solver', 'Euler')]
    """
    before = default if isinstance(default, Mapping) else _values_of(default)
    for name, now in _values_of(value).items():
        then: Any = before.get(name)
        if not isinstance(now, Choice):
            if name not in before or now != then:
                yield f"{prefix}{name}", text_of(now)
            continue
        if type(now) is not type(then):
            yield f"{prefix}{name}", text_of(now)
            then = made_defaults(type(now))
        yield from changed(now, then, f"{prefix}{name}.")


def made_defaults(cls: type[Choice]) -> dict[str, Any]:
    """The values that the fields of a class have if none is given, once an object is made; of fields with a default."""
    made = _values_of(cls(**defaults_of(cls)))
    return {name: value for name, value in made.items() if name not in FIRST_VALUES.get(cls, {})}
