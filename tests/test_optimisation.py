"""The loop of optimiser steps against one written by hand, and early stopping of one model and of an ensemble."""

import itertools
import math

import pytest
import torch
from torch import nn

from openedm.optimisation import BestLoss, full_tensor, minimise


@pytest.fixture
def regression():
    """Makes a network and the gradient of its loss, the same every time."""
    x = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))

    def make():
        network = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1))
        for i, parameter in enumerate(network.parameters()):
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(i))

        def gradient(step):
            loss = (network(x + 0.01 * step) - x.sum(1, keepdim=True)).square().mean()
            loss.backward()
            return loss

        return network, gradient

    return make


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_the_steps_are_those_of_a_loop_written_by_hand(regression, clip_norm):
    network, gradient = regression()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.1)
    rates = [0.1 / (1 + step) for step in range(7)]
    taken = list(minimise(gradient, optimizer, steps=range(7), learning_rate=rates.__getitem__, clip_norm=clip_norm))

    other, gradient = regression()
    optimizer = torch.optim.AdamW(other.parameters(), weight_decay=0.1)
    for step in range(7):
        optimizer.zero_grad()
        loss = gradient(step).detach()
        norm = nn.utils.clip_grad_norm_(other.parameters(), math.inf if clip_norm is None else clip_norm)
        optimizer.param_groups[0]["lr"] = rates[step]
        optimizer.step()
        assert (taken[step].number, taken[step].loss, taken[step].gradient_norm) == (step, float(loss), float(norm))
        assert taken[step].learning_rate == rates[step]
        assert taken[step].taken
    assert all(torch.equal(one, two) for one, two in zip(network.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_not_finite_leaves_the_parameters_as_they_were(regression, value):
    network, gradient = regression()
    optimizer = torch.optim.Adam(network.parameters())
    before = {name: p.clone() for name, p in network.state_dict().items()}

    def spoilt(step):
        return gradient(step) * value

    (step,) = minimise(spoilt, optimizer, steps=range(1), learning_rate=lambda step: 0.1)
    assert not step.taken
    assert all(torch.equal(p, before[name]) for name, p in network.state_dict().items())
    assert not optimizer.state


def test_steps_without_end_end_with_the_caller(regression):
    network, gradient = regression()
    optimizer = torch.optim.SGD(network.parameters())
    steps = minimise(gradient, optimizer, steps=itertools.count(5), learning_rate=lambda step: 0.1)
    assert [step.number for step in itertools.islice(steps, 3)] == [5, 6, 7]


def test_members_of_an_ensemble_improve_one_by_one_and_stall_together():
    best = BestLoss(torch.tensor([1.0, 1.0]), torch.tensor([0, 0]))
    assert best.update(torch.tensor([0.5, 2.0])).tolist() == [True, False]
    assert best.update(torch.tensor([math.nan, 0.9])).tolist() == [False, True]
    assert best.lowest.tolist() == torch.tensor([0.5, 0.9]).tolist()
    assert best.stale.tolist() == [1, 0]
    assert not best.stalled(1)
    best.update(torch.tensor([0.6, 0.9]))
    assert best.stalled(1)
    assert not best.stalled(2)


def test_a_tolerance_asks_for_more_than_the_lowest_loss_which_is_remembered_all_the_same():
    best = BestLoss(tolerance=0.1)
    assert [bool(best.update(torch.tensor(loss))) for loss in (1.0, 0.95, 0.88, 0.7)] == [True, False, False, True]
    best = BestLoss(tolerance=0.1)
    for loss in (1.0, 0.95):
        best.update(torch.tensor(loss, dtype=torch.float64))
    assert float(best.lowest) == 0.95
    assert int(best.stale) == 1


def test_a_tensor_on_one_process_is_whole():
    value = torch.arange(3.0)
    assert full_tensor(value) is value
