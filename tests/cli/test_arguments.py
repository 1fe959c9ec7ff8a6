import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openedm.cli.arguments import parse_integers
from openedm.data.pictures import grid_columns
from openedm.sampling import class_labels


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 50)), min_size=1, max_size=10))
def test_ranges_hold_both_their_ends_and_stand_in_the_order_written(ranges):
    text = ",".join(f"{low}-{low + more}" if more else f"{low}" for low, more in ranges)
    expected = [n for low, more in ranges for n in range(low, low + more + 1)]
    assert parse_integers("seeds", text) == expected


def test_spaces_and_ranges_of_one_are_fine():
    assert parse_integers("seeds", " 0-3, 7 ,5-5") == [0, 1, 2, 3, 7, 5]


@pytest.mark.parametrize("text", ["", "a", "1,,2", "-1", "1-", "1-2-3", "0x10", "1.5", "1;2", "²", "1 - 3"])
def test_text_that_is_no_list_of_numbers_is_an_error_that_names_the_argument(text):
    with pytest.raises(ValueError, match="classes must be numbers >= 0 and ranges such as 0-63,100, got"):
        parse_integers("classes", text)


def test_a_range_that_runs_backward_is_an_error():
    with pytest.raises(ValueError, match="seeds must have increasing ranges, got '9-3'"):
        parse_integers("seeds", "1,9-3")


@pytest.mark.parametrize("text", [str(2**63), f"0-3,{2**63 - 2}-{2**63}"])
def test_a_number_that_no_file_holds_is_an_error_before_anything_is_drawn(text):
    with pytest.raises(ValueError, match=r"seeds must be below 2\^63, got '.*9223372036854775808'"):
        parse_integers("seeds", text)
    assert parse_integers("seeds", str(2**63 - 1)) == [2**63 - 1]


@given(st.lists(st.integers(0, 10**6), max_size=20), st.integers(1, 12))
def test_the_class_of_a_seed_depends_on_the_seed_alone(seeds, num_classes):
    labels = class_labels(seeds, None, num_classes)
    assert labels.dtype == torch.int64
    assert labels.tolist() == [seed % num_classes for seed in seeds]


def test_chosen_classes_take_turns():
    assert class_labels([0, 1, 2, 3, 100], [7, 2, 2], 10).tolist() == [7, 2, 2, 7, 2]


def test_an_unconditional_model_has_no_classes():
    assert class_labels([1, 2], None, 0) is None
    with pytest.raises(ValueError, match=r"no --classes.* trained without class labels .*, got \[1\]"):
        class_labels([1, 2], [1], 0)


def test_classes_that_the_model_does_not_have_are_an_error_that_names_them():
    with pytest.raises(ValueError, match=r"classes must be between 0 and 9, got \[10, 12\]"):
        class_labels([0], [3, 10, 12], 10)


def test_a_grid_has_a_column_a_class_where_these_are_few_enough_to_see():
    assert grid_columns(torch.arange(40) % 10) == 10
    for labels in (None, torch.zeros(9, dtype=torch.int64), torch.arange(21)):
        assert grid_columns(labels) is None
