"""What the folder of a run, or a checkpoint, tells about its training."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openedm.comparing.settings import Setting, settings_of
from openedm.data import Source
from openedm.ground.choices import from_config, to_config
from openedm.ground.digests import check_text
from openedm.ground.plain_yaml import parse_yaml
from openedm.ground.regular import read_limited
from openedm.training import Model, ValidationLoss, find_checkpoint, read_model
from openedm.training.checkpoints import read_progress, read_weights
from openedm.training.model import count_parameters
from openedm.training.records import read_log

__all__ = ["TrainedRun", "read_run", "short_names"]


@dataclass(frozen=True)
class TrainedRun:
    """A trained denoiser and how it came about.

    Attributes:
        name: what it is called in tables.
        path: as given: a run or a checkpoint.
        checkpoint: the folder of the checkpoint, of a run its newest.
        model: the description of the denoiser.
        settings: the options of training by their dotted names.
        data: the source of the training data, and of the validation data; None where nothing tells it.
        validation: likewise; the training data unless others were given.
        parameters: the number of trained numbers.
        images: the images seen; None where nothing tells it.
        seconds: the time of the steps, without validation, checkpoints and figures; None where there is no log.
        progress: (images seen, loss of the batches).
        validations: (images seen, validation loss of the averaged weights).
        keeps_best: whether the checkpoint has the weights of the lowest validation loss instead of the last ones.
    """

    name: str
    path: Path
    checkpoint: Path
    model: Model
    settings: Mapping[str, Setting]
    data: Source | None
    validation: Source | None
    parameters: int
    images: int | None
    seconds: float | None
    progress: tuple[tuple[int, float], ...]
    validations: tuple[tuple[int, ValidationLoss], ...]
    keeps_best: bool = False

    @property
    def loss(self) -> ValidationLoss | None:
        """The validation loss of the checkpoint's averaged weights: the last, or the lowest of `keep_best`."""
        if not self.validations:
            return None
        best = min(self.validations, key=lambda row: row[1].loss) if self.keeps_best else self.validations[-1]
        return best[1]


def read_run(path: str | Path, name: str | None = None) -> TrainedRun:
    """What a run, or one of its checkpoints, tells; a checkpoint outside a run tells less.

    Args:
        path: a run folder, for its newest checkpoint, or a checkpoint folder.
        name: what it is called; None for the name of the folder.

    Raises:
        ValueError: there is no checkpoint, or a file is damaged; the message names it.
    """
    folder = find_checkpoint(path)
    run = folder.parent.parent if folder.parent.name == "checkpoints" else None
    training = read_progress(folder) if (folder / "training.json").is_file() else {}
    model, images = read_model(folder), training.get("images")
    config = _read_config(run) or _from_checkpoint(model, training)
    log = read_log(run / "log.jsonl", images) if run is not None and (run / "log.jsonl").is_file() else None
    progress, validations, seconds = ((), (), None) if log is None else log
    data = _source(config.get("data"))
    settings = settings_of(config)
    return TrainedRun(
        name=name or Path(os.path.abspath(path)).name,
        path=Path(path),
        checkpoint=folder,
        model=model,
        settings=settings,
        data=data,
        validation=data if config.get("validation") is None else _source(config["validation"]),
        parameters=count_parameters(read_weights(folder)),
        images=images,
        seconds=seconds,
        progress=tuple(progress),
        validations=tuple(validations),
        keeps_best=settings.get("options.keep_best", Setting("false")).text == "true",
    )


def _read_config(run: Path | None) -> dict[str, Any] | None:
    """The options in the config.yaml of a run; None where there is none."""
    if run is None or not (file := run / "config.yaml").is_file():
        return None
    text = read_limited(str(file))
    content = parse_yaml(text, file)
    check_text(text, str(file))
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a mapping of options to values, got {content!r}")
    return content


def _from_checkpoint(model: Model, training: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a checkpoint alone tells."""
    found: dict[str, Any] = {
        "network": to_config(model.network),
        "preconditioning": to_config(model.preconditioning),
    }
    if isinstance(options := training.get("options"), Mapping):
        found["options"] = options.get("init_args", options)
    if "objective" in training:
        found["objective"] = training["objective"]
    return found


def _source(value: Any) -> Source | None:
    """The source of the data; None where its class is not known."""
    try:
        source: Source = from_config(Source, value)  # type: ignore[type-abstract]
        return source
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return None


def short_names(paths: Sequence[str | Path]) -> list[str]:
    """The shortest ends of paths that tell them apart, without the folder `checkpoints`.

    >>> short_names(["runs/a", "runs/b"]), short_names(["a/run", "b/run"])
    (['a', 'b'], ['a/run', 'b/run'])
    >>> short_names(["a/checkpoints/000000000320", "a"])
    ['a/320', 'a']
    """
    parts = [[_shown(p) for p in Path(os.path.abspath(path)).parts if p != "checkpoints"] for path in paths]
    names = []
    for own in parts:
        others = [other for other in parts if other is not own]
        length = next((n for n in range(1, len(own)) if all(o[-n:] != own[-n:] for o in others)), len(own))
        if own[-1].isdigit():
            length = max(length, 2)
        names.append("/".join(own[-length:]))
    return names


def _shown(part: str) -> str:
    return part.lstrip("0") or "0" if part.isdigit() and len(part) == 12 else part
