"""`openedm train --init` and `--resume`: options of earlier runs."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import yaml

from openedm.training import find_checkpoint, read_model

TINY = ["--data=Toy", "--data.num_samples=64", "--network=MLP", "--network.width=16", "--network.num_blocks=1"]
QUICK = ["--options.images=64", "--options.batch_size=32", "--options.validate_every=0", "--options.snapshot_every=0"]
QUICK += ["--tracker=none"]


@pytest.fixture
def run(openedm: Any, tmp_path: Path) -> Path:
    assert openedm("train", tmp_path / "run", *TINY, *QUICK).status == 0
    return tmp_path / "run"


def test_a_run_is_resumed_with_its_own_options_and_those_that_are_given(openedm: Any, run: Path) -> None:
    before = yaml.safe_load((run / "config.yaml").read_text())
    assert openedm("train", run, "--resume", "true").status == 0
    assert yaml.safe_load((run / "config.yaml").read_text()) == before
    assert openedm("train", run, "--resume=true", "--options.images=128").status == 0
    after = yaml.safe_load((run / "config.yaml").read_text())
    assert after == {**before, "options": {**before["options"], "images": 128}}
    assert find_checkpoint(run).name == "000000000128"


def test_an_option_that_changes_the_steps_is_refused_with_both_values(openedm: Any, run: Path) -> None:
    result = openedm("train", run, "--resume", "true", "--options.batch_size", "8", "--network.width", "8")
    assert result.status == 1
    assert re.search(r"options.batch_size was \d+, is 8", result.err)
    assert "model.network.width was 16, is 8" in result.err


def test_fine_tuning_takes_the_network_of_the_checkpoint_and_its_own_data(
    openedm: Any, run: Path, tmp_path: Path
) -> None:
    new = ["--data=Toy", "--data.seed=3", "--data.num_samples=50", *QUICK, "--options.learning_rate=1e-4"]
    result = openedm("train", tmp_path / "tuned", "--init", run, *new)
    assert result.status == 0, result.err
    assert f"init     {find_checkpoint(run)}" in result.out
    assert read_model(find_checkpoint(tmp_path / "tuned")).network == read_model(find_checkpoint(run)).network
    other = openedm("train", tmp_path / "other", "--init", run, "--network.width=24", *new)
    assert other.status == 1
    assert "has shape (16,) instead of (24,)" in other.err
    (tmp_path / "init.yaml").write_text(f"init: {{path: {run}, mismatch: new}}\n")
    anew = openedm("train", tmp_path / "anew", f"--config={tmp_path / 'init.yaml'}", "--network.num_blocks=2", *new)
    assert anew.status == 0, anew.err
    assert "parameters start anew" in anew.out


def test_pictures_of_several_sizes_get_the_size_of_the_checkpoint_that_is_fine_tuned(
    openedm: Any, tmp_path: Path
) -> None:
    for i, side in enumerate((12, 16)):
        PIL.Image.fromarray(np.full((side, 20, 3), 80 * i, np.uint8)).save(tmp_path / f"{i}.png")
    data = ["--data=ImageFolder", f"--data.path={tmp_path}"]
    unet = ["--network=DDPMpp", "--network.model_channels=8", "--network.channel_mult=[1]", "--network.num_blocks=1"]
    first = openedm("train", tmp_path / "first", *data, "--data.resolution=4x8", *unet, *QUICK)
    assert first.status == 0, first.err
    tuned = openedm("train", tmp_path / "tuned", "--init", tmp_path / "first", *data, *QUICK)
    assert tuned.status == 0, tuned.err
    assert "chosen   --data.resolution 4x8, that of init, because the pictures are of several sizes" in tuned.out
    assert read_model(find_checkpoint(tmp_path / "tuned")).event_shape == (3, 4, 8)
    assert yaml.safe_load((tmp_path / "tuned/config.yaml").read_text())["data"]["init_args"]["resolution"] == [4, 8]
    again = openedm("train", tmp_path / "tuned", "--resume=true", "--options.images=96")
    assert again.status == 0, again.err
