"""Vectors and images as conditions of every network, alone or with classes, with dropout or without."""

import pytest
import torch
from torch.testing import assert_close

from openedm.conditions import pack
from openedm.networks import ADM, MLP, ConditionalMLP, DDPMpp, NCSNpp, SongUNet, Transformer

SMALL = {"model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1}
UNETS = {
    "ddpmpp": DDPMpp(**SMALL),
    "ncsnpp": NCSNpp(**SMALL),
    "skips": SongUNet(**SMALL, encoder="skip", decoder="skip"),
    "adm": ADM(model_channels=64, channel_mult=(1, 1), num_blocks=1),
}
PLAIN = {"mlp": MLP(16, 2), "transformer": Transformer(16, 2), "conditional_mlp": ConditionalMLP(16, 2)}
EVENTS = {**dict.fromkeys(UNETS, (2, 8, 8)), **dict.fromkeys(PLAIN, (3,))}
NETWORKS = {**UNETS, **PLAIN}
IMAGE = (3, 8, 8)
CASES = [(name, (4,)) for name in NETWORKS] + [(name, IMAGE) for name in UNETS]


def build(name, shape, **options):
    """The network, with all weights random, as some start at zero."""
    network = NETWORKS[name].build(EVENTS[name], condition_shape=shape, seed=0, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def inputs(name, shape, num_classes=0):
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(3, *shape, generator=generator)
    condition = pack(torch.tensor([1, 0, 2]), values) if num_classes else values
    return torch.randn(3, *EVENTS[name], generator=generator), torch.tensor([-0.5, 0.0, 0.4]), condition


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize(("name", "shape"), CASES)
@torch.no_grad()
def test_every_part_of_a_condition_matters_and_a_sample_has_its_own(name, shape, num_classes):
    network = build(name, shape, num_classes=num_classes)
    x, c_noise, condition = inputs(name, shape, num_classes)
    out = network(x, c_noise, condition)
    assert out.shape == x.shape
    for channel in range(condition.shape[1]):
        other = condition.clone()
        other[1, channel] = 2 if num_classes and channel == 0 else other[1, channel] + 1
        changed = (network(x, c_noise, other) - out).flatten(1).abs().amax(1)
        assert float(changed[1]) > 1e-4, channel
        assert_close(changed[[0, 2]], torch.zeros(2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize(("name", "shape"), CASES)
@torch.no_grad()
def test_one_row_is_the_condition_of_all_samples(name, shape, num_classes):
    network = build(name, shape, num_classes=num_classes)
    x, c_noise, condition = inputs(name, shape, num_classes)
    every = condition[1:2].expand(3, *condition.shape[1:])
    assert_close(network(x, c_noise, condition[1:2]), network(x, c_noise, every), atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize(("name", "shape"), CASES)
@torch.no_grad()
def test_with_dropout_rows_of_nan_and_none_are_no_condition(name, shape, num_classes):
    network = build(name, shape, num_classes=num_classes, condition_dropout=True)
    x, c_noise, condition = inputs(name, shape, num_classes)
    nothing = network.signature.layout.null(condition)
    out, none = network(x, c_noise, condition), network(x, c_noise)
    assert bool(none.isfinite().all())
    assert_close(network(x, c_noise, nothing), none, atol=1e-5, rtol=0)
    assert_close(network(x, c_noise, torch.full_like(condition, torch.nan)), none, atol=1e-5, rtol=0)
    mixed = network(x, c_noise, torch.stack([condition[0], nothing[1], condition[2]]))
    assert_close(mixed, torch.stack([out[0], none[1], out[2]]), atol=1e-5, rtol=0)
    zero = pack(torch.full((3,), -1), torch.zeros(3, *shape)) if num_classes else torch.zeros(3, *shape)
    assert float((network(x, c_noise, zero) - none).abs().max()) > 1e-4  # no condition is not the mean condition


@pytest.mark.parametrize(("name", "shape"), [case for case in CASES if case[0] != "conditional_mlp"])
@torch.no_grad()
def test_a_row_that_is_partly_nan_or_nan_without_dropout_is_refused_by_number(name, shape):
    x, c_noise, condition = inputs(name, shape)
    partly, altogether = condition.clone(), condition.clone()
    partly[2, 0], altogether[1] = torch.nan, torch.nan
    for dropout in (False, True):
        with pytest.raises(ValueError, match=r"condition\[2\] is partly NaN"):
            build(name, shape, condition_dropout=dropout)(x, c_noise, partly)
    with pytest.raises(ValueError, match=r"condition\[1\] is NaN, no condition, but .*label_dropout > 0"):
        build(name, shape)(x, c_noise, altogether)
    with pytest.raises(ValueError, match=r"condition must have shape \(batch, .*\), got None.* condition_dropout"):
        build(name, shape)(x, c_noise)


@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize("shape", [(3, 4, 4), (3, 8), (2, 3, 8, 8)])
def test_other_shapes_are_refused_with_what_is_allowed(name, shape):
    message = r"condition_shape must be \(features,\), a vector or \(channels, 8, 8\), an image of the size of the data"
    with pytest.raises(ValueError, match=message):
        build(name, shape)


@pytest.mark.parametrize("name", UNETS)
@torch.no_grad()
def test_an_image_condition_follows_the_size_of_the_samples(name):
    network = build(name, IMAGE)
    x, c_noise = torch.randn(2, 2, 12, 7), torch.zeros(2)
    assert network(x, c_noise, torch.randn(2, 3, 12, 7)).shape == x.shape
    with pytest.raises(ValueError, match=r"condition must have shape \(2, 3, 12, 7\), got \(2, 3, 8, 8\)"):
        network(x, c_noise, torch.randn(2, *IMAGE))


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "conditional_mlp"])
@torch.no_grad()
def test_a_standardised_vector_changes_the_embedding_as_much_as_a_tenth_of_its_size_or_more(name):
    network = NETWORKS[name].build(EVENTS[name], condition_shape=(5,), seed=0)
    if name == "transformer":
        return  # its conditions are tokens
    generator = torch.Generator().manual_seed(0)
    e = network.embedding(torch.zeros(256), torch.randn(256, 5, generator=generator), None)
    assert float(e.std(0).square().mean().sqrt()) > 0.1 * float(e.square().mean().sqrt())


@pytest.mark.parametrize("name", NETWORKS)
def test_without_conditions_a_network_has_the_parameters_it_had(name):
    if name == "conditional_mlp":
        names = set(NETWORKS[name].build((3,), condition_shape=(4,), seed=0).state_dict())
    else:
        names = set(NETWORKS[name].build(EVENTS[name], num_classes=3, seed=0).state_dict())
    assert not [n for n in names if "vector" in n or "absent" in n or "layer_classes" in n]
