"""Units: what data and denoisers in units of their own give is what standard units give, mapped."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from openedm.conditioning import DPS, MMPS
from openedm.data import InMemory, LatentPairs, Latents, Pairs, measure
from openedm.denoiser import FunctionDenoiser, Preconditioned
from openedm.exact import ExactDataset, GaussianMixture
from openedm.ground.choices import from_config, to_config
from openedm.guidance import Guided
from openedm.levels import Karras
from openedm.likelihood import log_prob
from openedm.measurements import Matrix, Measurement
from openedm.networks import MLP
from openedm.preconditioning import EDM
from openedm.sampling import (
    RK4,
    Ancestral,
    Auto,
    Churn,
    DormandPrince,
    DPMSolverPP2M,
    EulerMaruyama,
    Exponential23,
    Restart,
    Sampler,
    SamplerChoice,
    SeededNoise,
    adaptive_flow,
)
from openedm.schedules import VP
from openedm.standardised import InUnits
from openedm.training import Model, Options, Trainer
from openedm.units import Units

pytestmark = pytest.mark.usefixtures("without_type_checker")  # which takes longer than the arithmetic

UNITS = Units((280.0, -3e4), (20.0, 5e-3))
STANDARD = GaussianMixture(
    [0.4, 0.6], [[-0.6, 0.3], [0.4, -0.2]], [[[0.05, 0.02], [0.02, 0.1]], [[0.1, 0.0], [0.0, 0.02]]]
)
KELVIN = GaussianMixture([1.0], [[280.0]], [[[100.0]]])
SAMPLERS: list[SamplerChoice] = [
    Sampler(),
    Sampler(Karras(12), schedule=VP(), solver=RK4()),
    Sampler(churn=Churn(20.0, s_noise=1.003)),
    Sampler(solver=EulerMaruyama()),
    Sampler(solver=Ancestral()),
    Sampler(solver=Restart()),
    Sampler(solver=DPMSolverPP2M(eta=1.0)),
    Sampler(solver=DormandPrince(1e-4)),
    Sampler(solver=Exponential23(1e-4)),
    Auto(nfe=12),
    Auto(tolerance=1e-3),
]


def scaled(x: Tensor) -> Tensor:
    return UNITS.restore(x)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_samples_of_a_seed_are_those_in_standard_units_mapped(sampler: SamplerChoice) -> None:
    inside = sampler.sample(STANDARD, seeds=range(6))
    outside = sampler.sample(InUnits(STANDARD, UNITS), seeds=range(6))
    assert outside.dtype == torch.float64
    # Rounding of 3e4 in units of 5e-3.
    torch.testing.assert_close(UNITS.standardise(outside), inside, rtol=0, atol=1e-7)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_samples_of_a_wider_gaussian_elsewhere_are_those_of_edms_width_around_0_mapped(sampler: SamplerChoice) -> None:
    edm = GaussianMixture([1.0], [[0.0]], [[[0.25]]])
    if isinstance(sampler, Sampler) and sampler.schedule == VP():
        return  # steps in the time of a schedule of its own
    x = sampler.sample(KELVIN, seeds=range(8))
    torch.testing.assert_close(x, 280 + 20 * sampler.sample(edm, seeds=range(8)), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("sampler", "std"), [(Auto(tolerance=1e-3), 1e-3), (Auto(nfe=32), 1e-3), (Sampler(), 0.07)])
def test_a_gaussian_in_kelvin_has_its_mean_and_width_to_the_error_of_the_sampler(
    sampler: SamplerChoice, std: float
) -> None:
    noise = SeededNoise(range(4000)).draw((1,))
    x = sampler.sample(KELVIN, seeds=range(4000))
    assert float(x.mean()) == pytest.approx(280 + 10 * float(noise.mean()), abs=10 * std)
    assert float(x.std()) == pytest.approx(10 * float(noise.std()), abs=10 * std)


def test_a_shift_of_an_exact_denoiser_shifts_its_samples() -> None:
    data = torch.randn(20, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for sampler in SAMPLERS:
        here, there = (sampler.sample(ExactDataset(data + shift), seeds=range(4)) for shift in (0.0, 1e3))
        torch.testing.assert_close(there - 1e3, here, rtol=0, atol=1e-6)


def test_a_class_is_started_from_its_own_mean() -> None:
    denoiser = ExactDataset(torch.tensor([[0.0], [2.0], [1000.0]]), torch.tensor([0, 0, 1]))
    assert denoiser.mean(80.0, torch.tensor([1, 0, -1]))[:, 0].tolist() == pytest.approx([1000, 1, 334])
    x = Sampler().sample(denoiser, seeds=range(3), condition=torch.tensor([1, 0, 1]))
    assert x[[0, 2], 0].tolist() == pytest.approx([1000, 1000])
    adaptive = Sampler(solver=DormandPrince(1e-3)).sample(denoiser, seeds=range(3), condition=torch.tensor([1, 0, 1]))
    assert adaptive[[0, 2], 0].tolist() == pytest.approx([1000, 1000])


def test_a_function_is_started_from_one_evaluation_at_the_highest_level_or_the_mean_that_is_given() -> None:
    calls: list[int] = []

    def shrink(x: Tensor, sigma: Tensor, condition: Tensor | None) -> Tensor:
        calls.append(len(x))
        return KELVIN(x, sigma)

    asked = FunctionDenoiser(shrink, (1,), sigma_data=10.0)
    x = Auto(nfe=12).sample(asked, seeds=range(4))
    assert calls == [1] + 12 * [4]
    told = FunctionDenoiser(shrink, (1,), sigma_data=10.0, mean=280.0)
    torch.testing.assert_close(x, Auto(nfe=12).sample(told, seeds=range(4)), rtol=0, atol=1e-3)
    assert calls == [1] + 24 * [4]


def test_the_end_of_a_run_has_the_dtype_that_is_promised_whatever_the_denoiser_returns() -> None:
    single = FunctionDenoiser(lambda x, sigma, _: KELVIN(x, sigma).float(), (1,), mean=280.0)
    assert Sampler().sample(single, seeds=[0]).dtype == torch.float64


@pytest.mark.parametrize("sampler", [Sampler(Karras(24)), Auto(tolerance=1e-4), Sampler(solver=DormandPrince(1e-4))])
def test_inversion_undoes_sampling_and_its_callback_gets_states_in_data_units(sampler: SamplerChoice) -> None:
    denoiser, states = InUnits(STANDARD, UNITS), []
    run = sampler.choose(denoiser)
    x = scaled(STANDARD.sample(8, torch.Generator().manual_seed(0)))
    noise = run.invert(denoiser, x, callback=states.append)
    torch.testing.assert_close(noise, run.invert(STANDARD, UNITS.standardise(x)), rtol=0, atol=1e-5)
    torch.testing.assert_close(states[0].x / states[0].scale, x, rtol=1e-12, atol=0)
    back = UNITS.standardise(run.sample(denoiser, noise=noise)) - UNITS.standardise(x)
    assert float(back.abs().median()) < 2e-2


def test_states_of_a_run_are_in_data_units_under_every_scaling() -> None:
    sampler = Sampler(Karras(6), schedule=VP())
    for inside, outside in zip(sampler.steps(STANDARD, [0]), sampler.steps(InUnits(STANDARD, UNITS), [0]), strict=True):
        torch.testing.assert_close(
            UNITS.standardise(outside.x / outside.scale), inside.x / inside.scale, rtol=1e-9, atol=1e-7
        )
        torch.testing.assert_close(UNITS.standardise(outside.denoised), inside.denoised, rtol=1e-9, atol=1e-7)


def test_the_flow_between_two_levels_is_mapped_with_its_dense_output() -> None:
    at, solver = torch.tensor([5.0, 1.0]), DormandPrince(1e-5)
    z = 80 * torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inside = adaptive_flow(STANDARD, z, 80.0, 0.1, solver=solver, at=at)
    outside = adaptive_flow(InUnits(STANDARD, UNITS), scaled(z), 80.0, 0.1, solver=solver, at=at)
    torch.testing.assert_close(UNITS.standardise(outside.x), inside.x, rtol=0, atol=1e-6)
    assert inside.dense is not None
    assert outside.dense is not None
    torch.testing.assert_close(UNITS.standardise(outside.dense[0]), inside.dense[0], rtol=0, atol=1e-6)


def test_a_log_density_shifts_by_the_logarithms_of_the_scales() -> None:
    z = STANDARD.sample(8, torch.Generator().manual_seed(0))
    found = log_prob(InUnits(STANDARD, UNITS), scaled(z), sigma_min=1e-3).log_prob
    expected = log_prob(STANDARD, z, sigma_min=1e-3).log_prob - math.log(20.0 * 5e-3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert UNITS.log_scale((2, 4)) == pytest.approx(4 * math.log(20.0 * 5e-3))
    assert Units((0.0,), (2.0,)).log_scale((3, 5)) == pytest.approx(15 * math.log(2.0))


def test_the_score_is_the_gradient_of_the_log_density() -> None:
    denoiser, sigma = InUnits(STANDARD, UNITS), 0.4
    x = scaled(STANDARD.sample(4, torch.Generator().manual_seed(0))).requires_grad_(True)
    density = STANDARD.log_prob(UNITS.standardise(x), sigma).sum()
    expected = torch.autograd.grad(density, x)[0]
    torch.testing.assert_close(denoiser.score(x.detach(), sigma), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("sigma", [0.02, 0.5, 5.0])
def test_a_measurement_gives_the_exact_posterior_of_a_gaussian_with_a_scale_for_each_channel(sigma: float) -> None:
    covariance = torch.tensor([[0.3, 0.1], [0.1, 0.2]], dtype=torch.float64)
    prior = GaussianMixture([1.0], [[0.2, -0.1]], covariance[None])
    scale, location = torch.tensor(UNITS.scale).double(), torch.tensor(UNITS.location).double()
    matrix, sigma_y = torch.tensor([[1.0, 2000.0]]).double(), 7.0
    x = scaled(torch.tensor([[0.3, 0.4], [-1.0, 0.1]]).double())
    y = (location + 0.3 * scale) @ matrix.mT + 2.0
    # E[x₀ | x, y] of the Gaussian with mean m and covariance C, in data units, measured twice.
    mean, c = location + scale * prior.means[0], scale[:, None] * covariance * scale
    precision = c.inverse() + torch.diag(1 / (sigma * scale).square()) + matrix.mT @ matrix / sigma_y**2
    right = c.inverse() @ mean + x / (sigma * scale).square() + (y[:, None] @ matrix / sigma_y**2)
    expected = torch.linalg.solve(precision, right[..., None])[..., 0]
    found = MMPS(InUnits(prior, UNITS), Measurement(Matrix(matrix), y[None], sigma_y))(x, sigma)
    torch.testing.assert_close(UNITS.standardise(found), UNITS.standardise(expected), rtol=0, atol=1e-5)


def test_a_measurement_is_guided_by_the_gradient_in_data_units() -> None:
    matrix, sigma_y, sigma = torch.tensor([[1.0, 2000.0]]).double(), 7.0, 0.5
    denoiser, x = InUnits(STANDARD, UNITS), scaled(torch.tensor([[0.3, 0.4]]).double()).requires_grad_(True)
    y = x.detach() @ matrix.mT + 5.0
    log = -0.5 * ((y - denoiser(x, sigma) @ matrix.mT) / sigma_y).square().sum()
    expected = denoiser(x, sigma) + (sigma * torch.tensor(UNITS.scale)).square() * torch.autograd.grad(log, x)[0]
    found = DPS(denoiser, Measurement(Matrix(matrix), y, sigma_y))(x.detach(), sigma)
    torch.testing.assert_close(UNITS.standardise(found), UNITS.standardise(expected.detach()), rtol=0, atol=1e-6)


def test_samples_given_a_measurement_are_those_of_the_posterior_in_data_units() -> None:
    prior = InUnits(GaussianMixture([1.0], [[0.0, 0.0]], [[[0.25, 0.2], [0.2, 0.25]]]), UNITS)
    measured = MMPS(prior, Measurement(Matrix(torch.tensor([[1.0, 0.0]])), torch.tensor([[290.0]]), sigma_y=10.0))
    x = Auto(nfe=40).sample(measured, seeds=range(4000))
    # Prior (280, −3e4) ± (10, 2.5e-3), correlated by 0.8; measured as 290 ± 10: half of the way, and of the variance.
    assert x.mean(0).tolist() == pytest.approx([285, -3e4 + 0.5 * 0.8 * 2.5e-3], abs=0.5)
    assert float(x[:, 1].mean() + 3e4) == pytest.approx(1e-3, abs=2e-4)
    assert x.std(0).tolist() == pytest.approx([10 * math.sqrt(0.5), 2.5e-3 * math.sqrt(1 - 0.64 / 2)], rel=0.05)


def test_guidance_needs_the_units_of_both_to_agree() -> None:
    one, other = InUnits(STANDARD, UNITS), InUnits(STANDARD, replace(UNITS, scale=(1.0, 1.0)))
    with pytest.raises(ValueError, match=r"guiding must have main's units, location .* got .*\[1\.0, 1\.0\]"):
        Guided(one, other, 2.0)
    with pytest.raises(ValueError, match="guiding must have main's units"):
        Guided(one, STANDARD, 2.0)
    guided = Guided(one, InUnits(STANDARD, UNITS), 2.0)
    x = scaled(torch.tensor([[0.3, 0.4]]).double())
    torch.testing.assert_close(guided(x, 0.5), one(x, 0.5))


# Trained networks.

KELVINS = torch.tensor([280.0, 285.0]) + torch.tensor([10.0, 12.0]) * torch.randn(
    2048, 2, generator=torch.Generator().manual_seed(0)
)


def trained(data: Tensor, images: int = 640, **options: object) -> tuple[Trainer, Preconditioned]:
    dataset = InMemory(data)
    settings = Options(images=images, batch_size=128, validate_every=0, rampup=0, learning_rate=3e-3, **options)
    trainer = Trainer(Model.for_data(dataset, MLP(width=32, num_blocks=1)), dataset, options=settings)
    return trainer, trainer.fit()


@pytest.mark.usefixtures("fresh_accelerate")
def test_training_on_data_in_other_units_gives_the_same_samples_in_those() -> None:
    (_, here), (_, there) = trained(KELVINS), trained(1000 * KELVINS - 273150)
    one, other = (Auto(nfe=12).sample(denoiser, seeds=range(8)) for denoiser in (here, there))
    # Six digits of location and scale, and float32.
    torch.testing.assert_close((other + 273150) / 1000, one, rtol=0, atol=2e-3)


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_network_trained_on_kelvins_samples_kelvins() -> None:
    trainer, denoiser = trained(KELVINS, images=60_000)
    moments = KELVINS.double().mean(0), KELVINS.double().std(0, correction=0)
    assert trainer.model.units == Units.measured(*(m.tolist() for m in moments))
    x = Auto(nfe=32).sample(denoiser, seeds=range(4000))
    assert x.mean(0).tolist() == pytest.approx([280, 285], abs=0.7)
    assert x.std(0).tolist() == pytest.approx([10, 12], rel=0.05)
    z = torch.tensor([[0.1, 0.2]])
    found = denoiser(z, 0.5, standard=True)
    torch.testing.assert_close(
        denoiser.standardise(denoiser(denoiser.location + denoiser.scale * z, 0.5)).float(), found
    )


def test_images_have_no_units_and_constant_channels_have_scale_one() -> None:
    x = torch.cat([torch.full((64, 1), 7.0), torch.randn(64, 1)], 1)
    units = Model.for_data(InMemory(x), MLP()).units
    assert units is not None
    assert (units.location[0], units.scale[0]) == (7.0, 1.0)
    images = InMemory(torch.randint(0, 256, (8, 1, 4, 4), dtype=torch.uint8))
    assert Model.for_data(images, MLP()).units is None
    assert Model.for_data(InMemory(x), MLP(), standardise=False).units is None


def test_a_model_with_units_is_read_as_it_was_written() -> None:
    model = Model(MLP(), event_shape=(2,), images=False, units=UNITS)
    assert from_config(Model, to_config(model)) == model
    assert model.build().scale.tolist() == list(UNITS.scale)


def test_units_that_do_not_fit_are_errors_that_name_them() -> None:
    with pytest.raises(
        ValueError, match=r"units must hold 1 number or one for each of the 3 channels of \(3,\), got 2"
    ):
        Model(MLP(), event_shape=(3,), units=UNITS)
    with pytest.raises(ValueError, match="condition_units must be None without a condition_shape"):
        Model(MLP(), event_shape=(2,), condition_units=UNITS)
    with pytest.raises(ValueError, match=r"scale\[1\] must be finite and > 0, got 0\.0"):
        Units((0.0, 0.0), (1.0, 0.0))
    with pytest.raises(ValueError, match="location and scale must hold the same number of values"):
        Units((0.0,), (1.0, 1.0))
    with pytest.raises(ValueError, match="denoiser must be in standard units"):
        InUnits(InUnits(STANDARD, UNITS), UNITS)
    with pytest.raises(ValueError, match="units must be None without a shape"):
        Preconditioned(MLP().build((2,)), EDM(), units=UNITS)


# Latents.


def test_latents_are_drawn_anew_with_their_variance_in_the_units(tmp_path: Path) -> None:
    mean = 5 + torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    std = torch.tensor([0.0, 3.0]).expand(4000, 2)
    np.savez(tmp_path / "z.npz", mean=mean.numpy(), std=std.numpy(), labels=np.arange(4000) % 3)
    dataset = Latents(str(tmp_path / "z.npz")).load()
    assert dataset.num_classes == 3
    (one, _), (other, _) = dataset.fetch([0, 1]), dataset.fetch([0, 1])
    assert torch.equal(one[:, 0], other[:, 0])
    assert not torch.equal(one[:, 1], other[:, 1])
    model = Model.for_data(dataset, MLP())
    assert model == Model.for_data(dataset, MLP())  # the noise is that of a seed
    assert model.units is not None
    assert model.units.scale == pytest.approx([2.0, 2 * math.sqrt(10)], rel=0.05)
    np.savez(tmp_path / "v.npz", mean=mean.numpy(), logvar=2 * np.log(np.full((4000, 2), 3.0)))
    logs = Latents(str(tmp_path / "v.npz"), std_key="logvar", log_variance=True).load()
    assert measure(logs).channel_stds == pytest.approx([math.sqrt(10)] * 2, rel=0.05)


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_run_on_latents_is_a_function_of_its_seed() -> None:
    dataset = LatentPairs(torch.zeros(64, 2), torch.ones(64, 2))
    model, options = Model.for_data(dataset, MLP(8, 1)), Options(images=256, batch_size=64, validate_every=0)
    one, other = (Trainer(model, dataset, options=options).fit().state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_latents_that_do_not_fit_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"std must have the shape of mean, \(4, 2\), got \(4, 3\)"):
        LatentPairs(torch.zeros(4, 2), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="std must be finite and >= 0"):
        LatentPairs(torch.zeros(4, 2), -torch.ones(4, 2))
    np.savez(tmp_path / "z.npz", mean=np.zeros((4, 2)))
    with pytest.raises(ValueError, match=r"std_key of .*z\.npz must be one of 'mean', got 'std'"):
        Latents(str(tmp_path / "z.npz")).load()
    with pytest.raises(ValueError, match=r"path must be a \.npy or \.npz file.*missing"):
        Latents(str(tmp_path / "missing.npz")).load()


@pytest.mark.parametrize(("mean", "std"), [(-0.96, 0.02), (0.5, 1e-3)])
def test_images_far_from_0_are_standardised_so_that_samples_start_where_they_are(mean: float, std: float) -> None:
    images = (mean + std * torch.randn(64, 2, 8, 8, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    model = Model.for_data(InMemory(images, range=(-1, 1)), MLP())
    assert model.images
    assert model.units is not None
    assert model.sigma_data == 0.5
    torch.testing.assert_close(model.units.location_of((2, 8, 8)).mean(), images.double().mean(), rtol=0, atol=1e-3)
    assert Model.for_data(InMemory(images, range=(-1, 1)), MLP(), standardise=False).units is None


def test_usual_images_keep_their_numbers() -> None:
    digits = torch.where(torch.arange(400).reshape(4, 1, 10, 10) % 6 == 0, 1.0, -1.0)  # the mean is 0.9 σ_data from 0
    assert Model.for_data(InMemory(digits), MLP()).units is None


@pytest.mark.parametrize(
    ("means", "stds", "scale"),
    [
        ((3e-6, 0.0), (0.0, 1e-6), 2e-6),
        ((0.0, 0.0), (0.0, 1e-6), 2e-6),
        ((280.0, 0.0), (0.0, 1e6), 1.0),
        ((1e-3, 0.0), (0.0, 1e6), 1e-3),
        ((5.0, 5.0), (0.0, 0.0), 1.0),
    ],
)
def test_a_constant_channel_is_as_narrow_as_its_value_and_the_others(
    means: tuple[float, ...], stds: tuple[float, ...], scale: float
) -> None:
    assert Units.measured(means, stds).scale[0] == pytest.approx(scale)


def test_a_constant_channel_keeps_all_digits_of_its_value() -> None:
    assert Units.measured((1234567.0,), (0.0,)).location == (1234567.0,)


def test_a_measured_location_is_one_that_data_in_float32_can_have() -> None:
    # Training subtracts it in float32 and sampling in float64: 1e9 + 30 would be another place there.
    [location] = Units.measured((1e9 + 30,), (1e3,)).location
    assert location == float(torch.tensor(location, dtype=torch.float32))
    assert abs(location - 1e9 - 30) <= 32


def test_float64_that_float32_does_not_tell_apart_is_named() -> None:
    x = 1e9 + torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match=r"x is kept in float32, which changes channel 0, .*: subtract the mean"):
        InMemory(x)
    with pytest.warns(UserWarning, match="condition is kept in float32"):
        Pairs(torch.zeros(50, 2), x)
    InMemory(1.7e9 + 1e5 * (x - 1e9))
    InMemory(torch.stack([x[:, 0] - 1e9, torch.full((50,), 3e-6, dtype=torch.float64)], 1))  # constant


def test_a_value_that_decides_the_width_of_a_channel_is_named() -> None:
    x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    Model.for_data(InMemory(x.exp()), MLP())
    x[7, 1] = 1e6
    with pytest.warns(UserWarning, match=r"a few values decide how wide the data are, in channel 1 with mean 2\d{3}"):
        Model.for_data(InMemory(x), MLP())
    with pytest.warns(UserWarning, match="how wide the conditions are, in channel 1"):
        Model.for_data(Pairs(x[:, :1], x), MLP())


def test_standardised_denoisers_in_units_take_no_condition_where_the_inner_one_does() -> None:
    inner = FunctionDenoiser(lambda x, sigma, condition: x / (1 + sigma**2), event_shape=(2,))
    inner.condition_shape, inner.condition_dropout = (3,), True
    assert InUnits(inner, UNITS)(torch.zeros(1, 2), 1.0).shape == (1, 2)
