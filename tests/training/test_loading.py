import os
import signal
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openedm.data import InMemory
from openedm.training import Options, loading
from openedm.training.loading import batch_indices, batches, rows_of


def first(count, dataset, options, **place):
    loader = batches(dataset, options, **({"start": 0, "rank": 0, "processes": 1} | place))
    found = list(islice(loader, count))
    loader.close()
    return found


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_processes_and_rounds_divide_a_batch_without_gap_or_overlap(processes, accumulate, share):
    options = Options(batch_size=processes * accumulate * share, accumulate=accumulate)
    rows = [rows_of(r, rank, processes, options) for r in range(accumulate) for rank in range(processes)]
    covered = [i for row in rows for i in range(options.batch_size)[row]]
    assert sorted(covered) == list(range(options.batch_size))
    assert {row.stop - row.start for row in rows} == {share}


def test_processes_and_rounds_together_see_the_batches_of_one_process(vectors):
    together = first(3, vectors, Options(batch_size=12))
    options = Options(batch_size=12, accumulate=2)
    parts = [first(6, vectors, options, rank=rank, processes=2) for rank in range(2)]
    for step, (x, labels) in enumerate(together):
        rounds = [parts[rank][2 * step + round_] for round_ in range(2) for rank in range(2)]
        assert torch.equal(torch.cat([r[0] for r in rounds]), x)
        assert torch.equal(torch.cat([r[1] for r in rounds]), labels)


def test_a_run_that_starts_later_sees_what_the_whole_run_sees_from_there(vectors):
    whole = first(10, vectors, Options(batch_size=20))
    later = first(4, vectors, Options(batch_size=20), start=120)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole[6:], later, strict=True))


@pytest.mark.parametrize("labelled", [True, False])
def test_worker_processes_fetch_the_same_batches(vectors, labelled):
    x, labels = vectors.fetch(range(len(vectors)))
    dataset = InMemory(x, labels if labelled else None)
    here = first(4, dataset, Options(batch_size=12))
    there = first(4, dataset, Options(batch_size=12, workers=2))
    for mine, theirs in zip(here, there, strict=True):
        assert torch.equal(mine[0], theirs[0])
        assert torch.equal(mine[1], theirs[1]) if labelled else theirs[1] is None


class Jittered(InMemory):
    """Samples with noise of torch's global generator, as a user's augmentation draws it."""

    def fetch(self, indices):
        x, labels = super().fetch(indices)
        return x + torch.randn(x.shape), labels


@pytest.mark.parametrize("workers", [0, 1])
def test_a_dataset_that_draws_random_numbers_draws_the_same_when_a_run_starts_later(vectors, workers):
    x, labels = vectors.fetch(range(len(vectors)))
    whole = first(6, Jittered(x, labels), Options(batch_size=20))
    later = first(2, Jittered(x, labels), Options(batch_size=20, workers=workers), start=80)
    assert not torch.equal(whole[4][0], vectors.fetch(range(20))[0])
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole[4:], later, strict=True))


@given(st.integers(0, 2**32), st.integers(1, 50), st.integers(0, 5))
def test_each_pass_over_the_data_sees_every_sample_once(seed, length, epoch):
    seen = batch_indices(seed, length, epoch * length, length)
    assert sorted(seen.tolist()) == list(range(length))


@given(st.integers(1, 20), st.integers(0, 100), st.lists(st.integers(1, 30), min_size=1, max_size=5))
def test_the_order_of_the_data_does_not_depend_on_how_it_is_cut_into_batches(length, start, sizes):
    whole = batch_indices(3, length, start, sum(sizes)).tolist()
    cut = []
    for size in sizes:
        cut += batch_indices(3, length, start + len(cut), size).tolist()
    assert cut == whole


def test_passes_and_seeds_have_orders_of_their_own():
    orders = {tuple(batch_indices(seed, 20, 20 * epoch, 20).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_worker_processes_outlive_the_signals_that_stop_a_run_and_end_a_while_after_sigterm(monkeypatch):
    monkeypatch.setattr(loading, "SECONDS_TO_STOP", 1)
    ended = []
    for signals in ([signal.SIGINT, signal.SIGHUP], [signal.SIGTERM, signal.SIGTERM]):
        if (child := os.fork()) == 0:
            loading._ignore_signals(0)
            for number in signals:
                os.kill(os.getpid(), number)
            os._exit(7)
        ended.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    assert ended == [7, -signal.SIGTERM]
