import json
import os
import pickle
import re
import warnings
from types import SimpleNamespace

import datasets
import pyarrow
import pytest
import torch
from pyarrow import parquet

from openedm.data import Source, Table, decoded
from openedm.ground.choices import from_config, to_config
from picture_files import encode, pixels

COUNT = 10


def rows(start=0, stop=COUNT, **changed):
    cells = [{"bytes": encode(pixels(i)), "path": None} for i in range(start, stop)]
    columns = {"image": cells, "label": [i % 3 for i in range(start, stop)], "caption": ["x"] * (stop - start)}
    return pyarrow.table(columns | changed)


def with_names(table, names):
    features = {"label": {"_type": "ClassLabel", "names": names}, "image": {"_type": "Image"}}
    note = json.dumps({"info": {"features": features}})
    return table.replace_schema_metadata({"huggingface": note})


@pytest.fixture
def folder(tmp_path):
    """Two files of three and two row groups."""
    names = ["ant", "bee", "cat"]
    parquet.write_table(with_names(rows(0, 6), names), tmp_path / "train-00000.parquet", row_group_size=2)
    parquet.write_table(with_names(rows(6), names), tmp_path / "train-00001.parquet", row_group_size=3)
    parquet.write_table(with_names(rows(0, 1), names), tmp_path / "test-00000.parquet")
    return tmp_path


def expected(indices):
    return torch.stack([torch.from_numpy(pixels(i)).permute(2, 0, 1) for i in indices]).float() / 127.5 - 1


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("end", ["", "train-*.parquet"])
def test_parquet_files_are_read_in_the_order_of_their_names(folder, streaming, end):
    dataset = Table(os.path.join(folder, end), streaming=streaming).load()
    assert dataset.describe() == "10 images of 3×8×8 in 3 classes"
    assert dataset.class_names == ("ant", "bee", "cat")
    for indices in ([0, 9, 5, 5, 6], range(COUNT)):
        x, labels = dataset.fetch(indices)
        assert torch.equal(x, expected(indices))
        assert labels.tolist() == [i % 3 for i in indices]
    assert (dataset.chunks is None) != streaming
    assert not streaming or dataset.chunks.sizes == (2, 2, 2, 3, 1)


def test_a_split_is_the_files_that_are_named_so(folder):
    assert len(Table(str(folder), split="test").load()) == 1
    with pytest.raises(ValueError, match=r"split must be the beginning of names of files in .*, got 'validation'"):
        Table(str(folder), split="validation").load()


def test_no_more_row_groups_than_said_stay_in_memory(folder):
    reader = Table(str(folder)).images()
    reader.keep = 2
    reads = []
    original = reader._file
    reader._file = lambda number: reads.append(number) or original(number)
    for index in (0, 1, 2, 0, 4, 0, 2):
        list(reader.read([index]))
    assert len(reader._row_groups) == 2
    assert len(reads) == 4  # groups 0, 1 and 2, and 1 again


def test_streamed_tables_go_to_worker_processes(folder):
    dataset = Table(str(folder), streaming=True).load()
    dataset.fetch([0])
    assert torch.equal(pickle.loads(pickle.dumps(dataset)).fetch([7])[0], expected([7]))
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, sampler=range(COUNT), num_workers=1)
    assert torch.equal(torch.stack([x for x, _ in loader]), expected(range(COUNT)))


def test_arrow_files_are_mapped_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(decoded, "MAX_BYTES_IN_MEMORY", 0)
    for number, table in enumerate((rows(0, 6), rows(6))):
        with pyarrow.ipc.new_stream(str(tmp_path / f"{number}.arrow"), table.schema) as writer:
            writer.write_table(table)
    dataset = Table(str(tmp_path)).load()
    x, labels = dataset.fetch([9, 0, 6])
    assert torch.equal(x, expected([9, 0, 6]))
    assert labels.tolist() == [0, 0, 0]
    assert dataset.num_classes == 3


def test_large_parquet_goes_through_the_datasets_library(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(decoded, "MAX_BYTES_IN_MEMORY", 0)
    dataset = Table(str(folder)).load()
    assert dataset.class_names == ("ant", "bee", "cat")
    assert torch.equal(dataset.fetch([9, 0])[0], expected([9, 0]))


@pytest.mark.filterwarnings("ignore:.* is not a file or folder here, and is looked for on the Hub")
def test_a_set_of_the_hub_is_streamed_from_its_parquet(folder, monkeypatch):
    """Offline, the Hub is played by the files that the library would resolve the name to."""
    files = sorted(str(path) for path in folder.glob("train-*"))

    builder = SimpleNamespace(config=SimpleNamespace(data_files={"train": files}))
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda path, config: builder)
    with pytest.warns(UserWarning, match="'owner/name' is not a file or folder here, and is looked for on the Hub"):
        dataset = Table("owner/name", streaming=True).load()
    assert torch.equal(dataset.fetch([8])[0], expected([8]))
    with pytest.raises(ValueError, match="split must be one of 'train', got 'test'"):
        Table("owner/name", streaming=True, split="test").load()
    builder.config.data_files = {"train": ["a.tar"]}
    with pytest.raises(ValueError, match=r"streaming requires Parquet files, but 'owner/name' has a.tar"):
        Table("owner/name", streaming=True).load()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["owner/name", "name"])
def test_a_set_of_the_hub_that_cannot_be_had_is_announced_and_says_why(name, streaming, monkeypatch):
    announced = []

    def fail(*arguments, **options):
        assert len(announced) == 1
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.setattr(datasets, "load_dataset_builder", fail)
    monkeypatch.setattr(warnings, "warn", lambda message, **options: announced.append(message))
    with pytest.raises(ValueError, match=f"got '{name}': ConnectionError: no network"):
        Table(name, streaming=streaming).load()
    assert announced == [f"{name!r} is not a file or folder here, and is looked for on the Hub"]


def test_pictures_may_lie_beside_the_table_or_be_plain_bytes(tmp_path):
    (tmp_path / "1.png").write_bytes(encode(pixels(1)))
    cells = [{"bytes": encode(pixels(0)), "path": "0.png"}, {"bytes": None, "path": str(tmp_path / "1.png")}]
    parquet.write_table(pyarrow.table({"picture": cells}), tmp_path / "a.parquet")
    parquet.write_table(pyarrow.table({"jpg": [encode(pixels(i)) for i in range(2)]}), tmp_path / "b.parquet")
    for name in ("a", "b"):
        dataset = Table(str(tmp_path / f"{name}.parquet")).load()
        assert torch.equal(dataset.fetch([0, 1])[0], expected([0, 1]))
        assert dataset.num_classes == 0


def test_columns_are_chosen_by_name(tmp_path):
    table = rows(fine=[i // 5 for i in range(COUNT)], other=[encode(pixels(i, bands=1)) for i in range(COUNT)])
    path = str(tmp_path / "a.parquet")
    parquet.write_table(table, path)
    with pytest.raises(ValueError, match=r"image must name the column of images in .*: 2 of \['caption', 'fine'"):
        Table(path).load()
    assert Table(path, image="other", label="fine").load().describe() == "10 images of 1×8×8 in 2 classes"
    assert Table(path, image="image", label="none", resolution=4).load().describe() == (
        "10 images of 3×4×4 without labels"
    )
    for argument in ("image", "label"):
        with pytest.raises(ValueError, match=rf"{argument} must be one of \['caption', .*, got 'absent'"):
            Table(path, **{argument: "absent"}).load()


def test_tables_of_numbers_are_told_from_those_of_images(tmp_path):
    path = str(tmp_path / "a.parquet")
    parquet.write_table(pyarrow.table({"x": [[1.0, 2.0]] * 10, "y": [0.5] * 10}), path)
    with pytest.raises(ValueError, match=r"0 of \['x', 'y'\] may be; numbers in columns become data as one array"):
        Table(path).load()
    with pytest.raises(ValueError, match=r"image must be a column of images, got 'x' of list<.*; numbers in columns"):
        Table(path, image="x").load()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"label": [0, 1, None] * 3 + [0]}, "must have a class in each row, but 3 rows have no class"),
        ({"label": [0, -1] * 5}, "(the class of .* must be an integer|must have integers) >= 0"),
        ({"image": [{"bytes": b"text", "path": None}] * 10}, r"row 0 cannot be decoded"),
        ({"image": [{"bytes": None, "path": None}] * 10}, r"row 0 has no image"),
        (
            {"image": [{"bytes": encode(pixels(0, (8 + (i == 4), 8))), "path": None} for i in range(10)]},
            r"row 4 is 8×9, but .* row 0 is 8×8: give resolution=",
        ),
    ],
)
def test_rows_that_do_not_fit_are_refused_by_name(tmp_path, changed, message):
    parquet.write_table(rows(**changed), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=message):
        Table(str(tmp_path / "a.parquet")).load()


def test_files_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"text, no table")
    with pytest.raises(ValueError, match=r"a.parquet cannot be read"):
        Table(str(tmp_path)).load()
    for absent in ("absent.parquet", "absent.zip", "/no/such/folder"):
        with pytest.raises(ValueError, match=f"path does not exist: '{absent}'"):
            Table(absent).load()
    (tmp_path / "b.arrow").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"path must have files of one kind, .parquet or .arrow"):
        Table(str(tmp_path)).load()
    with pytest.raises(ValueError, match=r"b.arrow cannot be read"):
        Table(str(tmp_path / "b.arrow")).load()
    parquet.write_table(rows(0, 0), tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match="has no rows"):
        Table(str(tmp_path / "empty.parquet")).load()


@pytest.mark.parametrize(
    "name", ["photos.zip", "own/photos", "own/photos/", "./photos", "../photos", "~/photos", "own/a.npz", "other/a.PNG"]
)
def test_what_cannot_be_the_name_of_a_set_is_not_asked_for_on_the_hub(name, tmp_path, monkeypatch):
    def asked(*arguments, **options):
        pytest.fail("the Hub was asked")

    monkeypatch.setattr(datasets, "load_dataset", asked)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    with pytest.raises(ValueError, match=f"path does not exist: '{re.escape(name)}'; .* named OWNER/NAME"):
        Table(name).load()


def test_rows_are_pictures_to_convert(folder):
    pictures = Table(str(folder)).images()
    assert pictures.labels.tolist() == [i % 3 for i in range(COUNT)]
    assert pictures.class_names == ("ant", "bee", "cat")
    assert pictures.name(7) == f"{folder}/train-00001.parquet row 1"
    assert list(pictures.read([7])) == [(encode(pixels(7)), 1)]
    assert len({pictures.name(i) for i in range(COUNT)}) == COUNT


def test_the_choice_is_kept_in_files_and_checks_its_values():
    choice = Table("owner/name", streaming=True, window=100, label="fine")
    assert from_config(Source, to_config(choice)) == choice
    for name in ("window", "lanes", "resolution"):
        with pytest.raises(ValueError, match=f"{name} must be >= 1, got 0"):
            Table("owner/name", **{name: 0})


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "values", [[0.5] * 9 + [None], [0.5] * 9 + [float("nan")], [0.5] * 9 + [1e300], [[0.5]] * 9 + [[0.5, 1.0]]]
)
def test_a_wrong_condition_in_a_late_row_is_named_before_training(tmp_path, streaming, values):
    path = str(tmp_path / "a.parquet")
    parquet.write_table(rows(c=values), path, row_group_size=2)
    with pytest.raises(ValueError, match=r"a.parquet row 9 must have (finite|1) numbers as conditions, got"):
        Table(path, condition="c", streaming=streaming).images()


@pytest.mark.parametrize("column", [["a", "b"] * 5, [0.0, 1.0] * 5, [[1, 0], [0, 1]] * 5])
def test_a_label_that_is_no_integer_is_left_out_with_a_word(tmp_path, column):
    path = str(tmp_path / "a.parquet")
    parquet.write_table(rows(label=column), path)
    with pytest.warns(UserWarning, match=r"is read without classes: label must name .*\['label'\], of"):
        assert Table(path).load().num_classes == 0
    assert Table(path, label="none").load().num_classes == 0
