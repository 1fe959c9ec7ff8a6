import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from openedm.data import ImageFolder, Source, decoded
from openedm.ground.choices import from_config, to_config


def pixels(seed: int, mode: str = "RGB", size: tuple[int, int] = (6, 5)) -> np.ndarray:
    bands = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *bands), dtype=np.uint8)


def encode(array: np.ndarray, suffix: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(array).save(buffer, format={"jpg": "JPEG"}.get(suffix, suffix.upper()), **options)
    return buffer.getvalue()


def build(root: Path, files: dict[str, bytes], *, packed: bool) -> str:
    """A folder or zip archive with these files."""
    if packed:
        with zipfile.ZipFile(root / "set.zip", "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return str(root / "set.zip")
    for name, content in files.items():
        path = root / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(root / "set")


@pytest.fixture(params=[False, True], ids=["folder", "zip"])
def packed(request) -> bool:
    return request.param


def everything(source):
    dataset = source.load()
    return dataset.fetch(range(len(dataset)))


def as_tensor(array: np.ndarray) -> torch.Tensor:
    array = array[:, :, None] if array.ndim == 2 else array
    return torch.from_numpy(array).permute(2, 0, 1) / 127.5 - 1


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_pictures_are_read_in_the_order_of_their_names_wherever_they_lie(tmp_path, packed, mode):
    arrays = [pixels(i, mode) for i in range(3)]
    files = {"b.png": arrays[1], "a.PNG": arrays[0], "c/d/e.png": arrays[2]}
    path = build(tmp_path, {name: encode(array) for name, array in files.items()}, packed=packed)
    x, labels = everything(ImageFolder(path))
    assert torch.equal(x, torch.stack([as_tensor(array) for array in arrays]))
    assert labels is None
    assert ImageFolder(path).load().event_shape == (len(mode), 5, 6)


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "tiff", "ppm", "gif"])
def test_lossless_formats_are_read_to_the_byte(tmp_path, suffix):
    array = np.full((4, 4, 3), (255, 0, 51), dtype=np.uint8)
    options = {"lossless": True} if suffix == "webp" else {}
    path = build(tmp_path, {f"a.{suffix}": encode(array, suffix, **options)}, packed=False)
    assert torch.equal(everything(ImageFolder(path))[0][0], as_tensor(array))


def test_the_orientation_that_a_camera_stored_is_applied(tmp_path):
    array = np.zeros((16, 32), dtype=np.uint8)
    array[:, :16] = 255
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turn clockwise by 90°
    path = build(tmp_path, {"a.jpg": encode(array, "jpg", exif=exif, quality=95)}, packed=False)
    dataset = ImageFolder(path).load()
    assert dataset.event_shape == (1, 32, 16)
    x = dataset[0][0][0]
    assert x[:14].mean() > 0.95
    assert x[18:].mean() < -0.95


def test_with_a_resolution_the_central_square_is_resized(tmp_path, packed):
    wide = np.zeros((4, 12), dtype=np.uint8)
    wide[:, 4:8] = 200
    tall = np.ascontiguousarray(wide.T)
    path = build(tmp_path, {"a.png": encode(wide), "b.png": encode(tall)}, packed=packed)
    x = everything(ImageFolder(path, resolution=2))[0]
    assert x.shape == (2, 1, 2, 2)
    assert torch.equal(x, torch.full_like(x, 200) / 127.5 - 1)


def test_resizing_averages_what_it_leaves_out(tmp_path):
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (64, 32))
    x = everything(ImageFolder(build(tmp_path, {"a.png": encode(stripes)}, packed=False), resolution=8))[0]
    assert x.abs().max() < 0.1


def test_channels_are_converted_where_asked(tmp_path, packed):
    grey = np.full((2, 2), 51, dtype=np.uint8)
    path = build(tmp_path, {"a.png": encode(grey), "b.png": encode(np.stack([grey] * 3, -1))}, packed=packed)
    assert torch.equal(everything(ImageFolder(path, channels=1))[0], torch.full((2, 1, 2, 2), -0.6))
    assert torch.equal(everything(ImageFolder(path, channels=3))[0], torch.full((2, 3, 2, 2), -0.6))
    assert torch.equal(everything(ImageFolder(path, channels=4))[0][:, 3], torch.ones(2, 2, 2))


def test_transparent_parts_become_white(tmp_path):
    clear = np.array([[[255, 0, 0, 0], [255, 0, 0, 255]]], dtype=np.uint8)
    palette = PIL.Image.new("P", (2, 1))
    palette.putpixel((1, 0), 1)
    palette.putpalette([9, 9, 9, 255, 0, 0])
    buffer = io.BytesIO()
    palette.save(buffer, format="PNG", transparency=bytes([0, 255]))
    path = build(tmp_path, {"a.png": encode(clear), "b.png": buffer.getvalue()}, packed=False)
    x = everything(ImageFolder(path, channels=3))[0]
    assert x[:, :, 0, 0].tolist() == [[1, 1, 1]] * 2
    assert x[:, :, 0, 1].tolist() == [[1, -1, -1]] * 2
    assert everything(ImageFolder(path))[0].shape == (2, 4, 1, 2)


def labelled(tmp_path, packed, extra=None, prefix="") -> str:
    names = ["cat/1.png", "cat/2.png", "ant/deep/3.png", "bee/4.png"]
    files = {f"{prefix}{name}": encode(pixels(i)) for i, name in enumerate(names)}
    return build(tmp_path, {**files, **(extra or {})}, packed=packed)


@pytest.mark.parametrize("labels", ["auto", "folders"])
@pytest.mark.parametrize("prefix", ["", "one/two/"])
def test_sub_folders_are_classes_in_alphabetical_order(tmp_path, packed, labels, prefix):
    dataset = ImageFolder(labelled(tmp_path, packed, prefix=prefix), labels=labels).load()
    assert dataset.class_names == ("ant", "bee", "cat")
    assert dataset.num_classes == 3
    x, found = dataset.fetch(range(4))
    assert found.tolist() == [0, 1, 2, 2]
    assert torch.equal(x[0], as_tensor(pixels(2)))


def test_sub_folders_are_no_classes_where_that_is_asked(tmp_path, packed):
    assert ImageFolder(labelled(tmp_path, packed), labels="none").load().num_classes == 0


def test_a_picture_beside_the_sub_folders_leaves_auto_unlabelled_and_is_an_error_for_folders(tmp_path, packed):
    path = labelled(tmp_path, packed, {"loose.png": encode(pixels(9))})
    assert ImageFolder(path).load().num_classes == 0
    with pytest.raises(ValueError, match=r"loose.png is not in a sub-folder"):
        ImageFolder(path, labels="folders").load()


TABLE = [["cat/1.png", 5], ["cat/2.png", 0], ["ant/deep/3.png", 1], ["bee\\4.png", 1]]


@pytest.mark.parametrize("labels", ["auto", "json"])
@pytest.mark.parametrize("table", [TABLE, dict(TABLE)], ids=["pairs", "mapping"])
@pytest.mark.parametrize("prefix", ["", "one/"])
def test_dataset_json_names_the_classes(tmp_path, packed, labels, table, prefix):
    extra = {f"{prefix}dataset.json": json.dumps({"labels": table}).encode()}
    dataset = ImageFolder(labelled(tmp_path, packed, extra, prefix), labels=labels).load()
    assert (dataset.num_classes, dataset.class_names, dataset.renumbered) == (3, ("0", "1", "5"), (0, 1, 5))
    assert dataset.fetch(range(4))[1].tolist() == [1, 1, 2, 0]


def test_dataset_json_may_say_that_there_are_no_labels(tmp_path, packed):
    path = labelled(tmp_path, packed, {"dataset.json": b'{"labels": null}'})
    assert ImageFolder(path).load().num_classes == 0
    with pytest.raises(ValueError, match=r"labels='json' requires labels, but .*dataset.json has no labels"):
        ImageFolder(path, labels="json").load()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"dataset.json cannot be read as JSON"),
        (b"[]", r"dataset.json must be"),
        (b'{"classes": []}', r"dataset.json must be .*labels"),
        (b'{"labels": [1, 2]}', r"dataset.json must be"),
        (json.dumps({"labels": TABLE[:3]}).encode(), r"bee/4.png has no label in .*dataset.json"),
        (json.dumps({"labels": [*TABLE, ["x.png", 0]]}).encode(), r"label for x.png, which does not exist"),
        (
            json.dumps({"labels": [*TABLE[:3], ["bee/4.png", 0.5]]}).encode(),
            r"class of bee/4.png in .* must be .* got 0.5",
        ),
        (
            json.dumps({"labels": [*TABLE[:3], ["bee/4.png", -1]]}).encode(),
            r"class of bee/4.png in .* must be .* got -1",
        ),
        (
            json.dumps({"labels": [[name, [0, int(i != 1)]] for i, (name, _) in enumerate(TABLE)]}).encode(),
            r"is 0 altogether, but others are one-hot rows: give it a class",
        ),
    ],
)
def test_a_dataset_json_that_does_not_fit_is_refused(tmp_path, packed, content, message):
    with pytest.raises(ValueError, match=message):
        ImageFolder(labelled(tmp_path, packed, {"dataset.json": content})).load()


def test_labels_from_json_need_the_file(tmp_path, packed):
    with pytest.raises(ValueError, match=r"labels='json' requires a dataset.json in '.*set"):
        ImageFolder(labelled(tmp_path, packed), labels="json").load()


def test_mixed_sizes_name_the_first_file_that_differs(tmp_path, packed):
    sizes = {"a.png": (6, 5), "b.png": (6, 5), "c.png": (5, 6), "d.png": (9, 9)}
    path = build(tmp_path, {name: encode(pixels(0, size=size)) for name, size in sizes.items()}, packed=packed)
    with pytest.raises(ValueError, match=r"c.png is 6×5, but a.png is 5×6: give resolution="):
        ImageFolder(path).load()
    assert len(ImageFolder(path, resolution=4).load()) == 4


def test_mixed_channels_name_the_first_file_that_differs(tmp_path, packed):
    path = build(tmp_path, {"a.png": encode(pixels(0)), "b.png": encode(pixels(0, "L"))}, packed=packed)
    with pytest.raises(ValueError, match=r"but a.png has 3: give channels=3 \(--data.channels 3\), or 1 or 4"):
        ImageFolder(path).load()


def test_sixteen_bits_are_read_with_all_of_them(tmp_path, packed):
    deep = np.arange(4, dtype=np.uint16).reshape(2, 2) * 16001
    dataset = ImageFolder(build(tmp_path, {"a.png": encode(deep)}, packed=packed)).load()
    assert dataset.stored.restore(dataset.fetch([0])[0]).tolist() == [[deep.tolist()]]


@pytest.mark.parametrize("content", [b"", b"no picture", encode(pixels(0))[:20]], ids=["empty", "text", "cut header"])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_file_that_is_not_an_image_is_named(tmp_path, packed, content, suffix):
    path = build(tmp_path, {"a.png": encode(pixels(0)), f"b.{suffix}": content}, packed=packed)
    with pytest.raises(ValueError, match=rf"set.*/b.{suffix} cannot be decoded.*data convert DATA OUT --damaged drop"):
        ImageFolder(path).load()


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_picture_that_ends_early_is_named_when_the_set_is_loaded(tmp_path, packed, suffix):
    whole = encode(pixels(0, size=(64, 64)), suffix)
    files = {f"a.{suffix}": whole, f"b.{suffix}": whole[: len(whole) // 2]}
    with pytest.raises(ValueError, match=rf"b.{suffix} cannot be decoded.*data convert DATA OUT --damaged drop"):
        ImageFolder(build(tmp_path, files, packed=packed)).load()


def frames(suffix: str) -> bytes:
    """An animation of two frames."""
    first, second = (PIL.Image.fromarray(pixels(seed)) for seed in (0, 1))
    buffer = io.BytesIO()
    first.save(buffer, format=suffix.upper(), save_all=True, append_images=[second])
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_animations_are_warned_of_once(tmp_path, packed, suffix):
    still = {"a.png": encode(pixels(0)), "b.gif": encode(pixels(0), "gif"), "c.webp": encode(pixels(0), "webp")}
    ImageFolder(build(tmp_path, still, packed=packed)).load()  # a warning would be an error
    moving = {f"m{i}.{suffix}": frames(suffix) for i in range(2)}
    with pytest.warns(
        UserWarning, match=rf"2 pictures are animations, of which the first .* such as .*m0.{suffix}"
    ) as w:
        ImageFolder(build(tmp_path, still | moving, packed=packed), channels=3).load()
    assert len(w) == 1


def test_folders_without_images_beside_classes_are_warned_of(tmp_path, packed):
    pictures = {f"set/{name}/1.png": encode(pixels(0)) for name in ("ant", "bee")}
    files = {"set/cat/1.cr2": b"raw", "set/.hidden/1.cr2": b"", "__MACOSX/a/1.png": b""}
    if not packed:
        (tmp_path / "set/set/dog").mkdir(parents=True)
    expected = r"'cat' in" if packed else r"'cat', 'dog' in"
    with pytest.warns(UserWarning, match=rf"^{expected} .* have no images that are read, and are no classes"):
        assert ImageFolder(build(tmp_path, pictures | files, packed=packed)).load().num_classes == 2


def test_a_table_beside_images_without_classes_is_warned_of(tmp_path, packed):
    files = {"1.png": encode(pixels(0)), "2.png": encode(pixels(1)), "labels.csv": b"file,label"}
    path = build(tmp_path, files, packed=packed)
    with pytest.warns(
        UserWarning, match=r"labels.csv in '.*' is not read: classes are sub-folders, or in a dataset.json"
    ):
        ImageFolder(path).load()
    ImageFolder(path, labels="none").load()


def test_an_empty_folder_is_refused(tmp_path, packed):
    path = build(tmp_path, {"notes.txt": b"no pictures here"}, packed=packed)
    with pytest.raises(ValueError, match=r"no images found in .*set.* \(.bmp, "):
        ImageFolder(path).load()


def test_hidden_files_are_no_data(tmp_path, packed):
    files = {"a.png": encode(pixels(0)), "._a.png": b"", "__MACOSX/a.png": b"", ".cache/b.png": b""}
    assert len(ImageFolder(build(tmp_path, files, packed=packed)).load()) == 1


def test_a_path_that_is_neither_folder_nor_archive_is_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"text")
    with pytest.raises(
        ValueError, match=r"path must be a folder or a zip or tar archive, got '.*a.tar', which is neither"
    ):
        ImageFolder(str(tmp_path / "a.tar")).load()
    with pytest.raises(ValueError, match=r"got '.*absent', which does not exist"):
        ImageFolder(str(tmp_path / "absent")).load()


def test_a_zip_with_a_damaged_member_names_it(tmp_path):
    """The directory at the end is whole, the stored bytes of one member are not."""
    noise = encode(pixels(1, size=(40, 40)), "bmp")
    path = build(tmp_path, {"a.bmp": encode(pixels(0, size=(40, 40)), "bmp"), "b.bmp": noise}, packed=True)
    content = bytearray(Path(path).read_bytes())
    content[content.index(noise) + 2000] ^= 0xFF
    Path(path).write_bytes(content)
    with pytest.raises(ValueError, match=r"set.zip/b.bmp cannot be read: Bad CRC-32"):
        ImageFolder(path).load()


@pytest.fixture
def lazy(monkeypatch):
    monkeypatch.setattr(decoded, "MAX_BYTES_IN_MEMORY", 0)


def test_a_large_set_is_decoded_when_fetched_with_the_same_result(tmp_path, packed, monkeypatch):
    path = labelled(tmp_path, packed)
    x, labels = everything(ImageFolder(path))
    monkeypatch.setattr(decoded, "MAX_BYTES_IN_MEMORY", 0)
    dataset = ImageFolder(path).load()
    assert not hasattr(dataset, "_x")
    assert dataset.describe() == "4 images of 3×5×6 in 3 classes"
    found, found_labels = dataset.fetch([2, 0])
    assert torch.equal(found, x[[2, 0]])
    assert found_labels.tolist() == labels[[2, 0]].tolist()


def test_large_files_of_small_images_are_decoded_once_each(tmp_path, packed, monkeypatch):
    path = labelled(tmp_path, packed)
    x, labels = everything(ImageFolder(path))
    monkeypatch.setattr(decoded, "MAX_BYTES_IN_MEMORY", x.numel())  # of the pixels; the files have more
    dataset = ImageFolder(path).load()
    names = []
    decode = decoded.decode_picture
    monkeypatch.setattr(decoded, "decode_picture", lambda *given: names.append(given[1]) or decode(*given))
    for chosen in ([2, 0], [0, 2, 2], [3, 1, 0, 2]):
        found, found_labels = dataset.fetch(chosen)
        assert torch.equal(found, x[chosen])
        assert found_labels.tolist() == labels[chosen].tolist()
    assert len(names) == 4


def test_a_large_set_names_a_broken_file_when_it_is_fetched(tmp_path, packed, lazy):
    whole = encode(pixels(0, size=(64, 64)))
    dataset = ImageFolder(build(tmp_path, {"a.png": whole, "b.png": whole[:4000]}, packed=packed)).load()
    dataset.fetch([0])
    with pytest.raises(ValueError, match=r"b.png cannot be decoded"):
        dataset.fetch([1])


def test_a_file_that_vanished_is_named(tmp_path, lazy):
    dataset = ImageFolder(labelled(tmp_path, False)).load()
    os.unlink(tmp_path / "set" / "bee" / "4.png")
    with pytest.raises(ValueError, match=r"bee/4.png cannot be read"):
        dataset.fetch([1])


def test_a_large_set_can_be_pickled_while_its_archive_is_open(tmp_path, packed, lazy):
    dataset = ImageFolder(labelled(tmp_path, packed)).load()
    before = dataset.fetch([3])[0]
    assert torch.equal(pickle.loads(pickle.dumps(dataset)).fetch([3])[0], before)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_worker_processes_read_the_same_archive_side_by_side(tmp_path, packed, lazy):
    dataset = ImageFolder(labelled(tmp_path, packed)).load()
    expected = dataset.fetch(range(4))[0]
    loader = torch.utils.data.DataLoader(dataset, batch_size=1, num_workers=2, multiprocessing_context="fork")
    assert torch.equal(torch.cat([x for x, _ in loader]), expected)


def test_a_linked_folder_is_followed(tmp_path):
    path = labelled(tmp_path, False)
    (tmp_path / "links").mkdir()
    os.symlink(path, tmp_path / "links" / "set")
    assert len(ImageFolder(str(tmp_path / "links")).load()) == 4


def test_a_link_to_nowhere_is_named(tmp_path):
    path = labelled(tmp_path, False)
    os.symlink("nowhere", f"{path}/cat/5.png")
    with pytest.raises(ValueError, match=r"path '.*set' cannot be read: .*cat/5.png"):
        ImageFolder(path).load()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"resolution": 0}, "resolution must be >= 1"), ({"channels": 2}, "channels must be one of 1, 3, 4, got 2")],
)
def test_arguments_outside_their_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageFolder("x", **arguments)


def test_the_source_survives_its_plain_form():
    source = ImageFolder("pictures", resolution=32, labels="none")
    assert from_config(Source, to_config(source)) == source


def test_folders_that_are_numbers_are_classes_in_the_order_of_the_numbers(tmp_path, packed):
    files = {f"{name}/a.png": encode(pixels(i)) for i, name in enumerate(["10", "2", "1", "030"])}
    dataset = ImageFolder(build(tmp_path, files, packed=packed)).load()
    assert dataset.class_names == ("1", "2", "10", "030")
