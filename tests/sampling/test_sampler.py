"""The sampler: single steps in closed form, states, evaluations, seeds, ends, and what it refuses."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from marks import FAR_APART
from openedm import schedules
from openedm.denoiser import Condition, Denoiser, FunctionDenoiser, Preconditioned
from openedm.exact import ExactDataset, GaussianMixture
from openedm.levels import IDDPM, VE, Explicit, Karras, Levels, LogLinear
from openedm.networks import MLP, DDPMpp, Network
from openedm.preconditioning import EDM, Adapter
from openedm.preconditioning import VE as VEPreconditioning
from openedm.sampling import (
    RK4,
    Alpha,
    Churn,
    Euler,
    Heun,
    Midpoint,
    Ralston,
    Sampler,
    SeededNoise,
    Solver,
    State,
    initial_noise,
    sample_batches,
)
from properties.strategies import EPS, all_scalings, all_schedules, all_solvers, sigmas

SOLVERS = [Euler(), Alpha(0.3), Midpoint(), Ralston(), Heun(), RK4()]
MIXTURE = GaussianMixture(
    [0.3, 0.7], [[-1.4, 0.7], [0.6, -0.3]], [[[0.20, 0.05], [0.05, 0.10]], [[0.05, 0.0], [0.0, 0.3]]]
)


def unit_noise(batch: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(batch, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Counting(Denoiser):
    """The mixture's denoiser; records what it is asked."""

    def __init__(self, sigma_min: float = 0.0, sigma_max: float = math.inf) -> None:
        super().__init__()
        self.event_shape, self.sigma_min, self.sigma_max = (2,), sigma_min, sigma_max
        self.seen: list[tuple[Tensor, float]] = []

    def denoise(self, x: Tensor, sigma: Tensor, condition: Condition, **options: Any) -> Tensor:
        self.seen.append((x, float(sigma)))
        return MIXTURE.denoise(x, sigma, condition)


@given(sigmas(0.01, 100.0), all_solvers(), st.sampled_from(["denoise", "euler"]))
def test_with_sigma_of_t_equal_to_t_one_step_from_anywhere_to_0_is_the_denoiser(
    sigma: float, solver: Solver, final: str
) -> None:
    sampler = Sampler(Explicit((sigma,)), solver=solver, final=final)
    x = sampler.sample(MIXTURE, noise=unit_noise())
    expected = MIXTURE(sigma * unit_noise(), sigma)
    torch.testing.assert_close(x, expected, rtol=0, atol=8 * EPS * (1 + 4 * sigma))


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@given(schedule=all_schedules(), scaling=all_scalings(), sigma_max=sigmas(0.1, 100.0))
def test_one_step_returns_the_denoiser_at_the_highest_level_along_every_curve(
    solver: Solver, schedule: schedules.Schedule, scaling: schedules.Scaling, sigma_max: float
) -> None:
    sampler = Sampler(Karras(1, sigma_max=sigma_max), schedule, scaling, solver)
    assert sampler.nfe == 1
    x = sampler.sample(MIXTURE, noise=unit_noise())
    torch.testing.assert_close(
        x, MIXTURE(sigma_max * unit_noise(), sigma_max), rtol=0, atol=16 * EPS * (1 + 4 * sigma_max)
    )


@settings(max_examples=20)
@given(st.integers(1, 6), all_solvers(), all_schedules(), all_scalings(), st.sampled_from(["denoise", "euler"]))
def test_nfe_is_the_number_of_evaluations(
    num_steps: int, solver: Solver, schedule: schedules.Schedule, scaling: schedules.Scaling, final: str
) -> None:
    sampler = Sampler(LogLinear(num_steps, 0.01, 50.0), schedule, scaling, solver, final=final)
    denoiser = Counting()
    sampler.sample(denoiser, noise=unit_noise())
    assert sampler.nfe == len(denoiser.seen) == (num_steps - 1) * len(solver.tableau.b) + 1


def test_the_papers_budgets() -> None:
    assert Sampler(Karras(18)).nfe == 35
    assert Sampler(Karras(40)).nfe == 79
    assert Sampler(Karras(256)).nfe == 511
    assert Sampler(Karras(18), solver=Euler()).nfe == 18


@settings(max_examples=20)
@given(all_solvers(), all_schedules(), all_scalings())
def test_the_network_sees_unscaled_samples_at_the_levels_and_between_them(
    solver: Solver, schedule: schedules.Schedule, scaling: schedules.Scaling
) -> None:
    levels, denoiser = LogLinear(5, 0.1, 10.0), Counting()
    sampler = Sampler(levels, schedule, scaling, solver)
    states = list(sampler.steps(denoiser, noise=unit_noise()))
    stages = len(solver.tableau.b)
    firsts = denoiser.seen[::stages]
    sigmas_visited = levels.sigmas().tolist()
    assert [sigma for _, sigma in firsts] == sigmas_visited
    for (x, sigma), state in zip(firsts, states[:-1], strict=True):
        assert state.sigma == sigma
        torch.testing.assert_close(x, state.x / state.scale, rtol=4 * EPS, atol=0)
    for i, (high, low) in enumerate(pairwise(sigmas_visited)):
        between = [sigma for _, sigma in denoiser.seen[i * stages : (i + 1) * stages]]
        # Stages lie inside the step; its end is σ(σ⁻¹(σ_{i+1})), off by roundings that the curve magnifies.
        assert all(low * (1 - 1e-10) <= sigma <= high for sigma in between)


@settings(max_examples=20)
@given(all_solvers(), all_schedules(), all_scalings(), st.integers(1, 6))
def test_the_callback_gets_every_level_and_the_end(
    solver: Solver, schedule: schedules.Schedule, scaling: schedules.Scaling, num_steps: int
) -> None:
    levels = LogLinear(num_steps, 0.05, 20.0)
    states: list[State] = []
    x = Sampler(levels, schedule, scaling, solver).sample(MIXTURE, noise=unit_noise(), callback=states.append)
    assert [s.index for s in states] == list(range(num_steps + 1))
    assert [s.sigma for s in states] == [*levels.sigmas().tolist(), 0.0]
    for state in states[:-1]:
        assert state.time == float(schedule.time(levels.sigmas())[state.index])
        assert state.scale == float(scaling.scale(levels.sigmas())[state.index])
        assert torch.equal(state.denoised, MIXTURE(state.x / state.scale, state.sigma))
    start = unit_noise() * states[0].sigma * states[0].scale
    torch.testing.assert_close(states[0].x, start, rtol=4 * EPS, atol=0)
    assert (states[-1].time, states[-1].scale) == (0.0, 1.0)
    assert torch.equal(states[-1].x, x)
    assert torch.equal(states[-1].denoised, x)


def test_the_callback_changes_nothing() -> None:
    sampler = Sampler(Karras(5), churn=Churn(3.0))
    states: list[State] = []
    assert torch.equal(sampler.sample(MIXTURE, [1, 2]), sampler.sample(MIXTURE, [1, 2], callback=states.append))


def test_a_finished_run_ends_on_the_denoiser_at_the_lowest_level() -> None:
    for schedule in (schedules.EDM(), schedules.VE(), schedules.VP(), schedules.RectifiedFlow()):
        states = list(Sampler(Karras(4), schedule).steps(MIXTURE, noise=unit_noise()))
        assert torch.equal(states[-1].x, states[-2].denoised)


def test_the_plain_euler_end_is_the_denoiser_for_sigma_of_t_equal_to_t() -> None:
    sampler = Sampler(Karras(6))
    one = sampler.sample(MIXTURE, noise=unit_noise())
    other = replace(sampler, final="euler").sample(MIXTURE, noise=unit_noise())
    torch.testing.assert_close(one, other, rtol=0, atol=16 * EPS)


def test_the_plain_euler_end_leaves_half_of_the_noise_with_ve() -> None:
    levels = Karras(6, sigma_min=0.5)
    states = list(Sampler(levels, schedules.VE(), final="euler").steps(MIXTURE, noise=unit_noise()))
    last = states[-2]
    # σ(t) = √t: from σ² to 0 the slope (x − D)/(2σ²) covers half of the way from x to D.
    torch.testing.assert_close(states[-1].x, (last.x + last.denoised) / 2, rtol=0, atol=64 * EPS)
    assert float((states[-1].x - last.denoised).abs().max()) > 0.01


@pytest.mark.parametrize("schedule", [schedules.EDM(), schedules.VE(), schedules.RectifiedFlow()], ids=repr)
def test_an_alpha_above_one_that_overshoots_time_zero_is_refused(schedule: schedules.Schedule) -> None:
    levels = Karras(4, sigma_min=0.01, sigma_max=10.0)
    times = schedule.time(levels.sigmas())
    # The step from t to t' evaluates at t + α (t' − t), which passes 0 where α > t/(t − t').
    limit = float((times[:-1] / (times[:-1] - times[1:])).min())
    message = (
        r"step \d would|the solver would evaluate step \d at t = -\d.*stay inside the schedule's domain. Use alpha <= 1"
    )
    denoiser = Counting()
    with pytest.raises(ValueError, match=message):
        Sampler(levels, schedule, solver=Alpha(limit * 1.01)).sample(denoiser, noise=unit_noise())
    assert denoiser.seen == []
    Sampler(levels, schedule, solver=Alpha((1 + limit) / 2)).sample(denoiser, noise=unit_noise())
    assert len(denoiser.seen) == 7


@given(all_scalings())
def test_levels_where_the_schedule_stands_still_are_refused(scaling: schedules.Scaling) -> None:
    sampler = Sampler(Karras(4, sigma_max=80.0), schedules.Cosine(0.001, 50.0), scaling)
    with pytest.raises(ValueError, match=r"would evaluate step 0 .*Cosine.*stay inside the schedule's domain"):
        sampler.sample(MIXTURE, noise=unit_noise())


@settings(max_examples=20)
@given(all_scalings(), all_solvers())
def test_a_run_over_the_whole_range_of_a_clipped_schedule_arrives(scaling: schedules.Scaling, solver: Solver) -> None:
    levels = LogLinear(4, 0.03, 10.0)  # tan(2/π atan 10 · π/2) > 10 in float64
    clipped = Sampler(levels, schedules.Cosine(0.03, 10.0), scaling, solver).sample(MIXTURE, noise=unit_noise())
    free = Sampler(levels, schedules.Cosine(0.003, 100.0), scaling, solver).sample(MIXTURE, noise=unit_noise())
    torch.testing.assert_close(clipped, free, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dropout", [nn.Dropout(0.1), nn.Dropout2d(0.1), nn.AlphaDropout(0.1)], ids=repr)
def test_dropout_left_on_is_refused_by_name(dropout: nn.Module) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Identity(), dropout)

        def forward(self, x: Tensor, c_noise: Tensor, condition: Condition) -> Tensor:
            return x

    denoiser = Preconditioned(Net(), EDM(), event_shape=(2,))
    message = r"evaluation mode, but dropout 'network.layers.1' is on: call denoiser.eval\(\)"
    with pytest.raises(ValueError, match=message):
        Sampler(Karras(2)).sample(denoiser, [0])
    with pytest.raises(ValueError, match=message):
        Sampler(Karras(2)).invert(denoiser, unit_noise())
    Sampler(Karras(2)).sample(denoiser.eval(), [0])


def test_dropout_of_probability_zero_does_no_harm() -> None:
    network = DDPMpp(model_channels=8, channel_mult=(1,), num_blocks=1, dropout=0.0).build((1, 8, 8), seed=0)
    Sampler(Karras(1)).sample(Preconditioned(network.train(), EDM(), event_shape=(1, 8, 8)), [0])


def random_network(kind: Network, shape: tuple[int, ...]) -> Preconditioned:
    """A float32 network in which every layer has random weights."""
    network = kind.build(shape, num_classes=3, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return Preconditioned(network, EDM(), event_shape=shape, num_classes=3).eval()


NETWORKS = [
    (MLP(width=32, num_blocks=2), (5,)),
    (DDPMpp(model_channels=8, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,)), (1, 8, 8)),
]


@FAR_APART
@pytest.mark.usefixtures("without_type_checker")
@pytest.mark.parametrize("churn", [Churn(), Churn(2.0)], ids=["ode", "churn"])
@pytest.mark.parametrize(("kind", "shape"), NETWORKS, ids=["mlp", "unet"])
def test_batch_sizes_1_7_and_64_give_the_same_samples(kind: Network, shape: tuple[int, ...], churn: Churn) -> None:
    denoiser, sampler, seeds = random_network(kind, shape), Sampler(Karras(4), churn=churn), range(100, 164)
    classes = torch.arange(64) % 4 - 1
    results = []
    for batch_size in (1, 7, 64):
        parts = list(sample_batches(sampler, denoiser, seeds, condition=classes, batch_size=batch_size))
        assert [seed for part, _ in parts for seed in part] == list(seeds)
        results.append(torch.cat([x for _, x in parts]))
    assert float((results[0][1:] - results[0][:-1]).abs().max()) > 0.1  # Samples differ among themselves.
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=1e-5)


@given(st.permutations(range(6)))
@settings(max_examples=10)
def test_a_sample_depends_on_its_own_seed_and_condition(order: list[int]) -> None:
    data = torch.randn(9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    denoiser, sampler = ExactDataset(data, torch.arange(9) % 3), Sampler(Karras(6), churn=Churn(3.0))
    seeds, classes = torch.tensor([3, 1, 4, 1, 5, 9]), torch.tensor([0, 1, 2, 0, -1, 2])
    together = sampler.sample(denoiser, seeds.tolist(), condition=classes)
    shuffled = sampler.sample(denoiser, seeds[order].tolist(), condition=classes[order])
    # The noise is the same to the bit; sums inside the denoiser may run in another order.
    torch.testing.assert_close(shuffled, together[order], rtol=0, atol=1e-11)


def test_the_noise_of_a_seed_enters_as_it_is_drawn() -> None:
    states = list(Sampler(Karras(2, sigma_max=80.0)).steps(MIXTURE, [7, 3]))
    assert torch.equal(states[0].x, initial_noise([7, 3], (2,)).double() * 80.0)
    source = SeededNoise([7, 3])
    assert torch.equal(next(Sampler(Karras(2, sigma_max=80.0)).steps(MIXTURE, source)).x, states[0].x)


@settings(max_examples=20)
@given(st.integers(1, 30), sigmas(0.01, 1.0), sigmas(2.0, 60.0))
def test_levels_are_cut_to_the_range_of_the_denoiser(num_steps: int, low: float, high: float) -> None:
    denoiser = Counting(low, high)
    Sampler(Karras(num_steps), solver=Euler()).sample(denoiser, noise=unit_noise())
    visited = [sigma for _, sigma in denoiser.seen]
    assert visited == Karras(num_steps, low, high).sigmas().tolist()


def test_a_denoiser_of_discrete_levels_is_asked_at_levels_it_knows() -> None:
    table = tuple(0.01 * 1.1**j for j in range(100))

    class Net(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor, condition: Condition) -> Tensor:
            return torch.zeros_like(x)

    denoiser = Preconditioned(Net(), Adapter(table=table), event_shape=(2,))
    sampler = Sampler(Karras(7, 0.002, 80.0), solver=Euler(), churn=Churn(2.0))
    plan = sampler.plan(denoiser)
    assert all(float(stage.sigma) in table for step in plan.steps for stage in step.stages)
    u = torch.tensor(table, dtype=torch.float64)
    wanted = Karras(7, table[0], min(80.0, table[-1])).sigmas()
    assert [step.sigma for step in plan.steps] == [float(u[(u - w).abs().argmin()]) for w in wanted]


def test_a_run_is_differentiable_from_noise_to_sample() -> None:
    gaussian = GaussianMixture([1.0], [[0.5, -1.0]], [[[2.0, 0.6], [0.6, 0.3]]])
    noise = unit_noise(1).requires_grad_()
    sampler = Sampler(Karras(3, 0.1, 5.0), schedules.VP())
    end = list(sampler.steps(gaussian, noise=noise))[-1].x
    (gradient,) = torch.autograd.grad(end[0, 0], noise)
    step = 1e-3  # A Gaussian's flow is linear, so that a finite difference is exact.
    moved = [sampler.sample(gaussian, noise=noise.detach() + step * d)[0, 0] for d in torch.eye(2).double()]
    expected = torch.stack([(m - end[0, 0]).detach() / step for m in moved])
    torch.testing.assert_close(gradient[0], expected, rtol=0, atol=1e-11)
    assert not sampler.sample(gaussian, noise=noise).requires_grad


def test_the_state_is_float64_whatever_the_network_and_the_noise() -> None:
    denoiser = random_network(*NETWORKS[0])
    states = list(Sampler(Karras(3)).steps(denoiser, [0, 1]))
    assert {s.x.dtype for s in states} == {torch.float64}


@pytest.mark.usefixtures("without_type_checker")
@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: Sampler(final="end"), "final must be one of 'denoise', 'euler', got 'end'"),
        (lambda: Sampler().sample(MIXTURE), "seeds or noise must be given"),
        (
            lambda: Sampler(churn=Churn(5.0)).sample(MIXTURE, noise=unit_noise()),
            "seeds must be given if a run adds noise (s_churn > 0 or a stochastic solver)",
        ),
        (
            lambda: Sampler().sample(FunctionDenoiser(lambda x, sigma, condition: x), [0]),
            "event_shape must be given for a denoiser without event_shape",
        ),
        (lambda: Sampler().sample(MIXTURE, []), "seeds must hold at least one seed, got none"),
        (lambda: Sampler().sample(MIXTURE, [-1]), "seeds must be >= 0, got -1"),
        (lambda: Sampler().sample(MIXTURE, [0], event_shape=(3,)), "x must have shape (batch, 2), got (1, 3)"),
        (lambda: Sampler().sample(MIXTURE, noise=torch.zeros(2, 3)), "x must have shape (batch, 2), got (2, 3)"),
        (
            lambda: Sampler().sample(ExactDataset(torch.eye(2), torch.tensor([0, 1])), [0], condition=torch.zeros(2)),
            "condition must have one row a sample (1), got 2 rows",
        ),
        (
            lambda: Sampler(VE(5, 0.02, 10.0)).sample(Counting(20.0, 30.0), [0]),
            "levels between 0.02 and 10 are outside the denoiser's range [20, 30]",
        ),
        (lambda: Sampler(IDDPM(400)).sample(Counting(1.0, 2.0), [0]), "num_steps must be at most"),
        (lambda: next(sample_batches(Sampler(), MIXTURE, [0], batch_size=0)), "batch_size must be >= 1, got 0"),
        (
            lambda: next(sample_batches(Sampler(), MIXTURE, [0, 1], condition=torch.zeros(3))),
            "condition must have one row a seed (2), got 3 rows",
        ),
    ],
)
def test_what_cannot_be_sampled_is_refused_with_a_reason(run: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        run()


@pytest.mark.usefixtures("without_type_checker")
@pytest.mark.parametrize("seeds", [3, iter([1, 2]), {1}, "12"], ids=["number", "iterator", "set", "text"])
def test_seeds_that_are_no_sequence_are_refused_by_type(seeds: Any) -> None:
    message = rf"seeds must be integers, such as range\(4\), or a NoiseSource, got {type(seeds).__name__}"
    with pytest.raises(TypeError, match=message):
        Sampler(Karras(2)).sample(MIXTURE, seeds)


@FAR_APART
@pytest.mark.usefixtures("without_type_checker")
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([0], r"seeds must be one a sample of the noise \(3\), got 1"),
        (SeededNoise([0]), r"seeds must give noise of shape \(3, 2\), got \(1, 2\)"),
    ],
    ids=["seeds", "source"],
)
def test_seeds_of_another_number_than_the_noise_are_refused(source: Any, message: str) -> None:
    sampler = Sampler(Karras(2), churn=Churn(5.0))
    with pytest.raises(ValueError, match=message):
        sampler.sample(MIXTURE, source, noise=unit_noise())


def test_a_sample_may_be_a_single_number() -> None:
    denoiser = FunctionDenoiser(lambda x, sigma, condition: x / (1 + sigma**2))
    assert Sampler(Karras(3)).sample(denoiser, [0, 1], event_shape=()).shape == (2,)


def test_nothing_is_evaluated_before_a_refusal() -> None:
    denoiser = Counting()
    for sampler in (Sampler(churn=Churn(5.0)), Sampler(Karras(4, 0.01, 10.0), solver=Alpha(3.0))):
        with pytest.raises(ValueError, match=r"seeds must be given|Use alpha <= 1"):
            sampler.steps(denoiser, noise=unit_noise())  # Refused when asked for, not when iterated.
    assert denoiser.seen == []


def test_the_range_of_a_published_denoiser_is_respected_by_default() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor, condition: Condition) -> Tensor:
            return torch.zeros_like(x)

    denoiser = Preconditioned(Net(), VEPreconditioning(), event_shape=(2,))
    visited: list[Levels] = [Karras(5).within(denoiser.sigma_min, denoiser.sigma_max)]
    assert [s.sigma for s in Sampler(Karras(5)).steps(denoiser, [0])][:-1] == visited[0].sigmas().tolist()
    assert visited[0].sigma_min == 0.02


def test_a_class_that_the_denoiser_does_not_have_is_refused_before_the_run() -> None:
    denoiser = ExactDataset(torch.zeros(2, 2), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="classes between 0 and 1, or -1 for none, got 2"):
        Sampler().sample(denoiser, [0, 1], condition=torch.tensor([0, 2]))
