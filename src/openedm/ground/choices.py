"""Choices: the small frozen values that the design space is made of, and their form in files.

Every design choice (a schedule, a level rule, a solver, …) is a frozen dataclass below `Choice`. `to_config` turns one
into plain data, `{"class_path": "openedm.schedules.VP", "init_args": {"beta_d": 19.9, …}}`: the form that is written to
a run's YAML and to a checkpoint's JSON, and that the command line reads. `from_config` goes back; it looks names up
among the choices that are already defined and imports nothing, so that reading a file executes no code that the file
names.
"""

import contextlib
import dataclasses
import functools
import inspect
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from openedm.ground import checks
from openedm.ground.legacy import room_name, upgrade


@dataclass(frozen=True)
class Choice:
    """Base class of every design choice. Subclasses are frozen dataclasses that check their values when made.

    A kind of choice (`Schedule`, `Solver`, …) is also an ABC, and one of its subclasses is chosen by name. A choice
    that comes in one form (`Sampler`, `Options`) is not, and its fields are set one by one.

    Raises:
        TypeError: a field holds something else where a choice of some kind belongs, such as a class for its instance.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        check = cls.__dict__.get("__post_init__")
        if check is not None:  # It may use the fields, whose kinds are therefore checked before it.

            @functools.wraps(check)
            def check_kinds_first(self: Choice) -> None:
                Choice.__post_init__(self)
                check(self)

            setattr(cls, "__post_init__", check_kinds_first)  # noqa: B010

    def __post_init__(self) -> None:
        for name, kinds in _kinds(type(self)).items():  # type: ignore[arg-type]  # classes are hashable
            value = getattr(self, name)
            if not isinstance(value, kinds):
                object.__setattr__(self, name, _adopted(name, value, kinds))
        for name, annotation in _plain_fields(type(self)).items():  # type: ignore[arg-type]
            value = getattr(self, name)
            if (plain := _checked(name, value, annotation)) is not value:
                object.__setattr__(self, name, plain)

    @classmethod
    def adopt(cls, value: object) -> "Choice | None":
        """The choice of this kind that stands for another value, such as a module for a network; None if none does."""
        return None


C = TypeVar("C", bound=Choice)


def to_config(choice: Choice) -> dict[str, Any]:
    """The plain-data form of a choice: `{"class_path": …, "init_args": {…}}`, ready for JSON or YAML.

    Infinities are written as the strings "inf" and "-inf" (JSON has no number for them).
    """
    return {
        "class_path": class_path(type(choice)),
        "init_args": {f.name: _to_plain(getattr(choice, f.name)) for f in dataclasses.fields(choice) if f.init},
    }


def brief(choice: Choice) -> str:
    """A choice on one short line: what differs from its defaults, numbers to three digits.

    Args:
        choice: any choice.
    """
    shown = []
    for field in dataclasses.fields(choice):
        value = getattr(choice, field.name)
        if field.init and not (field.default is not dataclasses.MISSING and value == field.default):
            shown.append(f"{field.name}={_brief_value(value)}")
    return f"{type(choice).__name__}({', '.join(shown)})" if shown else type(choice).__name__


def _brief_value(value: Any) -> str:
    """A value on a short line: of more than six numbers the first two and the last."""
    if isinstance(value, tuple):
        shown = [_brief_value(item) for item in (value if len(value) <= 6 else (*value[:2], value[-1]))]
        if len(value) > 6:
            shown.insert(2, f"… {len(value) - 3} more …")
        return f"({', '.join(shown)})"
    return brief(value) if isinstance(value, Choice) else f"{value:.3g}" if isinstance(value, float) else str(value)


def from_config(base: type[C], config: Mapping[str, Any]) -> C:
    """The choice that `config` describes, an instance of `base`.

    Args:
        base: the kind of choice expected, for example `Schedule`.
        config: what `to_config` returned, of this version or an older one (`legacy`). `class_path` may be shortened to
            the class name where that is unambiguous.

    Raises:
        ValueError: `class_path` is missing or does not name a known subclass of `base`, or `init_args` has unknown
            names or holds another value where a choice is expected.
    """
    if not isinstance(config, Mapping):
        raise ValueError(
            f'a {base.__name__} must be described by {{"class_path": …, "init_args": {{…}}}}, got {config!r}'
        )
    config = upgrade(config)
    name = config.get("class_path")
    matches = classes_named(base, name)
    if len(matches) != 1:
        problem = "is ambiguous" if matches else "is not known"
        raise ValueError(f"class_path {name!r} {problem} for a {base.__name__}; {_hint(base, name)}")
    cls = matches[0]
    given = config.get("init_args") or {}
    if not isinstance(given, Mapping):
        raise ValueError(f"init_args of {name!r} must be names and values, got {given!r}")
    arguments = dict(given)
    unknown = set(arguments) - {f.name for f in dataclasses.fields(cls) if f.init}
    if unknown:
        raise ValueError(f"init_args of {name!r}: unknown names {sorted(unknown)}")
    annotations = get_type_hints(cls)
    return cls(**{key: _from_plain(key, value, annotations[key]) for key, value in arguments.items()})


def complete(config: Any) -> Any:
    """A configuration with every argument of its choices, at any depth: what an older version left out has its default.

    Args:
        config: plain data that holds what `to_config` returned, of this version or an older one, such as the settings
            of a file. Descriptions that are not of a known choice are left as they are.
    """
    if isinstance(config, list | tuple):
        return [complete(value) for value in config]
    if not isinstance(config, Mapping):
        return config
    config = upgrade(config)
    if "class_path" in config:
        with contextlib.suppress(TypeError, ValueError):
            return to_config(from_config(Choice, config))
    return {key: complete(value) for key, value in config.items()}


def class_path(cls: type) -> str:
    """The name of a class by which users import it: the shortest package that exports it.

    For classes of openedm that is the room. The top level is left out, because what it exports may change.
    """
    parts = cls.__module__.split(".")
    packages = [".".join(parts[:depth]) for depth in range(2 if parts[0] == "openedm" else 1, len(parts))]
    exporting = (name for name in packages if getattr(sys.modules.get(name), cls.__name__, None) is cls)
    return f"{next(exporting, cls.__module__)}.{cls.__qualname__}"


def classes_named(base: type[C], name: object) -> list[type[C]]:
    """The classes of this kind that have been defined so far and have this name, of which there should be one.

    Args:
        base: the kind of choice.
        name: a class path, or a class name. The module of a class outside openedm may have moved since the name was
            written, or been a script, `__main__`: if no class has the path, one with the class name is meant.
    """
    known = {class_path(c): c for c in subclasses(base) if not inspect.isabstract(c)}
    exact = [c for path, c in known.items() if name == c.__name__ or room_name(str(name)) == room_name(path)]
    if exact or not is_outside(name):
        return exact
    last = str(name).rpartition(".")[2]
    return [c for path, c in known.items() if c.__name__ == last and is_outside(path)]


def is_outside(name: object) -> bool:
    """Whether a class path names a class that is neither of openedm nor of Python itself."""
    root, dot, _ = str(name).partition(".")
    return bool(dot) and root != "openedm" and root not in sys.stdlib_module_names


def how_to_import(name: str) -> str:
    """How the module of a class outside openedm is imported: the end of an error's sentence."""
    module = name.rpartition(".")[0]
    if module in sys.modules and module != "__main__":
        return f"the module {module} is imported but has no such class: give the module that has it, --import MODULE"
    option = "PATH/SCRIPT.py, the file that defines it" if module == "__main__" else module
    python = "" if module == "__main__" else f", in Python, import {module} before"
    return (
        f"it is a class of the module {module}, which no file makes openedm import: on the command line, add "
        f"--import {option}{python}"
    )


def subclasses(base: type[C]) -> Iterator[type[C]]:
    """The class itself and all classes below it that have been defined so far."""
    yield base
    for subclass in base.__subclasses__():
        yield from subclasses(subclass)


def _hint(base: type[Choice], name: object) -> str:
    """What to give instead of an unknown name."""
    if is_outside(name):
        return how_to_import(str(name))
    known = sorted(class_path(c) for c in subclasses(base) if not inspect.isabstract(c))
    return f"known: {', '.join(known)}; classes outside openedm are known once their module is imported"


@functools.cache
def _kinds(cls: type[Choice]) -> dict[str, tuple[type, ...]]:
    """The allowed types of the fields whose values are choices; NoneType among them if None is allowed."""
    try:
        hints, found = get_type_hints(cls), {}
    except NameError:  # a class outside openedm, whose annotations are imported for type checkers only
        return {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if NoneType not in kinds[:1] and all(isinstance(k, type) and issubclass(k, Choice | NoneType) for k in kinds):
            found[field.name] = kinds
    return found


@functools.cache
def _plain_fields(cls: type[Choice]) -> dict[str, Any]:
    """The annotations of the fields that hold numbers, texts, truth values or tuples of them."""
    try:
        hints = get_type_hints(cls)
    except NameError:
        return {}
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    return {name: hints[name] for name in names if _is_plain(hints[name])}


def _is_plain(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, UnionType):
        return all(_is_plain(member) for member in get_args(annotation))
    if get_origin(annotation) is tuple:
        return all(member is Ellipsis or _is_plain(member) for member in get_args(annotation))
    return annotation in (int, float, bool, str, NoneType)


def _checked(name: str, value: Any, annotation: Any) -> Any:
    """A plain value of this type: numbers of numpy become those of Python, lists, arrays and tensors become tuples.

    Raises:
        TypeError: the value has another type.
    """
    if get_origin(annotation) in (Union, UnionType):
        members = get_args(annotation)
        if value is None and NoneType in members:
            return None
        errors = []
        for member in (m for m in members if m is not NoneType):
            try:
                return _checked(name, value, member)
            except TypeError as error:
                errors.append(error)
        raise errors[0]
    if get_origin(annotation) is tuple:
        return _checked_tuple(name, value, get_args(annotation))
    if annotation is int:
        return _checked_integer(name, value)
    if annotation is float:
        checks.number(name, value)
        return value if type(value) in (int, float) else float(value)
    expected = {bool: "True or False", str: "a string", NoneType: "None"}[annotation]
    if not isinstance(value, annotation):
        raise TypeError(f"{name} must be {expected}, got {value!r}")
    return value


def _checked_integer(name: str, value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        raise TypeError(f"{name} must be an integer, got {value!r}: write {int(value)}")
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    return value if isinstance(value, int) else int(value)


def _checked_tuple(name: str, value: Any, members: tuple[Any, ...]) -> tuple[Any, ...]:
    if getattr(value, "ndim", None) == 1:  # an array or a tensor
        value = value.tolist()
    if not isinstance(value, tuple | list):
        inner = getattr(members[0], "__name__", "values") if members else "values"
        raise TypeError(f"{name} must be a tuple of {inner}, such as ({value!r},), got {value!r}")
    if Ellipsis in members:
        members = (members[0],) * len(value)
    if len(value) != len(members):
        raise TypeError(f"{name} must hold {len(members)} values, got {value!r}")
    found = tuple(_checked(f"{name}[{i}]", v, kind) for i, (v, kind) in enumerate(zip(value, members, strict=True)))
    if isinstance(value, tuple) and all(a is b for a, b in zip(found, value, strict=True)):
        return value
    return found


def _adopted(name: str, value: object, kinds: tuple[type, ...]) -> Choice:
    """The choice that stands for a value of another type.

    Raises:
        TypeError: there is none.
    """
    is_choice = isinstance(value, Choice) or (isinstance(value, type) and issubclass(value, Choice))
    for kind in kinds:
        choice = kind.adopt(value) if issubclass(kind, Choice) and not is_choice else None
        if choice is not None:
            return choice
    raise TypeError(_wrong_kind(name, value, kinds))


def _wrong_kind(name: str, value: object, kinds: tuple[type, ...]) -> str:
    """The message of the error, with a correction."""
    expected = " or ".join("None" if k is NoneType else class_path(k) for k in kinds)
    if isinstance(value, type):
        return f"{name} must be an instance of {expected}, got the class {value.__name__}: write {value.__name__}()"
    given = class_path(type(value)) if isinstance(value, Choice) else type(value).__name__
    return f"{name} must be an instance of {expected}, got {value!r}, of type {given}{_right_call(name, value, kinds)}"


def _right_call(name: str, value: object, kinds: tuple[type, ...]) -> str:
    """The end of an error's sentence: a class to write, the one whose name was given if there is one."""
    known = [c for kind in kinds if issubclass(kind, Choice) for c in subclasses(kind) if not inspect.isabstract(c)]
    if not known:
        return ""
    if isinstance(value, str):
        named = [c for c in known if c.__name__.lower() == value.lower()]
        if named:
            return f": write {name}={class_path(named[0])}()"
    names = sorted({c.__name__ for c in known if not c.__name__.startswith("_")})
    shown = ", ".join(names if len(names) <= 8 else [*names[:8], "…"])
    example = f", such as {name}=openedm.Karras({value!r})" if name == "levels" and type(value) is int else ""
    return f": write an instance of {shown}{example}"


def _to_plain(value: Any) -> Any:
    if isinstance(value, Choice):
        return to_config(value)
    if isinstance(value, tuple | list):
        return [_to_plain(v) for v in value]
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return value


def _from_plain(name: str, value: Any, annotation: Any) -> Any:
    if isinstance(value, list):
        return tuple(_from_plain(name, v, annotation) for v in value)
    members = get_args(annotation) or (annotation,)
    kinds = [m for m in members if isinstance(m, type) and issubclass(m, Choice)]
    if kinds and not (value is None and type(None) in members):
        if not isinstance(value, Mapping):
            raise ValueError(f'init_args {name} must be a {kinds[0].__name__}, {{"class_path": …}}, got {value!r}')
        return from_config(kinds[0], value)
    if annotation is int and isinstance(value, float) and value.is_integer():
        return int(value)  # as some older files have it
    return float(value) if value in ("inf", "-inf") else value
