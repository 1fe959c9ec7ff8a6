"""Fused plans take fewer passes over the state and return the same, and every evaluation is checked as the first."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from marks import FAR_APART
from openedm.denoiser import Denoiser, FunctionDenoiser, per_sample
from openedm.exact import ExactDataset, GaussianMixture
from openedm.guidance import ClassifierFree
from openedm.levels import Karras
from openedm.sampling import (
    RK4,
    Ancestral,
    Churn,
    DPMSolverPP2M,
    Euler,
    Heun,
    Midpoint,
    Ralston,
    Sampler,
    SeededNoise,
    Solver,
    UniPC,
)
from openedm.sampling.engine.steps import Combination, Plan, Run, Stage, Step, unscaled
from openedm.schedules import VP
from properties.strategies import EPS, all_churns, all_solvers, exponential_solvers, stochastic_solvers

MIXTURE = GaussianMixture([0.5, 0.5], [[1.0, 0.75, 0.1], [-1.0, -0.75, 0.0]], [torch.eye(3).mul(0.1).tolist()] * 2)
FUSED = [Sampler(Karras(6), solver=solver) for solver in (Euler(), Heun(), Midpoint(), Ralston())]
FUSED.append(Sampler(Karras(6), churn=Churn(4.0)))


def linear(x: Tensor, sigma: Tensor, condition: object = None) -> Tensor:
    """The denoiser of a Gaussian, whose runs do not magnify rounding."""
    return x * per_sample(0.25 / (0.25 + sigma**2), x)


def run(plan: Plan, x: Tensor, denoise: Callable[..., Tensor] = linear) -> tuple[Tensor, float]:
    """The result, and the largest number on the way."""
    carried, largest = Run(plan, x, SeededNoise(range(len(x)))), 0.0
    while not carried.finished:
        largest = max(largest, float(carried.point.abs().max()))
        carried.advance(denoise(unscaled(carried.point, carried.stage.scale), carried.stage.sigma))
    return carried.x, largest


@FAR_APART
@given(
    st.one_of(
        st.builds(lambda solver, churn: Sampler(Karras(9), solver=solver, churn=churn), all_solvers(), all_churns()),
        st.builds(lambda solver: Sampler(Karras(9), solver=solver), exponential_solvers() | stochastic_solvers()),
        st.builds(lambda solver: Sampler(Karras(9), schedule=VP(), solver=solver), all_solvers()),
    )
)
@settings(max_examples=60)
def test_every_solver_returns_the_same_from_its_fused_plan_but_for_rounding(sampler: Sampler) -> None:
    plan = sampler.plan(FunctionDenoiser(linear, (3,)))
    x = SeededNoise([5, 6]).draw((3,)).double() * float(plan.steps[0].sigma)
    (plain, largest), (fused, _) = run(plan, x), run(plan.fused, x)
    torch.testing.assert_close(fused, plain, rtol=1e-12, atol=100 * EPS * largest)


@pytest.mark.parametrize("sampler", FUSED, ids=repr)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_methods_of_one_or_two_evaluations_have_fused_steps_in_either_precision(
    sampler: Sampler, dtype: torch.dtype, tolerance: float
) -> None:
    plan = sampler.plan(MIXTURE)
    assert all(a is not b for a, b in zip(plan.steps[:-1], plan.fused.steps, strict=False))
    x = SeededNoise([5, 6]).draw((3,)).to(dtype) * float(plan.steps[0].sigma)
    (plain, largest), (fused, _) = run(plan, x), run(plan.fused, x)
    assert fused.dtype == plain.dtype == dtype
    torch.testing.assert_close(fused, plain, rtol=tolerance, atol=max(tolerance * 1e-2, 100 * EPS * largest))


@pytest.mark.parametrize("solver", [RK4(), UniPC(), DPMSolverPP2M()], ids=repr)
def test_steps_of_more_evaluations_or_whose_directions_are_used_later_remain_themselves(solver: Solver) -> None:
    plan = Sampler(Karras(6), solver=solver).plan(MIXTURE)
    middle = slice(1, -2)
    assert all(a is b for a, b in zip(plan.steps[middle], plan.fused.steps[middle], strict=True))


def test_steps_with_a_scale_or_weights_for_each_coordinate_remain_themselves() -> None:
    plan = Sampler(Karras(6), schedule=VP(), solver=Heun()).plan(MIXTURE)
    assert all(a is b for a, b in zip(plan.steps, plan.fused.steps, strict=True))
    sigma, weight = torch.tensor(1.0, dtype=torch.float64), torch.tensor([-1.0, -0.5])
    for of_denoised, weights in ((weight, (0.5,)), (-1.0, (weight,))):
        step = Step(1.0, 1.0, 1.0, (Stage(sigma, 1.0, of_denoised),), Combination(1.0, weights))
        assert step.fused() is step


@pytest.mark.parametrize("sampler", FUSED, ids=repr)
def test_a_sample_of_a_fused_run_depends_on_its_seed_alone(sampler: Sampler) -> None:
    """To the last bit: torch's sums round the same in rests of a vector register."""
    denoiser = FunctionDenoiser(linear, (3,))
    many = sampler.sample(denoiser, range(7))
    assert torch.equal(torch.cat([sampler.sample(denoiser, [seed]) for seed in range(7)]), many)
    assert torch.equal(sampler.sample(denoiser, [6, 2]), many[[6, 2]])


def test_conditions_and_guidance_reach_every_evaluation_of_a_fused_run() -> None:
    data = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    denoiser = ClassifierFree(ExactDataset(data, torch.arange(6) % 2), 1.5)
    classes, sampler = torch.tensor([1, 0, 1]), Sampler(Karras(6))
    noise = SeededNoise([0, 1, 2]).draw((3,))
    start, *_, end = sampler.steps(denoiser, noise=noise, condition=classes)
    plain, _ = run(sampler.plan(denoiser), start.x, lambda x, sigma: denoiser(x, sigma, classes))
    guided = sampler.sample(denoiser, noise=noise, condition=classes)
    assert torch.equal(guided, end.x)
    torch.testing.assert_close(guided, plain, rtol=1e-11, atol=1e-11)
    assert not torch.allclose(guided, sampler.sample(denoiser, noise=noise, condition=1 - classes))


class WrongLater(Denoiser):
    """A denoiser that is right at its first evaluation and wrong from a later one on."""

    event_shape = (3,)

    def __init__(self, wrong: Callable[[Tensor], object], first: int = 2) -> None:
        super().__init__()
        self.wrong, self.first, self.calls = wrong, first, 0

    def denoise(self, x: Tensor, sigma: Tensor, condition: object) -> Tensor:
        self.calls += 1
        right = linear(x, sigma)
        return self.wrong(right) if self.calls >= self.first else right  # type: ignore[return-value]


@pytest.mark.usefixtures("without_type_checker")
@pytest.mark.parametrize("solver", [Euler(), Heun(), DPMSolverPP2M(), UniPC(), Ancestral()], ids=repr)
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda d: d[:, :1], ValueError, r"must return that shape, got \(2, 1\)"),
        (lambda d: d[:1], ValueError, r"must return that shape, got \(1, 3\)"),
        (lambda d: d.long(), TypeError, "must return floating-point numbers, got torch.int64"),
        (lambda d: d.numpy(), TypeError, "must return a tensor of that shape, got ndarray"),
        (lambda d: d.to("meta"), ValueError, "must return a tensor on cpu, got one on meta"),
        (lambda d: d * torch.nan, FloatingPointError, "sample 0 .*NaN"),
        (lambda d: d.index_fill(0, torch.tensor(1), torch.inf), FloatingPointError, "sample 1 .*"),
    ],
)
def test_a_wrong_result_at_a_later_evaluation_is_refused(
    solver: Solver, wrong: Callable[[Tensor], object], error: type[Exception], message: str
) -> None:
    for first in (2, 5):
        with pytest.raises(error, match=message):
            Sampler(Karras(5), solver=solver).sample(WrongLater(wrong, first), [0, 1])


def test_a_denoiser_may_change_between_float32_and_float64_during_a_run() -> None:
    """The result is rounded, and the state remains in float64."""
    changing, plain = WrongLater(lambda d: d.float()), FunctionDenoiser(linear, (3,))
    for solver in (Heun(), DPMSolverPP2M()):
        sampler = Sampler(Karras(5), solver=solver)
        sample = sampler.sample(changing, [0, 1])
        assert sample.dtype == torch.float64
        torch.testing.assert_close(sample, sampler.sample(plain, [0, 1]), rtol=1e-5, atol=1e-5)


def test_hooks_run_at_every_evaluation_from_when_they_are_registered() -> None:
    denoiser, early, late = ExactDataset(torch.eye(3)), [], []
    denoiser.register_forward_hook(lambda module, args, out: early.append(out))

    def register(state: object) -> None:
        if len(early) == 1:
            denoiser.register_forward_pre_hook(lambda module, args: late.append(args))

    sampler = Sampler(Karras(4))
    sampler.sample(denoiser, [0], callback=register)
    assert len(early) == sampler.nfe == 7
    assert len(late) == 6


def test_a_plan_with_an_impossible_level_after_the_first_is_refused() -> None:
    class Negative(Euler):
        def plan(self, grid: object) -> Plan:
            first, second, *rest = super().plan(grid).steps  # type: ignore[arg-type]
            stage = replace(second.stages[0], sigma=-second.stages[0].sigma)
            return Plan((first, replace(second, stages=(stage,)), *rest))

    with pytest.raises(ValueError, match="sigma must be >= 0, got -"):
        Sampler(Karras(4), solver=Negative()).sample(MIXTURE, [0])
