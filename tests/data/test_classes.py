"""Integers and one-hot rows become classes 0 … k − 1, by one rule for every source."""

import json

import numpy as np
import pytest
import torch

from openedm.data import Arrays, Form, InMemory, Pairs, Toy, align_classes, convert, encoded_images
from openedm.data.classes import number_classes, read_labels
from openedm.data.encoded import MemoryImages
from openedm.data.folder import ImageFolder
from openedm.networks import MLP
from openedm.training import Model, Options, Trainer
from picture_files import encode, pixels

X = torch.arange(8.0).reshape(4, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool])
def test_one_hot_rows_are_classes(dtype):
    rows = torch.eye(5)[[3, 0, 3, 1]].to(dtype)
    data = InMemory(X, rows)
    assert (data.num_classes, data.class_names, data.renumbered) == (5, None, None)
    assert data.fetch(range(4))[1].tolist() == [3, 0, 3, 1]
    packed = Pairs(X, X + 1, rows).fetch([2])[1]
    assert packed.tolist() == [[3, 5, 6]]


def test_one_hot_rows_in_a_file_are_classes(tmp_path):
    np.savez(tmp_path / "x.npz", x=X.numpy(), labels=np.eye(3)[[2, 0, 0, 1]])
    assert Arrays(str(tmp_path / "x.npz")).load().fetch(range(4))[1].tolist() == [2, 0, 0, 1]


@pytest.mark.parametrize("row", [[0.5, 0.5, 0], [1, 1, 0], [0, 0, 0], [0, 2, 0], [0, float("nan"), 1]])
def test_other_rows_are_refused_by_number_with_what_they_are(row):
    rows = torch.eye(3)[[0, 1, 2, 0]]
    rows[2] = torch.tensor(row)
    with pytest.raises(ValueError, match=r"labels\[2\] is .*: other vectors are conditions, Pairs\(x, condition\)"):
        InMemory(X, rows)


@pytest.mark.parametrize("labels", [torch.tensor([0.0, 1, 2, 1]), torch.tensor([0.5, 1, 2, 1])])
def test_floats_that_are_no_rows_are_refused_with_what_they_are(labels):
    with pytest.raises(TypeError, match=r"labels must be integers or one-hot rows, got torch.float32 .*Pairs"):
        InMemory(X, labels)


def test_a_column_of_integers_is_labels():
    assert read_labels(torch.tensor([[2], [0], [1]]), 3)[0].tolist() == [2, 0, 1]


@pytest.mark.parametrize(("labels", "names"), [([1, 2, 3, 1], "123"), ([0, 9, 2, 2], "029"), ([7, 7, 7, 7], "7")])
def test_labels_that_skip_numbers_are_renumbered_with_a_word(labels, names):
    data = InMemory(X, torch.tensor(labels))
    assert data.class_names == tuple(names)
    assert [data.class_names[i] for i in data.fetch(range(4))[1]] == [str(label) for label in labels]
    assert f"(labels {min(labels)} … {max(labels)}, renumbered 0 … {len(names) - 1})" in data.describe()


def test_labels_are_classes_where_the_number_or_the_names_are_given():
    labels = torch.tensor([1, 3, 1, 3])
    for known in ({"num_classes": 4}, {"class_names": "abcd"}):
        data = InMemory(X, labels, **known)
        assert (data.num_classes, data.renumbered) == (4, None)
        assert data.fetch(range(4))[1].tolist() == [1, 3, 1, 3]
    with pytest.raises(ValueError, match="num_classes must be > the largest label 3, got 3"):
        InMemory(X, labels, num_classes=3)


def test_encoded_images_are_numbered_by_the_same_rule(tmp_path):
    content = {f"{i}.png": encode(pixels(i, (4, 4))) for i in range(3)}
    assert MemoryImages(content, [4, 1, 4]).class_numbers == number_classes(torch.tensor([4, 1, 4]))
    for name, image in content.items():
        (tmp_path / name).write_bytes(image)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"0.png": 4, "1.png": 1, "2.png": 4}}))
    folder = ImageFolder(str(tmp_path)).load()
    assert (folder.class_names, folder.fetch([0, 1, 2])[1].tolist()) == (("1", "4"), [1, 0, 1])
    assert "2 classes (labels 1 … 4, renumbered 0 … 1)" in folder.describe()
    manifest = convert(encoded_images(str(tmp_path)), tmp_path / "shards", Form(crop="none"))
    assert (manifest["num_classes"], manifest["class_names"]) == (2, ["1", "4"])


class TestAlignment:
    """Classes of one source under the numbers of another."""

    def test_data_without_one_of_the_classes_keep_the_numbers_of_the_others(self):
        training = InMemory(X, torch.tensor([0, 1, 2, 3]))
        less = InMemory(X[:3], torch.tensor([3, 0, 2]))
        aligned = align_classes(less, training.num_classes, training.class_names)
        assert aligned.fetch(range(3))[1].tolist() == [3, 0, 2]
        assert (aligned.num_classes, aligned.class_names) == (4, None)

    def test_names_are_matched_in_any_order_beside_conditions(self):
        data = Pairs(X, X + 1, torch.tensor([0, 1, 1, 0]), class_names=["dog", "cat"])
        aligned = align_classes(data, 3, ["bird", "cat", "dog"])
        assert aligned.fetch([0, 1])[1].tolist() == [[2, 1, 2], [1, 3, 4]]
        assert aligned.condition_shape == (2,)

    def test_labels_of_a_model_that_was_not_renumbered_are_its_classes(self):
        assert align_classes(InMemory(X, torch.tensor([1, 2, 3, 3])), 4).fetch(range(4))[1].tolist() == [1, 2, 3, 3]

    def test_labels_are_found_among_those_that_were_renumbered(self):
        plain = InMemory(X, torch.tensor([0, 1, 1, 0]))
        assert align_classes(plain, 3, ["0", "1", "5"]).fetch(range(4))[1].tolist() == [0, 1, 1, 0]

    def test_a_class_that_is_not_known_is_named(self):
        with pytest.raises(ValueError, match=r"data must have classes among the 2 known, a, b, got c"):
            align_classes(InMemory(X, torch.tensor([0, 1, 2, 0]), class_names="abc"), 2, ["a", "b"])
        with pytest.raises(ValueError, match=r"validation must have classes among the 2 known, 0, 1, got 7"):
            align_classes(InMemory(X, torch.tensor([0, 7, 0, 0])), 2, name="validation")
        with pytest.raises(ValueError, match="data must have 3 classes, got 2"):
            align_classes(InMemory(X, torch.tensor([0, 1, 0, 0])), 3, ["a", "b", "c"])

    def test_numbers_of_classes_that_no_memory_holds_are_refused(self, tmp_path):
        data = InMemory(X, torch.tensor([0, 10**12, 0, 0]))
        assert data.num_classes == 2
        with pytest.raises(ValueError, match="the number of classes must be at most 1,048,576, got 1000000000001"):
            align_classes(data, 10**12 + 1)
        arrays = {"samples": X.numpy(), "seeds": np.arange(4)}
        np.savez(tmp_path / "a.npz", labels=np.array([0, 1, 2, 10**12]), **arrays)
        with pytest.raises(ValueError, match=r"a\.npz: the largest of labels.* at most 1,048,576, got 1000000000000"):
            Arrays(str(tmp_path / "a.npz"), key="samples").load()
        np.savez(tmp_path / "b.npz", labels=np.array([0, 1, 2, 2**63], dtype=np.uint64), **arrays)
        with pytest.raises(ValueError, match=r"labels must be between 0 and .*, got 9223372036854775808"):
            Arrays(str(tmp_path / "b.npz"), key="samples").load()
        np.savez(tmp_path / "c.npz", labels=np.full(4, np.nan), **arrays)
        with pytest.raises(ValueError, match="labels must be integers or one-hot rows, got torch"):
            Arrays(str(tmp_path / "c.npz"), key="samples").load()

    def test_training_matches_the_classes_of_validation_data(self):
        data, held = InMemory(X, torch.tensor([5, 1, 2, 2])), InMemory(X, torch.tensor([5, 2, 2, 5]))
        options = Options(images=4, batch_size=4, validate_every=4, snapshot_every=0)
        trainer = Trainer(Model.for_data(data, MLP(8, 1)), data, options=options, validation=held)
        assert trainer.validation.fetch(range(4))[1].tolist() == [2, 1, 1, 2]
        trainer.fit()

    def test_data_that_have_the_classes_are_returned_as_they_are(self):
        data = Toy("two_moons", num_samples=8).load()
        assert align_classes(data, data.num_classes, data.class_names) is data
        assert align_classes(data, 0) is data
