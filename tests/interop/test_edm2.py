"""Published networks of EDM2: the reference's numbers, pickles as data, and back under the published names."""

import pytest
import torch
from benchmarks.published_files import CALLED, edm2_file, edm2_weights

from golden import golden_arrays, golden_json, needs_golden
from openedm.interop import DamagedFileError, edm2_denoiser, edm2_names, publish, published_model
from openedm.interop.published import parse_pickle
from openedm.networks import EDM2UNet
from openedm.preconditioning import VP
from openedm.training import Model

KWARGS = {"img_resolution": 8, "img_channels": 4, "label_dim": 3, "model_channels": 16, "channel_mult": [1, 4]}
KWARGS |= {"num_blocks": 1, "attn_resolutions": [4, 32], "logvar_channels": 8}


@needs_golden
def test_denoised_images_uncertainty_and_gradients_are_those_of_the_reference():
    arrays = {name: torch.from_numpy(a) for name, a in golden_arrays("edm2/edm2.npz").items()}
    given = {name.removeprefix("net_uncond/"): a for name, a in arrays.items() if name.startswith("net_uncond/")}
    state = {name.removeprefix("sd/"): given.pop(name) for name in list(given) if name.startswith("sd/")}
    facts = golden_json("edm2/edm2.json")["net_uncond"]
    denoiser = edm2_denoiser(facts["kwargs"], state)
    names = edm2_names(denoiser.network)
    assert set(names.values()) == state.keys()

    denoised = denoiser(given["x"], given["sigma"])
    uncertainty = denoiser.network.uncertainty_head(given["sigma"].log() / 4)
    ((given["cotangent"] * denoised).sum() + uncertainty.sum()).backward()
    for found, expected in ((denoised, given["D"]), (uncertainty, given["logvar"].flatten())):
        torch.testing.assert_close(found.detach(), expected, rtol=1e-4, atol=1e-4 * expected.std().item())
    norms = {names[own]: parameter.grad.norm().item() for own, parameter in denoiser.network.named_parameters()}
    assert norms == pytest.approx(facts["grad_norms"], rel=1e-4)


def test_a_pickle_is_read_as_data_and_its_network_is_the_one_built_directly():
    state = edm2_weights(KWARGS)
    published = parse_pickle(edm2_file(KWARGS, state))
    assert (published.class_name, published.network_name, published.kwargs) == ("Precond", "UNet", KWARGS)
    assert all(torch.equal(published.state_dict[name], value) for name, value in state.items())
    assert CALLED == []
    found, expected = published.denoiser(), edm2_denoiser(KWARGS, state)
    x, classes = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0, -1])
    sigma = torch.tensor([0.5, 2.0])
    assert torch.equal(found(x, sigma, classes), expected(x, sigma, classes))
    assert not found.training
    model = published_model(published, found)
    assert (model.images, model.num_classes, model.network.attn_resolutions) == (False, 3, (4,))
    again = publish(model, found)
    assert {**published.kwargs, "attn_resolutions": [4]}.items() <= again.kwargs.items()
    assert again.state_dict.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(again.state_dict[name], value.float()), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_act": None}, "clip_act must be 256, the only one supported, got None"),
        ({"channel_mult_emb": 4}, "channel_mult_emb must be None"),
        ({"resample_filter": [1, 3, 3, 1]}, r"resample_filter must be \(1, 1\)"),
        ({"unknown": 1}, r"got missing \[\], unknown \['unknown'\]"),
        ({"model_channels": 32}, "the file must have the .* weights of the network that it describes"),
        ({"num_blocks": 900}, "num_blocks must fit the file, got 900 blocks"),
        ({"logvar_channels": -1}, "logvar_channels must be an integer between"),
        ({"label_balance": "x"}, "label_balance must be a number"),
        ({"logvar_channels": 4}, r"logvar_fourier\.freqs"),
    ],
)
def test_files_that_describe_another_network_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        parse_pickle(edm2_file({**KWARGS, **changes}, edm2_weights(KWARGS))).denoiser()


def test_arrays_in_a_pickle_are_data_of_numbers_alone():
    content = edm2_file(KWARGS, edm2_weights(KWARGS))
    broken = content.replace(b"\x8c\x02f4", b"\x8c\x02O8")
    assert broken != content
    with pytest.raises(DamagedFileError, match="a number's type must be one of"):
        parse_pickle(broken)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preconditioning": VP()}, "preconditioning must be EDM"),
        (
            {"network": EDM2UNet(8, (1,), 1, head_channels=8)},
            "uncertainty_channels >= 1 to have published names, got 0",
        ),
        ({"augment_dim": 2}, "augment_dim must be 0"),
        ({"event_shape": (4, 8, 4)}, "samples must be square images"),
    ],
)
def test_what_has_no_published_names_is_refused(changes, message):
    network = EDM2UNet(8, (1,), 1, head_channels=8, uncertainty_channels=8)
    model = Model(**{"network": network, "event_shape": (4, 8, 8), **changes})
    with pytest.raises(ValueError, match=message):
        publish(model, model.build())
