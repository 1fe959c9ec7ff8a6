import math

import pytest
import torch
from torchmetrics.image.inception import InceptionScore

from openedm.metrics import inception_score


def probabilities(count: int, classes: int, sharpness: float = 2.0) -> torch.Tensor:
    return (sharpness * torch.randn(count, classes, generator=torch.Generator().manual_seed(0))).softmax(1)


def test_it_is_the_number_of_classes_for_sure_and_even_predictions_and_one_for_predictions_that_are_all_alike():
    assert inception_score(torch.eye(7).repeat(20, 1), num_splits=1).value == pytest.approx(7, rel=1e-12)
    assert inception_score(torch.eye(7)[:1].repeat(20, 1), num_splits=2).value == pytest.approx(1, rel=1e-12)
    assert inception_score(probabilities(1, 5).repeat(20, 1)).value == pytest.approx(1, rel=1e-6)


def test_half_of_two_classes_by_hand():
    p = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    mean = (0.55, 0.45)
    terms = [0.9 * math.log(0.9 / mean[0]) + 0.1 * math.log(0.1 / mean[1])]
    terms += [0.2 * math.log(0.2 / mean[0]) + 0.8 * math.log(0.8 / mean[1])]
    assert inception_score(p, num_splits=1).value == pytest.approx(math.exp(sum(terms) / 2), rel=1e-6)


@pytest.mark.filterwarnings("ignore:std")  # theirs, of one split
def test_it_is_torchmetrics_number():
    p = probabilities(300, 10)
    with pytest.warns(UserWarning, match="save all extracted features"):
        theirs = InceptionScore(feature=torch.nn.Identity(), splits=1)
    theirs.update(p.log())
    assert inception_score(p, num_splits=1).value == pytest.approx(float(theirs.compute()[0]), rel=1e-5)


def test_the_splits_depend_on_the_seed_alone():
    p = probabilities(100, 4)
    state = torch.get_rng_state()
    first, again, other = (inception_score(p, num_splits=5, seed=s) for s in (0, 0, 1))
    assert first == again != other
    assert first.std > 0
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="add up to 1"):
        inception_score(2 * p)
    with pytest.raises(ValueError, match="number of samples must be >= 10, got 5"):
        inception_score(p[:5])
