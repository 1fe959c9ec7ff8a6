"""Tables with a column of encoded images as training data: the Hugging Face Hub, Parquet and Arrow files.

pyarrow and datasets read the files; this module finds the columns of images and classes, reads Parquet row group by row
group, and names the row in errors.
"""

import bisect
import glob
import importlib
import json
import os
import re
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Int64

from openedm.data import encoded
from openedm.data.dataset import Chunks, Dataset
from openedm.data.decoding import read_shape
from openedm.data.encoded import EncodedImages, ImageSource, Shape, check_class
from openedm.ground import checks

__all__ = ["ArrowImages", "ParquetImages", "Table", "TableImages", "local_files"]

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


@dataclass(frozen=True)
class Table(ImageSource):
    """Images in a table: a set of the Hugging Face Hub by its name, or Parquet or Arrow files.

    Needs `pip install openedm[images]`. Sets up to 256 MiB are decoded when loaded. Larger ones are mapped into memory
    by the `datasets` library, which downloads a set of the Hub, and copies Parquet, into its cache first; with
    `streaming` nothing is copied, and Parquet is read where it is stored, row group by row group.

    Args:
        path: the name of a set on the Hub (owner/name); or a .parquet or .arrow file, a folder of them, or a pattern
            with *; or the URL of one Parquet file that fsspec reads, which is never copied: use `streaming` for large
            ones.
        subset: of a set on the Hub, where it has several (also called configurations).
        split: which part. In a folder, the files whose name begins with it; "train" is all where none is named so.
        image: the column of images; by default the only one that can be.
        label: the column of integer classes; by default the only one with class names, or "label"; "none" for none.
        streaming: read the files where they are, shuffled within a window. The order does not depend on the number of
            processes, and a run continues exactly where it stopped.
        window: of `streaming`: images that are shuffled among each other.
        lanes: of `streaming`: row groups that are read side by side; a multiple of the number of processes.
        resolution: crop each image to its central square and resize it to this side. Without it, all must be of one
            size.
        channels: convert each image to 1, 3 or 4 channels; by default as many as the first has.
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
        super().__post_init__()
        Chunks((1,), self.window, self.lanes)  # checks both

    def load(self) -> Dataset:
        images = self.images()
        if isinstance(images, ParquetImages):  # a random order touches that many row groups at a time
            images.keep = Chunks(images.chunk_sizes, self.window, self.lanes).open_at_once
        return self._dataset(images)

    def images(self) -> "TableImages":
        files = local_files(self.path, self.split)
        if files is None:
            return self._hub()
        if files[0].endswith(".parquet"):
            size = sum(Path(file).stat().st_size for file in files if "://" not in file)
            if self.streaming or size <= encoded.MEMORY or "://" in files[0]:
                return ParquetImages(files, self.image, self.label)
            table = _optional("datasets").load_dataset("parquet", data_files=files, split="train")
        else:
            table = _joined(files)
        return ArrowImages(table, self.path, self.image, self.label)

    def _hub(self) -> "TableImages":
        datasets = _optional("datasets")
        try:
            if not self.streaming:
                table = datasets.load_dataset(self.path, self.subset, split=self.split)
                return ArrowImages(table, self.path, self.image, self.label)
            found = datasets.load_dataset_builder(self.path, self.subset).config.data_files or {}
        except Exception as error:  # no network, no such set, a hub that has moved
            raise ValueError(
                f"path must be a set of the Hub that can be reached, or Parquet or Arrow files; {self.path!r} was "
                f"tried and failed: {type(error).__name__}: {error}"
            ) from error
        checks.one_of("split", self.split, sorted(map(str, found)))
        files = [str(file) for file in found[self.split]]
        other = next((file for file in files if not file.endswith(".parquet")), None)
        if other is not None:
            raise ValueError(f"streaming needs Parquet, but {self.path!r} has {other}: leave streaming out")
        return ParquetImages(files, self.image, self.label)


class TableImages(EncodedImages):
    """The images in a column of a table, with the classes in another.

    Attributes:
        image: the column of encoded images, as bytes or as {"bytes", "path"}.
        label: the column of integer classes, or None.
    """

    image: str
    label: str | None

    @cached_property
    def labels(self) -> Int64[np.ndarray, " images"] | None:  # type: ignore[override]
        """The classes of all rows, read when first asked for."""
        return None if self.label is None else self._read_labels()

    @abstractmethod
    def _read_labels(self) -> Int64[np.ndarray, " images"]:
        """The column of classes."""

    def shapes(self) -> Iterable[Shape]:
        """The shape of the first row: all headers would mean to read nearly all of the table."""
        with self.open(0) as file:
            return [read_shape(file, self.describe(0))]

    def _choose_columns(self, schema: Any, origin: str, image: str | None, label: str | None) -> None:
        """Find the columns, from an Arrow schema and what `datasets` notes in it."""
        types = {name: schema.field(name).type for name in schema.names}
        for argument, name in (("image", image), ("label", label)):
            if name is not None and name not in types and (argument, name) != ("label", "none"):
                raise ValueError(f"{argument} must be one of {sorted(types)}, the columns of {origin}, got {name!r}")
        able = [name for name, kind in types.items() if _holds_images(kind)]
        if image is None and len(able) != 1:
            raise ValueError(f"image must name the column of images in {origin}: {len(able)} of {sorted(types)} can be")
        notes = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        named = [name for name, note in notes.items() if isinstance(note, dict) and note.get("_type") == "ClassLabel"]
        if label is None:
            usual = ["label"] if "label" in types and str(types["label"]).startswith(("int", "uint")) else []
            label = (named if len(named) == 1 else usual or ["none"])[0]
        names = notes[label].get("names") if label in named else None
        self.image, self.label = image or able[0], None if label == "none" else label
        self.class_names = None if names is None else tuple(names)

    def _row(self, index: int, image: Any, label: Any) -> tuple[bytes, int | None]:
        """The encoded image and the class in the cells of a row."""
        where, cell = self.name(index), image.as_py()
        if isinstance(cell, dict):
            path, cell = cell.get("path"), cell.get("bytes")
            if cell is None and path:
                cell = _reading(where, Path(path).read_bytes)
        if not isinstance(cell, bytes):
            raise ValueError(f"{where} has no image")
        return cell, None if label is None else check_class(where, label.as_py())


class ParquetImages(TableImages):
    """Images in Parquet files, on this machine or wherever fsspec reaches (hf://…), read row group by row group.

    Args:
        files: paths or URLs; their rows follow one another.
        image: the column of images; None for the only one that can be.
        label: the column of classes; None for a `ClassLabel`, or an integer "label"; "none" for no classes.
        keep: how many row groups are kept in memory.

    Raises:
        ValueError: a file cannot be read or lacks the columns; there are no rows.
    """

    chunk_sizes: tuple[int, ...]

    def __init__(self, files: Sequence[str], image: str | None, label: str | None, keep: int = 2) -> None:
        self._files, self.keep = list(files), keep
        self._open: tuple[int, dict[int, Any]] = (0, {})
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._groups: list[tuple[int, int]] = []
        sizes: list[int] = []
        self._first = [0]  # row of the table that each file begins with
        for number in range(len(files)):
            metadata = self._file(number).metadata
            rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            self._groups += [(number, group) for group, size in enumerate(rows) if size]
            sizes += [size for size in rows if size]
            self._first.append(sum(sizes))
        if not sizes:
            raise ValueError(f"{_and_more(self._files)} has no rows")
        self.chunk_sizes = tuple(sizes)
        self._starts: list[int] = [0, *accumulate(sizes)]
        self._choose_columns(self._file(0).schema_arrow, self._files[0], image, label)

    def __len__(self) -> int:
        return self._starts[-1]

    def name(self, index: int) -> str:
        file = self._groups[self._group_of(index)][0]
        return f"{self._files[file]} row {index - self._first[file]}"

    def read(self, indices: Sequence[int]) -> Iterator[tuple[bytes, int | None]]:
        for index in indices:
            group = self._group_of(index)
            images, labels = self._columns(group)
            row = index - self._starts[group]
            yield self._row(index, images[row], None if labels is None else labels[row])

    def _read_labels(self) -> Int64[np.ndarray, " images"]:
        columns = []
        for number, file in enumerate(self._files):
            columns.append(_reading(file, self._file(number).read, columns=[self.label])[self.label])
        return np.concatenate([_classes(column, self._files[0]) for column in columns])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": (0, {}), "_kept": OrderedDict()}

    def _group_of(self, index: int) -> int:
        return bisect.bisect_right(self._starts, index) - 1

    def _columns(self, group: int) -> tuple[Any, Any]:
        """The two columns of a row group; the `keep` used last are in memory."""
        if group not in self._kept:
            file, number = self._groups[group]
            names = [name for name in (self.image, self.label) if name is not None]
            table = _reading(self._files[file], self._file(file).read_row_group, number, columns=names).combine_chunks()
            while len(self._kept) >= self.keep:
                self._kept.popitem(last=False)
            self._kept[group] = (table[self.image], None if self.label is None else table[self.label])
        self._kept.move_to_end(group)
        images, labels = self._kept[group]
        return images, labels

    def _file(self, number: int) -> Any:
        """The open file; each process has its own."""
        if self._open[0] != os.getpid():
            self._open = (os.getpid(), {})
        files = self._open[1]
        if number not in files:
            files[number] = _reading(self._files[number], _open_parquet, self._files[number])
        return files[number]


class ArrowImages(TableImages):
    """Images in a table of the `datasets` library, which is mapped into memory from its Arrow files.

    Args:
        table: a `datasets.Dataset`.
        origin: its name in messages.
        image: as for `ParquetImages`.
        label: likewise.

    Raises:
        ValueError: the table lacks the columns or has no rows.
    """

    def __init__(self, table: Any, origin: str, image: str | None, label: str | None) -> None:
        if not len(table):
            raise ValueError(f"{origin} has no rows")
        self._choose_columns(table.features.arrow_schema, origin, image, label)
        names = [name for name in (self.image, self.label) if name is not None]
        self._table, self._origin = table.select_columns(names).with_format("arrow"), origin

    def __len__(self) -> int:
        return len(self._table)

    def name(self, index: int) -> str:
        return f"{self._origin} row {index}"

    def read(self, indices: Sequence[int]) -> Iterator[tuple[bytes, int | None]]:
        rows = self._table[list(indices)]
        images, labels = rows[self.image], None if self.label is None else rows[self.label]
        for row, index in enumerate(indices):
            yield self._row(index, images[row], None if labels is None else labels[row])

    def _read_labels(self) -> Int64[np.ndarray, " images"]:
        return _classes(self._table.select_columns([self.label])[:][self.label], self._origin)


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
    is_folder = Path(path).is_dir()
    found = sorted(glob.glob(path) if "*" in path else map(str, Path(path).rglob("*")) if is_folder else [path])
    files = [file for file in found if file.endswith((".parquet", ".arrow"))]
    if not files:
        if is_folder:
            return None  # a clone of a set on the Hub, in another format
        raise ValueError(f"path must have .parquet or .arrow files, got {path!r}")
    if len({Path(file).suffix for file in files}) > 1:
        raise ValueError(f"path must have files of one kind, .parquet or .arrow, but {path!r} has both")
    if not is_folder:
        return files
    own = [file for file in files if re.search(rf"(^|/){re.escape(split)}\b", file[len(path) :])]
    if not own and split != "train":
        raise ValueError(f"split must be named by files in {path!r}, but none begins with {split!r}")
    return own or files


def _joined(files: list[str]) -> Any:
    """Arrow files as one table, mapped into memory."""
    datasets = _optional("datasets")
    try:
        return datasets.concatenate_datasets([datasets.Dataset.from_file(file) for file in files])
    except (OSError, ValueError, _optional("pyarrow").ArrowException) as error:
        raise ValueError(f"{_and_more(files)} cannot be read: {error}") from error


def _and_more(files: Sequence[str]) -> str:
    return files[0] if len(files) == 1 else f"{files[0]} (and {len(files) - 1} more)"


def _optional(name: str) -> ModuleType:
    """A module of the optional group `images`."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"tables need {name.partition('.')[0]}: pip install openedm[images] ({error})") from error


def _holds_images(kind: Any) -> bool:
    types = _optional("pyarrow").types
    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _classes(column: Any, name: str) -> Int64[np.ndarray, " rows"]:
    if column.null_count:
        raise ValueError(f"{name} must have a class in each row, but {column.null_count} rows have none")
    labels = np.asarray(column.to_numpy())
    if not np.issubdtype(labels.dtype, np.integer) or (len(labels) and labels.min() < 0):
        raise ValueError(f"{name} must have integers >= 0 as classes, got {labels.dtype}")
    return labels.astype(np.int64)


def _open_parquet(file: str) -> Any:
    parquet = _optional("pyarrow.parquet")
    if "://" not in file:
        return parquet.ParquetFile(file, memory_map=True)
    return parquet.ParquetFile(_optional("fsspec").open(file, "rb").open(), pre_buffer=True)


def _reading(name: str, read: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What `read` returns for the arguments; ValueError that begins with `name` where it fails."""
    try:
        return read(*arguments, **options)
    except (OSError, EOFError, KeyError, _optional("pyarrow").ArrowException) as error:
        raise ValueError(f"{name} cannot be read: {error}") from error
