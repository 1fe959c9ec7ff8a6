"""`openedm info`: describe a checkpoint or a preset."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from openedm.cli.presets import describe_preset, list_presets, preset_names
from openedm.cli.terminal import rows
from openedm.ground import checks
from openedm.ground.choices import from_config, is_outside, to_config
from openedm.ground.plain_yaml import parse_yaml
from openedm.ground.regular import read_limited
from openedm.ground.tensors import all_finite, count_not_finite
from openedm.objective import Objective
from openedm.training import Model, find_checkpoint, read_model
from openedm.training.checkpoints import read_progress, read_weights
from openedm.training.model import count_parameters


def info(checkpoint: str) -> None:
    """Describe a checkpoint (the denoiser, its data, and the progress of training), or a preset.

    Args:
        checkpoint: a checkpoint folder, or a run folder, for its newest checkpoint; or the name of a preset, such as
            edm2-img512-s, or presets for a table of all of them.
    """
    if checkpoint in ("presets", *preset_names()) and not Path(checkpoint).exists():
        print(list_presets() if checkpoint == "presets" else rows(describe_preset(checkpoint)))
        return
    near = difflib.get_close_matches(checkpoint, ("presets", *preset_names()), n=1)
    if near and not Path(checkpoint).exists():
        raise ValueError(f"{checkpoint} does not exist, and is not a preset; did you mean {near[0]}?")
    folder = find_checkpoint(checkpoint)
    model, tensors = read_model(folder), read_weights(folder)
    values = {
        "checkpoint": str(folder),
        "network": str(model.network),
        "parameters": f"{count_parameters(tensors):,}",
        "preconditioning": str(model.preconditioning),
        "sample": " × ".join(map(str, model.event_shape)) + (" image in [-1, 1]" if model.images else ""),
        **({} if model.autoencoder is None else {"latents of": str(model.autoencoder)}),
        "classes": _classes(model.num_classes, model.class_names),
        **_conditions(model),
        "sigma_data": f"{model.sigma_data:.6g}" + ("" if model.units is None else " in standard units"),
    }
    if model.consistency:
        values["kind"] = "consistency model: one or two evaluations, by MultistepConsistency"
    if model.noise_range is not None:
        values["noise levels"] = "{:.6g} to {:.6g}".format(*model.noise_range)
    if modules := _imports(folder, to_config(model)):
        values["imports"] = " ".join(f"--import {module}" for module in modules)
    for name, units, width in (
        ("units", model.units, model.sigma_data),
        ("condition units", model.condition_units, 1.0),
    ):
        if units is not None:
            values[name] = f"mean ± width of a channel: {units.describe(width)}"
    values["weights"] = _weights(tensors)
    if (folder / "training.json").is_file():
        values |= _training(folder)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(rows({**values, "size on disk": f"{size / 2**20:.1f} MiB"}))


def _weights(tensors: Mapping[str, Tensor]) -> str:
    """The types of the averaged weights, and those that are NaN or infinite, which `sample` refuses."""
    types = ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()}))
    broken = [f"{name} holds {count_not_finite(t)}" for name, t in sorted(tensors.items()) if not all_finite(t)]
    return f"{types}; NOT FINITE: {checks.first_of(broken)}" if broken else types


def _training(folder: Path) -> dict[str, str]:
    training = read_progress(folder)
    try:
        return {
            "images seen": f"{training['images']:,} of {training['options']['init_args']['images']:,}",
            "steps": f"{training['step']:,}, {training['skipped']} skipped as not finite",
            "objective": str(from_config(Objective, training["objective"])),
        }
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'training.json'} does not describe the progress of training: {error!r}") from error


def _imports(folder: Path, config: Any) -> list[str]:
    """What --import was given by the run of a checkpoint; without its config.yaml, the modules of the model's classes.

    The files are read as data: nothing that they name is imported.
    """
    try:
        file = folder.parent.parent / "config.yaml"
        recorded = parse_yaml(read_limited(file), file)["import"]
    except (OSError, ValueError, KeyError, TypeError):
        return sorted(_outside_modules(config))
    return [repr(module)[1:-1] for module in recorded] if isinstance(recorded, list) else []


def _outside_modules(config: Any) -> set[str]:
    """The modules outside openedm whose classes a configuration names."""
    if isinstance(config, list):
        return set().union(*map(_outside_modules, config))
    if not isinstance(config, dict):
        return set()
    name = config.get("class_path")
    own = {str(name).rpartition(".")[0]} if is_outside(name) else set()
    return own.union(*map(_outside_modules, config.values()))


def _conditions(model: Model) -> dict[str, str]:
    """What float conditions are, if the model has some."""
    if model.condition_shape is None:
        return {}
    dropout = ", or none" if model.condition_dropout else ""
    return {"conditions": f"{' × '.join(map(str, model.condition_shape))} floats a sample{dropout}"}


def _classes(count: int, names: tuple[str, ...] | None) -> str:
    if count == 0:
        return "none"
    return str(count) if names is None else f"{count}: {', '.join(names)}"
