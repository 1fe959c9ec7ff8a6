import hashlib
import json
import re
import shutil

import numpy as np
import pytest
import torch
import yaml

from openedm.cli.evaluate import LEGEND, evaluate
from openedm.cli.likelihood import likelihood
from openedm.cli.parsing import parse
from openedm.data import Arrays, Digits, ImageFolder, Toy
from openedm.ground.choices import brief, from_config
from openedm.levels import Karras
from openedm.metrics import Classifier, Report, train_classifier
from openedm.metrics import evaluate as compare
from openedm.sampling import Sampler
from openedm.training import find_checkpoint, load_denoiser

STEPS = "--sampler.levels.num_steps=3"


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    """Features are kept in the user's cache by default: here in a folder of the test's own."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """240 digits in an npz file, so that the classifier is trained in a moment; and 60 held out."""
    folder = tmp_path_factory.mktemp("real")
    x, labels = Digits("all").load().fetch(range(300))
    for name, part in (("train", slice(0, 240)), ("test", slice(240, 300))):
        np.savez(folder / f"{name}.npz", images=x[part].numpy(), labels=labels[part].numpy())
    return folder


@pytest.fixture(scope="module")
def classifier(real):
    path = real / "classifier.safetensors"
    train_classifier(Arrays(str(real / "train.npz")).load(), seed=0).save(path)
    return path


@pytest.fixture(scope="module")
def drawn(openedm, digits_run, tmp_path_factory):
    """The same 40 samples as PNG files and as arrays."""
    folder = tmp_path_factory.mktemp("drawn")
    assert openedm("sample", digits_run, folder / "png", "--seeds=0-39", STEPS).status == 0
    assert openedm("sample", digits_run, folder / "a.npz", "--format=npz", "--seeds=0-39", STEPS).status == 0
    return folder


def data(real, name="train"):
    return Arrays(str(real / f"{name}.npz"))


def arguments(real, classifier):
    held = ["--held_out=Arrays", f"--held_out.path={real / 'test.npz'}"]
    return ["--data=Arrays", f"--data.path={real / 'train.npz'}", *held, f"--classifier={classifier}", "--cache=null"]


@pytest.mark.parametrize("kind", ["folder", "arrays", "run"])
def test_samples_of_any_kind_are_scored_as_the_library_scores_them(
    kind, openedm, digits_run, real, classifier, drawn, tmp_path
):
    out = tmp_path / "deep" / "report.json"
    if kind == "folder":
        samples, (x, labels) = drawn / "png", ImageFolder(str(drawn / "png")).load().fetch(range(40))
    elif kind == "arrays":
        samples, (x, labels) = drawn / "a.npz", Arrays(str(drawn / "a.npz"), key="samples").load().fetch(range(40))
    else:
        samples, labels = digits_run, torch.arange(40) % 10
        x = Sampler(Karras(3)).sample(load_denoiser(digits_run), range(40), condition=labels).float()
    extra = ["--batch_size=40", *(["--num=40", STEPS] if kind == "run" else [])]
    result = openedm("evaluate", samples, *arguments(real, classifier), *extra, f"--out={out}", "--seed=3")
    assert result.status == 0
    judge = Classifier.load(classifier)
    report = compare(
        x.clamp(-1, 1), labels, data(real).load(), judge, held_out=data(real, "test").load(), seed=3, batch_size=40
    )
    assert result.out.partition("\n")[0] == f"real data: {brief(data(real))}"
    assert result.out.partition("\n")[2] == f"{report.table()}\n({LEGEND})\nreport: {out}\n"
    written = json.loads(out.read_text())
    how = written.pop("drawn", None)
    assert written == json.loads(json.dumps(report.to_dict()))
    assert (how is not None) == (kind == "run")
    if how is not None:
        assert from_config(Sampler, how["sampler"]) == Sampler(Karras(3))
        assert how["num"] == 40
        assert (
            how["weights"]
            == hashlib.sha256((find_checkpoint(digits_run) / "model.safetensors").read_bytes()).hexdigest()
        )
    assert Report.from_dict({**written, "drawn": how}) == report
    assert {m.name for m in report.measures} >= {"kernel distance", "precision", "coverage", "Inception score"}
    assert report.accuracy is not None
    assert report.accuracy_real is not None


def test_real_images_score_at_the_floor_and_noise_far_above_it(openedm, real, classifier, tmp_path):
    x, labels = data(real).load().fetch(range(240))
    noise = torch.rand(240, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    scores = {}
    for name, images in (("real", x), ("noise", noise)):
        np.savez(tmp_path / f"{name}.npz", samples=images.numpy(), labels=labels.numpy())
        out = tmp_path / f"{name}.json"
        result = openedm("evaluate", tmp_path / f"{name}.npz", *arguments(real, classifier), f"--out={out}")
        assert result.status == 0
        scores[name] = json.loads(out.read_text())
    assert scores["real"]["frechet_matched"] < 2 * scores["real"]["floor"]
    assert scores["noise"]["frechet_matched"] > 5 * scores["noise"]["floor"]
    assert scores["real"]["accuracy"] > 0.95
    assert scores["noise"]["accuracy"] < 0.4


def test_the_classifier_is_trained_once_and_kept(openedm, real, drawn, tmp_path):
    path = tmp_path / "classifier"
    first = openedm("evaluate", drawn / "png", *arguments(real, path))
    written = path.stat().st_mtime_ns
    second = openedm("evaluate", drawn / "png", *arguments(real, path))
    assert first.status == second.status == 0
    assert second.out == first.out
    assert path.stat().st_mtime_ns == written
    trained = train_classifier(data(real).load(), seed=0)
    kept = Classifier.load(path).state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in trained.state_dict().items())


def test_images_without_labels_are_scored_without_accuracy(openedm, real, classifier, drawn, tmp_path):
    with np.load(drawn / "a.npz") as file:
        np.savez(tmp_path / "a.npz", samples=file["samples"])
    result = openedm("evaluate", tmp_path / "a.npz", *arguments(real, classifier))
    assert result.status == 0
    assert "generated labels" not in result.out


def test_the_test_split_is_held_out_and_features_are_kept_by_default(openedm, drawn, tmp_path, home):
    path = tmp_path / "classifier"
    Classifier((1, 8, 8), 10).save(path)
    result = openedm("evaluate", drawn / "png", f"--classifier={path}")
    assert result.status == 0
    report = compare(
        *ImageFolder(str(drawn / "png")).load().fetch(range(40)),
        Digits("train").load(),
        Classifier.load(path),
        held_out=Digits("test").load(),
        batch_size=100,
    )
    kept = next((home / ".cache/openedm/features").glob("*.safetensors"))
    assert result.out == f"features of the data: kept in {kept}\nreal data: Digits\n{report.table()}\n({LEGEND})\n"
    again = openedm("evaluate", drawn / "png", f"--classifier={path}")
    assert again.out == result.out.replace("kept in", "read from")


def test_a_report_is_never_overwritten(openedm, real, classifier, drawn, tmp_path):
    out = tmp_path / "report.json"
    out.write_text("mine")
    result = openedm("evaluate", drawn / "png", *arguments(real, classifier), f"--out={out}")
    assert result.status == 1
    assert "exists already: a report is never overwritten" in result.err
    assert out.read_text() == "mine"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--num=1"], "num must be >= 2, got 1"),
        (["--batch_size=0"], "batch_size must be >= 1, got 0"),
        (["--num_splits=0"], "num_splits must be >= 1, got 0"),
        (["--num_bootstrap=1"], "num_bootstrap must be >= 2, got 1"),
        (["--num_pairwise=5"], "num_pairwise must be >= 6, got 5"),
        (["--nfe=9", "--sampler.solver=Euler"], "nfe and sampler options are mutually exclusive"),
        (["--tolerance=1e-2", "--nfe=null", "--levels=fitted"], "levels='fitted' requires nfe or a sampler on fixed"),
        (["--guidance=Constant", "--guidance.weight=1"], "guidance.weight must be other than 1"),
        (["--extractor=Inception", "--extractor.path=nowhere.pth"], "must be a file of Inception weights"),
        (
            ["--extractor=EfficientNetLite0", "--classifier=c"],
            "classifier and another extractor are mutually",
        ),
        (["--extractor=EfficientNetLite0", "--held_out=Digits"], "held_out requires a classifier"),
        (
            ["--data=Toy"],
            "samples must have the shape of data, (2,) of Toy, got (1, 8, 8): give as data what the model learned from",
        ),
    ],
)
def test_what_cannot_be_scored_is_an_error_before_the_long_work(given, message, openedm, digits_run):
    result = openedm("evaluate", digits_run, *given)
    assert result.status == 1
    assert message in result.err
    assert result.err.count("\n") == 1


def test_samples_of_another_shape_are_an_error_before_the_classifier_is_trained(openedm, digits_run, toy_run, tmp_path):
    np.savez(tmp_path / "a.npz", samples=np.zeros((8, 3, 8, 8), np.float32))
    for samples, shape in ((tmp_path / "a.npz", "(3, 8, 8)"), (toy_run, "(2,)")):
        result = openedm("evaluate", samples, "--data=Digits")
        assert result.status == 1
        expected = f"samples must have the shape of data, (1, 8, 8) of Digits, got {shape}: give as data what the model"
        assert result.err == f"openedm evaluate: error: {expected} learned from\n"


def rgb(path, count, shift, seed):
    """Coloured noise, smooth enough to be seen."""
    x = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    x = torch.nn.functional.interpolate(x + shift, (16, 16), mode="bilinear").clamp(-1, 1)
    np.savez(path, images=x.numpy(), samples=x.numpy())
    return path


def test_rgb_images_without_classes_are_seen_by_efficientnet(openedm, home, tmp_path):
    real, near, far = (rgb(tmp_path / f"{i}.npz", 40, s, i) for i, s in enumerate((0.0, 0.0, 0.7)))
    found = {}
    for name, samples in (("near", near), ("far", far)):
        out = tmp_path / f"{name}.json"
        result = openedm(
            "evaluate", samples, "--data=Arrays", f"--data.path={real}", "--data.key=images", f"--out={out}",
            "--num_splits=1", "--num_bootstrap=0",
        )  # fmt: skip
        assert result.status == 0, result.err
        found[name] = json.loads(out.read_text())
    assert "features of the data: read from" in result.out
    near, far = found["near"], found["far"]
    assert near["fingerprint"] == far["fingerprint"]
    assert near["extractor"]["name"] == "EfficientNetLite0"
    assert near["accuracy"] is None
    assert near["frechet_matched"] < 1.5 * near["floor"] < far["frechet_matched"]
    kernel = {name: next(m for m in r["measures"] if m["name"] == "kernel distance") for name, r in found.items()}
    assert abs(kernel["near"]["value"]) < 4 * kernel["near"]["error"]
    assert kernel["far"]["value"] > 3 * kernel["far"]["error"]


def test_a_checkpoint_is_sampled_as_openedm_sample_does(openedm, digits_run, real, classifier, tmp_path):
    array = tmp_path / "a.npz"
    assert openedm("sample", digits_run, array, "--format=npz", "--seeds=0-19", "--nfe=5").status == 0
    options = [*arguments(real, classifier), "--num_splits=2", "--metrics=[kernel]"]
    there = openedm("evaluate", array, *options)
    drawn = openedm("evaluate", digits_run, *options, "--num=20", "--nfe=5", "--batch_size=20")
    sampler, _, table = drawn.out.partition("\n")
    assert sampler.startswith("sampler: Sampler(")
    assert table == there.out
    assert "kernel distance" in table
    assert "precision" not in table
    rounded = openedm("evaluate", digits_run, *options, "--num=20", "--nfe=5", "--batch_size=20", "--precision=bf16",
                      f"--out={tmp_path / 'rounded.json'}")  # fmt: skip
    assert rounded.status == 0
    assert json.loads((tmp_path / "rounded.json").read_text())["drawn"]["precision"] == "bf16"
    assert rounded.out.partition("\n")[2] != table
    default = openedm("evaluate", digits_run, *options, "--num=20", "--batch_size=20")
    assert "num_steps" in default.out.partition("\n")[0]
    assert default.out.partition("\n")[2] != table


@pytest.mark.parametrize("command", [evaluate, likelihood])
def test_the_data_of_a_run_are_those_that_it_was_trained_on(command, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    record = {"class_path": "openedm.data.Digits", "init_args": {"split": "test"}}
    (run / "config.yaml").write_text(yaml.safe_dump({"out": "x", "data": record, "network": {"class_path": "Other"}}))
    for path in (run, run / "checkpoints" / "000000000001"):
        assert parse("openedm", command, [str(path)])["data"] == Digits("test")
    assert parse("openedm", command, [str(run), "--data.split", "all"])["data"] == Digits("all")
    assert parse("openedm", command, [str(run), "--data", "Toy"])["data"] == Toy()
    assert parse("openedm", command, [str(tmp_path)])["data"] == Digits()
    (run / "config.yaml").write_text(yaml.safe_dump({"data": {"class_path": "mine.Data"}}))
    with pytest.raises(ValueError, match=r"class_path 'mine.Data' is not known"):
        parse("openedm", command, [str(run)])


def test_options_of_sampling_are_refused_for_images_that_are_there(openedm, real, classifier, drawn):
    for option in ("--num=20", "--nfe=9", STEPS, "--weights=raw"):
        result = openedm("evaluate", drawn / "png", *arguments(real, classifier), option)
        assert result.status == 1
        assert "must not be given: the images in samples=" in result.err


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": np.arange(8) % 3 + 8}, "samples must have classes among the 10 known, 0, 1, 2, 3, 4, …, got 10"),
        ({"labels": np.arange(8) % 2, "class_names": ["cat", "dog"]}, "samples must have 10 classes, got 2"),
    ],
)
def test_classes_that_the_data_do_not_have_are_refused(openedm, real, classifier, tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", samples=np.zeros((8, 1, 8, 8), np.float32), **arrays)
    result = openedm("evaluate", tmp_path / "a.npz", *arguments(real, classifier))
    assert result.status == 1
    assert message in result.err


@pytest.mark.parametrize("names", [False, True])
def test_classes_are_matched_by_label_or_by_name(openedm, classifier, tmp_path, names):
    x, labels = Digits("all").load().fetch(range(300))
    x, labels, known = x.numpy(), labels.numpy(), [str(i) for i in range(10)]
    some = labels >= 7 if not names else labels >= 0
    given = {"labels": labels[some]}
    if names:  # the same classes in another order
        given = {"labels": 9 - labels, "class_names": known[::-1]}
    np.savez(tmp_path / "real.npz", images=x, labels=labels, **({"class_names": known} if names else {}))
    np.savez(tmp_path / "a.npz", samples=x[some], **given)
    out = tmp_path / "report.json"
    options = ["--cache=null", f"--classifier={classifier}", f"--out={out}", "--metrics=[]", "--num_bootstrap=0"]
    result = openedm("evaluate", tmp_path / "a.npz", "--data", tmp_path / "real.npz", "--data.key=images", *options)
    assert result.status == 0, result.err
    assert json.loads(out.read_text())["accuracy"] > 0.9


def test_archives_and_npy_files_of_samples_are_read_and_other_files_are_named(openedm, real, drawn, tmp_path):
    shutil.make_archive(str(tmp_path / "drawn"), "tar", drawn / "png")
    with np.load(drawn / "a.npz") as file:
        np.save(tmp_path / "drawn.npy", file["samples"])
    options = [*arguments(real, "x")[:2], "--extractor=Values", "--num_splits=1", "--num_bootstrap=0", "--metrics=[]"]
    tables = [openedm("evaluate", tmp_path / f"drawn.{end}", *options).out for end in ("tar", "npy")]
    assert "40 generated to 240 real" in tables[0]
    assert "±" not in tables[0].partition("(in brackets")[0]  # a single draw has no deviation
    assert "40 generated to 240 real" in tables[1]
    (tmp_path / "notes.txt").write_text("x")
    for name, found in (("nothing", "'nothing', which does not exist"), ("notes.txt", "notes.txt'")):
        result = openedm("evaluate", name if name == "nothing" else tmp_path / name, *options)
        assert "samples must be a checkpoint or run folder, a folder, .zip or .tar of images" in result.err
        assert result.err.rstrip().endswith(found)


@pytest.mark.parametrize(
    ("scale", "shift", "message"),
    [
        (30.0, 0.0, "of the numbers of samples are outside [-1, 1], up to 30, and were cut"),
        (0.5, 0.5, "x has values from 0 to 1, but images of float32 are taken to be in (-1, 1): write samples in"),
    ],
)
def test_samples_in_other_units_than_images_are_a_warning(openedm, real, tmp_path, scale, shift, message):
    x = data(real).load().fetch(range(20))[0].numpy()
    np.savez(tmp_path / "a.npz", samples=x * scale + shift)
    options = [*arguments(real, "x")[:2], "--extractor=Values", "--num_splits=1", "--num_bootstrap=0", "--metrics=[]"]
    with pytest.warns(UserWarning, match=re.escape(message)):
        openedm("evaluate", tmp_path / "a.npz", *options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--seed=99999999999999999999"], "seed must be between 0 and 9223372036854775807"),
        (["--held_out=Toy"], "held_out must have classes and the shape of data, (1, 8, 8), got"),
        (["--metrics=[neighbours]", "--num=4"], "the number of images on either side, for 'neighbours', must be >= 6"),
    ],
)
def test_what_does_not_fit_is_an_error_before_a_classifier_is_trained(openedm, digits_run, monkeypatch, given, message):
    monkeypatch.setattr("openedm.generation.scoring.train_classifier", None)
    result = openedm("evaluate", digits_run, *given)
    assert result.status == 1
    assert message in result.err


def test_a_cache_that_cannot_be_written_is_a_warning(openedm, real, classifier, drawn, tmp_path):
    (tmp_path / "file").write_text("x")
    options = [*arguments(real, classifier)[:-1], f"--cache={tmp_path / 'file'}", "--num_splits=1", "--metrics=[]"]
    with pytest.warns(UserWarning, match="the features of the data are not kept, cache=.*file cannot be written"):
        result = openedm("evaluate", drawn / "png", *options)
    assert result.status == 0
    assert "features of the data" not in result.out
