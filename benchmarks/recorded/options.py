"""The names that users write: the options of every command, and the arguments of every choice."""

import contextlib
import dataclasses
import inspect
import io
import re
from typing import Any

from benchmarks.recorded.library import Choice, class_path, command_line, subclasses

Names = dict[str, list[str]]


def help_of(*command: str) -> str:
    """What `openedm COMMAND --help` prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        command_line([*command, "--help"])
    return out.getvalue()


def commands(*group: str) -> list[str]:
    """The names in the list of commands that `openedm --help` or that of a group prints."""
    listed = help_of(*group).partition("commands:\n")[2].partition("\n\n")[0]
    return re.findall(r"^  (\w+) ", listed, re.MULTILINE)


def command_options() -> Names:
    """The options of every command: what its help names, positional arguments first."""
    found = {}
    for name in commands():
        text = help_of(name)
        if "\ncommands:\n" in text:
            found |= {f"{name} {inner}": _options(help_of(name, inner)) for inner in commands(name)}
        else:
            found[name] = _options(text)
    return found


def _options(text: str) -> list[str]:
    usage = text.partition("\n\n")[0]
    positional = re.findall(r"(?<=[\s\]])([a-z_]+)(?=\s|$)", usage.rpartition("]")[2])
    return sorted(positional) + sorted(set(re.findall(r"--[A-Za-z_][\w.]*", text)))


def choice_arguments() -> Names:
    """The arguments of every choice that is public, by its class path: the options that choosing it brings."""
    found = {}
    for cls in set(subclasses(Choice)):
        path = class_path(cls)
        hidden = not path.startswith("openedm.") or "._" in path
        if dataclasses.is_dataclass(cls) and not inspect.isabstract(cls) and not hidden:
            found[path] = sorted(field.name for field in dataclasses.fields(cls) if field.init)
    return dict(sorted(found.items()))


def names() -> dict[str, Names]:
    """All of them."""
    return {"commands": command_options(), "choices": choice_arguments()}


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A line for every name that came or went."""
    lines = []
    for part in before:
        for owner in sorted(before[part].keys() | now[part].keys()):
            old, new = before[part].get(owner), now[part].get(owner)
            if old is None or new is None:
                lines.append(f"{part}: {owner} {'came' if old is None else 'went'}")
                continue
            lines += [f"{part}: {owner}: {name} went" for name in sorted(set(old) - set(new))]
            lines += [f"{part}: {owner}: {name} came" for name in sorted(set(new) - set(old))]
    return lines
