import math

import pytest
import torch

from openedm.networks import ADM
from openedm.networks.blocks import ResidualBlock, UNetStyle

SIZES = {"model_channels": 64, "channel_mult": (1, 1), "num_blocks": 1, "channel_mult_emb": 1, "attn_resolutions": (4,)}


def _unet(resolution=8, channels=2, awake=True, num_classes=0, augment_dim=0, **options):
    """A small ADM; `awake`: with weights of ordinary size also where networks start at zero."""
    torch.manual_seed(0)
    choice = ADM(**{**SIZES, "dropout": 0.0, **options})
    unet = choice.build((channels, resolution, resolution), num_classes=num_classes, augment_dim=augment_dim)
    if awake:
        for parameter in unet.parameters():
            if parameter.abs().max() == 0:
                parameter.data.normal_(std=0.1)
    return unet.eval()


def _inputs(height=8, width=None, channels=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, channels, height, width or height, generator=generator), torch.tensor([-1.0, 1.0])


def test_imagenets_network_has_the_papers_number_of_parameters():
    with torch.device("meta"):
        conditional, unconditional = (ADM().build((3, 64, 64), num_classes=k) for k in (1000, 0))
        doubled = ADM().build((3, 64, 64), num_classes=1000, out_channels=6)
    count = sum(p.numel() for p in conditional.parameters())
    assert count == 295_899_267
    # A class has one row of 4 · 192 numbers, an output channel a 3×3 convolution of 192 channels and a bias.
    assert count - sum(p.numel() for p in unconditional.parameters()) == 1000 * 768
    assert sum(p.numel() for p in doubled.parameters()) - count == 3 * (9 * 192 + 1)


def test_an_untrained_network_returns_zero_and_its_classes_start_as_unit_normals():
    unet = _unet(awake=False, num_classes=500, augment_dim=9)
    x, c_noise = _inputs()
    assert unet(x, c_noise, torch.tensor([3, -1]), torch.ones(2, 9)).abs().max() == 0
    assert unet.embedding.classes.weight.std().item() == pytest.approx(1, rel=0.03)
    assert unet.embedding.classes.bias is None
    assert unet.embedding.augment.weight.abs().max() == 0


def test_weights_and_biases_start_uniform_within_one_over_the_root_of_their_inputs():
    convolution = _unet(awake=False).encoder[0].blocks[0].conv0
    bound = math.sqrt(1 / (64 * 9))  # √⅓ · √(3/n_in)
    for tensor in (convolution.weight, convolution.bias):
        assert 0.9 * bound < tensor.abs().max() <= bound
    assert convolution.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_attention_stands_in_every_block_of_a_level_and_at_the_bottom_of_the_decoder():
    unet = ADM(**{**SIZES, "channel_mult": (1, 1, 1), "attn_resolutions": (8,)}).build((1, 16, 16))
    attending = [name for name, m in unet.named_modules() if isinstance(m, ResidualBlock) and m.has_attention]
    assert attending == ["encoder.1.blocks.0", "decoder.0.enter.0", "decoder.1.blocks.0", "decoder.1.blocks.1"]


@pytest.mark.parametrize(("channels", "heads"), [(64, 1), (128, 2), (96, 1), (160, 2), (576, 9)])
def test_a_head_has_64_channels_or_more(channels, heads):
    assert UNetStyle(head_channels=64).num_heads(channels) == heads


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"model_channels": 32, "channel_mult": (1, 1)}, "channels with attention must be >= 64, one head, got 32"),
        ({"model_channels": 40, "channel_mult": (1, 5)}, "must be a multiple of 3, the number of heads, got 200"),
    ],
)
def test_levels_with_attention_that_do_not_divide_into_heads_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        ADM(**sizes)
    with pytest.raises(ValueError, match=message):
        ADM(**{**SIZES, **sizes, "attn_resolutions": ()})


def test_a_narrow_level_is_refused_where_it_has_attention_and_only_there():
    sizes = {**SIZES, "model_channels": 32, "channel_mult": (1, 2)}
    assert ADM(**sizes).build((1, 8, 8)).encoder[1].blocks[0].num_heads == 1
    with pytest.raises(ValueError, match=r"must be >= 64, one head, got 32: .*attn_resolutions"):
        ADM(**{**sizes, "attn_resolutions": (8,)}).build((1, 8, 8))


@pytest.mark.parametrize(
    ("resolution", "expected"), [(64, (32, 16, 8)), (32, (32, 16, 8)), (28, (28, 14, 7)), (8, (8,))]
)
def test_attention_stands_at_32_16_and_8_or_nearest_to_them_by_default(resolution, expected):
    with torch.device("meta"):
        unet = ADM(model_channels=64, num_blocks=1).build((1, resolution, resolution))
    levels = zip(unet.resolutions, unet.encoder, strict=True)
    assert tuple(r for r, level in levels if level.blocks[0].has_attention) == expected


@pytest.mark.parametrize(("height", "width"), [(7, 7), (5, 8)])
def test_images_of_any_size_come_back_at_their_size_and_every_pixel_counts(height, width):
    unet = _unet(attn_resolutions=())
    x, c_noise = _inputs(height, width)
    out = unet(x.requires_grad_(), c_noise)
    assert out.shape == x.shape
    assert torch.autograd.grad(out.square().sum(), x)[0].abs().min() > 0


def test_channels_last_gives_the_same_numbers():
    unet = _unet(num_classes=3).double()
    x, c_noise = (value.double() for value in _inputs())
    labels = torch.tensor([2, -1])
    expected = unet(x, c_noise, labels)
    out = unet.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last), c_noise, labels)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, expected)


def test_no_class_is_no_label_and_all_parameters_are_used():
    unet = _unet(num_classes=3, augment_dim=2)
    x, c_noise = _inputs()
    none = unet(x, c_noise)
    assert torch.equal(unet(x, c_noise, torch.full((2,), -1)), none)
    assert torch.equal(unet(x, c_noise, torch.zeros(2, 3), torch.zeros(2, 2)), none)
    out = unet(x, c_noise, torch.tensor([0, 2]), torch.ones(2, 2))
    assert (out - none).abs().amax((1, 2, 3)).min() > 1e-3
    out.square().sum().backward()
    assert not [name for name, p in unet.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
