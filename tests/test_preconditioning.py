"""Preconditionings: unit variance, exact adapters of ideal networks, nearest levels, errors."""

import math
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from openedm import levels, objective, preconditioning, schedules
from openedm.denoiser import Denoiser, Preconditioned
from openedm.exact import GaussianMixture
from openedm.objective import denoising_loss
from openedm.preconditioning import EDM, IDDPM, VE, VP, Adapter, Preconditioning, nearest_level
from openedm.schedules import float64
from properties.strategies import EPS, all_preconditionings, all_schedules, log_uniform, sigmas, tables

MIXTURE = GaussianMixture(
    [0.3, 0.7], [[-1.0, 0.5], [0.8, 0.0]], [[[0.20, 0.05], [0.05, 0.10]], [[0.05, 0.0], [0.0, 0.3]]]
)


class Network(nn.Module):
    """An ideal network: any function of what it is given, in float64."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, c_noise: Tensor, condition: Tensor | None) -> Tensor:
        return self.function(x, c_noise)


def zero(x: Tensor, c_noise: Tensor) -> Tensor:
    return torch.zeros_like(x)


def column(values: Tensor) -> Tensor:
    return values[:, None]


def points(sigma: Tensor, seed: int = 0) -> Tensor:
    """Noisy samples of the mixture, one at each σ."""
    generator = torch.Generator().manual_seed(seed)
    clean = MIXTURE.sample(len(sigma), generator)
    return clean + column(sigma) * torch.randn(clean.shape, generator=generator, dtype=torch.float64)


@given(sigmas(1e-4, 1e4), log_uniform(1e-2, 1e2))
def test_edm_gives_input_and_target_unit_variance_at_every_noise_level(sigma: float, sigma_data: float) -> None:
    c_skip, c_out, c_in, _ = (float(c) for c in EDM().coefficients(float64(sigma), sigma_data))
    assert c_in**2 * (sigma**2 + sigma_data**2) == pytest.approx(1, rel=16 * EPS)
    # The target (y − c_skip (y + n))/c_out has variance ((1 − c_skip)² σ_d² + c_skip² σ²)/c_out².
    target = ((1 - c_skip) ** 2 * sigma_data**2 + (c_skip * sigma) ** 2) / c_out**2
    assert target == pytest.approx(1, rel=16 * EPS)


@given(sigmas(1e-3, 1e3), log_uniform(0.1, 10.0), st.floats(-0.5, 0.5))
def test_edm_has_the_smallest_output_scale_of_all_skips(sigma: float, sigma_data: float, change: float) -> None:
    # Appendix B.6: c_skip minimises c_out, the factor by which errors of F are magnified.
    c_skip, c_out, _, _ = (float(c) for c in EDM().coefficients(float64(sigma), sigma_data))
    other = c_skip + change
    assert c_out**2 <= ((1 - other) * sigma_data) ** 2 + (other * sigma) ** 2 + 16 * EPS * c_out**2


@pytest.mark.parametrize("sigma", [0.002, 0.5, 80.0])
@pytest.mark.parametrize("shape", ["gaussian", "two points", "uniform"])
def test_edm_gives_unit_variance_whatever_the_shape_of_the_data(sigma: float, shape: str) -> None:
    count, sigma_data = 100_000, 1.7
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(count, 1, generator=generator, dtype=torch.float64)
    unit = {
        "gaussian": torch.special.ndtri(u),
        "two points": (u < 0.5) * 2.0 - 1.0,
        "uniform": (u - 0.5) * math.sqrt(12),
    }[shape]
    y = unit * sigma_data
    x = y + sigma * torch.randn(count, 1, generator=generator, dtype=torch.float64)
    seen: list[Tensor] = []
    denoiser = Preconditioned(Network(lambda x, c: (seen.append(x), zero(x, c))[1]), EDM(), sigma_data)
    skipped = denoiser(x, sigma)
    target = (y - skipped) / EDM().coefficients(float64(sigma), sigma_data).c_out
    # A variance estimated from n numbers that are no longer-tailed than a Gaussian deviates by √(2/n).
    tolerance = 5 * math.sqrt(2 / count)
    assert float(seen[0].var()) == pytest.approx(1, abs=tolerance)
    assert float(target.var()) == pytest.approx(1, abs=tolerance)


COLUMNS = [
    (EDM(), objective.EDM()),
    (VP(), objective.VP()),
    (VE(), objective.VE()),
    (IDDPM(), objective.IDDPM()),
]


@pytest.mark.parametrize(("preconditioning", "chosen"), COLUMNS, ids=["EDM", "VP", "VE", "IDDPM"])
@given(sigma=sigmas(), sigma_data=log_uniform(0.1, 10.0))
def test_the_weighting_of_each_column_undoes_its_output_scale(
    preconditioning: Preconditioning, chosen: objective.Objective, sigma: float, sigma_data: float
) -> None:
    c_out = preconditioning.coefficients(float64(sigma), sigma_data).c_out
    weight = chosen.weighting.weight(float64(sigma), sigma_data)
    assert float(weight * c_out.square()) == pytest.approx(1, rel=16 * EPS)


@pytest.mark.parametrize(("preconditioning", "chosen"), COLUMNS, ids=["EDM", "VP", "VE", "IDDPM"])
@pytest.mark.parametrize("sigma", [0.01, 0.5, 80.0])
def test_an_untrained_network_has_a_loss_of_one_at_every_noise_level(
    preconditioning: Preconditioning, chosen: objective.Objective, sigma: float
) -> None:
    batch, dim, sigma_data = 500, 200, 0.5
    generator = torch.Generator().manual_seed(0)
    y = sigma_data * torch.randn(batch, dim, generator=generator, dtype=torch.float64)
    x = y + sigma * torch.randn(batch, dim, generator=generator, dtype=torch.float64)
    network = Network(lambda x, c: torch.zeros(len(x), dim * preconditioning.outputs_per_channel, dtype=x.dtype))
    denoiser = Preconditioned(network, preconditioning, sigma_data)
    weight = chosen.weighting.weight(float64(sigma), sigma_data).expand(batch)
    loss = denoising_loss(denoiser(x, sigma), y, weight).total
    # The loss is the mean of batch · dim squares of unit Gaussians, each with variance 2.
    assert float(loss.mean()) == pytest.approx(1, abs=5 * math.sqrt(2 / (batch * dim)))


@given(tables(), log_uniform(1e-4, 1e3))
def test_the_nearest_level_is_found_as_by_brute_force(table: tuple[float, ...], sigma: float) -> None:
    halves = [(a + b) / 2 for a, b in pairwise(table)]
    values = torch.tensor([sigma, *table, *halves], dtype=torch.float64)
    u = torch.tensor(table, dtype=torch.float64)
    nearest = (u[None] - values[:, None]).abs().argmin(1)  # The first of equals: the higher level.
    assert torch.equal(nearest_level(table[::-1], values), len(table) - 1 - nearest)
    choice = IDDPM(num_levels=len(table) - 1, table=table)
    assert torch.equal(choice.round_sigma(values), u[nearest])
    assert torch.equal(choice.coefficients(values, 0.5).c_noise, choice.num_levels - 1 - nearest.double())


@given(all_preconditionings(), sigmas(1e-3, 1e3))
def test_rounding_a_noise_level_twice_changes_nothing(preconditioning: Preconditioning, sigma: float) -> None:
    once = preconditioning.round_sigma(float64(sigma))
    assert torch.equal(preconditioning.round_sigma(once), once)


@given(st.lists(sigmas(), min_size=1, max_size=4), all_preconditionings())
def test_coefficients_have_the_shape_of_sigma_and_depend_on_each_value_alone(
    values: list[float], preconditioning: Preconditioning
) -> None:
    together = preconditioning.coefficients(torch.tensor(values, dtype=torch.float64), 0.5)
    for i, value in enumerate(values):
        for vector, number in zip(together, preconditioning.coefficients(float64(value), 0.5), strict=True):
            assert vector.dtype == number.dtype == torch.float64
            assert number.shape == ()
            assert float(vector[i]) == pytest.approx(float(number), rel=1e-9, abs=0)


def predicted(adapter: Adapter, x: Tensor, c_noise: Tensor, exact: Denoiser) -> Tensor:
    """What the ideal network of an adapter predicts from its scaled input, by the definition of each quantity."""
    schedule = adapter.schedule
    if adapter.table is None:
        sigma = schedule.sigma(c_noise / adapter.time_scale)
    else:
        assert torch.equal(c_noise, c_noise.round())
        sigma = torch.tensor(adapter.table, dtype=torch.float64)[c_noise.long()]
    s = column(schedule.scaling.scale(sigma))
    y = exact(x / s, sigma)
    n = (x / s - y) / column(sigma)
    if adapter.predicts == "epsilon":
        return n
    if adapter.predicts == "sample":
        return y
    if adapter.predicts == "v":
        return s * (n - column(sigma) * y)
    # dx/dt of x(t) = s(t) y + s(t) σ(t) n along its straight ray, by autograd.
    t = schedule.time(sigma).requires_grad_()
    with torch.enable_grad():
        level = schedule.sigma(t)
        scale = schedule.scaling.scale(level)
        (signal,) = torch.autograd.grad(scale.sum(), t, retain_graph=True) if scale.requires_grad else (0 * t,)
        (noise,) = torch.autograd.grad((scale * level).sum(), t)
    return column(signal) * y + column(noise) * n


def rounding(adapter: Adapter, sigma: Tensor, x: Tensor) -> float:
    """How far roundings move D: σ → t → σ magnifies them by d ln σ/d ln t, and x − σ n cancels numbers of x's size."""
    t = adapter.schedule.time(sigma)
    magnified = (adapter.schedule.sigma_derivative(t) * t / sigma).max()
    return 256 * EPS * (1 + float(magnified)) * (1 + float(x.abs().max()))


VARIANCE_PRESERVING = st.one_of(
    st.builds(schedules.VP, beta_d=log_uniform(0.5, 50.0), beta_min=st.floats(0.01, 5.0)), st.just(schedules.Cosine())
)
ADAPTERS = st.one_of(
    st.builds(
        Adapter,
        predicts=st.sampled_from(["epsilon", "sample", "velocity"]),
        schedule=all_schedules(),
        time_scale=st.sampled_from([1.0, 999.0, 1000.0]),
    ),
    st.builds(Adapter, predicts=st.just("v"), schedule=VARIANCE_PRESERVING),
)


@given(ADAPTERS, st.lists(sigmas(0.01, 50.0), min_size=1, max_size=4))
def test_an_ideal_network_of_any_kind_is_the_exact_denoiser(adapter: Adapter, values: list[float]) -> None:
    sigma = torch.tensor(values, dtype=torch.float64)
    x = points(sigma)
    denoiser = Preconditioned(Network(lambda x, c_noise: predicted(adapter, x, c_noise, MIXTURE)), adapter)
    torch.testing.assert_close(denoiser(x, sigma), MIXTURE(x, sigma), rtol=0, atol=rounding(adapter, sigma, x))


@pytest.mark.parametrize("predicts", ["epsilon", "v", "sample", "velocity"])
@given(table=tables(last=1e-3))
def test_an_ideal_network_of_discrete_steps_is_the_exact_denoiser_at_its_levels(
    predicts: str, table: tuple[float, ...]
) -> None:
    adapter = Adapter(predicts, schedules.Cosine(), table=table[::-1])  # type: ignore[arg-type]
    sigma = torch.tensor(table, dtype=torch.float64)
    x = points(sigma)
    denoiser = Preconditioned(Network(lambda x, c_noise: predicted(adapter, x, c_noise, MIXTURE)), adapter)
    tolerance = rounding(adapter, sigma, x)
    torch.testing.assert_close(denoiser(x, sigma), MIXTURE(x, sigma), rtol=0, atol=tolerance)
    assert (denoiser.sigma_min, denoiser.sigma_max) == (table[-1], table[0])
    between = sigma * 1.02
    nearest = (sigma[None] - between[:, None]).abs().argmin(1)
    assert torch.equal(denoiser.round_sigma(between), sigma[nearest])


@given(st.floats(0.02, 40.0))
def test_ideal_networks_of_the_published_columns_are_the_exact_denoiser(sigma: float) -> None:
    x = points(torch.full((5,), sigma, dtype=torch.float64))
    exact = MIXTURE(x, sigma)
    n = (x - exact) / sigma
    garbage = torch.full_like(n, 1e9)
    for rule, network in (
        (VP(), lambda x, c: n),
        (VE(), lambda x, c: -n),
        (IDDPM(), lambda x, c: torch.cat([n, garbage], 1)),  # The second half predicts variances.
    ):
        denoised = Preconditioned(Network(network), rule)(x, sigma)
        torch.testing.assert_close(denoised, exact, rtol=0, atol=64 * EPS * (1 + float(x.abs().max())))


@given(sigmas(0.01, 80.0), st.integers(2, 2000))
def test_the_networks_see_the_noise_level_as_in_their_papers(sigma: float, m: int) -> None:
    def c_noise(preconditioning: Preconditioning, sigma: float) -> float:
        return float(preconditioning.coefficients(float64(sigma), 0.5).c_noise)

    assert c_noise(EDM(), sigma) == pytest.approx(math.log(sigma) / 4, rel=8 * EPS, abs=EPS)
    assert c_noise(VE(), sigma) == pytest.approx(math.log(sigma / 2), rel=8 * EPS, abs=EPS)
    time = float(schedules.VP().time(sigma))
    assert c_noise(VP(num_levels=m), sigma) == pytest.approx((m - 1) * time, rel=8 * EPS)
    assert c_noise(VP(num_levels=m), VP().sigma_max) == pytest.approx(m - 1, rel=64 * EPS)


@given(all_preconditionings())
def test_the_ends_of_the_supported_range_are_levels_that_the_network_knows(preconditioning: Preconditioning) -> None:
    ends = [preconditioning.sigma_min, preconditioning.sigma_max]
    finite = torch.tensor([e for e in ends if 0 < e < math.inf], dtype=torch.float64)
    assert torch.equal(preconditioning.round_sigma(finite), finite)
    assert bool(torch.stack(preconditioning.coefficients(finite, 0.5)).isfinite().all())


def test_the_published_ranges_are_kept() -> None:
    assert (EDM().sigma_min, EDM().sigma_max) == (0.0, math.inf)
    assert VP().sigma_min == float(schedules.VP().sigma(1e-5))
    assert VP().sigma_max == float(schedules.VP().sigma(1.0))
    assert (VE().sigma_min, VE().sigma_max) == (0.02, 100.0)
    u = levels.iddpm_table()
    assert (IDDPM().sigma_min, IDDPM().sigma_max) == (u[-2], u[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VP(num_levels=1), "num_levels must be >= 2, got 1"),
        (lambda: VP(epsilon_t=0.0), "epsilon_t must be between 1e-12 and 0.999999999999, got 0.0"),
        (lambda: VP(beta_d=-1.0), "beta_d must be finite and > 0, got -1.0"),
        (lambda: VE(sigma_min=200.0), "sigma_min must be < sigma_max, got sigma_min=200.0 and sigma_max=100.0"),
        (lambda: IDDPM(num_levels=2, table=(2.0, 0.0)), "table must hold num_levels + 1 = 3"),
        (lambda: IDDPM(num_levels=0, table=(0.0,)), "num_levels must be >= 1, got 0"),
        (lambda: IDDPM(num_levels=2, table=(1.0, 2.0, 0.0)), "table must decrease strictly, got table[0]=1.0"),
        (lambda: IDDPM(num_levels=2, table=(2.0, 1.0, -1.0)), "table[2] must be >= 0, got -1.0"),
        (lambda: IDDPM(num_levels=2, table=(3.0, 2.0, 1.0)), "table must end with 0, got 1.0"),
        (lambda: Adapter(table=(-1.0, 2.0)), "table[0] must be >= 0, got -1.0"),
        (lambda: Adapter(table=(1.0, math.inf)), "table[-1] must be a finite number, got inf"),
        (lambda: Adapter(time_scale=0.0), "time_scale must be finite and > 0, got 0.0"),
        (lambda: Adapter(time_scale=2.0, table=(1.0, 2.0)), "time_scale has no effect with a table and must be 1.0"),
        (lambda: Adapter(table=(1.0,)), "table must hold at least 2 strictly increasing levels, got 1"),
        (lambda: Adapter("v", schedules.RectifiedFlow()), "predicts='v' needs a schedule with VPScaling"),
    ],
)
def test_a_value_out_of_range_is_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


PREDICTIONS = [
    preconditioning.EpsilonPrediction(),
    preconditioning.ScorePrediction(),
    preconditioning.DataPrediction(),
    preconditioning.VPrediction(),
    preconditioning.VelocityPrediction(0.7),
    preconditioning.NetworkPrediction(0.7),
    preconditioning.ScheduleVelocity(schedules.VP()),
    preconditioning.ScheduleVelocity(schedules.RectifiedFlow()),
    preconditioning.ScheduleVelocity(schedules.EDM()),
]


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=repr)
def test_a_prediction_is_read_in_both_directions(prediction: preconditioning.Prediction) -> None:
    sigma = torch.logspace(-2, 2, 41, dtype=torch.float64)
    x, denoised = torch.randn(2, 41, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, b = prediction.coefficients(sigma)
    c_skip, c_out = prediction.denoising(sigma)
    predicted = a * x + b * denoised
    torch.testing.assert_close(c_skip * x + c_out * predicted, denoised, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=repr)
def test_the_growth_of_x_where_the_prediction_is_zero_solves_the_flow(prediction: preconditioning.Prediction) -> None:
    sigma = torch.logspace(-2, 2, 41, dtype=torch.float64, requires_grad=True)
    growth = prediction.log_growth(sigma).sum()
    by_autograd = torch.autograd.grad(growth, sigma)[0] if growth.requires_grad else torch.zeros_like(sigma)
    expected = (1 - prediction.denoising(sigma)[0]) / sigma
    torch.testing.assert_close(by_autograd, expected.detach(), rtol=1e-10, atol=1e-12)


def test_velocities_and_v_are_members_of_one_family() -> None:
    sigma = torch.logspace(-2, 2, 41, dtype=torch.float64)
    flow = preconditioning.ScheduleVelocity(schedules.RectifiedFlow()).denoising(sigma)
    torch.testing.assert_close(preconditioning.VelocityPrediction(1.0).denoising(sigma), flow, rtol=1e-12, atol=1e-14)
    c_skip, c_out = preconditioning.NetworkPrediction(1.0).denoising(sigma)
    torch.testing.assert_close(preconditioning.VPrediction().denoising(sigma), (c_skip, -c_out), rtol=1e-14, atol=0)
    adapter = preconditioning.Adapter("velocity", schedules.RectifiedFlow())
    assert adapter.prediction(0.3) == preconditioning.ScheduleVelocity(schedules.RectifiedFlow())


@pytest.mark.usefixtures("without_type_checker")
@pytest.mark.parametrize("kind", [EDM(), VP(), VE(), IDDPM(), Adapter()], ids=lambda kind: type(kind).__name__)
def test_coefficients_are_given_for_a_number_and_for_several_as_for_a_tensor(kind: Preconditioning) -> None:
    expected = kind.coefficients(torch.tensor([0.5, 2.0], dtype=torch.float64), 0.5)
    for several in ([0.5, 2.0], torch.tensor([0.5, 2.0])):
        found = kind.coefficients(several, 0.5)  # type: ignore[arg-type]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert [float(c) for c in kind.coefficients(2.0, 0.5)] == [float(c[1]) for c in expected]
    with pytest.raises(TypeError, match="noise levels must be real numbers, or a tensor of them, got 'high'"):
        kind.coefficients("high", 0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [EDM(), VP(), VE(), IDDPM(), Adapter()], ids=lambda kind: type(kind).__name__)
def test_a_number_is_rounded_as_a_tensor_is(kind: Preconditioning) -> None:
    assert torch.equal(kind.round_sigma(2.0), kind.round_sigma(float64(2.0)))


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=repr)
def test_a_prediction_is_read_at_a_number_as_at_a_tensor(prediction: preconditioning.Prediction) -> None:
    for function in (prediction.coefficients, prediction.denoising):
        assert all(torch.equal(a, b) for a, b in zip(function(2.0), function(float64(2.0)), strict=True))
    assert torch.equal(prediction.log_growth(2.0), prediction.log_growth(float64(2.0)))


NO_LEVELS = pytest.mark.parametrize("sigma", [-1.0, math.nan, math.inf, torch.tensor([1.0, -1.0])], ids=repr)
NO_LEVEL = r"sigma must be (>= 0, got (-1.0|nan)|a finite number, got inf)"


@NO_LEVELS
@pytest.mark.parametrize("kind", [EDM(), VP(), VE(), IDDPM(), Adapter()], ids=lambda kind: type(kind).__name__)
def test_what_is_no_noise_level_has_no_coefficients(kind: Preconditioning, sigma: Any) -> None:
    for function in (kind.coefficients, kind.inputs):
        with pytest.raises(ValueError, match=NO_LEVEL):
            function(sigma, 0.5)
    with pytest.raises(ValueError, match=NO_LEVEL):
        kind.round_sigma(sigma)


@NO_LEVELS
@pytest.mark.parametrize("prediction", PREDICTIONS, ids=repr)
def test_nothing_is_predicted_where_there_is_no_noise_level(prediction: preconditioning.Prediction, sigma: Any) -> None:
    for function in (prediction.denoising, prediction.log_growth, prediction.coefficients):
        with pytest.raises(ValueError, match=NO_LEVEL):
            function(sigma)
