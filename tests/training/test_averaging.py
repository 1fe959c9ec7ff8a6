import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from openedm.training import HalfLife, MovingAverage, Observer

EPSILON = 2.0**-24
"""Half the distance from 1 to the next float32: the rounding of one operation."""


class Recorder(Observer):
    """Keeps the raw weights after every step."""

    def __init__(self):
        self.weights = []

    def watch(self, trainer):
        self.trainer = trainer

    def on_progress(self, progress):
        self.weights.append([p.detach().clone() for p in self.trainer.denoiser.parameters()])


def scalar(value):
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, value)
    return module


@given(st.floats(1, 1e9), st.floats(1e-3, 10), st.integers(1, 4096), st.integers(1, 10**9))
def test_the_decay_is_one_half_to_the_batch_over_the_half_life_or_the_ramp_if_that_is_shorter(
    half_life, ramp, batch, images
):
    shorter = half_life if half_life < ramp * images else ramp * images
    expected = math.exp(-math.log(2) * batch / shorter)
    assert HalfLife(half_life, ramp).decay(batch, images) == pytest.approx(expected, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("batch", [1, 8, 50, 400])
def test_without_a_ramp_the_share_of_the_first_weights_halves_once_a_half_life(batch):
    rule = HalfLife(half_life=400, ramp=math.inf)
    average, current = scalar(1.0), scalar(0.0)
    for half_lives in (1, 2, 3):
        for step in range(400 // batch):
            MovingAverage(average, current).update(rule.decay(batch, (step + 1) * batch))
        rounding = 3 * 400 / batch * EPSILON  # relative, one or two operations a step
        assert average.weight.item() == pytest.approx(0.5**half_lives, rel=2 * rounding)


def test_with_a_ramp_a_young_average_forgets_its_first_weights():
    # While h = ramp · images, each step multiplies their share by ½^{1/(ramp · n)}: the product is ½^{H_n / ramp}.
    rule = HalfLife(half_life=math.inf, ramp=0.5)
    average, current = scalar(1.0), scalar(0.0)
    for step in range(1, 11):
        MovingAverage(average, current).update(rule.decay(32, 32 * step))
    harmonic = sum(1 / n for n in range(1, 11))
    assert average.weight.item() == pytest.approx(0.5 ** (harmonic / 0.5), rel=40 * EPSILON)


def test_an_infinite_half_life_without_a_ramp_never_moves():
    assert HalfLife(math.inf, math.inf).decay(128, 10**9) == 1.0


def test_buffers_are_copied_and_not_averaged():
    average, current = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    current.running_mean.fill_(5.0)
    current.num_batches_tracked.fill_(7)
    MovingAverage(average, current).update(0.9)
    assert average.running_mean.tolist() == [5.0, 5.0]
    assert average.num_batches_tracked.item() == 7


def test_a_run_averages_its_weights_by_the_recurrence(trainer):
    recorder, rule = Recorder(), HalfLife(half_life=40.0, ramp=0.5)
    run = trainer(average=rule, observers=[recorder])
    recorder.watch(run)
    expected = [p.detach().double() for p in run.denoiser.parameters()]
    run.fit()
    for step, weights in enumerate(recorder.weights, start=1):
        beta = 0.5 ** (16 / min(40.0, 0.5 * 16 * step))
        expected = [beta * e + (1 - beta) * w.double() for e, w in zip(expected, weights, strict=True)]
    for mine, theirs in zip(run.average.parameters(), expected, strict=True):
        # Three roundings a step, of values no larger than the largest weight.
        torch.testing.assert_close(
            mine.double(), theirs, rtol=0, atol=3 * len(recorder.weights) * EPSILON * theirs.abs().max().item()
        )
    assert any(not torch.equal(a, b) for a, b in zip(run.average.parameters(), run.denoiser.parameters(), strict=True))


def test_a_half_life_of_zero_keeps_no_average(trainer):
    run = trainer(average=HalfLife(half_life=0))
    run.fit()
    for average, raw in zip(run.average.parameters(), run.denoiser.parameters(), strict=True):
        assert torch.equal(average, raw)


@pytest.mark.parametrize(
    ("name", "value"),
    [("half_life", -1.0), ("half_life", math.nan), ("ramp", 0.0), ("ramp", -0.05), ("ramp", math.nan)],
)
def test_a_value_out_of_range_is_an_error_that_names_it(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be >= .*got {value}"):
        HalfLife(**{name: value})
