import json
import re
import shutil
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from openedm.cli.budgeting import choose, dotted_names, names_given
from openedm.data import Digits, ImageFolder, Toy
from openedm.guidance import Interval
from openedm.networks import MLP, DDPMpp
from openedm.objective import EDM, EDM2
from openedm.sampling import Sampler
from openedm.training import (
    HalfLife,
    Model,
    Observer,
    Options,
    Trainer,
    Validation,
    list_checkpoints,
    load_denoiser,
    make_accelerator,
    read_model,
)
from openedm.training.resources import Cost

TOY = ["--data=Toy", "--data.num_samples=300", "--network=MLP", "--network.width=16", "--network.num_blocks=1"]
SIZES = ["--options.images=320", "--options.batch_size=32", "--options.rampup=100", "--options.average.half_life=50"]
EVERY = ["--options.checkpoint_every=160", "--options.validate_every=160", "--options.snapshot_every=160"]
COARSE = ["--sampler.levels.num_steps=3"]
OPTIONS = Options(images=320, batch_size=32, rampup=100, average=HalfLife(50), checkpoint_every=160)


@pytest.fixture(scope="module")
def finished(openedm, tmp_path_factory):
    """A run on two moons with everything on, and what it printed."""
    run = tmp_path_factory.mktemp("runs") / "run"
    result = openedm("train", run, *TOY, *SIZES, *EVERY, *COARSE, "--objective=EDM2", "--options.label_dropout=0.1")
    assert result.status == 0
    return run, result


def weights(run):
    last = list_checkpoints(run)[-1]
    return {**load_file(last / "model.safetensors"), **load_file(last / "training.safetensors")}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def log(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


class Losses(Observer):
    def __init__(self):
        self.losses = []

    def on_progress(self, progress):
        self.losses.append(progress.loss)


# The command is the library.


def test_a_folder_that_holds_something_else_is_no_run_folder(openedm, tmp_path):
    (tmp_path / "cat.png").write_bytes(b"")
    result = openedm("train", tmp_path, "--data=Toy", "--network=MLP")
    assert (result.status, result.out) == (1, "")
    assert f"out={tmp_path} holds other things and no run, such as cat.png: choose another folder" in result.err
    assert [p.name for p in tmp_path.iterdir()] == ["cat.png"]


def test_the_command_trains_what_the_library_trains_with_the_same_values(finished, tmp_path):
    run, _ = finished
    dataset, losses = Toy(num_samples=300).load(), Losses()
    model = Model.for_data(dataset, MLP(width=16, num_blocks=1))
    options = replace(OPTIONS, label_dropout=0.1)
    Trainer(model, dataset, EDM2(), options, run=tmp_path, observers=[losses]).fit()
    assert read_model(list_checkpoints(run)[-1]) == model
    assert same(weights(run), weights(tmp_path))
    assert [row["loss"] for row in log(run) if "loss" in row] == losses.losses


def test_the_config_of_a_run_repeats_it_bit_for_bit(finished, openedm, tmp_path):
    run, _ = finished
    again = tmp_path / "again"
    assert openedm("train", again, "--config", run / "config.yaml").status == 0
    assert same(weights(again), weights(run))
    config, repeated = (yaml.safe_load((folder / "config.yaml").read_text()) for folder in (run, again))
    assert repeated == config | {"out": str(again)}


def test_the_config_names_every_value(finished):
    config = yaml.safe_load((finished[0] / "config.yaml").read_text())
    assert config["network"] == {"class_path": "openedm.networks.MLP", "init_args": {"width": 16, "num_blocks": 1}}
    assert config["options"]["average"] == {"half_life": 50.0, "ramp": 0.05}
    assert config["options"].keys() == set(Options.__dataclass_fields__)
    assert config["resume"] is False


# What a run writes and says.


def test_a_run_folder_holds_config_checkpoints_log_figures_and_the_trackers_files(finished):
    run, _ = finished
    assert {p.name for p in run.iterdir()} == {"config.yaml", "checkpoints", "log.jsonl", "figures", "tracking"}
    assert [p.name for p in list_checkpoints(run)] == ["000000000160", "000000000320"]
    assert {p.name for p in (run / "figures").iterdir()} == {
        "loss.png",
        "loss_per_sigma.png",
        "samples-000000000160.npy",
        "samples-000000000320.npy",
    }


def test_the_tracker_has_the_curves_of_the_log(finished):
    run, _ = finished
    events = EventAccumulator(str(run / "tracking")).Reload()
    assert events.Images("training_data/loss_per_sigma")
    (about,) = events.Tensors("about/text_summary")
    assert "network  MLP(width=16, num_blocks=1)" in about.tensor_proto.string_val[0].decode()
    (options,) = (run / "tracking").glob("*/hparams.yml")
    assert "network.width: 16" in options.read_text()
    (step,) = events.Scalars("train/loss")
    assert (step.step, step.value) == (320, pytest.approx(log(run)[-2]["loss"], rel=1e-6))
    measured = [row for row in log(run) if "validation" in row]
    assert [(e.step, e.value) for e in events.Scalars("training_data/loss")] == [
        (row["images"], pytest.approx(row["validation"]["loss"], rel=1e-6)) for row in measured
    ]


def test_it_says_what_it_trains_on_what_and_where_it_ended(finished):
    run, result = finished
    model = read_model(list_checkpoints(run)[-1])
    *described, memory, seconds = result.out.splitlines()[:5]
    *announced, outcome = result.out.splitlines()[5:]
    assert described == [
        "data     300 vectors of 2 in 2 classes, sigma_data 0.5000",
        f"units    mean ± width of a channel: {model.units.describe(model.sigma_data)}",
        "network  MLP(width=16, num_blocks=1): 3,237 parameters on cpu",
    ]
    assert re.fullmatch(r"memory   about [\d.]+ [kM]B of [\d.]+ GB that are free", memory)
    parts = r"time     about \d+ s for 320 images at .* a second, \d+ s of it for measured losses and grids"
    assert re.fullmatch(parts, seconds)
    assert outcome == f"trained on 320 images; the run is in {run}"
    first, second = (f"{row['validation']['loss']:.4f}" for row in log(run) if "validation" in row)
    assert announced == [
        f"160 images: loss on training data {first}",
        f"160 images: figure {run}/figures/loss.png",
        f"160 images: figure {run}/figures/loss_per_sigma.png",
        f"160 images: figure {run}/figures/samples-000000000160.npy",
        f"160 images: checkpoint {run}/checkpoints/000000000160",
        f"320 images: loss on training data {second}, the lowest so far",
        f"320 images: figure {run}/figures/samples-000000000320.npy",
        f"320 images: checkpoint {run}/checkpoints/000000000320",
    ]


def test_without_a_network_the_machine_chooses_and_what_is_chosen_can_be_typed(openedm, tmp_path):
    options = ["--options.images=64", "--options.validate_every=0", "--options.snapshot_every=0", "--tracker=none"]
    result = openedm("train", tmp_path / "run", "--data=Toy", "--data.num_samples=64", *options)
    assert result.status == 0
    chosen = [line.removeprefix("chosen   ") for line in result.out.splitlines() if line.startswith("chosen")]
    assert chosen[0].startswith("cpu-hour: 64 images, 1 passes")
    again = openedm("train", tmp_path / "again", "--data=Toy", "--data.num_samples=64", *options, *chosen[1].split())
    assert again.status == 0
    first, second = (load_denoiser(tmp_path / name) for name in ("run", "again"))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not [line for line in again.out.splitlines() if line.startswith("chosen")]
    assert openedm("train", tmp_path / "run", "--resume=true").status == 0


def test_a_recipe_guides_the_grids_of_classes_unless_it_is_told_otherwise(openedm, tmp_path, monkeypatch):
    monkeypatch.setattr("openedm.training.recipes._measure", lambda *rest: Cost(1, 1, 1e-3, 1e-4))
    for i, name in enumerate(("cat", "dog")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        PIL.Image.fromarray(np.full((8, 8, 3), 60 * i, np.uint8)).save(tmp_path / "photos" / name / f"{i}.png")

    def chosen(conditional=True, **given):
        names_given.set(dotted_names(given))
        options = Options(label_dropout=given.get("options.label_dropout", 0))
        parts = ImageFolder(str(tmp_path / "photos")), DDPMpp(), EDM(), options, Sampler(), Interval()
        return choose("cpu-hour", *parts, make_accelerator(), conditional=conditional, resumed=False)

    guided = chosen()
    assert (guided.options.label_dropout, guided.guidance) == (0.1, Interval(2.0))
    assert "--options.label_dropout 0.1" in guided.lines[-1]
    assert "--guidance.weight 2.0" in guided.lines[-1]
    for other in (chosen(**{"options.label_dropout": 0.0}), chosen(conditional=False)):
        assert (other.options.label_dropout, other.guidance) == (0.0, Interval())
        assert "--guidance" not in other.lines[-1]
    assert chosen(**{"guidance.weight": 1.0}).guidance == Interval()
    refused = openedm("train", tmp_path / "run", *TOY, "--guidance.weight=2")
    assert refused.status != 0
    assert "guidance requires training with options.label_dropout > 0" in refused.err


def test_pictures_of_several_sizes_are_cropped_to_the_budget(openedm, tmp_path, monkeypatch):
    monkeypatch.setattr("openedm.training.recipes.LADDER", ((8, 1),))
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, size in enumerate([(50, 40), (44, 70), (40, 40)]):
        PIL.Image.fromarray(np.full((*size, 3), 80 * i, np.uint8)).save(folder / f"{i}.png")
    result = openedm(
        "train", tmp_path / "run", "--data=ImageFolder", f"--data.path={folder}", "--budget=cpu-hour",
        "--options.images=8", "--options.validate_every=0", "--options.snapshot_every=0", "--tracker=none",
    )  # fmt: skip
    assert result.status == 0
    assert "chosen   --data.resolution 32, because the pictures are of several sizes" in result.out
    assert read_model(list_checkpoints(tmp_path / "run")[-1]).event_shape == (3, 32, 32)
    refused = openedm("train", tmp_path / "other", "--data=Toy", "--budget=gpu-8gb", "--tracker=none")
    assert refused.status != 0
    assert "budget='gpu-8gb' needs a device of type 'cuda', got 'cpu'" in refused.err


def test_the_validation_loss_of_the_log_is_that_of_the_average_on_the_validation_data(openedm, tmp_path):
    run = tmp_path / "run"
    unet = ["--network.model_channels=8", "--network.channel_mult=[1]", "--network.num_blocks=1"]
    options = ["--options.images=64", "--options.batch_size=32", "--options.snapshot_every=0", "--tracker=none"]
    validation = ["--validation=Digits", "--validation.split=test", "--options.validate_every=64"]
    assert openedm("train", run, *unet, *options, *validation).status == 0
    (row,) = [row["validation"] for row in log(run) if "validation" in row]
    measured = Validation(
        Digits("test").load(),
        EDM(),
        sigma_data=read_model(list_checkpoints(run)[-1]).sigma_data,
        device=torch.device("cpu"),
    ).measure(load_denoiser(run))
    # The same numbers in another memory format: rounding of convolutions.
    assert row["losses"] == pytest.approx(measured.losses, rel=1e-4)
    assert row["sigmas"] == list(measured.sigmas)
    assert not (run / "tracking").exists()


# Going on.


def test_a_finished_run_can_be_made_longer_and_equals_one_that_was_long_from_the_start(finished, openedm, tmp_path):
    run, _ = finished
    longer, long = tmp_path / "longer", tmp_path / "long"
    shutil.copytree(run, longer)
    arguments = [
        *TOY,
        *SIZES,
        *EVERY,
        *COARSE,
        "--objective=EDM2",
        "--options.label_dropout=0.1",
        "--options.images=480",
    ]
    result = openedm("train", longer, *arguments, "--resume=true", "--tracker=none")
    assert result.status == 0
    assert "resumed  at 320 images" in result.out
    assert openedm("train", long, *arguments, "--tracker=none").status == 0
    assert same(weights(longer), weights(long))

    def told(folder):
        return [(row["images"], row.get("loss"), row.get("validation")) for row in log(folder)]

    assert told(longer) == told(long)
    config = yaml.safe_load((longer / "config.yaml").read_text())
    assert (config["resume"], config["options"]["images"]) == (False, 480)


def test_a_run_that_is_done_stays_as_it_is_when_resumed(finished, openedm, tmp_path):
    run = shutil.copytree(finished[0], tmp_path / "run")
    before = weights(run)
    result = openedm("train", run, "--config", run / "config.yaml", "--resume=true", "--tracker=none")
    assert result.status == 0
    assert result.out.splitlines()[-2:] == [
        "resumed  at 320 images",
        f"trained on 320 images; the run is in {run}",
    ]
    assert same(weights(run), before)
    assert log(run) == log(finished[0])


@pytest.mark.parametrize(
    ("option", "change"),
    [
        ("--options.learning_rate=0.5", "options.learning_rate was 0.001, is 0.5"),
        ("--options.keep=7", "options.keep was .*, is 7"),
        ("--sampler.solver=Euler", "sampler.solver was .*, is 'Euler'"),
    ],
)
def test_options_of_a_run_that_has_ended_are_refused_and_not_recorded(option, change, finished, openedm):
    before = (finished[0] / "config.yaml").read_text()
    result = openedm("train", finished[0], "--resume=true", option, "--tracker=none")
    assert result.status == 1
    assert re.search(f"has ended, where other settings have no effect: {change} ", result.err)
    assert (finished[0] / "config.yaml").read_text() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sampler.levels.num_steps=3", "--options.snapshot_every=0"], "sampler.levels.num_steps has no effect with"),
        (["--options.validate_levels=3", "--options.validate_every=0"], "options.validate_levels has no effect with"),
        (["--init.mismatch=new"], "init.mismatch has no effect without init"),
    ],
)
def test_options_that_others_leave_without_effect_are_refused(options, message, openedm, tmp_path):
    result = openedm("train", tmp_path / "run", *TOY, *options)
    assert (result.status, result.out) == (1, "")
    assert message in result.err
    assert not (tmp_path / "run").exists()


def test_to_resume_where_there_is_nothing_is_to_start(openedm, tmp_path):
    result = openedm("train", tmp_path / "new", *TOY, "--options.images=64", "--resume=true", "--tracker=none")
    assert result.status == 0
    assert "resumed" not in result.out


def test_a_run_without_a_checkpoint_begins_again_with_its_own_network_and_options(finished, openedm, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    shutil.rmtree(run / "checkpoints")  # as of a run that is killed before its first one
    before = yaml.safe_load((run / "config.yaml").read_text())
    result = openedm("train", run, "--resume=true", "--options.images=128")
    assert result.status == 0, result.err
    assert "chosen" not in result.out
    after = yaml.safe_load((run / "config.yaml").read_text())
    assert after.pop("options") == before.pop("options") | {"images": 128}
    assert {name: after[name] for name in ("data", "network", "objective")} == {
        name: before[name] for name in ("data", "network", "objective")
    }


def test_options_that_are_named_change_in_the_middle_with_a_word(finished, openedm, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    named = ["--options.learning_rate=0.0005", "--options.images=480"]
    result = openedm("train", run, "--resume=true", *named, "--tracker=none")
    assert result.status == 0, result.err
    assert "changed  options.learning_rate was 0.001, is 0.0005" in result.out
    again = openedm("train", run, "--resume=true", "--tracker=none")
    assert "changed" not in again.out


def test_resuming_with_other_settings_is_refused_and_changes_nothing(finished, openedm):
    run, _ = finished
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    config = ["--config", run / "config.yaml", "--resume=true"]
    result = openedm("train", run, *config, "--options.seed=5", "--network.width=8", "--tracker=none")
    assert result.status == 1
    assert "cannot be resumed with other settings" in result.err
    assert "model.network.width was 16, is 8" in result.err
    assert "options.seed was 0, is 5" in result.err
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


# What goes wrong.


def test_a_run_that_blows_up_gives_up_and_says_what_to_do(openedm, tmp_path):
    arguments = [*TOY, "--options.learning_rate=1e30", "--options.rampup=0", "--options.patience=3", "--tracker=none"]
    result = openedm("train", tmp_path / "run", *arguments)
    assert result.status == 1
    last = result.err.splitlines()[-1]
    assert "openedm train: error: 3 steps in a row had a loss or gradient that is not finite" in last
    assert "lower learning_rate" in last
    assert log(tmp_path / "run")[-1]["skipped"] == 2
    assert list_checkpoints(tmp_path / "run") == []


def test_classes_are_learned_unless_they_are_not_wanted(finished, openedm, tmp_path):
    assert read_model(list_checkpoints(finished[0])[-1]).num_classes == 2
    few = ["--options.images=64", "--tracker=none"]
    assert openedm("train", tmp_path / "run", *TOY, *few, "--conditional=false").status == 0
    assert read_model(list_checkpoints(tmp_path / "run")[-1]).num_classes == 0


def test_a_tracker_that_is_not_installed_is_an_error_that_names_it(openedm, tmp_path):
    result = openedm("train", tmp_path / "run", *TOY, "--options.images=64", "--tracker=comet_ml")
    assert result.status == 1
    assert "comet_ml" in result.err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["t.csv", "folder/fields.nc", "volumes.h5"])
def test_a_file_that_no_source_reads_is_named_with_those_that_are(name, openedm, tmp_path):
    result = openedm("train", tmp_path / "run", f"--data={name}", "--tracker=none")
    assert result.status == 2
    assert f"data: {name} is no file that a source reads: give a .npy or .npz of arrays" in result.err
