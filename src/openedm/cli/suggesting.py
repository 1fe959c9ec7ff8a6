"""What was meant by a name that is not known: the nearest option, field or class, at the end of an error's line."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from openedm.cli.plain import arguments_of, is_abstract, is_choice, known_classes
from openedm.ground.choices import Choice, classes_named

__all__ = ["suggestion"]

UNKNOWN_OPTION = re.compile(r"unrecognized arguments: --([\w.-]+)")
SURPLUS = re.compile(r"unrecognized arguments: (?!-)")
UNKNOWN_IN_GROUP = re.compile(r"Group '([\w.]+)' does not accept option '(\w+)'")
UNKNOWN_FIELD = re.compile(r"Problem with given class_path '([\w.]+)': Option '(\w+)' is not accepted")
UNKNOWN_CLASS = re.compile(r"must be the name of a class, got (\w+)")


def suggestion(text: str, kinds: Mapping[str, Any], kind: Any, positional: Sequence[str] = ()) -> str:
    """The end of an error's line that says what may have been meant; "" if nothing is near.

    Args:
        text: the error.
        kinds: the options of the command by name, and their types.
        kind: the type of the option that the error is about, if it is known.
        positional: the options that are given without their names.
    """
    if SURPLUS.search(text) is not None:
        names = " and ".join(name.upper() for name in positional) or "the first argument"
        return f"; only {names} can be given without a name, all else as --NAME VALUE"
    if (found := UNKNOWN_IN_GROUP.search(text)) is not None and is_choice(kinds.get(found[1])):
        return _nearest_field(found[2], list(arguments_of(kinds[found[1]])))
    if (found := UNKNOWN_OPTION.search(text)) is not None and found[1].replace("-", "_") in positional:
        how = "without its name" if len(positional) == 1 else "in this order, without names"
        return f"; {' and '.join(name.upper() for name in positional)} must be given {how}"
    if (found := UNKNOWN_OPTION.search(text)) is not None:
        return _words("--", _nearest_option(found[1].replace("-", "_"), kinds))
    if (found := UNKNOWN_FIELD.search(text)) is not None:
        classes = classes_named(Choice, found[1])
        return _nearest_field(found[2], list(arguments_of(classes[0]))) if len(classes) == 1 else ""
    if (found := UNKNOWN_CLASS.search(text)) is not None and is_choice(kind):
        return _words("", _nearest(found[1], [cls.__name__ for cls in known_classes(kind)]))
    return ""


def _nearest_option(name: str, kinds: Mapping[str, Any]) -> str | None:
    """The nearest option, also among the fields of options: `images` is `options.images`."""
    inner = [
        f"{option}.{field}"
        for option, kind in kinds.items()
        if is_choice(kind) and not is_abstract(kind)
        for field in arguments_of(kind)
    ]
    near = _nearest(name, [*kinds, *inner])
    if near is not None:
        return near
    last = name.rpartition(".")[2]
    fields = {option.rpartition(".")[2]: option for option in reversed(inner)}
    found = _nearest(last, fields)
    return None if found is None else fields[found]


def _nearest_field(name: str, fields: Sequence[str]) -> str:
    """The nearest option of a class; all of them where none is near."""
    if (near := _nearest(name, fields)) is not None:
        return _words("", near)
    return f"; its options are {', '.join(fields)}" if fields else "; it has no options"


def _nearest(name: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def _words(prefix: str, name: str | None) -> str:
    return "" if name is None else f"; did you mean {prefix}{name}?"
