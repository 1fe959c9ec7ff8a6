import math

import pytest
import torch

from openedm.data import Digits, InMemory
from openedm.networks import MLP, DDPMpp
from openedm.preconditioning import IDDPM, VP
from openedm.training import Model, num_parameters

SMALL = DDPMpp(model_channels=8, channel_mult=(1,), num_blocks=1)


def test_shape_classes_and_sigma_data_are_taken_from_the_data():
    model = Model.for_data(Digits("test").load(), SMALL)
    pixels = Digits("test").load().fetch(range(360))[0].double()
    assert model.event_shape == (1, 8, 8)
    assert model.num_classes == 10
    assert model.class_names == tuple("0123456789")
    assert model.images
    assert model.sigma_data == pytest.approx(pixels.std(correction=0).item(), rel=1e-6)
    assert float(f"{model.sigma_data:.6g}") == model.sigma_data  # no digits that depend on the number of threads


def test_an_unconditional_model_takes_no_classes_from_the_data():
    model = Model.for_data(Digits("test").load(), SMALL, VP(), conditional=False)
    assert (model.num_classes, model.class_names, model.preconditioning) == (0, None, VP())
    assert model.build().num_classes == 0


def test_a_class_for_each_sample_is_a_warning():
    data = InMemory(torch.randn(40, 2, generator=torch.Generator().manual_seed(0)), torch.arange(40))
    with pytest.warns(UserWarning, match="the labels of 40 samples are 40 classes, of which little is learned from"):
        Model.for_data(data, MLP(8, 1))
    assert Model.for_data(data, MLP(8, 1), conditional=False).num_classes == 0


def test_vectors_are_no_images():
    assert not Model.for_data(InMemory(torch.eye(3)), MLP(8, 1)).images


def test_the_weights_are_a_function_of_the_seed_alone():
    model = Model(MLP(8, 1), event_shape=(2,), images=False)
    torch.manual_seed(1)
    one = model.build(5).network.state_dict()
    torch.manual_seed(2)
    again, other = model.build(5).network.state_dict(), model.build(6).network.state_dict()
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["layer_in.weight"], other["layer_in.weight"])


def test_a_preconditioning_that_needs_more_outputs_gets_them():
    denoiser = Model(SMALL, IDDPM(), event_shape=(1, 8, 8)).build()
    x = torch.randn(2, 1, 8, 8)
    assert denoiser.network(x, torch.zeros(2)).shape == (2, 2, 8, 8)
    assert denoiser(x, 1.0).shape == x.shape


def test_a_built_denoiser_is_its_preconditioning_around_its_network():
    model = Model(MLP(8, 1), sigma_data=2.0, event_shape=(3,), images=False)
    network = model.build(3).network
    torch.nn.init.normal_(network.layer_out.weight)
    x, sigma = torch.randn(4, 3), 0.7
    norm = math.hypot(sigma, 2.0)
    predicted = network(x / norm, torch.full((4,), math.log(sigma) / 4))
    expected = 4.0 / norm**2 * x + 2.0 * sigma / norm * predicted
    torch.testing.assert_close(model.wrap(network)(x, sigma), expected)


def test_parameters_that_are_trained_are_counted():
    layer = torch.nn.Linear(3, 5)
    assert num_parameters(layer) == 20
    layer.bias.requires_grad_(False)
    assert num_parameters(layer) == 15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma_data": 0.0}, "sigma_data must be finite and > 0, got 0.0"),
        ({"sigma_data": math.inf}, "sigma_data must be finite and > 0, got inf"),
        ({"num_classes": -1}, "num_classes must be >= 0, got -1"),
        ({"event_shape": ()}, r"event_shape must hold sizes >= 1, got \(\)"),
        ({"event_shape": (3, 0)}, r"event_shape must hold sizes >= 1, got \(3, 0\)"),
        ({"num_classes": 2, "class_names": ("a",)}, "class_names must hold 2 names, got 1"),
    ],
)
def test_a_value_out_of_range_is_an_error_that_names_it(arguments, message):
    with pytest.raises(ValueError, match=message):
        Model(**arguments)


def test_constant_data_cannot_be_trained_on_and_the_error_says_why():
    with pytest.raises(ValueError, match="the data are constant, 1 in all 4 samples"):
        Model.for_data(InMemory(torch.ones(4, 2)), MLP(8, 1))
