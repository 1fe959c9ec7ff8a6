import re
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openedm.data import Arrays, InMemory, Pairs, to_uint8, wrap
from openedm.data.stored import Stored, channels_seem_last
from openedm.ground.choices import from_config, to_config

RNG = np.random.default_rng(0)
PICTURES = torch.from_numpy(RNG.random((6, 3, 12, 10), dtype=np.float32))


def everything(dataset):
    return dataset.fetch(range(len(dataset)))[0]


def back(dataset):
    """The samples of a dataset as they were stored."""
    return (dataset.stored or Stored("float32")).restore(everything(dataset))


ARRAYS = {
    "uint16": RNG.integers(0, 65536, (4, 2, 9, 9), dtype=np.uint16),
    "uint16 of 13 channels": RNG.integers(0, 65536, (4, 13, 9, 9), dtype=np.uint16),
    "bool": RNG.random((4, 1, 9, 9)) > 0.5,
    "bool of 5 channels": RNG.random((4, 5, 9, 9)) > 0.5,
}


@pytest.mark.parametrize("x", ARRAYS.values(), ids=ARRAYS.keys())
def test_integers_come_back_exactly_from_python_and_from_a_file(tmp_path, x):
    np.savez(tmp_path / "x.npz", x=x)
    for dataset in (InMemory(torch.from_numpy(x)), Arrays(str(tmp_path / "x.npz")).load()):
        assert dataset.kind == "images"
        assert everything(dataset).abs().max() <= 1
        assert back(dataset).dtype == x.dtype
        assert np.array_equal(back(dataset), x)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize(
    ("dtype", "limits"),
    [
        ("uint8", (0, 1)),
        ("uint16", (0, 4095)),
        ("int64", (0, 255)),
        ("int16", (-1000, 3000)),
        ("float32", (0, 1)),
        ("float64", (0, 255)),
        ("float32", (0, 65535)),
    ],
)
@pytest.mark.parametrize("shape", [(4, 3, 9, 8), (4, 5, 9, 8), (4, 2, 30), (4, 1, 5, 6, 7)])
def test_numbers_of_a_given_range_and_layout_come_back(tmp_path, dtype, limits, layout, shape):
    low, high = limits
    x = RNG.integers(low, high, shape, endpoint=True).astype(dtype)
    x = np.moveaxis(x, 1, -1) if layout == "channels_last" else x
    np.save(tmp_path / "x.npy", x)
    source = Arrays(str(tmp_path / "x.npy"), range=limits, layout=layout)
    assert from_config(Arrays, to_config(source)) == source
    for dataset in (InMemory(torch.from_numpy(x), range=limits, layout=layout), source.load()):
        assert dataset.event_shape == shape[1:]
        assert dataset.kind == ("images" if len(shape) == 4 else "vectors")
        assert everything(dataset).abs().max() <= 1
        assert np.allclose(back(dataset), x, atol=1e-7 * high, rtol=0)
        assert back(dataset).dtype == dtype


@given(low=st.floats(-1e4, 1e4), width=st.floats(1e-3, 1e4))
def test_a_range_becomes_minus_one_to_one(low, width):
    stored = Stored("float64", (low, low + width))
    ends = stored.events(torch.tensor([[low, low + width]], dtype=torch.float64))
    assert torch.allclose(ends, torch.tensor([[-1.0, 1.0]]), atol=1e-6)


def test_pictures_in_0_to_1_are_named_and_the_range_settles_it():
    with pytest.warns(UserWarning, match=r"x has values from 0.* to .* range=\(0, 1\).*--data.range 0,1"):
        assert InMemory(PICTURES).kind == "images"
    with pytest.warns(UserWarning, match=r"range=\(0, 1\)"):
        Pairs(PICTURES, torch.zeros(6, 1))
    with pytest.warns(UserWarning, match=r"range=\(0, 1\)"):
        wrap(torch.utils.data.TensorDataset(PICTURES))
    for dataset in (
        InMemory(PICTURES, range=(0, 1)),
        Pairs(PICTURES, torch.zeros(6, 1), range=(0, 1)),
        wrap(torch.utils.data.TensorDataset(PICTURES), range=(0, 1)),
    ):
        assert torch.allclose(everything(dataset), 2 * PICTURES - 1, atol=1e-6)
        assert np.allclose(back(dataset), PICTURES, atol=1e-6)
    black = InMemory(torch.zeros(2, 3, 4, 4), range=(0, 1))
    assert set(to_uint8(everything(black)).flatten().tolist()) == {0}


@pytest.mark.parametrize(
    ("x", "limits"),
    [
        ((255 * PICTURES).round(), "(0, 255)"),
        (255 * PICTURES, "(0, 255)"),
        ((65535 * PICTURES).round(), "(0, 65535)"),
        ((PICTURES > 0.5).to(torch.uint8), "(0, 1)"),
        ((PICTURES * 255).to(torch.int32).to(torch.uint16), "(0, 255)"),
        ((PICTURES * 4095).to(torch.int32).to(torch.uint16), "(0, 4095)"),
    ],
)
def test_pixels_in_another_range_are_named(x, limits):
    with pytest.warns(UserWarning, match=re.escape(f"range={limits}")):
        InMemory(x)


def test_integers_without_a_range_are_refused():
    for x in (torch.randint(0, 256, (4, 3, 8, 8)), torch.zeros(4, 5, dtype=torch.int32)):
        with pytest.raises(TypeError, match=r"got torch.int.*range=\(0, 255\)"):
            InMemory(x)
    with pytest.raises(ValueError, match=r"x must be in range=\(0, 1\), got values from 0 to 255"):
        InMemory(torch.tensor([[[[0, 255]]]]), range=(0, 1))
    with pytest.raises(ValueError, match="range must be two increasing numbers"):
        InMemory(PICTURES, range=(1, 0))


@pytest.mark.parametrize("dtype", ["float32", "uint8", "uint16"])
@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28, 1), (64, 48, 4), (64, 64, 13), (8, 9, 10, 1)])
def test_channels_in_the_last_axis_are_refused_until_the_layout_is_given(dtype, shape):
    x = torch.from_numpy((RNG.random((2, *shape)) * 255 - 127 * (dtype == "float32")).astype(dtype))
    limits = (-127, 128) if dtype == "float32" else (0, 255)
    with pytest.raises(ValueError, match="layout='channels_last'"):
        InMemory(x, range=limits)
    assert InMemory(x, range=limits, layout="channels_last").event_shape == (shape[-1], *shape[:-1])
    assert InMemory(x, range=limits, layout="channels_first").event_shape == shape


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (16, 8, 8), (3, 64, 4), (4, 4, 4), (1, 8, 8, 8), (100, 2)])
def test_channels_in_the_first_axis_raise_no_alarm(shape):
    assert not channels_seem_last(shape)
    assert not channels_seem_last(shape, pixels=True)


def test_bytes_with_few_bands_behind_a_square_are_refused_until_the_layout_is_given() -> None:
    x = torch.zeros(2, 8, 8, 5, dtype=torch.uint8)
    with pytest.raises(ValueError, match="layout='channels_last' for 5 channels, or layout='channels_first' for 8"):
        InMemory(x)
    assert InMemory(x, layout="channels_last").event_shape == (5, 8, 8)


@pytest.mark.parametrize(
    "x",
    [
        torch.rand(20, 5),
        torch.rand(20, 3, 40),
        torch.zeros(3, 1, 8, 8),
        torch.full((3, 1, 8, 8), -1.0),
        torch.randn(3, 1, 8, 8),
        torch.rand(3, 1, 8, 8) * 2 - 1,
        torch.zeros(3, 1, 8, 8, dtype=torch.uint8),
        torch.rand(3, 4, 8, 8, 8),
        torch.rand(3, 2, 8, 8) * 300,
    ],
)
def test_other_data_raise_no_alarm(x):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        InMemory(x)


def test_an_array_of_squares_without_channels_is_asked_about(tmp_path):
    x = RNG.standard_normal((4, 28, 28)).astype("f4")
    np.save(tmp_path / "x.npy", x)
    with pytest.warns(UserWarning, match="layout='NHW'"):
        Arrays(str(tmp_path / "x.npy")).load()
    assert Arrays(str(tmp_path / "x.npy"), layout="NHW").load().event_shape == (1, 28, 28)
    assert Arrays(str(tmp_path / "x.npy"), layout="channels_first").load().event_shape == (28, 28)
