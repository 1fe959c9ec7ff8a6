"""A state as the query of a URL, as command lines, and as lines of Python; and back from the query."""

import dataclasses
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from openedm.exploring.fields import changed, made_defaults, parse
from openedm.exploring.state import State
from openedm.ground.choices import Choice, class_path

__all__ = ["command_line", "from_query", "python_lines", "query_of", "sample_line"]


def from_query(query: Iterable[tuple[str, str]]) -> State:
    """The state that the options of a URL describe; all that is not given has its default.

    Args:
        query: names and texts, as on the command line.

    Raises:
        TypeError: a value has another type.
        ValueError: an option is unknown, given twice, or out of its range.

    >>> from_query([("sampler.solver", "Euler"), ("num", "4")]).sampler.nfe
    18
    """
    given: dict[str, str] = {}
    for name, text in query:
        if given.setdefault(name, text) != text:
            raise ValueError(f"{name} must be given once, got {given[name]!r} and {text!r}")
    return parse(State(), given)


def query_of(state: State) -> str:
    """The query that `from_query` reads, with what differs from the defaults.

    >>> query_of(from_query([("sampler.levels.num_steps", "9")]))
    'sampler.levels.num_steps=9'
    """
    return urlencode(list(changed(state, State())))


def command_line(state: State, paths: Sequence[str] = ()) -> str:
    """The command that opens the page in this state.

    Args:
        state: the state.
        paths: the runs that the command was given.
    """
    return _line(["openedm", "explore", *paths], changed(state, State()))


def sample_line(state: State, path: str) -> str:
    """The command that draws the samples of a run that this state shows.

    Args:
        state: the state.
        path: of the run.
    """
    words = ["openedm", "sample", path, "samples", "--seeds", f"{state.seed}-{state.seed + state.num - 1}"]
    if state.label is not None:
        words += ["--classes", str(state.label)]
    options = [o for o in changed(state, State()) if o[0].startswith(("sampler.", "guidance"))]
    if not any(name.startswith("sampler.") for name, _ in options):
        words += ["--nfe", "null"]
    return _line(words, options)


def _line(words: Sequence[str], options: Iterable[tuple[str, str]]) -> str:
    """A command line; texts that begin with a minus are joined to their options."""
    written = [
        f"--{name}={text}" if text.startswith("-") else f"--{name} {shlex.quote(text)}" for name, text in options
    ]
    return " ".join([*map(shlex.quote, words), *written])


def python_lines(state: State, paths: Mapping[str, str] = {}) -> str:  # it is not changed
    """Lines of Python that draw the samples that a state shows.

    Args:
        state: the state.
        paths: the runs by name; those that the state names, or the first, are sampled.
    """
    rooms: set[str] = set()
    sampler = expression(state.sampler, rooms)
    guided = None if state.guidance.is_one else expression(state.guidance, rooms)
    if state.view == "exact":
        more = [] if state.label is None else [f"label={state.label}"]
        more += [] if guided is None else [f"guidance={guided}"]
        lines = [
            "from openedm.exploring import exact_problem",
            "",
            f"denoiser = exact_problem({', '.join([repr(state.data), *more])}).denoiser",
            f"sampler = {sampler}",
            f"x = sampler.sample(denoiser, seeds=range({state.seed}, {state.seed + state.num}))",
        ]
    else:
        lines = _lines_of_run(state, paths, sampler, guided)
    imported = f"from openedm import {', '.join(sorted(rooms))}"
    return "\n".join([imported, *lines])


def _lines_of_run(state: State, paths: Mapping[str, str], sampler: str, guided: str | None) -> list[str]:
    names = list(paths)
    chosen = [state.run or "".join(names[:1])]
    chosen += [state.against or "".join(names[1:2])] if state.view == "compare" else []
    given = [paths.get(name, name) for name in chosen]
    classes = "" if state.label is None else f", classes=[{state.label}]"
    weight = "" if guided is None else f", guidance={guided}"
    seeds = f"range({state.seed}, {state.seed + state.num})"
    imported = ["from openedm.generation import CheckpointSampler, SamplingOptions"]
    made = ["", f"options = SamplingOptions(nfe=None, sampler={sampler}{weight})"]
    source = [f"source = CheckpointSampler({given[0]!r}, options{classes})", "prepared = source.prepare()"]
    if state.view == "walk":
        return [
            "from openedm.exploring import walk_noise",
            *imported,
            *made,
            *source,
            f"noise = walk_noise({state.seed}, {state.seed_to}, {max(state.num, 2)}, source.model.event_shape)",
            f"seeds = [{state.seed}] * len(noise)",
            "x = prepared.sampler.sample(prepared.denoiser, seeds, noise=noise, condition=source.condition(seeds))",
        ]
    if state.view == "levels":
        return [*imported, *made, *source, f"states = source.trajectory(prepared, {seeds}[:4])"]
    if state.view == "compare":
        return [
            *imported,
            *made,
            f"for path in {given!r}:",
            f"    source = CheckpointSampler(path, options{classes})",
            f"    for seeds, x in source.draw(source.prepare(), {seeds}):",
            "        print(path, seeds, x.shape)",
        ]
    return [*imported, *made, *source, f"for seeds, x in source.draw(prepared, {seeds}):", "    print(seeds, x.shape)"]


def expression(value: Any, rooms: set[str]) -> str:
    """A choice as Python, its class by its room, with what differs from the defaults.

    Args:
        value: a choice, or a plain value.
        rooms: the rooms whose names are used are added.

    >>> from openedm.sampling import Sampler
    >>> expression(Sampler(), rooms := set()), rooms
    ('sampling.Sampler()', {'sampling'})
    """
    if not isinstance(value, Choice):
        return f'float("{value}")' if value in (float("inf"), -float("inf")) else repr(value)
    path = class_path(type(value))
    parts = path.split(".")
    if parts[0] == "openedm" and len(parts) == 3:
        rooms.add(parts[1])
        path = ".".join(parts[1:])
    unchanged = made_defaults(type(value))
    given = [
        f"{f.name}={expression(getattr(value, f.name), rooms)}"
        for f in dataclasses.fields(value)
        if f.init and (f.name not in unchanged or getattr(value, f.name) != unchanged[f.name])
    ]
    return f"{path}({', '.join(given)})"
