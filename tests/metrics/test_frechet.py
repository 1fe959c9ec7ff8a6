import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.image.fid import FrechetInceptionDistance

from openedm.metrics import Gaussian, GaussianStatistics, frechet, frechet_distance, gaussian

seeds = st.integers(0, 2**32 - 1)
dims = st.integers(1, 12)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def rotation(dim: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(normal(dim, dim, seed=seed))[0]


def random_gaussian(dim: int, seed: int, rank: int | None = None) -> Gaussian:
    values = torch.rand(dim, generator=generator(seed), dtype=torch.float64) + 0.1
    values[rank if rank is not None else dim :] = 0
    q = rotation(dim, seed)
    return Gaussian(normal(dim, seed=seed), (q * values) @ q.T, 100)


@settings(max_examples=40, deadline=None)
@given(dims, seeds, seeds)
def test_the_distance_is_that_of_scipys_matrix_square_root(dim, seed_a, seed_b):
    a, b = random_gaussian(dim, seed_a), random_gaussian(dim, seed_b)
    root = scipy.linalg.sqrtm((a.covariance @ b.covariance).numpy()).real
    expected = float((a.mean - b.mean).square().sum() + (a.covariance + b.covariance).trace() - 2 * root.trace())
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-6)


@settings(deadline=None)
@given(dims, seeds)
def test_for_commuting_covariances_it_is_the_distance_of_means_and_standard_deviations(dim, seed):
    q, means, deviations = rotation(dim, seed), normal(2, dim, seed=seed), normal(2, dim, seed=seed + 1).abs()
    a, b = (Gaussian(m, (q * s.square()) @ q.T, 9) for m, s in zip(means, deviations, strict=True))
    expected = float((means[0] - means[1]).square().sum() + (deviations[0] - deviations[1]).square().sum())
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(st.integers(2, 12), seeds, st.data())
def test_singular_covariances_give_the_finite_exact_value(dim, seed, data):
    rank = data.draw(st.integers(0, dim - 1))
    a = random_gaussian(dim, seed, rank)
    point = Gaussian(torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dim, dtype=torch.float64), 100)
    expected = float(a.mean.square().sum() + a.covariance.trace())
    assert frechet_distance(a, point) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12 * dim)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 12), st.integers(0, 10), seeds)
def test_the_smaller_the_eigenvalues_the_fewer_digits_they_have_and_no_fewer(dim, decades, seed):
    rotations = rotation(dim, seed), rotation(dim, seed + 1)
    values = 10.0 ** -torch.linspace(0, decades, dim, dtype=torch.float64)
    a, b = (Gaussian(torch.zeros(dim).double(), (q * values) @ q.T, 100) for q in rotations)
    roots = [q * values.sqrt() for q in rotations]
    expected = 2 * (values.sum() - torch.linalg.matrix_norm(roots[0].T @ roots[1], "nuc"))
    # A covariance is rounded by ε λ_max, the root of an eigenvalue λ by ε λ_max/(2 √λ).
    tolerance = 4 * dim * torch.finfo(torch.float64).eps * 10 ** (decades / 2)
    assert frechet_distance(a, b) == pytest.approx(float(expected), abs=max(tolerance, 1e-13))


def test_orthogonal_singular_covariances_have_no_cross_term():
    a = Gaussian(torch.zeros(2).double(), torch.diag(torch.tensor([3.0, 0.0])).double(), 9)
    b = Gaussian(torch.zeros(2).double(), torch.diag(torch.tensor([0.0, 5.0])).double(), 9)
    assert frechet_distance(a, b) == pytest.approx(8, rel=1e-12)


@settings(deadline=None)
@given(dims, seeds, seeds, seeds)
def test_the_distance_is_symmetric_and_blind_to_rotation_and_shift(dim, seed_a, seed_b, seed):
    a, b = random_gaussian(dim, seed_a), random_gaussian(dim, seed_b)
    q, shift = rotation(dim, seed), normal(dim, seed=seed)
    moved = [Gaussian(q @ g.mean + shift, q @ g.covariance @ q.T, g.count) for g in (a, b)]
    distance = frechet_distance(a, b)
    assert frechet_distance(b, a) == pytest.approx(distance, abs=1e-10)
    assert frechet_distance(*moved) == pytest.approx(distance, abs=1e-10)


@settings(deadline=None)
@given(dims, seeds)
def test_the_distance_from_itself_is_zero_and_never_negative(dim, seed):
    a = random_gaussian(dim, seed)
    assert 0 <= frechet_distance(a, a) < 1e-12 * dim


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) >= 2), seeds)
def test_batches_in_any_cut_give_the_mean_and_covariance_of_the_whole(sizes, seed):
    features = 100 + normal(sum(sizes), 3, seed=seed)
    streamed = GaussianStatistics(3)
    merged = GaussianStatistics(3)
    for batch in features.split(sizes):
        streamed.update(batch)
        part = GaussianStatistics(3)
        part.update(batch)
        merged.merge(part)
    for found in (streamed.finalize(), merged.finalize(), gaussian(features)):
        assert found.count == len(features)
        torch.testing.assert_close(found.mean, features.mean(0), rtol=1e-12, atol=0)
        torch.testing.assert_close(found.covariance, features.T.cov(), rtol=0, atol=1e-11)


def test_float32_features_are_accumulated_in_float64():
    features = torch.tensor([[2.0**12], [2.0**12 + 1]]).repeat(5000, 1)
    assert gaussian(features).covariance.item() == pytest.approx(0.25 * 10000 / 9999, rel=1e-9)


def test_what_was_finalized_does_not_change_later():
    statistics = GaussianStatistics(2)
    statistics.update(torch.eye(2))
    before = statistics.finalize()
    mean = before.mean.clone()
    statistics.update(torch.ones(5, 2))
    assert torch.equal(before.mean, mean)


def test_features_that_do_not_fit_are_refused():
    statistics = GaussianStatistics(2)
    with pytest.raises(ValueError, match="features must have 2 columns, got 3"):
        statistics.update(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="features must be finite, but 1 of 2 rows are not"):
        statistics.update(torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]))
    with pytest.raises(ValueError, match="other must have 2 features, got 3"):
        statistics.merge(GaussianStatistics(3))
    with pytest.raises(ValueError, match="at least 2 samples, got 0"):
        statistics.finalize()
    with pytest.raises(ValueError, match="dim must be >= 1"):
        GaussianStatistics(0)


def test_gaussians_that_cannot_be_compared_are_refused():
    a = random_gaussian(2, 0)
    with pytest.raises(ValueError, match="a and b must have as many features, got 2 and 3"):
        frechet_distance(a, random_gaussian(3, 0))
    with pytest.raises(ValueError, match="covariance of b must have no negative eigenvalue"):
        frechet_distance(a, Gaussian(a.mean, -a.covariance, 10))


class Flat(torch.nn.Module):
    num_features = 5

    def forward(self, x):
        return x.flatten(1)


def test_the_distance_is_torchmetrics_number_in_float64():
    x, y = normal(200, 5, seed=0), 0.5 + 1.5 * normal(300, 5, seed=1)
    theirs = FrechetInceptionDistance(feature=Flat(), input_img_size=(5, 1, 1)).set_dtype(torch.float64)
    for rows, real in ((x, False), (y, True)):
        theirs.update(rows.view(-1, 5, 1, 1), real=real)
    assert frechet_distance(gaussian(x), gaussian(y)) == pytest.approx(float(theirs.compute()), rel=1e-9)


def test_far_from_the_origin_it_keeps_its_digits_where_moments_about_zero_lose_them():
    x, y = normal(200, 5, seed=0), 1.5 * normal(300, 5, seed=1)
    near = frechet_distance(gaussian(x), gaussian(y))
    assert frechet_distance(gaussian(1e6 + x), gaussian(1e6 + y)) == pytest.approx(near, rel=1e-6)


@pytest.mark.parametrize(("count", "others"), [(10, 10), (10, 500), (40, 12)])
def test_fewer_samples_than_features_give_the_exact_value(count, others):
    dim = 64
    x, y = normal(count, dim, seed=0), 0.3 + normal(others, dim, seed=1)
    a, b = gaussian(x), gaussian(y)
    # tr (Σ_a Σ_b)^{1/2} is the nuclear norm of the product of the centred rows: no covariance, no square root.
    scale = ((count - 1) * (others - 1)) ** 0.5
    cross = torch.linalg.matrix_norm((x - x.mean(0)) @ (y - y.mean(0)).T, "nuc") / scale
    expected = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-10)
    assert frechet_distance(a, gaussian(x.flip(0))) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("dim", [64, 200])
def test_at_larger_sizes_it_agrees_with_scipy_to_one_in_a_million(dim):
    a, b = random_gaussian(dim, 1), random_gaussian(dim, 2)
    root = scipy.linalg.sqrtm((a.covariance @ b.covariance).numpy()).real
    expected = float((a.mean - b.mean).square().sum() + (a.covariance + b.covariance).trace() - 2 * root.trace())
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_two_images_are_too_few_for_an_interval_and_the_error_says_how_many_are_enough():
    singular = torch.full((3, 3), torch.nan, dtype=torch.float64)
    zero = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"at least about 10 .* num_bootstrap 0"):
        frechet._distance(zero, singular, zero, torch.eye(3, dtype=torch.float64), zero)


def test_covariances_whose_eigenvalues_do_not_converge_have_the_same_distance(monkeypatch):
    x, y = normal(40, 60, seed=0), normal(40, 60, seed=1)
    a, b = gaussian(x), gaussian(y)
    distance, error = frechet_distance(a, b), frechet.frechet_error(x, y, num=3)

    def fails(*arguments):
        raise torch.linalg.LinAlgError("failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    monkeypatch.setattr(torch.linalg, "eigvalsh", fails)
    assert frechet_distance(a, b) == pytest.approx(distance, rel=1e-10)
    assert frechet.frechet_error(x, y, num=3) == pytest.approx(error, rel=1e-6)
    with pytest.raises(ValueError, match="no negative eigenvalue"):
        frechet_distance(Gaussian(a.mean, -a.covariance, 40), b)
