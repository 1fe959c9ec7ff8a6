"""Where the classes of images come from: sub-folders, dataset.json, and the files beside an image in a tar archive."""

import json
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

__all__ = ["check_class", "class_beside", "classes_from_folders", "classes_from_json"]


def check_class(where: str, label: object) -> int:
    """The class as an int; ValueError that names the image, `where`, unless it is an integer ≥ 0."""
    if not isinstance(label, int) or isinstance(label, bool) or label < 0:
        raise ValueError(f"the class of {where} must be an integer >= 0, got {label!r}")
    return label


def classes_from_folders(names: Sequence[str]) -> list[str | None]:
    """For each image its first folder below the common folder of all images; None for one directly in that folder."""
    common = posixpath.commonpath([posixpath.dirname(name) for name in names])
    below = [name[len(common) :].lstrip("/") for name in names]
    return [name.split("/", 1)[0] if "/" in name else None for name in below]


def classes_from_json(
    content: bytes, file: str, names: Sequence[str], root: str
) -> Int64[np.ndarray, " images"] | None:
    """The classes in a dataset.json, in the format of the EDM reference; None where it says that there are none.

    Args:
        content: of the file.
        file: its path below `root`.
        names: the images' paths below `root`.
        root: of both, for messages.

    Raises:
        ValueError: the file has another format, or its entries are not those of the images, or a class is invalid.
    """
    place = f"{root}/{file}"
    try:
        entries: Any = json.loads(content)["labels"]
        table = {} if entries is None else dict(entries)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{place} must be {{"labels": [["file", class], ...]}}: {error!r}') from error
    if not table:
        return None
    folder = posixpath.dirname(file)
    labels = {posixpath.join(folder, str(name).replace("\\", "/")): label for name, label in table.items()}
    for name in names:
        if name not in labels:
            raise ValueError(f"{root}/{name} has no label in {place}")
    for name, label in labels.items():
        check_class(f"{name} in {place}", label)
    absent = set(labels) - set(names)
    if absent:
        raise ValueError(f"{place} has a label for {min(absent)}, which does not exist")
    return np.array([labels[name] for name in names], dtype=np.int64)


def class_beside(files: Mapping[str, bytes], where: str) -> int | None:
    """The class of an image in the manner of WebDataset: the number in its .cls, "label" or "cls" in its .json.

    Args:
        files: content of the files beside the image, by suffix.
        where: the image, for messages.

    Raises:
        ValueError: the class cannot be read or is not an integer ≥ 0.
    """
    try:
        if ".cls" in files:
            label: Any = int(files[".cls"])
        elif ".json" in files:
            entries = json.loads(files[".json"])
            label = entries.get("label", entries.get("cls"))
        else:
            return None
    except (ValueError, AttributeError) as error:
        raise ValueError(f"the class of {where} cannot be read: {error}") from error
    return None if label is None else check_class(where, label)
