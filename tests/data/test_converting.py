import io
import json
import tarfile
from pathlib import Path

import PIL.Image
import pytest
import torch

from openedm.data import FolderImages, Form, MemoryImages, Shards, TarImages, convert
from picture_files import encode, pixels

FORM = Form(size=8)
COUNT = 7


def held(count=COUNT, *, labelled=True, **changed):
    content = {f"{i}.png": encode(pixels(i)) for i in range(count)} | changed
    labels = [i % 3 for i in range(len(content))] if labelled else None
    return MemoryImages(content, labels, ["ant", "bee", "cat"] if labelled else None)


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_pictures_and_classes_come_back_to_the_byte(tmp_path):
    manifest = convert(held(), tmp_path / "out", FORM, per_shard=3)
    dataset = Shards(str(tmp_path / "out")).load()
    x, labels = dataset.fetch(range(COUNT))
    expected = torch.stack([torch.from_numpy(pixels(i)).permute(2, 0, 1) for i in range(COUNT)])
    assert torch.equal(x, expected.float() / 127.5 - 1)
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert dataset.class_names == ("ant", "bee", "cat")
    assert [entry["images"] for entry in manifest["shards"]] == [3, 3, 1]
    assert manifest["class_counts"] == [3, 2, 2]
    assert manifest["shape"] == [3, 8, 8]


def test_shards_are_plain_tar_archives_of_pictures_and_classes(tmp_path):
    convert(held(), tmp_path / "out", FORM, per_shard=4)
    with tarfile.open(tmp_path / "out" / "shard-000001.tar") as archive:
        names = archive.getnames()
        assert names == [f"{i:08d}.{end}" for i in (4, 5, 6) for end in ("png", "cls")]
        assert archive.extractfile("00000005.cls").read() == b"2"
        assert archive.extractfile("00000005.png").read() == FORM.encode(PIL.Image.fromarray(pixels(5)))


@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_pictures_give_the_same_bytes(tmp_path, threads):
    convert(held(), tmp_path / "one", FORM, per_shard=3, about={"licence": "MIT"})
    convert(held(), tmp_path / "two", FORM, per_shard=3, about={"licence": "MIT"}, threads=threads)
    assert content_of(tmp_path / "one") == content_of(tmp_path / "two")
    assert json.loads((tmp_path / "one" / "manifest.json").read_text())["licence"] == "MIT"


class Stopped(Exception):
    pass


@pytest.mark.parametrize("stop_at", range(4))
def test_an_interrupted_conversion_goes_on_and_ends_as_if_it_had_not_been(tmp_path, stop_at):
    seen = []

    def stop(*state, **counts):
        seen.append((state, counts))
        if len(seen) > stop_at:
            raise Stopped

    out = tmp_path / "out"
    with pytest.raises(Stopped):
        convert(held(), out, FORM, per_shard=3, progress=stop)
    assert not (out / "manifest.json").exists()
    assert not list(out.glob(".*.tmp"))
    with pytest.raises(ValueError, match="has an interrupted conversion: resume it"):
        convert(held(), out, FORM, per_shard=3)
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*.tar")}
    convert(held(), out, FORM, per_shard=3, resume=True)
    assert all((out / name).stat().st_mtime_ns == time for name, time in kept.items())
    convert(held(), tmp_path / "whole", FORM, per_shard=3)
    assert content_of(out) == content_of(tmp_path / "whole")


def test_a_shard_that_was_cut_off_is_written_anew(tmp_path):
    out = tmp_path / "out"
    interrupt(out)
    shard = out / "shard-000000.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:700])
    (out / ".shard-000001.tar.1234.tmp").write_bytes(b"left by a process that was killed")
    convert(held(), out, FORM, per_shard=3, resume=True)
    assert shard.read_bytes() == whole
    assert sorted(path.name for path in out.iterdir()) == [
        "index.npz",
        "manifest.json",
        *(f"shard-00000{i}.tar" for i in range(3)),
    ]


def interrupt(out):
    def stop(name, done, total, dropped):
        if done > 3:
            raise Stopped

    with pytest.raises(Stopped):
        convert(held(), out, FORM, per_shard=3, progress=stop)


@pytest.mark.parametrize(
    ("pictures", "form", "names"),
    [
        (held(8), FORM, "pictures, fingerprint"),
        (held(labelled=False), FORM, "fingerprint"),
        (held(), Form(size=4), "form"),
    ],
)
def test_another_conversion_does_not_go_on_with_an_interrupted_one(tmp_path, pictures, form, names):
    interrupt(tmp_path / "out")
    with pytest.raises(ValueError, match=f"has an interrupted conversion with other {names}: give the same"):
        convert(pictures, tmp_path / "out", form, per_shard=3, resume=True)


def test_folders_that_hold_something_are_left_alone(tmp_path):
    convert(held(), tmp_path / "out", FORM)
    before = content_of(tmp_path / "out")
    with pytest.raises(ValueError, match="already has a converted set"):
        convert(held(), tmp_path / "out", FORM)
    with pytest.raises(ValueError, match="already has a set converted from other images or otherwise"):
        convert(held(), tmp_path / "out", Form(size=4), resume=True)
    with pytest.raises(ValueError, match="already has a set converted from other images or otherwise"):
        convert(held(8), tmp_path / "out", FORM, resume=True)
    assert content_of(tmp_path / "out") == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("dear")
    with pytest.raises(ValueError, match="is not empty: choose another folder"):
        convert(held(), tmp_path / "other", FORM, resume=True)
    interrupt(tmp_path / "begun")
    (tmp_path / "begun" / "thesis.txt").write_text("dear")
    with pytest.raises(ValueError, match=r"not part of the conversion, such as thesis.txt"):
        convert(held(), tmp_path / "begun", FORM, per_shard=3, resume=True)


def test_a_finished_conversion_that_is_resumed_stays_as_it_is_without_what_a_kill_at_its_end_left(tmp_path):
    manifest = convert(held(), tmp_path / "out", FORM)
    before = content_of(tmp_path / "out")
    for name in (".converting.json", ".shard-000000.json", ".manifest.json.7.tmp"):
        (tmp_path / "out" / name).write_text("{}")
    assert convert(held(), tmp_path / "out", FORM, resume=True) == json.loads(json.dumps(manifest))
    assert content_of(tmp_path / "out") == before


DAMAGED = {"broken": {"2.png": b"no picture"}, "cut": {"2.png": encode(pixels(2, (64, 64)))[:400]}}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_picture_ends_the_conversion_or_is_dropped_by_name(tmp_path, kind):
    pictures = held(**DAMAGED[kind])
    with pytest.raises(ValueError, match=r"2.png cannot be decoded: .*; damaged='drop' \(--damaged drop\) leaves"):
        convert(pictures, tmp_path / "refused", FORM)
    manifest = convert(pictures, tmp_path / "out", FORM, damaged="drop", per_shard=3)
    assert [entry["name"] for entry in manifest["dropped"]] == ["2.png"]
    assert manifest["images"] == COUNT - 1
    x, labels = (dataset := Shards(str(tmp_path / "out")).load()).fetch(range(COUNT - 1))
    assert labels.tolist() == [0, 1, 0, 1, 2, 0]
    assert torch.equal(x[2], torch.from_numpy(pixels(3)).permute(2, 0, 1) / 127.5 - 1)
    assert len(dataset) == COUNT - 1


def test_a_conversion_that_a_damaged_picture_ended_goes_on_without_it(tmp_path):
    pictures = held(**{"5.png": b"no picture"})
    with pytest.raises(
        ValueError, match=r"5.png cannot be decoded: it is no image, or of an unknown kind; damaged='drop'"
    ):
        convert(pictures, tmp_path / "out", FORM, per_shard=3)
    convert(pictures, tmp_path / "out", FORM, per_shard=3, damaged="drop", resume=True)
    convert(pictures, tmp_path / "whole", FORM, per_shard=3, damaged="drop")
    assert content_of(tmp_path / "out") == content_of(tmp_path / "whole")


@pytest.mark.parametrize("threads", [1, 3])
def test_animations_are_warned_of_when_they_are_converted(tmp_path, threads):
    first, second = (PIL.Image.fromarray(pixels(i)) for i in range(2))
    buffer = io.BytesIO()
    first.save(buffer, format="PNG", save_all=True, append_images=[second])
    with pytest.warns(UserWarning, match=r"^1 pictures are animations, .* such as 5.png"):
        convert(held(**{"5.png": buffer.getvalue()}), tmp_path / "out", FORM, threads=threads, per_shard=3)


def test_a_set_of_damaged_pictures_alone_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"got 2 damaged ones; first: a.png cannot be decoded"):
        convert(MemoryImages({"a.png": b"", "b.png": b"?"}), tmp_path / "out", FORM, damaged="drop")


def test_pictures_of_other_sizes_are_refused_by_name_where_none_are_resized(tmp_path):
    pictures = held(**{"5.png": encode(pixels(5, (9, 8)))})
    for per_shard in (3, 10):
        with pytest.raises(ValueError, match=r"5.png is 8×9, but 0.png is 8×8: give size"):
            convert(pictures, tmp_path / str(per_shard), Form(crop="none"), per_shard=per_shard)


def folder(root: Path) -> Path:
    for i, name in enumerate(["cat/1.png", "ant/2.png", "ant/3.png"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encode(pixels(i)))
    return root


def test_folders_and_archives_give_the_pictures_and_classes_that_image_folder_finds(tmp_path):
    root = folder(tmp_path / "set")
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(root, ".")
    for path in (root, tmp_path / "set.tar"):
        pictures = FolderImages(str(path))
        assert ([pictures.name(i) for i in range(3)], pictures.labels.tolist(), pictures.class_names) == (
            ["ant/2.png", "ant/3.png", "cat/1.png"],
            [0, 0, 1],
            ("ant", "cat"),
        )
        assert list(pictures.read([2])) == [(encode(pixels(0)), 1)]
    assert FolderImages(str(root), "none").labels is None


def test_shards_can_be_converted_again(tmp_path):
    convert(held(), tmp_path / "one", FORM, per_shard=3)
    again = TarImages(str(tmp_path / "one"))
    assert (again.labels.tolist(), again.class_names) == ([0, 1, 2, 0, 1, 2, 0], ("ant", "bee", "cat"))
    convert(again, tmp_path / "two", Form(size=4), per_shard=2)
    assert Shards(str(tmp_path / "two")).load().describe() == "7 images of 3×4×4 in 3 classes"


@pytest.mark.parametrize("argument", ["per_shard", "threads"])
def test_numbers_below_one_are_refused(tmp_path, argument):
    with pytest.raises(ValueError, match=f"{argument} must be >= 1, got 0"):
        convert(held(), tmp_path / "out", FORM, **{argument: 0})
    assert not (tmp_path / "out").exists()
