import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openedm.data import Dataset, InMemory, Source, wrap
from openedm.data.stored import as_float


def numbered(samples: int = 10) -> InMemory:
    """x = (i, -i), label i mod 3."""
    i = torch.arange(samples)
    return InMemory(torch.stack([i, -i], 1).double(), i % 3)


class Pairs(torch.utils.data.Dataset):
    """Someone's own dataset, written with no thought of ours."""

    classes = ("even", "odd")

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), max_size=20))
def test_fetch_returns_the_samples_asked_for_in_order_with_their_labels(indices):
    x, labels = numbered().fetch(indices)
    assert x.dtype == torch.float32
    assert x[:, 0].tolist() == indices
    assert x[:, 1].tolist() == [-i for i in indices]
    assert labels.dtype == torch.int64
    assert labels.tolist() == [i % 3 for i in indices]


def test_fetch_takes_a_tensor_of_indices_as_well():
    assert numbered().fetch(torch.tensor([7, 2]))[0][:, 0].tolist() == [7, 2]


def test_an_item_is_one_sample_and_its_label_as_a_number():
    x, label = numbered()[5]
    assert x.tolist() == [5, -5]
    assert label == 2
    assert isinstance(label, int)
    assert numbered()[-1][0].tolist() == [9, -9]


@pytest.mark.parametrize("indices", [[10], [0, 99], [-1]])
def test_fetching_beyond_the_ends_is_an_index_error_that_names_them(indices):
    with pytest.raises(IndexError, match="between 0 and 9"):
        numbered().fetch(indices)


def test_iteration_ends():
    assert len(list(numbered(4))) == 4


def test_unlabelled_data_has_no_classes_and_no_labels():
    dataset = InMemory(torch.zeros(3, 2))
    assert dataset.num_classes == 0
    assert dataset.class_names is None
    assert dataset.fetch([0, 1])[1] is None
    assert dataset[0][1] is None


def test_bytes_become_images_whose_ends_are_exactly_minus_one_and_one():
    dataset = InMemory(torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1))
    assert dataset.kind == "images"
    assert dataset.fetch([0, 1, 2])[0].flatten().tolist() == pytest.approx([-1, -0.6, 1], abs=1e-7)
    assert dataset[0][0].item() == -1
    assert dataset[2][0].item() == 1


def test_every_byte_keeps_its_own_value():
    x = as_float(torch.arange(256, dtype=torch.uint8))
    assert torch.equal(x, torch.linspace(-1, 1, 256, dtype=torch.float64).float()) or x.diff().min() > 0.0078


def test_three_axes_are_images_unless_said_otherwise():
    x = torch.zeros(2, 4, 8, 8)
    assert InMemory(x).kind == "images"
    assert InMemory(x, kind="vectors").kind == "vectors"
    assert InMemory(torch.zeros(2, 8)).kind == "vectors"


def test_the_number_of_classes_may_exceed_what_the_labels_show():
    labels = torch.tensor([0, 1])
    assert InMemory(torch.zeros(2, 1), labels).num_classes == 2
    assert InMemory(torch.zeros(2, 1), labels, num_classes=5).num_classes == 5
    named = InMemory(torch.zeros(2, 1), labels, class_names=["a", "b", "c"])
    assert (named.num_classes, named.class_names) == (3, ("a", "b", "c"))


def test_the_description_says_how_many_of_what():
    assert numbered().describe() == "10 vectors of 2 in 3 classes"
    assert InMemory(torch.zeros(4, 1, 28, 20)).describe() == "4 images of 1×28×20 without labels"


def test_a_dataset_does_not_remember_gradients():
    assert not InMemory(torch.ones(2, 2, requires_grad=True)).fetch([0])[0].requires_grad


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": torch.zeros(2, 2, dtype=torch.int64)}, TypeError, "x must be floating point, uint8, .*int64.*range="),
        ({"x": torch.zeros(3)}, ValueError, r"x must be \(samples, \*event\).*\(3,\)"),
        ({"x": torch.zeros(0, 2)}, ValueError, "at least one value"),
        ({"x": torch.tensor([[0.0], [float("nan")]])}, ValueError, r"x\[1\] has NaN"),
        ({"x": torch.tensor([[0.0, 1], [0, 1], [float("inf"), 1]])}, ValueError, r"x\[2\] has NaN or infinity"),
        ({"x": torch.zeros(2, 2, dtype=torch.uint8)}, ValueError, "images must have shape"),
        ({"x": torch.zeros(2, 1, 2, 2, dtype=torch.uint8), "kind": "vectors"}, ValueError, "images must have shape"),
        ({"x": torch.zeros(2, 2), "kind": "images"}, ValueError, "images must have shape"),
        (
            {"x": torch.zeros(2, 2), "num_classes": 3},
            ValueError,
            "num_classes and class_names must be None for data without labels",
        ),
        ({"x": torch.zeros(2, 2), "labels": torch.tensor([0, -1])}, ValueError, "labels must be >= 0, got -1"),
        ({"x": torch.zeros(2, 2), "labels": torch.tensor([0, 4]), "num_classes": 4}, ValueError, "largest label 4"),
        (
            {"x": torch.zeros(2, 2), "labels": torch.tensor([0, 1]), "class_names": ["a", "b"], "num_classes": 3},
            ValueError,
            "class_names must have 3 names",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(arguments, error, message):
    with pytest.raises(error, match=message):
        InMemory(**arguments)


def test_a_dataset_can_be_pickled():
    for dataset in (numbered(), wrap(Pairs([(torch.zeros(2), 1)]))):
        copy = pickle.loads(pickle.dumps(dataset))
        assert copy.describe() == dataset.describe()
        assert torch.equal(copy.fetch([0])[0], dataset.fetch([0])[0])


def test_a_torch_data_loader_reads_it():
    loader = torch.utils.data.DataLoader(numbered(), batch_size=4)
    x, labels = next(iter(loader))
    assert x[:, 0].tolist() == [0, 1, 2, 3]
    assert labels.tolist() == [0, 1, 2, 0]


def test_ones_own_dataset_is_wrapped_with_the_classes_it_names():
    wrapped = wrap(Pairs([(torch.tensor([1.0, 2.0]), 1), (np.array([3.0, 4.0]), np.int64(0))]))
    assert isinstance(wrapped, Dataset)
    assert (wrapped.num_classes, wrapped.class_names, wrapped.kind) == (2, ("even", "odd"), "vectors")
    x, labels = wrapped.fetch([1, 0])
    assert x.tolist() == [[3, 4], [1, 2]]
    assert x.dtype == torch.float32
    assert labels.tolist() == [0, 1]


def test_wrapping_takes_samples_without_labels_bare_or_in_a_tuple():
    for item in (torch.ones(1, 2, 2), (torch.ones(1, 2, 2),)):
        wrapped = wrap(Pairs([item]))
        assert (wrapped.num_classes, wrapped.kind, wrapped.event_shape) == (0, "images", (1, 2, 2))
        assert wrapped.fetch([0])[1] is None


def test_wrapped_bytes_are_scaled():
    assert wrap(Pairs([torch.full((1, 2, 2), 255, dtype=torch.uint8)]))[0][0].unique().tolist() == [1]


def test_fetching_nothing_from_a_wrapped_dataset_gives_nothing_of_the_right_shape():
    assert wrap(Pairs([torch.ones(3)])).fetch([])[0].shape == (0, 3)


@pytest.mark.parametrize(
    ("items", "error", "message"),
    [
        ([(torch.zeros(2), 0), (torch.zeros(3), 0)], ValueError, r"dataset\[1\] has shape \(3,\), but dataset\[0\]"),
        ([(torch.zeros(2), 0), (torch.zeros(2), 2)], ValueError, r"dataset\[1\] has label 2, but num_classes is 2"),
        ([(torch.zeros(2), 0), torch.zeros(2)], ValueError, r"dataset\[1\] has label None"),
        ([torch.zeros(2), (torch.zeros(2), 0)], ValueError, r"dataset\[1\] has label 0, but num_classes is 0"),
        ([(torch.zeros(2), 0), (torch.tensor([0, float("nan")]), 0)], ValueError, r"dataset\[1\].*not finite"),
        ([(torch.zeros(2), 0), ("no", 0)], TypeError, r"dataset\[1\] must be .* got str"),
        ([], ValueError, "no samples"),
    ],
)
def test_a_wrapped_sample_that_does_not_fit_is_named_by_its_index(items, error, message):
    with pytest.raises(error, match=message):
        wrap(Pairs(items)).fetch([0, 1])


def test_labels_without_a_number_of_classes_are_asked_for():
    pairs = torch.utils.data.TensorDataset(torch.zeros(5, 2), torch.arange(5))
    with pytest.raises(ValueError, match="num_classes must be given"):
        wrap(pairs)
    assert wrap(pairs, num_classes=5)[4][1] == 4


def test_floats_that_a_wrapped_dataset_has_for_labels_are_refused_with_what_takes_them():
    pairs = torch.utils.data.TensorDataset(torch.zeros(5, 2), torch.zeros(5, 3))
    with pytest.raises(TypeError, match=r"dataset\[0\] must have an integer as its label, got Tensor: .*Pairs"):
        wrap(pairs)


def test_a_source_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Source()


def test_numbers_outside_the_range_of_images_are_no_images_unless_it_is_said():
    fields = torch.full((2, 1, 4, 4), 75.0)
    assert InMemory(fields).kind == "vectors"
    assert InMemory(fields / 75).kind == "images"
    with pytest.raises(ValueError, match=r"images must be in \[-1, 1\], but x reaches 75: give .*range="):
        InMemory(fields, kind="images")
