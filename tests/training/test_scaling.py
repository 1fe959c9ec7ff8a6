"""The model of a step on many processes: its limits, and the numbers that can be written down."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openedm.training.scaling import GPUS, HOSTS, Link, Work, efficiency, step_seconds

FREE = Link(math.inf, 0.0)
works = st.builds(Work, st.integers(1, 10**9), st.integers(1, 100), st.integers(64, 4096), st.floats(1, 1e4))
links = st.builds(Link, st.floats(1e8, 1e12), st.floats(0, 1e-3))


@given(works, links, st.sampled_from([2, 8, 64]), st.booleans(), st.floats(0, 1))
def test_a_step_lies_between_free_traffic_and_none_hidden(work, link, count, sharded, hidden) -> None:
    seconds = step_seconds(work, link, count, sharded=sharded, hidden=hidden)
    share = work.batch / count / work.rate
    assert share <= seconds <= step_seconds(work, link, count, sharded=sharded)
    assert step_seconds(work, FREE, count, sharded=sharded) == pytest.approx(share)
    assert step_seconds(work, link, 1) == work.batch / work.rate
    assert 0 < efficiency(work, link, count, sharded=sharded, hidden=hidden) <= 1 + 1e-12


def test_traffic_is_what_a_ring_sends() -> None:
    work = Work(25 << 20, 7, 64, 1.0)  # 100 MB in 4 buckets of 25 MB, 1 s a sample
    assert step_seconds(work, Link(1e9, 0.0), 4) == pytest.approx(16 + 2 * 3 / 4 * 4 * (25 << 20) / 1e9)
    assert step_seconds(work, Link(math.inf, 1e-3), 4) == pytest.approx(16 + 2 * 3 * 4 * 1e-3)
    assert step_seconds(work, Link(1e9, 0.0), 4, sharded=True) == pytest.approx(16 + 3 * 3 / 4 * 4 * (25 << 20) / 1e9)
    assert step_seconds(work, Link(math.inf, 1e-3), 4, sharded=True) == pytest.approx(16 + 3 * 3 * 7 * 1e-3)
    slow = Link(1e7, 0.0)  # 15.7 s, of which 0.9 of the 10.7 s of the backward pass hide 9.6
    assert step_seconds(work, slow, 4, hidden=0.9) == pytest.approx(16 + 1.5 * 4 * (25 << 20) / 1e7 - 0.9 * 32 / 3)


def test_the_slowest_link_counts_and_assumptions_are_said() -> None:
    assert (GPUS.link(8), GPUS.link(9)) == (GPUS.near, GPUS.far)
    assert GPUS.describe() == (
        "200 GB/s and 3 µs among 8 devices of a machine, 25 GB/s and 10 µs a device among machines; traffic hides "
        "behind 90% of the backward pass"
    )
    assert HOSTS.describe() == "1.25 GB/s and 50 µs a device among machines; traffic does not hide"
