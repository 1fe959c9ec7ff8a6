import json
import os
import shutil
import sys
import threading
from dataclasses import replace
from itertools import count

import pytest
import torch
from safetensors.torch import load_file, save_file

from openedm.ground import storage
from openedm.ground.verifying import accept
from openedm.networks import MLP
from openedm.objective import EDM, EDM2, VP, LogNormal
from openedm.preconditioning import VE
from openedm.training import (
    HalfLife,
    Model,
    checkpoints,
    find_checkpoint,
    list_checkpoints,
    load_denoiser,
    read_model,
    save_checkpoint,
)
from openedm.training.checkpoints import list_incomplete, remove_checkpoints

MODEL = Model(network=MLP(width=8, num_blocks=1), sigma_data=0.7, event_shape=(2,), images=False)


def save(path, model=MODEL, seed=0):
    save_checkpoint(path, model, model.build(seed).network.state_dict())
    return path


@pytest.fixture(scope="module")
def finished(trainer, tmp_path_factory):
    """A finished run with learned uncertainty, and its trainer."""
    run = trainer(run=tmp_path_factory.mktemp("run"), objective=EDM2(), images=64, checkpoint_every=16, keep=3)
    run.fit()
    return run


@pytest.fixture
def resumable(trainer):
    """Such a run before its first step."""
    return trainer(objective=EDM2(), images=64)


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the newest checkpoint, to be damaged."""
    return shutil.copytree(find_checkpoint(finished.run), tmp_path / "checkpoint")


# What comes back.


def test_the_denoiser_of_a_checkpoint_is_the_average_of_the_run_exactly(finished):
    loaded = load_denoiser(finished.run)
    x, labels = finished.dataset.fetch(range(8))
    assert not loaded.training
    assert loaded.network.state_dict().keys() == finished.average.network.state_dict().keys()
    for name, tensor in loaded.network.state_dict().items():
        assert torch.equal(tensor, finished.average.network.state_dict()[name])
    for sigma in (0.01, 1.0, 50.0):
        assert torch.equal(loaded(x, sigma, labels), finished.average(x, sigma, labels))
    assert (loaded.sigma_data, loaded.event_shape, loaded.num_classes) == (finished.model.sigma_data, (2,), 3)


def test_raw_weights_are_those_of_the_last_step(finished):
    loaded = load_denoiser(finished.run, weights="raw")
    assert all(
        torch.equal(t, finished.denoiser.network.state_dict()[n]) for n, t in loaded.network.state_dict().items()
    )
    averaged = load_denoiser(finished.run).network.state_dict()
    assert any(not torch.equal(t, averaged[n]) for n, t in loaded.network.state_dict().items())


def test_a_run_folder_stands_for_its_newest_checkpoint(finished):
    paths = list_checkpoints(finished.run)
    assert find_checkpoint(finished.run) == find_checkpoint(str(paths[-1])) == paths[-1]
    assert find_checkpoint(paths[0]) == paths[0]
    older, newer = (load_denoiser(p).network.state_dict()["layer_out.weight"] for p in (paths[0], finished.run))
    assert not torch.equal(older, newer)


@pytest.mark.parametrize(
    "model",
    [
        MODEL,
        replace(MODEL, num_classes=2, class_names=("yes", "nö"), preconditioning=VE()),
        Model(event_shape=(1, 28, 28), sigma_data=1 / 3),
    ],
)
def test_the_description_of_a_model_survives_the_file(model, tmp_path):
    weights = {"w": torch.zeros(1)}
    save_checkpoint(tmp_path / "a", model, weights)
    assert read_model(tmp_path / "a") == model


def test_a_network_in_another_memory_format_is_saved_in_the_usual_one(tmp_path):
    kernel = torch.arange(24.0).view(1, 2, 3, 4)
    save_checkpoint(tmp_path / "a", MODEL, {"kernel": kernel.to(memory_format=torch.channels_last)})
    assert torch.equal(load_file(tmp_path / "a" / "model.safetensors")["kernel"], kernel)


# All or nothing.


def test_a_checkpoint_is_never_overwritten(tmp_path):
    path = save(tmp_path / "a")
    before = (path / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="exists already: a checkpoint is never overwritten"):
        save(path, seed=1)
    assert (path / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("function", ["write_tensors", "write_json", "synchronise"])
def test_a_write_that_fails_leaves_nothing_behind_and_earlier_checkpoints_as_they_were(
    function, trainer, tmp_path, monkeypatch
):
    run = trainer(run=tmp_path, images=64, checkpoint_every=32)
    module = storage if function == "synchronise" else checkpoints
    original, calls = getattr(module, function), count(1)

    def fails_the_fourth_time(*arguments, **options):
        if next(calls) == {"write_tensors": 4, "write_json": 4, "synchronise": 3}[function]:
            raise OSError("No space left on device")
        original(*arguments, **options)

    monkeypatch.setattr(module, function, fails_the_fourth_time)
    with pytest.raises(OSError, match="No space left"):
        run.fit()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["000000000032"]
    assert load_denoiser(tmp_path).event_shape == (2,)


def test_a_checkpoint_gets_its_name_in_one_step_when_it_is_whole(tmp_path, monkeypatch):
    rename, named = os.replace, []

    def watched(source, target):
        if not source.is_dir():  # each file of the checkpoint is replaced as well, inside the unnamed folder
            assert source.parent.name.startswith(".")
            return rename(source, target)
        assert {p.name for p in source.iterdir()} == {"config.json", "model.safetensors"}
        assert load_file(source / "model.safetensors").keys() == MODEL.build().network.state_dict().keys()
        assert not target.exists()
        named.append(target)
        return rename(source, target)

    monkeypatch.setattr(os, "replace", watched)
    path = save(tmp_path / "checkpoints" / "000000000001")
    assert named == list_checkpoints(tmp_path) == [path]


class Killed(BaseException):
    """Stands for a process that ends at once: nothing after it is run, no clean-up either."""


def test_what_a_killed_process_left_half_written_is_not_listed_not_in_the_way_and_removed(
    trainer, tmp_path, monkeypatch
):
    trainer(run=tmp_path, images=32).fit()
    with monkeypatch.context() as patch:
        patch.setattr(storage, "synchronise", lambda folder: (_ for _ in ()).throw(Killed))
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        run = trainer(run=tmp_path, images=64)
        run.resume()
        with pytest.raises(Killed):
            run.fit()
    folder = tmp_path / "checkpoints"
    (partial,) = [p for p in folder.iterdir() if p.name.startswith(".")]
    assert (partial / "training.json").exists()
    assert [p.name for p in list_checkpoints(tmp_path)] == ["000000000032"]
    # The next process may have the same number, as in a container, and writes the same checkpoint again.
    assert str(os.getpid()) in partial.name
    (folder / ".000000000032.lock").write_text("")
    again = trainer(run=tmp_path, images=64)
    again.resume()
    again.fit()
    assert sorted(p.name for p in folder.iterdir()) == ["000000000032", "000000000064"]


def test_a_checkpoint_whose_removal_is_interrupted_is_no_longer_listed(tmp_path, monkeypatch):
    for i in range(3):
        save(tmp_path / "checkpoints" / f"{i:012d}")

    def removes_one_file_and_dies(path, **_):
        next(p for p in path.iterdir() if p.name == "model.safetensors").unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", removes_one_file_and_dies)
        with pytest.raises(Killed):
            remove_checkpoints(tmp_path, keep=2)
    assert [int(p.name) for p in list_checkpoints(tmp_path)] == [1, 2]
    remove_checkpoints(tmp_path, keep=2)
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [1, 2]


def test_empty_and_foreign_folders_among_checkpoints_do_not_count(tmp_path):
    path = save(tmp_path / "checkpoints" / "000000000016")
    for name in ("000000000032", "999999999999", "notes", "²"):
        (tmp_path / "checkpoints" / name).mkdir()
    (tmp_path / "checkpoints" / "000000000032" / "config.json").touch()
    assert list_checkpoints(tmp_path) == [path]
    assert find_checkpoint(tmp_path) == path
    assert [folder.name for folder in list_incomplete(tmp_path)] == ["000000000032"]


def test_a_folder_in_the_way_of_a_checkpoint_is_moved_aside_and_an_empty_one_removed(trainer, tmp_path):
    folder = tmp_path / "checkpoints"
    (folder / "000000000016").mkdir(parents=True)
    (folder / "000000000032").mkdir()
    (folder / "000000000032" / "notes").write_text("mine")
    with pytest.warns(UserWarning, match="is not a complete checkpoint and was moved to 000000000032.incomplete"):
        trainer(run=tmp_path, images=32, checkpoint_every=16, keep=0).fit()
    assert [int(p.name) for p in list_checkpoints(tmp_path)] == [16, 32]
    assert (folder / "000000000032.incomplete" / "notes").read_text() == "mine"


def test_a_run_is_trained_by_one_trainer_at_a_time(trainer, tmp_path):
    second = []

    def in_another_thread():
        try:
            trainer(run=tmp_path, images=64).fit()
        except ValueError as error:
            second.append(str(error))

    def should_stop():
        thread = threading.Thread(target=in_another_thread)
        thread.start()
        thread.join()
        return True

    trainer(run=tmp_path, images=64).fit(should_stop)
    assert f"run={tmp_path} is being written by process {os.getpid()}" in second[0]
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoints"]


@pytest.mark.parametrize(("keep", "left"), [(0, [16, 32, 48, 64]), (1, [64]), (3, [32, 48, 64]), (9, [16, 32, 48, 64])])
def test_the_newest_checkpoints_are_kept(keep, left, trainer, tmp_path):
    trainer(run=tmp_path, images=64, checkpoint_every=16, keep=keep).fit()
    assert [int(p.name) for p in list_checkpoints(tmp_path)] == left
    assert len(list((tmp_path / "checkpoints").iterdir())) == len(left)


# Files that are missing, damaged or hostile.


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    accept(path.parent)


def rewrite(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    accept(path.parent)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "training.safetensors", "training.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "other", "folder"])
def test_a_file_that_is_missing_or_damaged_is_an_error_that_names_it(file, damage, copied, resumable):
    path = copied / file
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes({"empty": b"", "truncated": content[: len(content) // 2], "other": b"\x80\x04K\x01."}[damage])
    finds_no_checkpoint = file == "config.json" and damage in ("missing", "folder")
    with pytest.raises(ValueError, match="has no checkpoint" if finds_no_checkpoint else file):
        resumable.resume(copied)
    if file in ("config.json", "model.safetensors"):
        with pytest.raises(ValueError, match="has no checkpoint" if finds_no_checkpoint else file):
            load_denoiser(copied)
    else:
        assert load_denoiser(copied).num_classes == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format="openedm-denoiser-99"), "format must be 'openedm-denoiser-1', got '.*99'"),
        (lambda c: c.pop("format"), "format must be 'openedm-denoiser-1', got None"),
        (lambda c: c.pop("model"), "does not describe a model"),
        (lambda c: c.update(model="openedm.training.model.Model"), "does not describe a model"),
        (lambda c: c.update(model=["a"]), "does not describe a model"),
        (lambda c: c.update(model=None), "does not describe a model"),
        (lambda c: c["model"].pop("class_path"), "class_path None is not known for a Model"),
        (lambda c: c["model"].update(init_args=3), "does not describe a model"),
        (lambda c: c["model"]["init_args"].update(sigma=1), r"unknown names \['sigma'\]"),
        (lambda c: c["model"]["init_args"].update(sigma_data=0), "sigma_data must be finite and > 0, got 0"),
        (lambda c: c["model"]["init_args"].update(sigma_data="much"), "does not describe a model"),
        (lambda c: c["model"]["init_args"].update(event_shape=[]), "event_shape must hold sizes >= 1"),
        (lambda c: c["model"]["init_args"].update(event_shape=2), "does not describe a model"),
        (lambda c: c["model"]["init_args"].update(network=None), "network must be a Network"),
        (lambda c: c["model"]["init_args"]["network"].update(class_path="MPL"), "'MPL' is not known for a Network"),
        (lambda c: c["model"]["init_args"]["network"]["init_args"].update(width=-1), "width must be >= 1"),
        (
            lambda c: c["model"]["init_args"].update(network=c["model"]["init_args"]["preconditioning"]),
            "is not known for a Network",
        ),
        # Described well, but no such network can be built:
        (
            lambda c: c["model"]["init_args"].update(event_shape=[1, 8, 8], units=None),
            r"event_shape must be \(features,\)",
        ),
        (lambda c: c["model"]["init_args"]["network"]["init_args"].update(width="wide"), "width|describe"),
        (lambda c: c["model"]["init_args"].update(num_classes=2.5), "config.json"),
    ],
)
def test_a_description_that_makes_no_sense_is_an_error_that_names_the_file_and_what_is_wrong(change, message, copied):
    edit(copied / "config.json", change)
    with pytest.raises(ValueError, match=message) as caught:
        load_denoiser(copied)
    assert str(copied / "config.json") in str(caught.value)


@pytest.mark.parametrize(
    "name", ["os.system", "subprocess.Popen", "builtins.exec", "trap.Trap", "openedm.cli.main.main"]
)
@pytest.mark.parametrize("place", ["model", "network", "argument"])
def test_a_description_that_names_a_class_of_elsewhere_is_refused_without_importing_it(
    name, place, copied, tmp_path, monkeypatch
):
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    hostile = {"class_path": name, "init_args": {"command": "touch " + str(tmp_path / "done"), "args": ["true"]}}

    def plant(config):
        if place == "model":
            config["model"] = hostile
        elif place == "network":
            config["model"]["init_args"]["network"] = hostile
        else:
            config["model"]["init_args"]["network"]["init_args"]["width"] = hostile

    edit(copied / "config.json", plant)
    with pytest.raises(ValueError, match=r"config\.json"):
        load_denoiser(copied)
    assert "trap" not in sys.modules
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("layer_out.weight"), "layer_out.weight is missing"),
        (lambda t: t.update(extra=torch.zeros(1)), "extra is unexpected"),
        (
            lambda t: t.update({"layer_out.weight": torch.zeros(3, 16)}),
            r"layer_out.weight has shape \(3, 16\) instead of \(2, 16\)",
        ),
        (lambda t: t.clear() or t.update(other=torch.zeros(1)), r"and \d+ more$"),
    ],
)
@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_weights_that_do_not_fit_are_an_error_that_names_the_tensor_and_the_checkpoint(
    change, message, weights, copied
):
    prefix = "" if weights == "ema" else "network."

    def prefixed(tensors):
        chosen = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        change(chosen)
        for name in [n for n in tensors if n.startswith(prefix)]:
            del tensors[name]
        tensors.update({prefix + n: t for n, t in chosen.items()})

    rewrite(copied / ("model.safetensors" if weights == "ema" else "training.safetensors"), prefixed)
    with pytest.raises(ValueError, match=message) as caught:
        load_denoiser(copied, weights)
    assert str(copied) in str(caught.value)


def test_a_place_without_checkpoints_is_an_error_that_says_so(tmp_path):
    with pytest.raises(ValueError, match="has no checkpoint: give a checkpoint"):
        load_denoiser(tmp_path)
    with pytest.raises(ValueError, match="nowhere does not exist"):
        load_denoiser(tmp_path / "nowhere")


def test_a_model_without_training_state_can_be_loaded_but_not_resumed(tmp_path, finished, resumable):
    path = save(tmp_path / "a", finished.model)
    assert load_denoiser(path).num_classes == 3
    with pytest.raises(ValueError, match=r"training\.safetensors cannot be read"):
        resumable.resume(path)
    with pytest.raises(ValueError, match=r"training\.safetensors cannot be read"):
        load_denoiser(path, weights="raw")


# Resuming from what does not fit.


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("uncertainty.weight"),
        lambda t: t.update({"uncertainty.weight": torch.zeros(3)}),
        lambda t: t.pop("network.layer_in.weight"),
        lambda t: t.update({"optimizer.denoiser.network.layer_in.weight.exp_avg": torch.zeros(5)}),
        lambda t: t.update({"optimizer.denoiser.network.elsewhere.exp_avg": torch.zeros(5)}),
        lambda t: [t.pop(name) for name in list(t) if name.startswith("optimizer.")],
        lambda t: [t.pop(name) for name in list(t) if name.endswith("layer_in.weight.exp_avg_sq")],
    ],
)
def test_training_tensors_that_are_missing_or_do_not_fit_are_an_error_that_names_the_checkpoint(
    change, copied, resumable
):
    rewrite(copied / "training.safetensors", change)
    with pytest.raises(ValueError, match=str(copied)):
        resumable.resume(copied)


@pytest.mark.parametrize(
    "change", [lambda c: c.pop("step"), lambda c: c.update(images="many"), lambda c: c.update(skipped=None)]
)
def test_training_counts_that_are_missing_or_no_numbers_are_an_error_that_names_the_file(change, copied, resumable):
    edit(copied / "training.json", change)
    with pytest.raises(ValueError, match=r"training\.json"):
        resumable.resume(copied)


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"learning_rate": 0.5}, ["options.learning_rate was 0.001, is 0.5"]),
        ({"seed": 7, "batch_size": 32}, ["options.batch_size was 16, is 32", "options.seed was 0, is 7"]),
        ({"average": HalfLife(99)}, ["options.average.half_life was 40, is 99"]),
        ({"network": MLP(width=8, num_blocks=1)}, ["model.network.width was 16, is 8"]),
        ({"conditional": False}, ["model.num_classes was 3, is 0"]),
        ({"objective": EDM2(noise=LogNormal(p_std=2.0, p_mean=-0.4))}, ["objective.noise.p_std was 1.0, is 2.0"]),
        ({"objective": VP(learned_uncertainty=True)}, ["objective.class_path was 'openedm.objective.EDM2'"]),
        ({"precision": "bf16", "label_dropout": 0.5}, ["options.precision was", "options.label_dropout was 0.0"]),
        ({"clip_norm": 1.0, "accumulate": 2}, ["options.clip_norm was None, is 1.0", "options.accumulate was 1, is 2"]),
    ],
)
def test_resuming_with_other_settings_is_refused_and_each_is_named(changed, names, finished, trainer):
    run = trainer(**({"objective": EDM2()} | changed))
    with pytest.raises(ValueError, match="cannot be resumed with other settings") as caught:
        run.resume(finished.run)
    for name in names:
        assert name in str(caught.value)


def test_what_is_measured_of_other_data_is_named_as_such(finished, trainer):
    run = trainer(objective=EDM2())
    run.model = replace(run.model, sigma_data=2 * run.model.sigma_data)
    with pytest.raises(
        ValueError, match=r"model.sigma_data was .*measured of the data, which are not those of the run"
    ):
        run.resume(finished.run)


def test_settings_that_are_named_may_change_in_the_middle(finished, trainer):
    changed = {"learning_rate": 0.5, "average": HalfLife(99), "clip_norm": 1.0}
    objective = EDM2(noise=LogNormal(p_std=2.0, p_mean=-0.4))
    run = trainer(objective=objective, images=160, **changed)
    names = ["options.learning_rate", "options.average", "options.clip_norm", "objective.noise"]
    lines = run.resume(finished.run, changes=names)
    assert "options.learning_rate was 0.001, is 0.5" in lines
    assert any(line.startswith("objective.noise.p_std was 1.0, is 2.0") for line in lines)
    run.fit()
    assert (run.state.images, run.objective) == (160, objective)
    assert trainer(objective=EDM2()).resume(finished.run, changes=names) == ()


def test_settings_that_are_named_are_refused_where_the_run_has_ended(finished, trainer):
    run = trainer(objective=EDM2(), images=finished.state.images, learning_rate=0.5)
    with pytest.raises(ValueError, match=r"has ended, .*no effect: options.learning_rate was 0.001, is 0.5 \(more"):
        run.resume(finished.run, changes=["options.learning_rate"])


@pytest.mark.parametrize("changed", [{"seed": 7}, {"batch_size": 32}, {"network": MLP(width=8, num_blocks=1)}])
def test_naming_a_setting_that_does_not_fit_the_state_does_not_allow_it(changed, finished, trainer):
    with pytest.raises(ValueError, match="cannot be resumed with other settings"):
        trainer(objective=EDM2(), **changed).resume(finished.run, changes=["options", "model"])


def test_a_run_with_the_p_mean_of_version_0_1_resumes_with_it_and_without_one_named(
    tmp_path, trainer, state_of, differences
):
    before = trainer(objective=EDM(noise=LogNormal(-1.2)), run=tmp_path / "run", images=32)
    before.fit()
    run = trainer(objective=EDM(), run=tmp_path / "run", images=32)
    run.resume()
    assert differences(state_of(run), state_of(before)) == []
    assert run.objective == EDM(noise=LogNormal(-1.2))
    following = trainer(objective=EDM(), run=tmp_path / "other", images=32)
    following.fit()
    with pytest.raises(ValueError, match=r"objective\.noise\.p_mean was None, is -1\.2"):
        trainer(objective=EDM(noise=LogNormal(-1.2)), images=32).resume(tmp_path / "other")
    again = trainer(objective=EDM(), images=32)
    again.resume(tmp_path / "other")
    assert again.objective == EDM()


def test_settings_that_do_not_change_the_steps_may_change(finished, trainer, state_of, differences):
    allowed = {"images": 80, "validate_every": 7, "checkpoint_every": 9, "snapshot_every": 5, "keep": 1, "workers": 1}
    run = trainer(objective=EDM2(), patience=9, **allowed)
    run.resume(finished.run)
    assert differences(state_of(run), state_of(finished)) == []
