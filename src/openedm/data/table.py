"""Tables of pictures as training data: the Hugging Face Hub, Parquet and Arrow files."""

import glob
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from openedm.data.dataset import Batch, Chunks, Dataset, Indices, InMemory, Source, as_float, as_index
from openedm.data.decoding import check_form, read_picture, read_shape
from openedm.data.folder import MEMORY
from openedm.data.rows import MappedReader, ParquetReader, Reader, extra
from openedm.ground import checks

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


@dataclass(frozen=True)
class Table(Source):
    """Pictures in a table: a set of the Hugging Face Hub by its name, or Parquet or Arrow files.

    Needs `pip install openedm[images]`. Sets up to 256 MiB are decoded when loaded. Larger ones are mapped into memory
    by the `datasets` library, which downloads a set of the Hub, and copies Parquet, into its cache first; with
    `streaming` nothing is copied, and Parquet is read from where it lies, row group by row group.

    Args:
        path: the name of a set on the Hub (owner/name); or a .parquet or .arrow file, a folder of them, or a pattern
            with *; or the URL of one Parquet file that fsspec reads, which is never copied: use `streaming` for large
            ones.
        subset: of a set on the Hub, where it has several (also called configurations).
        split: which part. In a folder, the files whose name begins with it; "train" is all where none is named so.
        image: the column of pictures; by default the only one that can be.
        label: the column of integer classes; by default the only one with class names, or "label"; "none" for none.
        streaming: read where the data lie, shuffled within a window. The order does not depend on the number of
            processes, and a run goes on exactly where it stopped.
        window: of `streaming`: images that are shuffled among each other.
        lanes: of `streaming`: row groups that are read side by side; a multiple of the number of processes.
        resolution: crop each picture to its central square and resize it to this side. Without it, all must be of one
            size.
        channels: convert each picture to 1, 3 or 4 channels; by default as many as the first has.
    """

    path: str
    subset: str | None = None
    split: str = "train"
    image: str | None = None
    label: str | None = None
    streaming: bool = False
    window: int = 8192
    lanes: int = 8
    resolution: int | None = None
    channels: int | None = None

    def __post_init__(self) -> None:
        checks.at_least("window", self.window, 1)
        checks.at_least("lanes", self.lanes, 1)
        check_form(self.resolution, self.channels)

    def load(self) -> Dataset:
        reader = self.reader()
        chunks = None
        if isinstance(reader, ParquetReader):
            chunks = Chunks(reader.chunk_sizes, self.window, self.lanes)
            reader.keep = chunks.open_at_once
        content, _ = reader.read([0])
        bands, height, width = read_shape(io.BytesIO(content[0]), reader.name(0))
        shape = (self.channels or bands, self.resolution or height, self.resolution or width)
        images = _Images(reader, shape, self.resolution)
        if self.streaming:
            images.chunks = chunks
            return images
        return images if len(images) * shape[0] * shape[1] * shape[2] > MEMORY else images.decoded()

    def reader(self) -> Reader:
        """The rows themselves, as they are stored."""
        files = local_files(self.path, self.split)
        if files is None:
            return self._hub()
        if files[0].endswith(".parquet"):
            size = sum(Path(file).stat().st_size for file in files if "://" not in file)
            if self.streaming or size <= MEMORY or "://" in files[0]:
                return ParquetReader(files, self.image, self.label)
            table = extra("datasets").load_dataset("parquet", data_files=files, split="train")
        else:
            table = _joined(files)
        return MappedReader(table, self.path, self.image, self.label)

    def _hub(self) -> Reader:
        datasets = extra("datasets")
        try:
            if not self.streaming:
                table = datasets.load_dataset(self.path, self.subset, split=self.split)
                return MappedReader(table, self.path, self.image, self.label)
            found = datasets.load_dataset_builder(self.path, self.subset).config.data_files or {}
        except Exception as error:  # No network, no such set, a hub that has moved: all mean that it is not to be had.
            raise ValueError(
                f"path must be a set of the Hub that can be reached, or Parquet or Arrow files; {self.path!r} was "
                f"tried and failed: {type(error).__name__}: {error}"
            ) from error
        checks.one_of("split", self.split, sorted(map(str, found)))
        files = [str(file) for file in found[self.split]]
        other = next((file for file in files if not file.endswith(".parquet")), None)
        if other is not None:
            raise ValueError(f"streaming needs Parquet, but {self.path!r} has {other}: leave streaming out")
        return ParquetReader(files, self.image, self.label)


class _Images(Dataset):
    """Pictures that are decoded when fetched."""

    kind = "images"

    def __init__(self, reader: Reader, shape: tuple[int, int, int], resolution: int | None) -> None:
        self._reader, self._resolution = reader, resolution
        self.event_shape = shape
        self.class_names = reader.class_names
        self.num_classes = 0
        if self.class_names is not None:
            self.num_classes = len(self.class_names)
        elif (labels := reader.labels()) is not None:
            self.num_classes = int(labels.max()) + 1

    def __len__(self) -> int:
        return len(self._reader)

    def fetch(self, indices: Indices) -> Batch:
        pixels, labels = self._read(as_index(indices, len(self)).tolist())
        return as_float(pixels), labels

    def decoded(self) -> InMemory:
        """All of it in memory."""
        pixels, labels = self._read(range(len(self)))
        return InMemory(pixels, labels, num_classes=self.num_classes or None, class_names=self.class_names)

    def _read(self, indices: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        pixels = torch.empty(len(indices), *self.event_shape, dtype=torch.uint8)
        contents, labels = self._reader.read(indices)
        for row, (index, content) in enumerate(zip(indices, contents, strict=True)):
            name = self._reader.name(index)
            picture = read_picture(io.BytesIO(content), name, self.event_shape[0], self._resolution)
            if picture.shape != self.event_shape:
                sizes = f"is {tuple(picture.shape)}, but the first row is {self.event_shape}"
                raise ValueError(f"{name} {sizes}: give resolution= to crop and resize them all")
            pixels[row] = picture
        if labels is not None and len(labels) and labels.max() >= self.num_classes:
            raise ValueError(f"a class must be < {self.num_classes}, got {labels.max()} near {name}")
        return pixels, None if labels is None else torch.from_numpy(labels)


def local_files(path: str, split: str) -> list[str] | None:
    """The Parquet or Arrow files that `path` means, in the order of their names; None for a name on the Hub.

    Raises:
        ValueError: a folder or pattern has none, or both kinds, or none of this split.
    """
    if "://" in path:
        return [path]
    if not Path(path).exists() and "*" not in path:
        if path.endswith((".parquet", ".arrow", ".zip", ".tar")) or not _HUB_NAME.fullmatch(path):
            raise ValueError(f"path does not exist: {path!r}")
        return None
    found = sorted(
        glob.glob(path) if "*" in path else map(str, Path(path).rglob("*")) if Path(path).is_dir() else [path]
    )
    files = [file for file in found if file.endswith((".parquet", ".arrow"))]
    if not files:
        if Path(path).is_dir():
            return None  # a clone of a set on the Hub, in another format
        raise ValueError(f"path must have .parquet or .arrow files, got {path!r}")
    if len({Path(file).suffix for file in files}) > 1:
        raise ValueError(f"path must have files of one kind, .parquet or .arrow, but {path!r} has both")
    if not Path(path).is_dir():
        return files
    own = [file for file in files if re.search(rf"(^|/){re.escape(split)}\b", file[len(path) :])]
    if not own and split != "train":
        raise ValueError(f"split must be named by files in {path!r}, but none begins with {split!r}")
    return own or files


def _joined(files: list[str]) -> object:
    """Arrow files as one table, mapped into memory."""
    datasets = extra("datasets")
    try:
        return datasets.concatenate_datasets([datasets.Dataset.from_file(file) for file in files])
    except (OSError, ValueError, extra("pyarrow").ArrowException) as error:
        raise ValueError(f"{files[0]} and its like cannot be read: {error}") from error
