"""Simulations on disk: a folder of parquet files that only ever grows.

| file | content |
|---|---|
| manifest.json | what the simulations are of: dimensions, seed, names, prior, the first θ |
| part-….parquet | index, seed, theta (d numbers), x (prod(x_shape) numbers): simulations that were done |
| failures-….parquet | index, seed, theta, error: simulations that failed |
| lock | held by the run that writes |

Files are immutable and appear complete or not at all: each is written under a hidden name, flushed to the disk and
renamed. Any parquet reader can read them.
"""

import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy import ndarray
from torch import Tensor

from openedm.ground.storage import replacing
from openedm.inference.calling import Chunk, Failure, joined

FORMAT = "openedm-simulations-1"


@dataclass(frozen=True, eq=False)
class Simulations:
    """Parameters, what was simulated with them, and what failed.

    Attributes:
        theta: (n, d).
        x: (n, *x_shape); NaN and infinities as the simulator returned them.
        failures: of the simulations that gave no result, in the order of their indices.
        index: (n,), ascending: the number of the simulation in each row.
        seeds: (n,), of each.
    """

    theta: Float32[Tensor, "n d"]
    x: Float32[Tensor, "n *x_shape"]
    failures: tuple[Failure, ...]
    index: Int64[Tensor, "n"]
    seeds: Int64[Tensor, "n"]

    def __len__(self) -> int:
        return len(self.theta)


@dataclass(frozen=True)
class Manifest:
    """What the simulations of a store are of.

    Attributes:
        dim: d.
        seed: from which θ and the simulations' seeds follow.
        simulator: its name.
        prior: its plain form, for readers; None where it has none.
        first_theta: the first θ, by which the prior is recognised.
        x_shape: of a result; None before there is one.
    """

    dim: int
    seed: int
    simulator: str
    prior: Mapping[str, Any] | None
    first_theta: Sequence[Sequence[float]]
    x_shape: tuple[int, ...] | None = None


class Store:
    """A folder of simulations, which `simulate` adds to and resumes from.

    Args:
        path: the folder; `simulate` makes it where it does not exist.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: `path` is a file, or a folder of something else.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        _parquet()
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"store must be a folder, got the file {str(self.path)!r}")
        if self.path.is_dir() and self.manifest is None and any(p.name != "lock" for p in self.path.glob("[!.]*")):
            raise ValueError(f"store must be a new folder or one of simulations, got {str(self.path)!r}")

    @property
    def manifest(self) -> Manifest | None:
        """What the store holds simulations of; None for a new one.

        Raises:
            ValueError: manifest.json is damaged or of another format.
        """
        path = self.path / "manifest.json"
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text())
            if content.pop("format") != FORMAT:
                raise ValueError("another format")
            shape = content.pop("x_shape")
            return Manifest(**content, x_shape=None if shape is None else tuple(shape))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no manifest of the format {FORMAT!r}: {error}") from error

    def load(self, n: int | None = None) -> Simulations:
        """The simulations, in the order of their indices; parts are read one after the other.

        Args:
            n: take those with an index < n alone; None takes all.

        Raises:
            ValueError: there are none.
        """
        manifest = self.manifest
        if manifest is None or manifest.x_shape is None:
            raise ValueError(f"store {str(self.path)!r} has no simulations")
        index, failures = self._index(n), self.failures(n)
        if len(index) == 0:
            raise ValueError(f"store {str(self.path)!r} has no simulations" + ("" if n is None else f" below {n}"))
        theta = np.empty((len(index), manifest.dim), np.float32)
        x = np.empty((len(index), *manifest.x_shape), np.float32)
        seeds = np.full(len(index), -1)
        for table in self._tables("part", ["index", "seed", "theta", "x"]):
            found = table["index"].to_numpy()
            kept = np.flatnonzero(np.isin(found, index))
            rows = np.searchsorted(index, found[kept])
            seeds[rows] = table["seed"].to_numpy()[kept]
            theta[rows] = _unpack(table["theta"], manifest.dim)[kept]
            x[rows] = _unpack(table["x"], x[0].size)[kept].reshape(-1, *manifest.x_shape)
        read = slice(None) if seeds.min() >= 0 else seeds >= 0  # without files that were damaged in the middle
        found_theta, found_x, found_index, found_seeds = (torch.from_numpy(a[read]) for a in (theta, x, index, seeds))
        return Simulations(found_theta, found_x, failures, found_index, found_seeds)

    def done(self) -> Int64[ndarray, "k"]:
        """The indices of the simulations that gave a result, ascending."""
        return self._index(None)

    def failures(self, n: int | None = None) -> tuple[Failure, ...]:
        """The simulations that failed and were not done later, by index; of several failures of one the last.

        Args:
            n: take those with an index < n alone; None takes all.
        """
        found: dict[int, Failure] = {}
        for table in self._tables("failures", None):
            for row in table.to_pylist():
                found[row["index"]] = Failure(row["index"], tuple(row["theta"]), row["seed"], row["error"])
        done = set(self._index(n).tolist()) if found else set()
        return tuple(found[i] for i in sorted(found) if i not in done and (n is None or i < n))

    @contextmanager
    def writing(self, manifest: Manifest) -> Iterator["Writer"]:
        """Hold the store to add simulations to it.

        Raises:
            ValueError: the store's simulations are of something else, or another run is adding to it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with self._lock():
            existing = self.manifest
            if existing is not None:
                self._check(existing, manifest)
            for remains in self.path.glob(".*.tmp"):  # of runs that were killed
                remains.unlink(missing_ok=True)
            writer = Writer(self.path, existing or manifest)
            if existing is None:
                writer.describe(manifest.x_shape)
            yield writer

    def _check(self, mine: Manifest, asked: Manifest) -> None:
        where = f"store {str(self.path)!r} holds simulations"
        if mine.dim != asked.dim:
            raise ValueError(f"{where} of {mine.dim} parameters, but prior has {asked.dim}")
        if mine.seed != asked.seed:
            raise ValueError(f"{where} with seed {mine.seed}, got seed {asked.seed}; pass that one, or another store")
        if not np.allclose(mine.first_theta, asked.first_theta, rtol=1e-4):
            raise ValueError(f"{where} of another prior, {mine.prior}; got {asked.prior}")
        if mine.simulator != asked.simulator:
            raise ValueError(
                f"{where} of {mine.simulator!r}, got the simulator {asked.simulator!r}; pass another store, or, if it "
                "is the same simulator by a new name, change the name in manifest.json"
            )

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with open(self.path / "lock", "w") as file:
            try:
                import fcntl
            except ImportError:  # no such locks on this system
                yield
                return
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(f"store {str(self.path)!r} is being written to by another run") from error
            yield

    def _index(self, n: int | None) -> Int64[ndarray, "k"]:
        found = [table["index"].to_numpy() for table in self._tables("part", ["index"])]
        index = np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)
        return index if n is None else index[index < n]

    def _tables(self, kind: str, columns: list[str] | None) -> Iterator[Any]:
        """The files of a kind, the oldest first."""
        parquet = _parquet()
        for path in sorted(self.path.glob(f"{kind}-*.parquet")):
            try:
                yield parquet.read_table(path, columns=columns, memory_map=True, partitioning=None)
            except (OSError, ValueError) as error:  # pyarrow's own errors are below these
                warnings.warn(f"{path} is damaged and is ignored: {error}", RuntimeWarning, stacklevel=2)


class Writer:
    """Adds files to a store that is held.

    Args:
        path: of the store.
        manifest: of the store.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._count = 0

    def describe(self, x_shape: tuple[int, ...] | None) -> None:
        """Write the manifest, with the shape of the results if it is known."""
        self.manifest = Manifest(**{**self.manifest.__dict__, "x_shape": x_shape})
        with replacing(self.path / "manifest.json") as temporary:
            temporary.write_text(json.dumps({"format": FORMAT, **self.manifest.__dict__}, indent=1) + "\n")
        _flush_folder(self.path)

    def add(self, chunks: Sequence[Chunk], results: Sequence[Float32[ndarray, "_ *x_shape"]]) -> None:
        """One file of the results of these chunks."""
        done = joined(chunks)
        x = np.concatenate([np.reshape(r, (len(r), -1)) for r in results])
        self._write("part", {"index": done.index, "seed": done.seeds, "theta": _pack(done.theta), "x": _pack(x)})

    def add_failures(self, failures: Sequence[Failure]) -> None:
        """One file of these failures."""
        theta = _pack(np.array([f.theta for f in failures], np.float32))
        index, seeds = ([getattr(f, k) for f in failures] for k in ("index", "seed"))
        self._write("failures", {"index": index, "seed": seeds, "theta": theta, "error": [f.error for f in failures]})

    def _write(self, kind: str, columns: Mapping[str, Any]) -> None:
        import pyarrow

        self._count += 1
        # Names ascend with time; the process and a count keep those of one moment apart.
        path = self.path / f"{kind}-{time.time_ns():020d}-{os.getpid()}-{self._count}.parquet"
        table = pyarrow.table(dict(columns))
        with replacing(path) as temporary:
            _parquet().write_table(table, temporary, compression="zstd", use_dictionary=False)
        _flush_folder(self.path)


def _pack(rows: Float32[ndarray, "b k"]) -> Any:
    import pyarrow

    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(rows.reshape(-1)), rows.shape[1])


def _unpack(column: Any, width: int) -> Float32[ndarray, "b k"]:
    return np.asarray(column.combine_chunks().flatten().to_numpy(), np.float32).reshape(-1, width)


def _flush_folder(path: Path) -> None:
    """See that renamed files keep their new names when the power fails."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _parquet() -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError("a store of simulations needs pyarrow: `pip install openedm[sbi]`") from error
    return parquet
