"""The folder of a run while it is written: one process at a time, without what killed ones left."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openedm.ground.locks import is_first_process, locked_folder
from openedm.ground.storage import check_folders, remove_remains
from openedm.training import post_hoc
from openedm.training.checkpoints import FOLDER, list_checkpoints, remove_checkpoints

__all__ = ["writing_run"]


@contextmanager
def writing_run(run: Path | None, images: int) -> Iterator[None]:
    """Lock the folder of a run while it is trained, and remove what was half-written or is written again.

    Args:
        run: the folder; None for none.
        images: the images seen by the trainer, of the checkpoint that it resumed from; 0 without.

    Raises:
        ValueError: the run has checkpoints and was not resumed, is a file, or another process writes it.
        OSError: the folder cannot be written.
    """
    if run is None:
        yield
        return
    check_folders("run", run)
    with locked_folder(run, "run"):
        if images == 0 and list_checkpoints(run):
            raise ValueError(f"run={run} already has checkpoints: call resume() first, or choose another folder")
        if is_first_process():
            post_hoc.remove_snapshots(run, images)
            remove_checkpoints(run, 0)
            for folder in (run, run / FOLDER, run / post_hoc.FOLDER, run / "figures"):
                remove_remains(folder)
        yield
