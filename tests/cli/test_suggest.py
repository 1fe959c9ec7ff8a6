import json
import shlex

import numpy as np
import pytest
import torch
import yaml

from openedm.cli.parsing import merge, parse
from openedm.cli.sample import sample
from openedm.cli.suggest import suggest as command
from openedm.cli.train import train
from openedm.data import Arrays, Digits, ImageFolder, Toy, save_image
from openedm.sampling import Sampler
from openedm.suggest import in_standard_units, suggest

NUMBERS = ("sigma_data", "sigma_min", "sigma_max", "p_mean", "p_std")
TOY = ["Toy", "--data.name=rings", "--data.num_samples=400", "--levels=10"]


@pytest.fixture(scope="module")
def rings(openedm, tmp_path_factory):
    """One run on a toy density that writes everything, and its folder."""
    folder = tmp_path_factory.mktemp("suggest")
    return openedm("suggest", *TOY, "--json", folder / "new" / "a.json", "--figure", folder / "a.png"), folder


def table(printed):
    """The numbers and their reasons, continued lines joined."""
    lines = printed.partition("\n\n")[2].partition("\n\n")[0].replace("\n" + " " * 21, " ").splitlines()
    return {
        line.split()[0]: (line.split()[1], line.split(maxsplit=2)[2]) for line in lines if line.split()[0] in NUMBERS
    }


def fragment(printed):
    return printed.partition("or --config a file with:\n\n")[2].partition("\n\nand sample")[0]


def test_it_prints_the_numbers_of_the_library_with_their_reasons(rings):
    result, _ = rings
    assert (result.status, result.err) == (0, "")
    found = suggest(in_standard_units(Toy("rings", num_samples=400).load()), levels=10)
    assert list(table(result.out)) == list(NUMBERS)
    for name, (number, reason) in table(result.out).items():
        assert float(number) == pytest.approx(getattr(found, name), rel=0.006, abs=0.006 if name[0] == "p" else 0)
        assert " ".join(reason.split()) == found.reasons()[name]
    assert result.out.startswith("data: 400 vectors of 2 in 3 classes, 400 of them used; in the units of training")


def test_it_writes_the_evidence_and_the_figure(rings):
    result, folder = rings
    written = json.loads((folder / "new" / "a.json").read_text(encoding="utf-8"))
    found = suggest(in_standard_units(Toy("rings", num_samples=400).load()), levels=10)
    assert written == {"data": "400 vectors of 2 in 3 classes", **json.loads(json.dumps(found.to_dict()))}
    assert (folder / "a.png").read_bytes().startswith(b"\x89PNG")
    assert f"wrote {folder / 'new' / 'a.json'}\n" in result.out
    assert result.out.endswith(f"wrote {folder / 'a.png'}\n")


def test_what_it_prints_can_be_pasted_into_train(rings, tmp_path):
    result, _ = rings
    (typed,) = (line for line in result.out.splitlines() if line.startswith("  openedm train RUN"))
    (tmp_path / "a.yaml").write_text(fragment(result.out))
    as_options = parse("openedm train", train, shlex.split(typed)[2:])
    as_file = parse("openedm train", train, ["RUN", f"--config={tmp_path / 'a.yaml'}"])
    assert as_options == as_file
    assert as_file["data"] == Toy("rings", num_samples=400)
    found = suggest(in_standard_units(as_file["data"].load()), levels=10)
    noise, levels = as_file["objective"].noise, as_file["sampler"].levels
    assert (noise.p_mean, noise.p_std) == pytest.approx((found.p_mean, found.p_std), abs=0.005)
    assert (levels.sigma_min, levels.sigma_max) == pytest.approx((found.sigma_min, found.sigma_max), rel=0.005)
    assert (levels.num_steps, levels.rho) == (Sampler().levels.num_steps, Sampler().levels.rho)


def test_what_it_prints_can_be_pasted_into_sample(rings):
    result, _ = rings
    (typed,) = (line for line in result.out.splitlines() if line.startswith("  openedm sample RUN SAMPLES"))
    values = parse("openedm sample", sample, shlex.split(typed)[2:])
    found = suggest(in_standard_units(Toy("rings", num_samples=400).load()), levels=10)
    assert (values["options"].sigma_min, values["options"].sigma_max) == pytest.approx(
        (found.sigma_min, found.sigma_max), rel=0.005
    )


def test_a_file_with_it_trains(openedm, rings, tmp_path):
    (tmp_path / "a.yaml").write_text(fragment(rings[0].out))
    small = ["--network=MLP", "--network.width=8", "--network.num_blocks=1", "--options.images=128"]
    assert openedm("train", tmp_path / "run", f"--config={tmp_path / 'a.yaml'}", *small, "--tracker=none").status == 0
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    printed = yaml.safe_load(fragment(rings[0].out))
    noise = printed["objective"]["init_args"]["noise"]
    assert kept["objective"]["init_args"]["noise"] == noise


@pytest.mark.parametrize(
    ("typed", "data"),
    [
        (["Toy", "--seed", "1"], Toy()),
        (["openedm.data.Toy"], Toy()),
        (["--data=Toy"], Toy()),
        (["a b.npy"], Arrays("a b.npy")),
        (["x/y.npz", "--data.key=z"], Arrays("x/y.npz", key="z")),
        (["x.zip"], ImageFolder("x.zip")),
        (["--data", "some/where"], ImageFolder("some/where")),
        ([], Digits()),
    ],
)
def test_data_are_given_first_or_as_an_option_by_class_or_path(typed, data):
    assert parse("openedm suggest", command, typed)["data"] == data


def test_a_first_argument_that_is_no_source_is_left_to_the_parser():
    assert merge(command, ["Digts"])[1] == ["--data=Digts"]


def test_arrays_and_folders_and_archives_are_data_too(openedm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    np.save("a.npy", (x * torch.tensor([1.0, 2.0, 9.0])).numpy())
    (tmp_path / "pictures").mkdir()
    for i, image in enumerate(Digits().load().fetch(range(80))[0]):
        save_image(image, tmp_path / "pictures" / f"{i:02}.png")
    array = openedm("suggest", "a.npy", "--levels=8")
    assert array.status == 0
    assert "100 vectors of 3 without labels" in array.out
    assert "in the units of training, where each channel has mean 0 and std 0.5" in array.out
    assert yaml.safe_load(fragment(array.out))["data"]["class_path"] == "openedm.data.Arrays"
    folder = openedm("suggest", "pictures", "--levels=8")
    assert folder.status == 0
    assert "80 images of 1×8×8 without labels" in folder.out
    assert parse("openedm train", train, ["RUN", "--data=a.npy"])["data"] == Arrays("a.npy")
    assert parse("openedm train", train, ["RUN", "--data=pictures"])["data"] == ImageFolder("pictures")


def test_files_are_never_overwritten_and_nothing_is_done_first(openedm, tmp_path):
    (tmp_path / "a.json").write_text("kept")
    for option in ("json", "figure"):
        result = openedm("suggest", "nowhere.npy", f"--{option}={tmp_path / 'a.json'}")
        assert result.status == 1
        assert result.err == (
            f"openedm suggest: error: {option}={tmp_path / 'a.json'} exists already: a file is never overwritten, "
            "choose another name\n"
        )
    assert (tmp_path / "a.json").read_text() == "kept"


@pytest.mark.parametrize(
    ("typed", "status", "message"),
    [
        (["nowhere.npy"], 1, "nowhere.npy"),
        (["no/where"], 1, "no/where"),
        (["Digts"], 2, "known: Arrays, Digits, FashionMNIST, ImageFolder, Latents, Shards, Table, Toy"),
        (["Digits", "Toy"], 2, "Toy"),
        (["Digits", "--figure=a.txt"], 1, "the suffix of figure must be one of"),
        (["Digits", "--terminal_nats=2"], 1, "terminal_nats must be in (0, 1], got 2.0"),
        (["Toy", "--data.num_samples=20"], 1, "the number of samples in data must be >= 64, got 20"),
    ],
)
def test_what_makes_no_sense_ends_with_a_message_and_nothing_written(
    typed, status, message, openedm, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    result = openedm("suggest", *typed)
    assert result.status == status
    assert message in result.err
    assert list(tmp_path.iterdir()) == []
