"""Classes and floats in one tensor of conditions."""

import math
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from openedm.conditions import ConditionLayout, pack

SHAPES = [(4,), (2, 6), (3, 5, 7), (1, 3, 4, 5)]
CLASSES = torch.tensor([2, -1, 0])


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_packed_comes_out_again(shape):
    values, layout = torch.randn(3, *shape), ConditionLayout(3, shape)
    packed = pack(CLASSES, values)
    assert tuple(packed.shape[1:]) == layout.packed_shape
    assert ConditionLayout.from_packed(3, layout.packed_shape) == layout
    classes, floats = layout.unpack(packed)
    assert torch.equal(classes, CLASSES)
    assert torch.equal(floats, values)
    layout.check_classes(packed)


def test_one_hot_rows_are_packed_as_their_class():
    rows = torch.tensor([[0, 0, 1.0], [0, 0, 0], [1, 0, 0]])
    values = torch.randn(3, 2)
    assert torch.equal(pack(rows, values), pack(CLASSES, values))


def test_class_indices_are_exact_for_many_classes_and_half_precision_values():
    classes = torch.tensor([999, 257])
    assert ConditionLayout(1000, (2,)).unpack(pack(classes, torch.zeros(2, 2, dtype=torch.bfloat16)))[0].tolist() == [
        999,
        257,
    ]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_classes", [0, 3])
def test_hidden_rows_are_the_null_rows_and_the_others_are_unchanged(num_classes, shape):
    layout, values = ConditionLayout(num_classes, shape), torch.randn(3, *shape)
    condition = pack(CLASSES, values) if num_classes else values
    hidden = layout.hide(condition, torch.tensor([True, False, True]))
    assert_close(hidden[[0, 2]], layout.null(condition)[[0, 2]], equal_nan=True)
    assert torch.equal(hidden[1], condition[1])
    classes, floats = layout.unpack(hidden)
    assert bool(floats[0].isnan().all())
    assert classes is None or classes.tolist() == [-1, -1, -1]


def test_the_null_of_classes_alone_is_no_class():
    layout = ConditionLayout(3)
    assert layout.null(CLASSES).tolist() == [-1, -1, -1]
    assert layout.null(torch.eye(3)).tolist() == torch.zeros(3, 3).tolist()


def test_a_denoiser_of_less_is_given_its_part():
    layout, values = ConditionLayout(3, (2,)), torch.randn(3, 2)
    packed = pack(CLASSES, values)
    assert layout.select(packed, layout) is packed
    assert torch.equal(layout.select(packed, ConditionLayout(3)), CLASSES)
    assert torch.equal(layout.select(packed, ConditionLayout(0, (2,))), values)
    assert layout.select(packed, ConditionLayout()) is None
    with pytest.raises(ValueError, match="condition must hold floats of shape"):
        layout.select(packed, ConditionLayout(0, (3,)))


@pytest.mark.parametrize("first", [3.0, -2.0, 0.5])
def test_a_first_channel_without_a_class_is_refused_by_row(first):
    packed = pack(CLASSES, torch.randn(3, 2))
    packed[1, 0] = first
    with pytest.raises(ValueError, match=r"one class from -1 \(none\) to 2 in its first channel, .* in condition\[1\]"):
        ConditionLayout(3, (2,)).check_classes(packed)


def test_a_first_channel_of_several_classes_is_refused():
    packed = pack(CLASSES, torch.randn(3, 1, 4, 4))
    packed[2, 0, 1, 1] = 1
    with pytest.raises(ValueError, match=r"got 0 … 1 in condition\[2\]"):
        ConditionLayout(3, (1, 4, 4)).check_classes(packed)


@pytest.mark.parametrize(("classes", "values"), [((3,), (2, 2)), ((3,), (3,)), ((3, 2, 1), (3, 2))])
def test_other_shapes_are_not_packed(classes, values):
    with pytest.raises(ValueError, match="classes and values must have the same number of rows"):
        pack(torch.zeros(classes, dtype=torch.int64), torch.zeros(values))


def test_a_column_of_classes_is_their_numbers() -> None:
    assert pack(torch.tensor([[2], [0], [-1]]), torch.zeros(3, 1))[:, 0].tolist() == [2, 0, -1]


@pytest.mark.parametrize("classes", [[[0.5, 0.5, 0.0]], [[1, 1, 0]], [0.5], [math.nan]])
def test_classes_that_a_packed_condition_cannot_hold_are_refused(classes: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"classes must be (integers or one-hot rows|whole numbers)"):
        pack(torch.tensor(classes), torch.zeros(1, 2))
