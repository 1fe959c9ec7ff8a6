"""Choices to vary: how they are written, what is refused, and the names of their combinations."""

import re

import pytest

from openedm.comparing import Variation, combinations, name_of, parse_variations


def test_the_last_option_varies_fastest() -> None:
    found = combinations(parse_variations(["objective=EDM,VP", "options.seed=0,1"]))
    assert [tuple(each.values()) for each in found] == [("EDM", "0"), ("EDM", "1"), ("VP", "0"), ("VP", "1")]
    assert combinations([]) == [{}]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a=1", ("1",)),
        ("a=[1,2],[3]", ("[1,2]", "[3]")),
        ("a={class_path: VP, init_args: {b: 1}},EDM", ("{class_path: VP, init_args: {b: 1}}", "EDM")),
        ("a='x,y', z", ("'x,y'", "z")),
        ("a=b=c", ("b=c",)),
    ],
)
def test_commas_inside_brackets_and_quotes_separate_no_values(text: str, values: tuple[str, ...]) -> None:
    assert Variation.parse(text).values == values


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["objective"], "vary must be NAME=VALUE,VALUE"),
        (["=EDM"], "vary must be NAME=VALUE,VALUE"),
        (["--objective=EDM"], "vary must be NAME=VALUE,VALUE"),
        (["objective="], "vary objective must have values between its commas"),
        (["objective=EDM,,VP"], "vary objective must have values between its commas"),
        (["objective=EDM,VP,EDM"], "vary objective must have each value once, got 'EDM' twice"),
        (["a=1", "b=2", "a=3"], "vary a must be given once"),
    ],
)
def test_what_cannot_be_read_is_refused(texts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_variations(texts)


def test_names_are_values_without_what_shells_treat_specially() -> None:
    assert name_of({"objective": "EDM"}) == "objective=EDM"
    assert name_of({"config": "rungs/A.yaml", "options.seed": "1"}) == "A,options.seed=1"
    assert name_of({"a": "{b: [1, 2]}"}) == "a=b-1-2"
    assert name_of({}) == "run"
