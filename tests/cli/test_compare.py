"""`openedm sweep` and `openedm compare` on two tiny runs."""

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from openedm.cli import main as cli
from openedm.cli.compare import compare
from openedm.cli.comparing import ways_of
from openedm.cli.parsing import parse
from openedm.cli.sweep import sweep
from openedm.cli.train import train
from openedm.comparing import combinations, measuring, parse_variations
from openedm.guidance import Interval, Piecewise
from openedm.training import list_checkpoints

PAGE = Path(__file__).parents[2] / "docs" / "compare.md"
BASE = {
    "data": {"class_path": "Toy", "init_args": {"num_samples": 120}},
    "network": {"class_path": "MLP", "init_args": {"width": 8, "num_blocks": 1}},
    "options": {"images": 128, "batch_size": 64, "rampup": 0, "validate_every": 64, "snapshot_every": 0},
    "tracker": "none",
}
SCORES = ["--num=32", "--num_splits=2", "--num_bootstrap=4"]
PIECEWISE = Piecewise((1.0, 2.0), (3.0, 4.0))
VARY = ["--vary", "objective=EDM,VP", "--vary=nfe=3,4"]


@pytest.fixture(scope="module")
def swept(openedm, tmp_path_factory):
    """A sweep over two objectives, each sampled in two ways: its arguments, folder, and what it printed."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE))
    arguments = ["sweep", folder / "out", "--config", folder / "base.yaml", *VARY, *SCORES]
    return SimpleNamespace(
        arguments=arguments, base=folder / "base.yaml", out=folder / "out", result=openedm(*arguments)
    )


@pytest.fixture
def runs(swept):
    return [swept.out / "objective=EDM", swept.out / "objective=VP"]


def test_a_sweep_trains_every_combination_and_ends_in_a_comparison(swept, runs):
    assert swept.result.status == 0, swept.result.err
    assert [path.name for path in sorted(swept.out.glob("objective=*"))] == [run.name for run in runs]
    assert "objective.weighting" in swept.result.out
    assert (swept.out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((swept.out / "comparison.json").read_text(encoding="utf-8"))
    names = [column["name"] for column in content["columns"]]
    assert names == [f"objective={o} nfe={n}" for o in ("EDM", "VP") for n in (3, 4)]
    assert [column["numbers"]["evaluations a sample"]["value"] for column in content["columns"]] == [3, 4, 3, 4]
    kept = [json.loads(path.read_text(encoding="utf-8")) for path in swept.out.rglob("*.json")]
    samplers = [each["sampler"]["sampler"] for each in kept if "sampler" in each]
    assert len(samplers) == 4
    assert all("Logistic(num_steps=" in each and "schedule=" not in each for each in samplers), samplers
    assert "| options" not in (swept.out / "comparison.md").read_text(encoding="utf-8")  # none of them differs


def test_what_is_done_is_not_done_again(swept, runs, openedm, monkeypatch):
    before = {path: path.stat().st_mtime_ns for run in runs for path in run.rglob("*") if path.is_file()}
    monkeypatch.setattr(measuring, "open_images", None)
    again = openedm(*swept.arguments)
    assert again.status == 0, again.err
    assert again.out.count("is finished") == 2
    assert before == {path: path.stat().st_mtime_ns for run in runs for path in run.rglob("*") if path.is_file()}
    assert again.out.partition("objective.noise")[2] == swept.result.out.partition("objective.noise")[2]


def test_options_that_differ_from_those_of_the_runs_are_refused(swept, openedm):
    result = openedm(*swept.arguments, "--options.learning_rate=0.5")
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert "was trained with options.learning_rate=0.001, and the command says 0.5" in result.err


def test_a_dry_run_prints_commands_that_train_understands(swept, openedm, tmp_path):
    out = tmp_path / "new"
    result = openedm("sweep", out, "--config", swept.base, "--vary=objective=EDM,VE", "--dry_run=true")
    commands = [shlex.split(line) for line in result.out.splitlines()]
    assert [command[:3] for command in commands] == [
        ["openedm", "train", f"{out}/objective={o}"] for o in ("EDM", "VE")
    ]
    parsed = [parse("openedm train", train, command[2:]) for command in commands]
    assert [type(values["objective"]).__name__ for values in parsed] == ["EDM", "VE"]
    assert all(values["options"].images == 128 and values["resume"] for values in parsed)
    assert not out.exists()


def test_a_script_for_a_cluster_has_a_task_a_run(swept, openedm, tmp_path):
    script, stub = tmp_path / "jobs.sh", tmp_path / "bin"
    vary = ["--vary=objective=EDM,VP", "--vary=options.seed=0,1"]
    result = openedm("sweep", tmp_path / "o", "--config", swept.base, *vary, "--slurm", script)
    assert result.status == 0, result.err
    assert "#SBATCH --array=0-3\n" in script.read_text()
    stub.mkdir()
    (stub / "openedm").write_text('#!/bin/sh\nprintf "%s " "$@"\n')
    (stub / "openedm").chmod(0o755)
    environment = {**os.environ, "PATH": f"{stub}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "2"}
    printed = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=True).stdout
    assert printed.startswith(f"train {tmp_path}/o/objective=VP,options.seed=0 ")
    assert "--resume=true" in printed
    environment["SLURM_ARRAY_TASK_ID"] = "4"
    assert subprocess.run(["bash", script], env=environment, capture_output=True, check=False).returncode == 2
    again = shlex.split(result.out.partition("ended:")[2])
    assert again == ["openedm", "sweep", f"{tmp_path / 'o'}", "--config", str(swept.base), *vary]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--vary=objective=EDM,VQ"], "--vary objective=VQ"),
        (["--vary=options.images=64,-1"], "--vary options.images=-1: images must be >= 1"),
        (["--vary=opjective=EDM"], "did you mean 'objective'?"),
        (["--vary=objective=EDM", "--dry-run"], "options are written with underscores, --dry_run"),
        (["--vary=objective=EDM", "--netwrok=MLP"], "--netwrok must be an option of openedm train or openedm sample"),
        (["--vary=out=a,b"], "--vary out must be an option"),
        (["--vary=nfe=3,4"], "num must be given with --vary nfe"),
        (["--vary=nfe=3,1", "--num=8"], "--vary nfe=1: nfe must be >= 3"),
        (["--vary=config=a/x.yaml,b/x.yaml"], "cannot be read"),
        (["--vary=options.label_dropout=0.1,2"], "--vary options.label_dropout=2"),
        # Only the data tell that this does not go together.
        (["--vary=conditional=true,false", "--options.label_dropout=0.1"], "--vary conditional=false: label_dropout"),
        (["--vary=guidance.weight=1,2", "--num=8"], "guidance (guidance.weight=2) requires options.label_dropout > 0"),
        ([], "vary must be given"),
        (["--vary=objective=EDM", "--num=1"], "num must be >= 2"),
    ],
)
def test_nothing_is_trained_before_all_combinations_are_right(more, words, swept, openedm, tmp_path):
    result = openedm("sweep", tmp_path / "out", "--config", swept.base, *more)
    assert (result.status, result.err.count("\n")) == (1, 1), result.err
    assert words in result.err
    assert not (tmp_path / "out").exists()


def test_files_of_options_can_be_varied(swept, openedm, tmp_path):
    for name, rate in (("A", 0.01), ("B", 0.02)):
        (tmp_path / f"{name}.yaml").write_text(f"options:\n  learning_rate: {rate}\n")
    vary = f"--vary=config={tmp_path / 'A.yaml'},{tmp_path / 'B.yaml'}"
    result = openedm("sweep", tmp_path / "out", "--config", swept.base, vary, "--dry_run=true")
    commands = [shlex.split(line)[2:] for line in result.out.splitlines()]
    assert [Path(command[0]).name for command in commands] == ["A", "B"]
    found = [parse("openedm train", train, command)["options"] for command in commands]
    assert [(each.learning_rate, each.images) for each in found] == [(0.01, 128), (0.02, 128)]


def test_an_interrupted_sweep_says_how_it_goes_on_and_a_failed_run_does_not_stop_the_others(
    swept, openedm, tmp_path, monkeypatch
):
    arguments = ["sweep", tmp_path / "out", "--config", swept.base, "--vary=objective=EDM,VP,VE"]
    statuses = iter([130, 1])

    def main(command):
        if "--objective=VP" in command:
            return next(statuses)
        shutil.copytree(swept.out / "objective=EDM", command[1])  # as if it had been trained
        return 0

    monkeypatch.setattr(cli, "main", main)  # of the commands inside; the outer one is imported by its name
    result = openedm(*arguments)
    assert result.status == 130
    assert f"goes on: openedm {shlex.join(map(str, arguments))}\n" in result.out
    assert not (tmp_path / "out" / "objective=VE").exists()
    result = openedm(*arguments)
    assert result.status == 1
    assert f"{tmp_path / 'out' / 'objective=VP'} failed" in result.err
    assert result.out.count("is finished") == 1
    assert "objective=VE" in (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")


def test_losses_of_other_objectives_are_not_comparable_unless_measured(runs, openedm, tmp_path):
    logged = openedm("compare", *runs)
    assert logged.status == 0, logged.err
    assert "validation loss (not comparable)" in logged.out
    assert "--losses measured" in " ".join(logged.out.split())
    measured = openedm(
        "compare", *runs, "--losses=measured", "--figure", tmp_path / "a.png", "--out", tmp_path / "a.md"
    )
    assert measured.status == 0, measured.err
    assert "not comparable" not in measured.out
    assert (tmp_path / "a.png").exists()
    assert (tmp_path / "a.md").read_text(encoding="utf-8").startswith("| | objective=EDM | objective=VP |")


def test_the_scores_are_those_of_evaluate(runs, openedm, tmp_path):
    compared = openedm("compare", runs[0], *SCORES, "--nfe=4", "--format=json")
    data = ["--data=Toy", "--data.num_samples=120"]
    evaluated = openedm("evaluate", runs[0], *data, *SCORES, "--nfe=4", "--out", tmp_path / "a.json")
    assert (compared.status, evaluated.status) == (0, 0), compared.err + evaluated.err
    numbers = json.loads(compared.out)["columns"][0]["numbers"]
    report = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert numbers["Fréchet distance"]["value"] == report["frechet"]
    assert numbers["Fréchet distance, 32 to 32"]["floor"] == report["floor"]
    assert numbers["precision"]["value"] == report["measures"][1]["value"]


def test_a_report_beside_a_checkpoint_is_shown_if_it_is_of_its_weights(runs, openedm):
    (folder,) = list_checkpoints(runs[0])
    data = ["--data=Toy", "--data.num_samples=120"]
    assert openedm("evaluate", runs[0], *data, *SCORES, "--out", folder / "report.json").status == 0
    assert "Fréchet distance" in openedm("compare", runs[0]).out
    (other,) = list_checkpoints(runs[1])
    (folder / "report.json").rename(other / "report.json")
    assert "Fréchet distance" not in openedm("compare", *runs).out
    (other / "report.json").unlink()


@pytest.mark.parametrize(
    ("more", "vary", "expected"),
    [
        # Weight 1 draws without guidance; the other options of guidance are for the other weights.
        (
            ["--guiding=b", "--guidance.high=5"],
            "guidance.weight=1,1.5",
            [(None, Interval()), ("b", Interval(1.5, high=5.0))],
        ),
        (["--guiding", "b"], "guidance.weight=1.5,1.0", [("b", Interval(1.5)), (None, Interval())]),
        (["--levels=learned"], "nfe=4,8", [(None, Interval())] * 2),
        (["--guidance.sigmas=[1,2]", "--guidance.weights=[3,4]"], "guidance=Piecewise", [(None, PIECEWISE)]),
    ],
)
def test_what_is_varied_completes_the_other_options(more, vary, expected):
    arguments = ["run", "--num=8", f"--vary={vary}", *more]
    parse("openedm compare", compare, arguments)
    ways = ways_of("openedm compare", compare, arguments, combinations(parse_variations([vary])))
    assert [(way.options.guiding, way.options.guidance) for way in ways] == expected


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--vary=nfe=3,4"], "num must be given"),
        (["--vary=nfe=0,4", "--num=8"], "nfe must be >= 1, got 0"),
        (["--vary=objective=EDM,VP", "--num=8"], "vary objective must be an option of sampling"),
        (["--vary=nfe=3,x", "--num=8"], "--vary nfe=x: nfe"),
        (["--out=a.doc"], "the suffix of out must be one of"),
        (["--num=1"], "num must be >= 2"),
    ],
)
def test_wrong_options_of_compare_are_one_line(more, words, runs, openedm):
    result = openedm("compare", runs[0], *more)
    assert (result.status, result.err.count("\n")) == (1, 1), result.err
    assert words in result.err


def test_several_processes_are_refused(runs, openedm, monkeypatch):
    monkeypatch.setattr("openedm.cli.comparing.make_accelerator", lambda: SimpleNamespace(num_processes=2))
    result = openedm("compare", *runs)
    assert "made by one process, got 2" in result.err


def test_paths_must_be_given_and_must_be_runs(openedm, tmp_path):
    assert "paths" in openedm("compare").err
    assert f"{tmp_path} has no checkpoint" in openedm("compare", tmp_path).err


@pytest.mark.usefixtures("without_type_checker")
def test_the_python_of_the_page_runs(runs, tmp_path, monkeypatch, capsys):
    (tmp_path / "runs").mkdir()
    for name, run in zip("ab", runs, strict=True):
        (tmp_path / "runs" / name).symlink_to(run)
    monkeypatch.chdir(tmp_path)
    code = PAGE.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    exec(compile(code.replace("num=100", "num=12"), str(PAGE), "exec"), {})
    assert capsys.readouterr().out.startswith("| | a nfe=4 | a nfe=8 | b nfe=4 | b nfe=8 |")
    assert (tmp_path / "comparison.png").exists()


def test_the_commands_of_the_page_can_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))
    lines = PAGE.read_text(encoding="utf-8").partition("```sh\n")[2].partition("```")[0].splitlines()
    for line in lines:
        command = {"compare": compare, "sweep": sweep}[line.split()[1]]
        parse("openedm", command, shlex.split(line, comments=True)[2:])
    assert len(lines) == 4
