"""Classes by name or index."""

import pytest

from openedm.generation import find_classes, split_names


@pytest.mark.parametrize(
    ("words", "names", "expected"),
    [
        ([0, "1-2", "2"], None, [0, 1, 2, 2]),
        (["dog", "0", "1-2"], ["cat", "dog", "eel"], [1, 0, 1, 2]),
        (["1"], ["3", "1", "2"], [1]),  # a label, not an index
        (["1-2"], ["3", "1", "2"], [1, 2]),
        (["2"], ["cat", "2", "dog"], [1]),  # a name before an index
        (["1"], ["cat", "2", "dog"], [1]),
        (["cat-like"], ["cat-like", "dog", "x"], [0]),
    ],
)
def test_names_come_before_indices_and_labels_are_names(words, names, expected):
    assert find_classes(words, 3, names) == expected


@pytest.mark.parametrize(
    ("words", "names", "message"),
    [
        (["cow"], ["cat", "dog", "eel"], r"must be names, cat, dog, eel, or indices between 0 and 2, got 'cow'"),
        (["7"], ["3", "1", "2"], r"must be among the labels 3, 1, 2, or ranges of them, got '7'"),
        (["0-3"], None, r"must be between 0 and 2, got \[3\]"),
        (["2-0"], None, r"got '2-0'"),
        ([-1], None, r"got \[-1\]"),
        ([], None, "got none"),
    ],
)
def test_classes_that_are_not_there_are_refused(words, names, message):
    with pytest.raises(ValueError, match=message):
        find_classes(words, 3, names)


def test_names_may_have_commas():
    assert split_names("a, b,c", ["a, b", "c"]) == ["a, b", "c"]
    assert split_names("0-3, 7") == ["0-3", "7"]
