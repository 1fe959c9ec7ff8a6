"""Float conditions from the data to samples, scores and likelihoods, as users type it."""

import json

import numpy as np
import PIL.Image
import pyarrow
import pyarrow.parquet
import pytest

from openedm.data import Arrays, ImageFolder, Source
from openedm.ground.choices import from_config
from openedm.ground.storage import read_json

from .conftest import QUIET, UNET

STEPS = "--sampler.levels.num_steps=3"
SIZES = ["--options.images=128", "--options.batch_size=64", "--options.rampup=0"]
RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (64, 8, 8), dtype=np.uint8)
VECTORS = np.stack([np.linspace(0, 1, 64), np.linspace(50, 90, 64)], 1)
LABELS = np.arange(64) % 3


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """The same 64 pictures with a vector, a smaller picture and a class each, as every source holds them."""
    path = tmp_path_factory.mktemp("sets")
    np.savez(path / "x.npz", x=X, vector=VECTORS, low=X[:, ::4, ::4], labels=LABELS)
    content = []
    for i, picture in enumerate(X):
        for folder, one in (("x", picture), ("low", picture[::4, ::4])):
            (path / folder).mkdir(exist_ok=True)
            PIL.Image.fromarray(one).save(path / folder / f"{i:02d}.png")
        content.append((path / "x" / f"{i:02d}.png").read_bytes())
    names = [f"{i:02d}.png" for i in range(64)]
    table = {
        "labels": list(zip(names, LABELS.tolist(), strict=True)),
        "class_names": ["cat", "dog", "eel"],
        "conditions": list(zip(names, VECTORS.tolist(), strict=True)),
    }
    (path / "x" / "dataset.json").write_text(json.dumps(table))
    low = [(path / "low" / name).read_bytes() for name in names]
    columns = {"image": content, "low": low, "stroke": VECTORS[:, 0], "slant": VECTORS[:, 1], "label": LABELS}
    pyarrow.parquet.write_table(pyarrow.table(columns), path / "x.parquet")
    return path


def source(path, name, kind):
    """The options of a source of conditions of a kind."""
    if name == "arrays":
        return ["--data=Arrays", f"--data.path={path / 'x.npz'}", "--data.key=x", f"--data.condition={kind}"]
    if name == "table":
        column = {"vector": "[stroke,slant]", "low": "low"}[kind]
        return ["--data=Table", f"--data.path={path / 'x.parquet'}", "--data.image=image", f"--data.condition={column}"]
    partner = [] if kind == "vector" else [f"--data.condition={path / 'low'}"]
    if name == "folder":
        return ["--data=ImageFolder", f"--data.path={path / 'x'}", *partner]
    return ["--data=Shards", f"--data.path={path / f'shards-{kind}'}"]


@pytest.fixture(scope="module")
def runs(openedm, sets, tmp_path_factory):
    """Runs with vectors and with pictures as conditions, with classes, and trained without condition, too."""
    path = tmp_path_factory.mktemp("runs")
    for kind in ("vector", "low"):
        options = [*source(sets, "folder", kind), "--options.label_dropout=0.5"]
        assert openedm("train", path / kind, *UNET, *SIZES, *QUIET, *options).status == 0
    return path


@pytest.mark.parametrize("kind", ["vector", "low"])
@pytest.mark.parametrize("name", ["arrays", "table", "folder", "shards"])
def test_every_source_trains_and_samples(openedm, sets, tmp_path, name, kind):
    if name == "shards" and not (sets / f"shards-{kind}").exists():
        partner = [] if kind == "vector" else [f"--condition={sets / 'low'}"]
        convert = openedm(
            "data", "convert", sets / "x", sets / f"shards-{kind}", "--crop=none", "--channels=1", *partner
        )
        assert convert.status == 0, convert.err
        assert f"3 classes with conditions of {'2' if kind == 'vector' else '1×8×8'}" in convert.out
    run, options = tmp_path / "run", source(sets, name, kind)
    log = [
        "--options.validate_every=128",
        "--options.snapshot_every=128",
        "--tracker=none",
        "--sampler.levels.num_steps=2",
    ]
    result = openedm("train", run, *UNET, *SIZES, *log, *options)
    assert result.status == 0, result.err
    assert f"in 3 classes with conditions of {'2' if kind == 'vector' else '1×8×8'}" in result.out
    assert list((run / "figures").glob("samples-*.png"))
    result = openedm("train", tmp_path / "again", "--config", run / "config.yaml", "--options.images=64",
                     *QUIET)  # fmt: skip
    assert result.status == 0, result.err
    result = openedm("sample", run, tmp_path / "out", "--seeds=0-3", STEPS, "--conditions", sets / "x.npz",
                     f"--conditions_key={kind}")  # fmt: skip
    assert result.status == 0, result.err


@pytest.mark.parametrize("form", ["npz", "npy", "csv", "json", "dataset.json", "numbers"])
def test_vectors_come_from_every_kind_of_file(openedm, sets, runs, tmp_path, form):
    rows = VECTORS[:3] if form != "dataset.json" else VECTORS
    given = tmp_path / f"c.{form}"
    if form == "npz":
        np.savez(given, conditions=rows, seeds=np.arange(3))
    elif form == "npy":
        np.save(given, rows)
    elif form == "csv":
        lines = ["name,slant,stroke", *(f"a,{slant},{stroke}" for stroke, slant in rows.tolist())]
        given.write_text("\n".join(lines))
    elif form == "json":
        given.write_text(json.dumps(rows.tolist()))
    elif form == "dataset.json":
        given = sets / "x"
    else:
        given, rows = "0.25,70", np.array([[0.25, 70.0]])
    key = ["--conditions_key=stroke,slant"] if form == "csv" else []
    out = tmp_path / "s.npz"
    result = openedm("sample", runs / "vector", out, "--seeds=0-4", STEPS, "--conditions", given, *key, "--classes=dog")
    assert result.status == 0, result.err
    with np.load(out) as arrays:
        expected = np.float32([rows[seed % len(rows)] for seed in range(5)])
        np.testing.assert_array_equal(arrays["conditions"], expected)
        assert arrays["labels"].tolist() == [1] * 5
        assert arrays["class_names"].tolist() == ["cat", "dog", "eel"]
        first = arrays["samples"]
    again = tmp_path / "again.npz"  # what was written is read
    assert openedm("sample", runs / "vector", again, "--seeds=0-4", STEPS, "--conditions", out).status == 0
    with np.load(again) as arrays:
        np.testing.assert_array_equal(arrays["samples"], first)


def test_pictures_are_conditions_of_samples_and_stand_beside_them(openedm, sets, runs, tmp_path):
    run, same = runs / "low", ["--seeds=0-3", STEPS, "--classes=0"]
    for form, given in (("folder", sets / "low"), ("npz", sets / "x.npz")):
        key = ["--conditions_key=low"] if form == "npz" else []
        result = openedm("sample", run, tmp_path / form, *same, "--conditions", given, *key)
        assert result.status == 0, result.err
        with np.load(tmp_path / form / "conditions.npz") as arrays:
            assert arrays["conditions"].shape == (4, 1, 8, 8)
    one, other = (np.stack([np.asarray(PIL.Image.open(tmp_path / form / f"{i:06d}.png")) for i in range(4)])
                  for form in ("folder", "npz"))  # fmt: skip
    assert np.abs(one.astype(int) - other).max() <= 3  # Pillow rounds what it resizes to bytes
    result = openedm("sample", run, tmp_path / "g.png", *same, "--conditions", tmp_path / "npz" / "conditions.npz")
    assert result.status == 0, result.err
    assert "columns:" not in result.out
    grid = np.asarray(PIL.Image.open(tmp_path / "g.png"))
    assert grid.shape == (2 * 33 - 1, 4 * 33 - 1)
    assert openedm("sample", run, tmp_path / "o", *same, "--conditions", sets / "low",
                   "--trajectory", tmp_path / "t.png").status == 0  # fmt: skip


def test_a_folder_of_samples_holds_their_conditions_and_resumes_with_the_same_only(openedm, runs, tmp_path):
    run, out = runs / "vector", tmp_path / "out"
    one, other = ["--conditions=0.5,70", STEPS], ["--conditions=0.25,70", STEPS]
    assert openedm("sample", run, out, "--seeds=0-3", *one).status == 0
    assert openedm("sample", run, out, "--seeds=0-5", *one).out.startswith("drew 2 samples")
    assert len(read_json(out / "settings.json")["conditions"]) == 64
    table = read_json(out / "dataset.json")
    assert table["conditions"] == [[f"{i:06d}.png", [0.5, 70.0]] for i in range(6)]
    data = ImageFolder(str(out)).load()
    assert (data.condition_shape, data.class_names) == ((2,), ("cat", "dog", "eel"))
    assert "other settings" in openedm("sample", run, out, "--seeds=0-5", *other).err


def test_samples_without_condition_and_guided_ones(openedm, sets, runs, tmp_path):
    for number, options in enumerate(
        (["--conditions=none"], ["--conditions=0.5,70", "--guidance.weight=2"], ["--conditions=0.5,70"])
    ):
        result = openedm("sample", runs / "vector", tmp_path / f"{number}.npz", "--seeds=0-3", STEPS, *options)
        assert result.status == 0, result.err
    drawn = [np.load(tmp_path / f"{number}.npz") for number in range(3)]
    assert "conditions" not in drawn[0]
    assert "labels" not in drawn[0]
    assert np.abs(drawn[1]["samples"] - drawn[2]["samples"]).max() > 0
    guided = openedm(
        "evaluate", runs / "vector", *source(sets, "folder", "vector"), "--num=16", "--nfe=4", "--guidance.weight=2"
    )
    assert guided.status == 0, guided.err


def test_columns_of_a_grid_are_called_by_the_names_of_their_classes(openedm, runs, tmp_path):
    out, options = tmp_path / "g.png", ["--seeds=0-3", STEPS, "--conditions=0.5,70", "--classes=eel,cat"]
    assert "(columns: eel, cat)" in openedm("sample", runs / "vector", out, *options).out


def test_averages_of_other_widths_keep_the_conditions(openedm, sets, tmp_path):
    run, every = tmp_path / "run", ["--options.power_average=PowerFunction", "--options.power_average.every=64"]
    result = openedm("train", run, *UNET, *SIZES, *QUIET, *every, *source(sets, "arrays", "vector"))
    assert result.status == 0, result.err
    result = openedm("ema", run, tmp_path / "wide")
    assert result.status == 0, result.err
    assert (
        openedm("sample", tmp_path / "wide", tmp_path / "s.npz", "--seeds=0-1", STEPS, "--conditions=0.5,70").status
        == 0
    )


def test_fitted_levels_take_the_conditions(openedm, runs, tmp_path, quick_fits):
    result = openedm("sample", runs / "vector", tmp_path / "s.npz", "--seeds=0-1", "--levels=fitted", "--nfe=3",
                     "--conditions=0.5,70")  # fmt: skip
    assert result.status == 0, result.err


@pytest.mark.parametrize("kind", ["vector", "low"])
def test_scores_and_likelihoods_use_the_conditions_of_the_data(openedm, sets, runs, tmp_path, kind):
    options = source(sets, "folder", kind)
    report = tmp_path / "report.json"
    result = openedm("evaluate", runs / kind, *options, "--num=20", "--nfe=4", f"--out={report}")
    assert result.status == 0, result.err
    assert "accuracy of the classifier on generated labels" in result.out
    drawn = read_json(report)["drawn"]["conditions"]
    assert from_config(Source, drawn["data"]).path == str(sets / "x")
    assert (drawn["count"], len(drawn["digest"])) == (20, 64)
    result = openedm("likelihood", runs / kind, *options, "--num=2", "--method.trace=Hutchinson")
    assert result.status == 0, result.err
    wrong = openedm("evaluate", runs / kind, "--data=Digits", "--num=20", "--nfe=4")  # that have no conditions
    assert wrong.status != 0
    assert "data must have" in wrong.err


@pytest.mark.parametrize("kind", ["vector", "low"])
def test_other_commands_take_models_with_conditions(openedm, sets, runs, tmp_path, kind):
    info = openedm("info", runs / kind)
    assert "cat, dog, eel" in info.out
    shape = {"vector": "2", "low": "1 × 8 × 8"}[kind]
    assert f"{shape} floats a sample, or none" in info.out
    assert openedm("suggest", *source(sets, "folder", kind)).status == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "conditions must be given, floats of shape (2) a sample"),
        (["--conditions=missing.npz"], "conditions must be a file or folder that exists, or numbers"),
        (["--conditions=0.5"], "conditions must have shape (rows, 2), as those of the model, got (1, 1)"),
        (["--conditions=0.5,nan"], "conditions must be finite, but row 0 has NaN"),
        (["--conditions=0.5,1", "--conditions_key=a"], "conditions_key requires a .npz or .csv file"),
        (["--conditions=0.5,1", "--conditions_resize=nearest"], "conditions_resize='nearest' has no effect"),
        (["--conditions=none", "--classes=cat"], "conditions='none' leaves out the classes"),
        (["--conditions_key=a"], "conditions_key and conditions_resize require conditions from a file"),
        (["--conditions=0.5,70", "--classes=cow"], "classes must be names, cat, dog, eel, or indices between 0 and 2"),
        (["--conditions=0.5,70", "--classes=3"], "or indices between 0 and 2, got [3]"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(openedm, runs, tmp_path, options, message):
    result = openedm("sample", runs / "vector", tmp_path / "s.npz", STEPS, *options)
    assert result.status != 0
    assert message in " ".join(result.err.split())
    assert not list(tmp_path.iterdir())


def test_models_without_float_conditions_refuse_them(openedm, toy_run, tmp_path):
    result = openedm("sample", toy_run, tmp_path / "s.npz", STEPS, "--conditions=1.0")
    assert "the model has no float conditions" in result.err


def test_the_table_of_rows_that_are_named_in_errors(openedm, runs, tmp_path):
    (tmp_path / "c.csv").write_text("stroke,slant\n0.5,1\n0.5,x\n")
    result = openedm("sample", runs / "vector", tmp_path / "s.npz", "--conditions", tmp_path / "c.csv")
    assert "line 3 must have numbers in stroke, slant" in result.err


def test_validation_data_must_have_the_conditions_of_the_model(openedm, sets, tmp_path):
    validation = ["--validation=Arrays", f"--validation.path={sets / 'x.npz'}", "--validation.key=x"]
    log = ["--options.validate_every=64", "--options.snapshot_every=0", "--tracker=none"]
    result = openedm("train", tmp_path / "r", *UNET, *SIZES, *log, *source(sets, "arrays", "vector"), *validation)
    assert result.status != 0
    assert "condition" in result.err
    good = openedm("train", tmp_path / "s", *UNET, *SIZES, *log, *source(sets, "arrays", "vector"), *validation,
                   "--validation.condition=vector")  # fmt: skip
    assert good.status == 0, good.err


def test_arrays_of_samples_are_read_with_their_conditions(openedm, runs, tmp_path):
    out = tmp_path / "s.npz"
    assert openedm("sample", runs / "vector", out, "--seeds=0-4", STEPS, "--conditions=0.5,70").status == 0
    data = Arrays(str(out), key="samples", condition="conditions").load()
    assert (data.condition_shape, data.num_classes) == ((2,), 3)
