"""Presets are the numbers of the paper (Karras et al. 2022, Table 7), and a base that everything else overrules."""

import re

import pytest
import torch
import yaml

from openedm.cli import presets
from openedm.cli.parsing import dump, parse
from openedm.cli.presets import preset_names
from openedm.cli.train import train
from openedm.data import Latents
from openedm.networks import DDPMpp, EDM2UNet
from openedm.objective import EDM2 as EDM2Objective
from openedm.objective import LogNormal
from openedm.training import Augmentation, HalfLife, PowerFunction

CIFAR = {"images": 200e6, "batch_size": 512, "learning_rate": 1e-3, "average": HalfLife(0.5e6)}
FACES = {**CIFAR, "batch_size": 256, "learning_rate": 2e-4}
IMAGENET = {"images": 2500e6, "batch_size": 4096, "learning_rate": 1e-4, "average": HalfLife(50e6)}
# Options, dropout, probability of augmentation, evaluations of a sample, shape, classes, millions of parameters.
TABLE = {
    "cifar10-ddpmpp": (CIFAR, 0.13, 0.12, 35, 32, 0, 55.7),
    "cifar10-ddpmpp-cond": (CIFAR, 0.13, 0.12, 35, 32, 10, 55.7),
    "cifar10-ncsnpp": (CIFAR, 0.13, 0.12, 35, 32, 0, 56.4),
    "cifar10-ncsnpp-cond": (CIFAR, 0.13, 0.12, 35, 32, 10, 56.4),
    "ffhq64-ddpmpp": (FACES, 0.05, 0.15, 79, 64, 0, 61.8),
    "ffhq64-ncsnpp": (FACES, 0.05, 0.15, 79, 64, 0, 62.8),
    "afhqv2-64-ddpmpp": (FACES, 0.25, 0.15, 79, 64, 0, 61.8),
    "afhqv2-64-ncsnpp": (FACES, 0.25, 0.15, 79, 64, 0, 62.8),
    "imagenet64-adm": (IMAGENET, 0.10, None, 511, 64, 1000, 295.9),
}


def _parsed(*arguments):
    return parse("openedm train", train, ["run", *arguments])


# Channels, millions of 2²⁰ images, learning rate, for latents of 512² and for images of 64².
EDM2 = {
    "edm2-img512-xxs": (64, 2048, 0.017),
    "edm2-img512-xs": (128, 2048, 0.012),
    "edm2-img512-s": (192, 2048, 0.01),
    "edm2-img512-m": (256, 2048, 0.009),
    "edm2-img512-l": (320, 1792, 0.008),
    "edm2-img512-xl": (384, 1280, 0.007),
    "edm2-img512-xxl": (448, 896, 0.0065),
    "edm2-img64-xs": (128, 1024, 0.012),
    "edm2-img64-s": (192, 1024, 0.01),
    "edm2-img64-m": (256, 2048, 0.009),
    "edm2-img64-l": (320, 1024, 0.008),
    "edm2-img64-xl": (384, 640, 0.007),
}


def test_there_is_a_preset_for_every_configuration_of_the_papers():
    assert preset_names() == sorted([*TABLE, *EDM2])


def test_the_presets_of_edm2_hold_the_numbers_of_their_paper():
    """Their numbers of parameters are tested with the network, in tests/networks/test_magnitude_unet.py."""
    for name, (channels, images, rate) in EDM2.items():
        latents = "512" in name
        values = _parsed("--preset", name, *(["--data.path", "latents.npz"] if latents else []))
        options = values["options"]
        dropout = 0.1 if channels >= 256 else 0.0
        expected = EDM2UNet(channels, attn_resolutions=(16, 8), dropout=dropout, uncertainty_channels=128)
        assert values["network"] == expected, name
        noise = LogNormal(-0.4, 1.0) if latents else LogNormal(-0.8, 1.6)
        assert values["objective"] == EDM2Objective(noise), name
        assert (options.images, options.learning_rate, options.batch_size) == (images * 2**20, rate, 2048), name
        assert (options.schedule, options.decay_after) == ("inverse_sqrt", (70_000 if latents else 35_000) * 2048)
        assert (options.beta_1, options.beta_2, options.rampup) == (0.9, 0.99, 10_000_000)
        assert options.power_average == PowerFunction((0.05, 0.10), every=8 * 2**20)
        assert (values["conditional"], options.augmentation, values["sampler"].nfe) == (True, None, 63)
        if latents:
            assert values["data"] == Latents("latents.npz")


def test_presets_for_latents_ask_for_them(openedm, tmp_path):
    result = openedm("train", tmp_path / "run", "--preset", "edm2-img512-xs")
    assert result.status != 0
    assert "data Latents: path must be given" in result.err
    assert not (tmp_path / "run").exists()


def test_presets_are_described_and_listed_with_their_numbers_of_parameters(openedm, monkeypatch):
    result = openedm("info", "edm2-img512-xs")
    assert result.status == 0, result.err
    for text in ("latents of ImageNet: --data.path FILE.npz", "4 × 64 × 64", "powers of width 0.05, 0.1"):
        assert text in result.out
    parameters = re.search(r"parameters +([\d,]+)", result.out)[1]
    assert round(int(parameters.replace(",", "")) / 1e6, 1) == 124.7
    monkeypatch.setattr(presets, "preset_names", lambda: ["cifar10-ddpmpp", "edm2-img512-xxs"])
    result = openedm("info", "presets")
    assert result.status == 0, result.err
    assert [line.split()[0] for line in result.out.splitlines()] == ["preset", "cifar10-ddpmpp", "edm2-img512-xxs"]
    assert "55.7 M" in result.out
    assert "31.3 M" in result.out


@pytest.mark.parametrize("name", TABLE)
def test_a_preset_holds_the_numbers_of_the_paper(name):
    expected, dropout, p, nfe, resolution, num_classes, millions = TABLE[name]
    values = _parsed("--preset", name)
    options, network = values["options"], values["network"]
    assert {key: getattr(options, key) for key in expected} == expected
    assert (options.rampup, options.beta_1, options.beta_2, options.epsilon) == (10e6, 0.9, 0.999, 1e-8)
    assert options.augmentation == (None if p is None else Augmentation(p=p, aniso_label="angle"))
    assert network.dropout == dropout
    assert values["sampler"].nfe == nfe
    assert values["conditional"] == (num_classes > 0)
    with torch.device("meta"):
        built = network.build((3, resolution, resolution), num_classes=num_classes, augment_dim=options.augment_dim)
    assert round(sum(weight.numel() for weight in built.parameters()) / 1e6, 1) == millions


def test_other_files_overrule_a_preset_and_what_is_typed_overrules_both(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("options:\n  batch_size: 64\n  learning_rate: 3.0e-4\n")
    values = _parsed(
        "--options.batch_size=32", "--config", str(file), "--preset=ffhq64-ncsnpp", "--network.dropout=0.2"
    )
    assert (values["options"].batch_size, values["options"].learning_rate) == (32, 3e-4)
    assert values["options"].images == 200_000_000
    assert values["network"].dropout == 0.2
    assert _parsed("--network=DDPMpp", "--preset=ffhq64-ncsnpp")["network"] == DDPMpp()


def test_augmentation_of_a_preset_can_be_changed_and_left_out():
    assert _parsed("--preset=ffhq64-ddpmpp", "--options.augmentation=null")["options"].augmentation is None
    changed = _parsed("--preset=ffhq64-ddpmpp", "--options.augmentation.p=0.3")["options"].augmentation
    assert changed == Augmentation(p=0.3, aniso_label="angle")


@pytest.mark.parametrize("name", ["cifar10-ddpmpp", "imagenet64-adm"])
def test_the_file_of_a_run_gives_the_values_of_its_preset(name, tmp_path):
    values = _parsed("--preset", name)
    file = tmp_path / "config.yaml"
    file.write_text(dump({key: value for key, value in values.items() if key != "preset"}))
    assert parse("openedm train", train, ["run", "--config", str(file)]) == values


def test_a_run_starts_from_a_preset_and_keeps_all_of_its_values(openedm, tmp_path):
    small = ["--network.model_channels=8", "--network.num_blocks=1", "--network.channel_mult=[1]"]
    small += ["--network.attn_resolutions=[]", "--options.images=64", "--options.batch_size=32", "--tracker=none"]
    small += ["--options.validate_every=0", "--options.snapshot_every=0"]
    with pytest.warns(UserWarning, match="rampup is 10,000,000 images, and options.images 64: the learning rate ends"):
        result = openedm("train", tmp_path / "run", *small, "--preset", "cifar10-ncsnpp")
    assert result.status == 0, result.err
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert kept["network"]["class_path"] == "openedm.networks.NCSNpp"
    assert (kept["options"]["rampup"], kept["options"]["augmentation"]["p"]) == (10_000_000, 0.12)
    assert "preset" not in kept


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "cifar10-ddpm"], r"preset must be one of afhqv2-64-ddpmpp, .*; did you mean 'cifar10-ddpmpp'\?"),
        (["--preset=lsun"], "preset must be one of .*imagenet64-adm, got 'lsun'"),
        (["--preset"], "preset must be one of .*, got ''"),
        (["--preset=ffhq64-ddpmpp", "--preset=ffhq64-ncsnpp"], "preset must be given once"),
    ],
)
def test_a_preset_that_does_not_exist_is_refused_with_those_that_do(openedm, tmp_path, arguments, message):
    result = openedm("train", tmp_path / "run", *arguments)
    assert result.status == 2
    assert re.search(message, result.err)
    assert not (tmp_path / "run").exists()


def test_a_preset_inside_a_file_is_refused(openedm, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("preset: ffhq64-ddpmpp\n")
    result = openedm("train", tmp_path / "run", "--config", file)
    assert result.status == 1
    assert (
        "preset must be given on the command line, as --preset ffhq64-ddpmpp, and not in a --config file" in result.err
    )


def test_the_help_names_every_preset(openedm):
    text = openedm("train", "--help").out
    assert [name for name in preset_names() if name.removesuffix("-cond") not in text] == []
