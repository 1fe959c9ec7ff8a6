"""What falls to each of several processes."""

import pytest

from openedm.training import share_of


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 21])
def test_all_processes_together_have_every_item_once_in_the_batches_that_one_process_has(count, processes):
    items = list(range(100, 100 + count))
    batches = [items[start : start + 3] for start in range(0, count, 3)]
    found = []
    for rank in range(processes):
        mine = share_of(items, 3, rank, processes)
        found += [mine[start : start + 3] for start in range(0, len(mine), 3)]
    assert sorted(found) == batches
