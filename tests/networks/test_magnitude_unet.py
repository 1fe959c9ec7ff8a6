"""The U-Net of EDM2: the reference's numbers, the paper's sizes, magnitude 1, and every shape that U-Nets take."""

import math

import pytest
import torch
from torch.testing import assert_close

from openedm.conditions import pack
from openedm.networks import DDPMpp, EDM2UNet

SMALL = EDM2UNet(8, (1, 2), 1, head_channels=8)
MILLIONS = {64: 31.3, 128: 124.7, 192: 280.2, 256: 497.8, 320: 777.5, 384: 1119.3, 448: 1523.2}


def _awake(choice=SMALL, shape=(2, 8, 8), **signature):
    """A network whose gains, which start at 0, have ordinary size."""
    network = choice.build(shape, seed=0, **signature).double().eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in network.named_parameters():
        if "gain" in name:
            parameter.data = torch.rand(1, generator=generator).double() + 0.5
    return network


def _inputs(shape, batch=2):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(batch, *shape, generator=generator).double(), torch.linspace(-1, 1, batch).double()


@pytest.mark.parametrize("channels", MILLIONS)
def test_the_sizes_of_the_paper_have_its_numbers_of_parameters(channels):
    """For 64×64×4 latents in 1000 classes, counted without memory for them."""
    with torch.device("meta"):
        network = EDM2UNet(channels, uncertainty_channels=128).build((4, 64, 64), num_classes=1000)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == MILLIONS[channels]


@pytest.mark.parametrize("shape", [(2, 12), (2, 6, 9), (2, 1, 1), (2, 3, 4, 5)], ids=str)
def test_a_new_network_returns_0_and_every_entry_reaches_an_output_of_the_same_size(shape):
    new = SMALL.build(shape, num_classes=3, augment_dim=2, seed=0)
    x, c_noise = _inputs(shape)
    assert new(x.float(), c_noise.float(), torch.tensor([2, -1]), torch.ones(2, 2)).abs().max() == 0
    out = _awake(shape=shape)(x.requires_grad_(), c_noise)
    assert out.shape == x.shape
    assert torch.autograd.grad(out.square().sum(), x)[0].abs().min() > 0


def test_other_sizes_are_taken_as_by_a_network_that_was_built_for_them():
    choice = EDM2UNet(8, (1, 2), 1, attn_resolutions=(), head_channels=8)
    x, c_noise = _inputs((2, 6, 11))
    assert_close(_awake(choice)(x, c_noise), _awake(choice, (2, 6, 11))(x, c_noise))


def test_the_output_has_the_magnitude_of_the_gain_without_any_normalisation_at_the_end():
    network = EDM2UNet(64, (1, 2), 1, attn_resolutions=()).build((4, 64), seed=0)
    network.gain_out.data.fill_(1.0)
    out = network(torch.randn(4, 4, 64, generator=torch.Generator().manual_seed(0)), torch.linspace(-1, 1, 4))
    assert out.square().mean().sqrt().item() == pytest.approx(1, rel=0.2)


def test_class_augmentation_vector_and_image_conditions_all_count():
    x, c_noise = _inputs((2, 8, 8))
    network = _awake(num_classes=3, augment_dim=2)
    plain = network(x, c_noise, torch.tensor([0, -1]))
    assert torch.equal(network(x, c_noise, torch.tensor([-1, -1])), network(x, c_noise))
    assert (network(x, c_noise, torch.tensor([1, -1])) - plain)[0].abs().max() > 1e-3
    assert torch.equal(network(x, c_noise, torch.tensor([0, -1]), torch.zeros(2, 2).double()), plain)
    assert (network(x, c_noise, torch.tensor([0, -1]), torch.ones(2, 2).double()) - plain).abs().max() > 1e-3
    for shape in ((3,), (1, 8, 8)):
        network = _awake(condition_shape=shape, condition_dropout=True)
        zeros, ones = torch.zeros(2, *shape).double(), torch.ones(2, *shape).double()
        assert (network(x, c_noise, ones) - network(x, c_noise, zeros)).abs().flatten(1).amax(1).min() > 1e-3
        assert_close(network(x, c_noise, torch.full_like(ones, math.nan)), network(x, c_noise))
        assert (network(x, c_noise, zeros) - network(x, c_noise)).abs().max() > 1e-3
        one_row = network(x, c_noise, ones[:1])
        assert_close(one_row, network(x, c_noise, ones))
    network = _awake(num_classes=3, condition_shape=(3,))
    condition = pack(torch.tensor([0, 2]), torch.ones(2, 3).double())
    assert (network(x, c_noise, condition) - network(x, c_noise, condition.flip(0))).abs().max() > 1e-3


def test_parameters_are_all_used_and_dropout_acts_while_training_only():
    network = _awake(EDM2UNet(8, (1, 2), 1, dropout=0.5, head_channels=8), num_classes=3, augment_dim=2)
    x, c_noise = _inputs((2, 8, 8))
    arguments = x, c_noise, torch.tensor([0, 2]), torch.ones(2, 2).double()
    assert torch.equal(network(*arguments), network(*arguments))
    network.train()
    assert not torch.equal(network(*arguments), network(*arguments))
    network.eval()(*arguments).square().sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0]


def test_its_weights_are_a_function_of_the_seed_alone():
    state = torch.get_rng_state()
    first, second = SMALL.build((1, 8, 8), num_classes=2, seed=3), SMALL.build((1, 8, 8), num_classes=2, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_half_precision_and_mixed_precision_are_near_single_precision():
    network = EDM2UNet(32, (1, 2), 1, head_channels=32).build((1, 8, 8), num_classes=2, seed=0).eval()
    network.gain_out.data.fill_(1.0)
    x, c_noise = _inputs((1, 8, 8))
    x, c_noise, classes = x.float(), c_noise.float(), torch.tensor([0, 1])
    expected = network(x, c_noise, classes)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = network(x, c_noise, classes)
    half = network.bfloat16()(x.bfloat16(), c_noise, classes)
    for found in (mixed, half):
        assert found.dtype == torch.bfloat16
        assert (found.float() - expected).square().mean().sqrt() < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_channels": 0}, "model_channels must be >= 1, got 0"),
        ({"channel_mult": ()}, "number of channel_mult must be >= 1, got 0"),
        ({"dropout": 1.0}, "dropout must be >= 0 and < 1, got 1.0"),
        ({"res_balance": 1.5}, "res_balance must be"),
        ({"model_channels": 8}, "channels of a level with attention must be >= head_channels=64, got 32"),
        ({"model_channels": 100}, "must be a multiple of 6, its heads, got 400"),
        ({"uncertainty_channels": -1}, "uncertainty_channels must be >= 0, got -1"),
    ],
)
def test_sizes_out_of_range_are_refused_with_the_name(options, message):
    with pytest.raises(ValueError, match=message):
        EDM2UNet(**options)


def test_a_level_that_does_not_exist_cannot_have_attention():
    with pytest.raises(
        ValueError, match=r"attn_resolutions must be among the resolutions of the levels, \[8, 4\], got"
    ):
        EDM2UNet(8, (1, 2), attn_resolutions=(16,), head_channels=8).build((1, 8, 8))
    assert DDPMpp().attention_at((32, 16, 8)) == (16,)
