"""`openedm info`: describe a checkpoint."""

from pathlib import Path

from openedm.cli.terminal import rows
from openedm.ground.choices import from_config
from openedm.objective import Objective
from openedm.training import find_checkpoint, num_parameters, read_model
from openedm.training.checkpoints import read_progress


def info(checkpoint: str) -> None:
    """Describe a checkpoint: the denoiser, its data, and the progress of training.

    Args:
        checkpoint: a checkpoint folder, or a run folder, for its newest checkpoint.
    """
    folder = find_checkpoint(checkpoint)
    model = read_model(folder)
    values = {
        "checkpoint": str(folder),
        "network": str(model.network),
        "parameters": f"{num_parameters(model.build()):,}",
        "preconditioning": str(model.preconditioning),
        "sample": " × ".join(map(str, model.event_shape)) + (" image in [-1, 1]" if model.images else ""),
        "classes": _classes(model.num_classes, model.class_names),
        "sigma_data": f"{model.sigma_data:.6g}",
    }
    if (folder / "training.json").is_file():
        values |= _training(folder)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(rows({**values, "size on disk": f"{size / 2**20:.1f} MiB"}))


def _training(folder: Path) -> dict[str, str]:
    training = read_progress(folder)
    try:
        return {
            "images seen": f"{training['images']:,} of {training['options']['init_args']['images']:,}",
            "steps": f"{training['step']:,}, {training['skipped']} skipped as not finite",
            "objective": str(from_config(Objective, training["objective"])),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'training.json'} does not describe the progress of training: {error!r}") from error


def _classes(count: int, names: tuple[str, ...] | None) -> str:
    if count == 0:
        return "none (unconditional)"
    return str(count) if names is None else f"{count}: {', '.join(names)}"
