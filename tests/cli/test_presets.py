"""Presets are the numbers of the paper (Karras et al. 2022, Table 7), and a base that everything else overrules."""

import re

import pytest
import torch
import yaml

from openedm.cli.parsing import dump, parse
from openedm.cli.presets import preset_names
from openedm.cli.train import train
from openedm.networks import DDPMpp
from openedm.training import Augmentation, HalfLife

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


def test_there_is_a_preset_for_every_configuration_of_the_paper():
    assert preset_names() == sorted(TABLE)


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
