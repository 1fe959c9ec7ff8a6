"""Magnitude-preserving parts: the reference's numbers, magnitude 1 in and out, and weights that stay normalised."""

import math

import pytest
import torch
from torch import nn

from golden import golden_arrays, needs_golden
from openedm.networks.layers import Downsample, Upsample
from openedm.networks.magnitude import (
    MPConv,
    MPFourier,
    MPLinear,
    MPUncertainty,
    mp_cat,
    mp_silu,
    mp_sum,
    normalize,
    project_weights,
)


def _magnitude(x):
    return x.square().mean().sqrt().item()


def _normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@needs_golden
def test_every_part_is_that_of_the_reference():
    given = {name[3:]: torch.from_numpy(a) for name, a in golden_arrays("edm2/edm2.npz").items() if name[:3] == "mp/"}
    x, y, z = given["x"], given["y"], given["z"]
    conv = MPConv(8, 6, 3)
    conv.load_state_dict({"weight": given["conv_w"]})
    fourier = MPFourier(16)
    fourier.load_state_dict({"omega": given["fourier_freqs"], "phase": given["fourier_phases"]})
    found = {
        "normalize_all": normalize(x),
        "normalize_dim1": normalize(x, [1]),
        "silu": mp_silu(x),
        "sum_0.3": mp_sum(x, y, 0.3),
        "cat_0.5": mp_cat(x, z, 0.5),
        "cat_0.25": mp_cat(x, z, 0.25),
        # The reference leaves the last row and column of odd sizes out, which are repeated here.
        "down": Downsample(8, (1, 1))(x[..., :4, :4]),
        "up": Upsample(8, (1, 1))(x),
        "down_1331": Downsample(8, (1, 3, 3, 1))(x[..., :4, :4]),
        "up_1331": Upsample(8, (1, 3, 3, 1))(x),
        "conv_eval_gain0.7": conv(x, 0.7),
        "fourier_out": fourier(given["fourier_in"]),
    }
    project_weights(conv)
    found |= {"conv_w_after_forced_wn": conv.weight, "conv_train": conv(x)}
    assert found.keys() == given.keys() - {"x", "y", "z", "conv_w", "fourier_freqs", "fourier_phases", "fourier_in"}
    for name, value in found.items():
        torch.testing.assert_close(value.detach(), given[name], rtol=1e-6, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_magnitude_1_stays_1():
    a, b = _normal(64, 48, 16), torch.randn(64, 16, 16, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    parts = {
        "normalize": normalize(7 * a),
        "silu": mp_silu(a),
        "sum": mp_sum(a, a.roll(1, 0), 0.3),
        "cat": mp_cat(a, b, 0.25),
        "fourier": MPFourier(256)(torch.linspace(-1, 1, 64)),
        "linear": MPLinear(48, 300)(a[..., 0]),
        "conv": MPConv(48, 64, 1, dimension=1)(a),
    }
    for name, value in parts.items():
        assert _magnitude(value) == pytest.approx(1, rel=0.05), name


def test_a_concatenation_has_each_part_in_proportion_to_its_share_whatever_its_channels():
    a, b = _normal(100, 40, 5), _normal(100, 8, 5)
    joined = mp_cat(a, b, 0.5)
    energies = joined[:, :40].square().sum(), joined[:, 40:].square().sum()
    assert (energies[0] / energies[1]).item() == pytest.approx(1, rel=0.1)
    assert torch.equal(mp_cat(a, b, 0.0)[:, 40:], torch.zeros(100, 8, 5))


def test_the_length_of_the_weights_has_no_effect_and_projection_gives_each_row_magnitude_1():
    torch.manual_seed(0)
    layer, x = MPConv(3, 5, 3, dimension=1).double(), _normal(2, 3, 9).double()
    before = layer(x)
    layer.weight.data *= 10
    torch.testing.assert_close(layer(x), before, rtol=1e-3, atol=1e-3)
    gradient = torch.autograd.grad(layer(x).square().sum(), layer.weight)[0]
    along = (gradient * layer.weight).flatten(1).sum(1)
    assert along.abs().max() < 1e-3 * gradient.norm() * layer.weight.norm()
    project_weights(layer)
    torch.testing.assert_close(layer.weight.square().flatten(1).mean(1), torch.ones(5).double(), rtol=1e-3, atol=0)


def test_projection_reaches_modules_of_ones_own_that_ask_for_it_and_no_others():
    class Unit(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([3.0, 4.0]))

        def project_weights(self):
            self.weight /= self.weight.norm()

    network = nn.ModuleDict({"own": Unit(), "plain": nn.Linear(2, 2)})
    before = network["plain"].weight.clone()
    project_weights(network)
    assert network["own"].weight.tolist() == pytest.approx([0.6, 0.8])
    assert torch.equal(network["plain"].weight, before)


def test_half_precision_keeps_frequencies_and_norms_in_single_precision():
    torch.manual_seed(0)
    uncertainty = MPUncertainty(64)
    c_noise = torch.tensor([-0.7, 0.9])
    expected = uncertainty(c_noise)
    half = uncertainty.to(torch.bfloat16)
    assert (half.features.omega.dtype, half.layer.weight.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(half(c_noise), expected, rtol=0.02, atol=0.02)
    large = torch.full((1, 4), 300.0, dtype=torch.float16)  # its square is infinite in half precision
    assert normalize(large).tolist() == [[1.0] * 4]
    assert normalize(torch.zeros(1, 3)).tolist() == [[0.0] * 3]


def test_fourier_features_differ_between_levels_and_need_a_channel():
    torch.manual_seed(0)
    features = MPFourier(8)(torch.tensor([0.0, 0.1]))
    assert (features[0] - features[1]).abs().max() > 0.05
    assert features.abs().max() <= math.sqrt(2)
    with pytest.raises(ValueError, match="channels must be >= 1, got 0"):
        MPFourier(0)
