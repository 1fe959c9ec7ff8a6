from functools import lru_cache

import numpy as np
import pytest
import torch

from golden import golden_arrays, golden_json, needs_golden
from openedm.ground.tensors import as_tensor
from openedm.interop import (
    edm_choice,
    edm_denoiser,
    edm_network,
    load_edm_state_dict,
    published_filters,
    published_names,
)
from openedm.levels import iddpm_table
from openedm.networks import ADM, SongUNet
from openedm.networks.layers import filter_kernel

INDEX = {e["name"]: e for e in golden_json("networks/index.json").get("entries", [])}
each_entry = pytest.mark.parametrize("name", INDEX)

OPTIONS = {
    "img_resolution": 8,
    "img_channels": 1,
    "model_type": "SongUNet",
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
}


@lru_cache
def _entry(name):
    """The denoiser of an entry, its tensors and what the index says of it."""
    arrays = golden_arrays(f"networks/{INDEX[name]['file']}")
    state_dict = {key.removeprefix("sd/"): value for key, value in arrays.items() if key.startswith("sd/")}
    denoiser = edm_denoiser(INDEX[name]["precond"], INDEX[name]["kwargs"], state_dict)
    return denoiser, {key: torch.from_numpy(value) for key, value in arrays.items() if key[:3] != "sd/"}


def _assert_matches(actual, expected):
    """The tolerance of the reference numbers: another order of summation in float32."""
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * expected.std().item())


def _published(network, prefix="model."):
    """A state dict as published, with random weights, for `network`."""
    generator = torch.Generator().manual_seed(0)
    shapes = {published: network.state_dict()[own].shape for own, published in published_names(network).items()}
    weights = {prefix + name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    kernel = filter_kernel(network.choice.style.resample_filter)[None, None]
    filters = {f"{prefix}enc.4x4_down.conv0.resample_filter": kernel} if len(network.resolutions) > 1 else {}
    return weights | filters


@needs_golden
@each_entry
def test_the_raw_output_is_that_of_the_reference(name):
    denoiser, given = _entry(name)
    out = denoiser.network(given["x_in"], given["c_noise"], given.get("class_labels"), given.get("augment_labels"))
    _assert_matches(out.detach(), given["F"])


@needs_golden
@each_entry
def test_the_denoised_image_its_gradient_and_those_of_all_weights_are_those_of_the_reference(name):
    denoiser, given = _entry(name)
    denoiser.zero_grad()
    x = given["x"].clone().requires_grad_()
    denoised = denoiser(x, given["sigma"], given.get("class_labels"), augment=given.get("augment_labels"))
    (given["cotangent"] * denoised).sum().backward()
    _assert_matches(denoised.detach(), given["D"])
    _assert_matches(x.grad, given["grad_x"])
    names = published_names(denoiser.network)
    norms = {f"model.{names[own]}": p.grad.norm().item() for own, p in denoiser.network.named_parameters()}
    assert norms == pytest.approx(INDEX[name]["grad_norms"], rel=1e-4)


@needs_golden
@pytest.mark.parametrize("name", [name for name in INDEX if INDEX[name]["kwargs"].get("label_dim")])
def test_without_class_or_augmentation_it_is_still_the_reference(name):
    denoiser, given = _entry(name)
    with torch.no_grad():
        without_class = denoiser(given["x"], given["sigma"], None, augment=given["augment_labels"])
        without_augmentation = denoiser(given["x"], given["sigma"], given["class_labels"])
        by_label = denoiser(given["x"], given["sigma"], given["class_labels"].argmax(1))
    _assert_matches(without_class, given["D_nolabels"])
    _assert_matches(without_augmentation, given["D_noaug"])
    assert torch.equal(by_label, without_augmentation)


@needs_golden
@each_entry
def test_the_names_and_filters_are_all_those_of_the_reference(name):
    denoiser, _ = _entry(name)
    arrays = golden_arrays(f"networks/{INDEX[name]['file']}")
    names = {key.removeprefix("sd/model.") for key in arrays if key.startswith("sd/model.")}
    filters = published_filters(denoiser.network)
    assert names == {*published_names(denoiser.network).values(), *filters}
    for published, kernel in filters.items():
        given = torch.from_numpy(arrays[f"sd/model.{published}"]).float()
        torch.testing.assert_close(kernel, given, rtol=1e-3, atol=0)  # kept in half precision


def test_networks_with_skip_paths_have_filters_on_the_paths_too():
    network = edm_network({**OPTIONS, "encoder_type": "skip", "decoder_type": "skip", "channel_mult": [1, 1, 1]})
    assert sorted(name.removesuffix(".resample_filter") for name in published_filters(network)) == [
        "dec.4x4_aux_up",
        "dec.4x4_up.conv0",
        "dec.4x4_up.skip",
        "dec.8x8_aux_up",
        "dec.8x8_up.conv0",
        "dec.8x8_up.skip",
        "enc.2x2_aux_down",
        "enc.2x2_down.conv0",
        "enc.2x2_down.skip",
        "enc.4x4_aux_down",
        "enc.4x4_down.conv0",
        "enc.4x4_down.skip",
    ]


@needs_golden
@each_entry
def test_it_has_the_reference_number_of_parameters_and_range_of_noise_levels(name):
    denoiser, _ = _entry(name)
    entry = INDEX[name]
    assert sum(p.numel() for p in denoiser.parameters()) == entry["params"]
    assert denoiser.sigma_max == pytest.approx(float(entry["sigma_max"]), rel=1e-6)
    # The reference's σ_min of VP is 2.3 % off: exp(·) − 1 in float32.
    tolerance = 0.03 if entry["precond"] == "VPPrecond" else 1e-6
    assert denoiser.sigma_min == pytest.approx(entry["sigma_min"], rel=tolerance)
    assert not denoiser.training


@needs_golden
@each_entry
def test_channels_last_and_double_precision_are_the_reference_too(name):
    denoiser, given = _entry(name)
    network = edm_network(INDEX[name]["kwargs"], denoiser.network.signature.out_channels)
    network.load_state_dict(denoiser.network.state_dict())
    network = network.double().to(memory_format=torch.channels_last).eval()
    x = given["x_in"].double().contiguous(memory_format=torch.channels_last)
    labels, augment = given.get("class_labels"), given.get("augment_labels")
    with torch.no_grad():
        out = network(x, given["c_noise"].double(), labels, augment)
    _assert_matches(out.float(), given["F"])


@pytest.mark.parametrize(
    "options",
    [
        {"encoder_type": "residual", "embedding_type": "fourier"},
        {"encoder_type": "skip", "decoder_type": "skip"},
        {"model_type": "DhariwalUNet", "model_channels": 64},
    ],
)
def test_every_name_of_the_network_has_a_published_one_of_its_own(options):
    network = edm_network({**OPTIONS, "label_dim": 2, "augment_dim": 3, **options})
    names = published_names(network)
    assert list(names) == list(network.state_dict())
    assert len(set(names.values())) == len(names)


@pytest.mark.parametrize("value", [None, "x", torch.ones(32).to_sparse()])
def test_weights_that_are_no_numbers_are_refused_by_name(value, without_type_checker):
    network = edm_network(OPTIONS)
    with pytest.raises(TypeError, match=r"^model.map_layer0.bias must be a tensor"):
        load_edm_state_dict(network, _published(network) | {"model.map_layer0.bias": value})


def big_endian(value):
    return value.numpy().astype(">f4")


@pytest.mark.parametrize("prefix", ["model.", ""])
@pytest.mark.parametrize("convert", [torch.Tensor.double, torch.Tensor.half, torch.Tensor.numpy, big_endian])
def test_weights_are_copied_from_tensors_and_arrays_of_any_precision(prefix, convert):
    network = edm_network(OPTIONS)
    given = {name: convert(value) for name, value in _published(network, prefix).items()}
    load_edm_state_dict(network, given)
    weight = as_tensor("weight", given[f"{prefix}dec.8x8_block1.conv0.weight"])
    assert torch.equal(network.decoder[1].blocks[1].conv0.weight, weight.float())


def test_fourier_frequencies_become_angular_ones():
    network = edm_network({**OPTIONS, "embedding_type": "fourier"})
    given = _published(network)
    load_edm_state_dict(network, given)
    torch.testing.assert_close(network.embedding.noise.omega, 2 * np.pi * given["model.map_noise.freqs"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("model.map_layer0.bias"), "missing map_layer0.bias"),
        (lambda s: s.update({"model.extra": torch.zeros(1)}), "unexpected extra"),
        (lambda s: s.update({"model.map_label.weight": torch.zeros(1)}), "unexpected map_label.weight"),
        (
            lambda s: s.update({"model.enc.8x8_conv.weight": torch.zeros(8, 3, 3, 3)}),
            r"enc.8x8_conv.weight has shape \(8, 3, 3, 3\) instead of \(8, 1, 3, 3\)",
        ),
        (
            lambda s: s.update({"model.enc.4x4_down.conv0.resample_filter": torch.ones(1, 1, 4, 4) / 16}),
            "enc.4x4_down.conv0.resample_filter is another filter",
        ),
        (
            lambda s: s.update({"model.enc.8x8_down.conv0.resample_filter": torch.ones(1, 1, 2, 2) / 4}),
            "unexpected enc.8x8_down.conv0.resample_filter",
        ),
        (
            lambda s: s.update({"model.map_layer0.bias": torch.full((32,), 1e300, dtype=torch.float64)}),
            "map_layer0.bias holds 32 infinite of 32 numbers as torch.float32, with which all samples would be NaN",
        ),
        (
            lambda s: s.update({"map_layer0.bias": torch.zeros(32)}),
            "state_dict must have one tensor a name, got map_layer0.bias and model.map_layer0.bias",
        ),
        (lambda s: s.clear(), r"does not fit the network: missing .*(; .*){4} and \d+ more$"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name_and_change_nothing(change, message):
    network = edm_network(OPTIONS)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    given = _published(network)
    change(given)
    with pytest.raises(ValueError, match=message):
        load_edm_state_dict(network, given)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_fp8": True}, r"missing \[\], unknown \['use_fp8'\]"),
        ({"model_type": "DhariwalUNet", "encoder_type": "skip"}, r"unknown \['encoder_type'\]"),
        ({"model_type": "UNet"}, "model_type must be one of 'SongUNet', 'DhariwalUNet', got 'UNet'"),
        ({"encoder_type": "wide"}, "encoder_type must be one of 'standard', 'skip', 'residual', got 'wide'"),
        ({"decoder_type": "residual"}, "decoder_type must be one of 'standard', 'skip', got 'residual'"),
        ({"img_resolution": 8.0}, "img_resolution must be an integer between 0 and 16384, got 8.0"),
        ({"img_channels": "1"}, "img_channels must be an integer between 0 and 4096, got '1'"),
        ({"label_dim": None}, "label_dim must be an integer between 0 and 1048576, got None"),
        ({"channel_mult": 3}, "channel_mult must be a list of at most 32 integers from 0 to 1024, got 3"),
        ({"attn_resolutions": None}, "attn_resolutions must be a list of at most 32 integers from 0 to 16384"),
        ({"resample_filter": "ab"}, "resample_filter must be a list of at most 32 numbers from -1024 to 1024"),
        ({"resample_filter": [1e-300, 1e-300]}, "resample_filter must be taps with a sum other than 0"),
    ],
)
def test_published_options_that_are_not_known_here_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        edm_network({**OPTIONS, **options})


def test_options_that_every_file_has_are_asked_for():
    with pytest.raises(ValueError, match=r"missing \['img_resolution', 'img_channels', 'model_type'\]"):
        edm_network({})


def test_attention_at_resolutions_that_no_level_has_is_passed_over():
    with_attention = edm_network({**OPTIONS, "attn_resolutions": [16, 8]})
    assert with_attention.encoder[0].blocks[0].has_attention
    assert not with_attention.encoder[1].blocks[0].has_attention


def test_options_left_out_are_those_of_ddpmpp():
    with torch.device("meta"):
        network = edm_network({"img_resolution": 64, "img_channels": 3, "model_type": "SongUNet"})
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == 61.8


def test_options_left_out_are_those_of_adm():
    with torch.device("meta"):
        network = edm_network(
            {"img_resolution": 64, "img_channels": 3, "label_dim": 1000, "model_type": "DhariwalUNet"}
        )
    assert sum(p.numel() for p in network.parameters()) == 295_899_267


def test_options_of_a_published_network_make_a_value_that_builds_it():
    options = {**OPTIONS, "encoder_type": "skip", "resample_filter": [1, 3, 3, 1], "attn_resolutions": [16, 4]}
    chosen = edm_choice(options)
    assert chosen == SongUNet(
        8, (1, 2), num_blocks=1, attn_resolutions=(4,), encoder="skip", resample_filter=(1, 3, 3, 1)
    )
    assert list(chosen.build((1, 8, 8)).state_dict()) == list(edm_network(options).state_dict())


def test_a_file_without_a_model_type_has_its_classes_default():
    options = {key: value for key, value in OPTIONS.items() if key != "model_type"}
    state_dict = _published(edm_network(OPTIONS))
    assert edm_denoiser("VPPrecond", options, state_dict).network.signature.in_channels == 1
    options = {**options, "model_channels": 64, "channel_mult": [1]}
    adm = edm_network({**options, "model_type": "DhariwalUNet"})
    assert isinstance(edm_denoiser("EDMPrecond", options, _published(adm)).network.choice, ADM)


def test_the_options_of_a_preconditioning_reach_it():
    state_dict = _published(edm_network(OPTIONS))
    edm = edm_denoiser("EDMPrecond", {**OPTIONS, "sigma_data": 0.7, "sigma_max": 50, "use_fp16": True}, state_dict)
    assert (edm.sigma_data, edm.sigma_min, edm.sigma_max) == (0.7, 0.0, 50.0)
    assert (edm.event_shape, edm.num_classes) == ((1, 8, 8), 0)
    vp = edm_denoiser("VPPrecond", {**OPTIONS, "beta_d": 10.0, "M": 500, "epsilon_t": 1e-4}, state_dict)
    assert (vp.preconditioning.beta_d, vp.preconditioning.num_levels, vp.preconditioning.epsilon_t) == (10, 500, 1e-4)
    ve = edm_denoiser("VEPrecond", {**OPTIONS, "sigma_max": 50.0}, state_dict)
    assert (ve.sigma_min, ve.sigma_max) == (0.02, 50.0)


@pytest.mark.parametrize(
    ("precond", "changes", "message"),
    [
        ("EDMPrecond", {"sigma_min": 10.0, "sigma_max": 5.0}, "sigma_min must be < sigma_max, got sigma_min=10.0"),
        ("EDMPrecond", {"sigma_min": -1.0}, "sigma_min must be >= 0, got -1.0"),
        ("EDMPrecond", {"sigma_max": 0}, "sigma_min must be < sigma_max, got sigma_min=0.0 and sigma_max=0.0"),
        ("EDMPrecond", {"sigma_data": "x"}, "sigma_data must be a number, got 'x'"),
        ("EDMPrecond", {"sigma_data": True}, "sigma_data must be a number, got True"),
        ("VEPrecond", {"sigma_max": float("inf")}, "sigma_max must be a finite number, got inf"),
        ("VPPrecond", {"beta_min": -50.0}, r"must give 0 < sigma\(epsilon_t\) < sigma\(1\) < inf, got nan and nan"),
        ("VPPrecond", {"beta_d": 1e300}, r"must give 0 < sigma\(epsilon_t\) < sigma\(1\) < inf, got inf and inf"),
        ("iDDPMPrecond", {"C_1": 1.0}, "c_1 must be < 1, got 1.0"),
        ("iDDPMPrecond", {"C_1": 1e9}, "c_1 must be < 1, got 1000000000.0"),
    ],
)
def test_noise_levels_that_no_denoiser_has_are_refused(precond, changes, message):
    with pytest.raises(ValueError, match=message):
        edm_denoiser(precond, {**OPTIONS, **changes}, _published(edm_network(OPTIONS)))


def test_levels_of_iddpm_are_one_list():
    state_dict = {**_published(edm_network(OPTIONS, out_channels=2)), "u": torch.ones(2, 3)}
    with pytest.raises(ValueError, match=r"u must be a list of levels, got shape \(2, 3\)"):
        edm_denoiser("iDDPMPrecond", OPTIONS, state_dict)


@pytest.mark.parametrize("precond", ["VPPrecond", "iDDPMPrecond"])
def test_options_of_another_preconditioning_are_refused_by_name(precond):
    with pytest.raises(ValueError, match=r"unknown \['sigma_data'\]"):
        edm_denoiser(precond, {**OPTIONS, "sigma_data": 0.5}, {})


def test_iddpm_rounds_to_the_table_given_else_the_files_else_the_exact_one():
    options = {**OPTIONS, "M": 4}
    plain = _published(edm_network(OPTIONS, out_channels=2))
    in_file = {**plain, "u": torch.tensor([8.0, 4.0, 2.0, 1.0, 0.0])}
    sigma = torch.tensor([3.2])
    assert edm_denoiser("iDDPMPrecond", options, in_file).round_sigma(sigma).item() == 4.0
    given = edm_denoiser("iDDPMPrecond", options, in_file, table=[9.0, 5.0, 3.0, 1.0, 0.0])
    assert given.round_sigma(sigma).item() == 3.0
    exact = edm_denoiser("iDDPMPrecond", options, plain)
    assert exact.round_sigma(sigma).item() in iddpm_table(4)


def test_a_table_for_a_continuous_preconditioning_is_refused():
    with pytest.raises(ValueError, match="table must be None for EDMPrecond"):
        edm_denoiser("EDMPrecond", OPTIONS, {}, table=[1.0, 0.0])


def test_an_unknown_preconditioning_is_refused_by_name():
    with pytest.raises(ValueError, match=r"precond must be one of 'EDMPrecond', .* got 'EDM2Precond'"):
        edm_denoiser("EDM2Precond", OPTIONS, {})


def test_a_published_adm_of_fewer_channels_than_a_head_has_no_attention_there():
    options = {"img_resolution": 8, "img_channels": 1, "model_type": "DhariwalUNet", "model_channels": 32}
    options |= {"channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8, 4]}
    network = edm_network(options)
    attending = {name.rpartition(".qkv")[0] for name in network.state_dict() if ".qkv." in name}
    assert attending == {"encoder.1.blocks.0", "decoder.0.enter.0", "decoder.0.blocks.0", "decoder.0.blocks.1"}
    assert edm_choice(options).skips_narrow_attention
    assert not edm_choice({**options, "model_channels": 64}).skips_narrow_attention
