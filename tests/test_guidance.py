"""Guidance against closed forms: scores of products of densities, and the guided flow between two Gaussians."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from openedm.denoiser import Denoiser, FunctionDenoiser, Preconditioned
from openedm.exact import ExactDataset, GaussianMixture
from openedm.ground.choices import from_config, to_config
from openedm.guidance import ClassifierFree, Constant, GuidanceWeight, Guided, Interval, Piecewise
from openedm.levels import Karras
from openedm.networks import MLP
from openedm.preconditioning import EDM, IDDPM, VE
from openedm.sampling import Sampler
from properties.strategies import EPS, log_uniform


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture(seed: int, dim: int = 2) -> GaussianMixture:
    root = normal(3, dim, dim, seed=seed)
    covariances = root @ root.mT + 0.1 * torch.eye(dim, dtype=torch.float64)
    return GaussianMixture([0.2, 0.3, 0.5], normal(3, dim, seed=seed + 1), covariances)


class Counted(Denoiser):
    """Another denoiser, that keeps the batch sizes, noise levels and conditions it was called with."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser, self.calls = denoiser, []
        self.num_classes, self.event_shape = denoiser.num_classes, denoiser.event_shape

    def denoise(self, x: Tensor, sigma: Tensor, condition: Tensor | None) -> Tensor:
        self.calls.append((len(x), sigma.tolist(), None if condition is None else condition.tolist()))
        return self.denoiser(x, sigma, condition)


def classes() -> ExactDataset:
    return ExactDataset(normal(12, 2), torch.arange(12) % 3)


WEIGHTS = st.one_of(
    st.builds(Constant, st.floats(0, 5)),
    st.builds(lambda w, low, width: Interval(w, low, low + width), st.floats(0, 5), st.floats(0, 5), log_uniform(1, 9)),
    st.builds(
        lambda a, b, low: Piecewise((low, 10 * low), (a, b)), st.floats(0, 5), st.floats(0, 5), log_uniform(0.1, 9)
    ),
)


class TestWeights:
    """w(σ), a frozen value."""

    @given(WEIGHTS)
    def test_a_weight_survives_the_way_into_a_file_and_back(self, weight: GuidanceWeight) -> None:
        assert from_config(GuidanceWeight, to_config(weight)) == weight

    @given(WEIGHTS, st.lists(log_uniform(1e-3, 1e3), min_size=1, max_size=9))
    def test_many_noise_levels_get_the_weights_of_each(self, weight: GuidanceWeight, levels: list[float]) -> None:
        together = weight.at(torch.tensor(levels))
        assert together.dtype == torch.float64
        alone = torch.stack([weight.at(torch.tensor(level)) for level in levels])
        assert torch.equal(together, alone)

    @given(WEIGHTS, log_uniform(1e-3, 1e3))
    def test_a_weight_that_says_it_is_one_is_one_everywhere(self, weight: GuidanceWeight, sigma: float) -> None:
        assert not weight.is_one or float(weight.at(sigma)) == 1
        assert Constant().is_one
        assert Interval(1.0, 0.1, 2.0).is_one
        assert Piecewise((0.1, 1.0), (1.0, 1.0)).is_one

    def test_an_interval_is_open_below_and_closed_above_as_published(self) -> None:
        found = Interval(3.0, 0.5, 2.0).at(torch.tensor([0.0, 0.4, 0.5, 0.500001, 1.0, 2.0, 2.000001, math.inf]))
        assert found.tolist() == [1, 1, 1, 3, 3, 3, 1, 1]

    @pytest.mark.parametrize("weight", [Constant(2.0), Interval(2.0), Piecewise((0.1, 1.0), (1.0, 2.0))], ids=repr)
    @pytest.mark.parametrize("sigma", [-1.0, math.nan, torch.tensor([1.0, -1.0])], ids=repr)
    def test_what_is_no_noise_level_has_no_weight(self, weight: GuidanceWeight, sigma: Any) -> None:
        with pytest.raises(ValueError, match=r"sigma must be >= 0, got (-1.0|nan)"):
            weight.at(sigma)

    @given(st.floats(0, 5), log_uniform(1e-3, 1e3))
    def test_an_interval_without_ends_is_constant(self, weight: float, sigma: float) -> None:
        assert torch.equal(Interval(weight).at(sigma), Constant(weight).at(sigma))

    @given(st.floats(0, 1))
    def test_a_piecewise_weight_is_linear_in_the_logarithm_of_sigma(self, fraction: float) -> None:
        weight = Piecewise((0.1, 1.0, 10.0), (1.0, 3.0, 0.5))
        for low, first, second in ((0.1, 1.0, 3.0), (1.0, 3.0, 0.5)):
            found = float(weight.at(low * 10**fraction))
            # ln σ is rounded by EPS of its size, at most ln 10, as is each of the few operations after it.
            assert abs(found - (first + fraction * (second - first))) <= 16 * EPS * math.log(10)

    def test_beyond_its_noise_levels_a_piecewise_weight_is_that_of_the_nearest(self) -> None:
        found = Piecewise((0.25, 1.0, 8.0), (1.0, 3.0, 0.5)).at(torch.tensor([0.0, 0.1, 0.25, 8.0, 9.0, math.inf]))
        assert found.tolist() == [1, 1, 1, 0.5, 0.5, 0.5]

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: Constant(-1.0), r"weight must be >= 0, got -1\.0"),
            (lambda: Constant(math.inf), r"weight must be a finite number, got inf"),
            (lambda: Interval(math.nan), r"weight must be a finite number, got nan"),
            (lambda: Interval(2.0, low=-1.0), r"low must be >= 0, got -1\.0"),
            (lambda: Interval(2.0, 3.0, 2.0), r"low must be < high, got low=3\.0 and high=2\.0"),
            (
                lambda: Piecewise((1.0,), (1.0,)),
                r"sigmas and weights must hold the same number of values, at least 2, got 1",
            ),
            (lambda: Piecewise((1.0, 2.0), (1.0,)), r"got 2 sigmas and 1 weights"),
            (lambda: Piecewise((0.0, 2.0), (1.0, 2.0)), r"sigmas\[0\] must be finite and > 0, got 0\.0"),
            (lambda: Piecewise((1.0, 2.0), (1.0, -2.0)), r"weights\[1\] must be >= 0, got -2\.0"),
            (lambda: Piecewise((2.0, 2.0), (1.0, 2.0)), r"sigmas must increase strictly, got \(2\.0, 2\.0\)"),
        ],
    )
    def test_a_value_out_of_its_range_is_refused(self, make: Callable[[], object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            make()


class TestGuided:
    """D₁ + (w − 1)(D₁ − D₀), whatever the two are."""

    @given(st.floats(0, 4), log_uniform(0.05, 50.0), st.integers(0, 99))
    def test_its_score_is_that_of_a_product_of_powers_of_the_two_densities(
        self, weight: float, sigma: float, seed: int
    ) -> None:
        main, guiding = mixture(seed), mixture(seed + 50)
        x = (normal(4, 2, seed=seed) * (1 + sigma)).requires_grad_()
        log_density = weight * main.log_prob(x, sigma) + (1 - weight) * guiding.log_prob(x, sigma)
        (gradient,) = torch.autograd.grad(log_density.sum(), x)
        score = Guided(main, guiding, weight).score(x.detach(), sigma)
        # Each score is a difference of numbers of the size of x, with a relative error of some EPS, divided by σ².
        size = (1 + 2 * weight) * float(x.detach().abs().max() + 5) / sigma**2
        torch.testing.assert_close(score, gradient, rtol=0, atol=1024 * EPS * size)

    def test_the_weights_one_and_zero_are_the_two_denoisers(self) -> None:
        main, guiding, x = mixture(0), mixture(1), normal(5, 2)
        assert torch.equal(Guided(main, guiding, 1.0)(x, 0.7), main(x, 0.7))
        torch.testing.assert_close(Guided(main, guiding, 0.0)(x, 0.7), guiding(x, 0.7), rtol=0, atol=16 * EPS * 5)

    @pytest.mark.parametrize("weight", [0.5, 2.0])
    def test_the_guided_flow_between_two_gaussians_ends_where_the_closed_form_does(self, weight: float) -> None:
        """d ln x/d ln σ = w σ²/(a+σ²) + (1−w) σ²/(b+σ²), so x(0)/x(σ) = (a/(a+σ²))^{w/2} (b/(b+σ²))^{(1−w)/2}."""
        a, b, top = 0.25, 1.0, 10.0
        one, other = (GaussianMixture([1.0], [[0.0]], [[[v]]]) for v in (a, b))
        guided, noise = Guided(one, other, weight), torch.ones(1, 1, dtype=torch.float64)
        coarse, fine = (
            Sampler(Karras(steps, sigma_min=1e-4, sigma_max=top)).sample(guided, noise=noise) for steps in (64, 128)
        )
        exact = top * (a / (a + top**2)) ** (weight / 2) * (b / (b + top**2)) ** ((1 - weight) / 2)
        # Heun's error falls by 4 for half the step: a third of the difference is what is left; 1e-8 below σ = 1e-4.
        left = float((fine - coarse).abs()) / 3
        assert left < 2e-3 * exact
        assert abs(float(fine) - exact) < 1.5 * left + 1e-7

    def test_two_modules_are_called_once_each_and_the_guiding_one_not_at_all_outside_the_interval(self) -> None:
        main, guiding = Counted(mixture(0)), Counted(mixture(1))
        guided = Guided(main, guiding, Interval(2.0, 0.1, 1.0))
        for sigma in (0.05, 0.1, 0.5, 1.0, 2.0):
            guided(normal(3, 2), sigma)
        assert [call[1] for call in main.calls] == [0.05, 0.1, 0.5, 1.0, 2.0]
        assert [call[1] for call in guiding.calls] == [0.5, 1.0]

    def test_of_noise_levels_on_both_sides_of_an_edge_only_those_inside_are_guided(self) -> None:
        main, guiding = mixture(0), Counted(mixture(1))
        sigma, x = torch.tensor([0.05, 0.5, 5.0, 1.0]), normal(4, 2)
        guided = Guided(main, guiding, Interval(2.0, 0.1, 1.0))
        alone = torch.cat([guided(x[i : i + 1], float(s)) for i, s in enumerate(sigma)])
        guiding.calls.clear()
        torch.testing.assert_close(guided(x, sigma), alone, rtol=0, atol=16 * EPS * 5)
        assert guiding.calls == [(2, [0.5, 1.0], None)]

    def test_noise_levels_that_are_all_outside_cost_one_branch_and_all_inside_two(self) -> None:
        guiding = Counted(mixture(1))
        guided = Guided(mixture(0), guiding, Interval(2.0, 0.1, 1.0))
        guided(normal(2, 2), torch.tensor([0.01, 3.0]))
        assert guiding.calls == []
        guided(normal(2, 2), torch.tensor([0.25, 0.5]))
        assert guiding.calls == [(2, [0.25, 0.5], None)]

    def test_a_weight_a_sample_guides_each_by_its_own(self) -> None:
        main, guiding, x = mixture(0), Counted(mixture(1)), normal(3, 2)
        weights = torch.tensor([3.0, 1.0, 0.5])
        for sigma in (0.7, torch.tensor([0.7, 0.2, 3.0])):
            guiding.calls.clear()
            guided = Guided(main, guiding, weights)(x, sigma)
            assert [call[0] for call in guiding.calls] == [2]
            one, other = main(x, sigma), guiding(x, sigma)
            expected = one + (weights[:, None] - 1) * (one - other)
            torch.testing.assert_close(guided, expected, rtol=0, atol=64 * EPS * 5)

    def test_a_tensor_without_dimensions_is_a_number(self) -> None:
        assert Guided(mixture(0), mixture(1), torch.tensor(2.5)).weight == Constant(2.5)

    def test_it_is_differentiable_also_where_only_some_samples_are_guided(self) -> None:
        guided = Guided(mixture(0), mixture(1), Interval(2.0, 0.1, 1.0))
        sigma, x = torch.tensor([0.05, 0.5]), normal(2, 2).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: guided(x, sigma), x)
        assert torch.autograd.gradcheck(lambda x: guided(x, 0.5), x)

    def test_an_unconditional_denoiser_that_guides_a_conditional_one_is_told_nothing(self) -> None:
        data = classes()
        unconditional = Counted(ExactDataset(normal(12, 2)))
        x, condition = normal(3, 2, seed=1), torch.tensor([0, 1, 2])
        guided = Guided(data, unconditional, 2.0)(x, 0.5, condition)
        assert unconditional.calls == [(3, 0.5, None)]
        expected = 2 * data(x, 0.5, condition) - data(x, 0.5)
        torch.testing.assert_close(guided, expected, rtol=0, atol=64 * EPS * 5)

    def test_two_conditional_denoisers_are_told_the_same(self) -> None:
        guiding = Counted(ExactDataset(2 * normal(12, 2), torch.arange(12) % 3))
        Guided(classes(), guiding, Interval(2.0, 0.1, 1.0))(
            normal(3, 2), torch.tensor([0.5, 2.0, 0.5]), torch.tensor([2, 1, 0])
        )
        assert guiding.calls == [(2, [0.5, 0.5], [2, 0])]

    def test_shape_classes_and_sigma_data_are_those_of_the_main_denoiser_and_the_range_is_what_both_know(self) -> None:
        network = MLP(width=8, num_blocks=1).build((2,), num_classes=3, out_channels=2, seed=0)
        main = Preconditioned(network, VE(0.05, 70.0), sigma_data=0.7, event_shape=(2,), num_classes=3)
        guiding = Preconditioned(network, VE(0.01, 50.0), sigma_data=0.6, event_shape=(2,), num_classes=3)
        guided = Guided(main, guiding, 2.0)
        assert (guided.sigma_min, guided.sigma_max) == (0.05, 50.0)
        assert (guided.event_shape, guided.num_classes, guided.sigma_data) == ((2,), 3, 0.7)

    def test_noise_levels_are_rounded_to_those_that_either_knows(self) -> None:
        def with_levels(preconditioning: Any) -> Preconditioned:
            return Preconditioned(nn.Identity(), preconditioning)

        discrete, continuous = with_levels(IDDPM()), with_levels(EDM())
        sigma = torch.tensor([0.02, 0.5, 7.0])
        expected = IDDPM().round_sigma(sigma.double())
        assert not torch.equal(expected, sigma.double())
        for main, guiding in ((discrete, continuous), (continuous, discrete), (discrete, with_levels(IDDPM()))):
            assert torch.equal(Guided(main, guiding, 2.0).round_sigma(sigma), expected)
        with pytest.raises(
            ValueError, match="main and guiding must support the same noise levels: the level of main nearest"
        ):
            Guided(with_levels(IDDPM(num_levels=10)), discrete, 2.0)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: Guided(mixture(0), mixture(0, dim=3), 2.0), r"of the shape of main's, \(2,\), got \(3,\)"),
            (
                lambda: Guided(classes(), ExactDataset(normal(4, 2), torch.arange(4)), 2.0),
                r"guiding must have main's 3 classes, or none, got num_classes=4",
            ),
            (
                lambda: Guided(
                    FunctionDenoiser(lambda x, s, c: x, sigma_max=1.0),
                    FunctionDenoiser(lambda x, s, c: x, sigma_min=2.0),
                    2.0,
                ),
                r"main and guiding must have noise levels in common, got \[0, 1\] and \[2, inf\]",
            ),
            (lambda: Guided(*[mixture(0)] * 2, 2.0), r"guiding must be another denoiser than main"),
            (lambda: Guided(mixture(0), mixture(1), -2.0), r"weight must be >= 0, got -2\.0"),
            (lambda: Guided(mixture(0), mixture(1), torch.tensor([1.0, -2.0])), r"one finite value >= 0 a sample, got"),
            (lambda: Guided(mixture(0), mixture(1), torch.ones(2, 2)), r"weight must be a number or one finite value"),
            (
                lambda: Guided(mixture(0), mixture(1), torch.ones(2))(normal(3, 2), 1.0),
                r"weight must hold one value a sample \(3\), got 2",
            ),
        ],
    )
    def test_what_does_not_go_together_is_refused(self, make: Callable[[], object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            make()


class TestClassifierFree:
    """A denoiser against itself without the condition."""

    @given(st.floats(0, 4), log_uniform(0.1, 10.0), st.integers(0, 99))
    def test_it_extrapolates_from_the_unconditional_to_the_conditional(
        self, weight: float, sigma: float, seed: int
    ) -> None:
        data, x, condition = classes(), normal(4, 2, seed=seed), torch.tensor([0, 1, 2, -1])
        guided = ClassifierFree(data, weight)(x, sigma, condition)
        conditional, unconditional = data(x, sigma, condition), data(x, sigma)
        expected = unconditional + weight * (conditional - unconditional)
        torch.testing.assert_close(guided, expected, rtol=0, atol=64 * EPS * (1 + weight) * 3)

    def test_both_branches_are_one_call_and_outside_the_interval_there_is_one_branch(self) -> None:
        counted = Counted(classes())
        guided = ClassifierFree(counted, Interval(2.0, 0.1, 1.0))
        x, condition = normal(3, 2), torch.tensor([2, 0, 1])
        guided(x, 0.5, condition)
        guided(x, 5.0, condition)
        guided(x, torch.tensor([0.5, 5.0, 0.25]), condition)
        assert counted.calls == [
            (6, 0.5, [2, 0, 1, -1, -1, -1]),
            (3, 5.0, [2, 0, 1]),
            (5, [0.5, 5.0, 0.25, 0.5, 0.25], [2, 0, 1, -1, -1]),
        ]

    def test_rows_of_class_weights_are_compared_with_zeros(self) -> None:
        network = MLP(width=8, num_blocks=1).build((2,), num_classes=3, out_channels=2, seed=0)
        nn.init.normal_(network.layer_out.weight)
        denoiser = Preconditioned(network.double(), EDM(), event_shape=(2,), num_classes=3).eval()
        x, labels = normal(3, 2), torch.tensor([0, 1, 2])
        rows = nn.functional.one_hot(labels, 3).double()
        guided = ClassifierFree(denoiser, 3.0)
        with torch.no_grad():
            one, other = guided(x, 0.5, labels), guided(x, 0.5, rows)
            expected = 3 * denoiser(x, 0.5, labels) - 2 * denoiser(x, 0.5)
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-13)
        torch.testing.assert_close(other, expected, rtol=0, atol=1e-13)

    def test_a_condition_that_is_no_class_is_compared_with_the_null_row_given(self) -> None:
        denoiser = FunctionDenoiser(lambda x, sigma, condition: x + condition)
        x, condition = normal(3, 2), normal(3, 2, seed=1)
        guided = ClassifierFree(denoiser, 3.0, null=torch.tensor([0.5, -0.5]))(x, 1.0, condition)
        expected = x + condition + 2 * (condition - torch.tensor([0.5, -0.5]))
        torch.testing.assert_close(guided, expected, rtol=0, atol=16 * EPS * 10)

    def test_a_guided_sample_depends_on_its_seed_and_class_alone(self) -> None:
        guided = ClassifierFree(classes(), Interval(2.0, 0.2, 5.0))
        sampler, labels = Sampler(Karras(8)), torch.tensor([0, 1, 2, 0])
        together = sampler.sample(guided, seeds=range(4), condition=labels)
        alone = torch.cat([sampler.sample(guided, seeds=[i], condition=labels[i : i + 1]) for i in range(4)])
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)

    def test_guidance_draws_more_of_the_samples_that_only_the_class_explains(self) -> None:
        """Of the class {−1, +1} against all of {−1, −1, −1, +1, +3}: p(c|−1) = 1/3 and p(c|+1) = 1."""
        data = ExactDataset(torch.tensor([[-1.0], [-1], [-1], [1], [3]]), torch.tensor([0, 1, 1, 0, 1]))
        sampler, labels = Sampler(Karras(24)), torch.zeros(400, dtype=torch.int64)
        plain = sampler.sample(data, seeds=range(400), condition=labels)
        guided = sampler.sample(ClassifierFree(data, 2.0), seeds=range(400), condition=labels)
        standard_error = 0.5 / math.sqrt(400)
        assert abs(float((plain > 0).double().mean()) - 0.5) < 4 * standard_error
        assert float((guided > 0).double().mean()) > 0.5 + 4 * standard_error

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: ClassifierFree(mixture(0), 2.0), r"denoiser must be conditional: it has num_classes=0"),
            (lambda: ClassifierFree(classes(), 2.0)(normal(1, 2), 1.0), r"condition must be given for classifier-free"),
            (
                lambda: ClassifierFree(classes(), 2.0, null=torch.zeros(2))(normal(1, 2), 1.0, torch.tensor([0])),
                r"null must have the shape of one sample's condition, \(\), got \(2,\)",
            ),
        ],
    )
    def test_a_condition_that_cannot_be_left_out_is_refused(self, call: Callable[[], object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            call()


def test_the_weight_is_seen_in_the_printed_denoiser() -> None:
    assert "weight=Interval(weight=2.0, low=0.1, high=1.0)" in repr(
        Guided(mixture(0), mixture(1), Interval(2.0, 0.1, 1.0))
    )
