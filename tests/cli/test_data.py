import json

import pytest

from openedm.data import Shards
from picture_files import encode, pixels


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(["ant/0.png", "ant/1.png", "bee/2.png"]):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(encode(pixels(i, (20, 16))))
    return tmp_path / "set"


def test_a_folder_becomes_shards_that_can_be_trained_on(openedm, folder, tmp_path):
    done = openedm("data", "convert", folder, tmp_path / "out", "--size", "8", "--per_shard", "2")
    assert done.status == 0
    assert "3 images of 3×8×8 in 2 classes in 2 shards" in done.out
    assert Shards(str(tmp_path / "out")).load().class_names == ("ant", "bee")
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["source"] == str(folder)


def test_a_damaged_picture_is_named_and_dropped_on_request(openedm, folder, tmp_path):
    (folder / "bee" / "2.png").write_bytes(b"text")
    refused = openedm("data", "convert", folder, tmp_path / "out", "--size", "8")
    assert refused.status == 1
    assert "bee/2.png cannot be decoded" in refused.err
    again = openedm("data", "convert", folder, tmp_path / "out", "--size", "8")
    assert "resume it (--resume true)" in again.err
    dropped = openedm("data", "convert", folder, tmp_path / "other", "--size", "8", "--damaged", "drop")
    assert dropped.status == 0
    assert "2 images of 3×8×8" in dropped.out
    assert "dropped " in dropped.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "8", "--crop", "wide"], "height must be given with crop='wide'"),
        ([], "size must be given with crop='centre'"),
        (["--size", "8", "--labels", "json"], "labels='json' requires a dataset.json"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_before_anything_is_written(
    openedm, folder, tmp_path, arguments, message
):
    refused = openedm("data", "convert", folder, tmp_path / "out", *arguments)
    assert refused.status == 1
    assert message in refused.err
    assert not (tmp_path / "out").exists()


def test_the_classes_of_tar_shards_are_left_out_on_request(openedm, folder, tmp_path):
    assert openedm("data", "convert", folder, tmp_path / "shards", "--size", "8").status == 0
    done = openedm("data", "convert", tmp_path / "shards", tmp_path / "plain", "--size", "8", "--labels", "none")
    assert done.status == 0, done.err
    assert Shards(str(tmp_path / "plain")).load().num_classes == 0
    refused = openedm("data", "convert", tmp_path / "shards", tmp_path / "out", "--size", "8", "--labels", "folders")
    assert refused.status == 1
    assert "labels must be 'auto' or 'none' with a folder of .tar files, got 'folders'" in refused.err
