import io
import json
import pickle
import tarfile
from pathlib import Path

import pytest
import torch

from openedm.data import Form, MemoryImages, Shards, Source, archive, convert, decoded
from openedm.ground.choices import from_config, to_config
from picture_files import encode, pixels


@pytest.fixture
def converted(tmp_path) -> Path:
    content = {f"{i}.png": encode(pixels(i)) for i in range(7)}
    convert(MemoryImages(content, [0, 1, 2, 0, 1, 2, 0]), tmp_path / "out", Form(size=8), per_shard=3)
    return tmp_path / "out"


def write(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def test_large_and_streamed_sets_are_read_when_fetched(converted, monkeypatch):
    x, labels = Shards(str(converted)).load().fetch(range(7))
    monkeypatch.setattr(decoded, "MAX_BYTES_IN_MEMORY", 0)
    monkeypatch.setattr(archive.FileParts.__init__, "__defaults__", (1,))
    for dataset in (Shards(str(converted)).load(), Shards(str(converted), streaming=True).load()):
        for order in ([6, 0, 3, 3, 1], [2]):
            found, classes = dataset.fetch(order)
            assert torch.equal(found, x[order])
            assert torch.equal(classes, labels[order])
        again = pickle.loads(pickle.dumps(dataset))
        assert torch.equal(again.fetch([5])[0], x[[5]])
        with pytest.raises(IndexError, match="indices must be between 0 and 6"):
            dataset.fetch([7])


def test_streaming_tells_which_pictures_lie_together(converted):
    chunks = Shards(str(converted), streaming=True, window=4, lanes=2).load().chunks
    assert (chunks.sizes, chunks.window, chunks.lanes) == ((3, 3, 1), 4, 2)
    assert Shards(str(converted)).load().chunks is None


def test_worker_processes_and_this_one_read_the_same_at_once(converted, monkeypatch):
    monkeypatch.setattr(decoded, "MAX_BYTES_IN_MEMORY", 0)
    dataset = Shards(str(converted)).load()
    x = dataset.fetch(range(7))[0]  # opens the shards before the workers are forked
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, sampler=[*range(7)] * 5, num_workers=2)
    for index, (image, _) in enumerate(loader):
        assert torch.equal(image, x[index % 7])
        assert torch.equal(dataset[3][0], x[3])


def damage(root: Path, kind: str) -> None:
    if kind == "cut":
        (root / "shard-000001.tar").write_bytes((root / "shard-000001.tar").read_bytes()[:-512])
    elif kind == "missing":
        (root / "shard-000001.tar").unlink()
    elif kind == "index":
        (root / "index.npz").write_bytes(b"PK" + (root / "index.npz").read_bytes()[2:-1] + b"!")
    elif kind == "format":
        (root / "manifest.json").write_text('{"format": "other"}')
    else:
        (root / "manifest.json").write_text('{"format":')


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cut", "shard-000001.tar must have [0-9]+ bytes, but has"),
        ("missing", "shard-000001.tar"),
        ("index", "index.npz is damaged or belongs to another set"),
        ("format", "its format is 'other', version None"),
        ("json", "Expecting value"),
    ],
)
def test_a_set_that_is_not_whole_is_refused_when_loaded(converted, kind, message):
    damage(converted, kind)
    with pytest.raises(ValueError, match=f"is not a complete set of shards: .*{message}"):
        Shards(str(converted)).load()


def test_a_shard_that_is_damaged_inside_is_named_when_read(converted):
    shard = converted / "shard-000001.tar"
    content = bytearray(shard.read_bytes())
    content[512:600] = bytes(88)
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=r"shard-000001.tar/00000003.png was changed since it was written"):
        Shards(str(converted)).load()


PICTURES = {f"{i}": encode(pixels(i)) for i in range(4)}


@pytest.mark.parametrize("kind", ["cls", "json", "none"])
def test_shards_of_webdataset_are_read(tmp_path, kind):
    for number, keys in enumerate((["0", "1"], ["2", "3"])):
        files = {}
        for key in keys:
            files[f"a/{key}.rgb.png" if kind == "cls" else f"a/{key}.png"] = PICTURES[key]
            if kind == "cls":
                files[f"a/{key}.cls"] = str(int(key) % 2).encode()
            elif kind == "json":
                files[f"a/{key}.json"] = json.dumps({"label": int(key) % 2, "caption": "x"}).encode()
        write(tmp_path / f"set-{number}.tar", files)
    dataset = Shards(str(tmp_path)).load()
    x, labels = dataset.fetch(range(4))
    assert torch.equal(x[3], torch.from_numpy(pixels(3)).permute(2, 0, 1) / 127.5 - 1)
    assert labels is None if kind == "none" else labels.tolist() == [0, 1, 0, 1]
    assert len(Shards(str(tmp_path / "set-1.tar"), resolution=4, channels=1).load().fetch([1])[0][0, 0]) == 4


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.txt": b""}, r"no images found in .*set.tar \(.bmp"),
        ({"a.png": PICTURES["0"], "a.cls": b"cat"}, "the class of .*a.png cannot be read"),
        ({"a.png": PICTURES["0"], "a.cls": b"-1"}, "the class of .*a.png must be an integer >= 0, got -1"),
        ({"a.png": PICTURES["0"], "a.json": b"[]"}, "the class of .*a.png cannot be read"),
        ({"a.png": PICTURES["0"], "a.json": b'{"label": true}'}, "must be an integer >= 0, got True"),
        ({"a.png": PICTURES["0"], "a.cls": b"1", "b.png": PICTURES["1"]}, "b.png has no class, but others have one"),
        ({"a.png": PICTURES["0"], "b.png": encode(pixels(0, (9, 8)))}, "b.png is 8×9, but set.tar/a.png is 8×8: give"),
        ({"a.png": b"text"}, "a.png cannot be decoded"),
    ],
)
def test_foreign_shards_that_do_not_fit_are_refused_by_name(tmp_path, files, message):
    write(tmp_path / "set.tar", files)
    with pytest.raises(ValueError, match=message):
        Shards(str(tmp_path)).load()


def test_archives_that_cannot_be_read_at_any_place_are_refused(tmp_path):
    write(tmp_path / "a" / "set.tar", {"a.png": PICTURES["0"]}, "w:gz")
    with pytest.raises(ValueError, match="cannot be read as a tar archive without compression"):
        Shards(str(tmp_path / "a")).load()
    cut = write(tmp_path / "b" / "set.tar", {"a.png": PICTURES["0"]})
    cut.write_bytes(cut.read_bytes()[:600])
    with pytest.raises(ValueError, match=r"ends within a.png|cannot be read as a tar archive"):
        Shards(str(tmp_path / "b")).load()
    with pytest.raises(ValueError, match=r"path must be a folder of .tar files, or one of them"):
        Shards(str(tmp_path / "absent")).load()


@pytest.mark.parametrize("harm", ["cut between files", "cut within a header", "a header changed"])
def test_an_archive_that_has_lost_files_is_refused(tmp_path, harm):
    whole = write(tmp_path / "set.tar", {f"{name}.png": PICTURES[name] for name in "0123"}).read_bytes()
    second = whole.index(b"1.png")
    changed = whole[:second] + b"x" + whole[second + 1 :]
    harmed = {"cut between files": whole[:second], "cut within a header": whole[: second + 100]}.get(harm, changed)
    (tmp_path / "set.tar").write_bytes(harmed)
    with pytest.raises(ValueError, match=rf"set.tar is damaged or not complete: .* at byte {second}"):
        Shards(str(tmp_path)).load()


def test_the_choice_is_kept_in_files_and_checks_its_values():
    choice = Shards("somewhere", streaming=True, window=100, resolution=8)
    assert from_config(Source, to_config(choice)) == choice
    for name in ("window", "lanes", "resolution"):
        with pytest.raises(ValueError, match=f"{name} must be >= 1, got 0"):
            Shards("somewhere", **{name: 0})
    with pytest.raises(ValueError, match="channels must be one of 1, 3, 4, got 2"):
        Shards("somewhere", channels=2)


@pytest.mark.parametrize(
    ("entry", "value", "problem"),
    [
        ("shape", [3, -1, 8], "sizes of shape must be between 1 and 65536, got -1"),
        ("shape", [3, 8, 10**12], "sizes of shape must be between 1 and 65536"),
        ("shape", [5, 8, 8], "channels of shape must be one of 1, 3, 4, got 5"),
        ("num_classes", 1, "classes of the index must be between 0 and 0"),
        ("shards", [], "shards of the index must be between 0 and -1"),
    ],
)
def test_a_manifest_that_does_not_fit_its_index_is_refused(entry, value, problem, converted):
    path = converted / "manifest.json"
    content = json.loads(path.read_text()) | {entry: value}
    content.pop("openedm_sha256")
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"is not a complete set of shards: {problem}"):
        Shards(str(converted)).load()
