"""Wrong command lines over all commands and options: one line that names the argument, exit status 1 or 2, at once.

Each line is right but for one option, which is misspelt, has no value, a value of another kind, a class that is not
known or a field that its class does not have. They run in this process; some also as processes, as users start them.
"""

import contextlib
import importlib
import io
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import numpy as np

from openedm.cli.main import COMMANDS, GROUPS, main
from openedm.cli.parsing import Option, options_of
from openedm.cli.plain import arguments_of, is_abstract, is_choice, known_classes, without_none

REQUIRED_OPTION = Option(int).default
HEADER = ("command", "lines", "right", "wrong", "slowest s")
SECONDS, PROCESSES = 3.0, 6
REQUIRED = {"out": "new", "checkpoint": "none", "run": "none", "path": "none", "source": "none.zip", "samples": "none"}
REQUIRED |= {"posterior": "none", "store": "new", "num": "4", "simulations": "none", "sigma_rel": "0.1", "data": "Toy"}
REQUIRED |= {"task": "two_moons"}
"""Values that the parser accepts, of arguments that must be given; nothing is at these paths."""

ALWAYS = {"sweep": ("--vary=objective=EDM,VP",)}
"""Options without which a command ends before it reads the others."""

HIDDEN = ("Traceback", "Union", "not expected", "not validate", "<class", "typing.", "NoneType", "0x7f")
"""What a message must not contain."""


class Line(NamedTuple):
    """A wrong command line, and the words of which its error must have one."""

    command: str
    arguments: tuple[str, ...]
    words: tuple[str, ...]


def commands() -> Iterator[tuple[str, Any]]:
    """The names and functions of all commands."""
    for group, names in {"": COMMANDS, **GROUPS}.items():
        for name in names:
            if name not in GROUPS:
                path = [part for part in (group, name) if part]
                yield " ".join(path), getattr(importlib.import_module(".".join(["openedm.cli", *path])), path[-1])


def _wrong_values(kind: Any, depth: int = 0) -> Iterator[tuple[str, str]]:
    """Fields below an option, or "", and values that are wrong there."""
    if is_choice(kind):
        yield "", "Nonesuch"
        yield ".nonesuch", "1"
        if depth == 0 and kind.__name__ != "Source":
            yield "", "5"
        classes = known_classes(kind) if is_abstract(kind) else [kind]
        for cls in classes[:2] if depth == 0 else []:
            hints = get_type_hints(cls)
            for field in arguments_of(cls):
                for below, value in _wrong_values(without_none(hints[field]), depth + 1):
                    prefix = f".{field}{below}"
                    yield (f"={cls.__name__}{prefix}" if is_abstract(kind) else prefix), value
    elif kind is bool:
        yield "", "maybe"
    elif kind in (int, float):
        yield from (("", value) for value in ("abc", "{a: 1}", "1.5x"))
    elif get_origin(kind) is Literal:
        yield "", f"{get_args(kind)[0]}x"
    elif get_origin(kind) is tuple:
        yield "", "abc"


def _lines(command: str, options: dict[str, Option]) -> Iterator[Line]:
    positional = [REQUIRED.get(name, "x") for name, option in options.items() if option.default is REQUIRED_OPTION]
    positional += ALWAYS.get(command, ())
    for name, option in options.items():
        if option.default is REQUIRED_OPTION:
            continue
        for below, value in _wrong_values(option.kind):
            cls, _, field = below.removeprefix("=").partition(".") if below.startswith("=") else ("", "", "")
            given = (f"--{name}={cls}", f"--{name}.{field}={value}") if cls else (f"--{name}{below}={value}",)
            words = (below.rpartition(".")[2] or name, name, value)
            yield Line(command, (*positional, *given), words)
        misspelt = name[:-1] + name[-1] * 2
        yield Line(command, (*positional, f"--{misspelt}=1"), (misspelt,))
        if len(name) > 2 and name[:-1] not in options:
            yield Line(command, (*positional, f"--{name[:-1]}=1"), (name[:-1],))
        yield Line(command, (*positional, f"--{name}"), (name,))
    yield Line(command, (*positional, *["surplus"] * 9), ("surplus",))


def lines(count: int, seed: int, only: Sequence[str] = ()) -> list[Line]:
    """So many wrong lines, of all commands alike, and the same for the same seed."""
    rng, ranked = np.random.default_rng(seed), list[tuple[int, Line]]()
    for name, function in commands():
        if not only or name in only:
            of_command = list(_lines(name, options_of(function)))
            ranked += [(rank, of_command[i]) for rank, i in enumerate(rng.permutation(len(of_command)).tolist())]
    return [line for _, line in sorted(ranked, key=lambda pair: pair[0])[:count]]


def problem(line: Line, status: int | str | None, text: str, seconds: float) -> str:
    """What is wrong with how a line ended; "" if nothing is."""
    said = [part for part in text.splitlines() if ": error: " in part]
    if status in (0, None):
        return "exit status 0"
    if len(said) != 1 or len(text.splitlines()) > 1:
        return f"{len(text.splitlines())} lines: {text[:300]!r}"
    if any(word in said[0] for word in HIDDEN):
        return f"not in words: {said[0][:300]}"
    if not any(word.lower() in said[0].lower() for word in line.words):
        return f"names none of {line.words}: {said[0][:300]}"
    return f"{seconds:.1f} s of CPU" if seconds > SECONDS else ""


def _run(line: Line) -> tuple[int | str | None, str, float]:
    out, started = io.StringIO(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(out):
        try:
            status: int | str | None = main([*line.command.split(), *line.arguments])
        except SystemExit as exit_:
            status = exit_.code
    return status, out.getvalue(), time.process_time() - started


def run(root: Path, count: int, seed: int, only: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each command."""
    root.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, Any]] = {}
    counts: dict[str, Counter[str]] = {}
    chosen = lines(count, seed, only)
    with contextlib.chdir(root):
        for line in chosen:
            row = rows.setdefault(line.command, {"command": line.command, "slowest s": 0.0, "problems": []})
            status, text, seconds = _run(line)
            row["slowest s"] = round(max(row["slowest s"], seconds), 2)
            wrong = problem(line, status, text, seconds)
            counts.setdefault(line.command, Counter()).update(["lines", "wrong" if wrong else "right"])
            row["problems"] += [f"openedm {line.command} {' '.join(line.arguments)}: {wrong}"] if wrong else []
        for line in chosen[:: max(1, len(chosen) // PROCESSES)]:
            started = [sys.executable, "-m", "openedm", *line.command.split(), *line.arguments]
            ended = subprocess.run(started, capture_output=True, text=True, check=False)
            if wrong := problem(line, ended.returncode, ended.stderr, 0.0):
                rows[line.command]["problems"].append(f"as a process: {line}: {wrong}")
    return [{**row, **counts[name]} for name, row in rows.items()]
