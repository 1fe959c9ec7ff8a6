"""Checkpoints: a folder of safetensors and JSON that appears complete or not at all.

| file | content |
|---|---|
| config.json | the description of the denoiser: a `Model`; digest of model.safetensors |
| model.safetensors | the averaged (EMA) weights for sampling, with `keep_best` the best ones |
| training.safetensors | raw weights, with `keep_best` the last averaged ones, moments, parameters of the loss |
| training.json | images seen, step, skipped steps, the lowest validation loss, seed, options; digests of both weights |

Reading a checkpoint runs no code from the file: weights are safetensors, and the description can only name known
classes. The random state of a run is its seed and its step, from which every step derives its generators.
"""

import math
import os
import re
import shutil
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from openedm.denoiser import Preconditioned
from openedm.ground import checks
from openedm.ground.choices import from_config, to_config
from openedm.ground.creation import LimitedCreation
from openedm.ground.kinds import KINDS, holding
from openedm.ground.storage import new_folder, read_json, read_tensors, write_json, write_tensors
from openedm.ground.tensors import misfits
from openedm.objective import Objective
from openedm.optimisation import BestLoss
from openedm.training.model import Model, channels_last
from openedm.training.options import Options
from openedm.training.processes import shard_like

__all__ = [
    "RunState",
    "build_described",
    "find_checkpoint",
    "is_checkpoint",
    "list_checkpoints",
    "list_incomplete",
    "load_denoiser",
    "load_weights",
    "make_room",
    "read_model",
    "read_progress",
    "read_training_tensors",
    "read_weights",
    "remove_checkpoints",
    "save_checkpoint",
    "tensors_with_prefix",
    "trained_without_dropout",
    "write_model",
]

FORMAT = "openedm-denoiser-1"
FOLDER = "checkpoints"
_NAME, _PARTIAL = re.compile(r"[0-9]{1,18}"), re.compile(r"\.[0-9]{1,18}(-([0-9]+|old)|\.lock)")


@dataclass
class RunState:
    """The counts that change in training; with the tensors they are the complete state of a run.

    Attributes:
        images: number of images seen.
        step: number of steps taken or skipped.
        skipped: number of steps skipped because their loss or gradient was not finite.
        skipped_in_a_row: number of steps skipped since the last step that was taken.
        best: the lowest validation loss, if it is tracked.
        dropout_by_bits: whether dropout has the masks of `networks.pointwise`; False for runs of older versions.
    """

    images: int = 0
    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    best: BestLoss = field(default_factory=BestLoss)
    dropout_by_bits: bool = True

    @property
    def best_loss(self) -> float | None:
        """The lowest validation loss so far; None before the first."""
        lowest = float(self.best.lowest)
        return lowest if lowest < math.inf else None

    def to_json(self, objective: Objective, options: Options) -> dict[str, Any]:
        """The content of training.json: the state of a run and its settings."""
        counts = {name: getattr(self, name) for name in COUNT_FIELDS}
        best = {"best_loss": self.best_loss, "without_improvement": int(self.best.stale)}
        settings = {"objective": to_config(objective), "options": to_config(options)}
        return {**counts, **best, "dropout_by_bits": self.dropout_by_bits, **settings}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], folder: Path) -> "RunState":
        """The state in the training.json of the checkpoint `folder`. The first versions did not write
        a best loss and `dropout_by_bits`.

        Raises:
            ValueError: a number is missing, or an entry is not a number.
        """
        try:
            counts = {name: int(content[name]) for name in COUNT_FIELDS}
            for name, count in counts.items():
                checks.between(name, count, 0, MAX_COUNT)
            lowest, stale = content.get("best_loss"), int(content.get("without_improvement", 0))
            lowest = torch.tensor(math.inf if lowest is None else float(lowest), dtype=torch.float64)
            by_bits = bool(content.get("dropout_by_bits", False))
            return cls(**counts, best=BestLoss(lowest, torch.tensor(stale)), dropout_by_bits=by_bits)
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise ValueError(f"{folder / 'training.json'} does not hold the state of a run: {error!r}") from error


MAX_COUNT = 2**62
COUNT_FIELDS = ("images", "step", "skipped", "skipped_in_a_row")


def save_checkpoint(
    path: Path,
    model: Model,
    weights: Mapping[str, Tensor],
    training: tuple[Mapping[str, Tensor], Mapping[str, Any]] | None = None,
) -> None:
    """Write a checkpoint folder atomically: it is complete under a temporary name before it is renamed.

    Args:
        path: the folder to create.
        model: the description of the denoiser.
        weights: the averaged weights of the network.
        training: tensors and plain data for resuming; None for a model only.

    Raises:
        ValueError: `path` exists; checkpoints are never overwritten.
    """
    with new_folder(path) as temporary:
        write_tensors(temporary / "model.safetensors", weights)
        if training is not None:
            write_tensors(temporary / "training.safetensors", training[0])
            files = ("training.safetensors", "model.safetensors")
            write_json(temporary / "training.json", dict(training[1]), files=files)
        write_model(temporary, model)


def write_model(folder: Path, model: Model) -> None:
    """Write the config.json of a checkpoint, beside its weights, whose digest it holds."""
    write_json(folder / "config.json", {"format": FORMAT, "model": to_config(model)}, files=("model.safetensors",))


def load_denoiser(path: str | Path, weights: Literal["ema", "raw"] = "ema", *, network: Any = None) -> Preconditioned:
    """The denoiser of a checkpoint, in evaluation mode, on the host.

    Args:
        path: a checkpoint folder, or a run folder, for its newest checkpoint.
        weights: "ema", the averaged weights, or "raw", those of the last step.
        network: the network that was trained, for one that is a module of the user's own: an `nn.Module`, its class, a
            function that makes one, or a `Network`; None for the one that the checkpoint describes.

    Raises:
        TypeError: `path` is not a path, or `network` is not a network.
        ValueError: there is no checkpoint, its format is unknown, or its weights do not fit the description.
    """
    checks.one_of("weights", weights, ("ema", "raw"))
    folder = find_checkpoint(path)
    model = read_model(folder)
    if network is not None:
        model = replace(model, network=network)
    if weights == "raw":
        tensors = tensors_with_prefix(read_training_tensors(folder), "network")
    else:
        tensors = read_weights(folder)
    denoiser = build_described(model, tensors, folder)
    load_weights(denoiser.network, tensors, folder)
    return channels_last(denoiser).eval()


def build_described(model: Model, tensors: Mapping[str, Tensor], folder: Path) -> Preconditioned:
    """The denoiser that the config.json in `folder` describes, for weights that were read.

    Raises:
        ValueError: it cannot be built, or has many more numbers than the weights; the message names the file.
    """
    try:
        with LimitedCreation(tensors.values(), "its weights"):
            return model.build()
    except (ArithmeticError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        problem = str(error).partition("\n")[0]
        raise ValueError(f"{folder / 'config.json'} describes a model that cannot be built: {problem}") from error


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], origin: Path) -> None:
    """Copy `tensors` into the module, in the module's own dtypes; every name, shape and kind of number must fit.

    Weights of half precision are accepted for those of single precision. The check for NaN and infinity reads every
    number once: 0.02 seconds for the 56 million of a DDPM++ network.

    Raises:
        ValueError: a name is missing, unexpected, has another shape or another kind of numbers, such as integers for
            weights, or holds NaN or infinity where the new module has none; the message lists them.
    """
    expected = module.state_dict()
    problems = [f"{name} is missing" for name in expected.keys() - tensors.keys()]
    problems += [f"{name} is unexpected" for name in tensors.keys() - expected.keys()]
    for name in expected.keys() & tensors.keys():
        problems += [f"{name} {problem}" for problem in misfits(expected[name], tensors[name])]
    if problems:
        raise ValueError(f"the weights in {origin} do not fit the network: {checks.first_of(sorted(problems))}")
    module.load_state_dict({name: shard_like(expected[name], tensor) for name, tensor in tensors.items()})


def tensors_with_prefix(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The tensors named `part.…`, without that prefix."""
    return {name.removeprefix(f"{part}."): t for name, t in tensors.items() if name.startswith(f"{part}.")}


def read_model(folder: Path) -> Model:
    """The description in a checkpoint's config.json.

    Raises:
        ValueError: the file is missing, is not JSON, has another format or describes an unknown model.
    """
    config = read_json(folder / "config.json")
    if config.get("format") != FORMAT:
        if (kind := holding(folder)) not in (None, KINDS["openedm-denoiser"]):
            raise ValueError(f"{folder} holds {kind}: give the checkpoint of a denoiser")
        raise ValueError(f"{folder / 'config.json'}: format must be {FORMAT!r}, got {config.get('format')!r}")
    try:
        return from_config(Model, dict(config["model"]))
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'} does not describe a model: {error}") from error


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The averaged weights of the network.

    Raises:
        ValueError: the file is missing, damaged or was changed since it was written.
    """
    return read_tensors(folder / "model.safetensors", folder / "config.json")


def read_training_tensors(folder: Path) -> dict[str, Tensor]:
    """The raw weights and the other tensors for resuming; of checkpoints without training.json they are not checked.

    Raises:
        ValueError: the file is missing, damaged or was changed since it was written.
    """
    described = folder / "training.json"
    return read_tensors(folder / "training.safetensors", described if described.is_file() else None)


def read_progress(folder: Path) -> dict[str, Any]:
    """The state of the run and its settings: the content of training.json.

    Raises:
        ValueError: the checkpoint has no training.json, or the file is damaged.
    """
    return read_json(folder / "training.json")


def trained_without_dropout(folder: Path) -> bool:
    """Whether a checkpoint records that training never left classes out; False where it does not say."""
    training = read_progress(folder) if (folder / "training.json").is_file() else {}
    options = training.get("options", {})
    return isinstance(options, dict) and options.get("init_args", options).get("label_dropout") == 0


def is_checkpoint(path: Path) -> bool:
    """Whether a folder holds the files of a checkpoint, none of them empty; they are not read."""
    files = (path / "config.json", path / "model.safetensors")
    return all(file.is_file() and file.stat().st_size > 0 for file in files)


def list_checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first; other folders that are there, also empty ones, do not count."""
    folder = run / FOLDER
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(filter(is_checkpoint, found), key=lambda path: int(path.name))


def list_incomplete(run: Path) -> list[Path]:
    """The folders that have names of checkpoints and files in them, but are newer than all complete checkpoints."""
    folder, complete = run / FOLDER, list_checkpoints(run)
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    newer = [path for path in found if not complete or int(path.name) > int(complete[-1].name)]
    return sorted((path for path in newer if path.is_dir() and any(path.iterdir())), key=lambda path: int(path.name))


def make_room(path: Path) -> None:
    """Move a folder that has the name of a new checkpoint and is none to NAME.incomplete; an empty one is removed."""
    if not path.exists() or is_checkpoint(path):
        return
    try:
        path.rmdir()
    except OSError:
        aside = path.with_name(f"{path.name}.incomplete")
        os.replace(path, aside if not aside.exists() else path.with_name(f"{aside.name}-{time.time_ns()}"))
        warnings.warn(f"{path} is not a complete checkpoint and was moved to {aside.name}", stacklevel=2)


def remove_checkpoints(run: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints of a run, and incomplete ones that a killed process left.

    Args:
        run: the run, with its lock.
        keep: how many stay; 0 for all.
    """
    if keep > 0:
        for old in list_checkpoints(run)[:-keep]:
            os.replace(old, old.with_name(f".{old.name}-old"))  # no longer listed, before it is incomplete
    for partial in (run / FOLDER).glob(".*"):
        if _PARTIAL.fullmatch(partial.name):
            partial.unlink() if partial.is_file() else shutil.rmtree(partial, ignore_errors=True)


def find_checkpoint(path: str | Path) -> Path:
    """`path` itself if it is a checkpoint, else the newest checkpoint of the run at `path`.

    Raises:
        ValueError: `path` is neither.
    """
    checks.instance("path", path, (str, os.PathLike), "the path of a checkpoint or run")
    path = Path(path)
    if (path / "config.json").is_file():
        return path
    found = list_checkpoints(path)
    if not found:
        what = "has no checkpoint" if path.is_dir() else "is a file" if path.exists() else "does not exist"
        what = what if (kind := holding(path)) in (None, KINDS["run"]) else f"holds {kind}"
        published = path.is_file() and path.suffix in (".pkl", ".safetensors")
        if inside := list_checkpoints(path.parent) if path.name == "checkpoints" else []:
            what = f"is the folder of the checkpoints of {path.parent}, such as {inside[-1]}"
        way = f"; of a published network, openedm convert {path} FOLDER makes one" if published else ""
        raise ValueError(f"{path} {what}: give a checkpoint (a folder with config.json) or a run with some{way}")
    return found[-1]
