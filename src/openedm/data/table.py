"""Tables with a column of encoded images as training data: the Hugging Face Hub, Parquet and Arrow files.

pyarrow and datasets read the files; `openedm.data.rows` finds the columns of images, classes and conditions, reads
Parquet row group by row group, and names the row in errors.
"""

import glob
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openedm.data import decoded
from openedm.data.columns import import_optional
from openedm.data.dataset import Chunks, Dataset
from openedm.data.decoded import ImageSource
from openedm.data.decoding import SUFFIXES
from openedm.data.forms import Crop, Resize, Size
from openedm.data.rows import ArrowImages, ParquetImages, TableImages, name_of_files
from openedm.ground import checks
from openedm.ground.regular import reason

__all__ = ["Table", "local_files"]

_HUB_NAME = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
"""The name of a set on the Hub: owner/name, or name alone for old sets; others are paths."""
_TABLES = (".arrow", ".csv", ".json", ".jsonl", ".npy", ".npz", ".parquet", ".pt", ".safetensors")
_FILES = (*SUFFIXES, *_TABLES, ".avif", ".gz", ".heic", ".tar", ".tgz", ".yaml", ".zip")
"""Suffixes of files, in which no name on the Hub is expected to end."""


@dataclass(frozen=True)
class Table(ImageSource):
    """Images in a table: a set of the Hugging Face Hub by its name, or Parquet or Arrow files.

    It requires `pip install openedm[images]`. Sets up to 256 MiB are decoded when loaded. Larger ones are mapped into
    memory by the `datasets` library, which downloads a set of the Hub, and copies Parquet, into its cache first; with
    `streaming` no files are copied, and Parquet is read from where it is stored, row group by row group.

    Args:
        path: the name of a set on the Hub, owner/name, where owner is not a folder here; or a .parquet or .arrow file,
            a folder of them, or a pattern with *; or the URL of one Parquet file that fsspec reads, which is never
            copied: use `streaming` for large ones.
        subset: the subset of a set on the Hub, if it has several (also called configurations).
        split: the part of the set. In a folder, the files whose name begins with it; "train" means all files if no name
            begins with it.
        image: the column of images; by default the only possible one.
        label: the column of integer classes; by default the only one with class names, or "label"; "none" for no
            classes.
        streaming: read the files from where they are stored, shuffled within a window. The order does not depend on the
            number of processes, and a run continues exactly where it stopped.
        window: for `streaming`: the number of images that are shuffled together.
        lanes: for `streaming`: the number of row groups that are read in parallel; a multiple of the number of
            processes.
        resolution: crop and resize each image to a square of this side, or to height x width: "64x96". Without it, all
            must have the same size.
        channels: convert each image to 1, 3 or 4 channels; by default the number of the first image.
        crop: how images of other proportions become those of `resolution`: "centre", the largest central part with
            them; "adm", likewise, as for ADM; "pad", the whole image between black bars; "none", the whole image,
            distorted.
        range: the numbers of pixels that become −1 and 1; by default the full range of 1, 8 or 16 bits. TIFF of
            floating point or 32 bits requires it.
        condition: the condition of each image: a column of numbers or of lists of numbers, or several such columns, one
            after another; or a column of images, what the image is made from.
        condition_resize: how a condition image of another size than its image is resized to that size before both are
            cropped alike: bicubic, or nearest, which keeps the numbers of masks.
    """

    path: str
    subset: str | None = None
    split: str = "train"
    image: str | None = None
    label: str | None = None
    streaming: bool = False
    window: int = 8192
    lanes: int = 8
    resolution: Size | None = None
    channels: int | None = None
    crop: Crop = "centre"
    range: tuple[float, float] | None = None
    condition: str | tuple[str, ...] | None = None
    condition_resize: Resize = "bicubic"

    def __post_init__(self) -> None:
        super().__post_init__()
        Chunks((1,), self.window, self.lanes)  # checks both

    def load(self) -> Dataset:
        images = self.images()
        if isinstance(images, ParquetImages):  # a random order needs that many row groups at a time
            images.keep_groups(Chunks(images.chunk_sizes, self.window, self.lanes).open_at_once)
        return self._dataset(images)

    def images(self) -> "TableImages":
        files = local_files(self.path, self.split)
        if files is None:
            return self._hub()
        if files[0].endswith(".parquet"):
            size = sum(Path(file).stat().st_size for file in files if "://" not in file)
            if self.streaming or size <= decoded.MAX_BYTES_IN_MEMORY or "://" in files[0]:
                return ParquetImages(files, self.image, self.label, self._conditions)
            table = import_optional("datasets").load_dataset("parquet", data_files=files, split="train")
        else:
            table = _open_arrow(files)
        folders = tuple({str(Path(file).absolute().parent) for file in files})
        return ArrowImages(table, self.path, self.image, self.label, self._conditions, folders)

    @property
    def _conditions(self) -> tuple[str, ...]:
        names = (self.condition,) if isinstance(self.condition, str) else self.condition or ()
        if len(set(names)) < len(names):
            raise ValueError(f"condition must name each column once, got {names}")
        return names

    def _hub(self) -> "TableImages":
        datasets = import_optional("datasets")
        if not Path(self.path).exists():
            warnings.warn(f"{self.path!r} is not a file or folder here, and is looked for on the Hub", stacklevel=4)
        try:
            if not self.streaming:
                table = datasets.load_dataset(self.path, self.subset, split=self.split)
                cache = datasets.config  # a set on the Hub in another format names files that were downloaded
                roots = (cache.DOWNLOADED_DATASETS_PATH, cache.EXTRACTED_DATASETS_PATH, cache.HF_CACHE_HOME)
                folders = (self.path, *map(str, roots))
                return ArrowImages(table, self.path, self.image, self.label, self._conditions, folders)
            found = datasets.load_dataset_builder(self.path, self.subset).config.data_files or {}
        except Exception as error:  # no network, no such set, a hub that has moved
            raise ValueError(
                "path must be pictures or Parquet or Arrow files that exist, or a set of the Hub that can be reached, "
                f"got {self.path!r}: {type(error).__name__}: {error}"
            ) from error
        checks.one_of("split", self.split, sorted(map(str, found)))
        files = [str(file) for file in found[self.split]]
        other = next((file for file in files if not file.endswith(".parquet")), None)
        if other is not None:
            raise ValueError(f"streaming requires Parquet files, but {self.path!r} has {other}: use streaming=False")
        return ParquetImages(files, self.image, self.label, self._conditions)


def local_files(path: str, split: str) -> list[str] | None:
    """The Parquet or Arrow files at `path`, in the order of their names; None for a name on the Hub.

    Raises:
        ValueError: a folder or pattern has no such files, files of both kinds, or no files of this split.
    """
    if "://" in path:
        return [path]
    if not Path(path).exists() and "*" not in path:
        if _is_on_hub(path):
            return None
        raise ValueError(
            f"path does not exist: {path!r}; a set of the Hub is named OWNER/NAME, where OWNER is not a folder here"
        )
    is_folder = Path(path).is_dir()
    found = sorted(glob.glob(path) if "*" in path else map(str, Path(path).rglob("*")) if is_folder else [path])
    files = [file for file in found if file.endswith((".parquet", ".arrow"))]
    if not files:
        if is_folder:
            return None  # a clone of a set on the Hub, in another format
        raise ValueError(f"path must be pictures (a folder, .zip or .tar), or .parquet or .arrow files, got {path!r}")
    if len({Path(file).suffix for file in files}) > 1:
        raise ValueError(f"path must have files of one kind, .parquet or .arrow, but {path!r} has both")
    if not is_folder:
        return files
    split_files = [file for file in files if re.search(rf"(^|/){re.escape(split)}\b", file[len(path) :])]
    if not split_files and split != "train":
        raise ValueError(f"split must be the beginning of names of files in {path!r}, got {split!r}")
    return split_files or files


def _is_on_hub(path: str) -> bool:
    """Whether a path where there is nothing is the name of a set on the Hub: asking there takes up to half a minute."""
    return (
        _HUB_NAME.fullmatch(path) is not None
        and not path.lower().endswith(_FILES)
        and not ("/" in path and Path(path).parent.is_dir())  # a missing folder beside others
    )


def _open_arrow(files: list[str]) -> Any:
    """Arrow files as one table, mapped into memory."""
    datasets = import_optional("datasets")
    try:
        return datasets.concatenate_datasets([datasets.Dataset.from_file(file) for file in files])
    except (OSError, ValueError, import_optional("pyarrow").ArrowException) as error:
        raise ValueError(f"{name_of_files(files)} cannot be read: {reason(error)}") from error
