import math
from typing import get_args, get_type_hints

import pytest
import torch

from openedm.data import Source, Toy, measure
from openedm.ground.choices import from_config, to_config

NAMES = get_args(get_type_hints(Toy)["name"])


def samples(name, num_samples=4000, seed=0):
    return Toy(name, num_samples, seed).load().fetch(range(num_samples))


@pytest.mark.parametrize("name", NAMES)
def test_a_toy_is_about_centred_with_unit_deviation(name):
    found = measure(Toy(name).load())
    assert abs(found.mean) < 0.2
    assert found.std == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_the_samples(name):
    x, labels = samples(name, 100)
    again, labels_again = samples(name, 100)
    assert torch.equal(x, again)
    assert (labels is None and labels_again is None) or torch.equal(labels, labels_again)
    assert not torch.equal(x, samples(name, 100, seed=1)[0])


def test_drawing_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    Toy("pinwheel", 10).load()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "dim", "classes"), [("two_modes", 1, 2), ("three_modes", 1, 3), ("eight_gaussians", 2, 8)]
)
def test_a_mixture_is_sampled_as_its_closed_form_says(name, dim, classes):
    mixture = Toy(name).mixture()
    assert mixture.means.shape == (classes, dim)
    assert mixture.weights.sum().item() == pytest.approx(1)
    x, labels = samples(name, 10_000)
    for k in range(classes):
        of_k, weight = x[labels == k].double(), mixture.weights[k].item()
        assert len(of_k) / 10_000 == pytest.approx(weight, abs=4 * math.sqrt(weight / 10_000))
        error = 4 * mixture.std / math.sqrt(len(of_k))
        torch.testing.assert_close(of_k.mean(0), mixture.means[k], rtol=0, atol=error)
        torch.testing.assert_close(of_k.std(0), torch.full((dim,), mixture.std).double(), rtol=0, atol=error)


def test_what_is_no_mixture_of_gaussians_has_no_closed_form():
    assert [name for name in NAMES if Toy(name).mixture() is None] == [
        "two_moons", "spiral", "checkerboard", "pinwheel", "rings",
    ]  # fmt: skip


def test_the_checkerboard_fills_squares_of_one_colour_evenly():
    x, labels = samples("checkerboard", 8000)
    cell = (x + 2).floor().long()
    assert ((cell >= 0) & (cell < 4)).all()
    assert ((cell.sum(1) % 2) == 0).all()
    assert (labels.bincount() - 1000).abs().max() < 130
    assert all(len(cell[labels == k].unique(dim=0)) == 1 for k in range(8))
    assert len(cell.unique(dim=0)) == 8


def test_rings_differ_in_radius_alone():
    x, labels = samples("rings")
    radius = x.norm(dim=1)
    assert ((radius - (0.6 + 0.7 * labels)).abs() < 0.3).all()
    assert [radius[labels == k].mean().item() for k in range(3)] == pytest.approx([0.6, 1.3, 2.0], abs=0.01)


def test_moons_are_each_others_half_turn():
    x, labels = samples("two_moons", 20_000)
    upper, lower = x[labels == 0], -x[labels == 1]
    torch.testing.assert_close(upper.mean(0), lower.mean(0), rtol=0, atol=0.04)
    torch.testing.assert_close(upper.T.cov(), lower.T.cov(), rtol=0, atol=0.04)
    assert upper[:, 1].mean() > 0.3


def test_arms_of_the_pinwheel_are_turned_by_a_fifth():
    x, labels = samples("pinwheel", 20_000)
    c, s = math.cos(2 * math.pi / 5), math.sin(2 * math.pi / 5)
    turned = x[labels == 0] @ torch.tensor([[c, s], [-s, c]])
    torch.testing.assert_close(turned.mean(0), x[labels == 1].mean(0), rtol=0, atol=0.05)


def test_the_spiral_winds_outward_and_has_no_labels():
    x, labels = samples("spiral")
    assert labels is None
    turns = (x.norm(dim=1) / 2 * 4.5 * math.pi - x[:, 1].atan2(x[:, 0])) / (2 * math.pi)
    assert ((turns - turns.round()).abs() < 0.2).double().mean() > 0.95


def test_a_toy_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="num_samples must be >= 1, got 0"):
        Toy("rings", 0)
    unknown = object.__new__(Toy)
    unknown.__dict__.update(name="cat", num_samples=1)
    with pytest.raises(ValueError, match=r"name must be one of 'two_modes'.* got 'cat'"):
        unknown.__post_init__()


def test_every_name_on_offer_is_a_density():
    for name in NAMES:
        Toy(name, 1).load()


def test_the_source_survives_its_plain_form():
    assert from_config(Source, to_config(Toy("rings", 7, 3))) == Toy("rings", 7, 3)
