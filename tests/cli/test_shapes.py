"""Series, fields and volumes through every command: trained, drawn, scored, and their densities."""

import json

import numpy as np
import PIL.Image
import pytest

SHAPES = {"series": (2, 16), "field": (2, 6, 4), "volume": (1, 4, 4, 4)}
NETWORKS = {
    "series": ["--network=DDPMpp", "--network.model_channels=8", "--network.channel_mult=[1,1]"],
    "field": ["--network=NCSNpp", "--network.model_channels=8", "--network.channel_mult=[1]"],
    "volume": ["--network=DiT", "--network.width=16", "--network.num_heads=2"],
}
QUICK = [
    *("--network.num_blocks=1", "--tracker=none", "--options.batch_size=16", "--options.rampup=0"),
    *("--options.images=64", "--options.validate_every=64", "--options.snapshot_every=64"),
]


@pytest.fixture(scope="module", params=SHAPES)
def trained(request, openedm, tmp_path_factory):
    """The name of the shape, its data as a file, the folder of a run of four steps, and what training printed."""
    folder, name = tmp_path_factory.mktemp("shapes"), request.param
    x = 3 * np.random.default_rng(0).normal(size=(64, *SHAPES[name])).astype(np.float32)
    np.save(folder / "data.npy", x)
    data = ["--data=Arrays", f"--data.path={folder / 'data.npy'}"]
    result = openedm("train", folder / "run", *data, *NETWORKS[name], *QUICK)
    assert result.status == 0, result.err
    return name, data, folder / "run", result.out


def test_training_names_the_kind_of_data_and_draws_its_samples(trained):
    name, _, run, out = trained
    kinds = {"series": "series", "field": "fields", "volume": "volumes"}
    assert f"64 {kinds[name]} of {'×'.join(map(str, SHAPES[name]))} without labels" in out
    (array,) = (run / "figures").glob("samples-*.npy")
    assert np.load(array).shape == (64, *SHAPES[name])
    with PIL.Image.open(array.with_suffix(".png")) as picture:
        assert picture.size[0] > 100


def test_samples_go_into_a_file_of_arrays_by_its_name_alone(trained, openedm, tmp_path):
    name, _, run, _ = trained
    assert openedm("sample", run, tmp_path / "drawn.npz", "--seeds=0-4", "--nfe=6").status == 0
    assert np.load(tmp_path / "drawn.npz")["samples"].shape == (5, *SHAPES[name])


@pytest.mark.parametrize("given", [["pictures"], ["grid.png"], ["drawn.npz", "--trajectory=path.png"]])
def test_pictures_of_what_is_not_images_are_refused_with_the_file_to_write(given, trained, openedm, tmp_path):
    name, _, run, _ = trained
    result = openedm("sample", run, tmp_path / given[0], *given[1:])
    assert result.status == 1
    assert f"samples of shape {SHAPES[name]} are not images; draw them into a file of arrays" in result.err
    assert list(tmp_path.iterdir()) == []


def test_they_are_scored_by_their_numbers_without_an_inception_score(trained, openedm, tmp_path):
    _, data, run, _ = trained
    quick = ["--nfe=6", "--num_splits=2", "--num_bootstrap=0", "--cache=null"]
    result = openedm("evaluate", run, *data, "--num=24", *quick, "--out", tmp_path / "report.json")
    assert result.status == 0, result.err
    assert "Inception" not in result.out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["extractor"]["name"] == "values"
    refused = openedm("evaluate", run, *data, "--num=24", *quick, "--metrics=[inception]")
    assert refused.status == 1
    assert "metrics must not have 'inception'" in refused.err


def test_they_have_densities_and_levels_are_suggested_for_them(trained, openedm):
    _, data, run, _ = trained
    result = openedm("likelihood", run, *data, "--num=2")
    assert result.status == 0, result.err
    assert openedm("suggest", *data).status == 0


def test_augmentation_of_images_is_refused_for_series_and_volumes(trained, openedm, tmp_path):
    name, data, *_ = trained
    if name != "field":
        augmented = ["--options.augmentation.p=0.1"]
        result = openedm("train", tmp_path / "run", *data, *NETWORKS[name], *QUICK, *augmented)
        assert result.status == 1
        assert "augmentation must be None for samples of shape" in result.err
