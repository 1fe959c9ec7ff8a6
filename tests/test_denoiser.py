"""The one interface: how σ may be given, what dtype comes back, what a network is fed, what is refused."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from openedm.denoiser import Condition, Denoiser, FunctionDenoiser, Preconditioned, configure_execution, per_sample
from openedm.exact import ExactDataset, GaussianMixture
from openedm.guidance import Guided
from openedm.networks import MLP
from openedm.preconditioning import EDM, IDDPM, VE, VP, Adapter, Preconditioning
from openedm.sampling import Auto, Sampler, SamplerChoice, sample_batches
from openedm.schedules import float64
from properties.strategies import EPS, all_preconditionings, sigmas


def trained(preconditioning: Preconditioning, dim: int = 3) -> Preconditioned:
    """A denoiser whose network computes something: random weights in every layer."""
    network = MLP(width=16, num_blocks=1).build((dim,), out_channels=dim * preconditioning.outputs_per_channel, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return Preconditioned(network, preconditioning).eval()


def noisy(batch: int, dim: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, dim, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


DENOISERS = {
    "EDM": trained(EDM()),
    "VP": trained(VP()),
    "VE": trained(VE()),
    "IDDPM": trained(IDDPM()),
    "v": trained(Adapter("v")),
    "data set": ExactDataset(noisy(20)),
    "mixture": GaussianMixture([1, 2], noisy(2), torch.eye(3).expand(2, 3, 3)),
    "function": FunctionDenoiser(lambda x, sigma, condition: x / per_sample(1 + sigma.square(), x)),
}


@pytest.mark.parametrize("denoiser", DENOISERS.values(), ids=DENOISERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sigma", [0.05, 1.0, 40.0])
def test_a_number_a_scalar_tensor_and_one_value_a_sample_mean_the_same(
    denoiser: Denoiser, dtype: torch.dtype, sigma: float
) -> None:
    x = noisy(4, dtype=dtype) * (1 + sigma)
    forms = [sigma, float64(sigma), torch.full((4,), sigma, dtype=torch.float64)]
    results = [denoiser(x, form).detach() for form in forms]
    assert [r.dtype for r in results] == [dtype] * 3
    assert torch.equal(results[0], results[1])
    # A batch of σ may take another path through vectorised mathematics: a few roundings.
    torch.testing.assert_close(results[0], results[2], rtol=0, atol=64 * torch.finfo(dtype).eps * float(x.abs().max()))


@pytest.mark.parametrize("denoiser", DENOISERS.values(), ids=DENOISERS)
def test_samples_of_a_batch_have_noise_levels_of_their_own(denoiser: Denoiser) -> None:
    sigma = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    x = noisy(3)
    together = denoiser(x, sigma).detach()
    alone = torch.cat([denoiser(x[i : i + 1], float(sigma[i])).detach() for i in range(3)])
    # The networks compute in float32, and D = c_skip x + c_out F adds numbers of the size of x and of D − x.
    size = float(x.abs().max() + (together - x).abs().max())
    torch.testing.assert_close(together, alone, rtol=0, atol=64 * 2.0**-23 * size)


@given(sigmas(0.03, 50.0), all_preconditionings())
def test_a_network_behind_a_preconditioning_is_equation_7(sigma: float, preconditioning: Preconditioning) -> None:
    class Network(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor, condition: Condition, **options: Any) -> Tensor:
            self.seen = (x, c_noise, condition, options)
            return torch.cat([x.sin() + 0.1, torch.full_like(x, 7.0)], 1)[:, : 2 * preconditioning.outputs_per_channel]

    network, sigma_data, condition = Network(), 1.3, torch.tensor([1, -1])
    denoiser = Preconditioned(network, preconditioning, sigma_data)
    x = noisy(2, 2)
    denoised = denoiser(x, sigma, condition, augment="labels")
    c_skip, c_out, c_in, c_noise = (float(c) for c in preconditioning.coefficients(float64(sigma), sigma_data))
    torch.testing.assert_close(network.seen[0], c_in * x, rtol=0, atol=0)
    assert network.seen[1].tolist() == [c_noise, c_noise]
    assert network.seen[2] is condition
    assert network.seen[3] == {"augment": "labels"}
    torch.testing.assert_close(denoised, c_skip * x + c_out * ((c_in * x).sin() + 0.1), rtol=4 * EPS, atol=0)


@pytest.mark.parametrize("network_dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_network_computes_in_its_own_dtype_and_the_rest_in_that_of_x(
    network_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones((), dtype=network_dtype))

        def forward(self, x: Tensor, c_noise: Tensor, condition: Condition) -> Tensor:
            assert x.dtype == network_dtype
            assert c_noise.dtype == torch.promote_types(network_dtype, torch.float32)  # It may reach 999.
            return self.gain * 0 * x

    x = noisy(2, dtype=dtype)
    denoised = Preconditioned(Network(), EDM(), 0.5)(x, 1e-3)
    assert denoised.dtype == dtype
    # F = 0 leaves D = c_skip x, which no rounding to the network's dtype has touched.
    torch.testing.assert_close(denoised, x * 0.25 / (0.25 + 1e-6), rtol=4 * torch.finfo(dtype).eps, atol=0)


@given(sigmas(1e-2, 50.0))
def test_the_score_is_the_gradient_of_the_log_density(sigma: float) -> None:
    mixture = GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [0.8, 0.0]], 0.1 * torch.eye(2).expand(2, 2, 2))
    x = (noisy(5, 2) * (0.5 + sigma)).requires_grad_()
    (gradient,) = torch.autograd.grad(mixture.log_prob(x, sigma).sum(), x)
    # D − x cancels numbers of the size of x before σ² divides them.
    tolerance = 64 * EPS * (1 + float(x.detach().abs().max())) * (1 + 1 / sigma**2)
    torch.testing.assert_close(mixture.score(x, sigma).detach(), gradient, rtol=0, atol=tolerance)
    each = torch.full((5,), sigma, dtype=torch.float64)
    torch.testing.assert_close(mixture.score(x, each).detach(), gradient, rtol=0, atol=tolerance)


def test_a_denoiser_is_differentiable_in_x_and_its_weights() -> None:
    denoiser = trained(EDM()).double()
    x = noisy(2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: denoiser(x, 0.7), x)
    weights = [p for p in denoiser.parameters() if p.requires_grad]
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(denoiser(x, 0.7).square().sum(), weights[-2:]))


def test_a_preconditioned_network_knows_the_range_and_levels_of_its_preconditioning() -> None:
    preconditioning = IDDPM(num_levels=2, table=(2.0, 1.0, 0.0))
    denoiser = Preconditioned(nn.Identity(), preconditioning, event_shape=(3,), num_classes=4)
    assert (denoiser.sigma_min, denoiser.sigma_max) == (1.0, 2.0)
    assert denoiser.round_sigma(torch.tensor([1.2, 1.8])).tolist() == [1.0, 2.0]
    assert (denoiser.event_shape, denoiser.num_classes) == ((3,), 4)


@given(st.floats(0.0, 100.0))
def test_other_denoisers_know_every_level(sigma: float) -> None:
    denoiser = FunctionDenoiser(lambda x, sigma, condition: x)
    assert float(denoiser.round_sigma(sigma)) == sigma
    assert (denoiser.sigma_min, denoiser.sigma_max) == (0.0, math.inf)


def test_a_function_is_called_with_the_level_in_float64_and_the_condition() -> None:
    seen: list[Any] = []
    denoiser = FunctionDenoiser(lambda *given: (seen.extend(given), given[0])[1], (2,), sigma_min=0.1, sigma_max=5.0)
    x, condition = noisy(1, 2), torch.tensor([3])
    denoiser(x, 2, condition)
    assert seen[0] is x
    assert seen[1].dtype == torch.float64
    assert (float(seen[1]), seen[2]) == (2.0, condition)
    assert (denoiser.sigma_min, denoiser.sigma_max, denoiser.event_shape) == (0.1, 5.0, (2,))


@pytest.mark.usefixtures("without_type_checker")
def test_shapes_that_do_not_fit_are_named() -> None:
    denoiser = FunctionDenoiser(lambda x, sigma, condition: x, event_shape=(3, 8, 8))
    x = torch.zeros(4, 3, 8, 8)
    with pytest.raises(ValueError, match=r"sigma must be a number or one value a sample \(4\), got shape \(3,\)"):
        denoiser(x, torch.ones(3))
    with pytest.raises(ValueError, match=r"sigma must be a number or one value a sample \(4\), got shape \(4, 1\)"):
        denoiser(x, torch.ones(4, 1))
    with pytest.raises(ValueError, match=r"x must have shape \(batch, 3, 8, 8\), got \(4, 3, 8, 9\)"):
        denoiser(torch.zeros(4, 3, 8, 9), 1.0)
    with pytest.raises(ValueError, match=r"condition must have one row a sample \(4\), got 5 rows"):
        denoiser(x, 1.0, torch.zeros(5, dtype=torch.long))
    with pytest.raises(TypeError, match="condition must be a tensor with one row a sample, or None, got list"):
        denoiser(x, 1.0, [0, 1, 2, 3])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="condition must be a tensor with one row a sample, got a single number, 3"):
        denoiser(x, 1.0, torch.tensor(3))
    for draw in (Sampler().sample, partial(sample_batches, Sampler(), batch_size=2)):
        with pytest.raises(TypeError, match="condition must be a tensor with one row a sample, or None, got list"):
            list(draw(denoiser, [0, 1], condition=[0, 1]))  # type: ignore[operator]


@pytest.mark.parametrize("channels", [1, 2])
def test_a_network_that_returns_too_few_channels_is_refused(channels: int) -> None:
    class Network(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor, condition: Condition) -> Tensor:
            return x[:, :channels]

    with pytest.raises(ValueError, match=rf"network must return the shape of x, \(2, 3\), got \(2, {channels}\)"):
        Preconditioned(Network(), EDM())(noisy(2), 1.0)


def test_numbers_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match=r"sigma_data must be finite and > 0, got 0.0"):
        Preconditioned(nn.Identity(), EDM(), sigma_data=0.0)
    with pytest.raises(ValueError, match=r"num_classes must be >= 0, got -1"):
        Preconditioned(nn.Identity(), EDM(), num_classes=-1)


@pytest.mark.parametrize("sigma", [-1.0, float("nan")])
def test_a_negative_noise_level_is_refused(sigma: float) -> None:
    shrink = FunctionDenoiser(lambda x, sigma, condition: x / (1 + sigma**2))
    with pytest.raises(ValueError, match="sigma must be >= 0, got"):
        shrink(torch.ones(1, 2), sigma)


def test_a_network_refuses_to_denoise_where_its_noise_embedding_is_infinite() -> None:
    denoiser = Preconditioned(MLP(8, 1).build((2,), seed=0), EDM())
    with pytest.raises(ValueError, match=r"sigma must be finite and > 0 for EDM\(\), got 0.0"):
        denoiser(torch.ones(1, 2), 0.0)


def test_networks_set_to_bfloat16_compute_in_bfloat16_and_files_stay_as_they_were() -> None:
    seen: list[torch.dtype] = []

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor, c_noise: Tensor, condition: Condition) -> Tensor:
            y: Tensor = self.layer(x)
            seen.append(y.dtype)
            return y

    main, other = (Preconditioned(Network(), EDM(), event_shape=(2,)) for _ in range(2))
    pair = Guided(main, other, 2.0)
    x = noisy(2)[:, :2]
    exact = pair(x, 1.0)
    before = {name: value.clone() for name, value in pair.state_dict().items()}
    assert configure_execution(pair, precision="bf16") is pair
    rounded = pair(x, 1.0)
    assert seen == [torch.float32] * 2 + [torch.bfloat16] * 2
    assert rounded.dtype == exact.dtype
    assert 0 < (rounded - exact).abs().max() < 0.1
    assert before.keys() == pair.state_dict().keys()
    assert all(torch.equal(value, pair.state_dict()[name]) for name, value in before.items())
    assert torch.equal(configure_execution(pair)(x, 1.0), exact)


@pytest.mark.usefixtures("without_type_checker")
def test_a_denoiser_without_networks_has_no_precision_to_set() -> None:
    exact = ExactDataset(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="precision and compile have no effect on ExactDataset, which has no network"):
        configure_execution(exact, precision="bf16")
    with pytest.raises(ValueError, match="precision must be"):
        configure_execution(exact, precision="fp16")  # type: ignore[arg-type]


@pytest.mark.usefixtures("without_type_checker")
@pytest.mark.parametrize("sampler", [Sampler(), Auto(nfe=4)])
@pytest.mark.parametrize("denoiser", [lambda x, sigma, condition: x, torch.nn.Linear(1, 1)])
def test_what_is_not_a_denoiser_is_refused_with_how_to_make_it_one(sampler: SamplerChoice, denoiser: Any) -> None:
    with pytest.raises(TypeError, match=r"denoiser must be a Denoiser, got \w+: wrap a function .*FunctionDenoiser"):
        sampler.sample(denoiser, seeds=[0], event_shape=(1,))


@pytest.mark.parametrize("wrong", [-1.0, math.nan])
def test_one_wrong_noise_level_among_those_of_a_batch_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match=r"sigma must be >= 0, got (-1.0|nan)"):
        ExactDataset(torch.zeros(3, 2))(torch.zeros(2, 2), torch.tensor([1.0, wrong]))


def test_a_function_that_computes_in_another_dtype_answers_in_that_of_x() -> None:
    half = FunctionDenoiser(lambda x, sigma, condition: (x / 2).half())
    assert half(torch.ones(1, 2, dtype=torch.float64), 1.0).dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": torch.zeros(3)}, r"mean must be a number or broadcast against a sample \(2,\), got \(3,\)"),
        ({"mean": math.nan}, "mean must be finite, got 1 NaN"),
        ({"sigma_min": 5.0, "sigma_max": 1.0}, "sigma_min must be < sigma_max"),
    ],
)
def test_a_function_with_settings_that_do_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FunctionDenoiser(lambda x, sigma: x, event_shape=(2,), **options)
