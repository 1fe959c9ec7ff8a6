"""Simulations, in memory and on disk: parameters, the data simulated with them, their prior, and what failed.

`simulate` returns `Simulations`, `fit` learns from them, and a `Store` keeps them: a folder of parquet files that only
ever grows.

| file | content |
|---|---|
| manifest.json | what the simulations are of: dimensions, kinds of data, seed, names, prior, the first θ |
| part-…-<digest>.parquet | index, seed, theta (d numbers), x (prod(x_shape) numbers): simulations that gave a result |
| failures-…-<digest>.parquet | index, seed, theta, error: simulations that failed |
| running.json | the simulations that run in the process that writes, until they are done |

Numbers are float32 where that is exact, else float64. Files are immutable and appear complete or not at all: each is
written under a hidden name, flushed to the disk and renamed. Any parquet reader can read them. The run that writes
holds the folder's lock (`openedm.ground.locks`).
"""

import itertools
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy import ndarray
from torch import Tensor

from openedm.ground.digests import check_digest
from openedm.ground.locks import locked_folder
from openedm.ground.storage import check_folders, read_json, remove_remains, replacing, write_json
from openedm.inference.arrays import as_rows
from openedm.inference.composite import prior_from_config
from openedm.inference.manifests import Manifest, describe_difference
from openedm.inference.precision import as_precise_as_needed
from openedm.inference.priors import Prior
from openedm.inference.results import Form, Kinds
from openedm.networks import JoinedSummary

__all__ = ["Failure", "Simulations", "Store"]

FORMAT, RUNNING = "openedm-simulations-1", "running.json"
OLD_LOCK = "lock"
"""An empty file in stores that version 0.1 wrote."""


@dataclass(frozen=True, order=True)
class Failure:
    """A simulation that gave no result.

    Attributes:
        index: its number, from 0.
        theta: its parameters.
        seed: its seed.
        error: the type and text of the error.
    """

    index: int
    theta: tuple[float, ...]
    seed: int
    error: str

    def __str__(self) -> str:
        values = ", ".join(f"{value:.6g}" for value in self.theta)
        return f"simulation {self.index} (theta = ({values}), seed = {self.seed}): {self.error}"


@dataclass(frozen=True, eq=False)
class Simulations:
    """Parameters, the data that were simulated with them, and the simulations that failed.

    Attributes:
        theta: (n, d), float32, or float64 where that would lose what a column tells.
        x: (n, *x_shape), likewise; NaN and infinities as the simulator returned them.
        index: (n,), ascending: the number of the simulation in each row.
        seeds: (n,), of each; −1 where they are not known.
        failures: the simulations that gave no result, in the order of their indices.
        prior: that theta was drawn from; None where it is not known.
        kinds: where there are several kinds of data, the name and shape of each; x (n, numbers) then holds the numbers
            of all, one kind after the other. None for one kind.
    """

    theta: Float[Tensor, "n d"]
    x: Float[Tensor, "n *x_shape"]
    index: Int64[Tensor, " n"]
    seeds: Int64[Tensor, " n"]
    failures: tuple[Failure, ...] = ()
    prior: Prior | None = None
    kinds: Kinds | None = None

    @classmethod
    def of(
        cls,
        theta: Float[Tensor, "n *d"],
        x: Float[Tensor, "n *x_shape"] | Mapping[str, Float[Tensor, "n *shape"]],
        prior: Prior | None = None,
    ) -> "Simulations":
        """Simulations that were made elsewhere, numbered in the order of their rows; one number a row may be (n,).

        Args:
            theta: (n, d).
            x: (n, *x_shape); or, of several kinds of data, a mapping from names to (n, *shape).
            prior: that theta was drawn from, or None.

        Raises:
            ValueError: kinds of data with unequal numbers of rows, or of shapes that there is no kind of.

        >>> len(Simulations.of(torch.zeros(5, 2), torch.ones(5, 3)))
        5
        """
        n, kinds = len(theta), None
        if isinstance(x, Mapping):
            joined = JoinedSummary.of(x)
            x, kinds = joined.flatten(x), tuple(zip(joined.names, joined.shapes, strict=True))
        theta, x = (as_precise_as_needed(as_rows(name, v)) for name, v in (("theta", theta), ("x", x)))
        return cls(theta, x, torch.arange(n), torch.full((n,), -1), prior=prior, kinds=kinds)

    @classmethod
    def joined(cls, parts: "Sequence[Simulations]") -> "Simulations":
        """The simulations of all parts, in the order of their indices. Parts without results add their failures."""
        failures = tuple(sorted(failure for part in parts for failure in part.failures))
        full = [part for part in parts if len(part)] or list(parts[:1])
        theta, x, index, seeds = (
            torch.cat([getattr(part, name) for part in full]) for name in ("theta", "x", "index", "seeds")
        )
        order = torch.from_numpy(np.argsort(index.numpy()))
        return cls(theta[order], x[order], index[order], seeds[order], failures, parts[0].prior, full[0].kinds)

    def rounded(self) -> "Simulations":
        """The same with float32 numbers wherever these lose nothing."""
        return replace(self, theta=as_precise_as_needed(self.theta), x=as_precise_as_needed(self.x))

    @property
    def form(self) -> Form:
        """The form of the data of one simulation."""
        return Form(tuple(self.x.shape[1:]), self.kinds)

    @property
    def data(self) -> Tensor | dict[str, Tensor]:
        """X as `fit` takes it: as it is, or, of several kinds of data, a mapping from names to (n, *shape)."""
        return self.form.split(self.x)

    def first(self, n: int) -> "Simulations":
        """The first n simulations, without the failures."""
        kept = {name: getattr(self, name)[:n] for name in ("theta", "x", "index", "seeds")}
        return replace(self, **kept, failures=())

    @property
    def names(self) -> Sequence[str] | None:
        """The names of the parameters, or None: those of the prior."""
        return None if self.prior is None else self.prior.names

    def __len__(self) -> int:
        return len(self.theta)


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
        self._checked: set[Path] = set()  # files whose digest was compared: once in a process
        check_folders("store", self.path.parent)
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"store must be a folder, got the file {str(self.path)!r}")
        if self.path.is_dir() and self.manifest is None and any(p.name != OLD_LOCK for p in self.path.glob("[!.]*")):
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
            content = read_json(path)
            if content.pop("format") != FORMAT:
                raise ValueError("another format")
            shape, kinds = content.pop("x_shape"), content.pop("kinds", None)
            found = None if kinds is None else tuple((str(name), tuple(map(int, of))) for name, of in kinds)
            return Manifest(**content, x_shape=None if shape is None else tuple(shape), kinds=found)
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a manifest of the format {FORMAT!r}: {error}") from error

    def load(self, n: int | None = None) -> Simulations:
        """The simulations, in the order of their indices; parts are read one after the other.

        Args:
            n: only those with an index < n; None takes all.

        Raises:
            ValueError: there are none.
        """
        manifest = self.manifest
        if manifest is None or manifest.x_shape is None:
            raise ValueError(f"store {str(self.path)!r} has no simulations")
        index, failures = self.done(n), self.failures(n)
        if len(index) == 0:
            raise ValueError(f"store {str(self.path)!r} has no simulations" + ("" if n is None else f" below {n}"))
        self._check_widths(manifest.dim, math.prod(manifest.x_shape))
        theta = np.empty((len(index), manifest.dim), np.float32)
        x = np.empty((len(index), *manifest.x_shape), np.float32)
        seeds = np.full(len(index), -1)
        for table in self._tables("part", ["index", "seed", "theta", "x"]):
            found = table["index"].to_numpy()
            kept = np.flatnonzero(np.isin(found, index))
            rows = np.searchsorted(index, found[kept])
            seeds[rows] = table["seed"].to_numpy()[kept]
            found_theta, found_x = _unpack(table["theta"], manifest.dim), _unpack(table["x"], x[0].size)
            theta, x = _with_room_for(theta, found_theta), _with_room_for(x, found_x)
            theta[rows] = found_theta[kept]
            x[rows] = found_x[kept].reshape(-1, *manifest.x_shape)
        read = slice(None) if seeds.min() >= 0 else seeds >= 0  # without files that were damaged in the middle
        rows, draws, numbers, streams = (torch.from_numpy(a[read]) for a in (theta, x, index, seeds))
        return Simulations(rows, draws, numbers, streams, failures, self._prior(manifest), manifest.kinds).rounded()

    def done(self, n: int | None = None) -> Int64[ndarray, "k"]:
        """The indices of the simulations that gave a result, ascending.

        Args:
            n: only those < n; None takes all.
        """
        found = [table["index"].to_numpy() for table in self._tables("part", ["index"])]
        index = np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)
        return index if n is None else index[index < n]

    def failures(self, n: int | None = None) -> tuple[Failure, ...]:
        """The simulations that failed and gave no result later, by index; the last failure of each.

        Args:
            n: only those with an index < n; None takes all.
        """
        found: dict[int, Failure] = {}
        for table in self._tables("failures", None):
            for row in table.to_pylist():
                found[row["index"]] = Failure(row["index"], tuple(row["theta"]), row["seed"], row["error"])
        done = set(self.done(n).tolist()) if found else set()
        return tuple(found[i] for i in sorted(found) if i not in done and (n is None or i < n))

    def mark(self, indices: Sequence[int]) -> None:
        """Note which simulations run in this process, of which one may end it; none removes the note."""
        path = self.path / RUNNING
        if len(indices):
            write_json(path, {"indices": list(indices)})
        else:
            path.unlink(missing_ok=True)

    def interrupted(self) -> Sequence[int]:
        """The simulations that ran in a process when it ended without a word, in an earlier run."""
        try:
            return [int(i) for i in read_json(self.path / RUNNING)["indices"]]
        except (KeyError, OSError, TypeError, ValueError):
            return []

    @contextmanager
    def writing(self, manifest: Manifest) -> Iterator[Callable[[Simulations], None]]:
        """Lock the store; inside the block, the function that adds simulations to it.

        Raises:
            ValueError: the store's simulations are of something else, or another run is adding to it.
        """
        with locked_folder(self.path, "store", nested=False):
            existing = self.manifest
            if existing is None:
                self._describe(manifest)
            else:
                self._check(existing, manifest)
            remove_remains(self.path)
            yield self._add

    def _add(self, simulations: Simulations) -> None:
        """One file of the results, and one of the failures."""
        manifest = self.manifest
        if len(simulations):
            if manifest is not None and manifest.x_shape is None:
                self._describe(replace(manifest, x_shape=simulations.form.shape, kinds=simulations.kinds))
            index, seeds, theta, x = (getattr(simulations, name).numpy() for name in ("index", "seeds", "theta", "x"))
            columns = {"index": index, "seed": seeds, "theta": _pack(theta), "x": _pack(x.reshape(len(x), -1))}
            self._write("part", columns)
        if failures := simulations.failures:
            theta = _pack(np.array([f.theta for f in failures], np.float64))
            index, seeds, errors = ([getattr(f, name) for f in failures] for name in ("index", "seed", "error"))
            self._write("failures", {"index": index, "seed": seeds, "theta": theta, "error": errors})

    def _describe(self, manifest: Manifest) -> None:
        content = asdict(manifest)
        if manifest.kinds is None:  # as older versions read it
            del content["kinds"]
        write_json(self.path / "manifest.json", {"format": FORMAT, **content}, files=())

    def _write(self, kind: str, columns: Mapping[str, Any]) -> None:
        import pyarrow

        # Names ascend with time; the process and a count keep those of one moment apart.
        path = self.path / f"{kind}-{time.time_ns():020d}-{os.getpid()}-{next(_COUNT)}.parquet"
        with replacing(path, digest=True) as temporary:
            _parquet().write_table(pyarrow.table(dict(columns)), temporary, compression="zstd", use_dictionary=False)

    def _prior(self, manifest: Manifest) -> Prior | None:
        if manifest.prior is None:
            return None
        try:
            return prior_from_config(manifest.prior)
        except ValueError as error:
            warnings.warn(f"the prior of store {str(self.path)!r} is not known: {error}", RuntimeWarning, stacklevel=3)
            return None

    def _check(self, stored: Manifest, given: Manifest) -> None:
        where = f"store {str(self.path)!r} holds simulations"
        if stored.dim != given.dim:
            raise ValueError(f"{where} of {stored.dim} parameters, but prior has {given.dim}")
        if stored.seed != given.seed:
            raise ValueError(f"{where} with seed {stored.seed}, got seed {given.seed}; pass that one, or another store")
        if not np.allclose(stored.first_theta, given.first_theta, rtol=1e-4):
            raise ValueError(f"{where} of another prior: {describe_difference(stored, given)}")
        if stored.simulator != given.simulator:
            raise ValueError(
                f"{where} of {stored.simulator!r}, got the simulator {given.simulator!r}; pass another store, or, if "
                "the same simulator has a new name, change the name in manifest.json and run openedm verify "
                f"{self.path} --accept true"
            )

    def _check_widths(self, dim: int, numbers: int) -> None:
        """Check that rows have as many numbers as the manifest says, before there is room for them."""
        table = next(self._tables("part", ["theta", "x"]), None)
        if table is None:
            raise ValueError(f"store {str(self.path)!r} has no simulations that can be read")
        found = [getattr(table[name].type, "list_size", None) for name in ("theta", "x")]
        if found != [dim, numbers]:
            raise ValueError(f"{self.path} has {found} numbers for theta and x, but its manifest {[dim, numbers]}")

    def _tables(self, kind: str, columns: list[str] | None) -> Iterator[Any]:
        """The files of a kind, the oldest first."""
        parquet = _parquet()
        for path in sorted(self.path.glob(f"{kind}-*.parquet")):
            try:
                if path not in self._checked:
                    check_digest(path)
                    self._checked.add(path)
                yield parquet.read_table(path, columns=columns, memory_map=True, partitioning=None)
            except (OSError, ValueError) as error:  # pyarrow's own errors are below these
                warnings.warn(f"{path} is damaged and is ignored: {error}", RuntimeWarning, stacklevel=2)


_COUNT = itertools.count(1)


def _pack(rows: Float[ndarray, "b k"]) -> Any:
    import pyarrow

    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(rows.reshape(-1)), rows.shape[1])


def _unpack(column: Any, width: int) -> Float[ndarray, "b k"]:
    return np.asarray(column.combine_chunks().flatten().to_numpy()).reshape(-1, width)


def _with_room_for(array: Float[ndarray, "rows *of"], found: Float[ndarray, "some k"]) -> Float[ndarray, "rows *of"]:
    """The array, in float64 if what is written to it is."""
    return array.astype(np.promote_types(array.dtype, found.dtype), copy=False)


def _parquet() -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError("a store of simulations needs pyarrow: `pip install openedm[sbi]`") from error
    return parquet
