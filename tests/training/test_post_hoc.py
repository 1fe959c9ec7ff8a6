"""Averages rebuilt after training equal averages that were tracked."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from openedm.cli.main import main
from openedm.ground.choices import from_config, to_config
from openedm.training import (
    Options,
    PowerFunction,
    combine,
    find_checkpoint,
    list_snapshots,
    load_denoiser,
    reachable,
    reconstruct,
)
from openedm.training.averaging import exponent
from openedm.training.checkpoints import read_weights
from openedm.training.post_hoc import MAX_PROFILE_ERROR, PowerAverages, Snapshot

TRACKED = PowerFunction((0.05, 0.10), every=48, precision="fp32")
WIDTHS = (0.05, 0.07, 0.10, 0.13, 0.18, 0.25)


# The profile.


@given(st.floats(0.01, 0.288))
def test_the_exponent_gives_the_profile_its_relative_width(sigma_rel):
    gamma = exponent(sigma_rel)
    assert gamma >= 0
    # The standard deviation of τ with density (γ + 1) τ^γ on [0, 1].
    mean, square = (gamma + 1) / (gamma + 2), (gamma + 1) / (gamma + 3)
    assert math.sqrt(square - mean**2) == pytest.approx(sigma_rel, rel=1e-6)


def test_the_published_exponents_of_the_two_widths():
    assert (exponent(0.05), exponent(0.10)) == pytest.approx((16.97, 6.94), abs=0.005)


@pytest.mark.parametrize("width", [0.05, 0.25])
def test_the_recurrence_weighs_step_i_by_the_share_of_the_profile_between_i_less_one_and_i(width):
    steps, gamma = 50, exponent(width)
    choice, weights = PowerFunction((width,)), [0.0] * 50
    for t in range(1, steps + 1):
        beta = choice.decay(width, t)
        weights = [beta * w for w in weights]
        weights[t - 1] += 1 - beta
    expected = [(i / steps) ** (gamma + 1) - ((i - 1) / steps) ** (gamma + 1) for i in range(1, steps + 1)]
    assert weights == pytest.approx(expected, rel=1e-9, abs=1e-15)


# Rebuilding, against averages that are tracked beside.


class Weights(nn.Module):
    def __init__(self, count=200):
        super().__init__()
        self.values = nn.Parameter(torch.zeros(count))


def trajectories(steps):
    """A random walk, and weights that settle while they jitter as those of stochastic gradients do."""
    generator = torch.Generator().manual_seed(0)
    walk = torch.randn(steps, 200, generator=generator).cumsum(0) * 0.01
    start, end, jitter = (torch.randn(n, 200, generator=generator) for n in (1, 1, steps))
    settling = end + (-torch.arange(steps) / (steps / 5)).exp()[:, None] * start + 0.3 * jitter
    return {"walk": walk, "settling": settling}


def tracked(run, path, choice, snapshots=32):
    """The averages of `WIDTHS` after three quarters and at the end; snapshots of `choice` in `run`."""
    module, steps, counts = Weights(), len(path), {}
    few, all_ = PowerAverages(choice, module), PowerAverages(PowerFunction(WIDTHS), module)
    for step, values in enumerate(path, 1):
        module.values.data.copy_(values)
        few.update(step)
        all_.update(step)
        if step % (steps // snapshots) == 0:
            few.save(run, 10 * step, step)
        if step in (steps * 3 // 4, steps):
            counts[step] = [average.values.double().clone() for average in all_.networks]
    return counts


def rebuilt(run, width, step):
    snapshots = list_snapshots(run)
    total = 0.0
    for snapshot, weights in zip(snapshots, combine(snapshots, width, step).weights, strict=True):
        with safe_open(snapshot.path, framework="pt") as file:
            total = total + sum(x * file.get_tensor(f"{i}.values").double() for i, x in enumerate(weights))
    return total


@pytest.mark.parametrize("kind", ["walk", "settling"])
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_any_width_is_rebuilt_to_one_percent_at_any_snapshot(kind, precision, tmp_path):
    choice = PowerFunction((0.05, 0.10), precision=precision)
    for step, averages in tracked(tmp_path, trajectories(640)[kind], choice).items():
        for width, average in zip(WIDTHS, averages, strict=True):
            error = float((rebuilt(tmp_path, width, step) - average).norm() / average.norm())
            assert error < 1e-2
            if step == 640 and width in choice.sigma_rel:
                assert error < (1e-6 if precision == "fp32" else 5e-4)


def snapshots_at(count, steps=1000, widths=(0.05, 0.10)):
    return [Snapshot(Path("none"), i * steps // count, i * steps // count, widths) for i in range(1, count + 1)]


def test_the_coefficients_sum_to_one_and_the_error_is_that_of_the_profile():
    snapshots, step, gamma = snapshots_at(8), 1000, exponent(0.13)
    found = combine(snapshots, 0.13, step)
    assert sum(map(sum, found.weights)) == pytest.approx(1, abs=1e-9)
    tau = (torch.arange(200_000, dtype=torch.float64) + 0.5) * step / 200_000
    profile = torch.zeros_like(tau)
    for snapshot, weights in zip(snapshots, found.weights, strict=True):
        for x, width in zip(weights, snapshot.sigma_rel, strict=True):
            g, t = exponent(width), snapshot.step
            profile += x * (g + 1) / t * (tau / t) ** g * (tau <= t)
    target = (gamma + 1) / step * (tau / step) ** gamma
    assert found.error == pytest.approx(float((profile - target).norm() / target.norm()), rel=1e-3)


def test_more_snapshots_reach_more_widths():
    assert reachable(snapshots_at(2), 1000) == (0.045, 0.11)
    low, high = reachable(snapshots_at(32), 1000)
    assert low < 0.05
    assert high > 0.25
    assert (
        combine(snapshots_at(32), high, 1000).error <= MAX_PROFILE_ERROR < combine(snapshots_at(32), 0.288, 1000).error
    )


# In runs, from the command line, and wrong.


def test_a_run_stopped_and_resumed_has_the_averages_and_snapshots_of_one_that_was_not(trainer, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trainer(run=whole, power_average=TRACKED).fit()
    trainer(run=parts, power_average=TRACKED, images=64).fit()
    (parts / "averages" / f"{96:012d}.safetensors").write_bytes(b"of a run that was killed after its last checkpoint")
    resumed = trainer(run=parts, power_average=TRACKED)
    resumed.resume()
    resumed.fit()
    assert [s.images for s in list_snapshots(whole)] == [48, 96, 128]
    assert [s.images for s in list_snapshots(parts)] == [48, 64, 96, 128]
    assert [s.step for s in list_snapshots(whole)] == [3, 6, 8]
    for images in (48, 96, 128):
        [name] = (path.name for path in (whole / "averages").glob(f"{images:012d}-*.safetensors"))
        assert (whole / "averages" / name).read_bytes() == (parts / "averages" / name).read_bytes()


def test_a_width_that_was_tracked_is_rebuilt_as_it_was_with_the_networks_other_tensors(trainer, tmp_path):
    run = trainer(run=tmp_path, power_average=TRACKED)
    run.fit()
    weights = reconstruct(tmp_path, 0.10)
    expected = run._weights.power_averages.networks[1].state_dict()
    assert weights.keys() == expected.keys() == read_weights(find_checkpoint(tmp_path)).keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-6)
    assert any(not torch.equal(weights[n], t) for n, t in run.denoiser.network.state_dict().items())


@pytest.fixture(scope="module")
def run(tmp_path_factory, trainer):
    folder = tmp_path_factory.mktemp("ema") / "run"
    trainer(run=folder, power_average=PowerFunction(every=16)).fit()
    return folder


def test_the_command_writes_a_checkpoint_once(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["ema", str(run), str(out), "--sigma_rel=0.13"]) == 0
    assert "from 8 snapshots" in capsys.readouterr().out
    weights = reconstruct(run, 0.13)
    loaded = load_denoiser(out).network.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())
    assert main(["ema", str(run), str(out), "--sigma_rel=0.12"]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["ema", str(run), str(tmp_path / "earlier"), "--sigma_rel=0.1", "--images=112"]) == 0


def test_what_cannot_be_rebuilt_is_an_error_that_lists_what_can(run, trainer, tmp_path):
    with pytest.raises(ValueError, match=r"sigma_rel=0.01 cannot be rebuilt at 128 images: possible widths: between"):
        reconstruct(run, 0.01)
    with pytest.raises(ValueError, match=r"with 8 snapshots of sigma_rel 0.05, 0.1 at 16, 32, 48, 64, 80, 96, 112, "):
        reconstruct(run, 0.01)
    with pytest.raises(ValueError, match=r"images must be that of a snapshot, got 100; found 8 snapshots"):
        reconstruct(run, 0.1, 100)
    with pytest.raises(ValueError, match=r"sigma_rel must be > 0 and <= 0.288, got 0.5"):
        reconstruct(run, 0.5)
    trainer(run=tmp_path).fit()
    with pytest.raises(ValueError, match=r"has no snapshots of averages: train with options.power_average"):
        reconstruct(tmp_path, 0.1)


def test_a_snapshot_before_any_step_is_left_out(trainer, tmp_path):
    choice = PowerFunction(sigma_rel=(0.05, 0.10))
    averages = PowerAverages(choice, torch.nn.Linear(2, 2))
    averages.save(tmp_path, 64, 0)
    averages.save(tmp_path, 128, 1)
    assert [snapshot.images for snapshot in list_snapshots(tmp_path)] == [128]


def test_a_damaged_snapshot_is_an_error_that_names_it(tmp_path):
    folder = tmp_path / "averages"
    folder.mkdir()
    (folder / f"{16:012d}.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"0016.safetensors is not a snapshot of averages"):
        list_snapshots(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma_rel": ()}, r"sigma_rel must hold one or more widths, all different, got \(\)"),
        ({"sigma_rel": (0.1, 0.1)}, r"all different, got \(0.1, 0.1\)"),
        ({"sigma_rel": (0.3,)}, r"sigma_rel must be > 0 and <= 0.288, got 0.3"),
        ({"every": 0}, r"every must be >= 1, got 0"),
    ],
)
def test_a_value_out_of_range_is_an_error_that_names_it(arguments, message):
    with pytest.raises(ValueError, match=message):
        PowerFunction(**arguments)


def test_options_with_power_averages_survive_files():
    options = Options(power_average=TRACKED)
    assert from_config(Options, json.loads(json.dumps(to_config(options)))) == options
