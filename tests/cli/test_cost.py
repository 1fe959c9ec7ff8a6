"""What a run costs: the precision that `openedm train` measures and keeps, and its plan."""

import json
import re
from unittest.mock import Mock

import pytest
import yaml

from openedm.cli.planning import describe_plan
from openedm.training import Options, Plan, Trainer, list_checkpoints, precision
from openedm.training.resources import Cost

NETWORK = ["--network=MLP", "--network.width=16", "--network.num_blocks=1", "--tracker=none"]
TRAINING = ["--data=Toy", "--data.num_samples=64", *NETWORK, "--options.batch_size=8"]
BRIEF = ["--options.images=16", "--options.validate_every=0", "--options.snapshot_every=0"]


def test_the_command_says_what_was_measured_and_the_run_keeps_the_precision(openedm, tmp_path, monkeypatch):
    times = {False: 4.0, True: 2.0}
    monkeypatch.setattr(precision, "time_run", lambda run, device: times[run.__self__.bf16])
    run = tmp_path / "run"
    result = openedm("train", run, *TRAINING, *BRIEF, "--options.precision=auto")
    assert result.status == 0, result.err
    assert "precision bf16: a pass over 2 samples takes 2 s, in fp32 4 s (2.00 ×, at least 1.1 needed)" in result.out
    assert yaml.safe_load((run / "config.yaml").read_text())["options"]["precision"] == "bf16"
    times |= {False: 0.5, True: 1.0}
    for images in (32, 48):
        given = ["--options.precision=auto"] if images == 48 else []
        again = openedm("train", run, "--resume=true", "--tracker=none", f"--options.images={images}", *given)
        assert again.status == 0, again.err
        assert not [line for line in again.out.splitlines() if line.startswith(("precision", "changed"))]
        recorded = json.loads((list_checkpoints(run)[-1] / "training.json").read_text())
        assert recorded["options"]["init_args"]["precision"] == "bf16"


def test_a_plan_says_what_a_run_costs_and_begins_none(openedm, tmp_path, monkeypatch):
    cost = Cost(fixed=0, sample=1, seconds=0.125, evaluation=0.001)
    monkeypatch.setattr("openedm.training.trainer.measure_plan", lambda *rest: Plan(cost, 1, 8, 10**9))
    run = tmp_path / "run"
    every = ["--options.validate_every=32", "--options.snapshot_every=0", "--options.checkpoint_every=16"]
    training = [*TRAINING, *every, "--options.images=100"]
    result = openedm("train", run, *training, "--plan=true")
    assert result.status == 0, result.err
    assert not run.exists()
    lines = {line.split()[0]: line for line in result.out.splitlines()}
    assert lines["steps"] == "steps    13 of 8 samples, 1 s each"  # ⌈100/8⌉
    # 64 samples at 12 levels, at 32, 64, 96 and the end; grids are off.
    assert lines["losses"].startswith("losses   4 of 768 evaluations, 0 grids of ")
    assert lines["losses"].endswith(": 3 s")
    disk = re.fullmatch(r"disk     7 checkpoints of ([\d.]+) kB, of which 2 stay", lines["disk"])
    assert lines["1"].split() == ["1", "8", "1", "s", "1.00", "8", "16", "s"]
    assert lines["2"].split()[:3] == ["2", "4", "500"]  # hardly any weights to exchange
    assert lines["64"].split(maxsplit=1)[1] == "a batch of 8 does not divide"
    assert lines["assumed:"].startswith("assumed: 1.25 GB/s and 50 µs a device among machines; traffic does not hide")
    assert openedm("train", run, *training, "--options.images=16").status == 0
    written = sum(file.stat().st_size for file in list_checkpoints(run)[-1].glob("*.safetensors"))
    names = 20_000  # names, shapes and numbers of steps, which the plan leaves out
    assert written - names < 1000 * float(disk[1]) < written
    once = openedm(
        "train", tmp_path / "one", *training, "--options.images=16", "--options.snapshot_every=16", "--plan=true"
    )
    assert re.search(r", 1 grid of .*\ndisk     1 checkpoint of [\d.]+ kB, of which 1 stays\n", once.out)
    averages = ["--options.power_average.every=50", "--options.images=200"]
    longer = openedm("train", run, "--resume=true", "--plan=true", "--tracker=none", "--options.images=200")
    assert "resumed  at 16 images" in longer.out
    assert "steps    23 of 8 samples, 1 s each" in longer.out  # ⌈184/8⌉
    assert len(list_checkpoints(run)) == 1
    other = openedm("train", tmp_path / "other", *training, *averages, "--plan=true")
    assert re.search(r"disk     13 checkpoints .*; 8 snapshots of averages of [\d.]+ kB", other.out)


def test_what_is_not_measured_has_no_plan():
    with pytest.raises(ValueError, match=r"plan must be false with options\.sharding=fsdp in several processes"):
        describe_plan(Mock(Trainer), Plan.unknown(Options()), 0)
