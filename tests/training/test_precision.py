"""The precision of a run by measurement: what is chosen for given times and errors, kept, and left as it was."""

import json
import math
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from openedm import objective as objectives
from openedm.data import Digits
from openedm.networks import DDPMpp, EDM2UNet
from openedm.training import Model, Options, PrecisionChoice, Trainer, list_checkpoints, precision
from openedm.training.precision import measure_precision
from openedm.training.recipes import choose_recipe
from openedm.training.resources import Cost, Pass
from openedm.training.steps import LossModule

SMALL = DDPMpp(model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=())
OPTIONS = Options(images=16, batch_size=8, precision="auto", validate_every=0, snapshot_every=0, rampup=0)


def loss_module(network=SMALL) -> tuple[LossModule, Model]:
    model = Model(network=network, event_shape=(1, 8, 8))
    return LossModule(model.build(), objectives.EDM()).train(), model


def scripted(monkeypatch: pytest.MonkeyPatch, fp32: float, bf16: float) -> list[Pass]:
    """Passes that take these seconds each, and which were asked for."""
    asked: list[Pass] = []

    def time_run(run, device) -> float:
        run()
        asked.append(run.__self__)
        return bf16 if run.__self__.bf16 else fp32

    monkeypatch.setattr(precision, "time_run", time_run)
    return asked


@pytest.mark.parametrize(
    ("bf16", "error", "expected"),
    [
        (0.9, 0.01, "bf16"),
        (0.92, 0.01, "fp32"),  # faster by less than GAIN
        (0.5, 0.06, "fp32"),  # beyond BOUND
        (0.5, math.nan, "fp32"),
        (0.5, math.inf, "fp32"),
    ],
)
def test_mixed_precision_is_chosen_where_it_is_faster_and_accurate(bf16, error, expected) -> None:
    choice = PrecisionChoice(8, 1.0, bf16, error)
    assert choice.precision == expected
    assert choice.describe().startswith(f"{expected}: a pass over 8 samples takes ")
    assert ("not finite" in choice.describe()) == (not math.isfinite(error))


@pytest.mark.parametrize("network", [SMALL, EDM2UNet(64, (1,), num_blocks=1)], ids=["DDPM++", "EDM2"])
def test_errors_are_those_of_bfloat16_though_new_networks_return_zero(network) -> None:
    module, model = loss_module(network)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(3)
    error = precision._error(module, model, torch.device("cpu"))
    after = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(2))
    # A unit of rounding, 2⁻⁹, at least once; and less than √100 of them in a network of a few layers.
    assert 2**-9 / 2 < error < 10 * 2**-8
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in before.items())
    assert module.denoiser.training


class Loses(nn.Module):
    """A network with a large number that cancels, which bfloat16 loses."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(64))

    def forward(self, x, c_noise, condition=None, augment=None):
        far = (x.flatten(1) + 1000.0) @ self.weight
        return (far - 1000.0).reshape(x.shape)


def test_a_network_that_cancels_is_not_trained_in_mixed_precision(monkeypatch) -> None:
    scripted(monkeypatch, 1.0, 0.5)
    module, model = loss_module()
    module.denoiser.network = Loses()
    choice = measure_precision(module, model, OPTIONS, 8)
    assert choice.error > 0.5
    assert choice.precision == "fp32"


def test_passes_are_timed_in_turn_and_leave_weights_gradients_and_random_numbers_alone(monkeypatch) -> None:
    asked = scripted(monkeypatch, 0.25, 0.125)
    module, model = loss_module()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(3)
    choice = measure_precision(module, model, OPTIONS, 6)
    after = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(2))
    assert (choice.samples, choice.fp32, choice.bf16) == (6, 0.25, 0.125)
    assert [each.bf16 for each in asked] == [False] * 2 + [False, True] * (1 + precision.REPEATS)
    assert {len(each.clean) for each in asked[2:]} == {6}
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in before.items())
    assert all(p.grad is None for p in module.parameters())
    asked.clear()
    scripted(monkeypatch, precision.PASS_SECONDS, 0.5)  # of two samples: no more are taken
    assert measure_precision(module, model, OPTIONS, 6).samples == 2


@pytest.mark.parametrize(("times", "expected"), [((1.0, 0.5), "bf16"), ((0.5, 1.0), "fp32")])
def test_a_run_trains_in_the_precision_that_was_chosen_and_keeps_it(tmp_path, monkeypatch, times, expected) -> None:
    scripted(monkeypatch, *times)
    data, seen = Digits().load(), set()
    model = Model.for_data(data, SMALL)
    first = Trainer(model, data, options=OPTIONS, run=tmp_path)
    first.fit(should_stop=lambda: True)
    assert first.options.precision == expected
    recorded = json.loads((list_checkpoints(tmp_path)[-1] / "training.json").read_text())["options"]["init_args"]
    assert recorded.get("precision", "fp32") == expected
    scripted(monkeypatch, *reversed(times))  # the machine is another now
    again = Trainer(model, data, options=OPTIONS, run=tmp_path)
    again.resume()
    again.denoiser.network.conv_in.register_forward_hook(lambda *given: seen.add(given[2].dtype))
    resumed = again.fit()
    assert again.options.precision == expected
    assert seen == {torch.bfloat16 if expected == "bf16" else torch.float32}
    whole = Trainer(model, data, options=replace(OPTIONS, precision=expected)).fit()  # bit-identical to a plain run
    for one, other in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("rank", [0, 1])
def test_of_two_processes_the_main_one_measures_its_share_and_the_other_follows(monkeypatch, rank) -> None:
    asked = scripted(monkeypatch, 0.25, 0.125)
    chosen = PrecisionChoice(4, 0.25, 0.125, 0.01)
    sent: list[list[object]] = []

    def broadcast(values: list[object]) -> list[object]:
        sent.append(values)
        return [chosen]

    monkeypatch.setattr(precision, "broadcast_object_list", broadcast)
    processes = Mock(Accelerator, num_processes=2, is_main_process=rank == 0)
    assert precision.choose_precision(*loss_module(), OPTIONS, processes) is chosen
    assert (sent == [[None]]) == (rank == 1)
    assert {len(each.clean) for each in asked[2:]} == ({4} if rank == 0 else set())


def test_a_recipe_measures_the_precision_that_is_left_open(monkeypatch) -> None:
    scripted(monkeypatch, 1.0, 0.5)
    monkeypatch.setattr("openedm.training.recipes._measure", lambda *rest: Cost(10, 10, 1e-3))
    data = Digits().load()
    for keep in ((), ("precision",)):
        found = choose_recipe("cpu-hour", data, torch.device("cpu"), network=SMALL, base=OPTIONS, keep=keep)
        assert found.options.precision == found.settings()["options.precision"] == "bf16"


def test_sharded_training_is_not_timed() -> None:
    with pytest.raises(ValueError, match="precision must be fp32 or bf16 with sharding='fsdp', got 'auto'"):
        Options(precision="auto", sharding="fsdp")
