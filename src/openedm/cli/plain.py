"""Choices and other options as plain values, their form in YAML: names and abbreviations become classes."""

import dataclasses
import inspect
from abc import ABC
from pathlib import Path
from typing import Any, get_args, get_type_hints

from jsonargparse import ArgumentError

from openedm.cli.importing import is_record, recorded
from openedm.data import Arrays, ImageFolder, Source, Table
from openedm.ground.choices import Choice, class_path, classes_named, subclasses
from openedm.ground.digests import check_text
from openedm.ground.legacy import upgrade
from openedm.ground.plain_yaml import parse_yaml
from openedm.ground.regular import read_limited
from openedm.networks import ModuleNetwork, ModuleSummary, Network, Summary
from openedm.networks.own import own_class

__all__ = [
    "Plain",
    "arguments_of",
    "class_of",
    "defaults_of",
    "expand",
    "fields_of",
    "is_abstract",
    "is_choice",
    "known_classes",
    "overlay",
    "read_options",
    "to_plain",
    "without_none",
]

Plain = dict[str, Any]
"""Values in their YAML form: choices by name are {"class_path": …, "init_args": {…}}, others their fields."""


def overlay(kind: Any, old: Any, new: Any) -> Any:
    """The plain value `old` of the type `kind`, updated by `new`.

    A mapping changes the fields that it names. If it names another class, the result starts from the defaults of that
    class.
    """
    new = expand(kind, new)
    if not isinstance(new, dict):
        return new
    if kind is dict:
        base = old if isinstance(old, dict) else {} if old is None else {"class_path": old}
        return {**base, **{name: overlay(dict, base.get(name), value) for name, value in new.items()}}
    cls = class_of(kind, new if "class_path" in new else old)
    if cls is None:
        return new
    base = fields_of(old) if class_of(kind, old) is cls else defaults_of(cls)
    hints = get_type_hints(cls)
    fields = base | {
        name: overlay(without_none(hints.get(name)), base.get(name), value) for name, value in fields_of(new).items()
    }
    return {"class_path": class_path(cls), "init_args": fields} if is_abstract(kind) else fields


def to_plain(value: Any) -> Any:
    """A value in its YAML form."""
    if isinstance(value, Choice):
        fields = {name: to_plain(getattr(value, name)) for name in arguments_of(type(value))}
        return {"class_path": class_path(type(value)), "init_args": fields} if is_abstract(type(value)) else fields
    if isinstance(value, dict):
        return {key: to_plain(v) for key, v in value.items()}
    return [to_plain(v) for v in value] if isinstance(value, tuple | list) else value


def read_options(file: str) -> Plain:
    """The options in a YAML file.

    Raises:
        ArgumentError: the file cannot be read, or holds something else.
    """
    try:
        text = read_limited(file)
        content = parse_yaml(text, file)
    except OSError as error:
        raise ArgumentError(None, f"config: {file} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ArgumentError(None, f"config: {file} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ArgumentError(None, f"config: {file} must hold a mapping of options to values, got {content!r}")
    if is_record(file):
        check_text(text, file)
    return content


def expand(kind: Any, value: Any) -> Any:
    """A plain value without abbreviations: class names and paths of data become mappings, old names present ones."""
    if kind is dict and isinstance(value, str) and value.endswith((".yaml", ".yml", ".json")):
        return read_options(value)
    if isinstance(value, str) and is_choice(kind) and hasattr(kind, "short"):
        return {kind.short: value}
    if isinstance(value, str) and is_abstract(kind):
        spec = upgrade({"class_path": value})
        if class_of(kind, spec) is not None:
            return spec
        if (own := _own_module(kind, value)) is not None:
            return own
        if kind is Source and (source := _source_of(Path(value))) is not None:
            return {"class_path": class_path(source), "init_args": {"path": value}}
    return upgrade(value) if isinstance(value, dict) else value


def check_given_once(names: tuple[str, ...], value: Any, paths: dict[tuple[str, ...], str]) -> None:
    """Refuse `--data photos --data.path others`, of which one would have no effect.

    Args:
        names: an option, and the fields inside its value.
        value: what was given for it, without abbreviations; options are checked before fields inside them.
        paths: of the fields that options given before hold, which this one is added to.

    Raises:
        ValueError: a field is given by its option and by its own name.
    """
    if names in paths and paths[names] != value:
        option = ".".join(names[:-1])
        raise ValueError(f"{option} and {'.'.join(names)} must not both be given, got {paths[names]} and {value}")
    fields = fields_of(value) if isinstance(value, dict) else {}
    paths.update({(*names, name): field for name, field in fields.items() if name == "path"})


def _source_of(path: Path) -> type[Source] | None:
    """The source that reads a path; None if it is none.

    Raises:
        ArgumentError: it is a file that no source reads.
    """
    readers: dict[str, type[Source]] = {".npy": Arrays, ".npz": Arrays, ".parquet": Table, ".arrow": Table}
    suffix = path.suffix.lower()
    if suffix in readers:
        return readers[suffix]
    if path.is_dir() or suffix in (".zip", ".tar", ".tgz"):
        return ImageFolder
    if path.is_file() or suffix in _OTHER_DATA:
        raise ArgumentError(
            None,
            f"data: {path} is no file that a source reads: give a .npy or .npz of arrays, a .parquet or .arrow table "
            "of images, or a folder, .zip or .tar of images. Numbers of other files become one by "
            "numpy.save('data.npy', array), an array (samples, channels) or (samples, channels, …)",
        )
    return ImageFolder if len(path.parts) > 1 else None


_OTHER_DATA = frozenset(
    {".csv", ".h5", ".hdf5", ".mat", ".nc", ".pickle", ".pkl", ".pt", ".tsv", ".txt", ".xlsx", ".zarr"}
)


def _own_module(kind: Any, name: str) -> Plain | None:
    """The choice for a class of modules that the user's imports have defined, such as my_nets.MyModule or MyModule."""
    holder = {Network: ModuleNetwork, Summary: ModuleSummary}.get(kind)
    names = [name, *(f"{module.removesuffix('.py').rpartition('/')[2]}.{name}" for module in recorded.get())]
    found = next((each for each in names if own_class(each) is not None), None)
    if holder is None or found is None:
        return None
    return {"class_path": class_path(holder), "init_args": {"name": found}}


def without_none(kind: Any) -> Any:
    """The type of a value that is not None: X of X | None."""
    members = get_args(kind)
    return next(k for k in members if k is not type(None)) if type(None) in members else kind


def is_choice(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Choice)


def is_abstract(kind: Any) -> bool:
    """Whether a value is one of several classes, chosen by name."""
    return is_choice(kind) and issubclass(kind, ABC)


def known_classes(kind: type[Choice]) -> list[type[Choice]]:
    """The classes to choose from by name."""
    return sorted((c for c in subclasses(kind) if not inspect.isabstract(c)), key=lambda c: c.__name__)


def class_of(kind: Any, value: Any) -> type[Choice] | None:
    """The class that a plain value describes; None if it does not name such a class."""
    if not is_choice(kind) or not isinstance(value, dict):
        return None
    if "class_path" not in value:
        return None if is_abstract(kind) else kind
    named = classes_named(kind, value["class_path"])
    return named[0] if len(named) == 1 else None


def fields_of(value: Plain) -> Plain:
    """The fields of a plain choice, in `init_args` or beside `class_path`."""
    beside = {name: v for name, v in value.items() if name not in ("class_path", "init_args")}
    return beside | dict(value.get("init_args") or {})


def defaults_of(cls: type[Choice]) -> Plain:
    found = arguments_of(cls).items()
    return {name: to_plain(field.default) for name, field in found if field.default is not dataclasses.MISSING}


def arguments_of(cls: type[Any]) -> dict[str, dataclasses.Field[Any]]:
    """The fields of a choice that are arguments of its constructor."""
    return {field.name: field for field in dataclasses.fields(cls) if field.init}
