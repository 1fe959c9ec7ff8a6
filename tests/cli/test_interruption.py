"""`openedm train` as a process that is killed or interrupted: resumed, it ends as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from openedm.training import list_checkpoints

BATCH = 32
IMAGES = BATCH * 56
ARGUMENTS = [
    "--data=Digits",
    "--data.split=test",
    "--network=DDPMpp",
    "--network.model_channels=8",
    "--network.channel_mult=[1]",
    "--network.num_blocks=1",
    "--network.dropout=0.3",
    "--objective=EDM2",
    f"--options.images={IMAGES}",
    f"--options.batch_size={BATCH}",
    "--options.accumulate=2",
    "--options.label_dropout=0.2",
    "--options.clip_norm=1",
    "--options.rampup=1000",
    f"--options.checkpoint_every={7 * BATCH}",
    "--options.keep=2",
    "--options.validate_every=0",
    "--options.snapshot_every=0",
    "--tracker=none",
]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def start(run: Path, *more: str) -> subprocess.Popen[str]:
    """The command in a process group of its own, as a terminal makes it."""
    return subprocess.Popen(
        [sys.executable, "-m", "openedm.cli.main", "train", str(run), *ARGUMENTS, *more],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """The exit status and what was printed."""
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def wait_for(run: Path, process: subprocess.Popen[str], step: int) -> None:
    """Until the run has taken so many steps, has a checkpoint, and has gone on from it: steps that a kill undoes."""
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        checkpoints = list_checkpoints(run)
        steps = (run / "log.jsonl").read_text().count("\n") if checkpoints else 0
        if checkpoints and steps >= step and steps * BATCH > int(checkpoints[-1].name):
            return
        time.sleep(0.001)


@pytest.fixture(scope="module")
def one_thread():
    """The runs of this process compute as those of the processes do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, openedm, one_thread):
    """Three runs with equal arguments: one uninterrupted, one killed and resumed, one interrupted and resumed.

    What is killed or interrupted is a process of its own; the others are this one.
    """
    folder = tmp_path_factory.mktemp("runs")
    found, steps = {"folder": folder}, random.Random(os.getpid()).sample(range(8, 30), 2)
    ends = {"killed": (signal.SIGKILL, ()), "interrupted": (signal.SIGINT, ("--options.workers=1",))}
    for (name, (end, more)), step in zip(ends.items(), steps, strict=True):
        process = start(folder / name, *more)
        try:
            wait_for(folder / name, process, step)
            os.killpg(process.pid, end)
            found[name] = finish(process)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        found[f"{name} at"] = [p.name for p in list_checkpoints(folder / name)]
    again = ("--resume=true", "--options.workers=0")
    for name, run, more in [("whole", "whole", ()), *((f"{name}, resumed", name, again) for name in ends)]:
        result = openedm("train", folder / run, *ARGUMENTS, *more)
        found[name] = (result.status, result.out, result.err)
    return found


def content(run):
    last = list_checkpoints(run)[-1]
    assert int(last.name) == IMAGES
    files = {name: load_file(last / f"{name}.safetensors") for name in ("model", "training")}
    tensors = {f"{file}.{name}": tensor for file, part in files.items() for name, tensor in part.items()}
    return tensors, (last / "training.json").read_text(), (last / "config.json").read_text()


@pytest.mark.parametrize("name", ["killed", "interrupted"])
def test_a_run_that_was_resumed_ends_with_the_weights_averages_and_moments_of_the_uninterrupted_one(name, runs):
    assert runs["whole"][0] == runs[f"{name}, resumed"][0] == 0
    assert runs[name][0] != 0
    assert max(map(int, runs[f"{name} at"])) < IMAGES
    whole, *descriptions = content(runs["folder"] / "whole")
    resumed, *resumed_descriptions = content(runs["folder"] / name)
    assert whole.keys() == resumed.keys()
    assert [key for key in whole if not torch.equal(whole[key], resumed[key])] == []
    assert {key.split(".")[1] for key in whole if key.startswith("training")} == {"network", "optimizer", "uncertainty"}
    assert descriptions == resumed_descriptions


def test_a_killed_run_was_killed_and_left_whole_checkpoints_only(runs):
    assert runs["killed"][0] == -signal.SIGKILL
    assert all(int(name) % (7 * BATCH) == 0 for name in runs["killed at"])


def test_control_c_saves_a_checkpoint_says_so_and_exits_with_130(runs):
    status, out, err = runs["interrupted"]
    images = int(runs["interrupted at"][-1])
    assert status == 130
    assert out.splitlines()[-2:] == [
        f"stopped at {images:,} images; the run is in {runs['folder'] / 'interrupted'}",
        "continue with the same command and --resume true",
    ]
    assert "Traceback" not in err


def test_a_resumed_run_says_where_it_goes_on_and_where_it_ended(runs):
    status, out, _ = runs["interrupted, resumed"]
    assert status == 0
    assert f"resumed  at {int(runs['interrupted at'][-1]):,} images" in out
    assert out.splitlines()[-1] == f"trained on {IMAGES:,} images; the run is in {runs['folder'] / 'interrupted'}"


def test_a_run_that_is_there_is_not_started_again_without_resume(runs, openedm):
    folder = runs["folder"] / "killed"
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    result = openedm("train", folder, *ARGUMENTS)
    assert result.status == 1
    assert result.err == (
        f"openedm train: error: out={folder} already has a run: pass --resume true to continue it, "
        "or choose another folder\n"
    )
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_the_log_of_a_resumed_run_tells_every_step_once(runs):
    logs = [
        (runs["folder"] / name / "log.jsonl").read_text().splitlines() for name in ("whole", "killed", "interrupted")
    ]

    def told(lines):
        return [(row["images"], row["step"], row["loss"]) for row in map(json.loads, lines)]

    assert [images for images, _, _ in told(logs[0])] == list(range(BATCH, IMAGES + BATCH, BATCH))
    assert told(logs[1]) == told(logs[0])
    assert told(logs[2]) == told(logs[0])
