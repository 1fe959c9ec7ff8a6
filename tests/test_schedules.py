"""Schedules and scalings: laws over random times, then their formulas, then traps and errors."""

import math
import re
from decimal import Decimal, localcontext
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openedm.schedules import (
    EDM,
    VE,
    VP,
    Angle,
    Cosine,
    FlowScaling,
    FlowTime,
    LogSigma,
    NoScaling,
    PowerSigma,
    RectifiedFlow,
    Scaling,
    Schedule,
    VPScaling,
)
from properties.strategies import EPS, all_scalings, all_schedules, log_uniform, sigmas

EVERY_SCHEDULE = [EDM(), VP(), VP.fit(0.002, 80.0), VE(), Cosine(), RectifiedFlow()]


def elasticity(schedule: Schedule, t: float) -> float:
    """d ln σ/d ln t: how much a relative error of t is magnified in σ."""
    return float(schedule.sigma_derivative(t)) * t / float(schedule.sigma(t))


def time_of(schedule: Schedule, sigma: float) -> float:
    return float(schedule.time(sigma))


@given(all_schedules(), sigmas())
def test_the_inverse_undoes_the_schedule(schedule: Schedule, sigma: float) -> None:
    t = time_of(schedule, sigma)
    back = float(schedule.sigma(t))
    magnified = elasticity(schedule, t)
    # A time is stored to one rounding, and σ(t) adds a few of its own, magnified likewise where it cancels.
    assert back == pytest.approx(sigma, rel=16 * EPS * (1 + magnified), abs=0)
    assert time_of(schedule, back) == pytest.approx(t, rel=32 * EPS * (1 + 1 / magnified), abs=0)


@given(all_schedules(), all_scalings(), sigmas())
def test_the_stated_derivatives_equal_autograds(schedule: Schedule, scaling: Scaling, sigma: float) -> None:
    t = schedule.time(sigma).requires_grad_()
    level = schedule.sigma(t)
    speed = schedule.sigma_derivative(t).item()
    tolerance = 32 * EPS * (1 + elasticity(schedule, t.item()))
    (by_autograd,) = torch.autograd.grad(level, t, retain_graph=True)
    assert speed == pytest.approx(by_autograd.item(), rel=tolerance, abs=0)
    scale = scaling.scale(level)
    (scale_by_autograd,) = torch.autograd.grad(scale, t) if scale.requires_grad else (torch.zeros(()),)
    assert scaling.derivative(level).item() * speed == pytest.approx(scale_by_autograd.item(), rel=tolerance, abs=0)


@given(all_schedules(), st.lists(sigmas(), min_size=2, max_size=8))
def test_noise_increases_strictly_with_time(schedule: Schedule, levels: list[float]) -> None:
    times = sorted(time_of(schedule, sigma) for sigma in levels)
    apart = [t for i, t in enumerate(times) if i == 0 or t > times[i - 1] * (1 + 1e-9)]
    values = schedule.sigma(torch.tensor(apart, dtype=torch.float64)).tolist()
    assert all(low < high for low, high in pairwise(values))
    assert bool((schedule.sigma_derivative(torch.tensor(apart, dtype=torch.float64)) > 0).all())


@given(all_scalings(), log_uniform(1e-6, 1e6), st.floats(1.01, 100.0))
def test_a_scaling_falls_from_one_as_noise_grows(scaling: Scaling, sigma: float, factor: float) -> None:
    assert float(scaling.scale(0.0)) == 1.0
    low, high = float(scaling.scale(sigma * factor)), float(scaling.scale(sigma))
    assert 0 < low <= high <= 1


@given(all_schedules(), sigmas())
def test_a_number_a_tensor_and_a_batch_give_the_same(schedule: Schedule, sigma: float) -> None:
    batch = torch.tensor([[sigma, 1.0], [0.5, sigma]], dtype=torch.float64)
    times = schedule.time(batch)
    # Vectorised and scalar mathematics differ by roundings, which σ(t) magnifies.
    magnified = max(elasticity(schedule, t) for t in times.flatten().tolist())
    for function, values in (
        (schedule.time, batch),
        (schedule.sigma, times),
        (schedule.sigma_derivative, times),
        (schedule.scaling.scale, batch),
        (schedule.scaling.derivative, batch),
    ):
        together = function(values)
        assert together.shape == (2, 2)
        alone = [float(function(v)) for v in values.flatten().tolist()]
        assert together.flatten().tolist() == pytest.approx(alone, rel=16 * EPS * (1 + magnified), abs=0)


@pytest.mark.parametrize("schedule", EVERY_SCHEDULE, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_of_low_precision_are_computed_in_float64(schedule: Schedule, dtype: torch.dtype) -> None:
    coarse = schedule.time(torch.tensor([0.01, 0.5, 40.0])).to(dtype)
    for function in (schedule.sigma, schedule.sigma_derivative, schedule.time, schedule.scaling.scale):
        result = function(coarse)
        assert result.dtype == torch.float64
        assert torch.equal(result, function(coarse.double()))


@pytest.mark.parametrize("sigma", [-1.0, math.nan, math.inf, torch.tensor([1.0, -1.0])], ids=repr)
@pytest.mark.parametrize("schedule", [*EVERY_SCHEDULE, LogSigma(), FlowTime()], ids=repr)
def test_what_is_no_noise_level_has_neither_time_nor_scale(schedule: Schedule, sigma: Any) -> None:
    scaling = schedule.scaling
    for function in (schedule.time, scaling.scale, scaling.derivative):
        with pytest.raises(ValueError, match=r"sigma must be (>= 0, got (-1.0|nan)|a finite number, got inf)"):
            function(sigma)


@pytest.mark.usefixtures("without_type_checker")
@pytest.mark.parametrize("value", ["1", None, 1j, torch.tensor([1j])])
def test_what_is_no_real_number_is_neither_time_nor_noise_level(value: Any) -> None:
    for function in (VP().sigma, VP().time, VPScaling().scale):
        with pytest.raises(TypeError, match="times and noise levels must be real"):
            function(value)


def decimal_vp(beta_d: float, beta_min: float, t: float) -> tuple[Decimal, Decimal]:
    """σ(t) and σ̇(t) of VP with 60 digits."""
    with localcontext() as context:
        context.prec = 60
        d, m, time = Decimal(beta_d), Decimal(beta_min), Decimal(t)
        grown = (d * time * time / 2 + m * time).exp()
        sigma = (grown - 1).sqrt()
        return sigma, (d * time + m) * grown / (2 * sigma)


@given(log_uniform(0.1, 50.0), log_uniform(1e-3, 5.0), log_uniform(1e-12, 1.0))
def test_vp_is_exact_down_to_time_zero(beta_d: float, beta_min: float, t: float) -> None:
    schedule = VP(beta_d, beta_min)
    sigma, speed = decimal_vp(beta_d, beta_min, t)
    assert float(schedule.sigma(t)) == pytest.approx(float(sigma), rel=1e-12, abs=0)
    assert float(schedule.sigma_derivative(t)) == pytest.approx(float(speed), rel=1e-12, abs=0)
    assert float(schedule.time(float(sigma))) == pytest.approx(t, rel=1e-12, abs=0)


@given(st.floats(1e-5, 1e-1), st.floats(0.02, 0.98), log_uniform(1.0, 1e4))
def test_a_fitted_vp_goes_through_both_points(epsilon_s: float, fraction: float, sigma_max: float) -> None:
    high = math.log1p(sigma_max**2)
    sigma_min = fraction * math.sqrt(math.expm1(epsilon_s * high))
    schedule = VP.fit(sigma_min, sigma_max, epsilon_s)
    assert float(schedule.sigma(1.0)) == pytest.approx(sigma_max, rel=16 * EPS * (1 + high), abs=0)
    # ln(1+σ_min²) = ε_s (½ β_d ε_s + β_min), and each β is rounded at the size of ln(1+σ_max²).
    magnified = epsilon_s * high / math.log1p(sigma_min**2)
    assert float(schedule.sigma(epsilon_s)) == pytest.approx(sigma_min, rel=16 * EPS * (1 + magnified), abs=0)


def test_fitting_vp_to_its_own_range_gives_its_own_betas() -> None:
    fitted = VP.fit(float(VP().sigma(1e-3)), float(VP().sigma(1.0)))
    assert fitted.beta_d == pytest.approx(19.9, rel=1e-11)
    assert fitted.beta_min == pytest.approx(0.1, rel=1e-10)


def test_a_fitted_vp_with_negative_beta_min_starts_after_time_zero() -> None:
    schedule = VP.fit(0.002, 80.0)
    start = -2 * schedule.beta_min / schedule.beta_d
    assert 0 < start < 1e-3
    assert time_of(schedule, 1e-9) == pytest.approx(start, rel=1e-9)


def test_the_schedules_are_those_of_their_papers() -> None:
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    n, y = 0.7, -1.3
    assert torch.equal(EDM().sigma(t), t)
    torch.testing.assert_close(VE().sigma(t), t.sqrt())
    torch.testing.assert_close(Cosine().sigma(t), torch.tan(torch.pi * t / 2))
    torch.testing.assert_close(Cosine().scaling.scale(Cosine().sigma(t)), torch.cos(torch.pi * t / 2))
    beta_integral = 19.9 * t**2 / 2 + 0.1 * t
    torch.testing.assert_close(VP().scaling.scale(VP().sigma(t)), torch.exp(-beta_integral / 2))
    sigma = RectifiedFlow().sigma(t)
    straight = RectifiedFlow().scaling.scale(sigma) * (y + sigma * n)
    torch.testing.assert_close(straight, (1 - t) * y + t * n)


def test_each_schedule_has_the_scaling_of_its_paper() -> None:
    assert [s.scaling for s in (EDM(), VE())] == [NoScaling(), NoScaling()]
    assert [s.scaling for s in (VP(), Cosine())] == [VPScaling(), VPScaling()]
    assert RectifiedFlow().scaling == FlowScaling()


@given(log_uniform(1e-4, 1e4))
def test_vp_scaling_keeps_the_variance_and_flow_scaling_the_weights(sigma: float) -> None:
    variance = VPScaling().scale(sigma).square() * (1 + sigma**2)
    assert float(variance) == pytest.approx(1, rel=8 * EPS)
    assert float(FlowScaling().scale(sigma)) * (1 + sigma) == pytest.approx(1, rel=8 * EPS)


def test_cosine_is_clipped_outside_its_range_and_stands_still_there() -> None:
    schedule = Cosine(0.01, 10.0)
    outside = schedule.time(torch.tensor([0.0, 0.005, 20.0, 1e9], dtype=torch.float64))
    assert schedule.sigma(outside).tolist() == [0.01, 0.01, 10.0, 10.0]
    assert schedule.sigma_derivative(outside).tolist() == [0.0, 0.0, 0.0, 0.0]


@given(log_uniform(1e-6, 1e-1), log_uniform(1.0, 1e6))
def test_cosine_still_moves_at_the_ends_of_its_range(sigma_min: float, sigma_max: float) -> None:
    schedule = Cosine(sigma_min, sigma_max)
    ends = torch.tensor([sigma_min, sigma_max], dtype=torch.float64)
    # The rounding of t moves tan(πt/2) off the ends by (1 + σ²)/σ roundings.
    speeds = schedule.sigma_derivative(schedule.time(ends)).tolist()
    expected = (math.pi / 2 * (1 + ends.square())).tolist()
    assert speeds == pytest.approx(expected, rel=16 * EPS * (1 + sigma_max), abs=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VP(beta_d=0.0), "beta_d must be finite and > 0, got 0.0"),
        (lambda: VP(beta_d=math.nan), "beta_d must be finite and > 0, got nan"),
        (lambda: VP(beta_min=math.inf), "beta_min must be a finite number, got inf"),
        (lambda: Cosine(sigma_min=0.0), "sigma_min must be finite and > 0, got 0.0"),
        (lambda: Cosine(2.0, 1.0), "sigma_min must be < sigma_max, got sigma_min=2.0 and sigma_max=1.0"),
        (lambda: VP.fit(2.0, 1.0), "sigma_min must be < sigma_max, got sigma_min=2.0 and sigma_max=1.0"),
        (lambda: VP.fit(0.002, 80.0, 1.0), "epsilon_s must be between 0 and 1, got 1.0"),
    ],
)
def test_a_value_out_of_range_is_named(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@given(st.floats(1e-4, 0.5), log_uniform(1.0, 1e3), st.floats(1.01, 2.0))
def test_a_fit_that_does_not_exist_is_refused_with_the_limits_of_those_that_do(
    epsilon_s: float, sigma_max: float, excess: float
) -> None:
    high = math.log1p(sigma_max**2)
    sigma_min = min(excess * math.sqrt(math.expm1(epsilon_s * high)), 0.99 * sigma_max)
    if math.log1p(sigma_min**2) < epsilon_s * high:
        return
    with pytest.raises(ValueError, match="no VP schedule has sigma") as refusal:
        VP.fit(sigma_min, sigma_max, epsilon_s)
    below, above = (float(number) for number in re.findall(r"(?:below|above) (\S+)", str(refusal.value)))
    VP.fit(below * (1 - 1e-5), sigma_max, epsilon_s)
    if above < 1:
        VP.fit(sigma_min, sigma_max, above + (1 - above) * 1e-4)


@given(sigmas())
def test_logarithmic_time_runs_from_minus_infinity_and_is_inverted_exactly(sigma: float) -> None:
    schedule = LogSigma()
    t = schedule.time(sigma)
    assert float(t) == pytest.approx(math.log(sigma), rel=4 * EPS, abs=0)
    assert schedule.time_of_zero == -math.inf == float(schedule.time(0.0))
    assert float(schedule.sigma(t)) == pytest.approx(sigma, rel=4 * EPS * (1 + abs(float(t))), abs=0)
    assert bool(schedule.sigma_derivative(t) == schedule.sigma(t))


@given(sigmas())
def test_the_papers_schedules_are_members_of_the_families(sigma: float) -> None:
    pairs = [(EDM(), PowerSigma(1.0)), (VE(), PowerSigma(0.5)), (RectifiedFlow(), FlowTime(1.0))]
    for named, member in pairs:
        assert named.time(sigma) == member.time(sigma)
        assert named.sigma(named.time(sigma)) == member.sigma(member.time(sigma))
    turns = Cosine().time(sigma) * (math.pi / 2)
    torch.testing.assert_close(turns, Angle(1.0).time(sigma), rtol=4 * EPS, atol=0)
