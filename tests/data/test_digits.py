import pytest
import torch

from openedm.data import Digits, Source
from openedm.ground.choices import from_config, to_config


def refused(source, **values):
    """Runs a source's own checks on `values`, past the type checker that is active in tests."""
    made = object.__new__(source)
    made.__dict__.update(values)
    made.__post_init__()


def test_train_and_test_are_disjoint_and_together_everything():
    train, test, everything = (Digits(split).load() for split in ("train", "test", "all"))
    assert (len(train), len(test), len(everything)) == (1437, 360, 1797)

    def rows(dataset):
        x, labels = dataset.fetch(range(len(dataset)))
        return sorted(map(tuple, torch.cat([x.flatten(1), labels[:, None]], 1).tolist()))

    assert sorted(rows(train) + rows(test)) == rows(everything)
    assert not set(rows(train)) & set(rows(test))


def test_each_class_is_split_in_proportion():
    counts = [Digits(split).load().fetch(range(n))[1].bincount() for split, n in (("test", 360), ("all", 1797))]
    assert ((counts[0] - counts[1] / 5).abs() < 1).all()


def test_pixels_are_scaled_to_exactly_the_ends():
    x = Digits("all").load().fetch(range(1797))[0]
    assert (x.min(), x.max()) == (-1, 1)
    assert torch.equal((x + 1) * 8, ((x + 1) * 8).round())


def test_digits_are_labelled_images():
    dataset = Digits().load()
    assert (dataset.event_shape, dataset.kind, dataset.num_classes) == ((1, 8, 8), "images", 10)
    assert dataset.class_names == tuple("0123456789")


def test_a_zero_has_a_hole_and_a_one_has_none():
    x, labels = Digits("all").load().fetch(range(1797))
    middle = x[:, 0, 3:5, 3:5].mean((1, 2))
    assert middle[labels == 0].mean() < -0.5
    assert middle[labels == 1].mean() > 0.5


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split must be one of 'train', 'test', 'all', got 'validation'"):
        refused(Digits, split="validation")


def test_the_source_survives_its_plain_form():
    assert from_config(Source, to_config(Digits("test"))) == Digits("test")
    assert from_config(Source, {"class_path": "Digits"}) == Digits()
