"""The batched classifier two-sample test against scikit-learn's, and against scores that are known."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from torch import Tensor

from openedm.metrics import c2st


def normal(count: int, dim: int, seed: int) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def sklearn_c2st(samples: Tensor, reference: Tensor, seed: int, epochs: int) -> float:
    mean, std = reference.mean(0), reference.std(0)
    x = torch.cat([(reference - mean) / std, (samples - mean) / std]).numpy()
    y = np.repeat([0, 1], len(samples))
    width = 10 * x.shape[1]
    network = MLPClassifier((width, width), max_iter=epochs, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return float(cross_val_score(network, x, y, cv=KFold(5, shuffle=True, random_state=seed)).mean())


@pytest.mark.parametrize(("count", "dim", "seed", "epochs"), [(500, 2, 1, 1000), (500, 3, 4, 40), (230, 2, 1, 1000)])
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_scores_are_those_of_scikit_learn(count: int, dim: int, seed: int, epochs: int, shift: float) -> None:
    samples, reference = normal(count, dim, 1) + shift, 3 + 2 * normal(count, dim, 2)
    samples = 3 + 2 * samples
    found = c2st(samples, reference, seed=seed, max_epochs=epochs)
    # The same networks but for rounding: no more than a few of all points change sides.
    assert found == pytest.approx(sklearn_c2st(samples, reference, seed, epochs), abs=0.005)


def test_equal_distributions_score_a_half_and_disjoint_ones_one() -> None:
    reference = normal(2000, 2, 0)
    # The accuracy of a guess over 4,000 points has a standard deviation of 0.008.
    assert c2st(normal(2000, 2, 1), reference) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(4000))
    assert c2st(normal(2000, 2, 1) + 20, reference) == 1.0


def test_a_shift_scores_what_the_best_classifier_does() -> None:
    shift, count = 1.0, 3000
    samples = normal(count, 1, 1) + shift
    best = 0.5 * (1 + math.erf(shift / 2 / math.sqrt(2)))
    assert c2st(samples, normal(count, 1, 0)) == pytest.approx(best, abs=0.02)


def test_the_score_depends_on_the_seed_alone_and_not_on_units() -> None:
    torch.manual_seed(0)
    samples, reference = normal(300, 2, 1) + 0.3, normal(300, 2, 0)
    found = c2st(samples, reference)
    torch.manual_seed(5)
    assert c2st(samples, reference) == found
    assert c2st(samples.double(), reference.double()) == found
    assert c2st(1024 * samples, 1024 * reference) == found
    assert c2st(samples, reference, seed=2) != found


@pytest.mark.parametrize(
    ("samples", "reference", "options", "message"),
    [
        (normal(10, 2, 0) / 0, normal(10, 2, 0), {}, "samples must be finite, got NaN or infinity in 10 of 10 rows"),
        (normal(10, 2, 0), torch.full((10, 2), math.nan), {}, "reference must be finite"),
        (
            normal(10, 2, 0),
            normal(11, 2, 0),
            {},
            r"samples and reference must have one shape, .* \(10, 2\) and \(11, 2\)",
        ),
        (normal(10, 2, 0), torch.ones(10, 2), {}, "reference must vary in every column, got a constant column 0"),
        (normal(4, 2, 0), normal(4, 2, 0), {}, "samples must be at least as many as folds, 5, got 4"),
        (normal(9, 2, 0), normal(9, 2, 0), {"folds": 1}, "folds must be >= 2, got 1"),
        (normal(9, 2, 0)[0], normal(9, 2, 0), {}, r"samples must have the shape \(n, d\), got \(2,\)"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(
    samples: Tensor, reference: Tensor, options: dict[str, int], message: str, without_type_checker: None
) -> None:
    with pytest.raises(ValueError, match=message):
        c2st(samples, reference, **options)
