import math

import pytest
import torch

from openedm.metrics import frechet_distance, frechet_error, gaussian, inception_score
from openedm.metrics.frechet import _distance, _resampled
from openedm.metrics.inception_score import inception_score_error
from openedm.metrics.neighbours import mean_error


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_error_is_the_spread_that_fresh_samples_show():
    pairs = [(0.4 + normal(200, 6, seed=2 * i), normal(300, 6, seed=2 * i + 1)) for i in range(150)]
    spread = float(torch.tensor([frechet_distance(gaussian(x), gaussian(y)) for x, y in pairs]).std())
    errors = [frechet_error(x, y, seed=i) for i, (x, y) in enumerate(pairs[:10])]
    # 150 values know a spread to 6 %, ten runs of 50 replicates to 3 %; near the floor it would be up to twice as wide.
    assert 0.85 < sum(errors) / len(errors) / spread < 1.3


def test_a_replicate_is_the_distance_of_the_repeated_rows():
    x, y = normal(30, 4, seed=0), 1 + normal(40, 4, seed=1)
    counts = torch.randint(30, (30,), generator=torch.Generator().manual_seed(3)).bincount(minlength=30)
    repeated = gaussian(x.repeat_interleave(counts, 0))
    mean, covariance = _resampled(x - x.mean(0), torch.Generator().manual_seed(3))
    torch.testing.assert_close(mean + x.mean(0), repeated.mean)
    torch.testing.assert_close(covariance, repeated.covariance)
    other = gaussian(y)
    found = _distance(mean, covariance, torch.zeros(4).double(), other.covariance, x.mean(0) - y.mean(0))
    assert found == pytest.approx(frechet_distance(repeated, other), rel=1e-6)


def test_singular_and_constant_features_have_an_error_too():
    assert frechet_error(normal(5, 12, seed=0), normal(6, 12, seed=1)) > 0
    assert frechet_error(torch.zeros(5, 2), torch.ones(5, 2)) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="num must be >= 2, got 1"):
        frechet_error(torch.zeros(5, 2), torch.ones(5, 2), num=1)


def test_the_error_of_a_mean_is_the_bootstraps_limit():
    rows = normal(50, seed=0)
    draws = torch.randint(50, (20_000, 50), generator=torch.Generator().manual_seed(1))
    assert mean_error(rows) == pytest.approx(float(rows[draws].mean(1).std()), rel=0.03)
    assert mean_error(torch.full((8,), 3.0)) == 0
    # A share of 0 or 1 is not known exactly: Agresti and Coull's error, as if two more counted and two did not.
    share, count = 10 / 12, 12
    for value in (True, False):
        assert mean_error(torch.full((8,), value)) == pytest.approx(math.sqrt(share * (1 - share) / count), rel=1e-12)


def test_the_inception_scores_error_is_the_spread_of_its_resamples():
    p = (2 * normal(80, 5, seed=0)).softmax(1)
    draws = torch.randint(80, (500, 80), generator=torch.Generator().manual_seed(1))
    spread = torch.tensor([inception_score(p[d], num_splits=1).value for d in draws]).std()
    assert inception_score_error(p, num=500) == pytest.approx(float(spread), rel=0.15)
