from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openedm.data import Chunks, Form, InMemory, MemoryImages, Shards, convert
from openedm.networks import DDPMpp
from openedm.training import Options
from openedm.training.loading import batch_indices, batches
from picture_files import encode, pixels


def chunked_indices(seed, chunks, start, size):
    return batch_indices(seed, sum(chunks.sizes), start, size, chunks)


CHUNKS = st.builds(
    Chunks,
    st.lists(st.integers(1, 9), min_size=1, max_size=12).map(tuple),
    window=st.integers(1, 40),
    lanes=st.integers(1, 6),
)


@given(CHUNKS, st.integers(0, 3), st.integers(0, 2**32))
def test_every_pass_takes_each_sample_once(chunks, passes, seed):
    length = sum(chunks.sizes)
    found = chunked_indices(seed, chunks, passes * length, length)
    assert sorted(found.tolist()) == list(range(length))


@given(CHUNKS, st.integers(1, 17), st.integers(0, 5))
def test_batches_do_not_depend_on_where_the_run_began(chunks, count, step):
    """Also where a batch lies across the end of a pass: as often as each sample, in all, as passes are over."""
    found = [chunked_indices(3, chunks, i * count, count) for i in range(step + 1)]
    assert torch.equal(chunked_indices(3, chunks, step * count, count), found[-1])
    counts = np.bincount(torch.cat(found).numpy(), minlength=sum(chunks.sizes))
    assert counts.max() - counts.min() <= 1


def test_rows_of_one_process_come_from_few_chunks():
    """40 chunks of 100, 8 lanes and a window of 800: at a time, a lane's 100 lie in two chunks."""
    chunks = Chunks((100,) * 40, window=800, lanes=8)
    for step in range(8):
        batch = chunked_indices(0, chunks, step * 64, 64)
        for rank in range(4):
            assert len(set((batch[16 * rank : 16 * (rank + 1)] // 100).tolist())) <= 2 * 2
    first, last = (
        {int(i) // 100 for step in range(12) for i in chunked_indices(0, chunks, 64 * step, 64)[rows]}
        for rows in (slice(16), slice(48, 64))
    )
    assert not first & last


def test_samples_are_shuffled_within_the_window_and_anew_in_each_pass():
    chunks = Chunks((50,) * 20, window=200, lanes=1)
    first, second = (chunked_indices(1, chunks, start, 1000) for start in (0, 1000))
    assert not torch.equal(first, second)
    assert len((first[:200] // 50).unique()) <= 9
    assert (first[:200] // 50).diff().ne(0).float().mean() > 0.5
    assert not torch.equal(first, chunked_indices(2, chunks, 0, 1000))


class Chunked(InMemory):
    def __init__(self, sizes, **options):
        super().__init__(torch.arange(float(sum(sizes)))[:, None])
        self.chunks = Chunks(sizes, **options)


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 1])
def test_the_union_over_processes_is_the_same_and_goes_on_where_it_stopped(processes, workers):
    dataset = Chunked((7, 30, 13, 20, 5, 25), window=24, lanes=6)

    def taken(rank, of, start=0, workers=0):
        loader = batches(dataset, Options(batch_size=12, workers=workers), start=start, rank=rank, processes=of)
        found = [x for x, _ in islice(loader, 12 - start // 12)]
        loader.close()
        return found

    whole = taken(0, 1)
    assert sorted(torch.cat(whole)[:96].flatten().tolist())[:3] == [0, 1, 2]
    parts = [taken(rank, processes, start=36, workers=workers) for rank in range(processes)]
    for step, batch in enumerate(whole[3:]):
        assert torch.equal(torch.cat([part[step] for part in parts]), batch)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": ()}, "number of chunks must be >= 1, got 0"),
        ({"sizes": (3, 0)}, "smallest of sizes must be >= 1, got 0"),
        ({"sizes": (3,), "window": 0}, "window must be >= 1, got 0"),
        ({"sizes": (3,), "lanes": 0}, "lanes must be >= 1, got 0"),
    ],
)
def test_chunks_refuse_numbers_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        Chunks(**arguments)


@pytest.fixture
def streamed(tmp_path):
    content = {f"{i}.png": encode(pixels(i)) for i in range(40)}
    convert(MemoryImages(content, [i % 3 for i in range(40)]), tmp_path / "shards", Form(size=8), per_shard=6)
    return Shards(str(tmp_path / "shards"), streaming=True, window=16, lanes=2).load()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_on_streamed_shards_goes_on_exactly_where_it_stopped(
    streamed, workers, trainer, state_of, differences, tmp_path
):
    tiny = DDPMpp(model_channels=8, channel_mult=(1,), num_blocks=1)
    options = {"dataset": streamed, "network": tiny, "validate_every": 0, "snapshot_every": 0}
    whole = trainer(**options)
    whole.fit()
    first = trainer(**options, run=tmp_path / "run")
    steps = iter(range(1, 9))
    first.fit(lambda: next(steps) == 3)
    second = trainer(**options, run=tmp_path / "run", workers=workers)
    second.resume()
    assert second.state.images == 48  # in the second pass over 40 images
    second.fit()
    assert differences(state_of(second), state_of(whole)) == []


def test_few_chunks_of_many_stand_for_all_where_data_are_judged():
    dataset = Chunked((10,) * 100)
    chosen = dataset.spread(64)
    assert len(chosen) == 64
    assert len({index // 10 for index in chosen}) == 32
    assert max(chosen) >= 960
    assert dataset.spread(1000) == sorted(dataset.spread(1000))
    assert len(dataset.spread(1000)) == 320
    assert Chunked((10,) * 20).spread(4) == [0, 50, 100, 150]
