"""Draw parameters from a prior and simulate with them: in batches or one by one, over processes, resumed after a kill.

calling       how the simulator is called, in which processes, and what is a failure
simulations   simulations in memory and on disk

Simulation i has θ_i and a seed that are functions of (prior, seed, i) alone: both are drawn in blocks of 1024. So its
result depends neither on how many simulations there are, nor on how many processes share them, nor on their order.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy import ndarray
from torch import Tensor

from openedm.ground import checks
from openedm.ground.progress import Progress, ShowProgress, showing
from openedm.ground.seeding import derive_seed
from openedm.inference.calling import Call, Chunk, Outcome, Pool, Simulator, name_of
from openedm.inference.composite import as_prior, prior_to_config
from openedm.inference.manifests import Manifest
from openedm.inference.priors import Prior
from openedm.inference.results import Form
from openedm.inference.simulations import Simulations, Store

__all__ = ["data_for", "parameters", "simulate", "simulation_seeds"]

BLOCK = 1024
"""Parameters and seeds are drawn in blocks of so many."""
PARAMETERS, SEEDS = range(2)
"""Keys of their random streams."""

BATCH_SIZE = 1000
"""Simulations in a chunk at most, where `batch_size` does not say."""
CHUNK_SECONDS = 0.5
"""Wall time that a chunk should take."""
SAVE_SECONDS, FIRST_SAVE_SECONDS = 1.0, 0.1
"""Work of each process after which results are written; the first are written earlier."""


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
    progress: ShowProgress = None,
) -> Simulations:
    """Draw θ ~ prior and x ~ p(x|θ), n times.

    A simulation that raises, returns another shape than the first one, or kills its process is reported in `failures`,
    and the rest goes on. NaN and infinities are results like any other.

    A simulator that takes an argument `seed` (or `seeds`, batched) gets its seeds there, integers below 2⁶³; for others
    the global generators of random, numpy and torch are seeded for the simulation and put back afterwards. One by one,
    or batched with `seeds` used row by row, a result depends on `seed` and its index alone. A batched simulator that
    gets one seed a batch, or none, depends on `batch_size` too.

    With a store, results are on the disk after a second's work of every process or at the end of the simulation,
    whichever is later; after a kill the same call, also with a larger n, goes on.

    >>> def simulator(theta, seed):
    ...     return theta + 0.1 * torch.randn(2, generator=torch.Generator().manual_seed(seed))
    >>> found = simulate(simulator, ((-1.0, -1.0), (1.0, 1.0)), 100)
    >>> found.theta.shape, found.x.shape, found.failures
    (torch.Size([100, 2]), torch.Size([100, 2]), ())

    Args:
        simulator: `simulator(theta (d,)) -> x (*x_shape)`, or with `batched` `simulator(theta (b, d)) -> x
            (b, *x_shape)`; x is a tensor, an array or a list; a number counts as shape (1,). It is kept as float32,
            or, where it comes in float64 and float32 would lose what a column tells (a date, say), as float64.
            Of several kinds of data at once, x is a mapping from names to vectors, series or images; `Simulations.x`
            holds the numbers of all in a row, and `fit` takes them apart.
        prior: what `as_prior` takes: a Prior, a torch distribution, a list of them, or a pair (low, high).
        n: how many simulations, ≥ 1.
        seed: of everything, ≥ 0.
        batched: whether the simulator takes many θ at once.
        batch_size: how many simulations a process gets at a time. None: 1000 if batched, else half a second's.
        workers: processes. None: as `joblib.parallel_config` says around the call (a backend such as "dask" or "ray"
            and its settings), one where there is none; −1: one a core. With one, simulations run in this process, and
            a simulator that kills its process ends this one; with a store, what was simulated before is kept, and the
            same call then runs the simulations in question in processes of their own, and reports which one it was.
            loky (joblib's own), Dask and Ray report processes that die; "multiprocessing" does not.
        arrays: "torch", θ is a tensor for the simulator, float32, or float64 where float32 would not tell draws of the
            prior apart; "numpy", a float64 array of the same values.
        store: a folder for the simulations, or a `Store`.
        retry_failures: whether to run simulations again that failed according to the store.
        on_error: "report" failures, or "raise" at the first.
        progress: None shows a bar in a terminal or notebook, True always, False never; a function is called after
            every chunk, in this thread, with the number of simulations that have ended, those of the store included,
            and of those `failed`.

    Returns:
        The simulations that gave a result, by index, with the failures and the prior.

    Raises:
        TypeError: the simulator cannot be called, or an argument has another type.
        ValueError: an argument is out of range, or the store is of other simulations.
        RuntimeError: a simulation failed and on_error="raise"; none gave a result; or a Dask cluster has lost its
            workers for good.
    """
    call = Call(simulator, batched, arrays)
    _check(n, seed, batch_size, workers, arrays, on_error)
    if store is None and retry_failures:
        raise ValueError("retry_failures=True needs a store: failures are retried from there")
    prior = as_prior(prior)
    if prior is None:
        raise TypeError("prior must be given: parameters are drawn from it")
    folder = store if store is None or isinstance(store, Store) else Store(store)
    chunk = Chunk(np.arange(n), parameters(prior, n, seed), simulation_seeds(n, seed))
    pool = Pool(call, workers)
    with _locked(folder, prior, seed, call) as add, showing(progress) as report:
        results = _Results(n, folder, add, retry_failures, pool.processes)
        suspects = np.intersect1d(results.missing, [] if folder is None else folder.interrupted()).astype(np.int64)
        remaining = np.setdiff1d(results.missing, suspects)
        mark = folder.mark if folder is not None and pool.processes == 1 else None
        chunks = _Chunks(chunk.rows(remaining), batched, batch_size, mark)
        try:
            # In batches as without a kill: a batch that has one seed depends on its rows.
            apart = _Chunks(chunk.rows(suspects), batched, batch_size) if batched else chunk.rows(suspects).singles()
            _run(pool, chunks, apart, results, on_error, report)
        finally:  # which a process that is killed does not reach
            if folder is not None:
                folder.mark(())
    return replace(results.simulations(), prior=prior)


def parameters(prior: Prior, n: int, seed: int) -> Float[ndarray, "n d"]:
    """θ_0 … θ_{n−1} in the prior's number format; the first of them are the same for every n.

    Raises:
        ValueError: they are not finite.
    """
    blocks = [prior.sample(BLOCK, derive_seed(seed, PARAMETERS, k)) for k in range(math.ceil(n / BLOCK))]
    found = torch.cat(blocks)[:n]
    if not bool(found.isfinite().all()):
        raise ValueError(f"prior must have finite draws, got {found[~found.isfinite()][0]}")
    return found.numpy()


def simulation_seeds(n: int, seed: int) -> Int64[ndarray, "n"]:
    """The seeds of simulations 0 … n−1, 63 bits each; the first of them are the same for every n."""
    streams = [np.random.SeedSequence([seed, SEEDS, k]) for k in range(math.ceil(n / BLOCK))]
    blocks = [stream.generate_state(BLOCK, np.uint64) >> np.uint64(1) for stream in streams]
    return np.concatenate(blocks)[:n].astype(np.int64)


def data_for(simulator: Simulator, theta: Float[Tensor, "n d"], seed: int, batched: bool) -> Any:
    """The data of these parameters: of one call, or unless `batched` of one each, with seeds as in `simulate`.

    Raises:
        RuntimeError: a simulator of single θ raises; what another raises is raised with a note.
        TypeError: it cannot be called so.
    """
    if not batched:
        chunk = Chunk(np.arange(len(theta)), theta.numpy(), simulation_seeds(len(theta), seed))
        found = Call(simulator, False, "torch").run(chunk, None).simulations
        if found.failures:
            raise RuntimeError(f"simulator failed for {len(found.failures)} of {len(theta)}: {found.failures[0].error}")
        return found.x
    try:
        return simulator(theta, seed)
    except Exception as error:
        error.add_note(
            f"simulator got all theta {tuple(theta.shape)} at once; one that takes a single theta needs batched=False"
        )
        raise


def _check(n: int, seed: int, batch_size: int | None, workers: int | None, arrays: str, on_error: str) -> None:
    checks.integer("n", n, 1)
    checks.integer("seed", seed, 0)
    if batch_size is not None:
        checks.integer("batch_size", batch_size, 1)
    if workers is not None:
        checks.integer("workers", workers)
        if workers < 1 and workers != -1:
            raise ValueError(f"workers must be >= 1, or -1 for one a core, got {workers}")
    checks.one_of("arrays", arrays, ("torch", "numpy"))
    checks.one_of("on_error", on_error, ("report", "raise"))


def _locked(
    store: Store | None, prior: Prior, seed: int, call: Call
) -> AbstractContextManager[Callable[[Simulations], None] | None]:
    """Lock the store; inside the block, the function that adds to it. None without a store."""
    if store is None:
        return nullcontext()
    try:
        config = prior_to_config(prior)
    except ValueError:  # it has no plain form and is recognised by its draws
        config = None
    first = parameters(prior, 8, seed).tolist()
    return store.writing(Manifest(prior.dim, seed, name_of(call.simulator), config, first))


def _run(
    pool: Pool,
    chunks: "_Chunks",
    suspects: Iterable[Chunk],
    results: "_Results",
    on_error: str,
    progress: Progress,
) -> None:
    """Simulate all chunks, suspects first and apart. Finished ones are saved, also if an error ends the run."""
    try:
        results.report(progress)
        for outcome in pool.isolated(suspects, results.form):
            results.take(outcome)
            results.report(progress)
            _check_failures(outcome, on_error)
        while chunks.remaining:
            # Until a result shows its shape, one chunk runs at a time.
            some = chunks if results.form is not None else iter([next(chunks)])
            with contextlib.closing(pool.outcomes(some, results.form)) as outcomes:
                for outcome in outcomes:
                    results.take(outcome)
                    chunks.adapt(outcome)
                    results.report(progress)
                    if outcome.interrupted:
                        raise KeyboardInterrupt
                    _check_failures(outcome, on_error)
    finally:
        results.save()


def _check_failures(outcome: Outcome, on_error: str) -> None:
    if (failures := outcome.simulations.failures) and on_error == "raise":
        raise RuntimeError(str(failures[0]))


class _Chunks:
    """An iterator over the simulations to run, in chunks that are cut when they are taken."""

    def __init__(
        self,
        todo: Chunk,
        batched: bool,
        batch_size: int | None,
        mark: Callable[[Sequence[int]], None] | None = None,
    ) -> None:
        self._todo, self._mark = todo, mark
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
        chunk = self._todo.rows(slice(start, self._position))
        if self._mark is not None:
            self._mark(chunk.index.tolist())
        return chunk

    def adapt(self, outcome: Outcome) -> None:
        """Choose the size of the next chunks such that they take about `CHUNK_SECONDS`."""
        count = len(outcome.simulations) + len(outcome.simulations.failures)
        if count and outcome.seconds > 0:
            fitting = int(CHUNK_SECONDS * count / outcome.seconds)
            self._size = max(1, min(fitting, 4 * self._size, BATCH_SIZE))


class _Results:
    """The finished simulations: in memory, or moved to a store from time to time."""

    def __init__(
        self,
        n: int,
        store: Store | None,
        add: Callable[[Simulations], None] | None,
        retry_failures: bool,
        processes: int,
    ) -> None:
        self._n, self._store, self._add, self._processes = n, store, add, processes
        self._parts: list[Simulations] = []
        self._saved_seconds = self._unsaved_seconds = 0.0
        self.form: Form | None = None
        missing, failed = np.ones(n, dtype=bool), []
        if store is not None and (manifest := store.manifest) is not None:
            self.form = manifest.form
            missing[store.done(n)] = False
            failed = [] if retry_failures else [f.index for f in store.failures(n)]
        self._done = n - int(missing.sum())
        missing[failed] = False
        self._failed = len(failed)
        self.missing = np.flatnonzero(missing)

    def report(self, progress: Progress) -> None:
        progress("simulations", self._done + self._failed, self._n, failed=self._failed)

    def take(self, outcome: Outcome) -> None:
        part = outcome.simulations
        self._parts.append(part)
        if len(part) and self.form is None:
            self.form = part.form
        self._done += len(part)
        self._failed += len(part.failures)
        self._unsaved_seconds += outcome.seconds
        # A kill costs a second at most, at first a tenth, or a thousandth of a long run: few files.
        early = min(SAVE_SECONDS, FIRST_SAVE_SECONDS + self._saved_seconds) * self._processes
        if self._unsaved_seconds >= max(early, self._saved_seconds / 1000):
            self.save()

    def save(self) -> None:
        """Move what is in memory to the store, if there is one."""
        if self._add is None or not self._parts:
            return
        self._add(Simulations.joined(self._parts))
        self._parts = []
        self._saved_seconds, self._unsaved_seconds = self._saved_seconds + self._unsaved_seconds, 0.0

    def simulations(self) -> Simulations:
        if self._done == 0:
            failures = self._store.failures(self._n) if self._store else Simulations.joined(self._parts).failures
            raise RuntimeError(f"none of {self._n} simulations gave a result; {min(failures)}")
        return Simulations.joined(self._parts).rounded() if self._store is None else self._store.load(self._n)
