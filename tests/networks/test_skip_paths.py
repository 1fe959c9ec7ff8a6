"""The skip encoder and decoder; what DDPM++ and NCSN++ use of the body is tested with `UNet`."""

import pytest
import torch
from torch.nn import functional

from openedm.networks import SongUNet
from openedm.networks.unet import SkipPath

each_decoder = pytest.mark.parametrize("decoder", ["standard", "skip"])
each_filter = pytest.mark.parametrize("resample_filter", [(1, 1), (1, 3, 3, 1), (1, 2, 1)])


def _unet(awake=True, **options):
    sizes = {"model_channels": 4, "channel_mult": (1, 2, 1), "num_blocks": 1, "attn_resolutions": (), "dropout": 0.0}
    choice = SongUNet(**{**sizes, "encoder": "skip", "decoder": "skip", **options})
    unet = choice.build((2, 8, 8), out_channels=3, seed=0).double().eval()
    torch.manual_seed(0)
    for parameter in unet.parameters() if awake else ():
        if parameter.ndim > 1:
            parameter.data.normal_(std=parameter[0].numel() ** -0.5)
    return unet


def _inputs(height=8, width=8):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 2, height, width, generator=generator, dtype=torch.float64)
    return x, torch.tensor([-1.0, 1.0], dtype=torch.float64)


@each_decoder
@each_filter
@pytest.mark.parametrize(("height", "width"), [(7, 7), (5, 8), (1, 1)])
def test_images_of_any_size_come_back_at_their_size_and_every_pixel_counts(decoder, resample_filter, height, width):
    unet = _unet(decoder=decoder, resample_filter=resample_filter)
    x, c_noise = _inputs(height, width)
    out = unet(x.requires_grad_(), c_noise)
    assert out.shape == (2, 3, height, width)
    assert torch.autograd.grad(out.square().sum(), x)[0].abs().min() > 0


def test_the_skip_encoder_shows_each_level_the_input_at_its_size():
    unet, seen = _unet(), []
    for module in unet.modules():
        if isinstance(module, SkipPath):
            module.conv.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    x, c_noise = _inputs()
    unet(x, c_noise)
    assert torch.equal(seen[0], functional.avg_pool2d(x, 2))
    torch.testing.assert_close(seen[1], functional.avg_pool2d(x, 4))
    assert len(seen) == 2


def test_the_skip_decoder_sums_the_images_of_all_levels():
    unet, parts = _unet(), []
    outputs = [level.output.conv for level in unet.decoder if level.output is not None]
    for module in [*outputs, unet.conv_out]:
        module.register_forward_hook(lambda module, args, out: parts.append(out))
    result = unet(*_inputs())
    sizes = [tuple(part.shape) for part in parts]
    assert sizes == [(2, 3, 2, 2), (2, 3, 4, 4), (2, 3, 8, 8)]
    torch.testing.assert_close(result, sum(functional.interpolate(part, (8, 8), mode="nearest") for part in parts))


@each_decoder
def test_an_untrained_network_returns_almost_zero(decoder):
    out = _unet(awake=False, decoder=decoder)(*_inputs())
    assert 0 < out.std() < 1e-4


def test_channels_last_gives_the_same_numbers_and_all_parameters_are_used():
    unet = _unet(resample_filter=(1, 3, 3, 1))
    x, c_noise = _inputs()
    expected = unet(x, c_noise)
    out = unet.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last), c_noise)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, expected)
    out.square().sum().backward()
    assert not [name for name, p in unet.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
