import math
import pickle

import pytest
import torch

from openedm.data import Pairs


def test_pairs_are_fetched_together_in_the_order_asked_for():
    x, condition = torch.randn(6, 2), torch.randn(6, 3, 4, dtype=torch.float64)
    pairs = Pairs(x, condition)
    found, given = pairs.fetch([5, 0, 5])
    assert torch.equal(found, x[[5, 0, 5]])
    assert torch.equal(given, condition[[5, 0, 5]].float())
    assert (pairs.event_shape, pairs.condition_shape, pairs.num_classes, pairs.kind) == ((2,), (3, 4), 0, "vectors")
    assert pairs.describe() == "6 vectors of 2 with conditions of 3×4"
    one, its = pairs[-1]
    assert torch.equal(one, x[5])
    assert torch.equal(its, condition[5].float())
    assert torch.equal(pickle.loads(pickle.dumps(pairs)).fetch([2])[1], given.new_tensor(condition[[2]].tolist()))


def test_absent_members_are_allowed_where_asked_for():
    condition = torch.tensor([[1.0], [math.nan]])
    assert Pairs(torch.zeros(2, 1), condition, allow_nan=True).fetch([1])[1].isnan().all()
    with pytest.raises(ValueError, match=r"condition must be finite, but condition\[1\] has NaN or infinity"):
        Pairs(torch.zeros(2, 1), condition)
    with pytest.raises(ValueError, match=r"condition must be finite or NaN, but condition\[0\] has infinity"):
        Pairs(torch.zeros(2, 1), torch.tensor([[math.inf], [math.nan]]), allow_nan=True)


def test_what_is_no_pair_is_refused():
    x = torch.zeros(2, 1)
    with pytest.raises(ValueError, match=r"x must be finite, but x\[1\]"):
        Pairs(torch.tensor([[0.0], [math.nan]]), x, allow_nan=True)
    for wrong in (torch.zeros(3, 1), torch.zeros(2), torch.zeros(2, 0)):
        with pytest.raises(ValueError, match=r"condition must have shape \(2, \*condition\)"):
            Pairs(x, wrong)


def test_a_condition_of_integers_is_refused(without_type_checker):
    with pytest.raises(TypeError, match=r"condition must be floating point, .*got torch\.int64"):
        Pairs(torch.zeros(2, 1), torch.zeros(2, 1, dtype=torch.int64))


def test_values_too_large_for_float32_are_refused():
    with pytest.raises(ValueError, match=r"condition\[0\]"):
        Pairs(torch.zeros(2, 1), torch.full((2, 1), 1e300, dtype=torch.float64))
