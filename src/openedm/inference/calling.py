"""How a simulator is called, in any process: its seeds, the results it may return, and simulations that fail.

A simulation is the triple (index, θ, seed), and its outcome depends on nothing else. The seed is passed to the
simulator by the name of an argument:

| simulator | `batched` | arguments |
|---|---|---|
| `f(theta, seed)` | False | θ (d,) and the simulation's seed |
| `f(theta)` | False | θ (d,), with the global generators of random, numpy and torch seeded |
| `f(theta, seeds)` | True | θ (b, d) and an int64 array (b,), one seed a row |
| `f(theta, seed)` | True | θ (b, d) and one seed, that of the batch's first row |
| `f(theta)` | True | θ (b, d), with the global generators seeded by that of the first row |

A simulator of the last two kinds that draws random numbers depends on which rows share a batch.
"""

import inspect
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy import ndarray
from torch import Tensor

from openedm.inference.simulations import Failure, Simulations

__all__ = ["Call", "Chunk", "Outcome", "Simulator", "name_of"]

Simulator = Callable[..., Any]
Seeding = Literal["seed", "seeds", "global"]

_GLOBAL_GENERATORS = threading.RLock()  # one simulation at a time uses them, also where workers are threads


@dataclass(frozen=True, eq=False)
class Chunk:
    """Simulations to be run together: indices (b,), parameters (b, d) and seeds (b,)."""

    index: Int64[ndarray, "b"]
    theta: Float32[ndarray, "b d"]
    seeds: Int64[ndarray, "b"]

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, rows: slice | list[int] | Int64[ndarray, "k"]) -> "Chunk":
        """The simulations at these places of the chunk."""
        return Chunk(self.index[rows], self.theta[rows], self.seeds[rows])

    def singles(self) -> "list[Chunk]":
        """Every simulation by itself."""
        return [self.rows([i]) for i in range(len(self))]

    def failure(self, row: int, error: BaseException | str) -> Failure:
        """The report that the simulation at this place failed."""
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        theta = tuple(float(value) for value in self.theta[row])
        return Failure(int(self.index[row]), theta, int(self.seeds[row]), text)

    def simulated(self, x: Float32[ndarray, "b *x_shape"], failures: Sequence[Failure] = ()) -> Simulations:
        """The chunk with its results, and simulations that failed beside them."""
        # Copies: what joblib hands to a process may be mapped from a file and read-only.
        theta, data, index, seeds = (torch.from_numpy(np.array(a)) for a in (self.theta, x, self.index, self.seeds))
        return Simulations(theta, data, index, seeds, tuple(failures))

    def failed(self, failures: Sequence[Failure]) -> Simulations:
        """No results: simulations that failed, if any."""
        return self.rows([]).simulated(np.empty((0, 0), np.float32), failures)


@dataclass(frozen=True, eq=False)
class Outcome:
    """The result of running a chunk.

    Attributes:
        simulations: those that gave a result, and the failures.
        seconds: spent in the simulator.
        interrupted: KeyboardInterrupt came before the chunk's end; the simulations after it are not in `simulations`.
    """

    simulations: Simulations
    seconds: float
    interrupted: bool = False


@dataclass(frozen=True, eq=False)
class Call:
    """The way to call a simulator, by the table above.

    Args:
        simulator: the callable.
        batched: whether it takes many θ at once.
        arrays: what θ is given as: "torch", a float32 tensor, or "numpy", a float64 array.

    Attributes:
        seeding: which argument takes the seed; "global" where there is none.

    Raises:
        TypeError: the simulator cannot be called so.
    """

    simulator: Simulator
    batched: bool
    arrays: Literal["torch", "numpy"]
    seeding: Seeding = field(init=False)

    def __post_init__(self) -> None:
        if not callable(self.simulator):
            raise TypeError(f"simulator must be callable, got {type(self.simulator).__name__}")
        try:
            signature = inspect.signature(self.simulator)
        except (TypeError, ValueError):  # written in C: nothing is known before it is called
            object.__setattr__(self, "seeding", "global")
            return
        named = [p.name for p in signature.parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        seeding: Seeding = "seed" if "seed" in named else "global"
        object.__setattr__(self, "seeding", "seeds" if self.batched and "seeds" in named else seeding)
        if not self.batched and "seeds" in named:
            raise TypeError(
                "simulator takes `seeds`, one a row, which is for batched=True; one by one it may take `seed`"
            )
        try:
            signature.bind(None, **({} if self.seeding == "global" else {self.seeding: 0}))
        except TypeError as error:
            allowed = "seed or seeds" if self.batched else "seed"
            raise TypeError(
                f"simulator must be called as simulator(theta), with an argument {allowed} if it has one, "
                f"but {name_of(self.simulator)}{signature} cannot: {error}"
            ) from error

    def run(self, chunk: Chunk, x_shape: tuple[int, ...] | None) -> Outcome:
        """Simulate a chunk: a batch that fails is run again one by one, and only what fails by itself is a failure.

        Args:
            chunk: the simulations.
            x_shape: the shape a result must have; None: that of the first result.
        """
        started = time.perf_counter()
        if self.batched:
            try:
                x = self._batch(chunk)
                if x_shape in (None, x.shape[1:]):
                    return Outcome(chunk.simulated(x), time.perf_counter() - started)
            except KeyboardInterrupt:
                return Outcome(chunk.failed(()), time.perf_counter() - started, interrupted=True)
            except (Exception, SystemExit):
                pass
        simulations, interrupted = self._one_by_one(chunk, x_shape)
        return Outcome(simulations, time.perf_counter() - started, interrupted)

    def _one_by_one(self, chunk: Chunk, x_shape: tuple[int, ...] | None) -> tuple[Simulations, bool]:
        """The results and failures, and whether KeyboardInterrupt came."""
        rows: list[int] = []
        results: list[Float32[ndarray, "*x_shape"]] = []
        failures: list[Failure] = []
        interrupted = False
        with self._global_generators_kept():
            for i, single in enumerate(chunk.singles()):
                try:
                    x = self._batch(single)[0] if self.batched else self._single(single)
                    if x_shape is None:
                        x_shape = x.shape
                    if x.shape != x_shape:
                        raise ValueError(f"simulator must return shape {x_shape} as before, got {x.shape}")
                except KeyboardInterrupt:
                    interrupted = True
                    break
                except (Exception, SystemExit) as error:
                    failures.append(chunk.failure(i, error))
                else:
                    rows.append(i)
                    results.append(x)
        if not results:
            return chunk.failed(failures), interrupted
        return chunk.rows(rows).simulated(np.stack(results), failures), interrupted

    def _single(self, chunk: Chunk) -> Float32[ndarray, "*x_shape"]:
        x = self._invoke(chunk.theta[0], chunk.seeds)
        return x if x.ndim else x[None]

    def _batch(self, chunk: Chunk) -> Float32[ndarray, "b *x_shape"]:
        with self._global_generators_kept():
            x = self._invoke(chunk.theta, chunk.seeds)
        if x.ndim == 0 or len(x) != len(chunk):
            raise ValueError(
                f"simulator must return one row for each of the {len(chunk)} rows of theta (batched=True), "
                f"got shape {x.shape}"
            )
        return x if x.ndim > 1 else x[:, None]

    def _invoke(self, theta: Float32[ndarray, "*b d"], seeds: Int64[ndarray, "b"]) -> Float32[ndarray, "*shape"]:
        given = torch.from_numpy(theta.copy()) if self.arrays == "torch" else theta.astype(np.float64)
        match self.seeding:
            case "seeds":
                return _float32(self.simulator(given, seeds=seeds.copy()))
            case "seed":
                return _float32(self.simulator(given, seed=int(seeds[0])))
            case "global":
                _seed_global_generators(int(seeds[0]))
                return _float32(self.simulator(given))

    @contextmanager
    def _global_generators_kept(self) -> Iterator[None]:
        """Put the states of the global generators back afterwards, if they are used."""
        if self.seeding != "global":
            yield
            return
        devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
        with _GLOBAL_GENERATORS, torch.random.fork_rng(devices=devices):
            python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002  # what simulators use
            try:
                yield
            finally:
                random.setstate(python_state)
                np.random.set_state(numpy_state)  # noqa: NPY002


def name_of(simulator: Simulator) -> str:
    """The name of a function, of the function within a partial, or of an object's class."""
    simulator = getattr(simulator, "func", simulator)
    return str(getattr(simulator, "__qualname__", type(simulator).__qualname__))


def _seed_global_generators(seed: int) -> None:
    random.seed(seed)
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32])  # noqa: NPY002
    torch.default_generator.manual_seed(seed)  # torch.manual_seed looks at every kind of device, ten times slower
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(seed)


def _float32(x: Any) -> Float32[ndarray, "*shape"]:
    """The result of a simulator as float32; NaN and infinities stay."""
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        x = x.float().numpy() if x.is_floating_point() else x.numpy()
    array = np.asarray(x)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"simulator must return real numbers, got {type(x).__name__} of dtype {array.dtype}")
    if array.size == 0:
        raise ValueError(f"simulator must return at least one number, got shape {array.shape}")
    with np.errstate(over="ignore"):
        return array.astype(np.float32)
