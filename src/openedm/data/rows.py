"""Readers of tables with a column of encoded images: Parquet files row group by row group, and Arrow tables."""

import bisect
import os
import warnings
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from openedm.data.columns import are_finite, classes_of, float_row, holds_images, import_optional
from openedm.data.decoding import Header, read_header
from openedm.data.encoded import EncodedImages
from openedm.data.listing import check_class
from openedm.ground.regular import check_regular, reason
from openedm.ground.storage import parse_json

__all__ = ["ArrowImages", "ParquetImages", "TableImages", "name_of_files"]

_NUMBERS = "; numbers in columns become data as one array (samples, channels, …), numpy.save('data.npy', array)"


def _default_label(types: Mapping[str, Any], named: Sequence[str], condition: Sequence[str], origin: str) -> str:
    """The only `ClassLabel`, or a column "label" of integers; or "none", with a warning if columns are left out."""
    if len(named) == 1:
        return named[0]
    others = [name for name in ("label",) if name in types and name not in condition]
    if others and str(types["label"]).startswith(("int", "uint")):
        return "label"
    unused = list(named) or others
    if unused:
        kinds = ", ".join(str(types[name]) for name in unused)
        warnings.warn(
            f"{origin} is read without classes: label must name their column of integers, but may be one of {unused}, "
            f"of {kinds}; label='none' says that there are none",
            stacklevel=4,
        )
    return "none"


def _features(metadata: bytes, origin: str) -> dict[str, Any]:
    """The kinds of columns in the metadata that `datasets` writes; none where they are of another form."""
    found: Any = parse_json(metadata, f"the metadata of {origin}")
    for name in ("info", "features"):
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


class TableImages(EncodedImages):
    """The images in a column of a table, with the classes in another.

    Attributes:
        image: the column of encoded images, as bytes or as {"bytes", "path"}.
        label: the column of integer classes, or None.
        floats: the columns of numbers that are conditions.
        folders: where files may be that cells name instead of holding an image.
    """

    image: str
    label: str | None
    floats: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    _width = 0

    @property
    def num_floats(self) -> int:
        return self._width

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

    @property
    def _used_columns(self) -> list[str]:
        names = (self.image, *([] if self.label is None else [self.label]), *self.floats)
        return list(dict.fromkeys(names))

    def _choose_columns(
        self, schema: Any, origin: str, image: str | None, label: str | None, condition: tuple[str, ...]
    ) -> str | None:
        """Find the columns, from an Arrow schema and the metadata that `datasets` writes to it.

        Returns:
            The column of images that are conditions, if `condition` is such a column.
        """
        types = {name: schema.field(name).type for name in schema.names}
        for argument, name in (("image", image), ("label", label), *(("condition", name) for name in condition)):
            if name is not None and name not in types and (argument, name) != ("label", "none"):
                raise ValueError(f"{argument} must be one of {sorted(types)}, the columns of {origin}, got {name!r}")
        pictures = [name for name in condition if holds_images(types[name])]
        if pictures and len(condition) > 1:
            raise ValueError(
                f"condition must be one column of images or columns of numbers in {origin}, got {condition}"
            )
        candidates = [name for name, kind in types.items() if holds_images(kind) and name not in pictures]
        if image is None and len(candidates) != 1:
            raise ValueError(
                f"image must name the column of images in {origin}: {len(candidates)} of {sorted(types)} may be"
                f"{'' if candidates else _NUMBERS}"
            )
        if image is not None and not holds_images(types[image]):
            raise ValueError(f"image must be a column of images, got {image!r} of {types[image]} in {origin}{_NUMBERS}")
        features = _features((schema.metadata or {}).get(b"huggingface", b"{}"), origin)
        named = [
            name
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and name not in condition
        ]
        if label is None:
            label = _default_label(types, named, condition, origin)
        names = features[label].get("names") if label in named else None
        self.image, self.label = image or candidates[0], None if label == "none" else label
        self.class_names = None if names is None else tuple(names)
        if pictures == [self.image]:
            raise ValueError(f"condition must be another column of {origin} than image, got {self.image!r} for both")
        self.floats = () if pictures else condition
        return pictures[0] if pictures else None

    def _float_row(self, index: int, cells: Sequence[Any]) -> list[float]:
        """The floats in the cells of a row, as many as in the first row."""
        return float_row(self.name(index), self.floats, [cell.as_py() for cell in cells], self._width or None)

    def _check_floats(self, columns: Any) -> None:
        """Read all conditions if one of them is wrong, which raises ValueError with its row."""
        if not all(are_finite(columns[name]) for name in self.floats):
            for index in range(len(self)):
                self.read_conditions([index])

    def _decode_row(self, index: int, image: Any, label: Any) -> tuple[bytes, int | None]:
        """The encoded image and the class in the cells of a row."""
        where, cell = self.name(index), image.as_py()
        if isinstance(cell, dict):
            path, cell = cell.get("path"), cell.get("bytes")
            if cell is None and path:
                cell = self._read_beside(where, str(path))
        if not isinstance(cell, bytes):
            raise ValueError(f"{where} has no image")
        return cell, None if label is None else check_class(where, label.as_py())

    def _read_beside(self, where: str, path: str) -> bytes:
        """The file that a cell names instead of holding an image, which must be in the folders of the table itself."""
        real = os.path.realpath(path)
        if not any(real.startswith(f"{os.path.realpath(folder)}{os.sep}") for folder in self.folders):
            raise ValueError(f"{where} names the file {path!r}, which is not read: it is not beside the table")
        check_regular(real)
        content: bytes = _read_or_raise(where, Path(real).read_bytes)
        return content


class ParquetImages(TableImages):
    """Images in Parquet files, on this machine or at any URL that fsspec supports (hf://…), read row group by row
    group.

    Args:
        files: paths or URLs; their rows are concatenated.
        image: the column of images; None for the only possible one.
        label: the column of classes; None for a `ClassLabel`, or an integer "label"; "none" for no classes.
        condition: the columns of numbers, or the column of images, that are conditions.
        keep: the number of row groups that are kept in memory.

    Raises:
        ValueError: a file cannot be read or lacks the columns; there are no rows.
    """

    chunk_sizes: tuple[int, ...]

    def __init__(
        self,
        files: Sequence[str],
        image: str | None,
        label: str | None,
        condition: tuple[str, ...] = (),
        keep: int = 2,
    ) -> None:
        self._files, self.keep = list(files), keep
        self.folders = tuple({os.path.dirname(os.path.abspath(file)) for file in files if "://" not in file})
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
            raise ValueError(f"{name_of_files(self._files)} has no rows")
        self.chunk_sizes = tuple(sizes)
        self._starts: list[int] = [0, *accumulate(sizes)]
        partner = self._choose_columns(self._file(0).schema_arrow, self._files[0], image, label, condition)
        if partner is not None:
            self.condition_images = ParquetImages(files, partner, "none", keep=keep)
        if self.floats:
            self._width = len(self.read_conditions([0])[0])
            for number, file in enumerate(files):
                self._check_floats(_read_or_raise(file, self._file(number).read, columns=list(self.floats)))

    def keep_groups(self, count: int) -> None:
        """Set the number of row groups that are kept in memory."""
        self.keep = count
        if isinstance(self.condition_images, ParquetImages):
            self.condition_images.keep = count

    def __len__(self) -> int:
        return self._starts[-1]

    def name(self, index: int) -> str:
        file = self._groups[self._group_of(index)][0]
        return f"{self._files[file]} row {index - self._first[file]}"

    def read(self, indices: Sequence[int]) -> Iterator[tuple[bytes, int | None]]:
        for index in indices:
            columns, row = self._place(index)
            label = None if self.label is None else columns[self.label][row]
            yield self._decode_row(index, columns[self.image][row], label)

    def read_conditions(self, indices: Sequence[int]) -> Float32[np.ndarray, "rows floats"]:
        found = []
        for index in indices:
            columns, row = self._place(index)
            found.append(self._float_row(index, [columns[name][row] for name in self.floats]))
        return np.array(found, dtype=np.float32)

    def _read_labels(self) -> Int64[np.ndarray, " images"]:
        columns = []
        for number, file in enumerate(self._files):
            columns.append(_read_or_raise(file, self._file(number).read, columns=[self.label])[self.label])
        return np.concatenate([classes_of(column, self._files[0]) for column in columns])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": (0, {}), "_row_groups": OrderedDict()}

    def _group_of(self, index: int) -> int:
        return bisect.bisect_right(self._starts, index) - 1

    def _place(self, index: int) -> tuple[Any, int]:
        """The columns of a row group, and the row in them; the `keep` groups used last are in memory."""
        group = self._group_of(index)
        if group not in self._row_groups:
            file, number = self._groups[group]
            table = _read_or_raise(
                self._files[file], self._file(file).read_row_group, number, columns=self._used_columns
            ).combine_chunks()
            while len(self._row_groups) >= self.keep:
                self._row_groups.popitem(last=False)
            self._row_groups[group] = {name: table[name] for name in self._used_columns}
        self._row_groups.move_to_end(group)
        return self._row_groups[group], index - self._starts[group]

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
        condition: as for `ParquetImages`.
        folders: see `TableImages`.

    Raises:
        ValueError: the table lacks the columns or has no rows.
    """

    def __init__(
        self,
        table: Any,
        origin: str,
        image: str | None,
        label: str | None,
        condition: tuple[str, ...] = (),
        folders: tuple[str, ...] = (),
    ) -> None:
        self.folders = folders
        if not len(table):
            raise ValueError(f"{origin} has no rows")
        partner = self._choose_columns(table.features.arrow_schema, origin, image, label, condition)
        if partner is not None:
            self.condition_images = ArrowImages(table, origin, partner, "none", folders=folders)
        self._table, self._origin = table.select_columns(self._used_columns).with_format("arrow"), origin
        if self.floats:
            self._floats = table.select_columns(list(self.floats)).with_format("arrow")
            self._width = len(self.read_conditions([0])[0])
            self._check_floats(self._floats[:])

    def __len__(self) -> int:
        return len(self._table)

    def name(self, index: int) -> str:
        return f"{self._origin} row {index}"

    def read(self, indices: Sequence[int]) -> Iterator[tuple[bytes, int | None]]:
        rows = self._table[list(indices)]
        images, labels = rows[self.image], None if self.label is None else rows[self.label]
        for row, index in enumerate(indices):
            yield self._decode_row(index, images[row], None if labels is None else labels[row])

    def read_conditions(self, indices: Sequence[int]) -> Float32[np.ndarray, "rows floats"]:
        rows = self._floats[list(indices)]
        columns = [rows[name] for name in self.floats]
        found = [self._float_row(i, [column[row] for column in columns]) for row, i in enumerate(indices)]
        return np.array(found, dtype=np.float32)

    def _read_labels(self) -> Int64[np.ndarray, " images"]:
        return classes_of(self._table.select_columns([self.label])[:][self.label], self._origin)


def name_of_files(files: Sequence[str]) -> str:
    """The files in messages."""
    return files[0] if len(files) == 1 else f"{files[0]} (and {len(files) - 1} more)"


def _open_parquet(file: str) -> Any:
    parquet = import_optional("pyarrow.parquet")
    if "://" not in file:
        return parquet.ParquetFile(file, memory_map=True)
    return parquet.ParquetFile(import_optional("fsspec").open(file, "rb").open(), pre_buffer=True)


def _read_or_raise(name: str, read: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The result of `read` for the arguments; if it fails, a ValueError that begins with `name`."""
    try:
        return read(*arguments, **options)
    except (OSError, EOFError, KeyError, import_optional("pyarrow").ArrowException) as error:
        raise ValueError(f"{name} cannot be read: {reason(error)}") from error
