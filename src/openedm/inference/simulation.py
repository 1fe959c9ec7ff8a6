"""Draw parameters from a prior and simulate with them: in batches or one by one, over processes, resumed after a kill.

Simulation i has θ_i and a seed that are functions of (prior, seed, i) alone: both are drawn in blocks of 1024. So its
result depends neither on how many simulations there are, nor on how many processes share them, nor on their order.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy import ndarray

from openedm.ground import checks
from openedm.ground.seeding import derive_seed
from openedm.inference.calling import Call, Chunk, Failure, Outcome, Simulator, name_of
from openedm.inference.pool import Pool
from openedm.inference.prior_conversion import as_prior, prior_to_config
from openedm.inference.priors import Prior
from openedm.inference.store import Manifest, Simulations, Store, Writer

BLOCK = 1024
PARAMETERS, SEEDS = range(2)

BATCH_SIZE = 1000
CHUNK_SECONDS = 0.5
SAVE_SECONDS = 1.0


@dataclass(frozen=True)
class SimulationProgress:
    """Where `simulate` stands.

    Attributes:
        done: simulations with a result, those of the store included.
        failed: simulations without.
        total: asked for.
    """

    done: int
    failed: int
    total: int


def simulate(
    simulator: Simulator,
    prior: Any,
    n: int,
    *,
    seed: int = 0,
    batched: bool = False,
    batch_size: int | None = None,
    workers: int | None = None,
    arrays: Literal["torch", "numpy"] = "torch",
    store: Store | str | os.PathLike[str] | None = None,
    retry_failures: bool = False,
    on_error: Literal["report", "raise"] = "report",
    progress: Callable[[SimulationProgress], None] | None = None,
) -> Simulations:
    """Draw θ ~ prior and x ~ p(x|θ), n times.

    A simulation that raises, returns another shape than the first one, or kills its process is reported in `failures`,
    and the rest goes on. NaN and infinities are results like any other.

    A simulator that takes an argument `seed` (or `seeds`, batched) gets its seeds there, integers below 2⁶³; for others
    the global generators of random, numpy and torch are seeded for the simulation and put back afterwards. One by one,
    or batched with `seeds` used row by row, a result depends on `seed` and its index alone. A batched simulator that
    gets one seed a batch, or none, depends on `batch_size` too.

    With a store, what is done is on the disk after a second's work of every process or at the end of the simulation,
    whatever is later; a run that was killed goes on when the same call is made again, with a larger n if you like.

    >>> def simulator(theta, seed):
    ...     return theta + 0.1 * torch.randn(2, generator=torch.Generator().manual_seed(seed))
    >>> found = simulate(simulator, ((-1.0, -1.0), (1.0, 1.0)), 100)
    >>> found.theta.shape, found.x.shape, found.failures
    (torch.Size([100, 2]), torch.Size([100, 2]), ())

    Args:
        simulator: `simulator(theta (d,)) -> x (*x_shape)`, or with `batched` `simulator(theta (b, d)) -> x
            (b, *x_shape)`; x is a tensor, an array or a list, and is kept as float32; a number counts as shape (1,).
        prior: what `as_prior` takes: a Prior, a torch distribution, a list of them, or a pair (low, high).
        n: how many simulations, ≥ 1.
        seed: of everything, ≥ 0.
        batched: whether the simulator takes many θ at once.
        batch_size: how many simulations a process gets at a time. None: 1000 if batched, else half a second's.
        workers: processes. None: as `joblib.parallel_config` says around the call (a backend such as "dask" or "ray",
            with all that it has), one where there is none; −1: one a core. With one, simulations run in this
            process, and a simulator that kills its process takes this one along. loky (joblib's own), Dask and Ray
            tell of processes that die; "multiprocessing" does not.
        arrays: "torch", θ is a float32 tensor for the simulator; "numpy", a float64 array of the same values.
        store: a folder for the simulations, or a `Store`.
        retry_failures: do those again that failed according to the store.
        on_error: "report" failures, or "raise" at the first.
        progress: is called after every chunk, in this thread.

    Returns:
        The simulations that gave a result, by index, and the failures.

    Raises:
        TypeError: the simulator cannot be called, or an argument has another type.
        ValueError: an argument is out of range, or the store is of other simulations.
        RuntimeError: a simulation failed and on_error="raise"; or none gave a result.
    """
    call = Call(simulator, batched, arrays)
    _check(n, seed, batch_size, workers, arrays, on_error, store, retry_failures)
    prior = as_prior(prior)
    if prior is None:
        raise TypeError("prior must be given: parameters are drawn from it")
    folder = store if store is None or isinstance(store, Store) else Store(store)
    theta, seeds = parameters(prior, n, seed), simulation_seeds(n, seed)
    pool = Pool(call, workers)
    with _held(folder, prior, theta, seed, call) as writer:
        kept = _Kept(n, folder, writer, retry_failures, pool.processes)
        chunks = _Chunks(Chunk(np.arange(n), theta, seeds).rows(kept.missing), batched, batch_size)
        _run(pool, chunks, kept, on_error, progress)
        return kept.simulations()


def parameters(prior: Prior, n: int, seed: int) -> Float32[ndarray, "n d"]:
    """θ_0 … θ_{n−1}; the first of them are the same for every n."""
    blocks = [prior.sample(BLOCK, derive_seed(seed, PARAMETERS, k)) for k in range(math.ceil(n / BLOCK))]
    return torch.cat(blocks)[:n].float().numpy()


def simulation_seeds(n: int, seed: int) -> Int64[ndarray, "n"]:
    """The seeds of simulations 0 … n−1, 63 bits each; the first of them are the same for every n."""
    streams = [np.random.SeedSequence([seed, SEEDS, k]) for k in range(math.ceil(n / BLOCK))]
    blocks = [stream.generate_state(BLOCK, np.uint64) >> np.uint64(1) for stream in streams]
    return np.concatenate(blocks)[:n].astype(np.int64)


def _check(
    n: int,
    seed: int,
    batch_size: int | None,
    workers: int | None,
    arrays: str,
    on_error: str,
    store: Store | str | os.PathLike[str] | None,
    retry_failures: bool,
) -> None:
    for name, value, low in (("n", n, 1), ("seed", seed, 0), ("batch_size", batch_size, 1)):
        if value is not None or name != "batch_size":
            checks.integer(name, value)
            checks.at_least(name, value or 0, low)
    if workers is not None:
        checks.integer("workers", workers)
        if workers < 1 and workers != -1:
            raise ValueError(f"workers must be >= 1, or -1 for one a core, got {workers}")
    checks.one_of("arrays", arrays, ("torch", "numpy"))
    checks.one_of("on_error", on_error, ("report", "raise"))
    if store is None and retry_failures:
        raise ValueError("retry_failures=True needs a store: failures are retried from there")


def _held(
    store: Store | None, prior: Prior, theta: Float32[ndarray, "n d"], seed: int, call: Call
) -> AbstractContextManager[Writer | None]:
    if store is None:
        return nullcontext()
    try:
        config = prior_to_config(prior)
    except ValueError:  # it has no plain form; its draws tell it apart
        config = None
    first = parameters(prior, 8, seed).tolist()
    return store.writing(Manifest(theta.shape[1], seed, name_of(call.simulator), config, first))


def _run(
    pool: Pool,
    chunks: "_Chunks",
    kept: "_Kept",
    on_error: str,
    progress: Callable[[SimulationProgress], None] | None,
) -> None:
    """Simulate all chunks; whatever ends this, what was finished is saved."""
    tell = progress or (lambda progress: None)
    try:
        tell(kept.progress)
        while chunks.remaining:
            # Until a result says what shape results have, one chunk is run at a time.
            some = chunks if kept.x_shape is not None else iter([next(chunks)])
            with contextlib.closing(pool.outcomes(some, kept.x_shape)) as outcomes:
                for outcome in outcomes:
                    kept.take(outcome)
                    chunks.learn(outcome)
                    tell(kept.progress)
                    if outcome.interrupted:
                        raise KeyboardInterrupt
                    if outcome.failures and on_error == "raise":
                        raise RuntimeError(str(outcome.failures[0]))
    finally:
        kept.save()


class _Chunks:
    """The simulations to do, cut into chunks when they are asked for."""

    def __init__(self, todo: Chunk, batched: bool, batch_size: int | None) -> None:
        self._todo = todo
        self._batched = batched
        self._batch_size = batch_size or (BATCH_SIZE if batched else None)
        self._size = 1
        self._position = 0

    @property
    def remaining(self) -> int:
        return len(self._todo) - self._position

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        if not self.remaining:
            raise StopIteration
        start, size = self._position, self._batch_size or self._size
        stop = start + size
        if self._batched:  # batches begin at multiples of their size, wherever a run begins
            following = (self._todo.index[start] // size + 1) * size
            stop = int(np.searchsorted(self._todo.index, following))
        self._position = min(stop, len(self._todo))
        return self._todo.rows(slice(start, self._position))

    def learn(self, outcome: Outcome) -> None:
        """Let chunks take about half a second each."""
        count = len(outcome.done) + len(outcome.failures)
        if count and outcome.seconds > 0:
            wanted = int(CHUNK_SECONDS * count / outcome.seconds)
            self._size = max(1, min(wanted, 4 * self._size, BATCH_SIZE))


class _Kept:
    """What came of the simulations: in memory, or in a store after a while."""

    def __init__(
        self, n: int, store: Store | None, writer: Writer | None, retry_failures: bool, processes: int
    ) -> None:
        self._n, self._store, self._writer, self._processes = n, store, writer, processes
        self._chunks: list[Chunk] = []
        self._results: list[Float32[ndarray, "b *x_shape"]] = []
        self._failures: list[Failure] = []
        self._saved = self._unsaved = 0.0
        missing = np.ones(n, dtype=bool)
        failed: list[int] = []
        if store is not None and writer is not None:
            done = store.done()
            missing[done[done < n]] = False
            failed = [] if retry_failures else [f.index for f in store.failures(n)]
        self._done = n - int(missing.sum())
        missing[failed] = False
        self._failed = len(failed)
        self.missing = np.flatnonzero(missing)
        self.x_shape = None if writer is None else writer.manifest.x_shape

    @property
    def progress(self) -> SimulationProgress:
        return SimulationProgress(self._done, self._failed, self._n)

    def take(self, outcome: Outcome) -> None:
        if outcome.x is not None:
            self._chunks.append(outcome.done)
            self._results.append(outcome.x)
            if self.x_shape is None:
                self.x_shape = outcome.x.shape[1:]
        self._failures.extend(outcome.failures)
        self._done += len(outcome.done)
        self._failed += len(outcome.failures)
        self._unsaved += outcome.seconds
        # A kill costs a second at most, or a thousandth of a long run, which keeps the number of files small.
        if self._unsaved >= max(SAVE_SECONDS * self._processes, self._saved / 1000):
            self.save()

    def save(self) -> None:
        if self._writer is None:
            return
        if self._writer.manifest.x_shape != self.x_shape:
            self._writer.describe(self.x_shape)
        if self._chunks:
            self._writer.add(self._chunks, self._results)
        if self._failures:
            self._writer.add_failures(self._failures)
        self._chunks, self._results, self._failures = [], [], []
        self._saved, self._unsaved = self._saved + self._unsaved, 0.0

    def simulations(self) -> Simulations:
        if self._done == 0:
            failures = self._failures or (self._store.failures(self._n) if self._store else ())
            raise RuntimeError(f"none of {self._n} simulations gave a result; {min(failures)}")
        if self._store is not None:
            return self._store.load(self._n)
        index, theta, seeds = (
            np.concatenate([getattr(c, k) for c in self._chunks]) for k in ("index", "theta", "seeds")
        )
        order = np.argsort(index)
        x = np.concatenate(self._results)
        rows, draws, numbers, own = (torch.from_numpy(a[order]) for a in (theta, x, index, seeds))
        return Simulations(rows, draws, tuple(sorted(self._failures)), numbers, own)
