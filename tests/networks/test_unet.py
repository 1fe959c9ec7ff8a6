import math
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn
from torch.nn import functional

from openedm.networks import SongUNet
from openedm.networks.blocks import ResidualBlock, UNetStyle
from openedm.networks.layers import Downsample, Upsample
from openedm.networks.patches import blocks_to_channels, channels_to_blocks
from openedm.networks.unet import level_resolutions

NCSNPP = {"embedding": "fourier", "channel_mult_noise": 2, "encoder": "residual", "resample_filter": (1, 3, 3, 1)}
KINDS = {"ddpmpp": {}, "ncsnpp": NCSNPP}
each_kind = pytest.mark.parametrize("kind", KINDS)


def _unet(kind="ddpmpp", resolution=16, channels=3, seed=0, awake=True, num_classes=0, augment_dim=0, **options):
    """A small U-Net; `awake`: with weights of ordinary size also where networks start near zero."""
    sizes = {"model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1, "attn_resolutions": (resolution // 2,)}
    choice = SongUNet(**{**sizes, "dropout": 0.0, **KINDS[kind], **options})
    shape = (channels, resolution, resolution)
    unet = choice.build(shape, num_classes=num_classes, augment_dim=augment_dim, seed=seed)
    if awake:
        for module in unet.modules():
            if isinstance(module, ResidualBlock):
                module.conv1.weight.data *= 1e5
                if module.has_attention:
                    module.proj.weight.data *= 1e5
        unet.conv_out.weight.data *= 1e5
    return unet.eval()


def _inputs(batch=2, channels=3, height=16, width=None, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, channels, height, width or height, generator=generator, dtype=dtype)
    return x, torch.linspace(-1, 1, batch, dtype=dtype)


@each_kind
def test_an_untrained_network_returns_almost_zero(kind):
    x, c_noise = _inputs()
    out = _unet(kind, awake=False)(x, c_noise)
    assert 0 < out.std() < 1e-4


def test_an_untrained_block_returns_its_skip():
    block = ResidualBlock(8, 8, 4, style=UNetStyle(), dropout=0.1, has_attention=True)
    x = _inputs(channels=8)[0]
    # Twice √½: after the convolutions and after the attention.
    torch.testing.assert_close(block(x, torch.randn(2, 4)), x / 2, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("size", [(9,), (8, 12), (7, 10), (5, 4, 6)])
def test_blocks_as_channels_are_those_of_torch_and_come_back(size):
    x = torch.randn(2, 3, *size)
    blocks = blocks_to_channels(x, 2)
    assert blocks.shape == (2, 3 * 2 ** len(size), *(-(-side // 2) for side in size))
    assert torch.equal(channels_to_blocks(blocks, 2, size), x)
    if size == (8, 12):
        assert torch.equal(blocks, functional.pixel_unshuffle(x, 2))


@each_kind
@pytest.mark.parametrize(("height", "width"), [(16, 16), (7, 10)])
def test_a_network_on_blocks_takes_every_pixel_at_a_fraction_of_the_resolution(kind, height, width):
    unet = _unet(kind, patch_size=2, attn_resolutions=(4,), channel_mult=(1, 2))
    assert unet.resolutions == (8, 4)
    assert unet.conv_in.weight.shape[1] == unet.conv_out.weight.shape[0] == 12
    x, c_noise = _inputs(height=height, width=width)
    x.requires_grad_()
    out = unet(x, c_noise)
    assert out.shape == x.shape
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    assert bool((gradient != 0).all())


@each_kind
@pytest.mark.parametrize(("levels", "channels"), [((1, 2), 1), ((1, 2), 4), ((1, 1, 2), 3), ((2,), 2)])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (28, 28), (7, 7), (25, 25), (12, 20), (7, 10), (1, 1)])
def test_every_pixel_of_any_image_reaches_an_output_of_the_same_size(kind, levels, height, width, channels):
    resolution = max(height, width)
    unet = _unet(kind, resolution, channels, channel_mult=levels, model_channels=4, attn_resolutions=())
    x, c_noise = _inputs(1, channels, height, width)
    x.requires_grad_()
    out = unet(x, c_noise)
    assert out.shape == x.shape
    corner = out[..., -1, -1].sum()
    (gradient,) = torch.autograd.grad(corner, x)
    assert gradient[..., -1, -1].abs().min() > 0
    assert torch.autograd.grad(unet(x, c_noise).square().sum(), x)[0].abs().min() > 0


@each_kind
def test_an_odd_image_gives_almost_what_the_image_with_its_edge_repeated_gives(kind):
    unet = _unet(kind, 32, attn_resolutions=()).double()
    x, c_noise = _inputs(1, 3, 31, dtype=torch.float64)
    even = torch.cat([x, x[..., -1:, :]], dim=-2)
    even = torch.cat([even, even[..., -1:]], dim=-1)
    odd_out, even_out = unet(x, c_noise)[..., :16, :16], unet(even, c_noise)[..., :16, :16]
    # Far from the edge in question only the statistics of the normalisations differ, by some part in 32. An image that
    # is off by a pixel would differ by √2 standard deviations.
    assert (odd_out - even_out).square().mean().sqrt() < 0.1 * even_out.std()


def test_the_network_takes_other_sizes_than_it_was_built_for():
    built_for_8, built_for_16 = (_unet(resolution=r, attn_resolutions=()) for r in (8, 16))
    x, c_noise = _inputs()
    assert torch.equal(built_for_8(x, c_noise), built_for_16(x, c_noise))


@each_kind
def test_channels_last_gives_the_same_numbers_and_every_layer_keeps_the_format(kind):
    unet = _unet(kind, attn_resolutions=(16, 8)).double()
    x, c_noise = _inputs(dtype=torch.float64)
    expected = unet(x, c_noise)
    formats = {}

    def record(name):
        def hook(module, args, out):
            if isinstance(out, torch.Tensor) and out.ndim == 4:
                formats[name] = out.is_contiguous(memory_format=torch.channels_last)

        return hook

    for name, module in unet.named_modules():
        module.register_forward_hook(record(name))
    unet.to(memory_format=torch.channels_last)
    out = unet(x.contiguous(memory_format=torch.channels_last), c_noise)
    torch.testing.assert_close(out, expected)
    assert len(formats) > 40
    assert not [name for name, channels_last in formats.items() if not channels_last]


@each_kind
def test_a_sample_does_not_see_its_neighbours(kind):
    unet = _unet(kind, num_classes=3).double()
    x, c_noise = _inputs(3, dtype=torch.float64)
    labels = torch.tensor([0, -1, 2])
    together = unet(x, c_noise, labels)
    alone = torch.cat([unet(x[i : i + 1], c_noise[i : i + 1], labels[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone)


@each_kind
def test_labels_one_hot_rows_and_their_absence_mean_the_same(kind):
    unet = _unet(kind, num_classes=4)
    x, c_noise = _inputs(3)
    labels = torch.tensor([2, -1, 0])
    rows = torch.tensor([[0.0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]])
    assert torch.equal(unet(x, c_noise, labels), unet(x, c_noise, rows))
    assert torch.equal(unet(x, c_noise, torch.full((3,), -1)), unet(x, c_noise))
    assert torch.equal(unet(x, c_noise, torch.zeros(3, 4)), unet(x, c_noise))
    differs = (unet(x, c_noise, labels) - unet(x, c_noise)).abs().amax((1, 2, 3))
    assert differs[1] == 0
    assert differs[[0, 2]].min() > 1e-3


def test_an_augmentation_label_of_zero_means_not_augmented():
    unet = _unet(augment_dim=9)
    x, c_noise = _inputs()
    assert torch.equal(unet(x, c_noise, augment=torch.zeros(2, 9)), unet(x, c_noise))
    assert (unet(x, c_noise, augment=torch.ones(2, 9)) - unet(x, c_noise)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": torch.zeros(2, 1, 8, 8)}, r"x must have shape \(batch, 3, height, width\), got \(2, 1, 8, 8\)"),
        ({"x": torch.zeros(2, 3, 8)}, r"x must have shape \(batch, 3, height, width\), got \(2, 3, 8\)"),
        ({"condition": torch.tensor([0, 5])}, r"condition must be labels from -1 \(none\) to 4, got 0 … 5"),
        ({"condition": torch.zeros(2, 4)}, r"condition must have shape \(2, 5\), got \(2, 4\)"),
        ({"augment": torch.zeros(2, 8)}, r"augment must have shape \(2, 9\), got \(2, 8\)"),
        ({"augment": torch.zeros(1, 9)}, r"augment must have shape \(2, 9\), got \(1, 9\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(inputs, message):
    unet = _unet(num_classes=5, augment_dim=9)
    with pytest.raises(ValueError, match=message):
        unet(**{"x": torch.zeros(2, 3, 8, 8), "c_noise": torch.zeros(2), **inputs})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"condition": torch.tensor([0, 0])}, r"condition must be None: .*num_classes=0"),
        ({"augment": torch.zeros(2, 9)}, r"augment must be None: .*augment_dim=0"),
    ],
)
def test_what_the_network_was_built_without_is_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        _unet()(torch.zeros(2, 3, 8, 8), torch.zeros(2), **inputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attn_resolutions": (16, 7)}, r"attn_resolutions must be among .* levels, \[16, 8\], got \[7\]"),
        ({"model_channels": 7}, "model_channels must be even"),
        ({"model_channels": 0}, "model_channels must be >= 1, got 0"),
        ({"channel_mult": ()}, "number of channel_mult must be >= 1, got 0"),
        ({"channel_mult": (1, 0)}, r"channel_mult\[1\] must be >= 1, got 0"),
        ({"num_blocks": 0}, "num_blocks must be >= 1, got 0"),
        ({"dropout": 1.0}, "dropout must be >= 0 and < 1, got 1.0"),
        ({"channel_mult_noise": 0}, "channel_mult_noise must be >= 1, got 0"),
        ({"resample_filter": (1, -1)}, "resample_filter must be taps with a sum other than 0"),
        ({"num_classes": -1}, "num_classes must be >= 0, got -1"),
    ],
)
def test_sizes_out_of_range_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        _unet(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "wide"}, "encoder must be one of 'standard', 'skip', 'residual', got 'wide'"),
        ({"decoder": "residual"}, "decoder must be one of 'standard', 'skip', got 'residual'"),
        ({"embedding": "learned"}, "embedding must be one of 'positional', 'fourier', 'timestep', got 'learned'"),
    ],
)
def test_designs_that_do_not_exist_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        UNetStyle(**options)


def test_attention_stands_where_asked_and_at_the_bottom_of_the_decoder():
    choice = SongUNet(model_channels=4, channel_mult=(1, 1, 1), num_blocks=2, attn_resolutions=(16,))
    unet = choice.build((1, 32, 32))
    attending = [name for name, m in unet.named_modules() if isinstance(m, ResidualBlock) and m.has_attention]
    assert attending == ["encoder.1.blocks.0", "encoder.1.blocks.1", "decoder.0.enter.0", "decoder.1.blocks.2"]


def test_levels_halve_the_resolution_and_round_up():
    assert level_resolutions(64, 4) == (64, 32, 16, 8)
    assert level_resolutions(25, 4) == (25, 13, 7, 4)
    sizes = [25]
    for _ in range(3):
        sizes.append(Downsample(1, (1, 1))(torch.zeros(1, 1, sizes[-1], 1)).shape[-2])
    assert level_resolutions(25, 4) == tuple(sizes)


def test_dropout_acts_while_training_only():
    unet = _unet(dropout=0.5)
    x, c_noise = _inputs()
    assert torch.equal(unet(x, c_noise), unet(x, c_noise))
    unet.train()
    assert not torch.equal(unet(x, c_noise), unet(x, c_noise))


@each_kind
def test_the_gradient_is_that_of_finite_differences(kind):
    unet = _unet(kind, 4, 1, model_channels=4, num_classes=2, attn_resolutions=(2,)).double()
    x, c_noise = _inputs(1, 1, 5, 3, dtype=torch.float64)
    labels = torch.tensor([1])
    inputs = x.requires_grad_(), c_noise.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, c: unet(x, c, labels), inputs, atol=1e-4)


@each_kind
def test_float64_refines_float32(kind):
    unet = _unet(kind)
    x, c_noise = _inputs()
    single, double = unet(x, c_noise), unet.double()(x.double(), c_noise.double())
    assert double.dtype == torch.float64
    difference = (single - double).abs().max() / double.std()
    assert 0 < difference < 1e-4


@each_kind
def test_bfloat16_autocast_stays_close_and_embeds_the_noise_level_in_float32(kind):
    unet = _unet(kind, num_classes=2, augment_dim=3)
    x, _ = _inputs()
    c_noise = torch.tensor([998.0, 999.0])
    features = []
    unet.embedding.noise.register_forward_hook(lambda module, args, out: features.append(out))
    labels, augment = torch.tensor([0, 1]), torch.ones(2, 3)
    full = unet(x, c_noise, labels, augment)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = unet(x, c_noise, labels, augment)
    assert torch.equal(features[0], features[1])
    assert mixed.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits (0.4 %); through some twenty layers that makes a few per cent.
    error = (mixed.float() - full).square().mean().sqrt() / full.std()
    assert 1e-4 < error < 0.1


def test_no_constant_is_made_anew_in_a_forward_pass(monkeypatch):
    unet = _unet("ncsnpp", num_classes=3, augment_dim=2)
    x, c_noise = _inputs()
    for maker in ("arange", "linspace", "tensor", "ones", "zeros", "full", "as_tensor"):
        monkeypatch.setattr(torch, maker, lambda *args, **kwargs: pytest.fail("a constant was made"))
    unet(x, c_noise, c_noise.new_empty(2, 3).fill_(0.5), c_noise.new_empty(2, 2).fill_(1))


@pytest.mark.slow
def test_it_compiles_into_one_graph():
    """In a process of its own: the checks of shapes at run time, which tests switch on, would break the graph."""
    script = """
        import torch
        from openedm.networks import ADM, MLP, DDPMpp, DiT, EDM2UNet, NCSNpp, Transformer

        sizes = dict(model_channels=8, channel_mult=(1, 2), num_blocks=1)
        for choice, shape in (
            (DDPMpp(attn_resolutions=(8,), **sizes), (1, 16, 7)),
            (NCSNpp(attn_resolutions=(4,), **sizes), (1, 7, 7)),
            (NCSNpp(**sizes), (1, 4, 6, 5)),
            (DDPMpp(**sizes), (2, 17)),
            (DiT(width=16, num_blocks=1, num_heads=2), (1, 4, 6)),
            (ADM(model_channels=64, channel_mult=(1, 1), num_blocks=1), (1, 8, 8)),
            (EDM2UNet(8, (1, 2), 1, head_channels=8), (1, 7, 4)),
            (MLP(width=16, num_blocks=1), (7,)),
            (Transformer(width=16, num_blocks=1, num_heads=2), (7,)),
        ):
            network = choice.build(shape, num_classes=3, augment_dim=2).eval()
            inputs = torch.randn(2, *shape), torch.ones(2), torch.tensor([1, -1]), torch.ones(2, 2)
            compiled = torch.compile(network, backend="eager", fullgraph=True)
            torch.testing.assert_close(compiled(*inputs), network(*inputs))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=300)


def test_parameters_are_all_used():
    unet = _unet("ncsnpp", num_classes=3, augment_dim=2)
    x, c_noise = _inputs()
    unet(x, c_noise, torch.tensor([0, 2]), torch.ones(2, 2)).square().sum().backward()
    assert not [name for name, p in unet.named_parameters() if p.grad is None or p.grad.abs().max() == 0]


def test_the_variance_stays_of_order_one_through_the_untrained_encoder():
    unet = _unet(model_channels=32, channel_mult=(1, 2, 2), num_blocks=2, awake=False)
    x, c_noise = _inputs(8)
    scales = []
    for module in unet.encoder.modules():
        if isinstance(module, ResidualBlock):
            module.register_forward_hook(lambda module, args, out: scales.append(out.std().item()))
    unet(x, c_noise)
    assert all(math.isfinite(scale) and 1e-3 < scale < 10 for scale in scales)


def test_no_module_but_the_resampling_changes_the_size():
    unet = _unet("ncsnpp")
    assert sum(isinstance(m, Downsample) for m in unet.modules()) == 3
    assert sum(isinstance(m, Upsample) for m in unet.modules()) == 2
    strided = [m for m in unet.modules() if isinstance(m, nn.Conv2d) and m.stride != (1, 1)]
    assert not strided
