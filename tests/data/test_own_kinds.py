"""Data of one's own that would be taken for something else without a word."""

import json
import math
import warnings

import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch

from openedm.data import Arrays, ImageFolder, InMemory, Pairs, as_dataset, measure, wrap
from openedm.generation import ScoringOptions, open_images, score
from openedm.metrics import ValueFeatures, evaluate
from openedm.networks import MLP, DDPMpp
from openedm.training import Model, Options, Trainer

RNG = np.random.default_rng(0)
NETWORK = DDPMpp(model_channels=8, channel_mult=(1,), num_blocks=1)


def kelvin(*shape: int) -> np.ndarray:
    return (280 + 10 * RNG.standard_normal(shape)).astype("f4")


def folder_of(path, names, shape=(4, 6, 3)):
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8)).save(path / name)
    return str(path)


@pytest.mark.parametrize("size", [1e-3, 1e-12])
def test_fields_of_small_numbers_are_no_images(size):
    x = size * RNG.standard_normal((20, 1, 8, 8))
    for given in (x, np.abs(x)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for dataset in (InMemory(given), wrap(torch.utils.data.TensorDataset(torch.from_numpy(given)))):
                assert (dataset.kind, dataset.describe()) == ("vectors", "20 fields of 1×8×8 without labels")
    model = Model.for_data(InMemory(x), NETWORK)
    assert model.sigma_data == 0.5
    assert model.units.scale[0] == pytest.approx(2 * x.std(), rel=1e-4)
    assert InMemory(x, range=(-1, 1)).kind == InMemory(x, kind="images").kind == "images"


def test_a_torch_dataset_of_numbers_beyond_1_is_not_taken_as_images():
    x = torch.from_numpy(kelvin(12, 1, 8, 8))
    dataset = wrap(torch.utils.data.TensorDataset(x))
    assert dataset.kind == InMemory(x).kind == "vectors"
    assert Model.for_data(dataset, NETWORK).units == Model.for_data(InMemory(x), NETWORK).units
    assert wrap(torch.utils.data.TensorDataset((x - 280) / 60)).kind == "images"


@pytest.mark.parametrize("shape", [(24, 36, 2), (24, 36, 5), (24, 24, 2), (64, 96, 13)])
def test_few_channels_behind_unequal_sides_are_refused_until_the_layout_is_given(shape):
    x = kelvin(3, *shape)
    with pytest.raises(ValueError, match=f"layout='channels_last' for {shape[-1]} channels"):
        InMemory(x)
    assert InMemory(x, layout="channels_last").event_shape == (shape[-1], *shape[:-1])


@pytest.mark.parametrize(
    ("shape", "layout", "event"),
    [((24, 36), "NHW", (1, 24, 36)), ((180, 360), "NHW", (1, 180, 360)), ((101, 3), "channels_last", (3, 101))],
)
def test_arrays_of_three_axes_that_may_not_be_series_are_asked_about(shape, layout, event, tmp_path):
    np.save(tmp_path / "x.npy", kelvin(2, *shape))
    with pytest.warns(UserWarning, match=rf"{shape[0]} channels and length {shape[1]}: give layout='{layout}'"):
        assert Arrays(str(tmp_path / "x.npy")).load().event_shape == shape
    assert Arrays(str(tmp_path / "x.npy"), layout=layout).load().event_shape == event


@pytest.mark.parametrize("shape", [(3, 101), (6, 10), (8, 17), (15, 2)])
def test_series_raise_no_alarm(shape, tmp_path):
    np.save(tmp_path / "x.npy", kelvin(2, *shape))
    assert Arrays(str(tmp_path / "x.npy")).load().event_shape == shape


@pytest.mark.usefixtures("without_type_checker")
def test_tables_and_their_columns_are_read_as_arrays():
    table = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [4, 5, 6]})
    for dataset in (as_dataset(table), InMemory(table)):
        assert dataset.fetch([2])[0].tolist() == [[3.0, 6.0]]
    labels = pd.Series([0, 1, 1])
    for dataset in (as_dataset((table, labels)), InMemory(table, labels), Pairs(table, table[["a"]], labels)):
        assert dataset.num_classes == 2
    assert as_dataset((table, table[["b"]].astype(float))).condition_shape == (1,)
    with pytest.raises(TypeError, match=r"dataset must have columns of numbers, got 'a' of"):
        as_dataset(pd.DataFrame({"a": ["x", "y"]}))


@pytest.mark.usefixtures("without_type_checker")
@pytest.mark.parametrize("labels", [["cat", "dog", "cat"], np.array(["cat", "dog", "cat"], object)])
def test_names_in_place_of_labels_are_answered_with_how_to_give_them(labels):
    with pytest.raises(TypeError, match=r"labels must be .*got names such as 'cat': .*numpy.unique.*class_names=names"):
        InMemory(kelvin(3, 2), labels)
    if isinstance(labels, np.ndarray):
        with pytest.raises(TypeError, match=r"the labels of dataset must be .*names such as 'cat'"):
            as_dataset((kelvin(3, 2), labels))
    names, numbers = np.unique(labels, return_inverse=True)
    assert InMemory(kelvin(3, 2), numbers, class_names=names).class_names == ("cat", "dog")


@pytest.mark.parametrize("kind", ["uint16", "uint32", "uint64"])
def test_labels_of_unsigned_types_are_taken(kind):
    assert InMemory(kelvin(3, 2), np.array([1, 0, 1], kind)).fetch([0])[1].tolist() == [1]
    if kind == "uint64":
        with pytest.raises(
            ValueError, match="labels must be between 0 and 9223372036854775807, got 18446744073709551615"
        ):
            InMemory(kelvin(2, 2), np.array([2**64 - 1, 0], kind))


def test_floats_in_place_of_labels_are_answered_with_both_ways():
    with pytest.raises(
        ValueError, match=r"second of the pair dataset .*labels.long\(\) for classes, or values\[:, None\]"
    ):
        as_dataset((kelvin(3, 2), np.array([0.0, 1.0, 1.0])))


def test_numbers_beyond_float32_are_named_as_such():
    for make in (lambda x: InMemory(x), lambda x: Pairs(kelvin(3, 2), x)):
        with pytest.raises(ValueError, match=r"must be in the range of float32, up to 3.4e\+38"):
            make(1e39 * RNG.standard_normal((3, 2)))


def test_a_channel_that_is_constant_but_for_rounding_does_not_decide_a_distance():
    x = torch.from_numpy(kelvin(200, 2, 3, 3))
    x[:, 1] = 280.15
    x[0, 1, 0, 0] = float(np.nextafter(np.float32(280.15), np.float32(300)))
    features = ValueFeatures(InMemory(x))
    assert features.std.flatten().tolist() == pytest.approx([10, 1], rel=0.1)
    x[:, 1] = 1e9
    assert ValueFeatures(InMemory(x)).std.flatten()[1] == pytest.approx(1e9 / 2**17)


def test_pictures_of_kinds_that_are_not_read_are_mentioned(tmp_path):
    path = folder_of(tmp_path, ["a.png", "b.png"])
    for name in ("c.heic", "notes.txt", ".hidden.heic"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.warns(UserWarning, match="1 pictures in .* are left out, whose kind is not read, such as c.heic"):
        assert len(ImageFolder(path).load()) == 2


def test_splits_are_not_taken_as_classes_without_a_word(tmp_path):
    path = folder_of(tmp_path, ["train/cat/a.png", "test/cat/b.png"])
    with pytest.warns(UserWarning, match="test, train in .* are taken as classes: give one of them as the path"):
        assert ImageFolder(path).load().class_names == ("test", "train")
    assert ImageFolder(path, labels="none").load().num_classes == 0


def test_one_picture_outside_the_classes_does_not_end_them_without_a_word(tmp_path):
    path = folder_of(tmp_path, [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(5)] + ["loose.png"])
    with pytest.warns(UserWarning, match="loose.png is in no sub-folder, so that these are not taken as classes"):
        assert ImageFolder(path).load().num_classes == 0
    assert ImageFolder(path, labels="none").load().num_classes == 0


def test_a_picture_that_is_listed_twice_has_one_class(tmp_path):
    path = folder_of(tmp_path, ["a.png", "b.png"])
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": [["a.png", 1], ["b.png", 0], ["a.png", 0]]}))
    with pytest.raises(ValueError, match=r'dataset.json: "labels" must have each file once, but a.png has 1 and 0'):
        ImageFolder(path).load()
    content = {"labels": [["a.png", 1], ["b.png", 2]], "class_names": ["x", "y"]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match="class_names must hold a name for each class up to the largest label 2, got 2"
    ):
        ImageFolder(path).load()


def test_pixels_that_are_nan_name_their_picture(tmp_path):
    for name, first in (("a.tif", 280.0), ("b.tif", np.nan)):
        x = kelvin(4, 6)
        x[0, 0] = first
        PIL.Image.fromarray(x).save(tmp_path / name)
    with pytest.raises(ValueError, match=r"b.tif must have finite pixels, but has NaN"):
        ImageFolder(str(tmp_path), range=(200, 350)).load()


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("change", [lambda x: x - 273.15, lambda x: 1000 * x, lambda x: 280 + (x - 280) / 1000])
def test_data_in_other_units_than_those_of_the_model_are_named(change):
    x = kelvin(40, 3)
    model = Model.for_data(InMemory(x), MLP(width=8, num_blocks=1))
    with pytest.warns(UserWarning, match=r"validation seems to be in other units .*channel 0 is .* of the model 2"):
        Trainer(model, InMemory(x), validation=InMemory(change(x)))
    with pytest.warns(UserWarning, match=r"dataset seems to be in other units"):
        Trainer(model, InMemory(change(x)))
    Trainer(model, InMemory(x), validation=InMemory(x[:1]))
    constant = np.concatenate([x[:, :1], np.full((40, 1), 5.5, "f4")], 1)
    Trainer(Model.for_data(InMemory(constant), MLP(width=8, num_blocks=1)), InMemory(constant))


@pytest.mark.parametrize("size", [6, 40])
def test_samples_in_other_units_than_the_data_are_named(size, tmp_path):
    x = kelvin(30, 1, size, size)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "celsius.npy", x - 273.15)
    np.savez(tmp_path / "range.npz", samples=x, seeds=np.arange(30), layout="channels_first", range=(200.0, 400.0))
    quick = ScoringOptions(num_splits=1, num_bootstrap=0, metrics=[])
    for samples in ("celsius.npy", "range.npz"):
        with pytest.warns(UserWarning, match=r"samples are 2[\d.]* standard deviations .*, --data.range"):
            score(open_images(tmp_path / samples), Arrays(str(tmp_path / "x.npy")), options=quick)
    score(open_images(tmp_path / "x.npy"), Arrays(str(tmp_path / "x.npy")), options=quick)


@pytest.mark.usefixtures("without_type_checker")
def test_arrays_are_evaluated_in_python_as_files_are_by_the_command(tmp_path):
    x, y = kelvin(30, 1, 6, 6), kelvin(20, 1, 6, 6)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    quick = ScoringOptions(num_splits=2, num_bootstrap=50)
    of_files = score(open_images(tmp_path / "y.npy"), Arrays(str(tmp_path / "x.npy")), options=quick)
    of_arrays = evaluate(y, None, x, ValueFeatures(InMemory(x)), num_splits=2)
    assert of_files == of_arrays
    with pytest.warns(UserWarning, match="samples are 2.* standard deviations"):
        evaluate(y - 273.15, None, x, ValueFeatures(InMemory(x)), num_splits=1, metrics=[])


@pytest.mark.usefixtures("without_type_checker")
def test_what_is_no_dataset_is_named_with_what_reads_it(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield torch.zeros(3)

    with pytest.raises(TypeError, match=r"dataset must be a Dataset .* got str: openedm.data.Arrays\(path\)"):
        as_dataset("x.npy")
    with pytest.raises(TypeError, match=r"dataset must be a Dataset .* with __len__ and __getitem__, got Stream"):
        as_dataset(Stream())


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_file_in_place_of_the_folder_of_a_run_and_a_seed_too_large_are_named(tmp_path):
    (tmp_path / "run").write_text("")
    data, options = InMemory(kelvin(16, 2)), Options(images=16, batch_size=16, validate_every=0, snapshot_every=0)
    trainer = Trainer(Model.for_data(data, MLP(width=8, num_blocks=1)), data, options=options, run=tmp_path / "run")
    with pytest.raises(ValueError, match=r"run must be a folder, but .*run is a file"):
        trainer.fit(progress=False)
    with pytest.raises(ValueError, match="seed must be between 0 and 9223372036854775807"):
        Options(seed=2**63)


def test_data_that_shall_not_be_standardised_but_are_far_from_0_are_named():
    with pytest.warns(UserWarning, match="standardise is false, but the data are not around 0, .*: 2[78].* ± "):
        model = Model.for_data(InMemory(kelvin(40, 3)), MLP(width=8, num_blocks=1), standardise=False)
    assert model.units is None
    Model.for_data(InMemory(kelvin(40, 3) - 280), MLP(width=8, num_blocks=1), standardise=False)


@pytest.mark.parametrize("number", [-9999.0, 1e20, 0.0])
@pytest.mark.parametrize("batch", [7, 40])
def test_a_number_that_stands_for_missing_values_is_named(number, batch):
    x = torch.from_numpy(kelvin(40, 2, 8, 8))
    x[:, 1, 2:4] = number
    (found,) = measure(InMemory(x), batch_size=batch).markers
    others = torch.cat([x[:, 1, :2], x[:, 1, 4:]], 1)
    assert found == (1, float(x[0, 1, 2, 0]), 0.25, float(others.min()), float(others.max()))
    for data in (InMemory(x), Pairs(torch.randn(40, 2, 8, 8), x)):
        name = "conditions" if data.condition_shape else "data"
        with pytest.warns(
            UserWarning, match=rf"the {name} have the number .* in 0.25 of the entries of channel 1, and"
        ):
            Model.for_data(data, NETWORK)


def test_numbers_that_many_entries_share_are_usually_no_marks():
    noise = torch.from_numpy(RNG.standard_normal((40, 2, 8, 8)).astype("f4"))
    rain = (noise - 0.5).relu() * 30
    constant = torch.stack([noise[:, 0], torch.full((40, 8, 8), 4.0)], 1)
    alone = 280 + noise
    alone[3, 0, 0, 0] = -9999
    for x in (noise.sign(), (2 * noise).round(), rain, constant, alone):
        assert measure(InMemory(x, kind="vectors")).markers == ()


def test_pixels_that_may_be_series_are_refused_or_named(tmp_path):
    counts = RNG.integers(0, 60_000, (12, 1, 50)).astype("u2")
    np.save(tmp_path / "x.npy", counts)
    path = str(tmp_path / "x.npy")
    with pytest.raises(ValueError, match=r"layout='channels_first' and a range, such as range=\(0, 65535\), for serie"):
        Arrays(path).load()
    assert Arrays(path, layout="channels_first", range=(0, 65535)).load().event_shape == (1, 50)
    assert Arrays(path, layout="NHW").load().event_shape == (1, 1, 50)
    np.save(path, RNG.integers(0, 256, (5, 3, 48)).astype("u1"))
    with pytest.warns(UserWarning, match="is taken as pictures: give layout='channels_first' and a range"):
        assert Arrays(path).load().event_shape == (1, 3, 48)


def test_entries_that_are_missing_are_counted_with_what_to_do():
    x = torch.from_numpy(kelvin(5, 1, 4, 4))
    x[2, :, 1] = math.nan
    with pytest.raises(ValueError, match=r"x\[2\] has NaN or infinity in 0.25 of its entries: put numbers in their pl"):
        InMemory(x)


def test_a_folder_of_arrays_is_told_from_one_of_images(tmp_path):
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", kelvin(1, 8))
    with pytest.raises(
        ValueError, match=r"no images found in .* but 3 other files, such as 0.npy: numbers become data"
    ):
        ImageFolder(str(tmp_path)).load()


def test_conditions_that_are_all_the_same_are_a_warning():
    with pytest.warns(UserWarning, match="the conditions are the same for all 9 samples that were read"):
        Model.for_data(Pairs(torch.randn(9, 2), torch.full((9, 1), 3.0)), MLP())


@pytest.mark.parametrize("shape", [(3, 24), (3, 40, 40), (3,)])
def test_samples_with_one_channel_in_other_units_than_the_data_are_a_warning(shape):
    x = torch.from_numpy(kelvin(40, *shape))
    samples = x[:20].clone()
    samples[:, 1] -= 273.15
    data = InMemory(x)
    with pytest.warns(UserWarning, match=r"samples are .* standard deviations of the data from .* in channel 1, "):
        evaluate(samples, None, data, ValueFeatures(data), num_splits=2, metrics=[])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(x[:20], None, data, ValueFeatures(data), num_splits=2, metrics=[])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]}), "dataset must have columns of numbers, got 'b' of "),
        (pd.DataFrame({"a": pd.array([1, None], dtype="Int64"), "b": [3.0, 4.0]}), "numbers, got 'a' of Int64"),
        (torch.nested.nested_tensor([torch.zeros(3), torch.zeros(4)], layout=torch.jagged), "rows of one length"),
        (torch.ones(4, 3, dtype=torch.int64), "or convert x to floating point for numbers in their own units"),
    ],
)
def test_tables_and_tensors_that_are_no_numbers_say_why(given, message):
    with pytest.raises(TypeError, match=message):
        as_dataset(given)


@pytest.mark.usefixtures("without_type_checker")
def test_several_named_arrays_are_no_dataset():
    class File:
        def __len__(self):
            return 2

        def __getitem__(self, name):
            return {"t": 1, "u": 2}[name]

    with pytest.raises(TypeError, match=r"dataset must have samples dataset\[0\], .*, got File: 0; of several named"):
        as_dataset(File())


def test_numbers_called_labels_are_conditions_if_they_are_no_classes(tmp_path):
    path = str(tmp_path / "x.npz")
    np.savez(path, x=kelvin(6, 1, 8), labels=RNG.standard_normal(6))
    with pytest.raises(ValueError, match=r"no classes are conditions, condition='labels', as the array is called"):
        Arrays(path).load()
    assert Arrays(path, condition="labels").load().condition_shape == (1,)
