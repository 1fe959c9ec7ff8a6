"""Floats, vectors and images as conditions, from every source."""

import json
import pickle
import zipfile

import numpy as np
import PIL.Image
import pyarrow
import pyarrow.parquet
import pytest
import torch

from openedm.data import Arrays, Form, ImageFolder, MemoryImages, Shards, Table, convert, decoded, encoded_images
from openedm.ground.choices import from_config, to_config

from ..picture_files import encode, pixels

NAMES = ("a/1.png", "a/2.png", "b/3.png")
FLOATS = [[0.5, -2.0], [1.5, 0.25], [3.0, 1e3]]


@pytest.fixture(params=["in memory", "when fetched"])
def kept(request, monkeypatch):
    """Both ways to hold a set: decoded when it is loaded, and when samples are fetched."""
    if request.param == "when fetched":
        monkeypatch.setattr(decoded, "MAX_BYTES_IN_MEMORY", 0)


def folder(path, pictures, **files):
    for name, picture in pictures.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(encode(picture, "JPEG" if name.endswith("jpg") else "PNG"))
    for name, content in files.items():
        (path / name.replace("_", ".")).write_text(json.dumps(content))
    return str(path)


def pictures(size=(8, 8), bands=3, seed=0):
    return {name: pixels(seed + i, size, bands) for i, name in enumerate(NAMES)}


def everything(dataset):
    x, condition = pickle.loads(pickle.dumps(dataset)).fetch(range(len(dataset)))  # as for worker processes
    return x, condition


def test_floats_in_dataset_json_are_conditions(tmp_path, kept):
    table = [[name, row] for name, row in zip(NAMES, FLOATS, strict=True)]
    dataset = ImageFolder(folder(tmp_path / "x", pictures(), dataset_json={"labels": table})).load()
    assert (dataset.num_classes, dataset.condition_shape) == (0, (2,))
    assert torch.equal(everything(dataset)[1], torch.tensor(FLOATS))


def test_a_number_in_dataset_json_is_a_condition_of_one(tmp_path, kept):
    table = dict(zip(NAMES, (0.5, 1.0, 2.0), strict=True))
    dataset = ImageFolder(folder(tmp_path / "x", pictures(), dataset_json={"labels": table})).load()
    assert everything(dataset)[1].tolist() == [[0.5], [1.0], [2.0]]


@pytest.mark.parametrize(
    ("labels", "table", "classes"),
    [
        ("auto", {"labels": dict(zip(NAMES, (2, 0, 1), strict=True)), "class_names": ["u", "v", "w"]}, [2, 0, 1]),
        ("auto", {"labels": dict(zip(NAMES, ([0, 0, 1], [1, 0, 0], [0, 1, 0]), strict=True))}, [2, 0, 1]),
        ("folders", {}, [0, 0, 1]),
        ("auto", {}, [0, 0, 1]),
    ],
)
def test_dataset_json_may_have_conditions_beside_classes(tmp_path, kept, labels, table, classes):
    table = {**table, "conditions": dict(zip(NAMES, FLOATS, strict=True))}
    dataset = ImageFolder(folder(tmp_path / "x", pictures(), dataset_json=table), labels=labels).load()
    _, condition = everything(dataset)
    assert dataset.condition_layout.unpack(condition)[0].tolist() == classes
    assert torch.equal(condition[:, 1:], torch.tensor(FLOATS))
    assert dataset.class_names == tuple(table.get("class_names", ())) or dataset.class_names in (None, ("a", "b"))
    assert ImageFolder(str(tmp_path / "x"), condition="none", labels=labels).load().condition_shape is None


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ([[0.5], [1.0, 2.0], [3.0]], r"condition of a/2.png in .*dataset.json must have 1 numbers.* got 2"),
        ([[0.5], [float("nan")], [3.0]], r"condition of a/2.png in .* must be finite"),
        ([[0.5], ["x"], [3.0]], r"condition of a/2.png in .* must be a number or a vector"),
        ([[0.5], [1.0]], r"b/3.png has no condition in"),
    ],
)
def test_conditions_that_do_not_fit_name_the_image(tmp_path, conditions, message):
    table = {"conditions": [[name, row] for name, row in zip(NAMES, conditions, strict=False)]}
    with pytest.raises(ValueError, match=message):
        ImageFolder(folder(tmp_path / "x", pictures(), dataset_json=table)).load()


def test_a_second_folder_has_the_conditions(tmp_path, kept):
    x, masks = pictures(), pictures(bands=1, seed=9)
    path = folder(tmp_path / "x", x)
    other = folder(tmp_path / "masks", {name.replace("b/3.png", "b/3.jpg"): mask for name, mask in masks.items()})
    dataset = ImageFolder(path, condition=other, labels="none").load()
    found, condition = everything(dataset)
    assert (tuple(found.shape), tuple(condition.shape)) == ((3, 3, 8, 8), (3, 1, 8, 8))
    assert torch.equal(condition[0, 0], torch.from_numpy(masks["a/1.png"]) / 127.5 - 1)
    with_classes = ImageFolder(path, condition=other).load()
    assert (with_classes.num_classes, with_classes.condition_shape) == (2, (1, 8, 8))
    assert everything(with_classes)[1][:, 0, 0, 0].tolist() == [0, 0, 1]


def test_partners_in_an_archive_and_of_a_zip(tmp_path):
    path = folder(tmp_path / "x", pictures())
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        for name, picture in pictures(seed=5).items():
            archive.writestr(name, encode(picture))
    dataset = ImageFolder(path, condition=str(tmp_path / "c.zip"), labels="none").load()
    assert torch.equal(everything(dataset)[1][1], torch.from_numpy(pixels(6)).movedim(-1, 0) / 127.5 - 1)


@pytest.mark.parametrize("resize", ["bicubic", "nearest"])
def test_a_smaller_condition_is_resized_to_its_image(tmp_path, kept, resize):
    path = folder(tmp_path / "x", pictures())
    low = pictures(size=(2, 2), bands=1)
    other = folder(tmp_path / "low", low)
    dataset = ImageFolder(path, condition=other, labels="none", condition_resize=resize).load()
    values = everything(dataset)[1][0, 0]
    if resize == "nearest":
        assert torch.equal(values, torch.from_numpy(low["a/1.png"].repeat(4, 0).repeat(4, 1)) / 127.5 - 1)
    else:
        filter = PIL.Image.Resampling.BICUBIC
        expected = np.array(PIL.Image.fromarray(low["a/1.png"]).resize((8, 8), filter))
        assert torch.equal(values, torch.from_numpy(expected) / 127.5 - 1)


@pytest.mark.parametrize("crop", ["centre", "adm", "pad", "none"])
def test_the_crop_is_applied_alike_to_images_and_conditions(tmp_path, kept, crop):
    """The condition is the image itself, so that it must stay the same; sizes differ from image to image."""
    sizes = {"1.png": (24, 16), "2.png": (16, 24), "3.png": (30, 20)}
    x = {name: pixels(i, size) for i, (name, size) in enumerate(sizes.items())}
    path, other = folder(tmp_path / "x", x), folder(tmp_path / "c", x)
    dataset = ImageFolder(path, condition=other, resolution="8x12", crop=crop).load()
    assert torch.equal(*everything(dataset))


@pytest.mark.parametrize("crop", ["centre", "adm", "pad", "none"])
def test_masks_keep_their_numbers_where_they_are_resized(tmp_path, crop):
    x = {f"{i}.png": pixels(i, (24, 16)) for i in range(3)}
    masks = {name: np.random.default_rng(i).choice([0, 100, 200], (8, 12)).astype(np.uint8) for i, name in enumerate(x)}
    path, other = folder(tmp_path / "x", x), folder(tmp_path / "c", masks)
    dataset = ImageFolder(path, condition=other, resolution=8, crop=crop, condition_resize="nearest").load()
    assert set(((everything(dataset)[1] + 1) * 127.5).round().unique().tolist()) <= {0, 100, 200}


@pytest.mark.parametrize("change", ["lacks", "extra", "channels", "damaged", "several"])
def test_partners_that_do_not_fit_are_named(tmp_path, change):
    x, other = pictures(), pictures()
    if change == "lacks":
        del other["a/2.png"]
    if change == "extra":
        other["c/9.png"] = pixels(1)
    if change == "channels":
        other["b/3.png"] = pixels(1, bands=1)
    if change == "several":
        other = {"a/1.jpg": pixels(1), "a/1.webp": pixels(1), **{name: other[name] for name in NAMES[1:]}}
    path, partners = folder(tmp_path / "x", x), folder(tmp_path / "c", other)
    if change == "damaged":
        (tmp_path / "c" / "b" / "3.png").write_bytes(b"no picture")
    message = {
        "lacks": r"x/a/2.png has no image of its name in condition='.*c'",
        "extra": r"c/c/9.png has no image of its name",
        "channels": r"c/b/3.png has 1 channels, but .*c/a/1.png has 3",
        "damaged": r"c/b/3.png cannot be decoded",
        "several": r"x/a/1.png has several images of its name",
    }[change]
    with pytest.raises(ValueError, match=message):
        ImageFolder(path, condition=partners).load()


def test_a_rule_without_images_to_resize_is_refused(tmp_path):
    with pytest.raises(ValueError, match="condition_resize='nearest' has no effect"):
        ImageFolder(folder(tmp_path / "x", pictures()), condition_resize="nearest").load()


@pytest.mark.parametrize("classes", [True, False])
@pytest.mark.parametrize("kind", ["floats", "images"])
@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("scanned", [True, False])
def test_shards_keep_conditions(tmp_path, kept, classes, kind, streaming, scanned):
    content = {name: encode(picture) for name, picture in pictures().items()}
    conditions = FLOATS if kind == "floats" else [encode(pixels(i, (4, 4), 1)) for i in range(3)]
    images = MemoryImages(content, [1, 0, 1] if classes else None, conditions=conditions)
    manifest = convert(images, tmp_path / "s", Form(size=6), per_shard=2)
    assert manifest["condition"]["shape"] == ([2] if kind == "floats" else [1, 6, 6])
    if scanned:
        (tmp_path / "s" / "manifest.json").unlink()
        (tmp_path / "s" / "index.npz").unlink()
    dataset = Shards(str(tmp_path / "s"), streaming=streaming).load()
    x, condition = everything(dataset)
    assert dataset.num_classes == (2 if classes else 0)
    found, values = dataset.condition_layout.unpack(condition)
    assert found is None or found.tolist() == [1, 0, 1]
    if kind == "floats":
        assert torch.equal(values, torch.tensor(FLOATS))
    else:
        assert tuple(values.shape) == (3, 1, 6, 6)
    assert tuple(x.shape) == (3, 3, 6, 6)


def test_an_interrupted_conversion_keeps_conditions(tmp_path):
    content = {name: encode(picture) for name, picture in pictures().items()}
    images = MemoryImages(content, conditions=[encode(pixels(i, (4, 4), 1)) for i in range(3)])
    once = convert(images, tmp_path / "once", Form(size=6), per_shard=1)

    def stop(name, done, total, **more):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(images, tmp_path / "twice", Form(size=6), per_shard=1, progress=stop)
    assert convert(images, tmp_path / "twice", Form(size=6), per_shard=1, resume=True) == once


def test_conversion_resizes_pairs_as_folders_do(tmp_path):
    sizes = {"1.png": (24, 16), "2.png": (16, 24)}
    path = folder(tmp_path / "x", {name: pixels(i, size) for i, (name, size) in enumerate(sizes.items())})
    other = folder(tmp_path / "c", {name: pixels(i, (12, 8), 1) for i, name in enumerate(sizes)})
    convert(encoded_images(path, condition=other), tmp_path / "s", Form(size="8x10"))
    shards = everything(Shards(str(tmp_path / "s")).load())
    direct = everything(ImageFolder(path, condition=other, resolution="8x10").load())
    assert torch.equal(shards[0], direct[0])
    assert torch.equal(shards[1], direct[1])


def parquet(path, **columns):
    table = {"image": [encode(picture) for picture in pictures().values()], "label": [1, 0, 1], **columns}
    pyarrow.parquet.write_table(pyarrow.table(table), path, row_group_size=2)
    return str(path)


@pytest.mark.parametrize("streaming", [True, False])
def test_columns_are_conditions(tmp_path, kept, streaming):
    path = parquet(tmp_path / "t.parquet", stroke=[0.5, 1.5, 3.0], slant=[1, 2, 3], vector=FLOATS)
    for condition, expected in (
        (("stroke", "slant"), [[0.5, 1], [1.5, 2], [3, 3]]),
        ("vector", FLOATS),
        (("slant", "vector"), [[i + 1, *row] for i, row in enumerate(FLOATS)]),
    ):
        source = Table(path, condition=condition, streaming=streaming)
        dataset = source.load()
        assert from_config(Table, to_config(source)) == source
        condition = everything(dataset)[1]
        assert condition[:, 0].tolist() == [1, 0, 1]
        assert torch.equal(condition[:, 1:], torch.tensor(expected))
        assert torch.equal(everything(Table(path, label="none", condition="vector").load())[1], torch.tensor(FLOATS))


def test_a_column_of_images_is_a_condition(tmp_path, kept):
    low = [encode(pixels(i, (2, 2), 1)) for i in range(3)]
    path = parquet(tmp_path / "t.parquet", low=low)
    dataset = Table(path, condition="low", condition_resize="nearest", label="none").load()
    values = everything(dataset)[1]
    assert torch.equal(values[2, 0], torch.from_numpy(pixels(2, (2, 2), 1).repeat(4, 0).repeat(4, 1)) / 127.5 - 1)


@pytest.mark.parametrize(
    ("columns", "condition", "message"),
    [
        ({"c": [0.5, None, 1.0]}, "c", r"t.parquet row 1 must have finite numbers .* None in column 'c'"),
        ({"c": [0.5, float("nan"), 1.0]}, "c", r"row 1 must have finite numbers"),
        ({"c": [[0.5], [0.5, 1.0], [1.0]]}, "c", r"row 1 must have 1 numbers as conditions, got 2"),
        ({"c": ["x", "y", "z"]}, "c", r"row 0 must have finite numbers"),
        ({}, "c", r"condition must be one of .*, got 'c'"),
        ({}, "image", r"image must name the column of images"),
    ],
)
def test_columns_that_do_not_fit_name_the_row(tmp_path, columns, condition, message):
    with pytest.raises(ValueError, match=message):
        Table(parquet(tmp_path / "t.parquet", **columns), condition=condition).load()


def arrays(path, **content):
    np.savez(path, **content)
    return str(path)


X = np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8)


@pytest.mark.parametrize(
    ("condition", "shape"),
    [
        (np.linspace(0, 1, 5), (1,)),
        (np.arange(10).reshape(5, 2), (2,)),
        (np.zeros((5, 3), np.float32), (3,)),
        (X, (1, 8, 8)),
        (X[:, :, :, None].repeat(3, 3), (3, 8, 8)),
        (X[:, :2, :2], (1, 8, 8)),
        (np.zeros((5, 2, 8, 8), np.float32), (2, 8, 8)),
        (np.zeros((5, 1, 4, 4), np.float64), (1, 8, 8)),
    ],
    ids=lambda value: str(getattr(value, "shape", value)),
)
@pytest.mark.parametrize("labels", [True, False])
def test_arrays_have_conditions(tmp_path, condition, shape, labels):
    more = {"labels": np.array([0, 1, 0, 1, 1])} if labels else {}
    dataset = Arrays(arrays(tmp_path / "d.npz", x=X, c=condition, **more), condition="c").load()
    found = everything(dataset)[1]
    assert dataset.condition_shape == shape
    assert dataset.num_classes == (2 if labels else 0)
    assert tuple(found.shape[1:]) == dataset.condition_layout.packed_shape
    values = dataset.condition_layout.unpack(found)[1]
    if condition.dtype == np.uint8 and condition.shape[1] == 8:
        assert torch.equal(values[:, 0], torch.from_numpy(X) / 127.5 - 1)
    elif condition.ndim <= 2:
        assert torch.equal(values, torch.from_numpy(condition.astype(np.float32)).reshape(5, -1))


def test_a_npy_file_may_be_the_condition_of_another(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "c.npy", np.linspace(0, 1, 5))
    dataset = Arrays(str(tmp_path / "x.npy"), condition=str(tmp_path / "c.npy")).load()
    assert dataset.condition_shape == (1,)


def test_vectors_have_vectors_as_conditions(tmp_path):
    path = arrays(tmp_path / "d.npz", x=np.zeros((5, 4), np.float32), c=np.ones((5, 2)))
    assert Arrays(path, condition="c").load().describe() == "5 vectors of 4 with conditions of 2"


@pytest.mark.parametrize(
    ("condition", "name", "message"),
    [
        (np.zeros((4, 2)), "c", r"condition must have shape \(5, "),
        (np.array([[0.0], [1.0], [np.nan], [0.0], [0.0]]), "c", r"condition\[2\] has NaN"),
        (np.array(list("abcde")), "c", r"condition must be numbers"),
        (np.zeros((5, 1)), "d", r"condition must be one of \['c', 'x'\]"),
        (np.zeros((5, 1)), "missing.npy", r"condition must be a .npy or .npz file"),
    ],
)
def test_arrays_of_conditions_that_do_not_fit_are_refused(tmp_path, condition, name, message):
    with pytest.raises(ValueError, match=message):
        Arrays(arrays(tmp_path / "d.npz", x=X, c=condition), condition=name).load()


def test_pictures_of_sixteen_bits_are_conditions(tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (5, 1, 8, 8)).astype(np.uint16)
    dataset = Arrays(arrays(tmp_path / "d.npz", x=X, c=deep), condition="c").load()
    expected = torch.from_numpy(deep.astype(np.float64) / 32767.5 - 1).float()
    assert torch.allclose(everything(dataset)[1], expected, atol=1e-6)


def test_a_folder_of_conditions_that_is_missing_is_named_as_such(tmp_path):
    with pytest.raises(ValueError, match=r"condition='nowhere': .* does not exist"):
        ImageFolder(folder(tmp_path / "x", pictures()), condition="nowhere").load()
