"""Rows of tables with a column of encoded pictures: Parquet and Arrow files, and sets of the Hugging Face Hub."""

import bisect
import json
import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

Read = tuple[list[bytes], np.ndarray | None]


class Columns(NamedTuple):
    """The columns of a table that are read.

    Attributes:
        image: of encoded pictures, as bytes or as {"bytes", "path"}.
        label: of integer classes, or None.
        class_names: one name per class, or None.
    """

    image: str
    label: str | None
    class_names: tuple[str, ...] | None


class Reader(ABC):
    """Rows by their index, as encoded pictures and classes. It can be pickled.

    Attributes:
        class_names: one name per class, or None.
    """

    class_names: tuple[str, ...] | None

    @abstractmethod
    def __len__(self) -> int:
        """Number of rows."""

    @abstractmethod
    def read(self, indices: Sequence[int]) -> Read:
        """The pictures of these rows, and their classes as int64 where there are some.

        Raises:
            ValueError: a row cannot be read, or has no picture or class.
        """

    @abstractmethod
    def labels(self) -> np.ndarray | None:
        """The classes of all rows."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call a row in a message."""


class ParquetReader(Reader):
    """Parquet files, on this machine or wherever fsspec reaches (hf://…), read row group by row group.

    Args:
        files: paths or URLs; their rows follow one another.
        image: the column of pictures; None for the only one that can be.
        label: the column of classes; None for a `ClassLabel`, or an integer "label"; "none" for no classes.
        keep: how many row groups are kept in memory.

    Attributes:
        chunk_sizes: rows in each row group.

    Raises:
        ValueError: a file cannot be read or lacks the columns; no rows.
    """

    def __init__(self, files: Sequence[str], image: str | None, label: str | None, keep: int = 2) -> None:
        self._files, self.keep = list(files), keep
        self._open: tuple[int, dict[int, Any]] = (0, {})
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self.chunk_sizes: tuple[int, ...]
        self._groups = [(i, g) for i in range(len(files)) for g in range(self._file(i).num_row_groups)]
        sizes = [self._file(i).metadata.row_group(g).num_rows for i, g in self._groups]
        self._groups = [group for group, size in zip(self._groups, sizes, strict=True) if size]
        self.chunk_sizes = tuple(size for size in sizes if size)
        self._starts = [0, *accumulate(self.chunk_sizes)]
        self._first: dict[int, int] = {}
        for (file, _), start in zip(self._groups, self._starts, strict=False):
            self._first.setdefault(file, start)
        if not self.chunk_sizes:
            raise ValueError(f"{self._files[0]} and its like have no rows")
        self.columns = columns_of(self._file(0).schema_arrow, self._files[0], image, label)
        self.class_names = self.columns.class_names

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, indices: Sequence[int]) -> Read:
        contents, labels = [], []
        for index in indices:
            group = bisect.bisect_right(self._starts, index) - 1
            pictures, classes = self._group(group)
            row = index - self._starts[group]
            contents.append(_content(pictures[row], self.name(index)))
            if classes is not None:
                labels.append(_class(classes[row], self.name(index)))
        return contents, None if self.columns.label is None else np.array(labels, dtype=np.int64)

    def labels(self) -> np.ndarray | None:
        label = self.columns.label
        if label is None:
            return None
        columns = [
            _read(self._files[i], lambda i=i: self._file(i).read(columns=[label])) for i in range(len(self._files))
        ]
        return np.concatenate([_classes(column[label], self._files[0]) for column in columns])

    def name(self, index: int) -> str:
        group = bisect.bisect_right(self._starts, index) - 1
        file = self._groups[group][0]
        return f"{self._files[file]} row {index - self._first[file]}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": (0, {}), "_kept": OrderedDict()}

    def _group(self, group: int) -> tuple[Any, Any]:
        """The two columns of a row group; the `keep` used last are in memory."""
        if group not in self._kept:
            file, number = self._groups[group]
            image, label = self.columns.image, self.columns.label
            wanted = [image] if label is None else [image, label]
            table = _read(self._files[file], lambda: self._file(file).read_row_group(number, columns=wanted))
            table = table.combine_chunks()
            while len(self._kept) >= self.keep:
                self._kept.popitem(last=False)
            self._kept[group] = (table[image], None if label is None else table[label])
        self._kept.move_to_end(group)
        kept: tuple[Any, Any] = self._kept[group]
        return kept

    def _file(self, number: int) -> Any:
        """The open file; each process has its own."""
        if self._open[0] != os.getpid():
            self._open = (os.getpid(), {})
        files = self._open[1]
        if number not in files:
            files[number] = _read(self._files[number], lambda: _parquet(self._files[number]))
        return files[number]


class MappedReader(Reader):
    """A table of the `datasets` library, which is mapped into memory from its Arrow files.

    Args:
        table: a `datasets.Dataset`.
        origin: what to call it in messages.
        image: as for `ParquetReader`.
        label: likewise.
    """

    def __init__(self, table: Any, origin: str, image: str | None, label: str | None) -> None:
        if not len(table):
            raise ValueError(f"{origin} has no rows")
        self.columns = columns_of(table.features.arrow_schema, origin, image, label)
        wanted = [name for name in self.columns[:2] if name is not None]
        self._table, self._origin = table.select_columns(wanted).with_format("arrow"), origin
        self.class_names = self.columns.class_names

    def __len__(self) -> int:
        return len(self._table)

    def read(self, indices: Sequence[int]) -> Read:
        rows = self._table[list(indices)]
        pictures = rows[self.columns.image]
        contents = [_content(pictures[i], self.name(index)) for i, index in enumerate(indices)]
        label = self.columns.label
        return contents, None if label is None else _classes(rows[label], self._origin)

    def labels(self) -> np.ndarray | None:
        label = self.columns.label
        return None if label is None else _classes(self._table.select_columns([label])[:][label], self._origin)

    def name(self, index: int) -> str:
        return f"{self._origin} row {index}"


def columns_of(schema: Any, origin: str, image: str | None, label: str | None) -> Columns:
    """Which columns hold pictures and classes, from an Arrow schema and what `datasets` notes in it.

    Raises:
        ValueError: a column is not there, or which it is cannot be known.
    """
    types = {name: schema.field(name).type for name in schema.names}
    for argument, name in (("image", image), ("label", label)):
        if name is not None and name not in types and (argument, name) != ("label", "none"):
            raise ValueError(f"{argument} must be one of {sorted(types)}, the columns of {origin}, got {name!r}")
    able = [name for name, kind in types.items() if _holds_pictures(kind)]
    if image is None and len(able) != 1:
        raise ValueError(f"image must name the column of pictures in {origin}: {len(able)} of {sorted(types)} can be")
    notes = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    named = [name for name, note in notes.items() if isinstance(note, dict) and note.get("_type") == "ClassLabel"]
    if label is None:
        usual = ["label"] if "label" in types and str(types["label"]).startswith(("int", "uint")) else []
        label = (named if len(named) == 1 else usual or ["none"])[0]
    names = notes[label].get("names") if label in named else None
    return Columns(image or able[0], None if label == "none" else label, None if names is None else tuple(names))


def extra(name: str) -> ModuleType:
    """A module of the optional group `images`.

    Raises:
        ValueError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"tables need {name.partition('.')[0]}: pip install openedm[images] ({error})") from error


def _holds_pictures(kind: Any) -> bool:
    types = extra("pyarrow").types
    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _content(value: Any, name: str) -> bytes:
    """The encoded picture in a cell."""
    cell = value.as_py()
    if isinstance(cell, dict):
        if cell.get("bytes") is None and cell.get("path"):
            return _read(name, lambda: Path(cell["path"]).read_bytes())  # type: ignore[no-any-return]
        cell = cell.get("bytes")
    if not isinstance(cell, bytes):
        raise ValueError(f"{name} has no picture")
    return cell


def _class(value: Any, name: str) -> int:
    label = value.as_py()
    if not isinstance(label, int) or label < 0:
        raise ValueError(f"{name} must have a class >= 0, got {label!r}")
    return label


def _classes(column: Any, name: str) -> np.ndarray:
    if column.null_count:
        raise ValueError(f"{name} must have a class in each row, but {column.null_count} have none")
    labels = np.asarray(column.to_numpy())
    if not np.issubdtype(labels.dtype, np.integer) or (len(labels) and labels.min() < 0):
        raise ValueError(f"{name} must have integers >= 0 as classes, got {labels.dtype}")
    return labels.astype(np.int64)


def _parquet(file: str) -> Any:
    parquet = extra("pyarrow.parquet")
    if "://" not in file:
        return parquet.ParquetFile(file, memory_map=True)
    return parquet.ParquetFile(extra("fsspec").open(file, "rb").open(), pre_buffer=True)


def _read(name: str, read: Any) -> Any:
    """What `read` returns; ValueError with `name` where it fails."""
    try:
        return read()
    except (OSError, EOFError, KeyError, extra("pyarrow").ArrowException) as error:
        raise ValueError(f"{name} cannot be read: {error}") from error
