"""Freed memory is used again instead of being fetched from the system for every tensor."""

import platform

import pytest
import torch

from openedm.ground.devices import keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators keep or return memory by other rules")
def test_tensors_that_come_and_go_cost_no_new_pages() -> None:
    import resource  # of Unix alone

    keep_freed_memory()
    size, rounds = 1 << 20, 50
    for _ in range(10):
        torch.ones(size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        torch.ones(size)
    pages = rounds * size * 4 // resource.getpagesize()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < pages / 10
