import os

import joblib
import pytest
import torch

from openedm.inference.calling import DASK_PATIENCE, Outcome, Pool, _Workers
from openedm.inference.simulation import simulate
from openedm.inference.simulations import Store
from simulators import PRIOR, same

# Functions made here travel to other processes by value, since those cannot import a test's module.


def make(culprits=()):
    def simulator(theta, seed):
        import os

        import torch

        if seed in culprits:
            os._exit(3)
        return theta + torch.randn(2, generator=torch.Generator().manual_seed(seed))

    simulator.__module__ = "__main__"
    return simulator


def make_global():
    def simulator(theta):
        import numpy as np

        return np.random.normal(size=2) + theta.numpy()  # noqa: NPY002

    simulator.__module__ = "__main__"
    return simulator


def test_processes_give_what_one_process_gives():
    assert same(simulate(make(), PRIOR, 400, workers=2), simulate(make(), PRIOR, 400, workers=1))
    assert same(simulate(make_global(), PRIOR, 400, workers=2, batch_size=7), simulate(make_global(), PRIOR, 400))


def test_threads_take_turns_with_the_global_generators():
    with joblib.parallel_config(backend="threading", n_jobs=4):
        threads = simulate(make_global(), PRIOR, 200, batch_size=3)
    assert same(threads, simulate(make_global(), PRIOR, 200))


def test_an_early_end_is_quiet_and_leaves_the_workers_usable():
    def progress(name, done, total, failed):
        if done > 20:
            raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        simulate(make(), PRIOR, 400, workers=2, batch_size=2, progress=progress)
    assert len(simulate(make(), PRIOR, 10, workers=2)) == 10


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here")
def test_a_simulation_that_ends_the_callers_process_is_found_by_the_next_call(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    clean = simulate(make(), PRIOR, 40)
    culprit, store = int(clean.seeds[31]), Store(tmp_path / "store")

    def slow(theta, seed):
        import time

        time.sleep(0.01)
        return make([culprit])(theta, seed)

    slow.__module__ = "__main__"
    child = os.fork()
    if child == 0:
        simulate(slow, PRIOR, 40, store=store, batch_size=4)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    kept = store.done().tolist()
    assert 8 <= len(kept) < 31
    assert store.interrupted() == [28, 29, 30, 31]
    alone = []

    def in_another_process(pool, chunk, x_shape):
        alone.append(int(chunk.index[0]))
        died = chunk.failed([chunk.failure(0, "the process died")])
        yield Outcome(alone[-1], died) if alone[-1] == 31 else pool._call.run(chunk, x_shape)

    monkeypatch.setattr(Pool, "_alone", in_another_process)
    found = simulate(slow, PRIOR, 40, store=store, batch_size=4)
    assert alone == [28, 29, 30, 31]
    assert [failure.index for failure in found.failures] == [31]
    assert torch.equal(found.x, clean.x[[i for i in range(40) if i != 31]])
    assert store.interrupted() == []


def test_a_batch_that_a_kill_interrupted_is_run_again_as_a_whole_since_it_has_one_seed(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")

    def batch(theta, seed):
        return theta + torch.randn(len(theta), 2, generator=torch.Generator().manual_seed(seed))

    def in_another_process(pool, chunk, form):
        alone.append(chunk.index.tolist())
        yield pool._call.run(chunk, form)

    alone, store = [], Store(tmp_path / "store")
    clean = simulate(batch, PRIOR, 20, batched=True, batch_size=8)
    simulate(batch, PRIOR, 8, batched=True, batch_size=8, store=store)
    store.mark(range(8, 16))  # as the killed process did
    monkeypatch.setattr(Pool, "_alone", in_another_process)
    assert same(simulate(batch, PRIOR, 20, batched=True, batch_size=8, store=store), clean)
    assert alone == [list(range(8, 16))]


def test_a_cluster_that_loses_its_workers_for_good_is_an_error():
    workers = _Workers()
    workers.check(0, 0.0)
    workers.check(0, 10 * DASK_PATIENCE)  # a cluster that has not started yet
    workers.check(2, 11 * DASK_PATIENCE)
    workers.check(0, 11.9 * DASK_PATIENCE)
    with pytest.raises(RuntimeError, match="the Dask cluster has had no worker for 120 seconds"):
        workers.check(0, 12.1 * DASK_PATIENCE)


@pytest.mark.slow
@pytest.mark.parametrize(("batched", "batch_size"), [(False, 1), (True, 4)])
def test_a_simulation_that_kills_its_process_is_found_and_the_rest_goes_on(batched, batch_size, tmp_path):
    pytest.importorskip("pyarrow")
    clean = simulate(make(), PRIOR, 40, workers=1)
    culprits = [int(clean.seeds[31])]
    single = make(culprits)

    def batch(theta, seeds):
        import torch

        return torch.stack([single(row, int(seed)) for row, seed in zip(theta, seeds, strict=True)])

    batch.__module__ = "__main__"
    kept, simulator = str(tmp_path / "store"), batch if batched else single
    found = simulate(simulator, PRIOR, 40, workers=2, batched=batched, batch_size=batch_size, store=kept)
    (failure,) = found.failures
    assert (failure.index, failure.seed, failure.theta) == (31, culprits[0], tuple(clean.theta[31].tolist()))
    assert "the process died (TerminatedWorkerError" in failure.error
    rest = [i for i in range(40) if i != 31]
    assert found.index.tolist() == rest
    assert torch.equal(found.x, clean.x[rest])


@pytest.mark.slow
def test_a_dask_cluster_gives_what_one_process_gives_and_survives_a_death():
    dask, distributed = pytest.importorskip("dask"), pytest.importorskip("distributed")
    clean = simulate(make(), PRIOR, 60, workers=1)
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, protocol="tcp"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        assert client is not None
        with joblib.parallel_config(backend="dask"):
            assert same(simulate(make(), PRIOR, 60, batch_size=5), clean)
            found = simulate(make([int(clean.seeds[31])]), PRIOR, 40, batch_size=5)
    assert [f.index for f in found.failures] == [31]
    assert "KilledWorker" in found.failures[0].error
    assert found.index.tolist() == [i for i in range(40) if i != 31]
