"""The U-Nets for series, images and volumes: laws that hold in one, two and three dimensions alike."""

import math

import pytest
import torch
from torch import nn

from openedm.networks import ADM, MLP, DDPMpp, NCSNpp, SongUNet, Transformer
from openedm.networks.layers import Downsample, Upsample, attention

SMALL = {"channel_mult": (1, 2, 1), "num_blocks": 1, "dropout": 0.0}
NETWORKS = {
    "ddpmpp": DDPMpp(model_channels=8, **SMALL),
    "ncsnpp": NCSNpp(model_channels=8, **SMALL),
    "adm": ADM(model_channels=64, channel_mult=(1, 1), num_blocks=1, dropout=0.0),
    "skips": SongUNet(model_channels=4, encoder="skip", decoder="skip", **SMALL),
}
each_network = pytest.mark.parametrize("kind", NETWORKS)
SIZES = [(64,), (7,), (1,), (8, 8, 8), (5, 4, 7), (1, 2, 9), (1, 1, 1)]
each_size = pytest.mark.parametrize("size", SIZES, ids=str)


def _awake(network):
    """The network with weights of ordinary size where those of new networks are almost zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            std = parameter[0].numel() ** -0.5
            parameter.data = std * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return network.double().eval()


def _input(size, batch=2, channels=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, channels, *size, generator=generator, dtype=torch.float64), torch.zeros(batch).double()


@each_network
@each_size
def test_every_entry_of_a_series_or_volume_reaches_an_output_of_the_same_size(kind, size):
    network = _awake(NETWORKS[kind].build((2, *size), seed=0))
    x, c_noise = _input(size, batch=1)
    out = network(x.requires_grad_(), c_noise)
    assert out.shape == x.shape
    assert torch.autograd.grad(out.square().sum(), x)[0].abs().min() > 0


@each_network
@pytest.mark.parametrize("size", [(16,), (4, 6, 5)])
def test_augmentation_labels_classes_and_more_outputs_work_in_every_dimension(kind, size):
    network = _awake(NETWORKS[kind].build((2, *size), num_classes=3, augment_dim=2, out_channels=4, seed=0))
    x, c_noise = _input(size)
    plain = network(x, c_noise, torch.tensor([0, -1]))
    assert plain.shape == (2, 4, *size)
    labelled = network(x, c_noise, torch.tensor([1, -1]), torch.ones(2, 2))
    assert (labelled - plain).abs().flatten(1).amax(1).min() > 0


@each_network
def test_the_parameters_have_the_same_names_in_every_dimension_and_differ_in_the_size_of_kernels_alone(kind):
    shapes = {d: NETWORKS[kind].build((1, *[16] * d), seed=0).state_dict() for d in (1, 2, 3)}
    assert shapes[1].keys() == shapes[2].keys() == shapes[3].keys()
    for name, flat in shapes[2].items():
        kernel = flat.shape[2:]
        for dimension in (1, 3):
            side = kernel[:1] * dimension if flat.ndim == 4 else kernel
            assert shapes[dimension][name].shape == (*flat.shape[:2], *side), name


def _embed(network, dimension, axis):
    """The weights of a network in one dimension placed along one axis of kernels with more axes; elsewhere 0."""
    state = {}
    for name, value in network.state_dict().items():
        if value.ndim == 3:
            k = value.shape[-1]
            kernel = value.new_zeros(*value.shape[:2], *[k] * dimension)
            where = [slice(None), slice(None), *[k // 2] * dimension]
            where[2 + axis] = slice(None)
            kernel[tuple(where)] = value
            value = kernel
        state[name] = value
    return state


@pytest.mark.parametrize("kind", ["ddpmpp", "adm"])
@pytest.mark.parametrize(("dimension", "axis"), [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)])
def test_an_image_or_volume_that_is_constant_across_an_axis_is_treated_as_a_series_along_it(kind, dimension, axis):
    """Kernels that are zero except along one axis: pooling, repetition, norms and attention then agree exactly."""
    series = _awake(NETWORKS[kind].build((1, 12), seed=0))
    more = NETWORKS[kind].build((1, *[12] * dimension), seed=0).double().eval()
    more.load_state_dict(_embed(series, dimension, axis))
    x, c_noise = _input((12,), channels=1)
    size = [4] * dimension
    size[axis] = 12
    along = [2, 1, *[1] * dimension]
    along[2 + axis] = 12
    wide = x.reshape(along).expand(2, 1, *size)
    torch.testing.assert_close(more(wide, c_noise), series(x, c_noise).reshape(along).expand_as(wide))


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_resampling_is_that_of_one_axis_along_each_axis(taps, dimension):
    x = _input((6, 4, 8)[:dimension])[0]
    down, up = Downsample(2, taps, dimension=dimension).double(), Upsample(2, taps, dimension=dimension).double()
    axis_down, axis_up = Downsample(1, taps, dimension=1).double(), Upsample(1, taps, dimension=1).double()

    def along_each(layer, x):
        for axis in range(2, x.ndim):
            rows = x.movedim(axis, -1)
            x = layer(rows.reshape(-1, 1, rows.shape[-1])).reshape(*rows.shape[:-1], -1).movedim(-1, axis)
        return x

    torch.testing.assert_close(down(x), along_each(axis_down, x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(up(x), along_each(axis_up, x), rtol=1e-6, atol=1e-6)


def test_attention_does_not_depend_on_how_its_positions_are_laid_out():
    qkv = _input((24,), channels=12)[0]
    expected = attention(qkv, 2)
    for size in ((4, 6), (2, 3, 4)):
        torch.testing.assert_close(attention(qkv.reshape(2, 12, *size), 2).flatten(2), expected)


def test_attention_is_at_the_level_whose_longest_side_is_near_16_and_not_at_full_length():
    for shape, expected in (
        ((1, 64), (64, 32, 16)),
        ((1, 4096), (4096, 2048, 1024)),
        ((1, 4, 8, 64), (64, 32, 16)),
        ((1, 8, 8, 8), (8, 4, 2)),
    ):
        with torch.device("meta"):
            network = DDPMpp(num_blocks=1).build(shape)
        assert network.resolutions == expected
        attending = [any(b.has_attention for b in level.blocks) for level in network.encoder]
        nearest = min(range(3), key=lambda level: abs(expected[level] - 16))
        assert attending == [level == nearest for level in range(3)]


@pytest.mark.parametrize("choice", [DDPMpp(), NCSNpp(), ADM()])
@pytest.mark.parametrize("shape", [(1, 64), (1, 8, 8, 8)])
def test_the_default_networks_take_series_and_volumes(choice, shape):
    with torch.device("meta"):
        network = choice.build(shape, num_classes=2)
        out = network(torch.zeros(2, *shape), torch.zeros(2))
    assert out.shape == (2, *shape)


@pytest.mark.parametrize("choice", [MLP(), Transformer()])
@pytest.mark.parametrize("shape", [(1, 64), (3, 8, 8), (1, 8, 8, 8)])
def test_a_network_of_vectors_names_those_that_take_series_images_and_volumes(choice, shape):
    with pytest.raises(ValueError, match=r"event_shape must be \(features,\).*ADM, .*DDPMpp, .*NCSNpp"):
        choice.build(shape)


@pytest.mark.parametrize("shape", [(64,), (1, 2, 3, 4, 5), ()])
def test_a_u_net_names_its_layouts_and_the_networks_of_other_shapes(shape):
    layouts = (
        r"event_shape must be \(channels, length\), \(channels, height, width\) or \(channels, depth, height, width\)"
    )
    with pytest.raises(ValueError, match=layouts) as error:
        DDPMpp().build(shape)
    assert ("MLP" in str(error.value)) == (len(shape) == 1)


def test_an_input_of_another_number_of_axes_is_refused_with_the_layout_of_the_network():
    network = NETWORKS["ddpmpp"].build((2, 4, 4, 4), seed=0)
    with pytest.raises(ValueError, match=r"x must have shape \(batch, 2, depth, height, width\), got \(1, 2, 4, 4\)"):
        network(torch.zeros(1, 2, 4, 4), torch.zeros(1))


def test_no_layer_of_another_dimension_is_left():
    layers = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    for dimension, convolution in layers.items():
        network = NETWORKS["ncsnpp"].build((1, *[8] * dimension), seed=0)
        found = [type(m) for m in network.modules() if isinstance(m, tuple(layers.values()))]
        assert all(issubclass(cls, convolution) for cls in found)
        assert math.prod(network.conv_in.kernel_size) == 3**dimension
