"""Options by their dotted names, as on the command line: what a run was trained with, and what differs between runs."""

import dataclasses
from abc import ABC
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, get_args, get_type_hints

from openedm.data import Source
from openedm.ground.choices import Choice, class_path, classes_named, from_config
from openedm.ground.legacy import upgrade
from openedm.networks import Network
from openedm.objective import Objective
from openedm.preconditioning import Preconditioning
from openedm.training import Options

__all__ = ["Setting", "differing", "flatten", "same_settings", "settings_of"]

KINDS: dict[str, type[Choice]] = {
    "data": Source,
    "validation": Source,
    "network": Network,
    "preconditioning": Preconditioning,
    "objective": Objective,
    "options": Options,
}
"""The choices of a run, whose defaults are filled in: an older version may have written fewer fields."""

UNRELATED = frozenset({"out", "resume", "tracker", "preset", "budget", "import", "sampler", "guidance"})
"""Options of `openedm train` that change no weights: folders, curves, and the sampler of a run's own figures."""


@dataclass(frozen=True)
class Setting:
    """The value of one option.

    Attributes:
        text: the value, as it is written on the command line; of a choice the name of its class.
        default: whether its class has this value where none is given.
    """

    text: str
    default: bool = False


def settings_of(config: Mapping[str, Any]) -> dict[str, Setting]:
    """The options of a run by their dotted names.

    Args:
        config: the content of a config.yaml. Classes of modules that are not imported are taken as they are written.
    """
    found: dict[str, Setting] = {}
    for name, value in config.items():
        if name not in UNRELATED:
            found |= flatten(name, _choice(name, value))
    return found


def _choice(name: str, value: Any) -> Any:
    """The choice that a plain value describes; the value itself where it describes none that is known."""
    kind = KINDS.get(name)
    if kind is None or not isinstance(value, Mapping):
        return value
    try:
        return from_config(kind, _described(kind, value))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return value


def _described(kind: Any, value: Any) -> Any:
    """A plain value with the class of each choice, also of those that come in one form and are written as fields."""
    kind = next((k for k in get_args(kind) if k is not NoneType), kind)
    if not (isinstance(kind, type) and issubclass(kind, Choice) and isinstance(value, Mapping)):
        return value
    value = upgrade(value)
    if "class_path" not in value and issubclass(kind, ABC):
        return value
    named = classes_named(kind, value["class_path"]) if "class_path" in value else [kind]
    if len(named) != 1:
        return value
    fields, hints = value.get("init_args") or {} if "class_path" in value else value, get_type_hints(named[0])
    described = {name: _described(hints.get(name), inner) for name, inner in fields.items()}
    return {"class_path": class_path(named[0]), "init_args": described}


def flatten(name: str, value: Any, *, default: bool = False) -> dict[str, Setting]:
    """An option and the options inside its value, by their dotted names.

    >>> {name: setting.text for name, setting in flatten("a", {"b": 1, "c": [2, 3]}).items()}
    {'a.b': '1', 'a.c': '[2, 3]'}
    """
    found: dict[str, Setting] = {}
    if isinstance(value, Choice):
        found[name] = Setting(type(value).__name__, default)
        for field in dataclasses.fields(value):
            inner = getattr(value, field.name)
            found |= flatten(f"{name}.{field.name}", inner, default=inner == field.default)
        return found
    if isinstance(value, Mapping):
        if "class_path" in value:
            found[name] = Setting(str(value["class_path"]).rpartition(".")[2], default)
        fields = value.get("init_args", {}) if "class_path" in value else value
        for key, inner in fields.items() if isinstance(fields, Mapping) else ():
            found |= flatten(f"{name}.{key}", inner)
        return found
    return {name: Setting(_text(value), default)}


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def differing(runs: Sequence[Mapping[str, Setting]]) -> list[str]:
    """The names of the options that differ, in the order of the first run that has them.

    An option that some runs do not have, because another class was chosen there, differs where those that have it
    differ, or where one of them has another value than its default.
    """
    return [name for name in _names(runs) if _differs([run.get(name) for run in runs])]


def _names(runs: Sequence[Mapping[str, Setting]]) -> Iterator[str]:
    yield from dict.fromkeys(name for run in runs for name in run)


def _differs(settings: Sequence[Setting | None]) -> bool:
    there = [setting for setting in settings if setting is not None]
    if len({setting.text for setting in there}) > 1:
        return True
    return len(there) < len(settings) and not all(setting.default for setting in there)


def same_settings(runs: Sequence[Mapping[str, Setting]], *prefixes: str) -> bool:
    """Whether all runs have the same options below these names."""

    def part(run: Mapping[str, Setting]) -> dict[str, str]:
        chosen = (name for name in run if any(name == p or name.startswith(f"{p}.") for p in prefixes))
        return {name: run[name].text for name in chosen}

    return all(part(run) == part(runs[0]) for run in runs[1:])
