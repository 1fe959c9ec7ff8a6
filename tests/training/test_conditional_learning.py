"""Samples have the vector or the image that they are asked for, and guidance makes it stronger."""

from dataclasses import replace

import pytest
import torch

from openedm.data import Pairs
from openedm.guidance import ClassifierFree
from openedm.levels import Karras
from openedm.networks import MLP, ConditionalMLP, DDPMpp, Transformer
from openedm.sampling import Sampler
from openedm.training import Model, Options, Trainer
from openedm.training.averaging import HalfLife

pytestmark = pytest.mark.usefixtures("without_type_checker")  # which takes longer than the arithmetic
SAMPLER = Sampler(Karras(num_steps=8))
TINY = {"model_channels": 16, "channel_mult": (1,), "num_blocks": 1, "dropout": 0.0}
QUICK = Options(
    batch_size=64,
    rampup=1000,
    average=HalfLife(2000),
    learning_rate=3e-3,
    label_dropout=0.2,
    validate_every=0,
    snapshot_every=0,
)


def train(data, network, images, batch_size=64):
    options = replace(QUICK, images=images, batch_size=batch_size)
    return Trainer(Model.for_data(data, network, condition_dropout=True), data, options=options).fit()


def slope_and_correlation(asked, found):
    """The least-squares slope of what was found against what was asked for, and their correlation."""
    asked, found = asked.double() - asked.double().mean(), found.double() - found.double().mean()
    product = float((asked * found).mean())
    return product / float(asked.square().mean()), product / float(asked.std(correction=0) * found.std(correction=0))


def shades(count):
    """Images of one shade each, and a number that is the shade up to N(0, 0.3²)."""
    generator = torch.Generator().manual_seed(0)
    given = 0.4 * torch.randn(count, 1, generator=generator)
    shade = given + 0.3 * torch.randn(count, 1, generator=generator)
    return flat(shade) + 0.1 * torch.randn(count, 1, 8, 8, generator=generator), given


def flat(values):
    return values[:, :, None, None].expand(-1, 1, 8, 8)


def measured(x):
    return x.mean((2, 3))


def check(denoiser, conditions, asked, attribute):
    """Samples have the attribute that is asked for, and guidance makes it stronger.

    With x | c ~ N(c, v) and x ~ N(0, u), p(x | c)² / p(x) has the slope 2u/(2u − v): 1.3 to 1.4 here.
    """
    results = {}
    for weight in (1.0, 2.0):
        guided = ClassifierFree(denoiser, weight)
        found = attribute(SAMPLER.sample(guided, range(len(asked)), condition=conditions).float())
        results[weight] = slope_and_correlation(asked, found)
    assert results[1.0][1] > 0.6
    assert 0.8 < results[1.0][0] < 1.2
    assert results[2.0][0] > results[1.0][0] + 0.1
    assert bool(SAMPLER.sample(denoiser, range(4)).isfinite().all())  # without condition


@pytest.mark.parametrize("network", [MLP(32, 2), ConditionalMLP(32, 2), Transformer(16, 2, 2)])
def test_vectors_follow_the_vector_asked_for_and_guidance_strengthens_it(network):
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(4096, 3, generator=generator)
    x = 0.5 * given[:, :2] + 0.4 * torch.randn(4096, 2, generator=generator)
    denoiser = train(Pairs(x, given), network, 50_000, batch_size=256)
    asked = torch.randn(400, 3, generator=generator)
    check(denoiser, asked, 0.5 * asked[:, :2], lambda x: x)


def test_images_follow_the_vector_asked_for_and_guidance_strengthens_it():
    x, given = shades(1024)
    denoiser = train(Pairs(x, given, kind="vectors"), DDPMpp(**TINY), 7_000)
    asked = 0.4 * torch.randn(150, 1, generator=torch.Generator().manual_seed(1))
    check(denoiser, asked, asked, measured)


def test_images_follow_the_image_asked_for_and_guidance_strengthens_it():
    x, given = shades(1024)
    denoiser = train(Pairs(x, flat(given), kind="vectors"), DDPMpp(**TINY), 7_000)
    asked = 0.4 * torch.randn(150, 1, generator=torch.Generator().manual_seed(1))
    check(denoiser, flat(asked), asked, measured)
