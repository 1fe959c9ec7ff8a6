"""A run that was stopped, killed or crashed and then resumed is the run that was never interrupted, bit for bit."""

from dataclasses import replace
from itertools import count

import pytest
import torch
from torch import nn

from openedm.data import InMemory
from openedm.training import Model, Observer, Options, Trainer, load_denoiser


class Crash(Exception):
    """Stands for a process that dies between two checkpoints."""


class CrashAt(Observer):
    def __init__(self, step):
        self.step = step

    def on_progress(self, progress):
        if progress.step == self.step:
            raise Crash


@pytest.fixture(scope="module")
def uninterrupted(everything_on, state_of):
    trainer = everything_on()
    trainer.fit()
    return state_of(trainer)


@pytest.mark.parametrize("stops", [[7], [1, 2, 6]])
def test_a_run_stopped_after_any_steps_and_resumed_equals_one_that_was_not(
    stops, uninterrupted, everything_on, state_of, differences, tmp_path
):
    for stop in [*stops, None]:
        trainer = everything_on(run=tmp_path)
        if stop != stops[0]:
            trainer.resume()
        steps = count(trainer.state.step + 1)
        trainer.fit(lambda steps=steps, stop=stop: next(steps) == stop)
        assert trainer.state.step == (stop or 8)
    assert differences(state_of(trainer), uninterrupted) == []


@pytest.mark.parametrize("step", [5, 7])
def test_a_run_that_died_between_checkpoints_goes_on_from_the_last_one_and_equals_one_that_did_not(
    step, uninterrupted, everything_on, state_of, differences, tmp_path
):
    with pytest.raises(Crash):
        everything_on(run=tmp_path, observers=[CrashAt(step)]).fit()
    trainer = everything_on(run=tmp_path)
    trainer.resume()
    assert trainer.state.step == {5: 3, 7: 6}[step]
    trainer.fit()
    assert differences(state_of(trainer), uninterrupted) == []


def test_fit_called_again_in_the_same_process_goes_on(uninterrupted, everything_on, state_of, differences):
    trainer = everything_on()
    steps = count(1)
    trainer.fit(lambda: next(steps) == 3)
    trainer.fit()
    assert differences(state_of(trainer), uninterrupted) == []


def test_resuming_restores_the_state_itself(everything_on, state_of, differences, tmp_path):
    first = everything_on(run=tmp_path, images=48)
    first.fit()
    second = everything_on(run=tmp_path)
    second.resume()
    assert differences(state_of(second), state_of(first)) == []


def test_worker_processes_that_load_data_do_not_change_a_run_that_is_resumed(
    uninterrupted, everything_on, state_of, differences, tmp_path
):
    everything_on(run=tmp_path, images=48, workers=1).fit()
    trainer = everything_on(run=tmp_path, workers=2)
    trainer.resume()
    trainer.fit()
    assert differences(state_of(trainer), uninterrupted) == []


class Tied(nn.Module):
    """Two layers with the same weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.second.weight = self.first.weight

    def forward(self, x, c_noise, condition=None, augment=None):
        return self.second(self.first(x))


def test_a_network_with_tied_weights_is_saved_and_goes_on(tmp_path, without_type_checker):
    data = InMemory(torch.linspace(-1, 1, 64).reshape(32, 2))
    model = Model.for_data(data, Tied)
    options = Options(images=64, batch_size=16, validate_every=0)
    expected = Trainer(model, data, options=options, run=tmp_path / "whole").fit().network.state_dict()
    Trainer(model, data, options=replace(options, images=32), run=tmp_path / "parts").fit()
    resumed = Trainer(model, data, options=options, run=tmp_path / "parts")
    resumed.resume()
    resumed.fit()
    loaded = load_denoiser(tmp_path / "parts", network=Tied).network
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    assert loaded.second.weight is loaded.first.weight
