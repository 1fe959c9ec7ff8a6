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
from openedm.data.decoding import Header, read_header
from openedm.data.encoded import EncodedImages, ImageSource, check_class
from openedm.data.forms import Crop, Size
from openedm.ground import checks

__all__ = ["ArrowImages", "ParquetImages", "Table", "TableImages", "local_files"]

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


@dataclass(frozen=True)
class Table(ImageSource):
    """Images in a table: a set of the Hugging Face Hub by its name, or Parquet or Arrow files.

    It requires `pip install openedm[images]`. Sets up to 256 MiB are decoded when loaded. Larger ones are mapped into
    memory by the `datasets` library, which downloads a set of the Hub, and copies Parquet, into its cache first; with
    `streaming` no files are copied, and Parquet is read from where it is stored, row group by row group.

    Args:
        path: the name of a set on the Hub (owner/name); or a .parquet or .arrow file, a folder of them, or a pattern
            with *; or the URL of one Parquet file that fsspec reads, which is never copied: use `streaming` for large
            ones.
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

    def __post_init__(self) -> None:
        super().__post_init__()
        Chunks((1,), self.window, self.lanes)  # checks both

    def load(self) -> Dataset:
        images = self.images()
        if isinstance(images, ParquetImages):  # a random order needs that many row groups at a time
            images.keep = Chunks(images.chunk_sizes, self.window, self.lanes).open_at_once
        return self._dataset(images)

    def images(self) -> "TableImages":
        files = local_files(self.path, self.split)
        if files is None:
            return self._hub()
        if files[0].endswith(".parquet"):
            size = sum(Path(file).stat().st_size for file in files if "://" not in file)
            if self.streaming or size <= encoded.MAX_BYTES_IN_MEMORY or "://" in files[0]:
                return ParquetImages(files, self.image, self.label)
            table = _import_optional("datasets").load_dataset("parquet", data_files=files, split="train")
        else:
            table = _open_arrow(files)
        return ArrowImages(table, self.path, self.image, self.label)

    def _hub(self) -> "TableImages":
        datasets = _import_optional("datasets")
        try:
            if not self.streaming:
                table = datasets.load_dataset(self.path, self.subset, split=self.split)
                return ArrowImages(table, self.path, self.image, self.label)
            found = datasets.load_dataset_builder(self.path, self.subset).config.data_files or {}
        except Exception as error:  # no network, no such set, a hub that has moved
            raise ValueError(
                f"path must be a set of the Hub that can be reached, or Parquet or Arrow files, got {self.path!r}: "
                f"{type(error).__name__}: {error}"
            ) from error
        checks.one_of("split", self.split, sorted(map(str, found)))
        files = [str(file) for file in found[self.split]]
        other = next((file for file in files if not file.endswith(".parquet")), None)
        if other is not None:
            raise ValueError(f"streaming requires Parquet files, but {self.path!r} has {other}: use streaming=False")
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
        """The classes of all rows, read at the first access."""
        return None if self.label is None else self._read_labels()

    @abstractmethod
    def _read_labels(self) -> Int64[np.ndarray, " images"]:
        """The column of classes."""

    def shapes(self) -> Iterable[Header]:
        """The shape of the first row: to read all headers means to read nearly all of the table."""
        with self.open(0) as file:
            return [read_header(file, self.describe(0))]

    def _choose_columns(self, schema: Any, origin: str, image: str | None, label: str | None) -> None:
        """Find the columns, from an Arrow schema and the metadata that `datasets` writes to it."""
        types = {name: schema.field(name).type for name in schema.names}
        for argument, name in (("image", image), ("label", label)):
            if name is not None and name not in types and (argument, name) != ("label", "none"):
                raise ValueError(f"{argument} must be one of {sorted(types)}, the columns of {origin}, got {name!r}")
        candidates = [name for name, kind in types.items() if _holds_images(kind)]
        if image is None and len(candidates) != 1:
            raise ValueError(
                f"image must name the column of images in {origin}: {len(candidates)} of {sorted(types)} may be"
            )
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        named = [
            name
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        ]
        if label is None:
            default = ["label"] if "label" in types and str(types["label"]).startswith(("int", "uint")) else []
            label = (named if len(named) == 1 else default or ["none"])[0]
        names = features[label].get("names") if label in named else None
        self.image, self.label = image or candidates[0], None if label == "none" else label
        self.class_names = None if names is None else tuple(names)

    def _decode_row(self, index: int, image: Any, label: Any) -> tuple[bytes, int | None]:
        """The encoded image and the class in the cells of a row."""
        where, cell = self.name(index), image.as_py()
        if isinstance(cell, dict):
            path, cell = cell.get("path"), cell.get("bytes")
            if cell is None and path:
                cell = _read_or_raise(where, Path(path).read_bytes)
        if not isinstance(cell, bytes):
            raise ValueError(f"{where} has no image")
        return cell, None if label is None else check_class(where, label.as_py())


class ParquetImages(TableImages):
    """Images in Parquet files, on this machine or at any URL that fsspec supports (hf://…), read row group by row
    group.

    Args:
        files: paths or URLs; their rows are concatenated.
        image: the column of images; None for the only possible one.
        label: the column of classes; None for a `ClassLabel`, or an integer "label"; "none" for no classes.
        keep: the number of row groups that are kept in memory.

    Raises:
        ValueError: a file cannot be read or lacks the columns; there are no rows.
    """

    chunk_sizes: tuple[int, ...]

    def __init__(self, files: Sequence[str], image: str | None, label: str | None, keep: int = 2) -> None:
        self._files, self.keep = list(files), keep
        self._open: tuple[int, dict[int, Any]] = (0, {})
        self._row_groups: OrderedDict[int, Any] = OrderedDict()
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
            raise ValueError(f"{_format_files(self._files)} has no rows")
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
            yield self._decode_row(index, images[row], None if labels is None else labels[row])

    def _read_labels(self) -> Int64[np.ndarray, " images"]:
        columns = []
        for number, file in enumerate(self._files):
            columns.append(_read_or_raise(file, self._file(number).read, columns=[self.label])[self.label])
        return np.concatenate([_classes(column, self._files[0]) for column in columns])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": (0, {}), "_row_groups": OrderedDict()}

    def _group_of(self, index: int) -> int:
        return bisect.bisect_right(self._starts, index) - 1

    def _columns(self, group: int) -> tuple[Any, Any]:
        """The two columns of a row group; the `keep` used last are in memory."""
        if group not in self._row_groups:
            file, number = self._groups[group]
            names = [name for name in (self.image, self.label) if name is not None]
            table = _read_or_raise(
                self._files[file], self._file(file).read_row_group, number, columns=names
            ).combine_chunks()
            while len(self._row_groups) >= self.keep:
                self._row_groups.popitem(last=False)
            self._row_groups[group] = (table[self.image], None if self.label is None else table[self.label])
        self._row_groups.move_to_end(group)
        images, labels = self._row_groups[group]
        return images, labels

    def _file(self, number: int) -> Any:
        """The open file; each process opens it separately."""
        if self._open[0] != os.getpid():
            self._open = (os.getpid(), {})
        files = self._open[1]
        if number not in files:
            files[number] = _read_or_raise(self._files[number], _open_parquet, self._files[number])
        return files[number]


class ArrowImages(TableImages):
    """Images in a table of the `datasets` library, which is mapped into memory from its Arrow files.

    Args:
        table: a `datasets.Dataset`.
        origin: its name in messages.
        image: as for `ParquetImages`.
        label: as for `ParquetImages`.

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
            yield self._decode_row(index, images[row], None if labels is None else labels[row])

    def _read_labels(self) -> Int64[np.ndarray, " images"]:
        return _classes(self._table.select_columns([self.label])[:][self.label], self._origin)


def local_files(path: str, split: str) -> list[str] | None:
    """The Parquet or Arrow files at `path`, in the order of their names; None for a name on the Hub.

    Raises:
        ValueError: a folder or pattern has no such files, files of both kinds, or no files of this split.
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
    split_files = [file for file in files if re.search(rf"(^|/){re.escape(split)}\b", file[len(path) :])]
    if not split_files and split != "train":
        raise ValueError(f"split must be the beginning of names of files in {path!r}, got {split!r}")
    return split_files or files


def _open_arrow(files: list[str]) -> Any:
    """Arrow files as one table, mapped into memory."""
    datasets = _import_optional("datasets")
    try:
        return datasets.concatenate_datasets([datasets.Dataset.from_file(file) for file in files])
    except (OSError, ValueError, _import_optional("pyarrow").ArrowException) as error:
        raise ValueError(f"{_format_files(files)} cannot be read: {error}") from error


def _format_files(files: Sequence[str]) -> str:
    return files[0] if len(files) == 1 else f"{files[0]} (and {len(files) - 1} more)"


def _import_optional(name: str) -> ModuleType:
    """A module of the optional group `images`."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"tables require {name.partition('.')[0]}: pip install openedm[images] ({error})") from error


def _holds_images(kind: Any) -> bool:
    types = _import_optional("pyarrow").types
    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _classes(column: Any, name: str) -> Int64[np.ndarray, " rows"]:
    if column.null_count:
        raise ValueError(f"{name} must have a class in each row, but {column.null_count} rows have no class")
    labels = np.asarray(column.to_numpy())
    if not np.issubdtype(labels.dtype, np.integer) or (len(labels) and labels.min() < 0):
        raise ValueError(f"{name} must have integers >= 0 as classes, got {labels.dtype}")
    return labels.astype(np.int64)


def _open_parquet(file: str) -> Any:
    parquet = _import_optional("pyarrow.parquet")
    if "://" not in file:
        return parquet.ParquetFile(file, memory_map=True)
    return parquet.ParquetFile(_import_optional("fsspec").open(file, "rb").open(), pre_buffer=True)


def _read_or_raise(name: str, read: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The result of `read` for the arguments; if it fails, a ValueError that begins with `name`."""
    try:
        return read(*arguments, **options)
    except (OSError, EOFError, KeyError, _import_optional("pyarrow").ArrowException) as error:
        raise ValueError(f"{name} cannot be read: {error}") from error
