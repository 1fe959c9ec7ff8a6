"""Two processes that share the work, as `torchrun` starts them, do what one does."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from marks import FAR_APART
from openedm.data import Digits
from openedm.training import list_checkpoints, load_denoiser

pytestmark = FAR_APART

STEPS = 20
TRAINING = [
    "--data=Toy",
    "--data.num_samples=300",
    "--network=MLP",
    "--network.width=16",
    "--network.num_blocks=1",
    f"--options.images={48 * STEPS}",
    "--options.batch_size=48",
    "--options.rampup=0",
    "--options.label_dropout=0.2",
    "--options.clip_norm=1",
    f"--options.checkpoint_every={24 * STEPS}",
    f"--options.validate_every={24 * STEPS}",
    f"--options.snapshot_every={24 * STEPS}",
    "--tracker=none",
]
SAMPLING = ["--seeds=0-20", "--sampler.levels.num_steps=4", "--sampler.churn.s_churn=5", "--batch_size=8"]
SHARDING = [
    "--network=DDPMpp",
    "--network.model_channels=8",
    "--network.channel_mult=[1]",
    "--network.num_blocks=1",
    "--network.dropout=0",
    "--options.images=96",
    "--options.batch_size=16",
    "--options.accumulate=2",
    "--options.rampup=0",
    "--options.clip_norm=1",
    "--options.power_average.every=48",
    "--options.keep_best=true",
    "--options.validate_every=48",
    "--options.validate_samples=32",
    "--options.snapshot_every=48",
    "--options.checkpoint_every=48",
    "--options.keep=0",
    "--sampler.levels.num_steps=2",
    "--tracker=none",
]
EDM2 = [
    "--network=EDM2UNet",
    "--network.model_channels=8",
    "--network.channel_mult=[1]",
    "--network.num_blocks=1",
    "--network.head_channels=8",
    "--network.uncertainty_channels=8",
    "--objective=EDM2",
]
BRIEF = [
    "--options.images=64",
    "--options.noises=2",
    "--options.batch_size=16",
    "--options.rampup=0",
    "--options.validate_every=0",
    "--options.snapshot_every=0",
    "--tracker=none",
]
SHARDED = {"one": "none", "two": "fsdp"}
EVALUATING = ["--data=Arrays", "--held_out=Arrays", "--batch_size=16", "--num_bootstrap=5"]
SCRIPT = """
import sys
from openedm.cli.main import main

for line in open(sys.argv[1]):
    status = main(line.rstrip("\\n").split("\\t"))
    assert status == 0, (line, status)
"""


@pytest.fixture(scope="module")
def folders(openedm, digits_run, tmp_path_factory):
    """What the same commands wrote in one process and in two."""
    root = tmp_path_factory.mktemp("processes")
    x, labels = Digits("all").load().fetch(range(300))
    np.savez(root / "train.npz", images=x[:250].numpy(), labels=labels[:250].numpy())
    np.savez(root / "test.npz", images=x[250:255].numpy(), labels=labels[250:255].numpy())
    paths = [f"--data.path={root / 'train.npz'}", f"--held_out.path={root / 'test.npz'}"]
    commands = {}
    for name in ("one", "two"):
        folder = root / name
        folder.mkdir()
        commands[name] = [
            ["train", folder / "run", *TRAINING],
            ["sample", digits_run, folder / "png", *SAMPLING],
            ["sample", digits_run, folder / "samples.npz", "--format=npz", *SAMPLING],
            ["sample", digits_run, folder / "few.png", "--format=grid", *SAMPLING, "--seeds=3-8"],
        ]
        commands[name] += [["train", folder / "sharded", *SHARDING, f"--options.sharding={SHARDED[name]}"]]
        commands[name] += [
            ["train", folder / "edm2", *EDM2, *BRIEF],
            ["distill", digits_run, folder / "distilled", *BRIEF, "--dropout=0"],  # each process has masks of its own
        ]
        kept = [f"--classifier={folder / 'classifier'}", f"--cache={folder / 'cache'}"]
        evaluating = [*EVALUATING, *paths, *kept]
        drawing = ["--num=40", "--sampler.levels.num_steps=3", f"--out={folder / 'drawn.json'}"]
        commands[name] += [
            ["evaluate", digits_run, *evaluating, *drawing],  # trains the classifier, keeps it and features
            ["evaluate", folder / "png", *evaluating, f"--out={folder / 'read.json'}"],  # reads both
        ]
    for command in commands["one"]:
        assert openedm(*command).status == 0
    halfway("one", "from one", root)
    commands["two"] += [["train", root / "from one", *SHARDING, "--options.sharding=fsdp", "--resume=true"]]
    (root / "script.py").write_text(SCRIPT)
    (root / "commands").write_text("".join("\t".join(map(str, command)) + "\n" for command in commands["two"]))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    finished = subprocess.run(
        [*torchrun, str(root / "script.py"), str(root / "commands")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    (root / "printed").write_text(finished.stdout)
    halfway("two", "from two", root)
    assert openedm("train", root / "from two", *SHARDING, "--resume=true").status == 0
    return root


def halfway(name, new, root):
    """A run that has come half as far as that with sharded weights: its first checkpoint, alone."""
    checkpoint = "checkpoints/000000000048"
    shutil.copytree(root / name / "sharded" / checkpoint, root / new / checkpoint)
    shutil.copytree(root / name / "sharded" / "averages", root / new / "averages")


def rows(folder, name, run="run"):
    found = map(json.loads, (folder / run / "log.jsonl").read_text().splitlines())
    return [row for row in found if name in row]


def test_two_processes_have_the_loss_curve_of_one(folders):
    one, two = (rows(folders / name, "loss") for name in ("one", "two"))
    assert [row["images"] for row in two] == [48 * (i + 1) for i in range(STEPS)]
    # Sums of 48 terms in another order, rounding 6e-8 each, and what that becomes in 20 steps of Adam.
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-4)
    norms = [[row["gradient_norm"] for row in found] for found in (one, two)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-6)


def test_two_processes_end_with_the_weights_of_one(folders):
    one, two = (load_denoiser(folders / name / "run").network.state_dict() for name in ("one", "two"))
    for key in one:
        # 20 steps of at most 1e-3; where a gradient is all rounding, Adam's steps may differ by as much as they are.
        torch.testing.assert_close(two[key], one[key], rtol=0, atol=2e-5)


@pytest.mark.parametrize("run", ["edm2", "distilled"])
def test_two_processes_end_with_the_weights_of_one_in_edm2_and_in_distillation(folders, run):
    one, two = (rows(folders / name, "loss", run) for name in ("one", "two"))
    assert [row["images"] for row in two] == [16, 32, 48, 64]
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-4)
    names = ["model.safetensors", "training.safetensors"]
    for file in [f"{run}/checkpoints/000000000064/{name}" for name in names]:
        found, wanted = (load_file(folders / name / file) for name in ("two", "one"))
        assert found.keys() == wanted.keys()
        for key, tensor in wanted.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=5e-5)


def test_two_processes_write_what_one_writes_and_measure_the_same(folders):
    one, two = (
        sorted(
            re.sub(r"-[0-9a-f]{16}(?=\.)", "", str(p.relative_to(folders / name)))  # a digest: rounding changes it
            for p in (folders / name).rglob("*")
            if "checkpoints" not in p.parts
        )
        for name in ("one", "two")
    )
    assert two == one
    assert [p.name for p in list_checkpoints(folders / "two" / "run")] == ["000000000480", "000000000960"]
    measured = [[row["validation"]["loss"] for row in rows(folders / name, "validation")] for name in ("one", "two")]
    assert len(measured[0]) == 2
    assert measured[1] == pytest.approx(measured[0], rel=1e-4)


def test_two_processes_draw_the_samples_of_one(folders):
    with np.load(folders / "one" / "samples.npz") as one, np.load(folders / "two" / "samples.npz") as two:
        assert two["seeds"].tolist() == one["seeds"].tolist() == list(range(21))
        assert two["labels"].tolist() == one["labels"].tolist() == [seed % 10 for seed in range(21)]
        np.testing.assert_array_equal(two["samples"], one["samples"])


def test_two_processes_write_the_files_of_one(folders):
    names = sorted(p.name for p in (folders / "one" / "png").iterdir())
    assert names == sorted(p.name for p in (folders / "two" / "png").iterdir())
    assert len(names) == 21 + 2
    for name in [*(f"png/{name}" for name in names), "few.png"]:  # the few are one batch: a process has none
        assert (folders / "two" / name).read_bytes() == (folders / "one" / name).read_bytes()


@pytest.mark.parametrize("name", ["drawn.json", "read.json"])
def test_two_processes_score_images_as_one_does(folders, name):
    # To the last digit: the batches are the same.
    assert (folders / "two" / name).read_bytes() == (folders / "one" / name).read_bytes()


def test_only_the_main_process_prints(folders):
    assert (folders / "printed").read_text().count("\nreport: ") == 2


def test_sharded_weights_have_the_loss_curve_of_one_process(folders):
    one, two = (rows(folders / name, "loss", "sharded") for name in ("one", "two"))
    assert [row["images"] for row in two] == [16 * (i + 1) for i in range(6)]
    for name in ("loss", "gradient_norm"):  # rounding, as above, through convolutions
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], rel=1e-4)
    measured = [[r["validation"]["loss"] for r in rows(folders / n, "validation", "sharded")] for n in ("one", "two")]
    assert len(measured[0]) == 2
    assert measured[1] == pytest.approx(measured[0], rel=1e-4)


@pytest.mark.parametrize("run", ["two/sharded", "from one", "from two"])
def test_sharded_weights_are_written_whole_and_runs_go_on_in_any_number_of_processes(folders, run):
    names = ["model.safetensors", "training.safetensors"]
    files = [f"checkpoints/000000000096/{name}" for name in names] + ["averages/000000000096-*.safetensors"]
    for file in files:  # the name of an average ends in its digest
        (found,), (wanted,) = ([load_file(f) for f in (folders / r).glob(file)] for r in (run, "one/sharded"))
        assert found.keys() == wanted.keys()
        for key, tensor in wanted.items():
            # 6 steps of at most 1e-3; half precision, in averages, has steps of 5e-4 below 1.
            torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=5e-5)
