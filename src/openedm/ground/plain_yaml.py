"""YAML as plain data, with a limit to what its anchors repeat."""

from typing import Any

import yaml

__all__ = ["parse_yaml"]

MAX_VALUES = 1_000_000
"""The largest number of values in a file, those behind anchors counted each time that they are named."""


def parse_yaml(text: str | bytes, origin: object) -> Any:
    """The value that YAML describes; tags of Python are refused.

    Args:
        text: the content of a file.
        origin: the file, for messages.

    Raises:
        ValueError: it is damaged, nested too deeply, refers to itself, or repeats more than a million values.
    """
    try:
        content = yaml.safe_load(text.decode() if isinstance(text, bytes) else text)
        _count(content, {}, origin)
    except RecursionError as error:
        raise ValueError(f"{origin} is nested too deeply, or refers to itself") from error
    except (yaml.YAMLError, AttributeError, LookupError, OverflowError, TypeError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    return content


def _count(value: Any, counted: dict[int, int], origin: object) -> int:
    """The number of values in one, each part counted once and remembered."""
    if not isinstance(value, dict | list | tuple | set):
        return 1
    if id(value) not in counted:
        parts = [*value, *value.values()] if isinstance(value, dict) else list(value)
        counted[id(value)] = 1 + sum(_count(part, counted, origin) for part in parts)
        if counted[id(value)] > MAX_VALUES:
            raise ValueError(f"{origin} must have at most {MAX_VALUES:,} values, also behind anchors")
    return counted[id(value)]
