"""Damaged files and extreme arguments end with one line that names them, and no traceback."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from openedm.cli import main as module
from openedm.cli.explaining import describe_error
from openedm.ground.verifying import accept
from openedm.training import find_checkpoint


@pytest.fixture
def broken(toy_run: Path, tmp_path: Path) -> tuple[Path, str]:
    """A copy of a run with a NaN in a weight, and the weight's name."""
    run = shutil.copytree(toy_run, tmp_path / "run")
    path = find_checkpoint(run) / "model.safetensors"
    tensors = load_file(path)
    name = sorted(n for n, t in tensors.items() if t.ndim == 2)[0]
    tensors[name].view(-1)[3] = torch.nan
    save_file(tensors, path)
    accept(path.parent)
    return run, name


def one_line(result, status=1):
    assert result.status == status
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    return lines[0]


def test_weights_that_are_nan_are_named_by_every_command_that_reads_them(broken, openedm, tmp_path):
    run, name = broken
    for arguments in (
        ["sample", run, tmp_path / "s.npz", "--format=npz", "--seeds=0-3"],
        ["likelihood", run, "--data=Toy", "--num=2"],
        ["convert", run, tmp_path / "p.safetensors"],
    ):
        assert f"{name} holds 1 NaN" in one_line(openedm(*arguments))
    info = openedm("info", run)
    assert info.status == 0
    assert f"NOT FINITE: {name} holds 1 NaN of" in info.out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds=0-99999999999999"], "seeds must be at most 10,000,000 numbers at a time"),
        (["--nfe=100000000000"], "nfe must be at most 100,000, got 100000000000"),
        (["--nfe=null", "--sampler.levels.num_steps=100000000000"], "num_steps must be at most 100,000"),
        (["--out={file}/x.npz"], "out must be a folder, but {file} is a file"),
    ],
)
def test_extreme_arguments_of_sample_are_named(arguments, message, toy_run, openedm, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    out = [] if arguments[0].startswith("--out") else [tmp_path / "s.npz"]
    given = [argument.format(file=file) for argument in arguments]
    result = openedm(
        "sample", toy_run, *(out or [given[0].removeprefix("--out=")]), "--format=npz", *given[1 - len(out) :]
    )
    assert message.format(file=file) in one_line(result)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "run", "--num=abc"], "num must be an integer or null, got abc"),
        (["evaluate", "run", "--metrics=foo"], "metrics must be a list of 'kernel', 'neighbours', 'inception' or null"),
        (["train", "run", "--options.clip_norm=nan"], "options.clip_norm must be a number or null, got nan"),
    ],
)
def test_values_of_the_wrong_kind_are_named_with_the_kinds_that_are_right(arguments, message, openedm):
    assert one_line(openedm(*arguments), 2).startswith(f"openedm {arguments[0]}: error: {message}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--options.augmentation.p=2"], "options.augmentation.p must be between 0 and 1, got 2.0"),
        (["--options.power_average.every=0"], "options.power_average.every must be >= 1, got 0"),
        (
            ["--data=ImageFolder", "--data.path=.", "--data.resolution=1000000"],
            "data.resolution must be at most 65,536",
        ),
    ],
)
def test_the_reason_of_a_value_that_is_refused_is_the_message(arguments, message, openedm, tmp_path):
    assert one_line(openedm("train", tmp_path / "run", *arguments)).startswith(f"openedm train: error: {message}")


def test_a_file_in_place_of_the_folder_of_a_run_is_named(openedm, tmp_path):
    (file := tmp_path / "file").write_text("")
    for out in (file, file / "inside"):
        result = openedm("train", out, "--data=Toy", "--network=MLP")
        assert f"out must be a folder, but {file} is a file" in one_line(result)
    assert result.out == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it is empty"),
        ("[" * 100_000, "nested too deeply"),
        ("[1]", "must hold a JSON object, got list"),
        ({"objective": None}, "does not describe"),
        ({"images": float("inf")}, "does not"),
        ({"step": 10**400}, "does not"),
        ({"options": None}, "does not describe"),
    ],
    ids=["empty", "nested", "list", "objective", "infinity", "digits", "options"],
)
def test_a_damaged_training_json_is_named_by_info_and_when_training_goes_on(
    content, message, toy_run, openedm, tmp_path
):
    run = shutil.copytree(toy_run, tmp_path / "run")
    path = find_checkpoint(run) / "training.json"
    text = content if isinstance(content, str) else json.dumps(json.loads(path.read_text()) | content)
    path.write_text(text)
    if isinstance(content, dict):
        accept(path.parent)
    resumed = openedm("train", run, "--config", run / "config.yaml", "--resume=true", "--options.images=1280")
    assert re.search(rf"{re.escape(str(path))}.*{message}", one_line(resumed))
    if "step" not in content and "images" not in content:
        assert re.search(rf"{re.escape(str(path))}.*{message}", one_line(openedm("info", run)))


def test_an_empty_settings_json_among_samples_is_named(digits_run, openedm, tmp_path):
    (folder := tmp_path / "samples").mkdir()
    (folder / "settings.json").write_text("")
    line = one_line(openedm("sample", digits_run, folder, "--seeds=0-1", "--nfe=3"))
    assert f"{folder / 'settings.json'} cannot be read as JSON: it is empty" in line


@pytest.mark.parametrize(
    "error",
    [RuntimeError("x\ny"), AssertionError("x"), OverflowError("x"), RecursionError("x"), AttributeError("x"),
     IndexError("x"), KeyError("x"), torch.linalg.LinAlgError("x")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_an_error_that_no_check_raises_is_one_line_with_the_way_to_its_traceback(error, openedm, monkeypatch):
    class Command:
        @staticmethod
        def info(checkpoint: str) -> None:
            """Describe.

            Args:
                checkpoint: a folder.
            """
            raise error

    monkeypatch.setattr(module.importlib, "import_module", lambda name: Command)
    line = one_line(openedm("info", "run"))
    assert line.startswith(f"openedm info: error: {type(error).__name__}: ")
    assert line.endswith("(not expected: please report it with what OPENEDM_TRACEBACK=1 shows)")
    monkeypatch.setenv("OPENEDM_TRACEBACK", "1")
    with pytest.raises(type(error)):
        openedm("info", "run")


@pytest.mark.parametrize(
    ("error", "options", "line"),
    [
        (MemoryError(), ("batch_size", "num"), "out of memory: lower --batch_size"),
        (MemoryError("out of memory: lower x"), (), "out of memory: lower x"),
        (
            torch.OutOfMemoryError("CUDA out of memory."),
            ("options",),
            "lower --options.batch_size (CUDA out of memory.)",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you"),
            ("num_samples",),
            "lower --num_samples (Default",
        ),
        (MemoryError("Unable to allocate 7.3 TiB"), (), "out of memory: use smaller data (Unable to allocate 7.3 TiB)"),
    ],
)
def test_out_of_memory_names_the_option_to_lower(error, options, line):
    assert line in describe_error(error, options)


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["train", "run", "--images=1"], "did you mean --options.images?"),
        (["train", "run", "--options.imagse=1"], "did you mean --options.images?"),
        (["train", "run", "--network=MLP", "--network.widht=3"], "did you mean width?"),
        (["train", "run", "--network=MPL"], "did you mean MLP?"),
        (
            ["train", "run", "--objective.p_mean=-1"],
            "its options are noise, weighting, stratified, learned_uncertainty "
            "(openedm train --help describes all options)",
        ),
        (["toy", "--sigma-shown=80"], "did you mean --sigma_shown?"),
        (["sample", "run", "out", "--nef", "3"], "did you mean --nfe?"),
        (["sample", "run", "out", "--sampler.levels.num_step=3"], "did you mean num_steps?"),
        (
            ["evaluate", "run", "--zzz=1"],
            "unrecognized arguments: --zzz=1 (openedm evaluate --help describes all options)",
        ),
    ],
)
def test_the_nearest_option_field_or_class_is_named(arguments, meant, openedm):
    assert one_line(openedm(*arguments), 2).endswith(meant)


def test_a_union_inside_another_is_in_words(openedm):
    line = one_line(openedm("inference", "check", "p", "--sampler.scaling.nonesuch=1"), 2)
    assert "scaling: choose one of the Scaling by its name first (openedm inference check --help" in line
