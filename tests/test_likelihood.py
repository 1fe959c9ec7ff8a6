"""Densities by the change of variables against closed forms; probes, dequantisation and latent noise."""

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

from openedm.denoiser import Condition, Denoiser, FunctionDenoiser, Preconditioned
from openedm.exact import ExactDataset, GaussianMixture
from openedm.ground.choices import from_config, to_config
from openedm.guidance import Constant, Guided
from openedm.levels import Karras
from openedm.likelihood import ExactTrace, Hutchinson, Likelihood, LogProb, Trace, bits_per_dim, log_prob
from openedm.likelihood.density import skewness_of
from openedm.networks import MLP, DDPMpp
from openedm.preconditioning import EDM
from openedm.sampling import RK4, DormandPrince, Exponential23, Heun, Sampler, SeededNoise, Tsit5

pytestmark = pytest.mark.usefixtures("without_type_checker")  # which takes longer than the arithmetic


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mixture(components: int, dim: int, seed: int) -> GaussianMixture:
    """Overlapping, correlated components, not centred; standard deviations from 0.05 to about 1."""
    root = 0.8 * noise(components, dim, dim, seed=seed) / math.sqrt(dim)
    covariances = root @ root.mT + 0.05**2 * torch.eye(dim, dtype=torch.float64)
    means = 0.5 + 0.7 * noise(components, dim, seed=seed + 1)
    return GaussianMixture(noise(components, seed=seed).exp(), means, covariances)


PLANE, WIDE = mixture(4, 2, seed=0), mixture(3, 16, seed=2)
EDM_RANGE = {"sigma_min": 0.002, "sigma_max": 80.0}


def drawn(denoiser: GaussianMixture, count: int, sigma: float = 0.0) -> Tensor:
    return denoiser.sample(count, torch.Generator().manual_seed(5), sigma=sigma)


@pytest.mark.parametrize("solver", [DormandPrince(1e-4), Tsit5(1e-4)], ids=repr)
@pytest.mark.parametrize(("exact", "count"), [(PLANE, 64), (WIDE, 24)], ids=["2-D", "16-D"])
def test_the_density_of_a_mixture_is_right_to_two_ten_thousandths_of_a_nat(
    exact: GaussianMixture, count: int, solver: DormandPrince
) -> None:
    for sigma_min in (0.002, 1e-4):
        x = drawn(exact, count, sigma_min)
        found = log_prob(exact, x, sigma_min=sigma_min, solver=solver)
        torch.testing.assert_close(found.log_prob, exact.log_prob(x, sigma_min), rtol=0, atol=2e-4)
    # At 1e-4 the noise of σ_min is no longer seen.
    torch.testing.assert_close(found.log_prob, exact.log_prob(x), rtol=0, atol=2e-4)
    assert bool((found.standard_error == 0).all())
    assert found.num_probes == 0
    assert bool(found.finished.all())


def test_far_from_the_data_the_density_is_right_too() -> None:
    x = torch.tensor([[6.0, -5.0], [0.0, 8.0]], dtype=torch.float64)
    assert float(PLANE.log_prob(x).max()) < -15
    torch.testing.assert_close(log_prob(PLANE, x, sigma_min=1e-3).log_prob, PLANE.log_prob(x, 1e-3), rtol=0, atol=1e-4)


def test_the_error_falls_with_the_tolerance() -> None:
    x, errors = drawn(PLANE, 32, 0.002), []
    for tolerance in (1e-2, 1e-4, 1e-6):
        found = log_prob(PLANE, x, **EDM_RANGE, solver=DormandPrince(tolerance))
        error = (found.log_prob - PLANE.log_prob(x, 0.002)).abs()
        assert float(error.median()) < 0.3 * tolerance
        errors.append(float(error.max()))
        assert errors[-1] < 3 * tolerance
    assert errors[2] < errors[0] / 1e3


@pytest.mark.parametrize(("solver", "order", "steps"), [(Heun(), 2, (100, 200)), (RK4(), 4, (48, 96))])
def test_fixed_steps_converge_at_the_order_of_their_solver(solver: Any, order: int, steps: tuple[int, int]) -> None:
    exact = GaussianMixture([1.0], [[0.5, -1.0]], [[[2.0, 0.6], [0.6, 0.3]]])
    x, errors = drawn(exact, 16, 0.05), []
    for count in steps:
        found = log_prob(exact, x, sigma_min=0.05, sigma_max=2000.0, solver=solver, num_steps=count)
        errors.append(float((found.log_prob - exact.log_prob(x, 0.05)).norm()))
        assert set(found.nfe.tolist()) == {count * len(solver.tableau.b) + 3}
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("sigma_max", [10.0, 20.0, 40.0])
def test_the_denoiser_tells_the_density_at_the_highest_level_far_better_than_pure_noise(sigma_max: float) -> None:
    x = drawn(WIDE, 16, 0.01)
    truth, errors = WIDE.log_prob(x, 0.01), {}
    for terminal in ("moments", "noise"):
        found = log_prob(WIDE, x, sigma_min=0.01, sigma_max=sigma_max, terminal=terminal, solver=DormandPrince(1e-6))
        errors[terminal] = float((found.log_prob - truth).abs().max())
    # n (λ/σ²)² with n = 16 and λ about 1, and n λ/(2σ²): both are around the mean, without the error m·x/σ².
    assert errors["moments"] < 16 / sigma_max**4 * 2
    assert errors["noise"] > 2 / sigma_max**2
    assert errors["noise"] > 50 * errors["moments"]


def test_with_pure_noise_at_the_highest_level_densities_of_what_samplers_draw_integrate_to_one() -> None:
    main = GaussianMixture([0.6, 0.4], [[-1.0], [0.8]], [[[0.1]], [[0.3]]])
    guide = GaussianMixture([1.0], [[0.3]], [[[1.5]]])
    x = torch.linspace(-6, 6, 481, dtype=torch.float64)[:, None]
    for denoiser in (main, Guided(main, guide, Constant(2.0))):
        found = log_prob(denoiser, x, sigma_min=0.01, sigma_max=20.0, terminal="noise")
        assert float(torch.trapezoid(found.log_prob.exp(), x[:, 0])) == pytest.approx(1, abs=1e-4)


def test_a_guided_density_is_that_of_guided_samples() -> None:
    main = GaussianMixture([0.6, 0.4], [[-1.0], [0.8]], [[[0.1]], [[0.3]]])
    guided = Guided(main, GaussianMixture([1.0], [[0.3]], [[[1.5]]]), Constant(2.0))
    likelihood = Likelihood(sigma_min=0.01, sigma_max=20.0, terminal="noise")
    samples = likelihood.decode(guided, noise(2000, 1))
    x = torch.linspace(-6, 6, 481, dtype=torch.float64)[:, None]
    density = likelihood.log_prob(guided, x).log_prob.exp()
    mean = float(torch.trapezoid(density * x[:, 0], x[:, 0]))
    second = float(torch.trapezoid(density * x[:, 0] ** 2, x[:, 0]))
    spread = math.sqrt(second - mean**2)
    assert float(samples.mean()) == pytest.approx(mean, abs=5 * spread / math.sqrt(2000))
    assert float(samples.std()) == pytest.approx(spread, rel=5 * math.sqrt(0.5 / 2000) * 2)


def test_the_density_without_the_noise_of_the_lowest_level_is_extrapolated_to_fourth_order() -> None:
    exact = GaussianMixture([0.6, 0.4], [[-0.5, 0.0], [0.8, 0.3]], 0.3 * torch.eye(2).double().expand(2, 2, 2))
    x, errors = drawn(exact, 32), []
    for sigma_min in (0.1, 0.05):
        settings = {"sigma_min": sigma_min, "solver": DormandPrince(1e-7)}
        plain, better = log_prob(exact, x, **settings), log_prob(exact, x, extrapolate=True, **settings)
        errors.append(float((better.log_prob - exact.log_prob(x)).abs().max()))
        assert errors[-1] < 0.1 * float((plain.log_prob - exact.log_prob(x)).abs().max())
        assert torch.equal(better.nfe, plain.nfe + 1)
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.3)


def jacobian_traces(denoiser: Denoiser, x: Tensor, sigma: float, condition: Condition = None) -> Tensor:
    """One row and one coordinate at a time."""
    found = []
    for i in range(len(x)):
        row = None if condition is None else condition[i : i + 1]

        def one(flat: Tensor, row: Condition = row) -> Tensor:
            return denoiser(flat.reshape(1, *x.shape[1:]), sigma, row).flatten()

        found.append(torch.autograd.functional.jacobian(one, x[i].flatten()).trace())
    return torch.stack(found)


def network(name: str) -> Preconditioned:
    if name == "mlp":
        return Preconditioned(MLP(width=16, num_blocks=1).build((3,), seed=1), EDM(), event_shape=(3,)).eval()
    unet = DDPMpp(model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=(4,)).build(
        (1, 4, 4), num_classes=3, seed=1
    )
    for parameter in unet.parameters():  # the last layers start at 0, which would leave nothing to differentiate
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    return Preconditioned(unet, EDM(), event_shape=(1, 4, 4), num_classes=3).eval()


@pytest.mark.parametrize("name", ["mlp", "unet with attention"])
def test_exact_traces_of_networks_are_those_of_their_jacobians_whatever_the_chunk(name: str) -> None:
    denoiser = network(name)
    assert denoiser.event_shape is not None
    x = noise(3, *denoiser.event_shape)
    condition = torch.tensor([0, 2, 1]) if denoiser.num_classes else None
    truth = jacobian_traces(denoiser, x, 0.7, condition)
    for chunk in (1, 5, 64):
        denoised, traces = ExactTrace(chunk)(lambda point: denoiser(point, 0.7, condition), x, None)
        torch.testing.assert_close(traces[:, 0], truth, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(denoised, denoiser(x, 0.7, condition), rtol=1e-5, atol=1e-6)
        assert not denoised.requires_grad


def test_convolutions_in_channels_last_memory_have_the_same_exact_trace() -> None:
    denoiser, x = network("unet with attention"), noise(2, 1, 4, 4)
    plain, turned = (
        ExactTrace()(lambda point, model=model: model(point, 0.7, torch.tensor([0, 2])), x, None)[1]
        for model in (denoiser, network("unet with attention").to(memory_format=torch.channels_last))
    )
    torch.testing.assert_close(turned, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_probes_have_the_mean_and_the_variance_that_theory_gives_them(distribution: Any) -> None:
    matrix = noise(5, 5)
    trace, count = Hutchinson(4000, distribution), 4000
    linear = FunctionDenoiser(lambda x, sigma, condition: x @ matrix.mT)
    x = noise(2, 5)
    probes = trace.probes(SeededNoise([3, 4]), x)
    _, found = trace(lambda point: linear(point, 1.0), x, probes)
    symmetric = (matrix + matrix.mT) / 2
    off = symmetric.square().sum() - (symmetric.diagonal().square().sum() if distribution == "rademacher" else 0)
    variance = float(2 * off)
    assert found.shape == (2, count)
    for row in found:
        assert float(row.mean()) == pytest.approx(float(matrix.trace()), abs=5 * math.sqrt(variance / count))
        # The relative error of a variance of numbers with a fourth moment of up to 15 variances squared.
        assert float(row.var()) == pytest.approx(variance, rel=5 * math.sqrt(14 / count))


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_intervals_of_random_probes_cover_the_truth_at_their_rate(level: float) -> None:
    x, count = drawn(WIDE, 250, 0.002), 250
    settings = {"trace": Hutchinson(4), "solver": DormandPrince(1e-2)}
    found = log_prob(WIDE, x, seeds=range(count), **EDM_RANGE, **settings)
    low, high = found.interval(level)
    truth = WIDE.log_prob(x, 0.002)
    covered = int(((low <= truth) & (truth <= high)).sum())
    assert binomtest(covered, count, level).pvalue > 0.01
    assert float(found.standard_error.median()) > 20 * 1e-2 / 10  # what the solver errs by is not seen beside it
    assert found.num_probes == 4


@pytest.mark.parametrize(("dim", "probes"), [(5, 2), (7, 3), (9, 4)])
def test_intervals_hold_in_few_dimensions_too(dim: int, probes: int) -> None:
    few, count = mixture(2, dim, seed=6), 400
    x = drawn(few, count, 0.002)
    found = log_prob(few, x, seeds=range(count), trace=Hutchinson(probes), solver=DormandPrince(1e-2))
    low, high = found.interval(0.95)
    truth = log_prob(few, x, trace=ExactTrace(), solver=DormandPrince(1e-2)).log_prob
    covered = int(((low <= truth) & (truth <= high)).sum())
    assert found.num_probes == probes
    assert binomtest(covered, count, 0.95, alternative="less").pvalue > 0.01


@pytest.mark.parametrize(("dim", "probes"), [(3, 2), (4, 3), (9, 8)])
def test_few_probes_differ_and_each_stays_uniform(dim: int, probes: int) -> None:
    x = noise(20000 if dim < 9 else 2000, dim)
    drawn_probes = Hutchinson(probes).probes(SeededNoise(range(len(x))), x)
    products = torch.einsum("kbn,lbn->bkl", drawn_probes, drawn_probes).abs()
    assert int((products > dim - 0.5).sum()) == probes * len(x)  # each is alike to itself alone
    for probe in drawn_probes:
        assert float((probe.mT @ probe / len(x) - torch.eye(dim)).abs().max()) < 5 / math.sqrt(len(x))
        assert float(probe.mean(0).abs().max()) < 5 / math.sqrt(len(x))


def test_half_as_many_probes_as_coordinates_or_more_are_the_exact_trace() -> None:
    x = drawn(PLANE, 5)
    found = log_prob(PLANE, x, trace=Hutchinson(1))
    assert torch.equal(found.log_prob, log_prob(PLANE, x, trace=ExactTrace()).log_prob)
    assert found.num_probes == 0
    assert Likelihood(Hutchinson(4)).trace_for((8,)) == ExactTrace()
    assert Likelihood(Hutchinson(4)).trace_for((9,)) == Hutchinson(4)


def test_the_standard_error_falls_with_the_number_of_probes() -> None:
    wider = mixture(2, 50, seed=3)
    x = drawn(wider, 30, 0.002)
    few, many = (log_prob(wider, x, seeds=range(30), trace=Hutchinson(k), solver=DormandPrince(1e-2)) for k in (3, 24))
    ratio = float(few.standard_error.square().mean() / many.standard_error.square().mean())
    assert ratio == pytest.approx(8, rel=0.5)
    x = drawn(WIDE, 2, 0.002)
    single = log_prob(WIDE, x[:2], seeds=[0, 1], trace=Hutchinson(1), solver=DormandPrince(1e-2))
    assert bool(single.standard_error.isnan().all())
    with pytest.raises(ValueError, match="num_probes must be >= 2 for an interval, got 1"):
        single.interval()


@pytest.mark.parametrize(
    ("errors", "of_student"),
    [("normal", 0.95), ("exponential", 0.895), ("squares", 0.85), ("negative squares", 0.85), ("coupled signs", 0.86)],
)
def test_intervals_hold_where_errors_are_skewed(errors: str, of_student: float) -> None:
    """95 % intervals of 8 estimates; the deviation of a share of 20,000 is 0.0015."""
    n, k = 20_000, 8
    normal = noise(n, k * 16).reshape(n, k, 16)
    signs = normal.sign()
    weights = noise(1, 16)[0]
    estimates = {
        "normal": normal[..., 0],
        "exponential": normal[..., :2].square().sum(-1) / 2 - 1,
        "squares": normal[..., 0].square() - 1,
        "negative squares": 1 - normal[..., 0].square(),
        "coupled signs": (signs @ weights).square() - weights.square().sum(),  # vᵀ J v of J of rank 1
    }[errors]
    zeros = torch.zeros(n)
    mean, error = estimates.mean(1), estimates.std(1) / math.sqrt(k)
    found = LogProb(mean, error, skewness_of(estimates), k, zeros, zeros.long(), zeros.bool())
    low, high = found.interval(0.95)
    assert float(((low <= 0) & (high >= 0)).double().mean()) == pytest.approx(0.955, abs=0.015)
    student = replace(found, skewness=zeros.double()).interval(0.95)
    assert float(((student[0] <= 0) & (student[1] >= 0)).double().mean()) == pytest.approx(of_student, abs=0.012)
    torch.testing.assert_close(student[1] - mean, mean - student[0])  # Student's is symmetric


def test_an_exact_trace_has_an_interval_of_no_length() -> None:
    found = log_prob(PLANE, drawn(PLANE, 3))
    low, high = found.interval(0.9)
    assert torch.equal(low, found.log_prob)
    assert torch.equal(high, found.log_prob)
    with pytest.raises(ValueError, match=r"level must be between 0.0 and 1.0, got 1.5"):
        found.interval(1.5)


@pytest.mark.parametrize("trace", [ExactTrace(), Hutchinson(3)], ids=repr)
def test_a_sample_does_not_depend_on_its_neighbours(trace: Trace) -> None:
    x, seeds = drawn(PLANE, 8, 0.002), list(range(10, 18))
    together = log_prob(PLANE, x, seeds=seeds, trace=trace)
    for i in (0, 5):
        alone = log_prob(PLANE, x[i : i + 1], seeds=seeds[i : i + 1], trace=trace)
        torch.testing.assert_close(alone.log_prob[0], together.log_prob[i], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(alone.standard_error[0], together.standard_error[i], rtol=1e-8, atol=1e-10)
        assert int(alone.nfe) == int(together.nfe[i])


def test_the_condition_is_told() -> None:
    points = torch.tensor([[-1.0, 0.5], [2.0, 0.0]], dtype=torch.float64)
    denoiser, classes = ExactDataset(points, torch.arange(2)), torch.tensor([1, 0, 1])
    x = points[classes] + 0.3 * noise(3, 2)
    found = log_prob(denoiser, x, classes, sigma_min=0.3, solver=DormandPrince(1e-6))
    truth = -((x - points[classes]) / 0.3).square().sum(1) / 2 - math.log(2 * math.pi * 0.3**2)
    torch.testing.assert_close(found.log_prob, truth, rtol=0, atol=1e-5)


def test_encoding_and_decoding_undo_each_other_and_agree_with_the_density_and_the_sampler() -> None:
    x, likelihood = drawn(WIDE, 16, 0.002), Likelihood(**EDM_RANGE, solver=DormandPrince(1e-6))
    latent = likelihood.encode(WIDE, x)
    torch.testing.assert_close(likelihood.decode(WIDE, latent), x, rtol=0, atol=1e-5)
    torch.testing.assert_close(likelihood.log_prob(WIDE, x).noise, latent, rtol=0, atol=1e-5)
    again = Sampler(Karras(2, 0.002, 80.0), solver=DormandPrince(1e-6)).sample(WIDE, noise=latent)
    torch.testing.assert_close(again, WIDE(x, 0.002), rtol=0, atol=1e-5)


def test_latent_noise_of_data_is_unit_noise() -> None:
    latent = Likelihood(**EDM_RANGE, solver=DormandPrince(1e-3)).encode(PLANE, drawn(PLANE, 3000, 0.002))
    # Five standard errors, and the share of the data at σ = 80.
    assert float(latent.mean(0).abs().max()) < 5 / math.sqrt(3000) + 1 / 80
    assert float((latent.var(0) - 1).abs().max()) < 5 * math.sqrt(2 / 3000) + 1e-3


def test_fixed_steps_encode_and_decode_too() -> None:
    likelihood = Likelihood(solver=RK4(), num_steps=80)
    x = drawn(PLANE, 8, 0.002)
    torch.testing.assert_close(likelihood.decode(PLANE, likelihood.encode(PLANE, x)), x, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["mlp", "unet with attention"])
def test_networks_in_single_precision_have_densities_that_do_not_depend_on_the_trace(name: str) -> None:
    denoiser = network(name)
    assert denoiser.event_shape is not None
    x = 0.5 * noise(2, *denoiser.event_shape).float()
    condition = torch.tensor([0, 2]) if denoiser.num_classes else None
    settings = {"solver": DormandPrince(1e-2), "sigma_min": 0.1, "sigma_max": 20.0}
    exact = log_prob(denoiser, x, condition, trace=ExactTrace(), **settings)
    probed = log_prob(denoiser, x, condition, seeds=[1, 2], trace=Hutchinson(16), **settings)
    assert exact.log_prob.dtype == torch.float64
    assert bool(exact.log_prob.isfinite().all())
    assert bool(((probed.log_prob - exact.log_prob).abs() < 5 * probed.standard_error + 0.05).all())


def test_the_trace_is_exact_for_small_samples_and_random_for_large_ones() -> None:
    assert Likelihood().trace_for((16,)) == ExactTrace()
    assert Likelihood().trace_for((17,)) == Hutchinson(8)
    assert Likelihood().trace_for((3, 32, 32)) == Hutchinson(8)
    assert Likelihood(ExactTrace(2)).trace_for((3, 32, 32)) == ExactTrace(2)


def test_a_sample_that_runs_out_of_evaluations_has_no_density() -> None:
    x = drawn(PLANE, 4, 0.002)
    found = log_prob(PLANE, x, solver=DormandPrince(1e-4, max_nfe=30))
    assert bool(found.log_prob.isnan().all())
    assert not bool(found.finished.any())
    with pytest.raises(ValueError, match="max_nfe must be large enough for the whole range of noise levels"):
        Likelihood(solver=DormandPrince(1e-4, max_nfe=30)).encode(PLANE, x)


def test_a_choice_is_written_and_read() -> None:
    for choice in (
        Likelihood(),
        Likelihood(Hutchinson(4, "gaussian"), Tsit5(1e-5, variable=None), None, 1e-3, 50.0, "noise", True),
        Likelihood(ExactTrace(3), Heun(), 20),
    ):
        assert from_config(Likelihood, to_config(choice)) == choice


def pixels(deviation: float, shape: tuple[int, ...] = (1, 2, 2)) -> FunctionDenoiser:
    """Images of independent Gaussian pixels about 0.1."""

    def denoise(x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        shrink = (deviation**2 / (deviation**2 + sigma**2)).reshape(-1, *[1] * 3)
        return 0.1 + shrink * (x - 0.1)

    denoiser = FunctionDenoiser(denoise, event_shape=shape)
    denoiser.sigma_data = deviation
    return denoiser


def code_length(x: Tensor, deviation: float) -> Tensor:
    """−log₂ P/n, P the probability of the bins of 256 values."""
    ends = [torch.special.ndtr((x + side / 255 - 0.1) / deviation) for side in (-1, 1)]
    return -(ends[1] - ends[0]).log2().flatten(1).mean(1)


def quantised(deviation: float, count: int, shape: tuple[int, ...] = (1, 2, 2)) -> Tensor:
    x = (0.1 + deviation * noise(count, *shape)).clamp(-1, 1)
    return ((x + 1) * 127.5).round() / 127.5 - 1


def test_bits_per_dimension_of_wide_pixels_are_their_code_length() -> None:
    x = quantised(0.3, 20)
    found = bits_per_dim(pixels(0.3), x, seeds=range(20), draws=2)
    # Within a bin, of width δ, ln p moves by about δ |x|/s² ≤ 0.0078 · 1 / 0.09, of either sign.
    assert float((found.bits_per_dim - code_length(x, 0.3)).abs().max()) < 0.1
    assert float((found.bits_per_dim - code_length(x, 0.3)).abs().mean()) < 0.01
    assert found.log_prob.shape == (2, 20)


def test_uniform_dequantisation_bounds_the_code_length_from_above_and_importance_comes_closer() -> None:
    x, deviation = quantised(0.003, 100), 0.003  # narrower than a bin
    settings = {"seeds": range(100), "likelihood": Likelihood(sigma_min=1e-5, solver=DormandPrince(1e-3))}
    truth = float(code_length(x, deviation).mean())
    plain = bits_per_dim(pixels(deviation), x, draws=8, **settings)
    closer = bits_per_dim(pixels(deviation), x, draws=8, importance=True, **settings)
    assert torch.equal(plain.log_prob, closer.log_prob)
    assert truth < float(closer.bits_per_dim.mean()) < float(plain.bits_per_dim.mean()) - 0.1
    assert float(closer.bits_per_dim.mean()) - truth < 0.5 * (float(plain.bits_per_dim.mean()) - truth)
    assert bool((plain.standard_error > 0).all())
    assert bool(closer.standard_error.isnan().all())
    # E_u ln p(x + u) = −(x² + δ²/12)/(2s²) − ½ ln 2πs² for each pixel, u uniform on a bin of width δ.
    width = 2 / 255
    mean = -((x - 0.1).square() + width**2 / 12) / (2 * deviation**2) - 0.5 * math.log(2 * math.pi * deviation**2)
    expected = -(mean + math.log(width)) / math.log(2)
    error = float(plain.bits_per_dim.std()) / 10
    assert float(plain.bits_per_dim.mean()) == pytest.approx(float(expected.mean()), abs=5 * error)


def test_single_draws_tell_the_error_of_their_probes_alone() -> None:
    x, denoiser = quantised(0.3, 3, (1, 2, 3)), pixels(0.3, (1, 2, 3))
    probed = bits_per_dim(denoiser, x, seeds=range(3), likelihood=Likelihood(Hutchinson(2, "gaussian")))
    assert bool((probed.standard_error > 0).all())
    assert bool(bits_per_dim(denoiser, x, seeds=range(3)).standard_error.isnan().all())


def test_images_of_other_values_are_dequantised_in_their_own_bins() -> None:
    x = (quantised(0.3, 8) * 8).round() / 8
    coarse = bits_per_dim(pixels(0.3), x, seeds=range(8), num_values=17, draws=4)
    ends = [torch.special.ndtr((x + side / 16 - 0.1) / 0.3) for side in (-1, 1)]
    truth = -(ends[1] - ends[0]).log2().flatten(1).mean(1)
    assert float((coarse.bits_per_dim - truth).mean()) == pytest.approx(0.0, abs=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExactTrace(0), "chunk must be >= 1, got 0"),
        (lambda: Hutchinson(0), "num_probes must be >= 1, got 0"),
        (lambda: Hutchinson(4, "cauchy"), "distribution must be one of 'rademacher', 'gaussian', got 'cauchy'"),
        (lambda: Likelihood(sigma_min=0.0), "sigma_min must be finite and > 0, got 0.0"),
        (
            lambda: Likelihood(sigma_min=90.0, sigma_max=80.0),
            "sigma_min must be < sigma_max, got sigma_min=90.0 and sigma_max=80.0",
        ),
        (
            lambda: log_prob(WIDE, noise(2, 16), sigma_min=1e6),
            "sigma_min must be < sigma_max, got sigma_min=1000000.0",
        ),
        (lambda: Likelihood(terminal="flat"), "terminal must be one of 'moments', 'noise', got 'flat'"),
        (lambda: Likelihood(num_steps=20), "num_steps requires a Runge-Kutta solver, otherwise None, got 20"),
        (lambda: Likelihood(solver=RK4(), num_steps=0), "num_steps must be >= 1, got 0"),
        (
            lambda: log_prob(WIDE, noise(2, 16), trace=Hutchinson(2)),
            "seeds must be given, one a sample, for Hutchinson(",
        ),
        (
            lambda: log_prob(WIDE, noise(2, 16), seeds=[1], trace=Hutchinson(2)),
            "seeds must be one a sample (2), got 1",
        ),
        (lambda: log_prob(PLANE, noise(0, 2)), "x must hold at least one sample, got shape (0, 2)"),
        (
            lambda: bits_per_dim(pixels(0.3), noise(0, 1, 2, 2), seeds=[]),
            "images must hold at least one image, got shape (0, 1, 2, 2)",
        ),
        (
            lambda: log_prob(ExactDataset(noise(5, 2), torch.arange(5)), noise(3, 2), torch.arange(2)),
            "condition must have one row a sample (3), got 2 rows",
        ),
        (
            lambda: log_prob(pixels(100.0), noise(2, 1, 2, 2), sigma_max=80.0),
            "sigma_max must be far above the denoiser's sigma_data, 100, where the density is known, got 80",
        ),
        (
            lambda: log_prob(FunctionDenoiser(lambda x, s, c: x, sigma_max=1e-3), noise(1, 2)),
            "noise levels from 0.002 to 80 are outside the denoiser's range [0, 0.001]",
        ),
        (lambda: bits_per_dim(pixels(0.3), quantised(0.3, 2), seeds=[1]), "seeds must be one an image (2), got 1"),
        (
            lambda: bits_per_dim(pixels(0.3), noise(1, 1, 2, 2), seeds=[1]),
            "images must be in [-1, 1] and at whole levels",
        ),
        (lambda: bits_per_dim(pixels(0.3), quantised(0.3, 1), seeds=[1], draws=0), "draws must be >= 1, got 0"),
        (
            lambda: bits_per_dim(pixels(0.3), quantised(0.3, 1), seeds=[1], importance=True),
            "importance requires draws >= 2, got 1",
        ),
        (
            lambda: bits_per_dim(
                pixels(0.3), quantised(0.3, 1), seeds=[1], importance=True, likelihood=Likelihood(Hutchinson(1))
            ),
            "importance requires an exact trace, got Hutchinson(",
        ),
    ],
)
def test_an_argument_that_does_not_fit_is_named(make: Any, message: str, without_type_checker: None) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_types_that_do_not_fit_are_named(without_type_checker: None) -> None:
    with pytest.raises(
        TypeError, match=re.escape("solver must be DormandPrince, Tsit5 or a Runge-Kutta solver, got Exp")
    ):
        Likelihood(solver=Exponential23())
    with pytest.raises(TypeError, match=re.escape("num_steps must be an integer, got None")):
        Likelihood(solver=RK4())
    with pytest.raises(TypeError, match="denoiser must be differentiable in x for a likelihood"):
        log_prob(FunctionDenoiser(lambda x, sigma, condition: torch.zeros_like(x)), noise(1, 2))


def test_a_denoiser_with_dropout_on_is_refused() -> None:
    network = torch.nn.Sequential(MLP(8, num_blocks=1).build((2,), seed=0), torch.nn.Dropout(0.5))
    denoiser = Preconditioned(network, EDM(), event_shape=(2,))
    for ask in (log_prob, Likelihood().encode, Likelihood().decode):
        with pytest.raises(ValueError, match="denoiser must be in evaluation mode, but dropout"):
            ask(denoiser, torch.zeros(1, 2))


@pytest.mark.parametrize("width", [1e-3, 1.0, 1e4])
def test_the_noise_levels_follow_the_width_of_the_data(width: float) -> None:
    narrow = GaussianMixture([1.0], [[280.0 * width]], [[[width**2]]])
    x = torch.tensor([[279.0], [281.5]], dtype=torch.float64) * width
    found = log_prob(narrow, x, solver=DormandPrince(1e-6))
    truth = narrow.log_prob(x, 0.004 * width)
    assert torch.allclose(found.log_prob, truth, atol=1e-4)
    with pytest.raises(ValueError, match="sigma_min must be < sigma_max"):
        log_prob(narrow, x, sigma_min=1e3 * width)
