"""The state of the optimiser in a checkpoint fits the parameters, is finite and complete, or is refused by entry."""

from pathlib import Path

import pytest
import torch
from torch import nn

from openedm.training.weights import _flatten_optimizer, _restore_optimizer

NAMES = ["weight", "bias"]


@pytest.fixture
def made():
    """A function that makes an optimiser of a small layer, and its state after a step."""

    def make():
        torch.manual_seed(0)
        layer = nn.Linear(2, 3)
        optimizer = torch.optim.Adam(layer.parameters())
        layer(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        return optimizer, _flatten_optimizer(optimizer, NAMES)

    return make


def test_a_state_that_was_taken_is_restored(made):
    _, state = made()
    optimizer, _ = made()
    changed = {key: value + 1 for key, value in state.items()}
    _restore_optimizer(optimizer, NAMES, changed, Path("run"))
    restored = _flatten_optimizer(optimizer, NAMES)
    assert restored.keys() == state.keys()
    assert all(torch.equal(restored[key], changed[key]) for key in restored)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer.weight.exp_avg": torch.zeros(2, 3)}, r"does not fit: weight.exp_avg of shape \(2, 3\)"),
        ({"optimizer.other.exp_avg": torch.zeros(3)}, r"does not fit: other.exp_avg of shape \(3,\)"),
        ({"optimizer.bias.exp_avg": torch.tensor([0.0, torch.inf, 0.0])}, r"finite real numbers: bias.exp_avg holds 1"),
        ({"optimizer.bias.exp_avg": torch.zeros(3, dtype=torch.int64)}, r"finite .*: bias.exp_avg holds torch.int64"),
        ({"optimizer.bias.exp_avg": None}, r"is incomplete: bias.exp_avg missing"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_by_entry_and_nothing_is_changed(change, message, made):
    optimizer, state = made()
    changed = {key: value for key, value in (state | change).items() if value is not None}
    with pytest.raises(ValueError, match=rf"the optimiser's state in run .*{message}"):
        _restore_optimizer(optimizer, NAMES, changed, Path("run"))
    assert all(torch.equal(value, state[key]) for key, value in _flatten_optimizer(optimizer, NAMES).items())
