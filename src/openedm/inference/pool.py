"""The processes that run simulations, by joblib, and the search for the simulation that ended one of them.

joblib, loky and Dask report that a process died, not which of its tasks killed it. So the chunks without an outcome are
run again, each while nothing else runs, and a chunk that ends its process again, simulation by simulation.
"""

import contextlib
import threading
from collections.abc import Generator, Iterator
from itertools import islice
from typing import Any

from joblib import Parallel, delayed, effective_n_jobs
from joblib.externals.loky.process_executor import TerminatedWorkerError
from joblib.parallel import get_active_backend

from openedm.inference.calling import Call, Chunk, Outcome

__all__ = ["Pool"]

DEATHS = ("KilledWorker", "WorkerCrashedError", "OutOfMemoryError")  # Dask's and Ray's; loky's is a class we can name


class _Tasks:
    """The chunks as joblib's tasks, and those of them without an outcome. joblib takes tasks from several threads."""

    def __init__(self, call: Call, chunks: Iterator[Chunk], x_shape: tuple[int, ...] | None) -> None:
        self._call, self._chunks, self._x_shape = call, chunks, x_shape
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
        return delayed(_numbered)(self._call, chunk, self._x_shape)

    def finished(self, first: int) -> None:
        with self._lock:
            del self._waiting[first]

    def stop(self) -> list[Chunk]:
        """Yield no more tasks; returns the chunks that have no outcome."""
        with self._lock:
            self._stopped = True
            return list(self._waiting.values())


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

    def outcomes(self, chunks: Iterator[Chunk], x_shape: tuple[int, ...] | None) -> Generator[Outcome, None, None]:
        """The outcomes of the chunks, in any order. Where a process dies, each chunk it may have run is run alone."""
        while True:
            tasks = _Tasks(self._call, chunks, x_shape)
            try:
                yield from self._parallel(tasks)
                return
            except Exception as error:
                suspects = tasks.stop()
                if not _is_death(error):
                    raise
            for chunk in suspects:
                yield from self._alone(chunk, x_shape)

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

        running = {submit(task) for task in islice(tasks, 2 * self.processes)}
        finished: Any = distributed.as_completed(running)  # type: ignore[no-untyped-call]
        try:
            for future in finished:
                first, outcome = future.result()
                running.discard(future)
                tasks.finished(first)
                for task in islice(tasks, 1):
                    following = submit(task)
                    running.add(following)
                    finished.add(following)
                yield outcome
        finally:
            client.cancel(list(running))

    def _joblib(self, tasks: _Tasks) -> Generator[Outcome, None, None]:
        results = Parallel(n_jobs=self._workers, return_as="generator_unordered", batch_size=1)(tasks)
        try:
            for first, outcome in results:
                tasks.finished(first)
                yield outcome
        except GeneratorExit:
            # An error thrown in ends joblib's work quietly; closing its generator warns.
            with contextlib.suppress(KeyboardInterrupt, StopIteration):
                results.throw(KeyboardInterrupt())
            raise

    def _alone(self, chunk: Chunk, x_shape: tuple[int, ...] | None) -> Generator[Outcome, None, None]:
        """The chunk while nothing else runs; if it kills the process again, one simulation at a time."""
        try:
            yield from self._parallel(_Tasks(self._call, iter([chunk]), x_shape))
        except Exception as error:
            if not _is_death(error):
                raise
            if len(chunk) == 1:
                reason = f"the process died ({type(error).__name__}: {' '.join(str(error).split())})"
                yield Outcome(chunk.failed([chunk.failure(0, reason)]), 0.0)
                return
        else:
            return
        for single in chunk.singles():
            yield from self._alone(single, x_shape)


def _numbered(call: Call, chunk: Chunk, x_shape: tuple[int, ...] | None) -> tuple[int, Outcome]:
    return int(chunk.index[0]), call.run(chunk, x_shape)


def _is_death(error: BaseException) -> bool:
    return isinstance(error, TerminatedWorkerError) or type(error).__name__ in DEATHS
