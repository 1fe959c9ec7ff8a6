"""The weights with the lowest validation loss, and stopping where it does not fall any more."""

import json
from itertools import count

import pytest
import torch
from safetensors.torch import load_file

from openedm.data import InMemory
from openedm.ground.verifying import accept
from openedm.training import Observer, Validation, find_checkpoint, list_checkpoints, load_denoiser

UNSTEADY = {"learning_rate": 0.03, "rampup": 0, "validate_every": 16, "images": 640, "keep_best": True}
"""Steps so long that the loss goes up and down."""


class Losses(Observer):
    def __init__(self):
        self.losses, self.weights = [], []

    def watch(self, run):
        self.run = run
        return run

    def on_validation(self, images, loss):
        self.losses.append(loss.loss)
        self.weights.append({name: t.clone() for name, t in self.run.average.network.state_dict().items()})


def watched(trainer, **options):
    losses = Losses()
    return losses.watch(trainer(observers=[losses], **options)), losses


def measure(denoiser, run):
    validation = Validation(run.validation, run.objective, sigma_data=run.model.sigma_data, device=torch.device("cpu"))
    return validation.measure(denoiser).loss


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.fixture
def held_out():
    generator = torch.Generator().manual_seed(9)
    labels = torch.arange(60) % 3
    return InMemory(torch.randn(60, 2, generator=generator) * 0.5 + torch.tensor([1.0, -1.0]), labels)


def test_the_weights_that_are_returned_and_saved_are_those_of_the_lowest_loss(trainer, held_out, tmp_path):
    run, seen = watched(trainer, validation=held_out, run=tmp_path, checkpoint_every=10**6, **UNSTEADY)
    best = run.fit()
    lowest = min(range(len(seen.losses)), key=seen.losses.__getitem__)
    assert 0 < lowest < len(seen.losses) - 1
    assert_same(best.network.state_dict(), seen.weights[lowest])
    assert run.best_loss == seen.losses[lowest] == measure(best, run)
    assert not best.training
    assert_same(load_denoiser(tmp_path).network.state_dict(), seen.weights[lowest])
    assert_same(run.average.network.state_dict(), seen.weights[-1])  # with which training continues


def test_the_result_is_a_copy(trainer):
    run, _ = watched(trainer, **UNSTEADY)
    best = run.fit()
    before = {name: t.clone() for name, t in best.network.state_dict().items()}
    with torch.no_grad():
        for p in (*run.average.parameters(), *run.denoiser.parameters(), *run.fit().parameters()):
            p.zero_()
    assert_same(best.network.state_dict(), before)
    assert_same(run.fit().network.state_dict(), before)


def test_training_ends_after_measurements_without_improvement(trainer, held_out):
    run, seen = watched(trainer, validation=held_out, stop_after=3, **UNSTEADY)
    run.fit()
    lowest = min(range(len(seen.losses)), key=seen.losses.__getitem__)
    assert len(seen.losses) == lowest + 1 + 3 < 40
    assert run.finished
    run.fit()  # nothing is left to do
    assert len(seen.losses) == lowest + 4


def test_without_these_options_the_lowest_loss_is_not_looked_at(trainer):
    run = trainer(validate_every=16)
    assert run.fit() is run.average
    assert run.best_loss is None


@pytest.mark.parametrize(
    ("options", "stops", "every"),
    [
        ({}, [1], 16),
        ({}, [5, 6], 48),
        ({"stop_after": 4}, [3, 11], 16),
        ({"stop_after": 4}, [1], 48),
        ({"keep_best": False, "stop_after": 4}, [5, 6], 16),
        ({"keep_best": False, "stop_after": 4}, [3, 11], 48),
    ],
)
def test_a_run_that_is_interrupted_and_resumed_equals_one_that_was_not(
    trainer, held_out, state_of, differences, tmp_path, options, stops, every
):
    settings = {**UNSTEADY, "images": 320, "validate_every": every, **options, "validation": held_out}
    whole = trainer(**settings)
    expected = whole.fit().network.state_dict()
    for stop in [*stops, None]:
        run = trainer(run=tmp_path, checkpoint_every=64, **settings)
        if stop != stops[0]:
            run.resume()
        steps = count(run.state.step + 1)
        found = run.fit(lambda steps=steps, stop=stop: next(steps) == stop)
    assert differences(state_of(run), state_of(whole)) == []
    assert_same(found.network.state_dict(), expected)
    assert_same(load_denoiser(tmp_path).network.state_dict(), expected)


def test_a_finished_run_stays_finished(trainer, held_out, tmp_path):
    settings = {**UNSTEADY, "stop_after": 2, "validation": held_out, "run": tmp_path}
    first = trainer(**settings)
    best = first.fit()
    again = trainer(**settings)
    again.resume()
    assert again.finished
    assert_same(again.fit().network.state_dict(), best.network.state_dict())
    assert again.state.to_json(again.objective, again.options) == first.state.to_json(first.objective, first.options)


def test_a_loss_that_is_not_finite_is_never_the_best(trainer):
    run = trainer(keep_best=True, validate_every=16)
    for loss in (float("nan"), float("inf")):
        run._track_best(loss)
    assert run.best_loss is None
    assert run.fit() is not run.average


def test_what_would_change_the_result_of_a_resumed_run_is_refused(trainer, tmp_path):
    trainer(run=tmp_path, images=64, validate_every=32, keep_best=True).fit()
    for change in ({"validate_every": 16}, {"validate_samples": 8}, {"keep_best": False}):
        with pytest.raises(ValueError, match=f"cannot be resumed with other settings: options.{next(iter(change))}"):
            trainer(**({"run": tmp_path, "validate_every": 32, "keep_best": True} | change)).resume()
    other = tmp_path / "cosine"
    trainer(run=other, images=128, schedule="cosine").fit()
    with pytest.raises(ValueError, match=r"options\.images was 128, is 256"):
        trainer(run=other, images=256, schedule="cosine").resume()


def test_checkpoints_of_earlier_versions_are_resumed(trainer, state_of, differences, tmp_path):
    trainer(run=tmp_path, images=64).fit()
    folder = find_checkpoint(tmp_path)
    training, config = (json.loads((folder / name).read_text()) for name in ("training.json", "config.json"))
    for name in ("schedule", "weight_decay", "validate_samples", "validate_levels", "keep_best", "stop_after"):
        del training["options"]["init_args"][name]
    for name in ("best_loss", "without_improvement"):
        del training[name]
    del config["model"]["init_args"]["condition_shape"]
    (folder / "training.json").write_text(json.dumps(training))
    (folder / "config.json").write_text(json.dumps(config))
    accept(folder)
    run, whole = trainer(run=tmp_path), trainer()
    run.resume()
    run.fit()
    whole.fit()
    assert differences(state_of(run), state_of(whole)) == []
    assert load_denoiser(tmp_path).condition_shape is None


def test_weight_decay_is_decoupled_from_the_gradient(trainer):
    plain, decayed = trainer(images=16, rampup=0), trainer(images=16, rampup=0, weight_decay=0.5, learning_rate=1e-3)
    before = [p.detach().clone() for p in plain._loss_module.parameters()]
    plain.fit()
    decayed.fit()
    for start, one, other in zip(
        before, plain._loss_module.parameters(), decayed._loss_module.parameters(), strict=True
    ):
        # One step: w (1 − lr λ) − lr m/√v, the second term alike; three roundings of numbers of the size of w.
        torch.testing.assert_close(other, one - 1e-3 * 0.5 * start, rtol=1e-6, atol=1e-7)


def test_the_validation_loss_is_measured_on_as_many_samples_and_levels_as_asked_for(trainer, vectors):
    run, seen = watched(trainer, validate_every=16, validate_samples=96, validate_levels=3)
    average = run.fit()
    validation = Validation(
        vectors, run.objective, sigma_data=run.model.sigma_data, device=torch.device("cpu"), levels=3
    )
    expected = validation.measure(average)
    assert seen.losses[-1] == expected.loss
    assert len(expected.sigmas) == 3


def test_a_checkpoint_with_the_best_weights_holds_the_last_averaged_ones_too(trainer, held_out, tmp_path):
    run, seen = watched(trainer, validation=held_out, run=tmp_path, **UNSTEADY)
    run.fit()
    tensors = load_file(list_checkpoints(tmp_path)[-1] / "training.safetensors")
    for name, value in seen.weights[-1].items():
        assert torch.equal(tensors[f"average.{name}"], value)
