"""Exact denoisers against brute force, quadrature, autograd and independent integration."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad, solve_ivp
from torch import Tensor
from torch.distributions import MultivariateNormal

from openedm.exact import ExactDataset, GaussianMixture
from openedm.likelihood import ExactTrace
from properties.strategies import EPS, log_uniform, sigmas


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def eye(dim: int) -> Tensor:
    return torch.eye(dim, dtype=torch.float64)


def random_mixture(components: int, dim: int, seed: int) -> GaussianMixture:
    root = normal(components, dim, dim, seed=seed)
    covariances = 0.3 * root @ root.mT + 0.01 * eye(dim)
    return GaussianMixture(normal(components, seed=seed).exp(), normal(components, dim, seed=seed + 1), covariances)


def covariances_of(mixture: GaussianMixture) -> Tensor:
    return torch.einsum("knm,km,kjm->knj", mixture.eigenvectors, mixture.eigenvalues, mixture.eigenvectors)


MIXTURES = st.builds(random_mixture, st.integers(1, 4), st.integers(1, 3), st.integers(0, 1000))
GAUSSIANS = st.builds(random_mixture, st.just(1), st.integers(1, 3), st.integers(0, 1000))


class TestDataset:
    """D = Σ_i softmax_i(−‖x − y_i‖²/(2σ²)) y_i."""

    @given(log_uniform(0.05, 100.0), st.integers(1, 12), st.integers(1, 5), st.integers(0, 100))
    def test_it_equals_brute_force(self, sigma: float, count: int, batch: int, seed: int) -> None:
        data, x = normal(count, 2, 2, seed=seed), normal(batch, 2, 2, seed=seed + 1) * (1 + sigma)
        denoised = ExactDataset(data)(x, sigma)
        for i in range(batch):
            logits = [-float((x[i] - y).square().sum()) / (2 * sigma**2) for y in data]
            weights = [math.exp(logit - max(logits)) for logit in logits]
            expected = sum(w * y for w, y in zip(weights, data, strict=True)) / sum(weights)
            # A logit is rounded relative to its size, and that is the error of its weight.
            tolerance = 16 * EPS * (count + max(map(abs, logits))) * float(data.abs().max())
            torch.testing.assert_close(denoised[i], expected, rtol=0, atol=tolerance)

    @given(st.integers(1, 30), log_uniform(0.01, 10.0), st.integers(0, 100))
    def test_the_size_of_a_chunk_changes_nothing(self, chunk: int, sigma: float, seed: int) -> None:
        data, labels = normal(25, 3, seed=seed), torch.arange(25) % 4
        x, condition = normal(6, 3, seed=seed + 1), torch.tensor([-1, 0, 1, 2, 3, 3])
        whole, parts = ExactDataset(data, labels), ExactDataset(data, labels, chunk=chunk)
        for given_condition in (None, condition):
            one, other = whole(x, sigma, given_condition), parts(x, sigma, given_condition)
            torch.testing.assert_close(one, other, rtol=0, atol=64 * EPS * float(data.abs().max()))

    @given(st.integers(0, 100))
    def test_it_memorises_as_the_noise_vanishes(self, seed: int) -> None:
        data, x = normal(10, 3, seed=seed), normal(5, 3, seed=seed + 1)
        distances = (x[:, None] - data).square().sum(-1)
        nearest, second = distances.sort(dim=1).values[:, :2].T
        sigma = 0.1 * float((second - nearest).min().sqrt())  # The others then weigh at most 9 e^{−50}.
        torch.testing.assert_close(
            ExactDataset(data)(x, sigma),
            data[distances.argmin(1)],
            rtol=0,
            atol=9 * math.exp(-50) * 2 * float(data.abs().max()),
        )
        assert torch.equal(ExactDataset(data)(x, 1e-100), data[distances.argmin(1)])

    @given(log_uniform(0.002, 80.0), st.integers(17, 60), st.sampled_from([0.0, 300.0]), st.integers(0, 100))
    def test_of_many_features_it_has_twelve_digits_at_any_noise_level(
        self, sigma: float, features: int, offset: float, seed: int
    ) -> None:
        data = offset + 0.5 * normal(40, features, seed=seed)
        data[20:] = data[:20] + 3 * sigma / math.sqrt(features) * normal(20, features, seed=seed + 1)  # in reach
        x = data[:6] + sigma * normal(6, features, seed=seed + 2)
        wide = [values.numpy().astype(np.longdouble) for values in (data, x)]
        logits = -((wide[1][:, None] - wide[0]) ** 2).sum(-1) / (2 * np.longdouble(sigma) ** 2)
        weights = np.exp(logits - logits.max(1, keepdims=True))
        expected = torch.from_numpy((weights @ wide[0] / weights.sum(1, keepdims=True)).astype(np.float64))
        spread = float((data - data.mean(0)).abs().max())
        for labels, chunk in ((None, 8192), (torch.zeros(40, dtype=torch.int64), 7)):
            denoiser = ExactDataset(data, labels, chunk=chunk)
            condition = None if labels is None else torch.zeros(6, dtype=torch.int64)
            found = denoiser(x, sigma, condition)
            torch.testing.assert_close(found, expected, rtol=4 * EPS, atol=2e-12 * spread)
            alone = torch.cat([denoiser(row[None], sigma, None if labels is None else condition[:1]) for row in x])
            torch.testing.assert_close(alone, found, rtol=4 * EPS, atol=2e-12 * spread)
        single = ExactDataset(data, dtype=torch.float32)(x, sigma)
        torch.testing.assert_close(single, expected, rtol=2e-7, atol=1e-3 * spread)

    @pytest.mark.parametrize("sigma", [1e-4, 0.8])
    def test_of_many_features_it_is_differentiable_by_single_vectors_and_by_many(self, sigma: float) -> None:
        data, labels = normal(9, 20), torch.arange(9) % 3
        data[3:6] = data[:3] + sigma / 5 * normal(3, 20, seed=2)
        denoiser = ExactDataset(data, labels, chunk=2)
        x = data[:3] + sigma * normal(3, 20, seed=1)
        level, classes = torch.tensor(sigma, dtype=torch.float64), torch.tensor([0, 1, -1])
        for condition in (None, classes):
            denoised = partial(denoiser, sigma=level, condition=condition)
            step = 1e-4 * sigma
            traces = sum(
                (denoised(x + step * unit) - denoised(x - step * unit))[:, i] / (2 * step)
                for i, unit in enumerate(eye(20))
            )
            for chunk in (1, 20):
                found = ExactTrace(chunk)(denoised, x, None)[1][:, 0]
                torch.testing.assert_close(found, traces, rtol=1e-5, atol=1e-6)
            (pulled,) = torch.func.vjp(denoised, x)[1](torch.ones_like(x))
            leaf = x.clone().requires_grad_()
            torch.testing.assert_close(pulled, torch.autograd.grad(denoised(leaf).sum(), leaf)[0])

    @given(log_uniform(1e3, 1e8), st.integers(0, 100))
    def test_it_tends_to_the_mean_as_the_noise_grows(self, sigma: float, seed: int) -> None:
        data, x = normal(10, 3, seed=seed), normal(5, 3, seed=seed + 1)
        # Logits differ by less than δ = max‖x − y‖²/(2σ²), so weights differ from 1/n by less than about 2δ of it.
        spread = float((x[:, None] - data).square().sum(-1).max()) / (2 * sigma**2)
        tolerance = (4 * spread + 16 * EPS) * float(data.abs().max())
        denoised = ExactDataset(data)(x, sigma)
        torch.testing.assert_close(denoised, data.mean(0).expand(5, 3), rtol=0, atol=tolerance)

    @given(log_uniform(0.05, 20.0), st.integers(0, 100))
    def test_a_class_selects_its_samples(self, sigma: float, seed: int) -> None:
        data, labels = normal(12, 3, seed=seed), torch.tensor([0, 1, 2] * 4)
        x = normal(4, 3, seed=seed + 1)
        together = ExactDataset(data, labels)(x, sigma, torch.tensor([0, 1, 2, -1]))
        parts = [data[labels == 0], data[labels == 1], data[labels == 2], data]
        alone = torch.cat([ExactDataset(part)(x[i : i + 1], sigma) for i, part in enumerate(parts)])
        torch.testing.assert_close(together, alone, rtol=0, atol=64 * EPS * float(data.abs().max()))

    @given(log_uniform(0.1, 10.0), st.integers(0, 100))
    def test_its_score_is_the_gradient_of_the_log_density(self, sigma: float, seed: int) -> None:
        data, x = normal(8, 2, seed=seed), normal(3, 2, seed=seed + 1).requires_grad_()
        logits = -(x[:, None] - data).square().sum(-1) / (2 * sigma**2)
        (gradient,) = torch.autograd.grad(logits.logsumexp(1).sum(), x)
        tolerance = 64 * EPS * (1 + float(logits.detach().abs().max())) * 5 / sigma**2
        score = ExactDataset(data).score(x.detach(), sigma)
        torch.testing.assert_close(score, gradient, rtol=0, atol=tolerance)

    def test_it_is_differentiable(self) -> None:
        data, labels = normal(9, 2), torch.arange(9) % 3
        denoiser = ExactDataset(data, labels, chunk=2)
        x = normal(3, 2, seed=1).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: denoiser(x, 0.8), x)
        assert torch.autograd.gradcheck(lambda x: denoiser(x, 0.8, torch.tensor([0, 1, 2])), x)

    @given(sigmas(0.01, 10.0), st.integers(0, 100))
    def test_a_mixture_of_narrow_gaussians_tends_to_it(self, sigma: float, seed: int) -> None:
        data, x = normal(6, 2, seed=seed), normal(4, 2, seed=seed + 1)
        points = GaussianMixture(torch.ones(6), data, torch.zeros(6, 2, 2))
        size = float((x[:, None] - data).square().sum(-1).max()) / (2 * sigma**2)
        tolerance = 64 * EPS * (1 + size) * float(data.abs().max())
        torch.testing.assert_close(points(x, sigma), ExactDataset(data)(x, sigma), rtol=0, atol=tolerance)

    def test_a_class_that_the_data_lacks_is_refused(self) -> None:
        denoiser = ExactDataset(normal(4, 2), torch.tensor([0, 2, 0, 2]), num_classes=5)
        with pytest.raises(ValueError, match=r"condition must be -1 or classes that the data has, got \[1, 4\]"):
            denoiser(normal(4, 2), 1.0, torch.tensor([4, 1, 2, -1]))

    def test_a_condition_other_than_one_class_a_sample_is_refused(self) -> None:
        denoiser = ExactDataset(normal(3, 2), torch.tensor([0, 1, 2]))
        with pytest.raises(ValueError, match=r"condition must hold one class a sample, shape \(batch,\), got \(3, 3\)"):
            denoiser(normal(3, 2), 1.0, torch.eye(3))

    def test_it_knows_its_shape_and_classes(self) -> None:
        denoiser = ExactDataset(normal(4, 1, 2, 3), torch.tensor([0, 2, 1, 0]))
        assert (denoiser.event_shape, denoiser.num_classes) == ((1, 2, 3), 3)
        assert ExactDataset(normal(2, 3), torch.tensor([0, 1]), num_classes=5).num_classes == 5
        assert ExactDataset(normal(2, 3)).num_classes == 0

    def test_values_that_do_not_fit_are_named(self) -> None:
        with pytest.raises(ValueError, match=r"with at least one sample, got shape \(0, 2\)"):
            ExactDataset(torch.zeros(0, 2))
        with pytest.raises(ValueError, match=r"data must be finite, got nan"):
            ExactDataset(torch.tensor([[0.0, math.nan]]))
        with pytest.raises(ValueError, match=r"dtype must be one of torch.float64, torch.float32, got torch.float16"):
            ExactDataset(normal(2, 2), dtype=torch.float16)
        with pytest.raises(ValueError, match=r"chunk must be >= 1, got 0"):
            ExactDataset(normal(2, 2), chunk=0)
        with pytest.raises(ValueError, match=r"labels must be >= 0, got -1"):
            ExactDataset(normal(2, 2), torch.tensor([0, -1]))
        with pytest.raises(ValueError, match=r"num_classes must be >= 4, got 2"):
            ExactDataset(normal(2, 2), torch.tensor([0, 3]), num_classes=2)
        with pytest.raises(ValueError, match=r"num_classes has no effect without labels and must be None, got 3"):
            ExactDataset(normal(2, 2), num_classes=3)
        with pytest.raises(ValueError, match=r"condition must be None: this exact denoiser has no labels"):
            ExactDataset(normal(2, 2))(normal(1, 2), 1.0, torch.tensor([0]))


class TestMixture:
    """Densities, denoisers, scores, samples and trajectories of Gaussian mixtures."""

    @given(MIXTURES, sigmas(0.05, 20.0))
    def test_its_density_is_that_of_the_noisy_components(self, mixture: GaussianMixture, sigma: float) -> None:
        dim = mixture.means.shape[1]
        x = normal(5, dim) * (1 + sigma)
        noisy = covariances_of(mixture) + sigma**2 * eye(dim)
        components = MultivariateNormal(mixture.means, noisy).log_prob(x[:, None])
        expected = (components + mixture.weights.log()).logsumexp(-1)
        size = float(components.abs().max() * torch.linalg.cond(noisy).max())
        torch.testing.assert_close(mixture.log_prob(x, sigma), expected, rtol=0, atol=64 * EPS * (1 + size))

    def test_its_density_integrates_to_one(self) -> None:
        mixture = random_mixture(3, 1, 5)
        total, error = quad(lambda x: math.exp(mixture.log_prob(torch.tensor([[x]]).double(), 0.3).item()), -12, 12)
        assert total == pytest.approx(1, abs=10 * error + 1e-12)

    @given(st.integers(1, 4), st.integers(0, 50), sigmas(0.1, 5.0), st.floats(-3.0, 3.0))
    def test_it_is_the_posterior_mean(self, components: int, seed: int, sigma: float, x: float) -> None:
        mixture = random_mixture(components, 1, seed)
        # E[y | x] = ∫ y p(y) N(x; y, σ²) dy / ∫ p(y) N(x; y, σ²) dy by the trapezoidal rule, whose error on Gaussians
        # of width s ≥ 0.07 is e^{−2 (π s/h)²} < 1e-16.
        y = torch.arange(-30, 30, 0.02, dtype=torch.float64)
        log_joint = mixture.log_prob(y[:, None]) - (x - y).square() / (2 * sigma**2)
        expected = float((log_joint.softmax(0) * y).sum())
        denoised = float(mixture(torch.tensor([[x]], dtype=torch.float64), sigma))
        assert denoised == pytest.approx(expected, rel=0, abs=1e-11)

    @given(MIXTURES, sigmas(0.05, 20.0), st.integers(0, 100))
    def test_its_score_is_the_gradient_of_its_log_density(
        self, mixture: GaussianMixture, sigma: float, seed: int
    ) -> None:
        x = (normal(4, mixture.means.shape[1], seed=seed) * (1 + sigma)).requires_grad_()
        (gradient,) = torch.autograd.grad(mixture.log_prob(x, sigma).sum(), x)
        # A responsibility is as wrong as its log joint is rounded; D − x cancels before σ² divides it.
        size = 1 + float((x.detach()[:, None] - mixture.means).square().sum(-1).max()) / sigma**2
        tolerance = 64 * EPS * size * (1 + float(x.detach().abs().max())) * (1 + 1 / sigma**2)
        torch.testing.assert_close(mixture.score(x, sigma).detach(), gradient, rtol=0, atol=tolerance)

    @given(GAUSSIANS, sigmas(0.05, 20.0))
    def test_one_gaussian_shrinks_towards_its_mean(self, gaussian: GaussianMixture, sigma: float) -> None:
        dim = gaussian.means.shape[1]
        x = normal(4, dim)
        covariance = covariances_of(gaussian)[0]
        gain = torch.linalg.solve(covariance + sigma**2 * eye(dim), covariance)
        expected = gaussian.means + (x - gaussian.means) @ gain
        condition = float(torch.linalg.cond(covariance + sigma**2 * eye(dim)))
        torch.testing.assert_close(gaussian(x, sigma), expected, rtol=0, atol=64 * EPS * condition * 5)

    @pytest.mark.parametrize("sigma", [0.0, 0.7])
    def test_its_samples_have_its_moments(self, sigma: float) -> None:
        mixture, count = random_mixture(3, 3, 11), 40_000  # In two dimensions U and Uᵀ may be the same.
        samples = mixture.sample(count, torch.Generator().manual_seed(0), sigma)
        weights, means = mixture.weights, mixture.means
        mean = weights @ means
        second = torch.einsum("k,knm->nm", weights, covariances_of(mixture) + means[:, :, None] * means[:, None, :])
        centred = samples - mean
        # The error of a mean is its standard deviation over √n, of the numbers themselves and of their products.
        error = samples.std(0) / math.sqrt(count)
        assert bool(((samples.mean(0) - mean).abs() < 5 * error).all())
        products = centred[:, :, None] * centred[:, None, :]
        expected = second - mean[:, None] * mean + sigma**2 * eye(3)
        assert bool(((products.mean(0) - expected).abs() < 5 * products.std(0) / math.sqrt(count)).all())

    def test_its_samples_come_from_the_components_by_weight(self) -> None:
        mixture, count = GaussianMixture([1.0, 3.0], [[-10.0], [10.0]], [[[1.0]], [[1.0]]]), 10_000
        share = float((mixture.sample(count, torch.Generator().manual_seed(0)) > 0).double().mean())
        assert share == pytest.approx(0.75, abs=5 * math.sqrt(0.75 * 0.25 / count))

    def test_the_same_generator_draws_the_same_samples(self) -> None:
        mixture = random_mixture(2, 2, 0)
        one, other, third = (mixture.sample(5, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
        assert torch.equal(one, other)
        assert not torch.equal(one, third)

    @settings(max_examples=6)
    @given(GAUSSIANS, sigmas(0.1, 5.0), sigmas(0.1, 5.0))
    def test_the_ode_of_a_gaussian_is_solved(self, gaussian: GaussianMixture, sigma: float, sigma_to: float) -> None:
        x = normal(1, gaussian.means.shape[1]) * (1 + sigma)

        def slope(level: float, x: np.ndarray) -> Any:
            point = torch.from_numpy(x)[None]
            return ((point - gaussian(point, level)) / level)[0].numpy()

        numeric = solve_ivp(slope, (sigma, sigma_to), x[0].numpy(), method="DOP853", rtol=1e-10, atol=1e-12).y[:, -1]
        solved = gaussian.ode_solution(x, sigma, sigma_to)[0].numpy()
        # Each of at most a hundred steps errs by the integrator's tolerance, which the flow then magnifies.
        magnified = 100 * max(1.0, sigma_to / sigma)
        np.testing.assert_allclose(solved, numeric, rtol=0, atol=magnified * (1e-10 * float(x.abs().max()) + 1e-12))

    @pytest.mark.parametrize("sigma_to", [-1.0, math.nan, math.inf])
    def test_the_ode_of_a_gaussian_refuses_what_is_no_noise_level(self, sigma_to: float) -> None:
        gaussian = GaussianMixture([1.0], [[0.0]], [[[1.0]]])
        with pytest.raises(ValueError, match=r"sigma_to must be .*, got"):
            gaussian.ode_solution(torch.ones(1, 1), 1.0, sigma_to)

    @given(GAUSSIANS, sigmas(0.01, 50.0), sigmas(0.01, 50.0), sigmas(0.01, 50.0))
    def test_the_flow_of_a_gaussian_is_a_group(self, gaussian: GaussianMixture, a: float, b: float, c: float) -> None:
        x = normal(3, gaussian.means.shape[1])
        two_steps = gaussian.ode_solution(gaussian.ode_solution(x, a, b), b, c)
        # Roundings at the size of x, then magnified by the flow from a to b and from b to c.
        size = float((x - gaussian.means).abs().max() + gaussian.means.abs().max())
        magnified = max(1.0, b / a) * max(1.0, c / b)
        tolerance = 64 * EPS * size * magnified
        torch.testing.assert_close(two_steps, gaussian.ode_solution(x, a, c), rtol=0, atol=tolerance)
        torch.testing.assert_close(gaussian.ode_solution(x, a, a), x, rtol=0, atol=tolerance)

    def test_the_flow_carries_one_marginal_to_another(self) -> None:
        gaussian = random_mixture(1, 2, 3)

        def mahalanobis(x: Tensor, sigma: float) -> Tensor:
            centred = x - gaussian.means
            return (centred.T * torch.linalg.solve(covariances_of(gaussian)[0] + sigma**2 * eye(2), centred.T)).sum(0)

        x = normal(4, 2)
        moved = gaussian.ode_solution(x, 5.0, 0.5)
        torch.testing.assert_close(mahalanobis(moved, 0.5), mahalanobis(x, 5.0), rtol=1e-12, atol=0)

    def test_values_that_do_not_fit_are_named(self) -> None:
        unit = [[1.0, 0.0], [0.0, 1.0]]
        with pytest.raises(
            ValueError, match=r"must have shapes \(k,\), \(k, n\), \(k, n, n\), got \(2,\), \(1, 2\), \(1,"
        ):
            GaussianMixture([1.0, 1.0], [[0.0, 0.0]], [unit])
        with pytest.raises(ValueError, match=r"weights must all be > 0, got \[0.0\]"):
            GaussianMixture([0.0], [[0.0, 0.0]], [unit])
        with pytest.raises(ValueError, match=r"weights must be finite, got inf"):
            GaussianMixture([math.inf], [[0.0, 0.0]], [unit])
        with pytest.raises(ValueError, match=r"means must be finite, got nan"):
            GaussianMixture([1.0], [[0.0, math.nan]], [unit])
        with pytest.raises(ValueError, match=r"covariances must be symmetric"):
            GaussianMixture([1.0], [[0.0, 0.0]], [[[1.0, 0.5], [0.0, 1.0]]])
        with pytest.raises(ValueError, match=r"covariances must be positive semi-definite, got eigenvalue -1"):
            GaussianMixture([1.0], [[0.0, 0.0]], [[[0.0, 1.0], [1.0, 0.0]]])
        with pytest.raises(ValueError, match=r"condition must be None: a Gaussian mixture is unconditional"):
            GaussianMixture([1.0], [[0.0, 0.0]], [unit])(torch.zeros(1, 2), 1.0, torch.zeros(1))
        with pytest.raises(ValueError, match=r"ode_solution requires a mixture of one component, got 2 components"):
            random_mixture(2, 1, 0).ode_solution(torch.zeros(1, 1), 1.0, 0.5)


def test_without_noise_the_denoiser_is_its_limit_the_nearest_sample() -> None:
    data = torch.tensor([[0.0, 0.0], [1e6, 1.0]])
    at = torch.tensor([[0.1, 0.2], [1e6, 1.0], [9e5, 0.0]])
    for sigma in (0.0, 1e-200):
        assert torch.equal(ExactDataset(data)(at, sigma), data[[0, 1, 1]])
    plane = GaussianMixture([1.0], [[0.0, 3.0]], [[[1.0, 0.0], [0.0, 0.0]]])
    assert torch.equal(plane(at, 0.0), torch.tensor([[0.1, 3.0], [1e6, 3.0], [9e5, 3.0]]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": [0.5, 1.0]}, "labels must be integers or one-hot rows"),
        ({"data": torch.zeros(2)}, r"data must be real numbers \(samples, \*event\)"),
        ({"labels": [[0, 1], [0, 0]]}, r"labels must be .* but labels\[1\] is \[0, 0\]"),
    ],
)
def test_an_exact_dataset_refuses_what_it_would_cut_or_round(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        ExactDataset(**{"data": torch.zeros(2, 1)} | arguments)


def test_one_hot_rows_are_the_classes_of_an_exact_dataset() -> None:
    data = torch.tensor([[0.0], [1.0]])
    exact = ExactDataset(data, torch.tensor([[0, 0, 1], [1, 0, 0]]))
    assert exact.num_classes == 3
    assert torch.equal(exact(data, 5.0, torch.tensor([0, 2])), torch.tensor([[1.0], [0.0]]))
