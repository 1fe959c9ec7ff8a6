import gzip
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from openedm.data import FashionMNIST, measure
from openedm.data import standard as module
from openedm.data.standard import DEBIAN_PATH, read_idx

IMAGES = (np.arange(5 * 4 * 3) * 7 % 256).astype(np.uint8).reshape(5, 4, 3)
LABELS = np.array([3, 1, 4, 1, 9], dtype=np.uint8)


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write(folder: Path, name: str, content: bytes, packed: bool) -> Path:
    path = folder / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(content) if packed else content)
    return path


@pytest.fixture(params=[True, False], ids=["gzipped", "plain"])
def folder(request, tmp_path):
    write(tmp_path, "train-images-idx3-ubyte", idx(IMAGES), request.param)
    write(tmp_path, "train-labels-idx1-ubyte", idx(LABELS), not request.param)
    write(tmp_path, "t10k-images-idx3-ubyte", idx(IMAGES[:2]), request.param)
    write(tmp_path, "t10k-labels-idx1-ubyte", idx(LABELS[:2]), request.param)
    return tmp_path


def test_idx_files_are_read_gzipped_or_not(folder):
    dataset = FashionMNIST(str(folder)).load()
    x, labels = dataset.fetch(range(5))
    assert torch.equal(x, torch.from_numpy(IMAGES).unsqueeze(1) / 127.5 - 1)
    assert labels.tolist() == LABELS.tolist()
    assert dataset.describe() == "5 images of 1×4×3 in 10 classes"
    assert dataset.class_names[9] == "ankle boot"


def test_the_test_split_is_the_other_pair_of_files(folder):
    assert len(FashionMNIST(str(folder), "test").load()) == 2


def test_without_a_path_the_debian_packages_folder_is_read(folder, monkeypatch):
    monkeypatch.setattr(module, "DEBIAN_PATH", str(folder))
    assert len(FashionMNIST().load()) == 5


def test_else_the_datasets_library_is_asked(tmp_path, monkeypatch):
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return {"image": list(IMAGES), "label": LABELS.tolist()}

    monkeypatch.setattr(module, "DEBIAN_PATH", str(tmp_path / "absent"))
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    x, labels = FashionMNIST(split="test").load().fetch(range(5))
    assert asked == [(module.HUB_NAME, "test")]
    assert torch.equal(x, torch.from_numpy(IMAGES).unsqueeze(1) / 127.5 - 1)
    assert labels.tolist() == LABELS.tolist()


def test_when_all_fails_the_error_explains_the_three_ways(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "DEBIAN_PATH", str(tmp_path / "absent"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"path=.*dataset-fashion-mnist.*absent.*openedm\[images\].*failed: "):
        FashionMNIST().load()


def test_a_folder_without_the_files_is_named_and_nothing_else_is_tried(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    for name in ("train-labels-idx1-ubyte", "train-labels-idx1-ubyte.gz"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(ValueError, match=f"with train-labels-idx1-ubyte or .*{folder.name}"):
        FashionMNIST(str(folder)).load()
    with pytest.raises(ValueError, match=r"with train-images-idx3-ubyte or .*nowhere"):
        FashionMNIST("nowhere").load()


@pytest.mark.parametrize(
    ("content", "packed", "message"),
    [
        (idx(IMAGES)[:-1], False, r"must have \(5, 4, 3\) = 60 bytes, but has 59"),
        (idx(IMAGES) + b"\0", False, "must .* but has 61"),
        (idx(LABELS), False, "must be an IDX file of bytes with 3 axes"),
        (idx(IMAGES)[:9], False, "must be an IDX file"),
        (b"", False, "must be an IDX file"),
        (b"<html>", True, "must be an IDX file"),
    ],
    ids=["short", "long", "labels", "header only", "empty", "no IDX"],
)
def test_a_broken_file_is_named(tmp_path, content, packed, message):
    path = write(tmp_path, "some", content, packed)
    with pytest.raises(ValueError, match=f"{path.name} {message}"):
        read_idx(path, 3)


@pytest.mark.parametrize(
    "content",
    [b"no gzip at all", gzip.compress(idx(IMAGES))[:-9], b"\x1f\x8b\x08" + b"\xff" * 40],
    ids=["no gzip", "cut short", "no stream"],
)
def test_a_broken_archive_is_named(tmp_path, content):
    path = tmp_path / "some.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"some.gz cannot be read"):
        read_idx(path, 3)


@pytest.mark.parametrize("labels", [LABELS[:4], LABELS + 1])
def test_labels_that_do_not_fit_are_refused(tmp_path, labels):
    write(tmp_path, "train-images-idx3-ubyte", idx(IMAGES), True)
    write(tmp_path, "train-labels-idx1-ubyte", idx(labels), True)
    with pytest.raises(
        ValueError,
        match=r"train-images-idx3-ubyte.gz must have as many labels .* as images, got 5 images and \d labels",
    ):
        FashionMNIST(str(tmp_path)).load()


@pytest.mark.skipif(not Path(DEBIAN_PATH).is_dir(), reason="the Debian package dataset-fashion-mnist is not installed")
@pytest.mark.parametrize(("split", "samples"), [("train", 60_000), ("test", 10_000)])
def test_the_real_files_have_the_known_size_balance_mean_and_deviation(split, samples):
    dataset = FashionMNIST(split=split).load()
    assert dataset.describe() == f"{samples} images of 1×28×28 in 10 classes"
    assert dataset.fetch(range(samples))[1].bincount().tolist() == [samples // 10] * 10
    found = measure(dataset, max_samples=samples)
    assert found.mean == pytest.approx(-0.43, abs=0.005)
    assert found.std == pytest.approx(0.706, abs=0.002)
    assert measure(dataset).std == pytest.approx(found.std, rel=0.01)
