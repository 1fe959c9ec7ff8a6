"""`openedm ema`: rebuild an average of a run's weights."""

from pathlib import Path

from openedm.ground.storage import new_path
from openedm.training import combine, find_checkpoint, list_snapshots, read_model, reconstruct, save_checkpoint


def ema(run: str, out: str, sigma_rel: float = 0.10, images: int | None = None) -> None:
    """Rebuild the average of any width of a run that was trained with `--options.power_average PowerFunction`.

    Writes a checkpoint that can be sampled and evaluated like any other. Existing folders are never overwritten.

    Args:
        run: the run folder.
        out: the checkpoint folder to create.
        sigma_rel: the width of the average relative to the length of training, above 0 and at most 0.288.
        images: the images seen at the snapshot at which the average ends; by default the last one.
    """
    if not Path(run).is_dir():
        raise ValueError(f"run must be the folder of a run, got {run!r}")
    new_path("out", out, what="a checkpoint")
    weights = reconstruct(run, sigma_rel, images)
    save_checkpoint(Path(out), read_model(find_checkpoint(run)), weights)
    snapshots = list_snapshots(run)
    if images is None:
        error = combine(snapshots, sigma_rel, snapshots[-1].step).error
        print(f"profile of sigma_rel {sigma_rel} rebuilt to a relative error of {error:.1e}")
    print(
        f"average at {snapshots[-1].images if images is None else images:,} images, from {len(snapshots)} snapshots; "
        f"the checkpoint is in {out}"
    )
