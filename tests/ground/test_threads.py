"""The next item is made while the present one is used: one, in order, and no more. Torch uses as few as are asked."""

import threading

import pytest
import torch

from openedm.ground.threads import ahead, at_most_threads


def test_items_come_in_order_and_the_next_one_is_made_while_one_is_used() -> None:
    started, made = [threading.Event() for _ in range(5)], []

    def items():
        for i in range(4):
            started[i].set()
            made.append(i)
            yield i
        started[4].set()

    for i, item in enumerate(ahead(items())):
        assert item == i
        assert started[i + 1].wait(30)
        assert max(made) <= i + 1
    assert made == [0, 1, 2, 3]
    assert list(ahead([])) == []


def test_an_error_is_raised_in_its_place_and_what_is_left_is_not_made() -> None:
    def items():
        yield 1
        raise OSError("no such file")

    found = ahead(items())
    assert next(found) == 1
    with pytest.raises(OSError, match="no such file"):
        next(found)
    made = []
    rest = ahead(made.append(i) or i for i in range(100))
    next(rest)
    rest.close()
    assert len(made) <= 2


def test_the_number_of_threads_is_put_back_also_after_an_error() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with at_most_threads(1):
            assert torch.get_num_threads() == 1
            with at_most_threads(3):
                assert torch.get_num_threads() == 1
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with pytest.raises(KeyError), at_most_threads(1):
            raise KeyError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
