import pytest

from openedm.data import Digits
from openedm.metrics import Classifier, train_classifier


@pytest.fixture(scope="session")
def digits_classifier() -> Classifier:
    """Trained once on the training digits, as the demo does."""
    return train_classifier(Digits("train").load(), seed=0)
