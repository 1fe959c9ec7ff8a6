"""Choices to vary, `NAME=VALUE,VALUE`, and all their combinations."""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Combination", "Variation", "combinations", "name_of", "parse_variations"]

Combination = dict[str, str]
"""A value for each option that is varied, by its dotted name."""

FILE = "config"
"""The name that varies a file of options."""


@dataclass(frozen=True)
class Variation:
    """An option and the values that it takes in turn, as they are written on the command line."""

    name: str
    values: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Variation":
        """A variation from `NAME=VALUE,VALUE`. Commas in brackets, braces and quotes do not separate values.

        >>> Variation.parse("network.channel_mult=[1,2],[1,2,2]").values
        ('[1,2]', '[1,2,2]')

        Raises:
            ValueError: there is no name, a value is empty, or a value occurs twice.
        """
        name, equals, listed = text.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", name):
            raise ValueError(f"vary must be NAME=VALUE,VALUE, such as objective=EDM,VP, got {text!r}")
        values = tuple(_split(listed))
        if "" in values:
            raise ValueError(f"vary {name} must have values between its commas, got {text!r}")
        if twice := sorted({value for value in values if values.count(value) > 1}):
            raise ValueError(f"vary {name} must have each value once, got {twice[0]!r} twice")
        return cls(name, values)


def _split(listed: str) -> Iterator[str]:
    """The parts between commas that are in no bracket, brace or quotes."""
    part, depth, quote = "", 0, ""
    for character in listed:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        else:
            depth += (character in "[{(") - (character in "]})")
        if character == "," and not quote and depth == 0:
            yield part.strip()
            part = ""
        else:
            part += character
    yield part.strip()


def parse_variations(texts: Sequence[str]) -> list[Variation]:
    """All variations of a command.

    Raises:
        ValueError: one of them cannot be read, or two have the same name.
    """
    found = [Variation.parse(text) for text in texts]
    names = [variation.name for variation in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"vary {twice[0]} must be given once, with all of its values, got it twice")
    return found


def combinations(variations: Sequence[Variation]) -> list[Combination]:
    """The cross product, the last option varying fastest; a single empty combination without variations."""
    names = [variation.name for variation in variations]
    values = (variation.values for variation in variations)
    return [dict(zip(names, chosen, strict=True)) for chosen in itertools.product(*values)]


def name_of(combination: Combination, *, otherwise: str = "run") -> str:
    """A name for the folder of a combination: its options and values, without characters that shells treat specially.

    >>> name_of({"objective": "VP", "network.channel_mult": "[1,2]"}), name_of({"config": "rungs/A.yaml"})
    ('objective=VP,network.channel_mult=1-2', 'A')
    """
    parts = []
    for name, value in combination.items():
        safe = re.sub(r"[^\w.+-]+", "-", Path(value).stem if name == FILE else value).strip("-")
        parts.append(safe if name == FILE else f"{name}={safe}")
    return ",".join(parts) or otherwise
