"""Churn: noise added and removed keeps every marginal as it is, and nothing is drawn where γ = 0."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from marks import FAR_APART
from openedm.exact import GaussianMixture
from openedm.levels import Karras, LogLinear
from openedm.sampling import RK4, Churn, Euler, Sampler, SeededNoise, State
from openedm.schedules import EDM, VE, VP, Cosine, FlowScaling, NoScaling, RectifiedFlow, Scaling, Schedule, VPScaling
from properties.strategies import EPS, all_scalings, all_schedules, log_uniform

CURVES = list(product([EDM(), VP(), VE(), Cosine(), RectifiedFlow()], [NoScaling(), VPScaling(), FlowScaling()]))
VARIANCE = 0.25
GAUSSIAN = GaussianMixture([1.0], [[0.0]], [[[VARIANCE]]])


class Drawn:
    """A fast source of noise for many samples that remembers what it gave."""

    def __init__(self, batch: int, seed: int = 0) -> None:
        self.batch, self.generator = batch, torch.Generator().manual_seed(seed)
        self.given: list[Tensor] = []

    def draw(self, event_shape: tuple[int, ...]) -> Tensor:
        noise = torch.randn(self.batch, *event_shape, generator=self.generator, dtype=torch.float64)
        self.given.append(noise)
        return noise


@pytest.mark.usefixtures("without_type_checker")
@pytest.mark.parametrize(("schedule", "scaling"), CURVES, ids=repr)
def test_the_variance_of_a_gaussian_is_right_at_every_level(schedule: Schedule, scaling: Scaling) -> None:
    batch, num_steps = 20_000, 40
    # γ = 0.2 at each of the middle levels; RK4's own error is far below the statistical one.
    sampler = Sampler(
        LogLinear(num_steps, 0.05, 20.0), schedule, scaling, RK4(), Churn(0.2 * num_steps, s_min=0.1, s_max=15.0)
    )
    states = list(sampler.steps(GAUSSIAN, Drawn(batch)))[:-1]
    lacking = VARIANCE / (VARIANCE + 20.0**2)  # The run starts from σ_max n, whose variance lacks that of the data.
    for state in states:
        relative = float((state.x / state.scale).var()) / (VARIANCE + state.sigma**2)
        # A variance of n Gaussians is known to √(2/n); five of these over forty levels.
        assert relative == pytest.approx(1, abs=5 * math.sqrt(2 / batch) + lacking)


@pytest.mark.usefixtures("without_type_checker")
@pytest.mark.parametrize("s_noise", [0.9, 1.0, 1.1])
def test_s_noise_scales_the_variance_that_is_added(s_noise: float) -> None:
    batch, sigma, gamma = 50_000, 2.0, 0.4
    seen: list[Tensor] = []

    class Watching(GaussianMixture):
        def denoise(self, x, sigma, condition, **options):  # type: ignore[no-untyped-def]
            seen.append(x)
            return super().denoise(x, sigma, condition, **options)

    gaussian = Watching([1.0], [[0.0]], [[[VARIANCE]]])
    churn = Churn(gamma, s_noise=s_noise)
    x = math.sqrt(VARIANCE + sigma**2) * torch.randn(batch, 1, generator=torch.Generator().manual_seed(5)).double()
    list(Sampler(Karras(1, sigma_max=sigma), churn=churn).steps(gaussian, Drawn(batch), noise=x / sigma))
    raised = ((1 + gamma) ** 2 - 1) * sigma**2
    expected = VARIANCE + sigma**2 + s_noise**2 * raised
    assert float(seen[0].var()) == pytest.approx(expected, rel=5 * math.sqrt(2 / batch))
    if s_noise == 1:
        assert expected == pytest.approx(VARIANCE + ((1 + gamma) * sigma) ** 2)


@FAR_APART
@pytest.mark.usefixtures("without_type_checker")
@given(all_schedules(), all_scalings(), log_uniform(0.1, 20.0), st.floats(0.9, 1.1))
def test_the_state_moves_to_the_higher_level_by_exactly_the_noise_between(
    schedule: Schedule, scaling: Scaling, s_churn: float, s_noise: float
) -> None:
    levels, source = LogLinear(3, 0.1, 10.0), Drawn(4)
    sampler = Sampler(levels, schedule, scaling, Euler(), Churn(s_churn, s_noise=s_noise))
    states: list[State] = []
    sampler.sample(GAUSSIAN, source, event_shape=(1,), callback=states.append)
    gamma = min(s_churn / 3, math.sqrt(2) - 1)
    for state, noise in zip(states[:-1], source.given[1:], strict=True):
        raised = (1 + gamma) * state.sigma
        x = state.x / state.scale + math.sqrt(raised**2 - state.sigma**2) * s_noise * noise
        # D at the raised level of the raised state: the scaling has dropped out.
        tolerance = 64 * EPS * float(x.abs().max())
        torch.testing.assert_close(state.denoised, GAUSSIAN(x, raised), rtol=0, atol=tolerance)


@pytest.mark.usefixtures("without_type_checker")
@given(log_uniform(0.01, 2.0), log_uniform(2.0, 60.0))
def test_noise_is_drawn_only_at_levels_inside_the_range(s_min: float, s_max: float) -> None:
    levels, source = Karras(9, 0.005, 50.0), Drawn(2)
    sampler = Sampler(levels, churn=Churn(3.0, s_min=s_min, s_max=s_max))
    inside = sum(s_min <= sigma <= s_max for sigma in levels.sigmas().tolist())
    if inside:
        sampler.sample(GAUSSIAN, source)
        assert len(source.given) == 1 + inside
        return
    with pytest.raises(ValueError, match="or churn has no effect"):
        sampler.sample(GAUSSIAN, source)
    assert not source.given


def test_without_churn_only_the_initial_noise_is_drawn() -> None:
    source = Drawn(2)
    Sampler(Karras(5)).sample(GAUSSIAN, source)
    assert len(source.given) == 1


@FAR_APART
def test_with_noise_given_all_draws_of_the_seeds_are_churn() -> None:
    sampler = Sampler(Karras(4), churn=Churn(2.0))
    source = SeededNoise([1, 2])
    first = source.draw((1,))
    assert torch.equal(sampler.sample(GAUSSIAN, [1, 2]), sampler.sample(GAUSSIAN, source, noise=first))


@pytest.mark.usefixtures("without_type_checker")
def test_churn_forgets_the_start_and_the_ode_does_not() -> None:
    noise = torch.tensor([[1.0], [-1.0]]).double()
    calm = Sampler(Karras(30))
    stirred = replace(calm, churn=Churn(1e9))  # γ = √2 − 1, its bound
    spread = calm.sample(GAUSSIAN, noise=noise)
    # The flow of a Gaussian keeps x/√(λ + σ²): one unit of noise becomes one unit of data, to the solver's error.
    assert float(spread[0] - spread[1]) == pytest.approx(2 * math.sqrt(VARIANCE), rel=0.02)
    batch = 4000
    ends = [
        stirred.sample(GAUSSIAN, Drawn(batch, seed), noise=noise[i].expand(batch, 1)) for i, seed in ((0, 1), (1, 2))
    ]
    # At 20 of the 30 levels σ is above the data's width, and churn nearly halves the squared correlation with the
    # start: a mean of about 2⁻¹⁰ · 0.5 is left, far below the error of a mean.
    error = math.sqrt(VARIANCE / batch)
    assert all(abs(float(x.mean())) < 5 * error for x in ends)


def test_churn_at_none_of_the_noise_levels_is_refused_before_the_first_evaluation() -> None:
    Sampler(Karras(4, 0.1, 10.0), churn=Churn(5.0, s_min=9.0)).check(GAUSSIAN)
    for limits in ({"s_min": 20.0}, {"s_max": 0.05}):
        sampler = Sampler(Karras(4, 0.1, 10.0), churn=Churn(5.0, **limits))
        for run in (sampler.check, sampler.sample, sampler.steps):
            with pytest.raises(ValueError, match=r"noise levels between them, of 0.1 … 10, or churn has no effect"):
                run(GAUSSIAN, **({} if run == sampler.check else {"seeds": [0]}))
