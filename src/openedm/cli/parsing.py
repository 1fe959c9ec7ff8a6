"""Options from signatures: a command is a function, and its options are the function's parameters (jsonargparse)."""

import functools
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from openedm.cli.explaining import simplify, without_jargon
from openedm.cli.gathering import as_lists, flat_parameters, gather, gathered_names, given, typed
from openedm.cli.helping import page_of_choice, page_of_command
from openedm.cli.importing import HELP as IMPORT_HELP
from openedm.cli.importing import check_known_classes, import_modules, is_record, listed_imports, take_imports
from openedm.cli.plain import (
    Plain,
    arguments_of,
    check_given_once,
    class_of,
    expand,
    fields_of,
    is_abstract,
    is_choice,
    known_classes,
    overlay,
    read_options,
    to_plain,
    without_none,
)
from openedm.cli.presets import preset_file
from openedm.cli.suggesting import suggestion
from openedm.data import Source
from openedm.ground.choices import Choice, class_path
from openedm.ground.storage import is_utf8

T = TypeVar("T")
C = TypeVar("C", bound=Choice)
Flat = Annotated[T, "flat"]
"""The type of a parameter whose fields are options of the command itself: `--nfe` instead of `--options.nfe`."""

Command = Callable[..., Any]
Names = tuple[str, ...]

if TYPE_CHECKING:
    Changes = dict[str, Any]
else:
    Changes = dict  # jsonargparse would turn the values of a dict[str, Any] into choices

REQUIRED = inspect.Parameter.empty


class Option(NamedTuple):
    """An option of a command: its type, its default, and the options that replace the default by null if given."""

    kind: Any
    default: Any = REQUIRED
    unless: Collection[str] = ()


def options_of(command: Command) -> dict[str, Option]:
    """The options of a command by name, including those of its `Flat` parameters."""
    hints, flat, found = get_type_hints(command), flat_parameters(command), {}
    gathered = gathered_names(command)
    for name, parameter in inspect.signature(command).parameters.items():
        if gathered.get(name) == "forwarded":
            continue
        if name not in flat:
            found[name] = Option(without_none(hints[name]), parameter.default)
            continue
        inner = get_type_hints(flat[name])
        for argument, field in arguments_of(flat[name]).items():
            unless = field.metadata.get("unless", ())
            found[argument] = Option(without_none(inner[argument]), field.default, unless)
    return found


def parser_for(program: str, command: Command) -> ArgumentParser:
    """The parser of a command: positional and named options from its signature, texts from its docstring.

    Args:
        program: the command's name in usage and errors.
        command: a function whose arguments have types and are described in its docstring.
    """
    description = inspect.cleandoc(command.__doc__ or "").partition("\n\nArgs:")[0]
    parser = ArgumentParser(prog=program, exit_on_error=False, description=description, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="read options from this YAML file")
    parser.add_argument("--import", metavar="MODULE", help=IMPORT_HELP)  # `parse` takes it out of the arguments
    kept: set[str | int] = {
        *flat_parameters(command),
        *(n for n, kind in gathered_names(command).items() if kind == "forwarded"),
    }
    parser.add_function_arguments(command, as_positional=True, skip=kept)
    for cls in flat_parameters(command).values():
        parser.add_class_arguments(cls)
    return parser


def parse(program: str, command: Command, arguments: Sequence[str]) -> dict[str, Any]:
    """The command's arguments as Python values, checked. An option that ends in `.help` prints a help text and ends the
    program.

    Raises:
        ArgumentError: an argument is unknown, missing or of the wrong type.
        ValueError: a value is out of its range.
    """
    parser = parser_for(program, command)
    _check_utf8(arguments)
    modules, others = take_imports(arguments)
    import_modules(modules)
    if any(argument in ("-h", "--help") for argument in others):
        from openedm.cli.describing import describe_command

        classes: Plain = {}
        described = describe_command(command, classes)
        print(page_of_command(program.partition(" ")[2], described, classes), end="")
        sys.exit(0)
    typed.set(tuple(others))
    others, gathered = gather(command, options_of(command), _joined(others))
    if (with_variations := getattr(command, "with_variations", None)) is not None:
        others = with_variations(others, gathered)
    try:
        plain, others = merge(command, others)
    except (ArithmeticError, AttributeError, LookupError) as error:  # of a file that holds other kinds of values
        raise ArgumentError(None, f"config: a file of options has values of another kind: {error}") from error
    for names, text, _ in _parse_options(others):
        if names[-1] != "help" or len(names) == 1:
            continue
        option = ".".join(names[:-1])
        if not is_choice(kind := _type_of(options_of(command), plain, names[:-1])):
            raise ArgumentError(None, f"--{option}.help: there is no choice {option} with the classes chosen here")
        print(_help(kind, option, text), end="")
        sys.exit(0)
    plain = {name: value for name, value in plain.items() if name not in gathered}
    read = parser.parse_args([f"--config={yaml.safe_dump(plain)}", *as_lists(command, gathered), *others])
    values: dict[str, Any] = parser.instantiate(read).as_dict()
    values |= gathered
    for name in ("config", "import"):
        values.pop(name, None)
    if empty := [name for name, value in values.items() if value == ""]:
        raise ArgumentError(None, f"{empty[0]} must not be empty, got '': is a variable of the shell not set?")
    for name, cls in flat_parameters(command).items():
        values[name] = cls(**{argument: values.pop(argument) for argument in arguments_of(cls)})
    return values


def _check_utf8(arguments: Sequence[str]) -> None:
    """Refuse values of options inside choices, such as --data.path, that are not UTF-8: they are parsed as YAML."""
    for names, text, _ in _parse_options(arguments):
        if not is_utf8(text) and len(names) > 1:
            option = ".".join(names)
            raise ArgumentError(
                None, f"{option} must be text in UTF-8, got {text!r}: rename the file, or give a link to it"
            )


def _joined(arguments: Sequence[str]) -> list[str]:
    """The arguments with numbers below 0 joined to their options: argparse takes `-0.3,1` for an option.

    >>> _joined(["--conditions", "-0.3,1", "--seeds", "4"])
    ['--conditions=-0.3,1', '--seeds', '4']
    """
    joined: list[str] = []
    for argument in arguments:
        before = joined[-1] if joined else ""
        if re.match(r"-\.?\d", argument) and before.startswith("--") and "=" not in before:
            joined[-1] = f"{before}={argument}"
        else:
            joined.append(argument)
    return joined


def merge(command: Command, arguments: Sequence[str]) -> tuple[Plain, list[str]]:
    """The options of a command as plain values, and the arguments of the command line that jsonargparse parses.

    The layers are, from the lowest: the defaults, a preset, the files of --config, and the options of the command line
    in any position. jsonargparse alone differs from this:

    * It keeps the options of one class for another class that has options of the same names: with the default
      `levels=Karras()`, `--levels VP` would keep Karras's range. Here every class starts from its defaults, so classes
      are chosen first, from the outside in.
    * It applies files and options in the order of the command line.
    * It does not replace class names of older versions by present ones (`openedm.ground.legacy`).
    * It has no abbreviations: `--preset NAME` is a file of this package, a path is a source of data, and if no argument
      is positional, a first argument is the value of the first option: `openedm suggest a.npy`.
    * It has no tuples of several words: `--data.range 0 1`, or `0,1`.
    * It has no defaults that depend on other options: `nfe` is null if a tolerance is given.
    * It parses `inf` as a string.

    Raises:
        ArgumentError: a file cannot be read, or a preset is unknown.
        ValueError: options are typed of which one ends the other.
    """
    options = options_of(command)
    files, arguments = _split(options, arguments)
    plain = {name: to_plain(option.default) for name, option in options.items() if option.default is not REQUIRED}
    contents = [read_options(file) for file in files]
    typed = sorted(_parse_options(arguments), key=lambda option: len(option[0]))
    given.set(
        (
            *(pair for content in contents for pair in _nested(content)),
            *((".".join(names), _parse_yaml(text)) for names, text, _ in typed),
        )
    )
    import_modules([name for pair in zip(files, contents, strict=True) for name in listed_imports(*pair)])
    for name, value in _recorded_options(command, contents, typed, arguments).items():
        plain[name] = overlay(options[name].kind if name in options else None, plain.get(name), value)
    for file, content in zip(files, contents, strict=True):
        if is_record(file):
            check_known_classes(file, content)
        plain |= _replaced_defaults(options, content)
        for name, value in content.items():
            plain[name] = overlay(options[name].kind if name in options else None, plain.get(name), value)
    plain |= _replaced_defaults(options, {names[0] for names, _, _ in typed})
    _check_exclusive(options, typed)
    left: list[str | None] = list(arguments)
    paths: dict[Names, str] = {}
    for names, text, where in typed:
        kind = _type_of(options, plain, names)
        value = _parse_yaml(text)
        if is_choice(kind) and isinstance(value, int | float):
            value = _path_or_error(kind, plain, names, text)
        value = expand(kind, value)
        check_given_once(names, value, paths)
        if kind is dict or (isinstance(value, dict) and is_choice(kind)):
            nested = functools.reduce(lambda inner, name: {name: inner}, reversed(names[1:]), value)
            plain[names[0]] = overlay(options[names[0]].kind, plain.get(names[0]), nested)
            left[where] = [None] * (where.stop - where.start)
        elif kind is float and text == "inf":
            left[where.stop - 1] = arguments[where.stop - 1].removesuffix("inf") + ".inf"
        elif (count := _fixed_length(kind)) and not isinstance(value, list):
            first = [part for part in text.split(",") if part.strip()]
            numbers = [*first, *_numbers(arguments[where.stop :])][: max(count, len(first))]
            used = slice(where.start, where.stop + len(numbers) - len(first))
            joined = f"--{'.'.join(names)}=[{','.join(numbers)}]"
            left[used] = [joined, *[None] * (used.stop - used.start - 1)]
    return plain, [argument for argument in left if argument is not None]


def _recorded_options(
    command: Command, contents: Sequence[Plain], typed: Sequence[tuple[Names, str, slice]], arguments: Sequence[str]
) -> Plain:
    """The options that a command takes from earlier runs, with lower priority than all that are given.

    A command has them if it has a function `recorded_options`, of the options given: those of files, and of the command
    line by their first name, the positional arguments by their names, and under "" the first of them.
    """
    function = getattr(command, "recorded_options", None)
    if function is None:
        return {}
    taken = {i for _, _, where in typed for i in range(where.start, where.stop)}
    positional = [argument for i, argument in enumerate(arguments) if i not in taken and not argument.startswith("-")]
    given: Plain = {name: value for content in contents for name, value in content.items()}
    given |= {".".join(names): _parse_yaml(text) for names, text, _ in typed}
    required = [name for name, option in options_of(command).items() if option.default is REQUIRED]
    given |= dict(zip(required, positional, strict=False))
    found: Plain = function(given | {"": next(iter(positional), None)})
    return found


def build(cls: type[C], name: str, plain: Plain) -> C:
    """The choice that plain values describe, checked; `name` is its name in errors.

    Raises:
        ArgumentError: a field is unknown or of the wrong type.
        ValueError: a value is out of its range.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, name)
    choice: C = parser.instantiate(parser.parse_object({name: plain}))[name]
    return choice


def dump(values: dict[str, Any]) -> str:
    """The options of a command as YAML, which is written to a run and read by `--config`."""
    text: str = yaml.safe_dump(to_plain(values), sort_keys=False, allow_unicode=True)
    return text


def explain(command: Command, message: str) -> str:
    """jsonargparse's message on one line, with the known class names if a class is unknown."""
    text, options = simplify(message), options_of(command)
    named = re.match(r'Parser key "([\w.]+)"', message)
    kind: Any = _type_of(options, {}, tuple(named[1].split("."))) if named else None
    required = [name for name, option in options.items() if option.default is REQUIRED]
    near = suggestion(text, {name: option.kind for name, option in options.items()}, kind, required)
    if is_abstract(kind) and "Problem with given class_path" not in text:
        known = "".join(f"{c.__name__}, " for c in known_classes(kind)).removesuffix(", ")
        if kind is Source:
            text = text.replace("must be the name", "must be a file or folder that exists, or the name")
        text += f" ({f'known: {known}; of' if known else 'a class of'} a module of your own: --import MODULE)"
    return without_jargon(text) + near


def _split(options: Mapping[str, Option], arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files of --preset and --config, and the other arguments."""
    presets, files, others, rest = [], [], [], iter(arguments)
    if arguments and not arguments[0].startswith("-") and all(o.default is not REQUIRED for o in options.values()):
        others.append(f"--{next(iter(options))}={next(rest)}")
    for argument in rest:
        name, equals, text = argument.partition("=")
        if name == "--preset" and "preset" in options:
            presets.append(text if equals else next(rest, ""))
        elif name == "--config" and (file := text if equals else next(rest, None)) is not None:
            files.append(file)
        else:
            others.append(argument)
    if len(presets) > 1:
        raise ArgumentError(None, f"preset must be given once, got {', '.join(map(repr, presets))}")
    return [*map(preset_file, presets), *files], others


def _parse_options(arguments: Sequence[str]) -> Iterator[tuple[Names, str, slice]]:
    """The options among the arguments: `--a.b=1` and `--a.b 1` are (("a", "b"), "1", their positions in the list)."""
    for i, argument in enumerate(arguments):
        if argument.startswith("--"):
            name, equals, text = argument[2:].partition("=")
            following = "".join(arguments[i + 1 : i + 2])
            if equals:
                yield tuple(name.split(".")), text, slice(i, i + 1)
            elif name.endswith(".help") and following.startswith("-"):
                yield tuple(name.split(".")), "", slice(i, i + 1)
            elif name.endswith(".help") or i + 1 < len(arguments):
                yield tuple(name.split(".")), following, slice(i, i + 2)


def _parse_yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _nested(content: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted names of the values in a file of options, as they are typed."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _nested(value, before if name == "init_args" else f"{before}{name}.")
        elif name != "class_path":
            yield f"{before}{name}", value


def _replaced_defaults(options: Mapping[str, Option], given: Collection[str]) -> Plain:
    """Null for the options whose defaults are replaced because others are given."""
    names = (name for name, option in options.items() if name not in given and any(n in given for n in option.unless))
    return dict.fromkeys(names)


def _check_exclusive(options: Mapping[str, Option], typed: Sequence[tuple[Names, str, slice]]) -> None:
    """Refuse `--nfe 9 --sampler.solver Heun`, also where the fields typed are those of the default, as here."""
    given = {names[0]: text for names, text, _ in typed if len(names) == 1}
    for names, text, _ in typed:
        for name, option in options.items():
            described = names[0] in option.unless and is_choice(options[names[0]].kind)
            if described and _parse_yaml(given.get(name, "null")) is not None:
                shown = f"--{name} {given[name]} and --{'.'.join(names)} {text}"
                raise ValueError(f"{name} and {names[0]} options are mutually exclusive, got {shown}")


def _help(kind: type[Choice], option: str, name: str) -> str:
    """The help text of an option: the classes to choose from, or the options of the class `name`."""
    from openedm.cli.describing import describe_class

    cls = class_of(kind, {"class_path": name} if name else {})
    if cls is None and name:
        names = ", ".join(c.__name__ for c in known_classes(kind)) or "the classes of modules given by --import"
        raise ArgumentError(None, f"--{option}.help must be followed by one of {names}, got {name!r}")
    if cls is None and not known_classes(kind):
        return f"--{option} is a class of your own below {class_path(kind)},\nof a module given by --import MODULE.\n"
    classes: Plain = {}
    described = describe_class(kind, classes)
    return page_of_choice(option, described, "" if cls is None else class_path(cls), classes) or ""


def _type_of(options: Mapping[str, Option], plain: Plain, names: Names) -> Any:
    """The type of an option or of a field inside its value, without None; None if the option or field is unknown."""
    kind, value = options[names[0]].kind if names[0] in options else None, plain.get(names[0])
    for name in names[1:]:
        if kind is dict:
            return dict
        cls = class_of(kind, value or {})
        kind = None if cls is None else without_none(get_type_hints(cls).get(name))
        value = fields_of(value).get(name) if isinstance(value, dict) else None
    return kind


def _path_or_error(kind: type[Choice], plain: Plain, names: Names, text: str) -> str:
    """A number as a path, where a choice may be one; ArgumentError with the option of the choice that was meant."""
    if kind is Source or hasattr(kind, "short"):
        return text
    option = ".".join(names)
    value = functools.reduce(lambda inner, name: fields_of(inner or {}).get(name), names[1:], plain.get(names[0]))
    cls = class_of(kind, value or {})
    hints = {} if cls is None else get_type_hints(cls)
    numbers = [name for name in hints if cls is not None and name in arguments_of(cls) and hints[name] in (int, float)]
    fields = [f"--{option}.{name} {text}" for name in numbers[:1]] or [f"--{option}.help"]
    known = ", ".join(c.__name__ for c in known_classes(kind))
    allowed = f"one of {known}" if is_abstract(kind) else "given by its options"
    hint = f"its options have names, such as {fields[0]}" if numbers else f"{fields[0]} lists its options"
    raise ArgumentError(None, f"{option} must be {allowed}, got {text}: {hint}")


def _fixed_length(kind: Any) -> int:
    """The length of a tuple of fixed length, such as tuple[float, float]; 0 for all other types."""
    members = get_args(kind)
    return len(members) if get_origin(kind) is tuple and Ellipsis not in members else 0


def _numbers(arguments: Sequence[str]) -> list[str]:
    """The numbers that the arguments begin with."""
    return list(itertools.takewhile(lambda text: re.fullmatch(r"[-+]?[\d.]+([eE][-+]?\d+)?", text), arguments))
