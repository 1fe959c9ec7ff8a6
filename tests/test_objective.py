"""Objectives: what p(σ) is drawn, how stratification helps, what the loss and the learned uncertainty minimise."""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from golden import golden_arrays, needs_golden
from openedm import levels, schedules
from openedm.objective import (
    EDM,
    EDM2,
    IDDPM,
    VE,
    VP,
    EDMWeighting,
    InverseVariance,
    LogNormal,
    LogUniform,
    NoiseDistribution,
    Objective,
    Uncertainty,
    UniformTable,
    UniformTime,
    Weighting,
    denoising_loss,
)
from openedm.schedules import float64
from properties.strategies import EPS, continuous_noise, log_uniform, tables

CONTINUOUS = [
    LogNormal(),
    LogNormal(-0.4, 1.0),
    UniformTime(),
    UniformTime(schedules.RectifiedFlow(), 0.001, 0.999),
    UniformTime(schedules.Cosine(), 0.01, 0.99),
    LogUniform(),
]


def cdf(noise: NoiseDistribution, sigma: Tensor) -> Tensor:
    """P(σ' ≤ σ) as the definitions state it."""
    if isinstance(noise, LogNormal):
        mean = -1.2 if noise.p_mean is None else noise.p_mean
        return torch.special.ndtr((sigma.log() - mean) / noise.p_std)
    if isinstance(noise, UniformTime):
        return (noise.schedule.time(sigma) - noise.epsilon_t) / (noise.t_max - noise.epsilon_t)
    assert isinstance(noise, LogUniform)
    return (sigma.log() - math.log(noise.sigma_min)) / math.log(noise.sigma_max / noise.sigma_min)


def drawn(noise: NoiseDistribution, batch: int, batches: int, *, stratified: bool, seed: int = 0) -> Tensor:
    """Noise levels of so many batches: (batches, batch)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([noise.sample(batch, generator, stratified=stratified) for _ in range(batches)])


def kolmogorov_smirnov(u: Tensor) -> float:
    """√n times the distance between the distribution of u and the uniform one."""
    ordered = u.flatten().sort().values
    n = len(ordered)
    ranks = torch.arange(n + 1, dtype=torch.float64) / n
    return math.sqrt(n) * float(torch.maximum(ranks[1:] - ordered, ordered - ranks[:-1]).max())


KS_LIMIT = math.sqrt(math.log(2e6) / 2)
"""Exceeded with probability 1e-6: P(√n D > k) ≤ 2 e^{−2k²}."""


@given(continuous_noise(), st.floats(0.001, 0.999))
def test_the_quantile_undoes_the_stated_distribution(noise: NoiseDistribution, u: float) -> None:
    sigma = noise.quantile(float64(u))
    # ln σ is rounded at a size of up to 12; the steepest distribution, P_std = 0.1, magnifies that by 4.
    assert float(cdf(noise, sigma)) == pytest.approx(u, rel=0, abs=4 * 12 * 8 * EPS)


@pytest.mark.parametrize("noise", CONTINUOUS, ids=repr)
def test_independent_draws_follow_the_distribution(noise: NoiseDistribution) -> None:
    u = cdf(noise, drawn(noise, 64, 300, stratified=False))
    assert kolmogorov_smirnov(u) < KS_LIMIT


@pytest.mark.parametrize("noise", CONTINUOUS, ids=repr)
def test_each_place_in_a_stratified_batch_follows_the_distribution(noise: NoiseDistribution) -> None:
    u = cdf(noise, drawn(noise, 8, 3000, stratified=True))
    for place in range(8):
        assert kolmogorov_smirnov(u[:, place]) < KS_LIMIT


@given(continuous_noise(), st.sampled_from([1, 2, 7, 64]), st.integers(0, 2**32))
def test_a_stratified_batch_has_one_level_in_each_part(noise: NoiseDistribution, batch: int, seed: int) -> None:
    u = cdf(noise, noise.sample(batch, torch.Generator().manual_seed(seed), stratified=True))
    assert (u * batch).floor().long().sort().values.tolist() == list(range(batch))


def test_stratification_lowers_the_variance_of_a_batchs_mean_as_its_theory_says() -> None:
    noise, batch, batches = LogUniform(), 16, 4000
    span = math.log(noise.sigma_max / noise.sigma_min)
    independent = drawn(noise, batch, batches, stratified=False).log().mean(1)
    stratified = drawn(noise, batch, batches, stratified=True, seed=1).log().mean(1)
    # Uniform numbers: variance span²/12 a draw; a stratum is B times narrower. A variance is known to √(2/batches).
    tolerance = 5 * math.sqrt(2 / batches)
    assert float(independent.var()) == pytest.approx(span**2 / 12 / batch, rel=tolerance)
    assert float(stratified.var()) == pytest.approx(span**2 / 12 / batch**3, rel=tolerance)
    mean = math.log(noise.sigma_max * noise.sigma_min) / 2
    assert float(stratified.mean()) == pytest.approx(mean, abs=5 * span / math.sqrt(12 * batch**3 * batches))


@pytest.mark.parametrize("stratified", [False, True])
def test_every_level_of_a_table_but_the_last_is_equally_likely(stratified: bool) -> None:
    table = (5.0, 3.0, 2.0, 1.0, 0.5, 0.0)
    counts = dict.fromkeys(table, 0)
    for sigma in drawn(UniformTable(table), 10, 2000, stratified=stratified).flatten().tolist():
        counts[sigma] += 1
    assert counts.pop(0.0) == 0
    if stratified:  # Ten strata over five levels: two of each in every batch.
        assert set(counts.values()) == {4000}
    else:
        assert stats.chisquare(list(counts.values())).pvalue > 1e-6


def test_the_table_of_iddpm_is_the_default() -> None:
    u = torch.rand(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(UniformTable().quantile(u), UniformTable(levels.iddpm_table()).quantile(u))


@given(tables(), st.floats(0.0, 1.0, exclude_max=True))
def test_a_table_is_passed_through_from_its_lowest_level_up(table: tuple[float, ...], u: float) -> None:
    index = min(int(u * (len(table) - 1)), len(table) - 2)
    assert float(UniformTable(table).quantile(float64(u))) == table[:-1][::-1][index]


def test_the_same_generator_draws_the_same_levels() -> None:
    for stratified in (False, True):
        one, other, third = (drawn(LogNormal(), 8, 1, stratified=stratified, seed=seed) for seed in (3, 3, 4))
        assert torch.equal(one, other)
        assert not torch.equal(one, third)


def test_the_columns_of_the_table_are_the_papers() -> None:
    assert EDM().for_data(0.5) == EDM(LogNormal(-1.2, 1.2), EDMWeighting())
    assert VP() == VP(UniformTime(schedules.VP(19.9, 0.1), 1e-5, 1.0), InverseVariance())
    assert VE() == VE(LogUniform(0.02, 100.0), InverseVariance())
    assert IDDPM() == IDDPM(UniformTable(), InverseVariance())
    assert EDM2() == EDM2(LogNormal(-0.4, 1.0), EDMWeighting(), learned_uncertainty=True)
    assert not any(o.learned_uncertainty for o in (Objective(), EDM(), VP(), VE(), IDDPM()))


@given(log_uniform(1e-3, 1e3), log_uniform(0.1, 10.0))
def test_the_weightings_are_the_stated_ones(sigma: float, sigma_data: float) -> None:
    edm = float(EDMWeighting().weight(float64(sigma), sigma_data))
    assert edm == pytest.approx(1 / sigma_data**2 + 1 / sigma**2, rel=8 * EPS)
    assert float(InverseVariance().weight(float64(sigma), sigma_data)) == pytest.approx(sigma**-2, rel=4 * EPS)


@pytest.mark.parametrize("noise", [*CONTINUOUS, UniformTable()], ids=repr)
def test_quantiles_are_given_for_a_number_as_for_a_tensor(noise: NoiseDistribution) -> None:
    assert torch.equal(noise.quantile(0.3), noise.quantile(float64(0.3)))


@pytest.mark.usefixtures("without_type_checker")
@pytest.mark.parametrize("weighting", [EDMWeighting(), InverseVariance()], ids=repr)
def test_weights_are_given_for_a_number_as_for_a_tensor(weighting: Weighting) -> None:
    assert torch.equal(weighting.weight(2.0, 0.5), weighting.weight(float64(2.0), 0.5))
    with pytest.raises(TypeError, match="noise levels must be real numbers, or a tensor of them, got 'high'"):
        weighting.weight("high", 0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("u", [-0.1, 2.0, math.nan, torch.tensor([0.5, 1.5])], ids=repr)
@pytest.mark.parametrize("noise", [*CONTINUOUS, UniformTable()], ids=repr)
def test_quantiles_are_those_of_numbers_between_0_and_1(noise: NoiseDistribution, u: Any) -> None:
    with pytest.raises(ValueError, match=r"u must be between 0 and 1, got (-0.1|2.0|nan|1.5)"):
        noise.quantile(u)
    low, high = noise.quantile(torch.tensor([0.0, 1.0])).tolist()
    assert 0 <= low < high


@pytest.mark.parametrize("sigma", [-1.0, math.nan, math.inf, torch.tensor([1.0, -1.0])], ids=repr)
@pytest.mark.parametrize("weighting", [EDMWeighting(), InverseVariance()], ids=repr)
def test_what_is_no_noise_level_has_no_weight(weighting: Weighting, sigma: Any) -> None:
    with pytest.raises(ValueError, match=r"sigma must be (>= 0, got (-1.0|nan)|a finite number, got inf)"):
        weighting.weight(sigma, 0.5)


def test_a_weight_requires_a_width_of_the_data() -> None:
    with pytest.raises(ValueError, match=r"sigma_data must be finite and > 0, got -0.5"):
        EDMWeighting().weight(1.0, -0.5)


@pytest.mark.parametrize("event", [(3,), (2, 4, 5)])
def test_the_loss_is_the_weighted_mean_square_over_the_dimensions(event: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    denoised, clean = torch.randn(2, 4, *event, generator=generator, dtype=torch.float64)
    weight, u = torch.rand(2, 4, generator=generator, dtype=torch.float64)
    loss = denoising_loss(denoised, clean, weight)
    softened = denoising_loss(denoised, clean, weight, u)
    for i in range(4):
        square = sum((a - b) ** 2 for a, b in zip(denoised[i].flatten(), clean[i].flatten(), strict=True))
        expected = float(weight[i] * square / math.prod(event))
        assert float(loss.total[i]) == pytest.approx(expected, rel=32 * EPS)
        assert float(loss.weighted[i]) == float(softened.weighted[i]) == float(loss.total[i])
        assert float(softened.total[i]) == pytest.approx(expected / math.exp(u[i]) + float(u[i]), rel=32 * EPS)


def test_outputs_of_low_precision_are_squared_in_float32() -> None:
    clean = torch.zeros(1, 2)
    denoised = torch.tensor([[256.0, 1.0]], dtype=torch.bfloat16)
    loss = denoising_loss(denoised, clean, torch.ones(1, dtype=torch.float64)).total
    assert loss.dtype == torch.float32
    assert float(loss) == (256**2 + 1) / 2  # bfloat16 has 8 bits and would lose the 1.


def test_only_the_total_has_a_gradient() -> None:
    denoised = torch.ones(1, 2, requires_grad=True)
    loss = denoising_loss(denoised, torch.zeros(1, 2), torch.ones(1, dtype=torch.float64))
    assert loss.total.requires_grad
    assert not loss.weighted.requires_grad


@needs_golden
def test_the_loss_of_edm2_is_that_of_the_reference_in_every_pixel() -> None:
    arrays = golden_arrays("edm2/edm2.npz").items()
    stored = {name[5:]: torch.from_numpy(array).double() for name, array in arrays if name.startswith("loss/")}
    clean = stored["images"]
    sigma = (-0.4 + stored["rnd"]).exp().expand_as(clean)
    denoised, u = 0.8 * (clean + sigma * stored["eps"]), 0.3 * sigma.log() - 0.1
    pixels = [each.reshape(-1) for each in (denoised, clean, EDMWeighting().weight(sigma, 0.5), u)]
    loss = denoising_loss(pixels[0][:, None], pixels[1][:, None], *pixels[2:]).total
    torch.testing.assert_close(loss, stored["out"].flatten(), rtol=1e-6, atol=1e-6)


@given(log_uniform(1e-2, 1e2), log_uniform(1e-2, 1e2))
def test_the_best_uncertainty_is_the_log_of_the_weighted_error(weight: float, error: float) -> None:
    denoised = torch.full((1, 3), math.sqrt(error), dtype=torch.float64)
    u = torch.tensor([math.log(weight * error)], dtype=torch.float64, requires_grad=True)

    def total(u: Tensor) -> Tensor:
        lam = torch.tensor([weight], dtype=torch.float64)
        return denoising_loss(denoised, torch.zeros_like(denoised), lam, u).total.sum()

    (slope,) = torch.autograd.grad(total(u), u)
    assert float(slope) == pytest.approx(0, abs=32 * EPS)  # 1 − λ‖·‖²/e^u, of numbers of size 1.
    assert float(total(u.detach())) == pytest.approx(1 + math.log(weight * error), abs=64 * EPS * 10)
    (up,) = torch.autograd.grad(total(u + 1), u)
    assert float(up) == pytest.approx(1 - math.exp(-1), rel=64 * EPS)


def test_uncertainty_starts_at_zero_and_leaves_the_loss_as_it_was() -> None:
    sigma = torch.logspace(-3, 3, 20, dtype=torch.float64)
    u = Uncertainty()(sigma)
    assert bool((u == 0).all())
    denoised = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    plain = denoising_loss(denoised, torch.zeros_like(denoised), sigma)
    assert torch.equal(denoising_loss(denoised, torch.zeros_like(denoised), sigma, u).total, plain.total)


def test_uncertainty_learns_a_loss_that_varies_over_the_noise_levels() -> None:
    sigma = torch.logspace(-2, 2, 64, dtype=torch.float64)
    error = 0.3 + 0.25 * torch.tanh(sigma.log())  # λ‖·‖² as a function of σ
    uncertainty = Uncertainty(channels=64).double()
    optimiser = torch.optim.LBFGS(uncertainty.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = denoising_loss(torch.ones(64, 1).double(), torch.zeros(64, 1).double(), error, uncertainty(sigma))
        loss.total.mean().backward()
        return loss.total.mean()

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    excess = closure().item() - float((1 + error.log()).mean())
    # Near its least value the loss exceeds it by half the mean square of u − ln(λ‖·‖²).
    assert 0 <= excess < 0.5 * 0.01**2


def test_the_features_of_the_uncertainty_belong_to_its_seed() -> None:
    before = torch.get_rng_state()
    one, other, third = Uncertainty(8, seed=1), Uncertainty(8, seed=1), Uncertainty(8, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.frequencies, other.frequencies)
    assert torch.equal(one.phases, other.phases)
    assert not torch.equal(one.frequencies, third.frequencies)


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-53])
def test_the_extreme_draws_are_finite_and_positive(u: float, stratified: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda count, **_: torch.full((count,), u, dtype=torch.float64))
    sigma = LogNormal().sample(64, torch.Generator(), stratified=stratified)
    assert bool(sigma.isfinite().all())
    assert bool((sigma > 0).all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogNormal(p_std=0.0), "p_std must be finite and > 0, got 0.0"),
        (lambda: LogNormal(p_mean=math.nan), "p_mean must be a finite number, got nan"),
        (lambda: Uncertainty(channels=0), "channels must be >= 1, got 0"),
        (lambda: LogUniform(sigma_min=0.0), "sigma_min must be finite and > 0, got 0.0"),
        (lambda: LogUniform(2.0, 1.0), "sigma_min must be < sigma_max, got sigma_min=2.0 and sigma_max=1.0"),
        (lambda: UniformTime(epsilon_t=0.0), "epsilon_t must be finite and > 0, got 0.0"),
        (lambda: UniformTime(epsilon_t=0.5, t_max=0.4), "epsilon_t must be < t_max, got epsilon_t=0.5 and t_max=0.4"),
        (lambda: UniformTime(schedules.RectifiedFlow()), "sigma at t_max=1.0 must be finite and > 0, got inf"),
        (lambda: UniformTable((1.0, 2.0, 0.0)), "table must decrease strictly, got table[0]=1.0 and table[1]=2.0"),
        (lambda: UniformTable((2.0, 1.0)), "table must hold at least 2 levels, the last of them 0, got (2.0, 1.0)"),
        (lambda: UniformTable((0.0,)), "table must hold at least 2 levels, the last of them 0, got (0.0,)"),
    ],
)
def test_a_value_out_of_range_is_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@given(st.floats(1e-6, 1e6), st.integers(0, 9))
def test_without_a_p_mean_noise_levels_are_those_of_the_paper_in_units_of_the_data(scale: float, seed: int) -> None:
    follows, literal = LogNormal(), LogNormal(-1.2)
    drawn = [
        noise.sample(16, torch.Generator().manual_seed(seed)) for noise in (follows.for_data(0.5 * scale), literal)
    ]
    torch.testing.assert_close(drawn[0], scale * drawn[1], rtol=1e-9, atol=0)
    assert EDM().for_data(0.5 * scale).noise == follows.for_data(0.5 * scale)


@pytest.mark.parametrize("objective", [EDM(LogNormal(-1.2)), EDM2(), VP(), VE(), IDDPM()], ids=repr)
def test_noise_levels_that_are_given_and_those_of_other_papers_do_not_depend_on_the_data(objective: Objective) -> None:
    assert objective.for_data(10.0) == objective
