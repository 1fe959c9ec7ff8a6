"""The diffusion transformer: exact sizes of the paper, exact zero at first, patches of any dimension."""

import math

import pytest
import torch
from torch import nn

from openedm.data import Digits
from openedm.networks import DiT
from openedm.networks.dit import position_features
from openedm.training import HalfLife, Model, Observer, Options, Trainer

SMALL = DiT(width=24, num_blocks=2, num_heads=2)
SHAPES = [(2, 12), (2, 6, 8), (2, 4, 2, 6)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def _awake(choice=SMALL, shape=(2, 6, 8), **signature):
    """A small network, the weights of which that start at zero have ordinary size."""
    network = choice.build(shape, seed=0, **signature).double().eval()
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Linear) and module.weight.abs().max() == 0:
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.normal_(module.bias, std=0.5) if module.bias is not None else None
    return network


def _inputs(shape, batch=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, *shape, generator=generator, dtype=torch.float64), torch.linspace(-1, 1, batch).double()


@pytest.mark.parametrize(("size", "millions"), [("S", 33), ("B", 130), ("L", 458), ("XL", 675)])
def test_the_sizes_of_the_paper_have_its_numbers_of_parameters(size, millions):
    """For 32×32×4 latents in 1000 classes, mean and variance as output: Table 1 and 4 of the paper."""
    with torch.device("meta"):
        network = DiT.of_size(size).build((4, 32, 32), num_classes=1000, out_channels=8)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == millions


@each_shape
def test_it_starts_at_exactly_zero_and_each_block_as_the_identity(shape):
    network = SMALL.build(shape, num_classes=3, augment_dim=2, seed=0)
    x, c_noise = torch.randn(2, *shape), torch.randn(2)
    assert network(x, c_noise, torch.tensor([2, -1]), torch.ones(2, 2)).abs().max() == 0
    h = torch.randn(2, 5, 24)
    assert torch.equal(network.blocks[0](h, torch.randn(2, 1, 24)), h)


@each_shape
def test_every_entry_reaches_every_output_of_the_same_shape(shape):
    network = _awake(shape=shape)
    x, c_noise = _inputs(shape, 1)
    out = network(x.requires_grad_(), c_noise)
    assert out.shape == x.shape
    (gradient,) = torch.autograd.grad(out.flatten()[-1], x)
    assert gradient.abs().min() > 0


@pytest.mark.parametrize("patch_size", [1, 2, (2, 1, 3)], ids=str)
def test_patches_are_the_boxes_of_the_volume_and_join_to_it_again(patch_size):
    network = DiT(patch_size, width=24, num_blocks=1, num_heads=2).build((2, 4, 2, 6), seed=0)
    x = _inputs((2, 4, 2, 6))[0]
    patches = network._patches(x)
    d, h, w = network.patch
    assert patches.shape == (2, 48 // (d * h * w), 2 * d * h * w)
    assert torch.equal(patches[:, 0], x[:, :, :d, :h, :w].flatten(1))
    assert torch.equal(patches[:, -1], x[:, :, -d:, -h:, -w:].flatten(1))
    assert torch.equal(network._join(patches, (4, 2, 6)), x)


def test_without_positions_patches_could_be_exchanged_and_with_them_they_cannot():
    network = _awake()
    x, c_noise = _inputs((2, 6, 8))
    shifted, back = x.roll(2, 2), lambda out: out.roll(-2, 2)
    assert (back(network(shifted, c_noise)) - network(x, c_noise)).abs().max() > 1e-3
    network.positions.zero_()
    torch.testing.assert_close(back(network(shifted, c_noise)), network(x, c_noise))


def test_positions_are_distinct_and_those_of_a_smaller_grid_are_a_part_of_them():
    large, small = position_features((4, 3, 5), 26), position_features((2, 3, 4), 26)
    assert torch.equal(large.reshape(4, 3, 5, 26)[:2, :, :4], small.reshape(2, 3, 4, 26))
    distances = torch.cdist(large, large) + torch.eye(60)
    assert distances.min() > 0.5


def test_other_sizes_are_taken_as_by_a_network_that_was_built_for_them():
    built_for_6, built_for_4 = _awake(shape=(2, 6, 8)), _awake(shape=(2, 4, 12))
    x, c_noise = _inputs((2, 4, 12))
    torch.testing.assert_close(built_for_6(x, c_noise), built_for_4(x, c_noise))


def test_class_augmentation_vector_and_image_conditions_all_count():
    x, c_noise = _inputs((2, 6, 8))
    network = _awake(num_classes=3, augment_dim=2)
    plain = network(x, c_noise, torch.tensor([0, -1]))
    assert torch.equal(network(x, c_noise, torch.tensor([-1, -1])), network(x, c_noise))
    assert (network(x, c_noise, torch.tensor([1, -1])) - plain)[0].abs().max() > 1e-3
    assert (network(x, c_noise, torch.tensor([0, -1]), torch.ones(2, 2).double()) - plain).abs().max() > 1e-3
    for shape in ((3,), (1, 6, 8)):
        network = _awake(condition_shape=shape, condition_dropout=True)
        zeros, ones = torch.zeros(2, *shape).double(), torch.ones(2, *shape).double()
        assert (network(x, c_noise, ones) - network(x, c_noise, zeros)).abs().flatten(1).amax(1).min() > 1e-3
        assert torch.equal(network(x, c_noise, torch.full_like(ones, math.nan)), network(x, c_noise))
        assert (network(x, c_noise, zeros) - network(x, c_noise)).abs().max() > 1e-3


def test_parameters_are_all_used_and_dropout_acts_while_training_only():
    choice = DiT(width=24, num_blocks=1, num_heads=2, dropout=0.5)
    network = _awake(choice, num_classes=3, augment_dim=2)
    x, c_noise = _inputs((2, 6, 8))
    arguments = x, c_noise, torch.tensor([0, 2]), torch.ones(2, 2).double()
    assert torch.equal(network(*arguments), network(*arguments))
    network.train()
    assert not torch.equal(network(*arguments), network(*arguments))
    network.eval()(*arguments).square().sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0]


@pytest.mark.parametrize(
    ("choice", "shape", "message"),
    [
        (
            DiT(),
            (1, 7, 9),
            r"sizes of event_shape must be multiples of patch_size=2 .*\(7, 9\).* divides them \(1,",
        ),
        (DiT(), (3, 27), r"patch_size=2 for DiT, got \(27,\): choose a patch_size that divides them \(1, 3, 9, 27,"),
        (DiT((2, 2)), (1, 8), r"patch_size must have 1 sizes, one for each axis of \(8,\), got \(2, 2\)"),
        (DiT(), (64,), r"event_shape must be \(channels, length\).* for DiT; networks .*MLP"),
        (DiT(width=4, num_heads=2), (1, 8, 8, 8), "width, for 3 axes, must be >= 6, got 4"),
    ],
)
def test_samples_that_do_not_fit_are_refused_with_what_would(choice, shape, message):
    with pytest.raises(ValueError, match=message):
        choice.build(shape)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 0}, "patch_size must be >= 1, got 0"),
        ({"width": 10, "num_heads": 4}, "width must be a multiple of num_heads=4, got 10"),
        ({"num_blocks": 0}, "num_blocks must be >= 1"),
        ({"dropout": 1.0}, "dropout must be >= 0 and < 1"),
    ],
)
def test_sizes_out_of_range_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        DiT(**options)
    with pytest.raises(ValueError, match="name must be one of 'S', 'B', 'L', 'XL', got 'M'"):
        DiT.of_size("M")


def test_an_input_of_another_size_must_be_a_multiple_of_the_patch_too():
    with pytest.raises(ValueError, match=r"sizes of x must be multiples of patch_size=2 .*got \(7, 8\)"):
        _awake()(torch.zeros(1, 2, 7, 8).double(), torch.zeros(1).double())


class _Losses(Observer):
    def __init__(self):
        self.values = []

    def on_progress(self, progress):
        self.values.append(progress.loss)


def test_it_learns_digits():
    data, losses = Digits().load(), _Losses()
    options = Options(images=64 * 60, batch_size=64, learning_rate=3e-3, rampup=640, average=HalfLife(half_life=64 * 5))
    model = Model.for_data(data, DiT(width=48, num_blocks=2, num_heads=4))
    Trainer(model, data, options=options, observers=[losses]).fit()
    # An EDM network that returns zero has a loss of 1 on average; this run ends at 0.64.
    assert sum(losses.values[:3]) / 3 > 0.9
    assert sum(losses.values[-20:]) / 20 < 0.75
