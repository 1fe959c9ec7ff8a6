from collections.abc import Iterator

import pytest
import torch

from openedm.data import Digits
from openedm.metrics import Classifier, train_classifier


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks here are so small that threads which wait for a core in use elsewhere cost far more than they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def digits_classifier() -> Classifier:
    """Trained once on the training digits, as the demo does."""
    return train_classifier(Digits("train").load(), seed=0)
