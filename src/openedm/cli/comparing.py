"""What `openedm compare` and `openedm sweep` share: ways of sampling from variations, and what they write."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from matplotlib.figure import Figure

from openedm.cli.gathering import gather, gathered_names, option_words, typed
from openedm.cli.parsing import explain, options_of, parse
from openedm.comparing import (
    Combination,
    Comparison,
    Format,
    Way,
    combinations,
    figure_of,
    formatted,
    parse_variations,
)
from openedm.generation import SamplingOptions
from openedm.ground import checks
from openedm.ground.storage import new_path, replacing
from openedm.plots import save_figure
from openedm.training import make_accelerator

__all__ = [
    "SAMPLING",
    "check_figure",
    "check_single_process",
    "form_of",
    "parsed",
    "shown",
    "ways_of",
    "with_variations",
    "write",
]

SAMPLING = frozenset(SamplingOptions.__dataclass_fields__)
"""The options that change samples, but not what is trained."""

FORMS: dict[str, Format] = {".txt": "text", ".md": "markdown", ".csv": "csv", ".json": "json"}


def form_of(out: str | None) -> Format | None:
    """The format of a file by the end of its name, checked before any work; None without a file."""
    if new_path("out", out, what="a comparison") is None or out is None:
        return None
    suffix = Path(out).suffix.lower()
    checks.one_of("the suffix of out", suffix, sorted(FORMS))
    return FORMS[suffix]


def check_single_process() -> None:
    """ValueError under a launcher of several processes."""
    if (count := make_accelerator().num_processes) > 1:
        raise ValueError(f"comparisons are made by one process, got {count}: start it without torchrun or accelerate")


def check_figure(figure: str | None) -> None:
    """Check the file of a figure before any work."""
    if new_path("figure", figure) is not None and figure is not None:
        suffix = Path(figure).suffix.lower().removeprefix(".")
        checks.one_of("the suffix of figure", suffix, sorted(Figure().canvas.get_supported_filetypes()))


def write(comparison: Comparison, path: Path, form: Format) -> None:
    """Write a comparison to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(formatted(comparison, form) + "\n", encoding="utf-8")


def draw(comparison: Comparison, path: str) -> None:
    """Draw a comparison into a file; ValueError if nothing of it can be drawn."""
    if (figure := figure_of(comparison)) is None:
        raise ValueError(f"figure={path} was not drawn: there are neither losses nor metrics that can be compared")
    save_figure(figure, path)


def shown(combination: Combination) -> str:
    """A combination as it is named in errors."""
    return ", ".join(f"{name}={value}" for name, value in combination.items())


def parsed(program: str, command: Callable[..., Any], arguments: Sequence[str], combination: Combination) -> Any:
    """The values of a command's options; errors name the combination.

    Raises:
        ValueError: an option is unknown, or a value is wrong.
    """
    before = typed.get()
    try:
        return parse(program, command, arguments)
    except ArgumentError as error:
        problem = explain(command, str(error))
    except ValueError as error:
        problem = str(error)
    finally:
        typed.set(before)
    raise ValueError(f"--vary {shown(combination)}: {problem}" if combination else problem)


def options_for(combination: Combination) -> list[str]:
    """A combination as options of a command line."""
    return [f"--{name}={value}" for name, value in combination.items()]


def with_combination(arguments: Sequence[str], combination: Combination) -> list[str]:
    """Arguments that a combination replaces or adds to. Weight 1 is no guidance: what else was given of it is left out.

    >>> with_combination(["--guiding=run", "--seeds=0-3"], {"nfe": "8"})
    ['--guiding=run', '--seeds=0-3', '--nfe=8']
    >>> with_combination(["--guiding=run", "--seeds=0-3"], {"guidance.weight": "1.0"})
    ['--seeds=0-3', '--guiding=null', '--guidance={class_path: Interval, init_args: {}}']
    """
    guided = [name for name in combination if name.partition(".")[0] in ("guidance", "guiding")]
    if guided == ["guidance.weight"] and _is_one(combination["guidance.weight"]):
        others = {name: value for name, value in combination.items() if name not in guided}
        kept = [
            word
            for name, words in option_words(arguments)
            if name.partition(".")[0] not in ("guidance", "guiding")
            for word in words
        ]
        none = ["--guiding=null", "--guidance={class_path: Interval, init_args: {}}"]
        return [*kept, *none, *options_for(others)]
    return [*arguments, *options_for(combination)]


def _is_one(text: str) -> bool:
    try:
        return float(text) == 1
    except ValueError:
        return False


def with_variations(arguments: Sequence[str], gathered: Mapping[str, Sequence[str]]) -> list[str]:
    """The arguments of a command with the first combination that it varies: without it they may be incomplete.

    Raises:
        ValueError: a variation cannot be read.
    """
    first = combinations([v for v in parse_variations(gathered["vary"]) if v.name.partition(".")[0] in SAMPLING])[0]
    return with_combination(arguments, first)


def ways_of(
    program: str, command: Callable[..., Any], arguments: Sequence[str], chosen: Sequence[Combination]
) -> list[Way]:
    """A way of sampling for each combination of options, parsed by a command that has the options of sampling.

    Args:
        program: its name in messages.
        command: it has a parameter `sampling`.
        arguments: what was typed.
        chosen: the combinations.

    Raises:
        ValueError: an option is unknown, a value is wrong, or an option is not one of sampling.
    """
    assert "nfe" in options_of(command)
    options, gathered = gather(command, options_of(command), arguments)
    kinds = gathered_names(command)
    others = [word for name, words in gathered.items() if kinds[name] == "positional" for word in words]
    ways = []
    for combination in chosen:
        values = parsed(program, command, [*others, *with_combination(options, combination)], combination)
        ways.append(Way(values["sampling"], combination or None))
    return ways
