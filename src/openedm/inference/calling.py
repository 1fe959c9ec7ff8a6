"""How a simulator is called: its seeds, the results it may return, simulations that fail, and processes that die.

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

Processes are joblib's. joblib, loky and Dask report that a process died, not which of its tasks killed it. So the
chunks without an outcome are run again, each while nothing else runs, and a chunk that ends its process again,
simulation by simulation.
"""

import contextlib
import inspect
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from joblib import Parallel, delayed, effective_n_jobs
from joblib.externals.loky.process_executor import TerminatedWorkerError
from joblib.parallel import get_active_backend
from numpy import ndarray

from openedm.ground.seeding import global_generators_kept, seed_global_generators
from openedm.inference.results import Form, Kinds, as_rows_of_numbers
from openedm.inference.simulations import Failure, Simulations

__all__ = ["Call", "Chunk", "Outcome", "Pool", "Simulator", "name_of"]

Simulator = Callable[..., Any]
Seeding = Literal["seed", "seeds", "global"]

DEATHS = ("KilledWorker", "WorkerCrashedError", "OutOfMemoryError")  # Dask's and Ray's; loky's is a class we can name


DASK_SECONDS, DASK_PATIENCE = 5, 120
"""How often a cluster is looked at while no result comes, and how long it may be without workers."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """Simulations to be run together: indices (b,), parameters (b, d) and seeds (b,)."""

    index: Int64[ndarray, "b"]
    theta: Float[ndarray, "b d"]
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

    def simulated(
        self, x: Float[ndarray, "b *x_shape"], failures: Sequence[Failure] = (), kinds: Kinds | None = None
    ) -> Simulations:
        """The chunk with its results, and simulations that failed beside them."""
        # Copies: what joblib hands to a process may be mapped from a file and read-only.
        theta, data, index, seeds = (torch.from_numpy(np.array(a)) for a in (self.theta, x, self.index, self.seeds))
        return Simulations(theta, data, index, seeds, tuple(failures), kinds=kinds)

    def failed(self, failures: Sequence[Failure]) -> Simulations:
        """No results: simulations that failed, if any."""
        return self.rows([]).simulated(np.empty((0, 0), np.float32), failures)


@dataclass(frozen=True, eq=False)
class Outcome:
    """The result of running a chunk.

    Attributes:
        first: the index of the chunk's first simulation.
        simulations: those that gave a result, and the failures.
        seconds: spent in the simulator.
        interrupted: KeyboardInterrupt came before the chunk's end; the simulations after it are not in `simulations`.
    """

    first: int
    simulations: Simulations
    seconds: float = 0.0
    interrupted: bool = False


@dataclass(frozen=True, eq=False)
class Call:
    """The way to call a simulator, by the table above.

    Args:
        simulator: the callable.
        batched: whether it takes many θ at once.
        arrays: what θ is given as: "torch", a tensor in the number format of the prior, or "numpy", a float64 array.

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

    def run(self, chunk: Chunk, form: Form | None) -> Outcome:
        """Simulate a chunk: a batch that fails is run again one by one, and only what fails by itself is a failure.

        Args:
            chunk: the simulations.
            form: the form a result must have; None: that of the first result.
        """
        started = time.perf_counter()
        with global_generators_kept() if self.seeding == "global" else contextlib.nullcontext():
            found = self._in_one_call(chunk, form) if self.batched else None
            simulations, interrupted = found or self._one_by_one(chunk, form)
        return Outcome(int(chunk.index[0]), simulations, time.perf_counter() - started, interrupted)

    def _in_one_call(self, chunk: Chunk, form: Form | None) -> tuple[Simulations, bool] | None:
        """The results, and whether KeyboardInterrupt came; None if the call fails."""
        try:
            x, found = self._results(chunk)
        except KeyboardInterrupt:
            return chunk.failed(()), True
        except (Exception, SystemExit):
            return None
        return (chunk.simulated(x, kinds=found.kinds), False) if form in (None, found) else None

    def _one_by_one(self, chunk: Chunk, form: Form | None) -> tuple[Simulations, bool]:
        """The results and failures, and whether KeyboardInterrupt came."""
        rows: list[int] = []
        results: list[Float[ndarray, "*x_shape"]] = []
        failures: list[Failure] = []
        interrupted = False
        for i, single in enumerate(chunk.singles()):
            try:
                x, found = self._results(single)
                form = found if form is None else form
                if found != form:
                    raise ValueError(f"simulator must return shape {form} as before, got {found}")
            except KeyboardInterrupt:
                interrupted = True
                break
            except (Exception, SystemExit) as error:
                failures.append(chunk.failure(i, error))
            else:
                rows.append(i)
                results.append(x[0])
        if not results or form is None:
            return chunk.failed(failures), interrupted
        return chunk.rows(rows).simulated(np.stack(results), failures, form.kinds), interrupted

    def _results(self, chunk: Chunk) -> tuple[Float[ndarray, "b *x_shape"], Form]:
        """The result of each row, by one call, and their form; unless `batched`, of the only row."""
        theta = chunk.theta if self.batched else chunk.theta[0]
        given = torch.from_numpy(theta.copy()) if self.arrays == "torch" else theta.astype(np.float64)
        match self.seeding:
            case "seeds":
                x = self.simulator(given, seeds=chunk.seeds.copy())
            case "seed":
                x = self.simulator(given, seed=int(chunk.seeds[0]))
            case "global":
                seed_global_generators(int(chunk.seeds[0]))
                x = self.simulator(given)
        return as_rows_of_numbers(x, len(chunk) if self.batched else None)


class _Tasks:
    """The chunks as joblib's tasks, and those of them without an outcome. joblib takes tasks from several threads."""

    def __init__(self, call: Call, chunks: Iterator[Chunk], form: Form | None) -> None:
        self._call, self._chunks, self._form = call, chunks, form
        self._lock = threading.Lock()
        self._waiting: dict[int, Chunk] = {}
        self._stopped = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        with self._lock:
            if self._stopped:
                raise StopIteration
            chunk = next(self._chunks)
            self._waiting[int(chunk.index[0])] = chunk
        return delayed(self._call.run)(chunk, self._form)

    def finished(self, outcome: Outcome) -> None:
        with self._lock:
            del self._waiting[outcome.first]

    def stop(self) -> list[Chunk]:
        """Yield no more tasks; returns the chunks that have no outcome."""
        with self._lock:
            self._stopped = True
            return list(self._waiting.values())


class _Workers:
    """Whether a cluster that has lost its workers gets others."""

    def __init__(self) -> None:
        self._seen: float | None = None

    def check(self, count: int, now: float) -> None:
        """Raise RuntimeError where there were workers, and have been none for `DASK_PATIENCE` seconds."""
        if count:
            self._seen = now
        elif self._seen is not None and now - self._seen > DASK_PATIENCE:
            raise RuntimeError(
                f"the Dask cluster has had no worker for {DASK_PATIENCE} seconds: a simulation has probably ended its "
                "process, and nothing starts others (workers need a nanny for that); what was simulated is kept in the "
                "store, if there is one, and the same call goes on with it"
            )


class Pool:
    """Runs chunks by joblib, in the processes of its backend.

    Args:
        call: the simulator.
        workers: processes; None leaves it to joblib's configuration.
    """

    def __init__(self, call: Call, workers: int | None) -> None:
        self._call = call
        self._workers = workers
        self.processes = max(1, effective_n_jobs(workers))

    def outcomes(self, chunks: Iterator[Chunk], form: Form | None) -> Generator[Outcome, None, None]:
        """The outcomes of the chunks, in any order. Where a process dies, each chunk it may have run is run alone."""
        while True:
            tasks = _Tasks(self._call, chunks, form)
            try:
                yield from self._parallel(tasks)
                return
            except Exception as error:
                suspects = tasks.stop()
                if not _is_death(error):
                    raise
            for chunk in suspects:
                yield from self._alone(chunk, form)

    def _parallel(self, tasks: _Tasks) -> Generator[Outcome, None, None]:
        backend = get_active_backend()[0]
        if type(backend).__name__ == "DaskDistributedBackend":
            # joblib's own backend for Dask waits forever for a task whose worker died.
            yield from self._dask(backend.client, tasks)
        else:
            yield from self._joblib(tasks)

    def _dask(self, client: Any, tasks: _Tasks) -> Generator[Outcome, None, None]:
        import distributed

        def submit(task: Any) -> Any:
            function, arguments, _ = task
            return client.submit(function, *arguments, pure=False)

        running, workers = {submit(task) for task in islice(tasks, 2 * self.processes)}, _Workers()
        workers.check(len(client.scheduler_info()["workers"]), time.monotonic())
        try:
            while running:
                with contextlib.suppress(TimeoutError):
                    # A result is lost with its worker: the future is done, and waits for a second run.
                    done, _ = distributed.wait(list(running), DASK_SECONDS, "FIRST_COMPLETED")  # type: ignore[no-untyped-call]
                    for future in done:
                        outcome = future.result(timeout=DASK_SECONDS)
                        running.discard(future)
                        tasks.finished(outcome)
                        running |= {submit(task) for task in islice(tasks, 1)}
                        workers.check(1, time.monotonic())
                        yield outcome
                    continue
                workers.check(len(client.scheduler_info()["workers"]), time.monotonic())
        finally:
            client.cancel(list(running))

    def _joblib(self, tasks: _Tasks) -> Generator[Outcome, None, None]:
        results = Parallel(n_jobs=self._workers, return_as="generator_unordered", batch_size=1)(tasks)
        try:
            for outcome in results:
                tasks.finished(outcome)
                yield outcome
        except GeneratorExit:
            # An error thrown in ends joblib's work quietly; closing its generator warns.
            with contextlib.suppress(KeyboardInterrupt, StopIteration):
                results.throw(KeyboardInterrupt())
            raise

    def isolated(self, chunks: Iterable[Chunk], form: Form | None) -> Generator[Outcome, None, None]:
        """The outcomes of chunks that may end their process, in a process that runs nothing else meanwhile."""
        others = self if self.processes > 1 else Pool(self._call, 2)
        for chunk in chunks:
            yield from others._alone(chunk, form)

    def _alone(self, chunk: Chunk, form: Form | None) -> Generator[Outcome, None, None]:
        """The chunk while nothing else runs; if it kills the process again, one simulation at a time."""
        try:
            yield from self._parallel(_Tasks(self._call, iter([chunk]), form))
            return
        except Exception as error:
            if not _is_death(error):
                raise
            reason = f"the process died ({type(error).__name__}: {' '.join(str(error).split())})"
        if len(chunk) == 1:
            yield Outcome(int(chunk.index[0]), chunk.failed([chunk.failure(0, reason)]))
            return
        for single in chunk.singles():
            yield from self._alone(single, form)


def name_of(simulator: Simulator) -> str:
    """The name of a function, of the function within a partial, or of an object's class."""
    simulator = getattr(simulator, "func", simulator)
    return str(getattr(simulator, "__qualname__", type(simulator).__qualname__))


def _is_death(error: BaseException) -> bool:
    return isinstance(error, TerminatedWorkerError) or type(error).__name__ in DEATHS
