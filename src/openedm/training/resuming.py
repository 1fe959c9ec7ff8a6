"""Which settings a run may resume with: those of before, those that change no step, and those that are named.

The settings of a run are in its checkpoints: the model in config.json, the objective and the options in training.json.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from openedm.ground.choices import Choice, from_config, to_config
from openedm.objective import EDM_P_MEAN, LogNormal, Objective
from openedm.training.checkpoints import read_model
from openedm.training.model import Model
from openedm.training.options import Options

__all__ = ["as_recorded", "check_takes_effect", "check_unchanged", "with_recorded"]

VALIDATION_OPTIONS = frozenset({"validate_every", "validate_samples", "validate_levels", "validate_tails"})
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
NAMED_OPTIONS |= {"accumulate", "average.half_life", "decay_after"}
"""Options that alter the steps to come and fit the state of those that were made: they may change if they are named."""


def with_recorded(content: Mapping[str, Any], options: Options) -> Options:
    """The options with what the run has measured and chosen, where they leave it open: `accumulate` and `precision`.

    Args:
        content: the content of a checkpoint's training.json.
        options: the options of the run that resumes.
    """
    recorded = content.get("options")
    fields = recorded.get("init_args", recorded) if isinstance(recorded, Mapping) else {}
    fields = fields if isinstance(fields, Mapping) else {}
    if options.accumulate is None and isinstance(rounds := fields.get("accumulate"), int):
        options = replace(options, accumulate=rounds)
    if options.precision == "auto" and (chosen := fields.get("precision")) in ("fp32", "bf16"):
        options = replace(options, precision=chosen)
    return options


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
    if model.autoencoder == model_before.autoencoder:
        model = replace(model, autoencoder=model_before.autoencoder)  # wherever it is kept
    pairs: dict[str, tuple[Choice, Choice]] = {
        "model": (model_before, model),
        "objective": (objective_before, objective),
        "options": (options_before, options),
    }
    fixed = set(VALIDATION_OPTIONS) if options.tracks_best else set()
    if options.schedule == "cosine" or objective.trains_consistency:  # whose stages are parts of the run
        fixed.add("images")
    differences = [
        (name, f"{name} was {old!r}, is {new!r}")
        for part, (before, after) in pairs.items()
        for name, old, new in _differences(to_config(before), to_config(after), part)
        if name.removeprefix("options.") not in CHANGEABLE_OPTIONS - fixed
    ]
    meant = {name for name, _ in differences if _is_meant(name, named)}
    if refused := [line for name, line in differences if name not in meant]:
        data = " (measured of the data, which are not those of the run)" if any(map(_is_of_data, refused)) else ""
        raise ValueError(f"the run at {folder} cannot be resumed with other settings: {'; '.join(refused)}{data}")
    return tuple(line for _, line in differences)


def check_takes_effect(run: Path, changed: Sequence[str]) -> None:
    """Refuse settings of a run that has ended.

    Args:
        run: the run, or its last checkpoint.
        changed: what differs from the run, a line each.

    Raises:
        ValueError: something differs.
    """
    if changed:
        raise ValueError(
            f"the run at {run} has ended, where other settings have no effect: {'; '.join(changed)} (more "
            "options.images let it go on, and another options.stop_after where that ended it)"
        )


def _is_of_data(line: str) -> bool:
    return line.startswith(("model.units.", "model.condition_units.", "model.sigma_data ", "model.event_shape "))


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
