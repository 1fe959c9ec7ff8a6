"""What the inference commands share of their arguments: tasks, settings, outputs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from openedm.ground import checks
from openedm.ground.choices import from_config, to_config
from openedm.inference import tasks
from openedm.inference.settings import Settings
from openedm.inference.tasks import Task

FRESH = 2**31
"""Seeds of simulations that took no part in fitting are so much larger."""


def task_of(name: str | None) -> Task | None:
    """The benchmark task, or None where none is named.

    Raises:
        ValueError: there is no such task.
    """
    if name is None:
        return None
    checks.one_of("task", name, tasks.names())
    return tasks.get(name)


def tasks_of(names: str) -> list[Task]:
    """The benchmark tasks of a list such as "slcp,two_moons", or "all".

    Raises:
        ValueError: there is no such task.
    """
    listed = tasks.names() if names == "all" else [name.strip() for name in names.split(",")]
    return [task for name in dict.fromkeys(listed) if (task := task_of(name)) is not None]


def gathered(arguments: Sequence[str]) -> list[str]:
    """The arguments with all of `--settings.a.b value` as one `--settings {"a": {"b": value}}`.

    Where `--settings` is given, too, they change what it says.

    Raises:
        ValueError: something is no YAML, or no mapping.
    """
    others: list[str] = []
    whole: str | None = None
    fields: list[tuple[str, str]] = []
    rest = iter(arguments)
    for argument in rest:
        key, equals, text = argument.partition("=")
        if key != "--settings" and not key.startswith("--settings."):
            others.append(argument)
        else:
            value = text if equals else next(rest, "null")
            if key == "--settings":
                whole = value
            else:
                fields.append((key.removeprefix("--settings."), value))
    if not fields:
        return list(arguments)
    changes = {} if whole is None else _mapping(whole)
    for name, value in fields:
        *groups, last = name.split(".")
        place = changes
        for group in groups:
            inner = place.get(group)
            place[group] = inner if isinstance(inner, dict) else {} if inner is None else {"class_path": inner}
            place = place[group]
        place[last] = _loaded(value)
    return [*others, f"--settings={json.dumps(changes)}"]


def settings_of(text: str | None, simulations: int, dim: int, x_shape: tuple[int, ...]) -> Settings | None:
    """The rule's settings with some changed; None without changes.

    Args:
        text: fields of `Settings` as YAML, nested ones as mappings, or a file of it; a field that is another class, as
            its name or {"class_path": …, …}.
        simulations: how many there are.
        dim: number of parameters.
        x_shape: shape of one observation.

    Raises:
        ValueError: it is no such mapping, a name is not known, or a value is out of its range.
    """
    if text is None:
        return None
    changes = _mapping(text)
    rule = to_config(Settings.of(simulations, dim, x_shape))
    try:
        return from_config(Settings, _changed(rule, changes))
    except (TypeError, ValueError) as error:
        raise ValueError(f"settings: {error}") from error


def _mapping(text: str) -> dict[str, Any]:
    changes = _loaded(Path(text).read_text(encoding="utf-8") if text.endswith((".yaml", ".yml", ".json")) else text)
    if not isinstance(changes, dict):
        raise ValueError(f"settings must be a mapping of fields to values, or a YAML file of one, got {text!r}")
    return changes


def _loaded(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"settings must be YAML: {' '.join(str(error).split())}") from error


def _changed(config: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A choice's plain form with other values; another class starts from its own defaults."""
    changes = dict(changes)
    path, given = changes.pop("class_path", config["class_path"]), changes.pop("init_args", {})
    same = path in (config["class_path"], config["class_path"].rpartition(".")[2])
    own = dict(config["init_args"]) if same else {}
    for name, value in {**given, **changes}.items():
        inner = own.get(name)
        if isinstance(inner, dict) and isinstance(value, str | dict):
            own[name] = _changed(inner, {"class_path": value} if isinstance(value, str) else value)
        else:
            own[name] = _number(name, value) if isinstance(inner, float | int) else value
    return {"class_path": config["class_path"] if same else path, "init_args": own}


def _number(name: str, value: Any) -> Any:
    """The value; YAML takes 1e-3 for a text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(f"{name} must be a number, got {value!r}") from error


def new_file(name: str, path: str | None, suffixes: tuple[str, ...]) -> Path | None:
    """The file to write, checked before any work.

    Raises:
        ValueError: it exists, or ends in something else.
    """
    if path is None:
        return None
    target = Path(path)
    if target.suffix not in suffixes:
        raise ValueError(f"{name} must end in {' or '.join(suffixes)}, got {path!r}")
    if target.exists():
        raise ValueError(f"{name}={path} exists already: a file is never overwritten, choose another name")
    return target
