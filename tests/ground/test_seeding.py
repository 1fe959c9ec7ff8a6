"""Derived seeds and generators."""

import random

import numpy as np
import torch

from openedm.ground.seeding import derive_seed, generator, global_generators_kept, seed_global_generators


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


def test_global_generators_go_on_as_before_after_a_block_that_seeds_them() -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(()))  # noqa: NPY002

    with global_generators_kept():
        following = draws()
        seed_global_generators(2**62 + 5)
        inside = draws()
        seed_global_generators(2**62 + 5)
        assert draws() == inside
    assert draws() == following
