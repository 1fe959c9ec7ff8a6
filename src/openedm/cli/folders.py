"""The folder that a command writes figures into."""

from collections.abc import Sequence
from pathlib import Path

from openedm.ground.kinds import holding
from openedm.ground.locks import hold_folder
from openedm.ground.storage import remove_remains

__all__ = ["figures_to_write"]


def figures_to_write(folder: Path, names: Sequence[str], *, overwrite: bool) -> Path:
    """The folder, held until the command ends, without remains of a killed one.

    Args:
        folder: the folder, which need not exist.
        names: the files that will be written.
        overwrite: whether files of these names may be replaced.

    Raises:
        ValueError: it is a file, or holds a run, a posterior or the like, another command writes into it, or it has
            such files and they may not be replaced.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out must be a folder, but {folder} is a file")
    if (held := holding(folder)) is not None:
        raise ValueError(f"out={folder} holds {held}: choose another folder for the figures")
    if hold_folder(folder, "out"):
        remove_remains(folder)
    found = [name for name in names if (folder / name).exists()]
    if found and not overwrite:
        raise ValueError(
            f"out={folder} has figures of an earlier run ({', '.join(found)}): pass --overwrite true to replace "
            "them, or choose another folder"
        )
    return folder
