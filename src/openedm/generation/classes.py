"""Classes by name or index, as they are written on the command line."""

from collections.abc import Sequence

from openedm.sampling.noise import NO_CLASSES

__all__ = ["find_classes", "split_names"]


def find_classes(classes: Sequence[int | str], num_classes: int, names: Sequence[str] | None = None) -> list[int]:
    """The indices of classes that are given by name, by index or as ranges.

    A word that is the name of a class is that class. Other words are indices and ranges of them, both ends included.
    Where the names of all classes are numbers (labels that were renumbered, folders 1, 2, 10), numbers and ranges in
    words are names, never indices, and a range holds those names that lie in it. Integers are always indices.

    >>> find_classes(["dog", "0-1", 2], 3, ["cat", "dog", "eel"])
    [1, 0, 1, 2]
    >>> find_classes(["3", "4-7"], 3, ["3", "5", "7"])
    [0, 1, 2]

    Args:
        classes: indices and words.
        num_classes: the number of classes of the model.
        names: their names, if they have some.

    Raises:
        ValueError: the model has no such class.
    """
    if num_classes == 0:
        raise ValueError(f"{NO_CLASSES}, got {list(classes)}")
    found: list[int] = []
    for item in classes:
        chosen = [item] if isinstance(item, int) else _of_word(item.strip(), names)
        wrong = [index for index in chosen if not 0 <= index < num_classes]
        if wrong or not chosen:
            raise ValueError(f"classes must be {_allowed(num_classes, names)}, got {wrong or repr(item)}")
        found += chosen
    if not found:
        raise ValueError(f"classes must be {_allowed(num_classes, names)}, got none")
    return found


def split_names(text: str, names: Sequence[str] | None = None) -> list[str]:
    """The words of a list with commas, where names of classes may have commas themselves."""
    words = text.split(",")
    found: list[str] = []
    start = 0
    while start < len(words):
        for end in range(len(words), start, -1):  # the longest that is a name, otherwise one word
            word = ",".join(words[start:end]).strip()
            if end == start + 1 or word in (names or ()):
                found.append(word)
                start = end
                break
    return found


def _of_word(word: str, names: Sequence[str] | None) -> list[int]:
    if names is not None and word in names:
        return [index for index, name in enumerate(names) if name == word]
    low, dash, high = (part.strip() for part in word.partition("-"))
    if not low.isdecimal() or (dash and not high.isdecimal()):
        return []
    numbers = range(int(low), int(high if dash else low) + 1)
    if names is not None and all(name.isdecimal() for name in names):
        labels = [int(name) for name in names]
        if numbers and not min(labels) <= numbers[0] <= numbers[-1] <= max(labels):
            return []
        return [index for index, label in enumerate(labels) if label in numbers]
    return list(numbers)


def _allowed(num_classes: int, names: Sequence[str] | None) -> str:
    if names is None:
        return f"between 0 and {num_classes - 1}"
    shown = ", ".join(names[:10]) + (", …" if num_classes > 10 else "")
    if all(name.isdecimal() for name in names):
        return f"among the labels {shown}, or ranges of them"
    return f"names, {shown}, or indices between 0 and {num_classes - 1}"
