import imagecodecs
import numpy as np
import PIL.Image
import pytest
import torch

from openedm.data import image_grid, save_image, to_image, to_uint8
from openedm.data.pictures import captioned
from openedm.data.stored import Stored, as_float
from openedm.ground.storage import replacing


def test_every_byte_survives_scaling_and_back():
    bytes_ = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(as_float(bytes_)), bytes_)


def test_bytes_are_the_nearest_and_clipped():
    step = 2 / 255
    x = torch.tensor([-9.0, -1 + 0.49 * step, -1 + 0.51 * step, 1 - 0.49 * step, 1.5, float("inf")])
    assert to_uint8(x).tolist() == [0, 0, 1, 255, 255, 255]


def test_there_is_no_byte_for_nan():
    with pytest.raises(ValueError, match="x must not have NaN, got 2 among 3 values"):
        to_uint8(torch.tensor([float("nan"), 0.0, float("nan")]))


def test_a_grid_lays_images_row_by_row_with_background_between_and_after():
    x = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    grid = image_grid(x, columns=2, padding=1, background=7)
    assert grid[:, :, 0].tolist() == [
        [0, 0, 7, 128, 128],
        [0, 0, 7, 128, 128],
        [7, 7, 7, 7, 7],
        [255, 255, 7, 7, 7],
        [255, 255, 7, 7, 7],
    ]


def test_a_grid_enlarges_without_smoothing():
    x = torch.tensor([[-1.0, 1.0]]).view(1, 1, 1, 2)
    assert image_grid(x, scale=2)[:, :, 0].tolist() == [[0, 0, 255, 255]] * 2


def test_a_grid_keeps_colours_apart():
    x = torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1, 1)
    assert image_grid(x).tolist() == [[[255, 128, 0]]]


def test_a_grid_is_about_square_and_no_wider_than_its_images():
    assert image_grid(torch.zeros(9, 1, 4, 4), padding=0).shape == (12, 12, 1)
    assert image_grid(torch.zeros(2, 1, 4, 4), columns=8, padding=0).shape == (4, 8, 1)


@pytest.mark.parametrize(
    ("x", "arguments", "message"),
    [
        (torch.zeros(0, 1, 4, 4), {}, "number of images in x"),
        (torch.zeros(1, 1, 4, 4), {"columns": 0}, "columns must be >= 1"),
        (torch.zeros(1, 1, 4, 4), {"padding": -1}, "padding must be >= 0"),
        (torch.zeros(1, 1, 4, 4), {"scale": 0}, "scale must be >= 1"),
        (torch.zeros(1, 1, 4, 4), {"background": 256}, "background must be between 0 and 255"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(x, arguments, message):
    with pytest.raises(ValueError, match=message):
        image_grid(x, **arguments)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_a_saved_picture_reads_back_byte_for_byte(tmp_path, channels, mode):
    x = torch.linspace(-1, 1, channels * 6).view(channels, 2, 3)
    for name, image in (("a.png", x), ("b.PNG", to_uint8(x).permute(1, 2, 0).numpy())):
        save_image(image, tmp_path / name)
        with PIL.Image.open(tmp_path / name) as read:
            assert read.mode == mode
            pixels = np.asarray(read).reshape(2, 3, channels)
        assert np.array_equal(pixels, to_uint8(x).permute(1, 2, 0).numpy())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.PNG"]


@pytest.mark.parametrize(("channels", "shown"), [(1, 1), (2, 1), (3, 3), (4, 4), (5, 3), (13, 3)])
def test_a_grid_shows_the_first_channels_of_more_than_a_file_holds(channels, shown):
    x = torch.rand(4, channels, 5, 6) * 2 - 1
    assert np.array_equal(image_grid(x), image_grid(x[:, :shown]))
    assert image_grid(x).shape[-1] == shown


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_sample_of_sixteen_bits_is_written_with_all_of_them(tmp_path, channels):
    stored = Stored("uint16")
    pixels = np.random.default_rng(0).integers(0, 65536, (1, channels, 7, 6), dtype=np.uint16)
    save_image(stored.events(torch.from_numpy(pixels))[0], tmp_path / "a.png", stored)
    found = np.asarray(imagecodecs.imread(tmp_path / "a.png")).reshape(7, 6, channels)
    assert np.array_equal(found, pixels[0].transpose(1, 2, 0))
    with pytest.raises(ValueError, match="the format of 16 bits a channel must be one of 'PNG'"):
        save_image(torch.zeros(channels, 2, 2), tmp_path / "b.jpg", stored)


def test_a_mask_is_written_with_one_bit(tmp_path):
    stored, mask = Stored("bool"), torch.rand(1, 1, 9, 9) > 0.5
    save_image(stored.events(mask)[0], tmp_path / "a.png", stored)
    with PIL.Image.open(tmp_path / "a.png") as image:
        assert image.mode == "1"
        assert np.array_equal(np.asarray(image), mask[0, 0].numpy())


def test_a_grid_can_be_made_a_picture():
    assert to_image(image_grid(torch.zeros(4, 3, 4, 4))).size == (9, 9)


def test_a_picture_of_unknown_format_or_channels_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"path must end in an image format such as .png, got '.*a.txt'"):
        save_image(torch.zeros(1, 2, 2), tmp_path / "a.txt")
    with pytest.raises(ValueError, match="channels of image must be one of 1, 3, 4, got 2"):
        save_image(torch.zeros(2, 2, 2), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_captions_stand_above_their_columns_and_downwards_where_they_are_too_long():
    grid = image_grid(torch.full((4, 3, 32, 32), -1.0), 2)
    upright, down = captioned(grid, ["cat", "dog"]), captioned(grid, ["cat", "automobile"])
    for found in (upright, down):
        assert np.array_equal(found[-len(grid) :], grid)
        strip = found[: -len(grid), :, 0]
        assert (strip[:, :32] < 128).any()
        assert (strip[:, 33:] < 128).any()
        assert (strip[:4] == 255).all()
    assert len(upright) < len(down)
    assert captioned(image_grid(torch.zeros(2, 1, 8, 8), 2), ["0", "1"]).shape[2] == 1
    with pytest.raises(ValueError, match="number of captions"):
        captioned(grid, [])
