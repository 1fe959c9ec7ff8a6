"""Every reader gives the same images, classes and errors."""

import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import datasets
import pyarrow
import pytest
import torch
from pyarrow import parquet

from openedm.data import (
    EncodedImages,
    FolderImages,
    Form,
    ImageFolder,
    MemoryImages,
    Shards,
    Table,
    TarImages,
    convert,
    decoded,
    encoded_images,
)
from openedm.data.rows import ArrowImages
from picture_files import encode, pixels

NAMES = ["ant/0.png", "ant/1.png", "bee/2.png", "cat/3.png", "cat/4.png"]
LABELS = [0, 0, 1, 2, 2]
CONTENT = [encode(pixels(i)) for i in range(len(NAMES))]


def tar(path: Path, files: dict[str, bytes]) -> str:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return str(path)


def table() -> pyarrow.Table:
    return pyarrow.table({"image": [{"bytes": content, "path": None} for content in CONTENT], "label": LABELS})


def reader(kind: str, root: Path) -> EncodedImages:
    files = dict(zip(NAMES, CONTENT, strict=True))
    if kind == "folder":
        for name, content in files.items():
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_bytes(content)
        return FolderImages(str(root))
    if kind == "zip":
        with zipfile.ZipFile(root / "set.zip", "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return FolderImages(str(root / "set.zip"))
    if kind == "tar":
        return FolderImages(tar(root / "set.tar", files))
    if kind == "webdataset":
        for i, content in enumerate(CONTENT):
            tar(root / f"{i}.tar", {f"{i}.png": content, f"{i}.cls": str(LABELS[i]).encode()})
        return TarImages(str(root))
    if kind == "shards":
        convert(MemoryImages(files, LABELS), root / "out", Form(size=8), per_shard=2)
        return TarImages(str(root / "out"))
    if kind == "parquet":
        parquet.write_table(table(), root / "set.parquet", row_group_size=2)
        return Table(str(root / "set.parquet")).images()
    if kind == "arrow":
        return ArrowImages(datasets.Dataset(table()), "set", None, None)
    return MemoryImages(files, LABELS)


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "webdataset", "shards", "parquet", "arrow", "memory"])
def test_every_reader_gives_the_same_images_and_classes(tmp_path, kind):
    images = reader(kind, tmp_path)
    assert len(images) == len(NAMES)
    assert images.labels.tolist() == LABELS
    assert images.num_classes == 3
    assert len({images.name(i) for i in range(len(images))}) == len(NAMES)
    assert len(set(images.shapes())) == 1
    for again in (images, pickle.loads(pickle.dumps(images))):
        assert list(again.read([4, 0, 0])) == [(CONTENT[4], 2), (CONTENT[0], 0), (CONTENT[0], 0)]
        with again.open(3) as file:
            assert file.read() == CONTENT[3]
    again.close()
    assert next(images.read([1])) == (CONTENT[1], 0)


def test_fingerprints_are_of_names_and_classes():
    content = dict(zip(NAMES, CONTENT, strict=True))
    found = {
        MemoryImages(content).fingerprint(),
        MemoryImages(content, LABELS).fingerprint(),
        MemoryImages(content, [0, 0, 1, 2, 1]).fingerprint(),
        MemoryImages({f"x{name}": image for name, image in content.items()}).fingerprint(),
    }
    assert len(found) == 4
    assert MemoryImages(content, LABELS).fingerprint() in found
    with pytest.raises(ValueError, match="labels must have 5 entries, one per image, got 1"):
        MemoryImages(content, [0])


def test_an_image_that_changed_its_size_after_loading_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(decoded, "MAX_BYTES_IN_MEMORY", 0)
    reader("folder", tmp_path)
    dataset = ImageFolder(str(tmp_path)).load()
    (tmp_path / "bee" / "2.png").write_bytes(encode(pixels(2, (1, 1))))
    with pytest.raises(ValueError, match=r"bee/2.png is 1×1, but ant/0.png is 8×8: give resolution="):
        dataset.fetch([2])


def test_a_manifest_of_another_program_does_not_make_shards(tmp_path):
    reader("webdataset", tmp_path)
    (tmp_path / "manifest.json").write_text('["another program"]')
    assert torch.equal(
        Shards(str(tmp_path)).load().fetch([3])[0][0], torch.from_numpy(pixels(3)).permute(2, 0, 1) / 127.5 - 1
    )
    reader("shards", tmp_path)
    (tmp_path / "out" / "index.npz").unlink()
    with pytest.raises(ValueError, match=r"is not a complete set of shards: .*index.npz"):
        Shards(str(tmp_path / "out")).load()


def test_a_path_is_opened_by_the_reader_of_its_kind(tmp_path):
    kinds = {"zip": "set.zip", "tar": "set.tar", "parquet": "set.parquet", "folder": "", "shards": "out"}
    found = {}
    for kind, path in kinds.items():
        (tmp_path / kind).mkdir()
        reader(kind, tmp_path / kind)
        found[kind] = type(encoded_images(str(tmp_path / kind / path))).__name__
    assert found == {
        "zip": "FolderImages",
        "tar": "FolderImages",
        "parquet": "ParquetImages",
        "folder": "FolderImages",
        "shards": "TarImages",
    }
    assert encoded_images(str(tmp_path / "shards" / "out"), "none").labels is None
    with pytest.raises(ValueError, match="labels must be 'auto' with a table, which has them in a column, got 'json'"):
        encoded_images(str(tmp_path / "parquet" / "set.parquet"), "json")
