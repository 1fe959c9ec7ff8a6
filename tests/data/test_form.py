import io
import json

import numpy as np
import PIL.Image
import pytest
import torch

from openedm.data import Form, ImageFolder
from openedm.data.decoding import as_pixels, decode_upright
from openedm.ground.choices import from_config, to_config
from picture_files import encode, pixels


def decoded(content: bytes, channels: int = 3) -> np.ndarray:
    return np.asarray(decode_upright(io.BytesIO(content), "a", channels))


def test_sixteen_bits_are_rounded_to_eight():
    levels = np.array([[0, 127, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    assert decoded(encode(levels), 1).tolist() == [[0, 0, 0, 1, 1, 128, 255]]
    assert decoded(encode(levels, "TIFF"), 1).tolist() == [[0, 0, 0, 1, 1, 128, 255]]


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_thirty_two_bits_are_refused_by_name(kind):
    content = encode(PIL.Image.fromarray(np.zeros((2, 2), dtype=kind)), "TIFF")
    with pytest.raises(ValueError, match=r"a has 1 channels of .*32, which cannot be converted to 3"):
        decoded(content)


def test_cmyk_becomes_rgb():
    cyan = PIL.Image.new("CMYK", (4, 4), (255, 0, 0, 0))
    assert np.abs(decoded(encode(cyan, "TIFF"))[0, 0].astype(int) - [0, 255, 255]).max() == 0
    assert np.abs(decoded(encode(cyan, "JPEG", quality=95))[0, 0].astype(int) - [0, 255, 255]).max() <= 3


def test_palettes_grey_and_transparency_become_rgb_on_white():
    palette = PIL.Image.new("P", (1, 1))
    palette.putpalette([10, 20, 30])
    assert decoded(encode(palette))[0, 0].tolist() == [10, 20, 30]
    assert decoded(encode(palette, transparency=0))[0, 0].tolist() == [255, 255, 255]
    assert decoded(encode(PIL.Image.new("LA", (1, 1), (0, 128))))[0, 0].tolist() == [127, 127, 127]
    assert decoded(encode(PIL.Image.new("1", (1, 1), 1)))[0, 0].tolist() == [255, 255, 255]
    assert decoded(encode(PIL.Image.new("RGBA", (1, 1), (9, 8, 7, 6))), 4)[0, 0].tolist() == [9, 8, 7, 6]


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF"])
def test_stored_orientations_are_applied(kind):
    array = np.zeros((16, 32, 3), dtype=np.uint8)
    array[:, :16] = 255
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turn clockwise by 90°
    found = decoded(encode(array, kind, exif=exif))
    assert found.shape == (32, 16, 3)
    assert found[:14].mean() > 250
    assert found[18:].mean() < 5


def test_centre_takes_the_central_square():
    wide = np.zeros((4, 12, 3), dtype=np.uint8)
    wide[:, 4:8] = pixels(0, (4, 4))
    found = Form(size=4).apply(PIL.Image.fromarray(wide))
    assert np.array_equal(np.asarray(found), wide[:, 4:8])


def test_adm_halves_by_averages_then_resizes_the_shorter_side_and_crops():
    """16 × 32 to 4: two halvings give averages over 4 × 4, rounded in four steps, and nothing is left to resize."""
    array = pixels(1, (32, 16))
    found = np.asarray(Form(size=4, crop="adm").apply(PIL.Image.fromarray(array)))
    means = array.reshape(4, 4, 8, 4, 3).mean((1, 3))[:, 2:6]
    assert found.shape == (4, 4, 3)
    assert np.abs(found - means).max() <= 4 * 0.5


def test_adm_is_bicubic_below_twice_the_size():
    array = pixels(2, (7, 5))
    expected = PIL.Image.fromarray(array).resize((6, 4), PIL.Image.Resampling.BICUBIC).crop((1, 0, 5, 4))
    assert np.array_equal(np.asarray(Form(size=4, crop="adm").apply(PIL.Image.fromarray(array))), np.asarray(expected))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_wide_stands_between_black_bars(mode):
    picture = PIL.Image.new(mode, (40, 30), "white")
    found = as_pixels(Form(size=16, crop="wide", height=10, channels=len(mode)).apply(picture))
    assert found.shape == (len(mode), 16, 16)
    colours = found[:3]
    assert bool((colours[:, 3:13] == 255).all())
    assert bool((colours[:, :3] == 0).all() and (colours[:, 13:] == 0).all())
    assert mode != "RGBA" or bool((found[3] == 255).all())


def test_none_keeps_the_picture_or_resizes_all_of_it():
    array = pixels(3, (6, 4))
    assert np.array_equal(np.asarray(Form(crop="none").apply(PIL.Image.fromarray(array))), array)
    assert Form(size=5, crop="none").apply(PIL.Image.fromarray(array)).size == (5, 5)


@pytest.mark.parametrize("encoding", ["png", "webp"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_encodings_lose_nothing(encoding, channels):
    picture = PIL.Image.fromarray(pixels(4, bands=channels))
    again = decoded(Form(size=8, encoding=encoding, channels=channels).encode(picture), channels)
    assert torch.equal(torch.from_numpy(again.copy()), torch.from_numpy(np.asarray(picture).copy()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "size must be given with crop='centre', got None"),
        ({"size": 0}, "size must be >= 1, got 0"),
        ({"size": 8, "crop": "wide"}, "height must be given with crop='wide' only, got None with 'wide'"),
        ({"size": 8, "height": 4}, "height must be given with crop='wide' only, got 4 with 'centre'"),
        ({"size": 8, "crop": "wide", "height": 9}, "height must be between 1 and 8, got 9"),
        ({"size": 8, "channels": 2}, "channels must be one of 1, 3, 4, got 2"),
    ],
)
def test_values_out_of_range_are_refused(arguments, message, without_type_checker):
    with pytest.raises(ValueError, match=message):
        Form(**arguments)


@pytest.mark.parametrize("size", ["4x10", "4 x 10", "4×10", "[4, 10]", "4,10", (4, 10)])
def test_a_size_is_height_and_width_however_it_is_written(size):
    assert Form(size=size).size == (4, 10)
    assert ImageFolder("a", resolution=size).resolution == (4, 10)
    assert from_config(Form, json.loads(json.dumps(to_config(Form(size=size))))) == Form(size=(4, 10))


@pytest.mark.parametrize("size", [8, "8", "8x8", (8, 8)])
def test_a_square_has_one_number(size):
    assert Form(size=size).size == 8


@pytest.mark.parametrize("size", ["", "x", "4x", "4x5x6", "a", "-4x3", (4,) * 3, 4.5, True])
def test_what_is_not_a_size_is_refused(size, without_type_checker):
    with pytest.raises((ValueError, TypeError), match="size must be"):
        Form(size=size)


@pytest.mark.parametrize("crop", ["centre", "adm", "pad", "none"])
@pytest.mark.parametrize("shape", [(20, 40), (41, 20), (9, 9), (3, 50)])
def test_pictures_of_all_sizes_become_one_rectangle(shape, crop):
    picture = PIL.Image.fromarray(np.full((*shape, 3), 200, dtype=np.uint8))
    found = np.asarray(Form(size=(8, 12), crop=crop).apply(picture))
    assert found.shape == (8, 12, 3)
    assert (found == 200).all() == (crop != "pad")
    assert (found == 200).any()


def test_padding_keeps_the_proportions_and_the_whole_picture():
    picture = PIL.Image.fromarray(np.full((30, 10, 3), 255, dtype=np.uint8))
    found = np.asarray(Form(size=(12, 12), crop="pad").apply(picture))[:, :, 0]
    assert (found.max(0) > 0).tolist() == [False] * 4 + [True] * 4 + [False] * 4
