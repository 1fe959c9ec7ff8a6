"""Conditioned denoisers against posteriors in closed form: of Gaussians, of mixtures, of data sets."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import dawsn
from torch import Tensor, nn

from openedm.conditioning import DPS, MMPS, Conditioned, conjugate_gradients
from openedm.denoiser import Denoiser, FunctionDenoiser, Preconditioned
from openedm.exact import ExactDataset, GaussianMixture
from openedm.guidance import Guided
from openedm.levels import Karras
from openedm.measurements import AveragePool, LinearOperator, Mask, Matrix, Measurement
from openedm.networks import DDPMpp
from openedm.preconditioning import EDM, IDDPM
from openedm.sampling import Sampler
from properties.strategies import log_uniform


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def eye(dim: int) -> Tensor:
    return torch.eye(dim, dtype=torch.float64)


def posterior(prior: GaussianMixture, matrix: Tensor, y: Tensor, sigma_y: float) -> GaussianMixture:
    """The mixture p(x₀ | y), component by component: gains G = Σ Aᵀ (A Σ Aᵀ + σ_y² I)⁻¹."""
    covariances = torch.einsum("knm,km,kjm->knj", prior.eigenvectors, prior.eigenvalues, prior.eigenvectors)
    measured = matrix @ covariances @ matrix.T + sigma_y**2 * eye(len(matrix))
    residuals = y - prior.means @ matrix.T
    log_evidence = torch.distributions.MultivariateNormal(torch.zeros_like(y), measured).log_prob(residuals)
    gains = torch.linalg.solve(measured, matrix @ covariances).mT
    narrowed = covariances - gains @ matrix @ covariances
    means = prior.means + torch.einsum("knm,km->kn", gains, residuals)
    return GaussianMixture((prior.weights.log() + log_evidence).softmax(0), means, (narrowed + narrowed.mT) / 2)


class Problem:
    """A Gaussian in `features` dimensions, `measured` numbers of which are known, and what follows."""

    def __init__(self, features: int, measured: int, seed: int, sigma_y: float = 0.3) -> None:
        root = normal(features, features, seed=seed) / math.sqrt(features)
        self.prior = GaussianMixture(
            [1.0], normal(1, features, seed=seed + 1), (root @ root.T + 0.1 * eye(features))[None]
        )
        self.matrix, self.y, self.sigma_y = (
            normal(measured, features, seed=seed + 2),
            normal(measured, seed=seed + 3),
            sigma_y,
        )
        self.posterior = posterior(self.prior, self.matrix, self.y, sigma_y)
        self.measurement = Measurement(Matrix(self.matrix), self.y[None], sigma_y)


def as_images(mixture: GaussianMixture, shape: tuple[int, ...]) -> Denoiser:
    return FunctionDenoiser(
        lambda x, sigma, condition: mixture(x.flatten(1), sigma).reshape(x.shape), event_shape=shape
    )


class TestMMPS:
    """u = (σ_y² I + A V Aᵀ)⁻¹ (y − A D)."""

    @given(st.integers(1, 6), st.integers(1, 4), log_uniform(1e-3, 80.0), log_uniform(0.1, 3.0), st.integers(0, 99))
    def test_for_gaussian_data_it_is_the_denoiser_of_the_posterior(
        self, features: int, measured: int, sigma: float, sigma_y: float, seed: int
    ) -> None:
        problem = Problem(features, measured, seed, sigma_y)
        x = problem.posterior.means + sigma * normal(4, features, seed=seed + 4)
        denoised = MMPS(problem.prior, problem.measurement, iterations=measured)(x, sigma)
        torch.testing.assert_close(denoised, problem.posterior(x, sigma), rtol=1e-8, atol=1e-8)

    def test_noise_levels_and_measurements_may_differ_from_sample_to_sample(self) -> None:
        problem, sigma = Problem(4, 2, 0), torch.tensor([0.01, 0.5, 20.0])
        y, x = normal(3, 2, seed=9), normal(3, 4, seed=8)
        together = MMPS(problem.prior, Measurement(Matrix(problem.matrix), y, 0.3))(x, sigma)
        for i in range(3):
            expected = posterior(problem.prior, problem.matrix, y[i], 0.3)(x[i : i + 1], float(sigma[i]))
            torch.testing.assert_close(together[i : i + 1], expected, rtol=1e-8, atol=1e-8)

    def test_samples_of_a_gaussian_have_the_mean_and_covariance_of_the_posterior(self) -> None:
        problem, count = Problem(4, 3, 0), 4000
        conditioned = MMPS(problem.prior, problem.measurement, iterations=3)
        noise = normal(count, 4, seed=5)
        x = Sampler(Karras(64)).sample(conditioned, noise=noise)
        mean = problem.posterior.means[0]
        vectors, values = problem.posterior.eigenvectors[0], problem.posterior.eigenvalues[0]
        covariance = vectors @ values.diag() @ vectors.T
        variance = covariance.diag()
        # Standard errors of a mean, √(Σ_ii/N), and of a covariance, √((Σ_ii Σ_jj + Σ_ij²)/N); 1 % for the solver.
        assert ((x.mean(0) - mean).abs() < 4.5 * (variance / count).sqrt() + 0.01 * variance.sqrt()).all()
        spread = torch.outer(variance, variance)
        allowed = 4.5 * ((spread + covariance.square()) / count).sqrt() + 0.02 * spread.sqrt()
        assert ((torch.cov(x.T) - covariance).abs() < allowed).all()

    def test_it_takes_as_many_iterations_as_numbers_are_measured_and_one_call_of_the_denoiser(self) -> None:
        problem, calls = Problem(8, 5, 1), []

        def counted(x: Tensor, sigma: Tensor, condition: Tensor | None) -> Tensor:
            calls.append(len(x))
            return problem.prior(x, sigma)

        x = problem.posterior.means + normal(16, 8, seed=3)
        exact = problem.posterior(x, 1.0)
        prior = FunctionDenoiser(counted, event_shape=(8,))
        errors = [float((MMPS(prior, problem.measurement, k)(x, 1.0) - exact).norm()) for k in (1, 3, 5)]
        assert errors[0] > errors[1] > 1e-3
        assert errors[2] < 1e-8
        assert calls == [16, 16, 16]

    @pytest.mark.parametrize(
        "operator",
        [Mask(torch.tensor([[[True, False, True, True], [False, True, True, False]]])), AveragePool(2)],
        ids=["mask", "pool"],
    )
    def test_images_are_conditioned_on_some_pixels_or_on_their_means(self, operator: LinearOperator) -> None:
        shape = (1, 2, 4)
        prior = Problem(8, 1, 2).prior
        matrix = operator(eye(8).reshape(8, *shape)).flatten(1).T
        y = operator(normal(1, *shape, seed=4))
        conditioned = MMPS(as_images(prior, shape), Measurement(operator, y, 0.2), iterations=5)
        x = normal(3, *shape, seed=5)
        expected = posterior(prior, matrix, y.flatten(), 0.2)(x.flatten(1), 0.7).reshape(x.shape)
        torch.testing.assert_close(conditioned(x, 0.7), expected, rtol=1e-8, atol=1e-8)

    def test_inpainting_a_mixture_it_makes_less_of_the_measurement_than_is_in_it_and_dps_more(self) -> None:
        """Two clusters around ±(1, 1), the first coordinate known to be 0.5 ± 0.5: that is the upper one, by 95 %."""
        means = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
        prior = GaussianMixture([0.5, 0.5], means, 0.09 * torch.eye(2).expand(2, 2, 2))
        exact = posterior(prior, torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.full((1,), 0.5).double(), 0.5)
        assert abs(float(exact.weights[1]) - 0.950) < 0.001
        measurement = Measurement(Mask(torch.tensor([True, False])), torch.tensor([[0.5]]), 0.5)
        noise = normal(2000, 2)
        mmps, dps = (
            Sampler(Karras(32)).sample(d, noise=noise) for d in (MMPS(prior, measurement), DPS(prior, measurement))
        )
        upper = [float((x.sum(1) > 0).double().mean()) for x in (mmps, dps)]
        standard_error = math.sqrt(0.8 * 0.2 / 2000)
        assert abs(upper[0] - 0.80) < 3 * standard_error
        assert upper[1] > 0.99
        # Within the right cluster the unknown coordinate stays near its mean, with about its spread.
        inside = mmps[mmps.sum(1) > 0]
        assert abs(float(inside[:, 1].mean()) - 1) < 0.15
        assert abs(float(inside[:, 1].std()) - 0.3) < 0.05

    def test_a_class_selects_the_data_that_are_conditioned(self) -> None:
        data, labels = normal(12, 3), torch.arange(12) % 3
        measurement = Measurement(Mask(torch.tensor([True, False, True])), torch.tensor([[0.3, -0.2]]), 0.5)
        x, condition = normal(3, 3, seed=1), torch.tensor([0, 1, 2])
        together = MMPS(ExactDataset(data, labels), measurement)(x, 0.6, condition)
        alone = [MMPS(ExactDataset(data[labels == c]), measurement)(x[c : c + 1], 0.6) for c in range(3)]
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-10, atol=1e-10)

    def test_a_guided_denoiser_can_be_conditioned(self) -> None:
        """Guided Gaussians are linear in x: D₁ + (w − 1)(D₁ − D₀), and so is V = σ² ∂D/∂x."""
        problem, other, sigma = Problem(4, 2, 0), Problem(4, 2, 7), 0.8
        guided, x = Guided(problem.prior, other.prior, 1.5), normal(3, 4, seed=4)
        variance = sigma**2 * torch.func.jacrev(lambda x: guided(x[None], sigma)[0])(x[0])
        matrix = problem.matrix
        gain = torch.linalg.solve(matrix @ variance @ matrix.T + 0.3**2 * eye(2), matrix @ variance).T
        denoised = guided(x, sigma)
        expected = denoised + (problem.y - denoised @ matrix.T) @ gain.T
        torch.testing.assert_close(MMPS(guided, problem.measurement)(x, sigma), expected, rtol=1e-8, atol=1e-8)

    def test_a_measurement_can_be_added_to_another(self) -> None:
        problem = Problem(4, 2, 0)
        first, second = (
            Measurement(Matrix(problem.matrix[i : i + 1]), problem.y[None, i : i + 1], 0.3) for i in range(2)
        )
        x = normal(3, 4)
        both = MMPS(MMPS(problem.prior, first, 1), second, 1)(x, 0.5)
        torch.testing.assert_close(both, problem.posterior(x, 0.5), rtol=1e-8, atol=1e-8)


class TestDPS:
    """u = ζ r/σ_y², or 2ζ r/‖r‖."""

    @given(log_uniform(0.05, 20.0), log_uniform(0.1, 10.0), st.integers(0, 99))
    def test_it_goes_down_the_gradient_of_the_squared_residual(self, sigma: float, zeta: float, seed: int) -> None:
        problem = Problem(4, 2, seed)
        x = normal(3, 4, seed=seed + 4).requires_grad_()
        squares = problem.measurement.residual(problem.prior(x, sigma)).square().sum(1)
        (gradient,) = torch.autograd.grad(squares.sum(), x)
        prior = problem.prior(x.detach(), sigma)
        likelihood = DPS(problem.prior, problem.measurement, zeta)(x.detach(), sigma) - prior
        torch.testing.assert_close(likelihood, -zeta * sigma**2 * gradient / (2 * 0.3**2), rtol=1e-9, atol=1e-12)
        residual = DPS(problem.prior, problem.measurement, zeta, "residual")(x.detach(), sigma) - prior
        norms = squares.detach().sqrt()[:, None]
        torch.testing.assert_close(residual, -zeta * sigma**2 * gradient / norms, rtol=1e-9, atol=1e-12)

    @pytest.mark.usefixtures("without_type_checker")
    @pytest.mark.parametrize("kappa", [0.1, 1.0, 4.0])
    def test_its_bias_on_gaussian_data_is_the_one_in_its_description(self, kappa: float) -> None:
        """Mean y √(2κ) F(√(κ/2)) and variance λ e^{−κ}, not y κ/(1+κ) and λ/(1+κ)."""
        variance, y = 2.0, 1.5
        prior = GaussianMixture([1.0], [[0.0]], [[[variance]]])
        measurement = Measurement(Matrix(torch.eye(1)), torch.tensor([[y]]), math.sqrt(variance / kappa))
        # The ODE is linear: two starts tell its mean and its spread. Beyond σ_max = 2000 hardly anything happens.
        noise = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        coarse, fine = (
            Sampler(Karras(steps, sigma_max=2000.0)).sample(DPS(prior, measurement), noise=noise) for steps in (96, 192)
        )
        x = fine + (fine - coarse) / 3  # Heun's method is of second order
        mean, deviation = float(x[0]), float(x[1] - x[0])
        assert mean == pytest.approx(y * math.sqrt(2 * kappa) * float(dawsn(math.sqrt(kappa / 2))), rel=1e-3)
        assert deviation == pytest.approx(math.sqrt(variance * math.exp(-kappa)), rel=1e-3)

    def test_it_becomes_exact_as_the_noise_vanishes(self) -> None:
        problem = Problem(4, 2, 0)
        x = normal(3, 4)
        for sigma in (1e-1, 1e-2, 1e-3):
            exact = problem.posterior(x, sigma)
            error = (DPS(problem.prior, problem.measurement)(x, sigma) - exact).norm()
            pull = (problem.prior(x, sigma) - exact).norm()
            # It leaves out A V Aᵀ ≤ σ² ‖A‖² beside σ_y².
            assert error <= 1.01 * (sigma * float(torch.linalg.matrix_norm(problem.matrix, 2)) / 0.3) ** 2 * pull

    def test_a_step_that_diverges_is_a_warning(self) -> None:
        prior = GaussianMixture([1.0], [[280.0]], [[[100.0]]])
        for sigma_y in (10.0, 0.1):
            conditioned = DPS(prior, Measurement(Matrix(eye(1)), torch.tensor([[290.0]]), sigma_y))
            if sigma_y == 10.0:
                Sampler().sample(conditioned, seeds=range(4))
                continue
            with pytest.warns(UserWarning, match="times the largest number of the noise that they started from: the s"):
                Sampler().sample(conditioned, seeds=range(4))

    def test_a_residual_of_zero_is_no_reason_to_move(self) -> None:
        prior = GaussianMixture([1.0], [[0.0]], [[[1.0]]])
        measurement = Measurement(Matrix(torch.eye(1)), torch.zeros(1, 1), 1.0)
        for conditioned in (DPS(prior, measurement, 1.0, "residual"), MMPS(prior, measurement)):
            assert conditioned(torch.zeros(2, 1), 1.0).tolist() == [[0.0], [0.0]]


class TestConditioned:
    """What both have in common."""

    def test_inside_a_sampler_nothing_is_recorded_and_outside_it_is_differentiable(self) -> None:
        problem = Problem(3, 2, 0)
        x = normal(2, 3).requires_grad_()
        for conditioned in (MMPS(problem.prior, problem.measurement, 2), DPS(problem.prior, problem.measurement)):
            with torch.no_grad():
                detached = conditioned(x, 0.5)
            assert not detached.requires_grad
            recorded = conditioned(x, 0.5)
            assert torch.equal(recorded, detached)
            assert torch.autograd.gradcheck(lambda x, d=conditioned: d(x, 0.5), x)
        covariance = torch.func.vmap(torch.func.jacrev(lambda x: conditioned(x[None], 0.5)[0]))(x.detach())
        assert covariance.shape == (2, 3, 3)

    @pytest.mark.usefixtures("without_type_checker")
    def test_a_network_in_single_precision_is_conditioned_inside_a_sampler(self) -> None:
        """A new network puts out almost nothing, so that D = c_skip x: the denoiser of N(0, σ_data² I)."""
        network = DDPMpp(model_channels=8, channel_mult=(1,), num_blocks=1).build(
            (1, 8, 8), num_classes=0, out_channels=1, seed=0
        )
        denoiser = Preconditioned(network, EDM(), event_shape=(1, 8, 8)).eval()
        known = Mask((torch.arange(64) % 2 == 0).reshape(1, 8, 8))
        y = known(0.5 * normal(1, 1, 8, 8))
        conditioned, sampler = MMPS(denoiser, Measurement(known, y, 0.1), iterations=1), Sampler(Karras(24))
        x = sampler.sample(conditioned, seeds=range(8))
        free = sampler.sample(denoiser, seeds=range(8))
        # The flow is linear and shrinks the noise to the deviation of the posterior, σ_data σ_y/√(σ_data² + σ_y²).
        shrunk = known(free) * 0.1 / math.sqrt(0.25 + 0.01)
        torch.testing.assert_close(known(x), 0.25 / 0.26 * y + shrunk, rtol=0, atol=0.01)
        others = Mask((torch.arange(64) % 2 == 1).reshape(1, 8, 8))
        torch.testing.assert_close(others(x), others(free), rtol=0, atol=1e-3)
        alone = torch.cat([sampler.sample(conditioned, seeds=[seed]) for seed in range(2)])
        torch.testing.assert_close(x[:2], alone, rtol=0, atol=1e-4)
        assert all(p.grad is None for p in network.parameters())

    def test_range_shape_classes_and_discrete_levels_are_those_of_the_denoiser(self) -> None:
        denoiser = Preconditioned(nn.Identity(), IDDPM(), sigma_data=0.7, event_shape=(2,), num_classes=5)
        conditioned = DPS(denoiser, Measurement(Matrix(torch.eye(2)), torch.zeros(1, 2), 1.0))
        assert (conditioned.sigma_min, conditioned.sigma_max) == (denoiser.sigma_min, denoiser.sigma_max)
        assert (conditioned.event_shape, conditioned.num_classes, conditioned.sigma_data) == ((2,), 5, 0.7)
        assert torch.equal(conditioned.round_sigma(torch.tensor([0.5])), denoiser.round_sigma(torch.tensor([0.5])))

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (
                lambda d, m: MMPS(d, Measurement(Matrix(torch.ones(1, 3)), torch.zeros(1, 2), 1.0)),
                r"y must have rows of shape \(1,\), which the operator gives for samples of shape \(3,\), got \(2,\)",
            ),
            (lambda d, m: MMPS(d, m, iterations=0), r"iterations must be >= 1, got 0"),
            (lambda d, m: DPS(d, m, zeta=0.0), r"zeta must be finite and > 0, got 0\.0"),
            (
                lambda d, m: MMPS(d, Measurement(m.operator, torch.zeros(4, 2), 1.0))(normal(3, 3), 1.0),
                r"y must have shape \(3, 2\), or one row for all samples, got \(4, 2\)",
            ),
        ],
    )
    def test_what_does_not_fit_is_refused(
        self, make: Callable[[Denoiser, Measurement], Conditioned], message: str
    ) -> None:
        problem = Problem(3, 2, 0)
        with pytest.raises(ValueError, match=message):
            make(problem.prior, problem.measurement)

    @pytest.mark.usefixtures("without_type_checker")
    def test_an_unknown_step_is_refused(self) -> None:
        problem = Problem(3, 2, 0)
        with pytest.raises(ValueError, match=r"step must be one of 'likelihood', 'residual', got 'unit'"):
            DPS(problem.prior, problem.measurement, step="unit")  # type: ignore[arg-type]


class TestConjugateGradients:
    """M⁻¹ b, each sample by itself."""

    @given(st.integers(1, 8), st.integers(0, 99))
    def test_as_many_iterations_as_dimensions_solve_the_system_and_more_change_nothing(
        self, dim: int, seed: int
    ) -> None:
        root = normal(3, dim, dim, seed=seed)
        matrices, b = root @ root.mT / dim + 0.5 * eye(dim), normal(3, dim, seed=seed + 1)
        b[1] = 0
        found = conjugate_gradients(lambda u: torch.einsum("bnm,bm->bn", matrices, u), b, 4 * dim + 4)
        torch.testing.assert_close(found, torch.linalg.solve(matrices, b), rtol=1e-10, atol=1e-10)
        assert torch.equal(found[1], b[1])

    @given(st.integers(2, 8), st.integers(0, 99))
    def test_each_iteration_comes_nearer_in_the_norm_of_the_matrix(self, dim: int, seed: int) -> None:
        root = normal(dim, dim, seed=seed)
        matrix, b = root @ root.T / dim + 0.5 * eye(dim), normal(1, dim, seed=seed + 1)
        exact = torch.linalg.solve(matrix, b[0])
        errors = [conjugate_gradients(lambda u: u @ matrix, b, k)[0] - exact for k in range(1, dim + 1)]
        energies = [float(exact @ matrix @ exact), *(float(e @ matrix @ e) for e in errors)]
        assert all(later <= earlier + 1e-13 * energies[0] for earlier, later in pairwise(energies))

    def test_where_the_matrix_is_not_positive_a_sample_stands_still(self) -> None:
        signs = torch.tensor([[1.0], [-1.0]])
        found = conjugate_gradients(lambda u: signs * u, torch.ones(2, 1), 3)
        assert found.tolist() == [[1.0], [0.0]]
