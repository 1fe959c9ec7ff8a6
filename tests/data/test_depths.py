"""Images of every depth and number of channels come in and out again without loss."""

import io

import imagecodecs
import numpy as np
import PIL.Image
import pytest
import tifffile
import torch

from openedm.data import Arrays, Form, ImageFolder, MemoryImages, Shards, convert, decoded, save_image
from openedm.data.decoding import Header, read_header
from picture_files import encode

RNG = np.random.default_rng(0)


def numbers(*shape, dtype="uint16"):
    return RNG.integers(0, np.iinfo(dtype).max, (7, 6, *shape), dtype=dtype, endpoint=True)


def png(pixels):
    return imagecodecs.png_encode(pixels)


def tiff(pixels, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


GREY, RGB, RGBA = numbers(), numbers(3), numbers(4)
BANDS = {n: numbers(n) for n in (2, 5, 13)}
MASK = RNG.random((7, 6)) > 0.5
FILES = {
    "grey 16 png": ("a.png", png(GREY), GREY),
    "grey 16 png by Pillow": ("a.png", encode(GREY), GREY),
    "rgb 16 png": ("a.png", png(RGB), RGB),
    "rgba 16 png": ("a.png", png(RGBA), RGBA),
    "grey 16 tiff": ("a.tif", tiff(GREY), GREY),
    "grey 16 tiff, big-endian": ("a.tif", tiff(GREY, byteorder=">"), GREY),
    "rgb 16 tiff": ("a.tif", tiff(RGB, photometric="rgb"), RGB),
    "rgb 16 tiff, compressed": ("a.tiff", tiff(RGB, photometric="rgb", compression="lzw"), RGB),
    "rgb 16 tiff, planar": ("a.tif", tiff(RGB.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"), RGB),
    **{
        f"{n} bands 16 tiff": ("a.tif", tiff(x, photometric="minisblack", planarconfig="contig"), x)
        for n, x in BANDS.items()
    },
    "5 bands 8 tiff": (
        "a.tif",
        tiff((BANDS[5] >> 8).astype("uint8"), photometric="minisblack", planarconfig="contig"),
        (BANDS[5] >> 8).astype("uint8"),
    ),
    "bool png": ("a.png", encode(PIL.Image.fromarray(MASK)), MASK),
    "bool tiff": ("a.tif", encode(PIL.Image.fromarray(MASK), "TIFF"), MASK),
    "16 pgm": ("a.pgm", b"P5 6 7 65535\n" + GREY.astype(">u2").tobytes(), GREY),
    "8 ppm": ("a.ppm", b"P6 6 7 255\n" + (RGB >> 8).astype("uint8").tobytes(), (RGB >> 8).astype("uint8")),
}


def folder(tmp_path, files):
    (tmp_path / "data").mkdir(exist_ok=True, parents=True)
    for name, content in files.items():
        (tmp_path / "data" / name).write_bytes(content)
    return str(tmp_path / "data")


def back(dataset):
    x = dataset.fetch(range(len(dataset)))[0]
    assert x.dtype == torch.float32
    assert x.abs().max() <= 1
    return np.moveaxis(dataset.stored.restore(x) if dataset.stored else ((x + 1) * 127.5).round().byte().numpy(), 1, -1)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(("name", "content", "pixels"), FILES.values(), ids=FILES.keys())
def test_a_file_of_any_depth_is_read_exactly(tmp_path, monkeypatch, name, content, pixels, large):
    if large:
        monkeypatch.setattr(decoded, "MAX_BYTES_IN_MEMORY", 0)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    path = folder(tmp_path, {name: content, f"b{name}": content})
    header = read_header(io.BytesIO(content), name)
    assert header == Header(pixels.shape[2], *pixels.shape[:2], str(pixels.dtype))
    dataset = ImageFolder(path).load()
    assert dataset.describe() == f"2 images of {pixels.shape[2]}×7×6 without labels"
    assert back(dataset).dtype == pixels.dtype
    assert np.array_equal(back(dataset)[1], pixels)


@pytest.mark.parametrize("name", [key for key in FILES if "bands" not in key])
def test_conversion_keeps_the_depth_and_samples_are_written_with_it(tmp_path, name):
    file, content, pixels = FILES[name]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    images = MemoryImages({file: content})
    manifest = convert(images, tmp_path / "out", Form(crop="none", channels=channels))
    assert manifest["dtype"] == str(pixels.dtype)
    dataset = Shards(str(tmp_path / "out")).load()
    assert np.array_equal(back(dataset)[0].squeeze(), pixels)
    (tmp_path / "again").mkdir()
    save_image(dataset.fetch([0])[0][0], tmp_path / "again" / "a.png", dataset.stored)
    assert np.array_equal(back(ImageFolder(str(tmp_path / "again")).load())[0].squeeze(), pixels)


def test_bits_are_reduced_only_when_asked_for(tmp_path):
    manifest = convert(MemoryImages({"a.png": png(RGB)}), tmp_path / "out", Form(crop="none", bits=8))
    assert manifest["dtype"] == "uint8"
    found = back(Shards(str(tmp_path / "out")).load())[0].astype(float)
    assert np.abs(found - RGB / 257).max() <= 0.5
    with pytest.raises(ValueError, match="encoding must be 'png' for 16 bits a channel, or bits 8"):
        convert(MemoryImages({"a.png": png(RGB)}), tmp_path / "webp", Form(crop="none", encoding="webp"))


def test_depths_that_differ_become_the_deepest_without_loss(tmp_path):
    grey = (GREY >> 8).astype("uint8")
    files = {"a.png": encode(grey), "b.png": png(GREY), "c.png": encode(PIL.Image.fromarray(MASK))}
    found = back(ImageFolder(folder(tmp_path, files)).load())[..., 0]
    assert np.array_equal(found, np.stack([grey * np.uint16(257), GREY, MASK * np.uint16(65535)]))


def test_numbers_without_a_range_are_refused_and_read_with_one(tmp_path):
    field = RNG.random((7, 6), dtype=np.float32) * 3 - 1
    path = folder(tmp_path, {"a.tif": tiff(field)})
    with pytest.raises(ValueError, match=r"a.tif has pixels of float32.*range="):
        ImageFolder(path).load()
    dataset = ImageFolder(path, range=(-1, 2)).load()
    assert np.allclose(back(dataset)[0, ..., 0], field, atol=1e-6)
    with pytest.raises(ValueError, match=r"x must be in range=\(0, 1\)"):
        ImageFolder(path, range=(0, 1)).load()


def test_twelve_bits_in_sixteen_have_a_range(tmp_path):
    path = folder(tmp_path, {"a.png": png(GREY >> 4)})
    dataset = ImageFolder(path, range=(0, 4095)).load()
    assert dataset.fetch([0])[0].max() > 0.9
    assert np.array_equal(back(dataset)[0, ..., 0], GREY >> 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tiff(np.stack([GREY, GREY]), photometric="minisblack"), "has 2 pages: save each page"),
        (tiff(BANDS[5], photometric="minisblack"), "pages: save each page"),
        (tiff(numbers(dtype="uint32")), "range|uint32"),
        (tiff(GREY, photometric="miniswhite"), "white as 0"),
        (tiff(numbers(3), photometric="rgb", compression="lzw")[:-100], "cannot be (decoded|read)"),
    ],
)
def test_a_tiff_that_cannot_be_read_is_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=f"a.tif.*({message})"):
        ImageFolder(folder(tmp_path, {"a.tif": content})).load()


def test_bands_have_no_shards_and_are_told_so(tmp_path):
    bands = tiff(BANDS[5], photometric="minisblack", planarconfig="contig")
    with pytest.raises(ValueError, match=r"a.tif has 5 channels of uint16, which cannot be converted to 3"):
        convert(MemoryImages({"a.tif": bands}), tmp_path / "out", Form(crop="none"))


@pytest.mark.parametrize("crop", ["centre", "adm", "pad", "none"])
@pytest.mark.parametrize("size", [(4, 10), (10, 4), (5, 5)])
def test_deep_images_are_resized_as_those_of_eight_bits(tmp_path, crop, size):
    byte = RNG.integers(0, 256, (23, 17, 3), dtype=np.uint8)
    eight = ImageFolder(folder(tmp_path / "8", {"a.png": encode(byte)}), resolution=size, crop=crop)
    deep = ImageFolder(folder(tmp_path / "16", {"a.png": png(byte.astype("uint16") * 257)}), resolution=size, crop=crop)
    a, b = (source.load().fetch([0])[0] for source in (eight, deep))
    assert a.shape == b.shape == (1, 3, *size)
    assert (a - b).abs().max() < 3 / 127.5  # Pillow rounds bytes after each pass


def test_arrays_of_masks_are_pictures_of_masks(tmp_path):
    np.save(tmp_path / "x.npy", np.stack([MASK, ~MASK]))
    dataset = Arrays(str(tmp_path / "x.npy")).load()
    assert dataset.event_shape == (1, 7, 6)
    assert np.array_equal(back(dataset)[..., 0], np.stack([MASK, ~MASK]))
