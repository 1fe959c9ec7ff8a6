"""Figures of series, fields and volumes."""

import numpy as np
import pytest
import torch

from openedm.plots import event_grid


def test_a_series_has_one_line_for_each_channel_and_all_series_have_one_scale():
    x = torch.randn(5, 2, 12)
    figure = event_grid(x, columns=3)
    tiles = figure.axes
    assert len(tiles) == 6
    for sample, axes in zip(x, tiles, strict=False):
        assert [line.get_ydata().tolist() for line in axes.lines] == sample.double().tolist()
        assert axes.get_ylim() == tiles[0].get_ylim()
    assert not tiles[5].axison


def test_a_volume_is_shown_by_its_three_middle_slices_on_one_scale():
    x = torch.arange(2 * 3 * 4 * 5 * 6, dtype=torch.float32).reshape(2, 3, 4, 5, 6)
    tiles = event_grid(x).axes
    picture = np.asarray(tiles[1].images[0].get_array().filled(np.nan))
    assert picture.shape == (5, 6 + 1 + 6 + 1 + 5)
    assert np.array_equal(picture[:, :6], x[1, 0, 2])
    assert np.array_equal(picture[:4, 7:13], x[1, 0, :, 2])
    assert np.array_equal(picture[:4, 14:], x[1, 0, :, :, 3])
    assert tiles[0].images[0].get_clim() == tiles[1].images[0].get_clim()


def test_a_field_is_shown_by_its_first_channel_on_the_scale_of_its_values():
    x = 280 + 10 * torch.randn(4, 2, 6, 8)
    axes = event_grid(x, columns=4).axes[3]
    assert np.array_equal(axes.images[0].get_array(), x[3, 0])
    low, high = axes.images[0].get_clim()
    assert 240 < low < high < 320


@pytest.mark.parametrize(
    ("x", "columns", "message"),
    [
        (torch.zeros(4, 2), None, r"x must hold series .* got \(4, 2\)"),
        (torch.zeros(4, 1, 8), 0, "columns must be >= 1, got 0"),
        (torch.full((4, 1, 8), torch.nan), None, "x must hold finite numbers"),
        (torch.zeros(0, 1, 8), None, "x must hold finite numbers only, at least one"),
    ],
)
def test_what_cannot_be_drawn_is_refused(x, columns, message):
    with pytest.raises(ValueError, match=message):
        event_grid(x, columns)


def test_constant_samples_are_drawn():
    assert event_grid(torch.ones(1, 1, 8)).axes
    assert event_grid(torch.ones(1, 1, 4, 4, 4)).axes
