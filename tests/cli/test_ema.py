"""Averages of any width from the snapshots of a run, on the command line."""

import pytest
from safetensors.torch import load_file

MLP = ["--data=Toy", "--data.num_samples=300", "--network=MLP", "--network.width=16", "--network.num_blocks=1"]
QUIET = ["--options.validate_every=0", "--options.snapshot_every=0", "--tracker=none"]


@pytest.fixture(scope="module")
def run(openedm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("averages") / "run"
    sizes = ["--options.images=4096", "--options.batch_size=64", "--options.checkpoint_every=4096"]
    powers = ["--options.power_average=PowerFunction", "--options.power_average.every=512"]
    done = openedm("train", folder, *MLP, *sizes, *powers, *QUIET)
    assert done.status == 0, done.err
    return folder


def test_an_average_becomes_a_checkpoint_that_the_other_commands_open(openedm, run, tmp_path):
    done = openedm("ema", run, tmp_path / "wide", "--sigma_rel=0.1")
    assert done.status == 0, done.err
    assert "average at 4,096 images, from 8 snapshots" in done.out
    assert openedm("ema", run, tmp_path / "narrow", "--sigma_rel=0.05").status == 0
    assert "MLP" in openedm("info", tmp_path / "wide").out
    wide, narrow = (load_file(tmp_path / name / "model.safetensors") for name in ("wide", "narrow"))
    assert wide.keys() == narrow.keys()
    assert any(not wide[name].equal(narrow[name]) for name in wide)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sigma_rel=0.28"], "sigma_rel=0.28 cannot be rebuilt at 4096 images: possible widths: between"),
        (["--sigma_rel=0.3"], "sigma_rel"),
        (["--images=100"], "images must be that of a snapshot, got 100; found 8 snapshots"),
    ],
)
def test_what_cannot_be_rebuilt_is_an_error_and_writes_nothing(openedm, run, tmp_path, arguments, message):
    done = openedm("ema", run, tmp_path / "out", *arguments)
    assert done.status == 1
    assert message in done.err
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_and_a_run_must_be_there(openedm, run, tmp_path):
    done = openedm("ema", run, tmp_path)
    assert done.status == 1
    assert "exists already: a checkpoint is never overwritten" in done.err
    done = openedm("ema", tmp_path / "nowhere", tmp_path / "out")
    assert done.status == 1
    assert "run must be the folder of a run, got" in done.err


def test_a_run_that_stopped_early_by_its_own_rule_is_done(openedm, tmp_path):
    sizes = ["--options.images=100000", "--options.batch_size=64", "--options.learning_rate=1e-9"]
    early = ["--options.validate_every=64", "--options.keep_best=true", "--options.stop_after=2"]
    done = openedm("train", tmp_path / "run", *MLP, *sizes, *early, *QUIET[1:])
    assert done.status == 0, done.err
    assert "trained on" in done.out
    assert "--resume" not in done.out
