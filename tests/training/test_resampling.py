"""The warp, against images whose continuation by reflection is known in closed form: sums of cosines."""

import math

import pytest
import torch

from openedm.training import resampling
from openedm.training.resampling import warp

HEIGHT, WIDTH = 10, 13
EXACT = {"rtol": 0, "atol": 2e-6}
"""The kernel's error, of values about 1; Kaiser and Bessel's with 8 taps on a grid twice as fine is just below 1e-6."""


def identity(batch=1):
    return torch.eye(2, dtype=torch.float64).repeat(batch, 1, 1)


def rotation(theta):
    """The inverse of a counter-clockwise rotation, for offsets (right, down)."""
    return torch.tensor([[[math.cos(theta), -math.sin(theta)], [math.sin(theta), math.cos(theta)]]]).double()


def cosines(coefficients, right, down, period=(WIDTH, HEIGHT)):
    """Σ a_kl cos(π k x/(W − 1)) cos(π l y/(H − 1)): any band-limited function that reflection continues."""
    k, low = (torch.arange(n, dtype=torch.float64) for n in coefficients.shape)
    columns = (math.pi * k * right[..., None] / (period[0] - 1)).cos()
    rows = (math.pi * low * down[..., None] / (period[1] - 1)).cos()
    return torch.einsum("kl,...k,...l->...", coefficients, columns, rows)


def pixels(height=HEIGHT, width=WIDTH):
    down, right = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    return right, down


@pytest.fixture
def coefficients():
    a = torch.randn(WIDTH, HEIGHT, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return a / a.norm()


@pytest.mark.parametrize("shift", [(0.5, 0.0), (-0.37, 2.81), (40.25, -17.5)])
def test_a_translation_of_a_band_limited_image_is_exact(coefficients, shift):
    right, down = pixels()
    moved = warp(cosines(coefficients, right, down)[None, None], identity(), torch.tensor([shift]).double())
    torch.testing.assert_close(moved[0, 0], cosines(coefficients, right - shift[0], down - shift[1]), **EXACT)


def test_any_warp_of_an_image_without_high_frequencies_is_exact(coefficients):
    right, down = pixels()
    smooth = torch.zeros_like(coefficients)
    smooth[: WIDTH // 3, : HEIGHT // 3] = coefficients[: WIDTH // 3, : HEIGHT // 3]
    linear = torch.tensor([[[0.9, -0.5], [0.4, 1.1]]], dtype=torch.float64)
    moved = warp(cosines(smooth, right, down)[None, None], linear, torch.tensor([[0.7, -1.3]]).double())
    x, y = right - (WIDTH - 1) / 2 - 0.7, down - (HEIGHT - 1) / 2 + 1.3
    expected = cosines(smooth, 0.9 * x - 0.5 * y + (WIDTH - 1) / 2, 0.4 * x + 1.1 * y + (HEIGHT - 1) / 2)
    torch.testing.assert_close(moved[0, 0], expected, **EXACT)


def test_a_translation_by_whole_pixels_moves_pixels_and_continues_by_reflection():
    x = torch.randn(1, 2, 7, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moved = warp(x, identity(), torch.tensor([[3.0, -2.0]]).double())
    padded = torch.nn.functional.pad(x, (3, 0, 0, 2), mode="reflect")
    torch.testing.assert_close(moved, padded[..., 2:, :9], rtol=0, atol=5e-6)


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("size", [8, 9])
def test_rotations_by_right_angles_move_pixels(turns, size):
    x = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    turned = warp(x, rotation(turns * math.pi / 2), torch.zeros(1, 2, dtype=torch.float64))
    torch.testing.assert_close(turned, torch.rot90(x, turns, (-2, -1)), rtol=0, atol=1e-5)


def test_frequencies_that_a_smaller_image_cannot_show_are_left_out_and_others_stay():
    n = 33
    right, down = pixels(n, n)
    linear = 2 * identity()  # half the size
    for k, shown in ((10, 1.0), (15, 1.0), (17, 0.0), (24, 0.0), (31, 0.0)):
        a = torch.zeros(n, n, dtype=torch.float64)
        a[k, 0] = 1.0
        small = warp(cosines(a, right, down, (n, n))[None, None], linear, torch.zeros(1, 2).double())
        expected = shown * cosines(a, 2 * right - (n - 1) / 2, 2 * down, (n, n))
        torch.testing.assert_close(small[0, 0], expected, **EXACT)


def test_a_finer_image_keeps_every_frequency(coefficients):
    right, down = pixels()
    large = warp(cosines(coefficients, right, down)[None, None], 0.5 * identity(), torch.zeros(1, 2).double())
    x, y = (right + (WIDTH - 1) / 2) / 2, (down + (HEIGHT - 1) / 2) / 2
    torch.testing.assert_close(large[0, 0], cosines(coefficients, x, y), **EXACT)


def test_single_precision_costs_a_few_roundings():
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    linear, shift = rotation(0.3).repeat(4, 1, 1) * 0.8, torch.full((4, 2), 1.7, dtype=torch.float64)
    single = warp(x, linear, shift)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), warp(x.double(), linear, shift), rtol=0, atol=1e-5)


def test_an_image_is_warped_alike_in_any_batch(monkeypatch):
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    linear, shift = (
        rotation(0.3).repeat(5, 1, 1),
        torch.randn(5, 2, generator=torch.Generator().manual_seed(1)).double(),
    )
    alone = torch.cat([warp(x[i : i + 1], linear[i : i + 1], shift[i : i + 1]) for i in range(5)])
    monkeypatch.setattr(resampling, "CHUNK_SIZE", 2)
    torch.testing.assert_close(warp(x, linear, shift), alone, rtol=0, atol=1e-6)
    assert warp(x[:0], linear[:0], shift[:0]).shape == (0, 1, 8, 8)


def test_an_image_of_one_line_is_an_error_that_says_so():
    with pytest.raises(ValueError, match=r"images must have sides of at least 2 pixels, got \(1, 8\)"):
        warp(torch.zeros(1, 1, 1, 8), identity(), torch.zeros(1, 2).double())
