"""Noise levels: laws over random ranges and numbers, then each rule's formula, then errors."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from openedm import levels, schedules
from openedm.exact import GaussianMixture
from openedm.levels import IDDPM, VE, VP, Explicit, Karras, Levels, Logistic, LogLinear, iddpm_table
from openedm.sampling import Sampler
from properties.strategies import EPS, all_levels, continuous_levels, log_uniform, tables


def listed(levels: Levels) -> list[float]:
    sigmas = levels.sigmas()
    assert sigmas.dtype == torch.float64
    return sigmas.tolist()


@given(all_levels())
def test_levels_fall_strictly_and_are_as_many_as_asked_for(levels: Levels) -> None:
    sigmas = listed(levels)
    assert len(sigmas) == levels.num_steps
    assert all(high > low > 0 for high, low in pairwise(sigmas))


@given(continuous_levels())
def test_levels_hit_the_ends_of_their_range_exactly(levels: Levels) -> None:
    sigmas = listed(levels)
    assert sigmas[0] == levels.sigma_max
    if levels.num_steps > 1:
        assert sigmas[-1] == levels.sigma_min


@pytest.mark.parametrize("rule", [Karras, VP, VE, LogLinear, IDDPM, Logistic])
def test_one_step_means_the_highest_level_alone(rule: Callable[..., Levels]) -> None:
    levels = rule(1)
    highest = max(u for u in iddpm_table() if u <= 81) if rule is IDDPM else levels.ends[1]
    assert listed(levels) == [highest]


@given(continuous_levels(), log_uniform(1e-4, 1e5), log_uniform(1e-4, 1e5))
def test_a_range_is_cut_to_what_the_denoiser_supports(levels: Levels, one: float, other: float) -> None:
    low, high = sorted((one, other))
    ends = (max(levels.sigma_min, low), min(levels.sigma_max, high))
    assume(ends[0] * (1 + 1e-9) < ends[1])  # closer ones are not apart in float64
    if isinstance(levels, VP):
        assume(math.log1p(ends[0] ** 2) < levels.epsilon_s * math.log1p(ends[1] ** 2))
    cut = levels.within(low, high)
    assert (cut.sigma_min, cut.sigma_max) == ends
    assert type(cut) is type(levels)
    assert cut.num_steps == levels.num_steps
    assert listed(cut)[0] == ends[1]
    assert listed(cut)[-1] == (ends[0] if cut.num_steps > 1 else ends[1])


@given(all_levels())
def test_a_range_inside_the_denoisers_is_left_as_it_is(levels: Levels) -> None:
    assert levels.within(0.0, math.inf) is levels
    assert levels.within(levels.sigma_min, levels.sigma_max) is levels


@given(all_levels(), st.floats(1.001, 100.0))
def test_a_range_outside_the_denoisers_is_refused(levels: Levels, factor: float) -> None:
    for low, high in (
        (levels.sigma_max * factor, levels.sigma_max * factor * 2),
        (levels.sigma_min / factor / 2, levels.sigma_min / factor),
    ):
        with pytest.raises(ValueError, match=r"between .* and .* are outside the denoiser's range \["):
            levels.within(low, high)


@given(st.integers(2, 64), log_uniform(1e-4, 1.0), log_uniform(1.1, 1e4), st.floats(0.5, 50.0))
def test_karras_levels_are_evenly_spaced_in_their_root(n: int, sigma_min: float, sigma_max: float, rho: float) -> None:
    roots = Karras(n, sigma_min, sigma_max, rho).sigmas() ** (1 / rho)
    steps = roots.diff() / (roots[-1] - roots[0])
    # Differences of roots that are each rounded, relative to the whole range of roots.
    tolerance = 16 * EPS * (1 + rho) / rho * float(roots[0] / (roots[0] - roots[-1]))
    assert steps.tolist() == pytest.approx([1 / (n - 1)] * (n - 1), abs=tolerance, rel=0)


@given(st.integers(2, 64), log_uniform(1e-4, 1.0), log_uniform(1.1, 1e4))
def test_ve_levels_are_log_linear(n: int, sigma_min: float, sigma_max: float) -> None:
    tolerance = 8 * EPS * (1 + math.log(sigma_max / sigma_min) + abs(math.log(sigma_min)))
    ve, log_linear = VE(n, sigma_min, sigma_max), LogLinear(n, sigma_min, sigma_max)
    assert listed(ve) == pytest.approx(listed(log_linear), rel=tolerance, abs=0)
    ratios = [high / low for high, low in pairwise(listed(log_linear))]
    assert ratios == pytest.approx([(sigma_max / sigma_min) ** (1 / (n - 1))] * (n - 1), rel=2 * tolerance, abs=0)


@given(st.integers(3, 32))
def test_karras_levels_tend_to_log_linear_as_rho_grows(n: int) -> None:
    distances = []
    for rho in (1e2, 1e3, 1e4):
        far = Karras(n, 0.01, 10.0, rho).sigmas().log() - LogLinear(n, 0.01, 10.0).sigmas().log()
        distances.append(float(far.abs().max()))
    assert distances[0] > 9 * distances[1] > 81 * distances[2] > 0


@given(st.integers(2, 64), log_uniform(1e-5, 0.1), log_uniform(1.0, 1e3), st.floats(0.05, 0.9))
def test_vp_levels_are_evenly_spaced_in_the_time_of_their_schedule(
    n: int, epsilon_s: float, sigma_max: float, fraction: float
) -> None:
    sigma_min = fraction * math.sqrt(math.expm1(epsilon_s * math.log1p(sigma_max**2)))
    levels = VP(n, sigma_min, sigma_max, epsilon_s)
    times = schedules.VP.fit(sigma_min, sigma_max, epsilon_s).time(levels.sigmas())
    expected = torch.linspace(1, epsilon_s, n, dtype=torch.float64)
    # ln(1+σ²) = t (½ β_d t + β_min), and each β is rounded at the size of ln(1+σ_max²).
    magnified = epsilon_s * math.log1p(sigma_max**2) / math.log1p(sigma_min**2)
    torch.testing.assert_close(times, expected, rtol=16 * EPS * (1 + magnified), atol=0)


def test_the_default_vp_levels_are_those_of_the_default_vp_schedule() -> None:
    times = torch.linspace(1, 1e-3, 18, dtype=torch.float64)
    magnified = 1e-3 * math.log1p(VP().sigma_max ** 2) / math.log1p(VP().sigma_min ** 2)
    torch.testing.assert_close(VP(18).sigmas(), schedules.VP().sigma(times), rtol=16 * EPS * (1 + magnified), atol=0)


@pytest.mark.parametrize("m", [1, 2, 10, 1000])
def test_the_table_of_iddpm_has_a_closed_form(m: int) -> None:
    u = iddpm_table(m)
    assert len(u) == m + 1
    assert u[m] == 0
    # The ratios of ᾱ telescope: u_j² = ᾱ_M/ᾱ_j − 1 = sin(a+b) sin(a−b)/sin² b for j ≥ 1; ᾱ_0 = 0 leaves C₁ for u_0.
    unit = math.pi / 2 / (m * 1.008)
    for j in range(1, m):
        a, b = m * unit, j * unit
        exact = math.sqrt(math.sin(a + b) * math.sin(a - b)) / math.sin(b)
        # Each of the M − j steps rounds numbers of size 1 + u², of which u² is taken.
        assert u[j] == pytest.approx(exact, rel=4 * EPS * (m - j) * (1 + 1 / exact**2), abs=0)
    assert u[0] == pytest.approx(math.sqrt((u[1] ** 2 + 1) / 0.001 - 1), rel=4 * EPS)


@given(tables(), st.data())
def test_iddpm_picks_entries_of_its_table_evenly_in_their_index(table: tuple[float, ...], data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(table) - 2))
    last = data.draw(st.integers(first, len(table) - 2))
    n = data.draw(st.integers(1, last - first + 1))
    assume(n == 1 or first < last)
    levels = IDDPM(n, sigma_min=table[last], sigma_max=table[first], table=table)
    picked = [table.index(sigma) for sigma in listed(levels)]
    even = [first + (last - first) * i / max(n - 1, 1) for i in range(n)]
    assert all(abs(index - place) <= 0.5 + 1e-9 for index, place in zip(picked, even, strict=True))
    assert picked[0] == first
    assert n == 1 or picked[-1] == last


def test_one_step_may_have_a_range_of_one_level() -> None:
    assert listed(Karras(1, sigma_min=2.0, sigma_max=2.0)) == [2.0]


def test_iddpm_refuses_more_steps_than_its_table_has_levels_in_range() -> None:
    kept = sum(0.002 <= u <= 81 for u in iddpm_table())
    assert len(listed(IDDPM(kept))) == kept
    with pytest.raises(ValueError, match=rf"num_steps must be at most {kept}, .* in \[0.002, 81\], got {kept + 1}"):
        IDDPM(kept + 1)
    with pytest.raises(ValueError, match=r"num_steps must be at most \d+, .* in \[1, 2\], got 400"):
        IDDPM(400).within(1.0, 2.0)


@given(tables())
def test_explicit_levels_are_visited_as_given(table: tuple[float, ...]) -> None:
    values = table[:-1]
    levels = Explicit(values)
    assert tuple(listed(levels)) == values
    assert (levels.sigma_max, levels.sigma_min, levels.num_steps) == (values[0], values[-1], len(values))


@pytest.mark.usefixtures("without_type_checker")
@pytest.mark.parametrize("rule", [Karras, VP, VE, LogLinear, IDDPM])
def test_half_a_step_is_refused(rule: Callable[..., Levels]) -> None:
    with pytest.raises(TypeError, match=r"num_steps must be an integer, got 2.5"):
        rule(2.5)


def test_explicit_levels_are_not_cut() -> None:
    message = "values between 0.01 and 50 exceed the range [0.02, 50] that the denoiser supports"
    with pytest.raises(ValueError, match=re.escape(message)):
        Explicit((50.0, 0.01)).within(0.02, 60.0)


@pytest.mark.parametrize("centre", [1e-3, 0.3, 7.0])
@pytest.mark.parametrize(("spread", "power"), [(1.0, 1), (0.5, 2)])
def test_logistic_levels_are_even_in_the_time_of_rectified_flow_or_in_the_share_of_noise(
    centre: float, spread: float, power: int
) -> None:
    """In σ/(σ+c) with w = 1, in σ²/(σ²+c²) with w = ½."""
    sigmas = Logistic(20, 0.01, 40.0, centre, spread).sigmas()
    share = sigmas**power / (sigmas**power + centre**power)
    torch.testing.assert_close(share, torch.linspace(float(share[0]), float(share[-1]), 20, dtype=torch.float64))


def test_logistic_levels_tend_to_log_linear_ones_as_they_spread() -> None:
    spread, even = Logistic(9, spread=1e4), LogLinear(9, 0.002, 80.0)
    torch.testing.assert_close(spread.sigmas().log(), even.sigmas().log(), rtol=0, atol=1e-6)


def test_logistic_levels_are_symmetric_about_their_centre_however_close_they_are() -> None:
    for spread in (1e-3, 0.05, 2.0):
        logs = (Logistic(8, 0.01, 1.0, 0.1, spread).sigmas() / 0.1).log()
        torch.testing.assert_close(logs, -logs.flip(0), rtol=0, atol=1e-9)
        assert (logs.diff() < 0).all()


def test_a_warp_moves_the_quantiles_and_may_not_change_their_order() -> None:
    """Its first term moves the middle of w = 1 by v/π of the whole."""
    plain, warped = (Logistic(5, 0.01, 1.0, 0.1, 1.0, warp).sigmas()[2] for warp in ((), (0.5,)))
    ends = [s / (s + 0.1) for s in (1.0, 0.01)]
    share = [float(s / (s + 0.1)) for s in (plain, warped)]
    assert share[1] - share[0] == pytest.approx(0.5 / math.pi * (ends[1] - ends[0]), rel=1e-12)
    with pytest.raises(ValueError, match="warp must keep the order of the levels"):
        Logistic(5, warp=(4.0,))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Logistic(5, centre=0.0), "centre must be finite and > 0, got 0.0"),
        (lambda: Logistic(5, spread=math.inf), "spread must be finite and > 0, got inf"),
        (lambda: Logistic(5, warp=(0.0, math.nan)), "warp[1] must be a finite number, got nan"),
        (lambda: Karras(0), "num_steps must be >= 1, got 0"),
        (lambda: Karras(5, rho=0.0), "rho must be finite and > 0, got 0.0"),
        (lambda: Karras(5, sigma_min=0.0), "sigma_min must be finite and > 0, got 0.0"),
        (lambda: VE(5, sigma_max=math.inf), "sigma_max must be finite and > 0, got inf"),
        (lambda: LogLinear(2, 1.0, 1.0), "sigma_min must be < sigma_max, got sigma_min=1.0 and sigma_max=1.0"),
        (lambda: VE(1, sigma_max=0.01), "sigma_min must be < sigma_max, got sigma_min=0.02 and sigma_max=0.01"),
        (lambda: IDDPM(2, table=(1.0, 5.0, 0.0)), "table must decrease strictly, got table[0]=1.0 and table[1]=5.0"),
        (lambda: IDDPM(2, table=(math.nan, 5.0, 0.0)), "table[0] must be a finite number, got nan"),
        (lambda: VP(5, epsilon_s=0.0), "epsilon_s must be between 0 and 1, got 0.0"),
        (lambda: VP(5, sigma_min=1.0), "no VP schedule has sigma(0.001) = 1.0"),
        (lambda: iddpm_table(0), "m must be >= 1, got 0"),
        (lambda: iddpm_table(10, c_1=0.0), "c_1 must be finite and > 0, got 0.0"),
        (lambda: iddpm_table(10, c_1=1.0), "c_1 must be < 1, got 1.0"),
        (lambda: Explicit(()), "values must hold at least one level, got ()"),
        (lambda: Explicit((2.0, 0.0)), "values[1] must be finite and > 0, got 0.0"),
        (lambda: Explicit((1.0, 2.0)), "values must decrease strictly, got values[0]=1.0 and values[1]=2.0"),
    ],
)
def test_a_value_out_of_range_is_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Karras(3, 1.0, 1 + 2e-16), "sigmas must decrease strictly, got sigmas[1]=1.0 and sigmas[2]=1.0, from"),
        (lambda: LogLinear(1000, 1.0, 1 + 1e-13), "sigmas must decrease strictly"),
        (lambda: Logistic(1000, 1.0, 1 + 1e-13, centre=0.25), "sigmas must decrease strictly"),
        (
            lambda: Karras(5, 0.002, 80.0, rho=1e-3),
            "sigmas[1] must be a finite number, got nan, from Karras(num_steps=5",
        ),
        (lambda: VP(5, 1e-3, 1e300), "sigma_max must be between 0 and 1e+150, got 1e+300"),
    ],
)
def test_levels_that_are_not_apart_in_float64_are_refused(make: Callable[[], Levels], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@dataclass(frozen=True)
class Given(Levels):
    """A rule of one's own that is not checked: levels as they are given."""

    sigma_min: float | None = 0.01
    sigma_max: float | None = 10.0
    num_steps: int = 3
    values: tuple[float, ...] = (10.0, 1.0, 0.01)

    def sigmas(self) -> torch.Tensor:
        return torch.tensor(self.values)


class Fieldless(Levels):
    def sigmas(self) -> torch.Tensor:
        return torch.ones(1)


GAUSSIAN = GaussianMixture([1.0], [[0.0]], [[[1.0]]])


def test_a_rule_of_ones_own_may_give_levels_in_single_precision() -> None:
    assert Sampler(Given()).grid(GAUSSIAN).sigmas == pytest.approx((10.0, 1.0, 0.01), rel=1e-7)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0.01, 1.0, 10.0), "sigmas must decrease strictly, got sigmas[0]=0.0"),
        ((10.0, 1.0, 1.0), "sigmas must decrease strictly, got sigmas[1]=1.0 and sigmas[2]=1.0, from Given("),
        ((10.0, math.nan, 0.01), "sigmas[1] must be a finite number, got nan"),
        ((math.inf, 1.0, 0.01), "sigmas[0] must be a finite number, got inf"),
        ((10.0, 1.0, 0.0), "sigmas[-1] must be finite and > 0, got 0.0"),
        ((10.0, 1.0), "sigmas must be num_steps levels, got shape (2,) from Given("),
        ((), "sigmas must be num_steps levels, got shape (0,)"),
        ((1000.0, 1.0, 0.01), "sigmas must be between 0.01 and 10, got 1000 … 0.01"),
    ],
)
def test_levels_of_a_rule_of_ones_own_are_checked_before_a_run(values: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Sampler(Given(values=values)).grid(GAUSSIAN)


def test_a_rule_without_its_fields_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"Fieldless must have the fields num_steps, sigma_min, sigma_max, lacks \["):
        Sampler(Fieldless()).grid(GAUSSIAN)


@pytest.mark.usefixtures("without_type_checker")
@pytest.mark.parametrize("make", [torch.tensor, np.array, list])
def test_levels_may_be_given_as_a_tensor_an_array_or_a_list(make: Callable[[list[float]], Any]) -> None:
    assert Explicit(make([2.0, 1.0])) == Explicit((2.0, 1.0))


@pytest.mark.parametrize("epsilon_s", [1e-5, 1e-2])
def test_the_lowest_vp_level_follows_epsilon_s_unless_it_is_given(epsilon_s: float) -> None:
    expected = float(schedules.VP().sigma(epsilon_s))
    assert levels.VP(epsilon_s=epsilon_s).sigma_min == expected
    assert float(levels.VP(epsilon_s=epsilon_s).sigmas()[-1]) == expected
    assert levels.VP(sigma_min=0.005, epsilon_s=epsilon_s).sigma_min == 0.005


@pytest.mark.parametrize(
    ("schedule", "same"),
    [
        (schedules.PowerSigma(7.0), levels.Karras(9)),
        (schedules.LogSigma(), levels.LogLinear(9)),
        (schedules.EDM(), levels.Karras(9, rho=1.0)),
    ],
)
def test_uniform_levels_are_the_named_rules_of_their_schedules(
    schedule: schedules.Schedule, same: levels.Levels
) -> None:
    torch.testing.assert_close(levels.Uniform(schedule, 9).sigmas(), same.sigmas(), rtol=1e-14, atol=0)


def test_uniform_levels_that_a_clipped_schedule_does_not_reach_are_refused() -> None:
    narrow = schedules.Cosine(sigma_min=0.1, sigma_max=10.0)
    with pytest.raises(ValueError, match=r"schedule must reach all levels from 80 to 0\.002"):
        levels.Uniform(narrow, 99, 0.002, 80.0)
    with pytest.raises(ValueError, match=r"schedule must reach all levels from 160 to 0\.004"):
        levels.Uniform(narrow, 99).for_data(1.0)


FOLLOWING = {
    Karras: Karras(9),
    LogLinear: LogLinear(9),
    Logistic: Logistic(9, warp=(0.3, -0.1)),
    levels.Uniform: levels.Uniform(schedules.LogSigma(), 9),
}


@pytest.mark.parametrize("rule", FOLLOWING.values(), ids=lambda rule: type(rule).__name__)
@given(sigma_data=log_uniform(1e-6, 1e6))
def test_levels_that_are_not_given_are_those_of_edm_in_units_of_the_data(rule: Levels, sigma_data: float) -> None:
    resolved = rule.for_data(sigma_data)
    assert rule.follows_data
    assert not resolved.follows_data
    assert resolved.ends == (0.002 * (sigma_data / 0.5), 80.0 * (sigma_data / 0.5))
    torch.testing.assert_close(resolved.sigmas(), rule.sigmas() * sigma_data / 0.5, rtol=1e-9, atol=0)


@pytest.mark.parametrize("rule", FOLLOWING.values(), ids=lambda rule: type(rule).__name__)
def test_without_data_levels_are_those_of_the_paper(rule: Levels) -> None:
    assert rule.ends == (0.002, 80.0)
    assert rule.for_data(0.5).ends == (0.002, 80.0)
    assert listed(rule) == listed(rule.for_data(0.5))


@given(all_levels(), log_uniform(1e-6, 1e6))
def test_levels_that_are_given_are_taken_as_they_are(rule: Levels, sigma_data: float) -> None:
    assert rule.for_data(sigma_data) is rule


@pytest.mark.parametrize("rule", [VP(9), VE(9), IDDPM(9), Explicit((2.0, 1.0))], ids=repr)
def test_levels_of_other_papers_do_not_depend_on_the_data(rule: Levels) -> None:
    assert rule.for_data(10.0) is rule


def test_one_end_may_be_given_and_the_other_follow_the_data() -> None:
    assert Karras(3, sigma_max=20.0).for_data(5.0).ends == (0.02, 20.0)
    assert Karras(3, sigma_min=1.0).for_data(5.0).ends == (1.0, 800.0)
    with pytest.raises(ValueError, match=r"sigma_min must be < sigma_max, got sigma_min=0.02 and sigma_max=0.01"):
        Karras(3, sigma_max=0.01).for_data(5.0)
