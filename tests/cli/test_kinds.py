"""What commands say that are given a folder or file of another kind."""

import json

import pytest
from PIL import Image

from openedm.cli.explaining import name_option
from openedm.data import Table
from openedm.ground.kinds import KINDS, holding


@pytest.fixture
def others(tmp_path, toy_run, monkeypatch):
    """A folder with one of each kind, as far as a command reads before it looks at the kind."""
    monkeypatch.chdir(tmp_path)
    for name, file, form in (
        ("posterior", "config.json", "openedm-posterior"),
        ("simulations", "manifest.json", "openedm-simulations-1"),
        ("shards", "manifest.json", "openedm-shards"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(json.dumps({"format": form}))
    (tmp_path / "run").symlink_to(toy_run)
    (tmp_path / "empty").mkdir()
    (tmp_path / "net.pkl").write_bytes(b"")
    (tmp_path / "x.npz").write_bytes(b"")
    return tmp_path


def test_each_kind_is_known_whatever_its_version(others):
    checkpoint = next((others / "run" / "checkpoints").iterdir())
    assert holding(checkpoint) == KINDS["openedm-denoiser"]
    assert holding(others / "run") == KINDS["run"]
    for name in ("posterior", "simulations", "shards"):
        assert holding(others / name) == KINDS[f"openedm-{name}"]
    for name in ("empty", "net.pkl", "nothing"):
        assert holding(others / name) is None
    (others / "posterior" / "config.json").write_text("[1")
    assert holding(others / "posterior") is None


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            "sample posterior x.npz --format npz",
            "posterior holds a posterior, which `openedm inference sample` draws from",
        ),
        (
            "sample simulations y.npz",
            "simulations holds simulations, which `openedm inference fit` fits a posterior to",
        ),
        ("sample nothing y.npz", "nothing does not exist: give a checkpoint (a folder with config.json) or a run with"),
        ("sample empty y.npz", "empty has no checkpoint: give a checkpoint (a folder with config.json) or a run with"),
        ("sample run/checkpoints y.npz", "run/checkpoints is the folder of the checkpoints of run, such as run/checkp"),
        ("sample x.npz y.npz", "x.npz is a file: give a checkpoint (a folder with config.json) or a run with some\n"),
        ("sample net.pkl y.npz", "with some; of a published network, openedm convert net.pkl FOLDER makes one\n"),
        ("info posterior", "posterior holds a posterior"),
        ("evaluate posterior --data empty", "posterior holds a posterior"),
        ("distill simulations out", "simulations holds simulations"),
        ("train out --data run", "error: data.path must be a folder or archive of images, 'run' holds a run of `op"),
        ("train out --data posterior", "images, 'posterior' holds a posterior"),
        ("convert posterior out", "posterior holds a posterior"),
        ("convert nothing out.safetensors", "source must be a file or a checkpoint, got 'nothing', which does not"),
        (
            "inference sample run out.npz --x=1,2",
            "posterior: run holds a run of",
        ),
        (
            "inference map simulations --x=1,2",
            "posterior: simulations holds simulations",
        ),
        ("verify empty", "path must hold files, 'empty' is an empty folder"),
    ],
)
def test_another_kind_is_named_with_the_command_that_takes_it(arguments, line, openedm, others):
    before = sorted(others.rglob("*"))
    result = openedm(*arguments.split())
    assert result.status == 1
    assert line in result.err
    assert len(result.err.splitlines()) == 1
    assert sorted(others.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("inference calibrate p s.npz", "s.npz; only POSTERIOR can be given without a name, all else as --NAME VALUE"),
        ("toy out more", "more; only the first argument can be given without a name, all else as --NAME VALUE"),
        (
            "data convert flat out --size 4 --image image --split test",
            "split, image must not be given with a folder or",
        ),
        ("data encode flat out --vae posterior", "safetensors: it holds a posterior, which `openedm inference sample`"),
        ("data encode flat out --vae empty", "with safetensors: it has no config.json"),
        ("data convert few.yaml out --size 4", "error: source must be pictures (a folder, .zip or .tar), or .parquet"),
        ("data convert ./gone out --size 4", "error: source does not exist: './gone'; a set of the Hub is named OW"),
        ("data encode flat/gone out --vae empty", "error: source does not exist: 'flat/gone'; a set of the Hub"),
        ("data convert flat --out out", "unrecognized arguments: --out; SOURCE and OUT must be given in this order, w"),
        ("train --out out", "unrecognized arguments: --out; OUT must be given without its name"),
        ("suggest --data gone.npy", "error: data.path must be a .npy or .npz file, 'gone.npy' cannot be read"),
        ("evaluate flat --data Table --data.path gone.png", "error: data.path does not exist: 'gone.png'"),
        (
            "sweep flat --vary objective=EDM,VP --data=Toy --network=MLP",
            "out=flat holds other things and no sweep, such",
        ),
        ("compare run --num 4 --vary nfe=a,b", "nfe must be one of 'auto' or an integer or null, got a"),
        ("demo --out flat", "out=flat holds other things and no demo, such as a.png: choose another folder"),
        ("info edm2-img512-q", "edm2-img512-q does not exist, and is not a preset; did you mean edm2-img512-s?"),
        (
            "inference fit few.yaml out",
            "simulations must be a store, or an .npz file of the arrays theta and x, got 'few",
        ),
        ("inference fit x.npz out", "error: simulations must be a .npy or .npz file, 'x.npz' cannot be read"),
        ("inference fit x.npz out --prior Box", "error: prior Box: low, high must be given"),
        ("inference fit x.npz out --prior Box --prior.low a --prior.high [1]", "low must be a list, got a"),
        ("train out --config few.yaml", "options: there is no option 'imges'; did you mean images?"),
        ("train out --data empty --data.path run", "data and data.path must not both be given, got empty and run"),
        ("train out --init run --init.path empty", "init and init.path must not both be given, got run and empty"),
    ],
)
def test_what_would_have_no_effect_or_no_name_is_refused(arguments, line, openedm, others):
    (others / "few.yaml").write_text("options:\n  imges: 3\n")
    (others / "flat").mkdir()
    Image.new("L", (4, 4)).save(others / "flat" / "a.png")
    result = openedm(*arguments.split())
    assert result.status != 0
    assert line in result.err
    assert not (others / "out").exists()


def test_the_path_in_an_error_is_that_of_the_data_it_was_given_for():
    values = {"data": Table("a/b"), "held_out": Table("c/d"), "num": 3}
    assert name_option("path 'c/d' is damaged", values) == "held_out.path 'c/d' is damaged"
    assert name_option("path 'e/f' is damaged", values) == "path 'e/f' is damaged"
    assert name_option("path 'c/d' is damaged", values | {"path": "c/d"}) == "path 'c/d' is damaged"


def test_weights_to_start_from_are_refused_for_a_run_that_goes_on(openedm, toy_run):
    result = openedm("train", toy_run, "--resume=true", "--init=elsewhere")
    assert result.status == 1
    assert "init must not be given to a run that goes on from its own checkpoint, got elsewhere" in result.err
    assert openedm("train", toy_run, "--resume=true").status == 0
