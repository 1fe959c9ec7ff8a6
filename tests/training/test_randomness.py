import torch
from hypothesis import given
from hypothesis import strategies as st

from openedm.ground.seeding import derive_seed, generator
from openedm.training.randomness import batch_indices


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


def test_a_derived_seed_depends_on_the_seed_and_on_every_key():
    keys = [(s, k, i, r) for s in (0, 1, 2**40) for k in range(5) for i in (0, 1, 10**6) for r in (0, 1)]
    assert len({derive_seed(*key) for key in keys}) == len(keys)
    assert all(0 <= derive_seed(*key) < 2**63 for key in keys)


def test_generators_of_equal_keys_draw_equal_numbers_and_leave_the_global_state_alone():
    before = torch.get_rng_state()
    one, two, other = (generator(torch.device("cpu"), 7, *key) for key in ((1, 5), (1, 5), (1, 6)))
    drawn = torch.rand(8, generator=one)
    assert torch.equal(drawn, torch.rand(8, generator=two))
    assert not torch.equal(drawn, torch.rand(8, generator=other))
    assert torch.equal(torch.get_rng_state(), before)
