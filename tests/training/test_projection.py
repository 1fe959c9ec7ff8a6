"""Weights that a network keeps in a set, as EDM2's keep magnitude 1: projected before the first step and after each."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from openedm.data import InMemory
from openedm.networks import EDM2UNet, project_weights
from openedm.networks.magnitude import MPConv
from openedm.objective import EDM, EDM2
from openedm.training import Model, Observer
from openedm.training.model import count_parameters
from openedm.training.processes import full_state_dict, shard

PLAIN = EDM2UNet(8, (1,), 1, head_channels=8)
TINY = EDM2UNet(8, (1,), 1, dropout=0.3, head_channels=8, uncertainty_channels=16)


def _magnitudes(module):
    layers = [m.weight for m in module.modules() if hasattr(m, "project_weights")]
    return torch.cat([w.detach().square().flatten(1).mean(1).sqrt() for w in layers])


@pytest.fixture
def edm2(trainer):
    """`edm2(run=…, options…)`: EDM2's network and objective on series with classes."""
    series = InMemory(torch.randn(32, 2, 6, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 3)

    def make(**arguments):
        settings = {"dataset": series, "network": TINY, "objective": EDM2(), "learning_rate": 0.01, "beta_2": 0.99}
        settings |= {"images": 64, "checkpoint_every": 32, "accumulate": 2, "validate_every": 0, "label_dropout": 0.3}
        return trainer(**(settings | arguments))

    return make


def test_weights_have_magnitude_1_before_the_first_step_and_after_each(edm2):
    found = []

    class Sees(Observer):
        def on_progress(self, progress):
            found.append(_magnitudes(run._loss_module))

    run = edm2(images=48, observers=[Sees()])
    found.append(_magnitudes(run._loss_module))
    assert torch.equal(_magnitudes(run.average), found[0])
    run.fit()
    assert len(found) == 4
    for magnitudes in found:
        torch.testing.assert_close(magnitudes, torch.ones_like(magnitudes), rtol=1e-3, atol=0)


def test_a_run_that_is_resumed_equals_one_that_was_not_interrupted(edm2, state_of, differences, tmp_path):
    whole = edm2()
    whole.fit()
    edm2(run=tmp_path, images=32).fit()
    resumed = edm2(run=tmp_path)
    resumed.resume()
    resumed.fit()
    assert differences(state_of(resumed), state_of(whole)) == []


def test_the_rounds_of_a_batch_do_not_change_the_step(edm2):
    runs = [edm2(network=PLAIN, images=32, accumulate=rounds) for rounds in (1, 4)]
    for run in runs:
        run.fit()
    one, other = (run.denoiser.network.state_dict() for run in runs)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-4, msg=name)


class Counted(nn.Module):
    """A module of a user's own that asks for its weights to be projected."""

    def __init__(self):
        super().__init__()
        self.layer, self.calls = nn.Linear(2, 2), 0

    def project_weights(self):
        self.layer.weight.clamp_(-0.1, 0.1)
        self.calls += 1

    def forward(self, x, c_noise, condition=None, augment=None):
        return self.layer(x)


def test_a_network_of_ones_own_is_projected_before_the_first_step_and_after_each_that_is_taken(
    trainer, without_type_checker
):
    run = trainer(network=Counted, conditional=False, images=64, learning_rate=0.5, rampup=0)
    network = run.denoiser.network
    assert network.calls == 1
    assert network.layer.weight.abs().max() <= 0.1
    forward, number = network.forward, iter(range(100))
    network.forward = lambda *given, **kwargs: forward(*given, **kwargs) * (float("nan") if next(number) == 1 else 1)
    run.fit()
    assert (run.state.step, run.state.skipped, network.calls) == (4, 1, 4)
    assert network.layer.weight.abs().max() <= 0.1


def test_the_networks_own_uncertainty_is_trained_averaged_and_saved_and_otherwise_frozen(edm2):
    run = edm2(images=16)
    assert run._loss_module.uncertainty is None
    head = run.denoiser.network.uncertainty_head
    before = copy.deepcopy(head.state_dict())
    run.fit()
    assert not torch.equal(head.layer.weight, before["layer.weight"])
    assert not torch.equal(run.average.network.uncertainty_head.layer.weight, before["layer.weight"])
    assert "network.uncertainty_head.layer.weight" in run._weights.for_resuming(keep=True)
    frozen = edm2(objective=EDM(), images=16)
    assert not any(p.requires_grad for p in frozen.denoiser.network.uncertainty_head.parameters())
    frozen.fit()
    assert edm2(network=PLAIN, images=16)._loss_module.uncertainty is not None


def test_slices_of_rows_are_projected_as_the_rows_of_the_whole_are(tmp_path):
    """As with FSDP2, whose processes have slices along the first axis."""
    torch.manual_seed(0)
    whole = MPConv(3, 5, 3)
    parts = [whole.weight.detach().clone()[:3], whole.weight.detach().clone()[3:], whole.weight.detach().clone()[5:]]
    slices = [MPConv(3, len(part), 3) for part in parts]
    for one, part in zip(slices, parts, strict=True):
        one.weight.data = part
        project_weights(one)
    project_weights(whole)
    assert torch.equal(torch.cat([one.weight for one in slices]), whole.weight)

    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = Model(TINY, event_shape=(2, 6), images=False)
        plain, sharded = model.build(), model.build()
        shard([sharded], torch.device("cpu"), 1)
        assert all(isinstance(p, DTensor) for p in sharded.parameters())
        for denoiser in (plain, sharded):
            project_weights(denoiser)
        found = full_state_dict(sharded.state_dict())
        assert all(torch.equal(found[name], value) for name, value in plain.state_dict().items())
    finally:
        torch.distributed.destroy_process_group()


def test_fourier_features_are_not_counted_but_a_parameter_of_that_name_is():
    weights = {"noise.omega": torch.zeros(4), "noise.phase": torch.zeros(4), "own.phase": torch.zeros(3)}
    assert count_parameters(weights | {"weight": torch.zeros(5)}) == 8
