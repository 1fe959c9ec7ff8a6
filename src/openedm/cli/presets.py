"""Presets: configurations of Karras et al. 2022 and 2024 by name, one YAML file each."""

import difflib
import math
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError

__all__ = ["PRESETS", "describe_preset", "list_presets", "preset_file", "preset_names"]

PRESETS = Path(__file__).parents[1] / "presets"
"""The folder of the files."""
DATA = {
    "cifar10": ((3, 32, 32), 10, "CIFAR-10"),
    "ffhq64": ((3, 64, 64), 0, "FFHQ"),
    "afhqv2-64": ((3, 64, 64), 0, "AFHQv2"),
    "imagenet64": ((3, 64, 64), 1000, "ImageNet"),
    "edm2-img64": ((3, 64, 64), 1000, "ImageNet"),
    "edm2-img512": ((4, 64, 64), 1000, "latents of ImageNet"),
}
"""The shape of a sample, the number of classes and the name of the data of presets, by the start of their names."""


def preset_names() -> list[str]:
    """The names of all presets."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def preset_file(name: str) -> str:
    """The file of a preset.

    Raises:
        ArgumentError: there is no preset of this name.
    """
    if name not in preset_names():
        near = difflib.get_close_matches(name, preset_names(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ArgumentError(None, f"preset must be one of {', '.join(preset_names())}, got {name!r}{hint}")
    return str(PRESETS / f"{name}.yaml")


def describe_preset(name: str) -> dict[str, str]:
    """What a preset trains, and how, by name; its network is counted without memory for its weights."""
    values, parameters = _values(name)
    (shape, num_classes, data), options = _data(name), values["options"]
    rate = f"{options.learning_rate:g}, {options.schedule}"
    rate += "" if options.decay_after is None else f" after {options.decay_after:,} images"
    averages = f"half-life {options.average.half_life:,.0f} images"
    if options.power_average is not None:
        averages += f"; powers of width {', '.join(f'{width:g}' for width in options.power_average.sigma_rel)}"
    latents = ": --data.path FILE.npz, as for openedm.data.Latents, or shards of openedm data encode --scaling edm2"
    return {
        "preset": name,
        "data": data + (latents if "latents" in data else ""),
        "sample": " × ".join(map(str, shape)),
        "classes": str(num_classes if values["conditional"] else 0),
        "network": str(values["network"]),
        "parameters": f"{parameters:,}",
        "preconditioning": str(values["preconditioning"]),
        "objective": str(values["objective"]),
        "images": f"{options.images:,} in batches of {options.batch_size:,}",
        "learning rate": f"{rate}; ramp-up {options.rampup:,} images",
        "averages": averages,
        "grids": f"{values['sampler'].nfe} evaluations a sample",
        "file": preset_file(name),
    }


def list_presets() -> str:
    """A table of all presets, a line each."""
    lines = []
    for name in preset_names():
        values, parameters = _values(name)
        options = values["options"]
        kind = type(values["network"]).__name__
        numbers = (f"{parameters / 1e6:.1f} M", f"{options.images / 1e6:,.0f} M", f"{options.learning_rate:g}")
        lines.append((_data(name)[2], parameters, (name, _data(name)[2], kind, *numbers)))
    table = [("preset", "data", "network", "parameters", "images", "rate"), *(row for *_, row in sorted(lines))]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    shown = (
        "  ".join(
            f"{text:<{w}}" if i < 3 else f"{text:>{w}}" for i, (text, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    )
    return "\n".join(line.rstrip() for line in shown)


def _data(name: str) -> tuple[tuple[int, ...], int, str]:
    return next(facts for start, facts in DATA.items() if name.startswith(f"{start}-"))


def _values(name: str) -> tuple[dict[str, Any], int]:
    """The options of a preset, and the number of parameters of its network."""
    import torch

    from openedm.cli.parsing import parse
    from openedm.cli.train import train

    shape, num_classes, data = _data(name)
    path = ["--data.path", "latents.npz"] if "latents" in data else []
    values = parse("openedm train", train, ["run", "--preset", name, *path])
    num_classes = num_classes if values["conditional"] else 0
    with torch.device("meta"):
        network = values["network"].build(shape, num_classes=num_classes, augment_dim=values["options"].augment_dim)
    return values, sum(math.prod(parameter.shape) for parameter in network.parameters())
