"""Checkpoints: a folder of safetensors and JSON that appears complete or not at all.

| file | content |
|---|---|
| config.json | the description of the denoiser: a `Model` |
| model.safetensors | the averaged (EMA) weights for sampling, with `keep_best` the best ones |
| training.safetensors | raw weights, with `keep_best` the last averaged ones, moments, parameters of the loss |
| training.json | images seen, step, skipped steps, the lowest validation loss, seed, options |

Reading a checkpoint runs no code from the file: weights are safetensors, and the description can only name known
classes. The random state of a run is its seed and its step, from which every step derives its generators.
"""

import math
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from openedm.denoiser import Preconditioned
from openedm.ground import checks
from openedm.ground.choices import Choice, from_config, to_config
from openedm.ground.storage import new_folder, read_json, read_tensors, write_json, write_tensors
from openedm.ground.tensors import misfits
from openedm.objective import EDM_P_MEAN, LogNormal, Objective
from openedm.optimisation import BestLoss
from openedm.training.model import Model, channels_last
from openedm.training.options import Options
from openedm.training.processes import shard_like

__all__ = [
    "RunState",
    "as_recorded",
    "check_unchanged",
    "find_checkpoint",
    "flatten_optimizer",
    "list_checkpoints",
    "load_denoiser",
    "load_weights",
    "read_accumulate",
    "read_model",
    "read_progress",
    "read_weights",
    "remove_checkpoints",
    "restore_optimizer",
    "save_checkpoint",
    "tensors_with_prefix",
    "trained_without_dropout",
]

FORMAT = "openedm-denoiser-1"
FOLDER = "checkpoints"


@dataclass
class RunState:
    """The counts that change in training; with the tensors they are the complete state of a run.

    Attributes:
        images: number of images seen.
        step: number of steps taken or skipped.
        skipped: number of steps skipped because their loss or gradient was not finite.
        skipped_in_a_row: number of steps skipped since the last step that was taken.
        best: the lowest validation loss, if it is tracked.
    """

    images: int = 0
    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    best: BestLoss = field(default_factory=BestLoss)

    @property
    def best_loss(self) -> float | None:
        """The lowest validation loss so far; None before the first."""
        lowest = float(self.best.lowest)
        return lowest if lowest < math.inf else None

    def to_json(self, objective: Objective, options: Options) -> dict[str, Any]:
        """The content of training.json: the state of a run and its settings."""
        counts = {name: getattr(self, name) for name in COUNT_FIELDS}
        best = {"best_loss": self.best_loss, "without_improvement": int(self.best.stale)}
        return {**counts, **best, "objective": to_config(objective), "options": to_config(options)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], folder: Path) -> "RunState":
        """The state in the training.json of the checkpoint `folder`. The first versions did not write a best loss.

        Raises:
            ValueError: a number is missing, or an entry is not a number.
        """
        try:
            counts = {name: int(content[name]) for name in COUNT_FIELDS}
            for name, count in counts.items():
                checks.between(name, count, 0, MAX_COUNT)
            lowest, stale = content.get("best_loss"), int(content.get("without_improvement", 0))
            lowest = torch.tensor(math.inf if lowest is None else float(lowest), dtype=torch.float64)
            return cls(**counts, best=BestLoss(lowest, torch.tensor(stale)))
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
        write_json(temporary / "config.json", {"format": FORMAT, "model": to_config(model)})
        write_tensors(temporary / "model.safetensors", weights)
        if training is not None:
            write_tensors(temporary / "training.safetensors", training[0])
            write_json(temporary / "training.json", dict(training[1]))


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
    try:
        denoiser = model.build()
    except (ArithmeticError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        problem = str(error).partition("\n")[0]
        raise ValueError(f"{folder / 'config.json'} describes a model that cannot be built: {problem}") from error
    if weights == "raw":
        tensors = tensors_with_prefix(read_tensors(folder / "training.safetensors"), "network")
    else:
        tensors = read_weights(folder)
    load_weights(denoiser.network, tensors, folder)
    return channels_last(denoiser).eval()


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
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        listed = "; ".join(sorted(problems)[:5])
        raise ValueError(f"the weights in {origin} do not fit the network: {listed}{more}")
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
        raise ValueError(f"{folder / 'config.json'}: format must be {FORMAT!r}, got {config.get('format')!r}")
    try:
        return from_config(Model, dict(config["model"]))
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'} does not describe a model: {error}") from error


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The averaged weights of the network.

    Raises:
        ValueError: the file is missing or damaged.
    """
    return read_tensors(folder / "model.safetensors")


def read_progress(folder: Path) -> dict[str, Any]:
    """The state of the run and its settings: the content of training.json.

    Raises:
        ValueError: the checkpoint has no training.json, or the file is damaged.
    """
    return read_json(folder / "training.json")


def read_accumulate(content: Mapping[str, Any]) -> int | None:
    """The number of rounds of a batch in the content of a training.json; None if it holds none."""
    options = content.get("options")
    fields = options.get("init_args", options) if isinstance(options, Mapping) else {}
    rounds = fields.get("accumulate") if isinstance(fields, Mapping) else None
    return rounds if isinstance(rounds, int) else None


def list_checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    folder = run / FOLDER
    return sorted(p for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []


def remove_checkpoints(run: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints of a run, and incomplete ones that a killed process left."""
    if keep > 0:
        for old in list_checkpoints(run)[:-keep]:
            os.replace(old, old.with_name(f".{old.name}-old"))  # no longer listed, before it is incomplete
    for partial in (run / FOLDER).glob(".*"):
        shutil.rmtree(partial, ignore_errors=True)


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
        problem = "has no checkpoint" if path.is_dir() else "is not a folder"
        raise ValueError(f"{path} {problem}: give a checkpoint (a folder with config.json) or a run with checkpoints")
    return found[-1]


def flatten_optimizer(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """The optimiser's state as tensors `optimizer.<parameter>.<entry>`; `names` are the names of its parameters."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{names[i]}.{key}": value for i, entry in state.items() for key, value in entry.items()}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: list[str], tensors: Mapping[str, Tensor], origin: Path
) -> None:
    """Undo `flatten_optimizer`.

    Raises:
        ValueError: an entry does not belong to a parameter or fit its shape, or entries are missing; the message lists
            them.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    positions = {name: i for i, name in enumerate(names)}
    content = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors_with_prefix(tensors, "optimizer").items():
        name, _, entry = key.rpartition(".")
        if name not in positions or value.shape not in ((), parameters[positions[name]].shape):
            raise ValueError(f"the optimiser's state in {origin} does not fit: {key} of shape {tuple(value.shape)}")
        i = positions[name]
        state.setdefault(i, {})[entry] = _with_strides(parameters[i], value)
    entries = set().union(*state.values())
    missing = [f"{names[i]}.{entry}" for i in state for entry in sorted(entries - state[i].keys())]
    if missing:
        raise ValueError(f"the optimiser's state in {origin} is incomplete: {', '.join(missing[:5])} missing")
    content["state"] = state
    optimizer.load_state_dict(content)


def _with_strides(parameter: Tensor, value: Tensor) -> Tensor:
    """`value` with the strides of `parameter`, as the fused optimiser requires for the state of a parameter."""
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter).copy_(shard_like(parameter, value))


VALIDATION_OPTIONS = frozenset({"validate_every", "validate_samples", "validate_levels"})
CHANGEABLE_OPTIONS = VALIDATION_OPTIONS | {
    "images",
    "checkpoint_every",
    "snapshot_every",
    "keep",
    "workers",
    "patience",
}
CHANGEABLE_OPTIONS |= {"stop_after", "power_average.every", "power_average.precision", "sharding"}
"""Options that a resumed run may change: they do not alter its steps."""
NAMED_OPTIONS = frozenset({"images", "learning_rate", "rampup", "schedule", "clip_norm", "label_dropout", "precision"})
NAMED_OPTIONS |= {"accumulate", "average.half_life"}
"""Options that alter the steps to come and fit the state of those that were made: they may change if they are named."""


def trained_without_dropout(folder: Path) -> bool:
    """Whether a checkpoint records that training never left classes out; False where it does not say."""
    training = read_progress(folder) if (folder / "training.json").is_file() else {}
    options = training.get("options", {})
    return isinstance(options, dict) and options.get("init_args", options).get("label_dropout") == 0


def as_recorded(content: Mapping[str, Any], objective: Objective) -> Objective:
    """The objective with the P_mean of version 0.1, −1.2 for all data, if none is given and the run has that.

    Args:
        content: the content of a checkpoint's training.json.
        objective: the objective of the run that resumes.
    """
    noise = objective.noise
    if not isinstance(noise, LogNormal) or noise.p_mean is not None:
        return objective
    try:
        recorded = from_config(Objective, content["objective"]).noise
    except (KeyError, TypeError, ValueError):
        return objective  # `check_unchanged` says what is wrong
    if isinstance(recorded, LogNormal) and recorded.p_mean == EDM_P_MEAN:
        return replace(objective, noise=replace(noise, p_mean=EDM_P_MEAN))
    return objective


def check_unchanged(
    folder: Path,
    content: Mapping[str, Any],
    model: Model,
    objective: Objective,
    options: Options,
    named: Collection[str] = (),
) -> tuple[str, ...]:
    """Check that a run does not resume with settings that would change its steps, unless they are named.

    Options that are newer than the checkpoint are compared by their defaults.

    Args:
        folder: the checkpoint.
        content: the content of its training.json.
        model, objective, options: the settings of the run that resumes.
        named: the dotted names of settings that may change, such as "options.learning_rate" or "objective.noise".

    Returns:
        What changes among `named`, a line each.

    Raises:
        ValueError: other settings changed, and the message lists them; or those of the checkpoint cannot be read.
    """
    try:
        objective_before = from_config(Objective, content["objective"])
        options_before = from_config(Options, content["options"])
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'training.json'} does not describe the run's settings: {error}") from error
    model_before = read_model(folder)
    model = replace(model, condition_range=model_before.condition_range)  # older runs lack it; no step depends on it
    pairs: dict[str, tuple[Choice, Choice]] = {
        "model": (model_before, model),
        "objective": (objective_before, objective),
        "options": (options_before, options),
    }
    fixed = set(VALIDATION_OPTIONS) if options.tracks_best else set()
    if options.schedule == "cosine":
        fixed.add("images")
    differences = [
        (name, f"{name} was {old!r}, is {new!r}")
        for part, (before, after) in pairs.items()
        for name, old, new in _differences(to_config(before), to_config(after), part)
        if name.removeprefix("options.") not in CHANGEABLE_OPTIONS - fixed
    ]
    meant = {name for name, _ in differences if _is_meant(name, named)}
    if refused := [line for name, line in differences if name not in meant]:
        raise ValueError(f"the run at {folder} cannot be resumed with other settings: {'; '.join(refused)}")
    return tuple(line for _, line in differences)


def _is_meant(name: str, named: Collection[str]) -> bool:
    """Whether a setting may change in the middle of a run, and is among those named, or a part of one of them."""
    fits = name.removeprefix("options.") in NAMED_OPTIONS or name.startswith("objective.noise.")
    return fits and any(f"{name}.".startswith(f"{each}.") for each in named)


def _differences(before: Any, after: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    """The dotted names at which two configurations differ, with both values."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            inner = name if key == "init_args" else f"{name}.{key}"
            yield from _differences(before.get(key), after.get(key), inner)
    elif before != after:
        yield name, before, after
