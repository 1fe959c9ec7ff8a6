"""dataset.json: the classes and the float conditions of images, by file name.

{"labels": [["a.png", 3], …]}                    classes; names of classes may be given as "class_names"
{"labels": [["a.png", [0.5, 0.1]], …]}           floats, a number or a vector an image, are conditions
{"labels": …, "conditions": [["a.png", 0.7], …]} both; rows that are one-hot are conditions here only
"""

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64

from openedm.data.classes import read_labels
from openedm.data.columns import MAX_FLOAT32
from openedm.ground.storage import parse_json

__all__ = ["Listing", "check_class", "read_listing", "rows_of_floats"]


MAX_CLASS = 2**62


@dataclass(frozen=True)
class Listing:
    """What a dataset.json says about some images, in their order.

    Attributes:
        has_labels: whether it has the entry "labels", which may say that there are none.
        labels: class of each image, or None.
        num_classes: the number of classes where the labels are one-hot rows; None otherwise.
        class_names: one name per class, or None.
        conditions: the floats of each image, or None.
    """

    has_labels: bool
    labels: Int64[np.ndarray, " images"] | None = None
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    conditions: Float32[np.ndarray, "images floats"] | None = None


def read_listing(content: bytes, place: str, names: Mapping[str, str], folder: str = "") -> Listing:
    """The classes and conditions in a dataset.json.

    Args:
        content: the file.
        place: its path, for messages.
        names: the images that it must describe, and their paths for messages.
        folder: the folder that it is in, which the files in it are relative to.

    Raises:
        ValueError: it has another format, its entries are not those of the images or contradict each other, a class is
            not an integer ≥ 0, or floats are not finite or not of one length; the message names the image.
    """
    table = parse_json(content, place)
    try:
        if not isinstance(table, dict) or not {"labels", "conditions"} & set(table):
            raise KeyError("labels")
        labels = _entries(table.get("labels"), folder)
        conditions = _entries(table.get("conditions"), folder)
        class_names = table.get("class_names")
        class_names = None if class_names is None else tuple(map(str, class_names))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{place} must be {{"labels": [["file", class], ...]}} or {{"conditions": [["file", [number, ...]], ...]}}'
            f": {error!r}"
        ) from error
    for what in ("labels", "conditions"):
        _check_once(table.get(what), f'{place}: "{what}"')
    given = _in_order(labels, names, place, "label")
    floats = _in_order(conditions, names, place, "condition")
    found, count = None, None
    where = [f"{name} in {place}" for name in names]
    if given is not None and _are_floats(given, where):
        if floats is not None:
            raise ValueError(f'{place} has floats both as "labels" and as "conditions": give classes as "labels"')
        given, floats = None, given
    if given is not None:
        found, count = _classes(given, where)
    values = None if floats is None else rows_of_floats(floats, where)
    return Listing("labels" in table, found, count, class_names if found is not None else None, values)


def rows_of_floats(rows: Sequence[Any], where: Sequence[str]) -> Float32[np.ndarray, "images floats"]:
    """Numbers or vectors as rows of float32; ValueError naming the first, as in `where`, that is not like the others.

    >>> rows_of_floats([0.5, 2], ["a", "b"]).tolist()
    [[0.5], [2.0]]
    """
    width: int | None = None
    found: list[list[float]] = []
    for row, name in zip(rows, where, strict=True):
        values = list(row) if isinstance(row, list | tuple | np.ndarray) else [row]
        if not values or not all(_is_number(value) for value in values):
            raise ValueError(f"the condition of {name} must be a number or a vector of numbers, got {row!r}")
        width = len(values) if width is None else width
        if len(values) != width:
            raise ValueError(f"the condition of {name} must have {width} numbers, as those before, got {len(values)}")
        if not all(abs(value) < MAX_FLOAT32 for value in values):
            raise ValueError(f"the condition of {name} must be finite, got {row!r}")
        found.append([float(value) for value in values])
    return np.array(found, dtype=np.float32)


def check_class(where: str, label: object) -> int:
    """The class as an int; ValueError that names the image, `where`, unless it is an integer ≥ 0."""
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < MAX_CLASS:
        if isinstance(label, int) and label >= MAX_CLASS:
            raise ValueError(f"the class of {where} must be an integer below 2^62, got {label!r}")
        more = '; numbers that are not classes are "conditions"' if isinstance(label, float) else ""
        raise ValueError(f"the class of {where} must be an integer >= 0, got {label!r}{more}")
    return label


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _entries(entries: Any, folder: str) -> dict[str, Any] | None:
    """Pairs of a file and its value, or an object of them; None where there are none."""
    if not entries:
        return None
    return {posixpath.join(folder, str(name).replace("\\", "/")): value for name, value in dict(entries).items()}


def _check_once(entries: Any, what: str) -> None:
    """Raise ValueError for a file that is listed twice, with different values."""
    found: dict[Any, Any] = {}
    for name, value in entries if isinstance(entries, list) else ():
        if found.setdefault(name, value) != value:
            raise ValueError(f"{what} must have each file once, but {name} has {found[name]!r} and {value!r}")


def _in_order(entries: Mapping[str, Any] | None, names: Mapping[str, str], place: str, what: str) -> list[Any] | None:
    """The values of the images in their order, after a check that files and entries are the same."""
    if entries is None:
        return None
    for name, path in names.items():
        if name not in entries:
            raise ValueError(f"{path} has no {what} in {place}")
    absent = set(entries) - set(names)
    if absent:
        raise ValueError(f"{place} has a {what} for {min(absent)}, which does not exist")
    return [entries[name] for name in names]


def _are_floats(values: Sequence[Any], where: Sequence[str]) -> bool:
    """Whether labels are conditions: all are floats, as 1.0, or all are vectors and not one-hot.

    Raises:
        ValueError: a vector is 0 and all others are one-hot rows or 0, too.
    """
    if not all(isinstance(value, list) for value in values):
        return all(isinstance(value, float) for value in values)
    vectors = [len(value) > 1 and all(map(_is_number, value)) for value in values]
    hot = [
        known and sorted(value) == [0] * (len(value) - 1) + [1] for known, value in zip(vectors, values, strict=True)
    ]
    zero = [known and not any(value) for known, value in zip(vectors, values, strict=True)]
    if any(hot) and any(zero) and all(one or other for one, other in zip(hot, zero, strict=True)):
        raise ValueError(
            f"the label of {where[zero.index(True)]} is 0 altogether, but others are one-hot rows: give it a class; or "
            'give all as "conditions", if they are no classes'
        )
    return not all(hot)


def _classes(labels: Sequence[Any], where: Sequence[str]) -> tuple[Int64[np.ndarray, " images"], int | None]:
    if all(isinstance(label, list) for label in labels):
        rows, count = read_labels(torch.tensor(labels), len(labels))
        return rows.numpy(), count
    return np.array([check_class(name, label) for name, label in zip(where, labels, strict=True)], dtype=np.int64), None
