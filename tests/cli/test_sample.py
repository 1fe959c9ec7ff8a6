import contextlib
import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate import Accelerator

from openedm.cli import sample as command
from openedm.data import Arrays, ImageFolder
from openedm.data.pictures import captioned, image_grid, to_uint8
from openedm.generation import CheckpointSampler, SamplingOptions, files
from openedm.ground import storage
from openedm.ground.storage import read_json
from openedm.levels import Karras
from openedm.sampling import Churn, Euler, Sampler
from openedm.training import find_checkpoint, load_denoiser

STEPS = "--sampler.levels.num_steps=4"
SAMPLER = Sampler(Karras(4))


def expected(run, seeds, labels, sampler=SAMPLER, weights="ema"):
    denoiser = load_denoiser(run, weights)
    return sampler.sample(denoiser, seeds, condition=None if labels is None else torch.tensor(labels))


def pixels(path):
    return torch.from_numpy(np.array(PIL.Image.open(path)))


def numbers(path):
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def test_it_does_not_wait_for_libraries_that_it_does_not_need(digits_run, tmp_path):
    slow = {"matplotlib", "scipy", "sklearn", "pandas", "torch._dynamo"}
    code = (
        f"import sys; from openedm.cli.main import main; main(sys.argv[1:]); print(sorted({slow} & {{*sys.modules}}))"
    )
    command = [sys.executable, "-c", code, "sample", digits_run, tmp_path / "out", "--seeds=0-1", "--nfe=3"]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert finished.stdout.splitlines()[-1] == "[]"
    assert (tmp_path / "out" / "000001.png").is_file()


# What is drawn.


def test_png_files_hold_the_samples_of_their_seeds_and_dataset_json_their_classes(openedm, digits_run, tmp_path):
    result = openedm("sample", digits_run, tmp_path / "out", "--seeds=0-4,23", STEPS)
    assert result.status == 0
    assert result.out == f"drew 6 samples with 7 network evaluations each: {tmp_path / 'out'}\n"
    seeds = [0, 1, 2, 3, 4, 23]
    labels = [0, 1, 2, 3, 4, 3]
    names = [f"{seed:06d}.png" for seed in seeds]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [*names, "dataset.json", "settings.json"]
    for name, x in zip(names, expected(digits_run, seeds, labels), strict=True):
        # A value that lies within rounding of the middle between two bytes may fall to either side.
        assert (pixels(tmp_path / "out" / name).int() - to_uint8(x)[0].int()).abs().max() <= 1
    assert read_json(tmp_path / "out" / "dataset.json") == {
        "labels": [[name, label] for name, label in zip(names, labels, strict=True)]
    }
    dataset = ImageFolder(str(tmp_path / "out")).load()
    assert dataset.fetch(range(6))[1].tolist() == labels
    assert dataset.event_shape == (1, 8, 8)


def test_a_seed_that_is_given_twice_is_an_error_before_anything_is_drawn(openedm, digits_run, tmp_path):
    result = openedm("sample", digits_run, tmp_path / "a.npz", "--seeds=3,0-3,3")
    assert (result.status, result.out) == (1, "")
    assert "sample: error: seeds must be different numbers, got 3 3 times" in result.err
    assert not any(tmp_path.iterdir())


def test_npz_files_hold_samples_seeds_and_labels(openedm, digits_run, tmp_path):
    result = openedm(
        "sample", digits_run, tmp_path / "a.npz", "--format=npz", "--seeds=3,40-42", "--classes=7,9", STEPS
    )
    assert result.status == 0
    found = numbers(tmp_path / "a.npz")
    assert found.keys() == {"samples", "seeds", "labels", "class_names"}
    assert found["seeds"].tolist() == [3, 40, 41, 42]
    assert found["labels"].tolist() == [9, 7, 9, 7]
    x = expected(digits_run, [3, 40, 41, 42], [9, 7, 9, 7])
    np.testing.assert_allclose(found["samples"], x.numpy(), atol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]
    assert Arrays(str(tmp_path / "a.npz"), key="samples").load().num_classes == 10


def test_grids_hold_all_images_a_column_a_class(openedm, digits_run, tmp_path):
    result = openedm("sample", digits_run, tmp_path / "a.png", "--format=grid", "--seeds=0-5", "--classes=1-3", STEPS)
    assert result.status == 0
    x = expected(digits_run, range(6), [1, 2, 3, 1, 2, 3])
    grid = torch.from_numpy(captioned(image_grid(x, 3, scale=4), ["1", "2", "3"]))[:, :, 0]
    assert (pixels(tmp_path / "a.png").int() - grid.int()).abs().max() <= 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_samples_of_an_unconditional_model_of_vectors_have_no_labels(openedm, toy_run, tmp_path):
    assert openedm("sample", toy_run, tmp_path / "a.npz", "--format=npz", "--seeds=0-9", STEPS).status == 0
    found = numbers(tmp_path / "a.npz")
    assert found.keys() == {"samples", "seeds"}
    np.testing.assert_allclose(found["samples"], expected(toy_run, range(10), None).numpy(), atol=1e-5)


def test_weights_and_sampler_are_those_asked_for(openedm, digits_run, tmp_path):
    options = ["--weights=raw", "--sampler.solver=Euler", "--sampler.churn.s_churn=3", STEPS]
    assert openedm("sample", digits_run, tmp_path / "a.npz", "--format=npz", "--seeds=0-1", *options).status == 0
    churned = Sampler(Karras(4), solver=Euler(), churn=Churn(3.0))
    x = expected(digits_run, [0, 1], [0, 1], churned, "raw")
    np.testing.assert_allclose(numbers(tmp_path / "a.npz")["samples"], x.numpy(), atol=1e-5)


def test_mixed_precision_draws_nearly_the_same_samples_and_is_one_of_their_settings(openedm, digits_run, tmp_path):
    for precision in ("fp32", "bf16"):
        assert openedm(
            "sample", digits_run, tmp_path / f"{precision}.npz", "--format=npz", "--seeds=0-3", STEPS,
            f"--precision={precision}",
        ).status == 0  # fmt: skip
    exact, rounded = (numbers(tmp_path / f"{precision}.npz")["samples"] for precision in ("fp32", "bf16"))
    assert 1e-5 < np.abs(exact - rounded).max() < 0.1
    assert np.abs(exact - rounded).mean() < 0.01
    assert openedm("sample", digits_run, tmp_path / "out", "--seeds=0", STEPS, "--precision=bf16").status == 0
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["precision"] == "bf16"
    result = openedm("sample", digits_run, tmp_path / "out", "--seeds=0-1", STEPS)
    assert result.status == 1
    assert "holds samples drawn with other settings (precision in " in result.err


@pytest.mark.usefixtures("without_type_checker")  # which dynamo cannot follow
def test_compiled_networks_draw_the_same_samples(openedm, digits_run, tmp_path, monkeypatch):
    compiled = []

    def compile_without_code(network, **options):  # generated code takes a minute to build
        compiled.append(type(network).__name__)
        network._compiled_call_impl = torch.compile(network._call_impl, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_without_code)
    arguments = (digits_run, tmp_path / "a.npz", "--format=npz", "--seeds=0-2", STEPS, "--compile=true")
    assert openedm("sample", *arguments).status == 0
    assert compiled == ["UNet"]
    x = expected(digits_run, [0, 1, 2], [0, 1, 2])
    np.testing.assert_allclose(numbers(tmp_path / "a.npz")["samples"], x.numpy(), atol=1e-4)


def test_an_earlier_checkpoint_can_be_named(openedm, digits_run, tmp_path):
    first = digits_run / "checkpoints" / "000000000320"
    assert openedm("sample", first, tmp_path / "a.npz", "--format=npz", "--seeds=5", STEPS).status == 0
    np.testing.assert_allclose(numbers(tmp_path / "a.npz")["samples"], expected(first, [5], [5]).numpy(), atol=1e-5)


def test_the_batch_size_does_not_change_the_samples(openedm, digits_run, tmp_path):
    found = []
    for size in (1, 7, 64):
        path = tmp_path / f"{size}.npz"
        arguments = ["--format=npz", "--seeds=0-19", f"--batch_size={size}", STEPS]
        assert openedm("sample", digits_run, path, *arguments).status == 0
        found.append(numbers(path)["samples"])
    np.testing.assert_allclose(found[0], found[2], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found[1], found[2], rtol=0, atol=1e-5)


def test_a_trajectory_is_drawn_besides(openedm, digits_run, tmp_path):
    path = tmp_path / "new" / "trajectory.png"
    result = openedm("sample", digits_run, tmp_path / "out", "--seeds=0-1", STEPS, f"--trajectory={path}")
    assert result.status == 0
    assert result.out.endswith(f"denoising trajectory: {path}\n")
    assert pixels(path).float().std() > 10  # a picture, and not of one colour


# Interrupted and run again.


def test_run_again_it_draws_only_the_seeds_that_are_missing(openedm, digits_run, tmp_path):
    out = tmp_path / "out"
    assert openedm("sample", digits_run, out, "--seeds=0-5", STEPS).status == 0
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.glob("*.png")}
    (out / "000003.png").unlink()
    mine = before["000000.png"][1]
    (out / "000001.png").write_bytes(mine)  # to see that it is left alone
    (out / "000004.png").write_bytes(before["000004.png"][1][:-5])  # as a copy that was interrupted
    (out / "000005.png").write_bytes(b"")  # as some file systems leave it where the machine fails
    result = openedm("sample", digits_run, out, "--seeds=0-7", STEPS)
    assert result.status == 0
    assert "drew 5 samples with 7 network evaluations each, 3 already existed" in result.out
    after = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.glob("*.png")}
    assert (out / "000001.png").read_bytes() == mine
    for name in ("000004.png", "000005.png"):
        assert after[name][1] == before[name][1]
    for seed in (0, 2):
        assert after[f"{seed:06d}.png"] == before[f"{seed:06d}.png"]
    assert np.abs(_image(after["000003.png"][1]) - _image(before["000003.png"][1])).max() <= 1
    labels = json.loads((out / "dataset.json").read_text())["labels"]
    assert labels == [[f"{seed:06d}.png", seed] for seed in range(8)]


def _image(content):
    return np.array(PIL.Image.open(io.BytesIO(content))).astype(int)


def test_pictures_of_a_batch_get_their_names_when_all_of_it_is_on_the_disk(openedm, digits_run, tmp_path, monkeypatch):
    original, out = storage._flush, tmp_path / "out"

    def full(path):
        if path.name == "000003.png":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        original(path)

    arguments = ["sample", digits_run, out, "--seeds=0-5", "--batch_size=2", STEPS]
    with monkeypatch.context() as patch:
        patch.setattr(storage, "_flush", full)
        result = openedm(*arguments)
    assert result.status == 1
    assert re.search(r"error: .*/000003\.png: .*free some space there, or write to another disk", result.err)
    assert sorted(p.name for p in out.iterdir()) == ["000000.png", "000001.png", "settings.json"]
    (left := out / ".000003.png-77").mkdir()  # by a process that was killed
    (left / "000002.png").write_bytes(b"half")
    assert "drew 4 samples with 7 network evaluations each, 2 already existed" in openedm(*arguments).out
    assert sorted(p.name for p in out.iterdir() if p.suffix != ".json") == [f"{seed:06d}.png" for seed in range(6)]


@pytest.mark.parametrize("name", ["out", "a.npz"])
def test_a_batch_is_written_while_the_next_one_is_drawn(name, digits_run, tmp_path, monkeypatch):
    source, drawing = CheckpointSampler(digits_run, SamplingOptions(nfe=3)), threading.Event()
    draw, waited = source.draw, []

    def observed(*arguments):
        for number, batch in enumerate(draw(*arguments)):
            if number == 1:
                drawing.set()
            yield batch

    def late(write):
        return lambda *arguments, **more: (waited.append(drawing.wait(30)), write(*arguments, **more))[1]

    monkeypatch.setattr(source, "draw", observed)
    for function in ("encode_image", "write_array"):
        monkeypatch.setattr(files, function, late(getattr(files, function)))
    assert files.SampleFiles(source, tmp_path / name).write(source.prepare(), range(4), batch_size=2) == 4
    assert waited == 4 * [True]


def test_a_later_part_of_the_seeds_keeps_the_labels_of_the_earlier_one(openedm, digits_run, tmp_path):
    out = tmp_path / "out"
    assert openedm("sample", digits_run, out, "--seeds=12-13", "--classes=4,5", STEPS).status == 0
    assert openedm("sample", digits_run, out, "--seeds=7", "--classes=4,5", STEPS).status == 0
    labels = json.loads((out / "dataset.json").read_text())["labels"]
    assert labels == [["000007.png", 5], ["000012.png", 4], ["000013.png", 5]]


def test_nothing_missing_is_nothing_to_draw(openedm, digits_run, tmp_path):
    out = tmp_path / "out"
    assert openedm("sample", digits_run, out, "--seeds=0-1", STEPS).status == 0
    result = openedm("sample", digits_run, out, "--seeds=0-1", STEPS)
    assert result.status == 0
    assert "drew 0 samples" in result.out


def test_an_interrupted_npz_goes_on_from_its_parts(openedm, digits_run, tmp_path, monkeypatch):
    original, saved = files.write_array, []

    def interrupted(path, x, *, digest):
        if len(saved) == 3:
            raise KeyboardInterrupt
        saved.append(path.name)
        original(path, x, digest=digest)

    arguments = ["sample", digits_run, tmp_path / "a.npz", "--format=npz", "--seeds=0-5", "--batch_size=2", STEPS]
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_array", interrupted)
        result = openedm(*arguments)
    assert (result.status, result.err.splitlines()[-1]) == (130, "interrupted")
    assert f"stopped; the same command continues: {tmp_path / 'a.npz'}" in result.out + result.err
    assert not (tmp_path / "a.npz").exists()
    result = openedm(*arguments)
    assert "drew 3 samples with 7 network evaluations each, 3 already existed" in result.out
    x = expected(digits_run, range(6), list(range(6)))
    np.testing.assert_allclose(numbers(tmp_path / "a.npz")["samples"], x.numpy(), atol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_what_is_drawn_after_an_interruption_has_the_bits_of_an_uninterrupted_run(openedm, toy_run, tmp_path):
    """A sum over a batch of another size is rounded otherwise: batches are drawn again as they were."""

    def draw(name):
        return openedm("sample", toy_run, tmp_path / name, "--seeds=0-9", "--batch_size=4", STEPS)

    assert draw("whole.npz").status == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "remove_folder", lambda path: None)
        assert draw("a.npz").status == 0
    (tmp_path / "a.npz").unlink()  # the parts are those of a run that was killed
    parts = tmp_path / "a.npz.parts"
    for path in (path for seed in (2, 5, 9) for path in parts.glob(f"{seed:06d}-*.npy")):
        path.unlink()
    [empty], [flipped] = parts.glob("000004-*"), parts.glob("000007-*")
    empty.write_bytes(b"")
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"?")
    [old] = parts.glob("000000-*")
    old.rename(parts / "000000.npy")  # as version 0.1 named them
    assert "drew 5 samples with 7 network evaluations each, 5 already existed" in draw("a.npz").out
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_parts_that_a_kill_at_the_very_end_left_are_removed_by_the_next_start(openedm, toy_run, tmp_path):
    arguments = ["sample", toy_run, tmp_path / "a.npz", "--seeds=0-1", STEPS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "remove_folder", lambda path: None)
        assert openedm(*arguments).status == 0
    assert (tmp_path / "a.npz.parts").is_dir()
    (tmp_path / ".a.npz.parts-12").mkdir()
    assert "exists already" in openedm(*arguments).err
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize(
    "change", [["--sampler.levels.num_steps=5"], [STEPS, "--classes=0-3"], [STEPS, "--weights=raw"], [STEPS, "other"]]
)
def test_a_folder_of_samples_drawn_with_other_settings_is_refused_and_left_as_it_is(
    change, openedm, digits_run, tmp_path
):
    out = tmp_path / "out"
    assert openedm("sample", digits_run, out, "--seeds=0", STEPS).status == 0
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    run = digits_run / "checkpoints" / "000000000320" if "other" in change else digits_run
    result = openedm("sample", run, out, "--seeds=0-1", *(c for c in change if c != "other"))
    assert result.status == 1
    assert f"{out} holds samples drawn with other settings" in result.err
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_a_folder_of_other_files_is_refused_and_left_as_it_is(openedm, digits_run, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    result = openedm("sample", digits_run, tmp_path, "--seeds=0", STEPS)
    assert result.status == 1
    assert "is not empty and holds no samples of this command" in result.err
    assert [p.name for p in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(("format_", "name"), [("npz", "a.npz"), ("grid", "a.png")])
def test_a_file_is_never_overwritten(format_, name, openedm, digits_run, tmp_path):
    (tmp_path / name).write_bytes(b"mine")
    result = openedm("sample", digits_run, tmp_path / name, f"--format={format_}", "--seeds=0", STEPS)
    assert result.status == 1
    assert "exists already: a file is never overwritten" in result.err
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [(name, b"mine")]


# Wrong arguments.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds=3-1"], "seeds must have increasing ranges, got '3-1'"),
        (["--seeds=all"], "seeds must be numbers >= 0"),
        (
            ["--classes=3-12"],
            "classes must be among the labels 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, or ranges of them, got '3-12'",
        ),
        (["--format=npz"], "out must end in .npz"),
        (["--format=grid"], "out must end in .png"),
        (["--batch_size=0"], "batch_size must be >= 1, got 0"),
        (["--trajectory=figure.txt"], "trajectory must end in .png, got 'figure.txt'"),
    ],
)
def test_a_wrong_argument_is_an_error_that_names_it_and_nothing_is_written(
    arguments, message, openedm, digits_run, tmp_path
):
    result = openedm("sample", digits_run, tmp_path / "out", STEPS, *arguments)
    assert result.status == 1
    assert message in result.err
    assert len(result.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format=png"], "format must be 'npz', got 'png': samples of shape (2,) are not images"),
        (["--format=grid"], "format must be 'npz'"),
        (["--format=npz", "--trajectory=a.png"], "trajectory must not be given: samples of shape (2,) are not images"),
        (
            ["--format=npz", "--classes=0"],
            "classes must be None (no --classes): the model was trained without class labels",
        ),
    ],
)
def test_what_vectors_cannot_be_is_an_error_before_anything_is_drawn(arguments, message, openedm, toy_run, tmp_path):
    result = openedm("sample", toy_run, tmp_path / "a.npz", STEPS, *arguments)
    assert result.status == 1
    assert message in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_is_damaged_is_an_error_on_one_line_that_names_the_file(openedm, digits_run, tmp_path):
    copy = shutil.copytree(find_checkpoint(digits_run), tmp_path / "copy")
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    result = openedm("sample", copy, tmp_path / "out", "--seeds=0", STEPS)
    assert result.status == 1
    assert len(result.err.splitlines()) == 1
    assert str(path) in result.err
    result = openedm("sample", tmp_path / "nowhere", tmp_path / "out")
    assert result.status == 1
    assert "nowhere does not exist" in result.err


# Several processes.


def test_processes_agree_on_the_missing_seeds_though_one_draws_before_the_other_has_looked(
    digits_run, tmp_path, monkeypatch
):
    """Two threads stand for two processes; the second is slow to look for what is there."""
    out, barrier, rank, name = tmp_path / "out", threading.Barrier(2), threading.local(), files.SampleFiles._written

    class Process(Accelerator):
        num_processes, device = 2, torch.device("cpu")
        is_main_process = property(lambda self: rank.index == 0)
        process_index = property(lambda self: rank.index)
        main_process_first = staticmethod(contextlib.nullcontext)

        def __init__(self):
            pass

        def wait_for_everyone(self):
            barrier.wait(timeout=60)

    def slow_for_the_second(*arguments):
        deadline = time.monotonic() + 1
        while rank.index == 1 and not rank.looked and not list(out.glob("*.png")) and time.monotonic() < deadline:
            time.sleep(0.01)
        rank.looked = True
        return name(*arguments)

    monkeypatch.setattr(files.SampleFiles, "_written", slow_for_the_second)
    monkeypatch.setattr(command, "make_accelerator", Process)

    def process(index):
        rank.index, rank.looked = index, False
        options = SamplingOptions(nfe=None, sampler=SAMPLER)
        command.sample(str(digits_run), str(out), seeds="0-6", options=options, batch_size=1)

    threads = [threading.Thread(target=process, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(p.name for p in out.glob("*.png")) == [f"{seed:06d}.png" for seed in range(7)]


def test_a_trajectory_among_the_samples_and_a_solver_that_overshoots_are_refused_before_anything_is_written(
    openedm, digits_run, tmp_path
):
    out = tmp_path / "samples"
    inside = openedm("sample", digits_run, out, "--trajectory", out / "trajectory.png")
    overshooting = openedm("sample", digits_run, out, "--sampler.solver=Alpha", "--sampler.solver.alpha=1.5")
    assert (inside.status, overshooting.status) == (1, 1)
    assert "trajectory must not be inside out=" in inside.err
    assert "alpha <= 1" in overshooting.err
    assert not out.exists()
