import json
from dataclasses import FrozenInstanceError

import pytest
import torch

from openedm.ground.choices import from_config, to_config
from openedm.networks import ADM, MLP, DDPMpp, NCSNpp, Network, SongUNet
from openedm.networks.blocks import ResidualBlock

SMALL = {"model_channels": 8, "channel_mult": (1, 1, 1), "num_blocks": 1}
SONG = {"embedding": "fourier", "encoder": "skip", "decoder": "skip", "resample_filter": (1, 3, 3, 1)}
EACH = {
    "ddpmpp": (DDPMpp(**SMALL), (1, 12, 12)),
    "ncsnpp": (NCSNpp(**SMALL), (1, 12, 12)),
    "song": (SongUNet(**SMALL, **SONG, channel_mult_noise=2), (1, 12, 12)),
    "adm": (ADM(model_channels=64, channel_mult=(1,), channel_mult_emb=1, num_blocks=1), (1, 6, 6)),
    "mlp": (MLP(width=16, num_blocks=2), (5,)),
}
each_network = pytest.mark.parametrize(("network", "shape"), EACH.values(), ids=EACH)


def _attending(unet):
    """The resolutions of the encoder's levels that have attention."""
    levels = zip(unet.resolutions, unet.encoder, strict=True)
    return [r for r, level in levels if any(isinstance(b, ResidualBlock) and b.has_attention for b in level.blocks)]


@pytest.mark.parametrize(
    ("network", "resolution", "millions"),
    [
        (DDPMpp(), 32, 55.7),
        (NCSNpp(), 32, 56.4),
        (DDPMpp(channel_mult=(1, 2, 2, 2)), 64, 61.8),
        (NCSNpp(channel_mult=(1, 2, 2, 2)), 64, 62.8),
    ],
)
def test_the_papers_networks_have_the_papers_number_of_parameters(network, resolution, millions):
    with torch.device("meta"):
        unet = network.build((3, resolution, resolution))
    assert round(sum(p.numel() for p in unet.parameters()) / 1e6, 1) == millions


@each_network
def test_it_is_called_with_classes_and_augmentation_and_returns_the_channels_asked_for(network, shape):
    built = network.build(shape, num_classes=3, augment_dim=2, out_channels=2 * shape[0], seed=0)
    inputs = torch.zeros(4, *shape), torch.zeros(4), torch.tensor([0, 1, 2, -1]), torch.zeros(4, 2)
    assert built(*inputs).shape == (4, 2 * shape[0], *shape[1:])
    assert network.build(shape)(*inputs[:2]).shape == (4, *shape)


@each_network
def test_a_seed_decides_the_weights_and_leaves_the_global_generator_alone(network, shape):
    torch.manual_seed(5)
    first = network.build(shape, seed=0).state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(6)
    again, other = network.build(shape, seed=0).state_dict(), network.build(shape, seed=1).state_dict()
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@each_network
def test_without_a_seed_the_global_generator_decides(network, shape):
    torch.manual_seed(5)
    first = network.build(shape).state_dict()
    second = network.build(shape).state_dict()
    torch.manual_seed(5)
    again = network.build(shape).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], second[name]) for name in first)


@each_network
def test_it_survives_json(network, shape):
    assert from_config(Network, json.loads(json.dumps(to_config(network)))) == network


def test_only_kinds_of_network_that_can_be_built_are_known_by_name():
    known = r"'UNetNetwork' is not known for a Network; known: .*DDPMpp, .*MLP, .*NCSNpp, .*; "
    with pytest.raises(ValueError, match=known):
        from_config(Network, {"class_path": "UNetNetwork"})


def test_it_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        DDPMpp().dropout = 0.0


@pytest.mark.parametrize(
    ("shape", "channel_mult", "expected"),
    [
        ((3, 32, 32), (1, 1, 1), [16]),
        ((3, 64, 64), (1, 1, 1, 1), [16]),
        ((1, 28, 28), (1, 1, 1), [14]),
        ((1, 25, 25), (1, 1, 1), [13]),
        ((1, 8, 8), (1, 1), [8]),
        ((1, 100, 100), (1, 1), [50]),
        ((1, 16, 32), (1, 1), [16]),
        ((1, 16, 20), (1, 1), [20]),
    ],
)
def test_attention_stands_at_16_or_nearest_to_it_by_default(shape, channel_mult, expected):
    network = DDPMpp(model_channels=4, num_blocks=1, channel_mult=channel_mult)
    assert _attending(network.build(shape)) == expected


def test_attention_stands_at_the_resolutions_asked_for():
    assert _attending(DDPMpp(**SMALL, attn_resolutions=(28, 7)).build((1, 28, 28))) == [28, 7]
    assert _attending(DDPMpp(**SMALL, attn_resolutions=()).build((1, 28, 28))) == []


def test_attention_at_a_resolution_of_no_level_is_an_error_that_lists_the_levels():
    with pytest.raises(ValueError, match=r"attn_resolutions must be among .* levels, \[28, 14, 7\], got \[16\]"):
        DDPMpp(**SMALL, attn_resolutions=(16, 14)).build((1, 28, 28))


@pytest.mark.parametrize(
    ("network", "shape", "axes"),
    [
        (DDPMpp(**SMALL), (16,), r".*\(channels, depth, height, width\)"),
        (DDPMpp(**SMALL), (3, 0, 16), r".*\(channels, depth, height, width\)"),
        (MLP(), (3, 16, 16), r"\(features,\)"),
        (MLP(), (), r"\(features,\)"),
    ],
)
def test_data_of_another_kind_is_refused(network, shape, axes):
    with pytest.raises(ValueError, match=rf"event_shape must be {axes}, each >= 1, got "):
        network.build(shape)


def test_ddpmpp_and_ncsnpp_are_points_of_the_design_space():
    ncsnpp = {"embedding": "fourier", "channel_mult_noise": 2, "encoder": "residual", "resample_filter": (1, 3, 3, 1)}
    for named, general in ((DDPMpp(**SMALL), SongUNet(**SMALL)), (NCSNpp(**SMALL), SongUNet(**SMALL, **ncsnpp))):
        one, other = (network.build((1, 12, 12), seed=0).state_dict() for network in (named, general))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"channel_mult_noise": 0}, "channel_mult_noise must be >= 1, got 0"),
        ({"resample_filter": ()}, "resample_filter must be taps with a sum other than 0"),
        ({"model_channels": 7}, "model_channels must be even"),
    ],
)
def test_variants_out_of_range_are_refused_when_they_are_made(values, message):
    with pytest.raises(ValueError, match=message):
        SongUNet(**values)


@pytest.mark.parametrize("kind", [DDPMpp, NCSNpp, ADM])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_channels": 7}, "model_channels must be even"),
        ({"channel_mult": (2, 0)}, r"channel_mult\[1\] must be >= 1, got 0"),
        ({"channel_mult_emb": 0}, "channel_mult_emb must be >= 1, got 0"),
        ({"num_blocks": 0}, "num_blocks must be >= 1, got 0"),
        ({"attn_resolutions": (0,)}, "attn_resolutions must be >= 1, got 0"),
        ({"dropout": -0.1}, "dropout must be >= 0 and < 1, got -0.1"),
        ({"dropout": float("nan")}, "dropout must be >= 0 and < 1, got nan"),
    ],
)
def test_values_out_of_range_are_refused_when_it_is_made(kind, values, message):
    with pytest.raises(ValueError, match=message):
        kind(**values)


@pytest.mark.parametrize("name", ["width", "num_blocks"])
def test_an_mlp_without_layers_is_refused_when_it_is_made(name):
    with pytest.raises(ValueError, match=f"{name} must be >= 1, got 0"):
        MLP(**{name: 0})
