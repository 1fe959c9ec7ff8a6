"""Plans: weights may differ from coordinate to coordinate, and a plan serves every later run."""

from dataclasses import dataclass, field, replace

import pytest
import torch

from openedm.denoiser import FunctionDenoiser
from openedm.levels import Karras, Levels, LogLinear
from openedm.preconditioning import EpsilonPrediction, NetworkPrediction, VelocityPrediction
from openedm.sampling import (
    DDIM,
    DEIS,
    DPMSolver2S,
    DPMSolverPP2M,
    DPMSolverPP2S,
    Euler,
    EulerMaruyama,
    Heun,
    Sampler,
    UniPC,
)
from openedm.sampling.engine.plan import Combination, Grid, Plan, PlannedSolver, Stage, Step, supported_sigmas

# Each coordinate has a denoiser of its own that does not look at the others: that of two points, ±1 and 0 or 1.
COORDINATES = FunctionDenoiser(
    lambda x, sigma, condition: torch.stack([(x[:, 0] / sigma**2).tanh(), (x[:, 1] / sigma**2).sigmoid()], 1),
    event_shape=(2,),
)
NOISE = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@dataclass(frozen=True)
class Coordinatewise(PlannedSolver):
    """Another solver for each coordinate; all have the same stages."""

    solvers: tuple[PlannedSolver, ...]

    @property
    def order(self) -> int:
        """The lowest."""
        return min(solver.order for solver in self.solvers)

    def evaluations(self, num_steps: int) -> int | None:
        """As each of them."""
        return self.solvers[0].evaluations(num_steps)

    def plan(self, grid: Grid) -> Plan:
        """Their plans side by side."""
        plans = [solver.planned(grid).steps for solver in self.solvers]
        return Plan(tuple(self._step(steps) for steps in zip(*plans, strict=True)))

    def _step(self, steps: tuple[Step, ...]) -> Step:
        stages = [self._stage(stages) for stages in zip(*(step.stages for step in steps), strict=True)]
        return replace(
            steps[0],
            stages=tuple(stages),
            advance=self._combination([step.advance for step in steps]),
            correct=self._combination([step.correct for step in steps]),
            remember=max(step.remember for step in steps),
        )

    def _stage(self, stages: tuple[Stage, ...]) -> Stage:
        kept = torch.tensor([stage.of_denoised for stage in stages], dtype=torch.float64)
        return replace(stages[0], of_denoised=kept, point=self._combination([stage.point for stage in stages]))

    def _combination(self, sums: list[Combination | None]) -> Combination | None:
        if sums[0] is None:
            return None
        longest = max(len(each.weights) for each in sums)
        rows = [[*each.weights, *[0.0] * (longest - len(each.weights))] for each in sums]
        weights = torch.tensor(rows, dtype=torch.float64).unbind(1)
        return Combination(torch.tensor([each.keep for each in sums], dtype=torch.float64), weights)


SOLVERS = [
    (DDIM(), DEIS()),
    (DEIS(predictor=4), DDIM()),
    (UniPC(prediction=EpsilonPrediction()), UniPC(prediction=NetworkPrediction(0.8))),
    (DPMSolver2S(), DPMSolver2S(prediction=VelocityPrediction(0.5))),
]


@pytest.mark.parametrize("solvers", SOLVERS, ids=repr)
def test_weights_may_differ_from_coordinate_to_coordinate(solvers: tuple[PlannedSolver, ...]) -> None:
    levels = Karras(12, 0.02, 20.0)
    found = list(Sampler(levels, solver=Coordinatewise(solvers)).steps(COORDINATES, noise=NOISE))
    for i, solver in enumerate(solvers):
        alone = list(Sampler(levels, solver=solver).steps(COORDINATES, noise=NOISE))
        assert [state.sigma for state in found] == [state.sigma for state in alone]
        expected = torch.stack([state.x[:, i] for state in alone])
        torch.testing.assert_close(torch.stack([state.x[:, i] for state in found]), expected, rtol=1e-13, atol=1e-13)
    second = [
        [state.x[:, 1] for state in Sampler(levels, solver=each).steps(COORDINATES, noise=NOISE)] for each in solvers
    ]
    assert float((torch.stack(second[0]) - torch.stack(second[1])).abs().max()) > 1e-4  # the two solvers differ


@pytest.mark.parametrize("keep", [1.0, 0.5, torch.tensor([0.5, 2.0])], ids=repr)
@pytest.mark.parametrize("weights", [(), (0.0, 3.0), (torch.tensor([1.0, 2.0]), 3.0), (3.0, torch.tensor([1.0, 2.0]))])
def test_a_combination_is_the_weighted_sum_and_leaves_its_terms_as_they_are(keep: object, weights: tuple) -> None:
    terms = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x, *directions = terms.clone()
    expected = keep * x + sum((w * r for w, r in zip(weights, directions, strict=False)), torch.zeros_like(x))
    torch.testing.assert_close(Combination(keep, weights)(x, directions), expected)
    assert torch.equal(torch.stack([x, *directions]), terms)


def test_a_plan_made_in_inference_mode_serves_a_differentiable_run() -> None:
    sampler = Sampler(Karras(5, 0.0234, 12.3), solver=DEIS())
    with torch.inference_mode():
        sampler.sample(COORDINATES, noise=NOISE)
    noise = NOISE.clone().requires_grad_()
    list(sampler.steps(COORDINATES, noise=noise))[-1].x.sum().backward()
    assert noise.grad is not None
    assert bool(noise.grad.isfinite().all())


def test_one_step_solvers_are_those_that_forget() -> None:
    forgetful = (Euler(), Heun(), DDIM(), DPMSolverPP2S(), EulerMaruyama())
    for solver in (*forgetful, DEIS(), DPMSolverPP2M(), UniPC(), UniPC(predictor=1, corrector=2)):
        steps = solver.planned(Grid((3.0, 2.0, 1.0))).steps
        assert solver.one_step == all(step.remember == 0 for step in steps) == (solver in forgetful)


def test_levels_follow_the_rule_the_data_and_the_range_of_the_denoiser_at_every_run() -> None:
    for rule in (Karras(5), Karras(6), Karras(5, rho=3.0), LogLinear(5), Karras(5, sigma_max=10.0)):
        for numbers in ((0.5, 0.0, 1e9), (2.0, 0.0, 1e9), (0.5, 0.1, 1e9), (0.5, 0.0, 7.0), (0.5, 0.0, 1e9)):
            sigma_data, *ends = numbers
            expected = rule.for_data(sigma_data).within(*ends).checked_sigmas().tolist()
            assert list(supported_sigmas(rule, *numbers)) == expected
    for _ in range(2):  # An error is one at every run.
        with pytest.raises(ValueError, match="are outside the denoiser's range"):
            supported_sigmas(Karras(5), 0.5, 100.0, 200.0)


class Changing(Levels):
    """A rule of one's own that is no dataclass: all of them are equal as `Choice`."""

    sigma_min, sigma_max = 1.0, 4.0

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps

    def sigmas(self) -> torch.Tensor:
        return torch.linspace(self.sigma_max, self.sigma_min, self.num_steps, dtype=torch.float64)


class Clamped(Karras):
    """A rule of one's own, no dataclass itself, whose levels depend on more than the fields."""

    lowest = 1.0

    def sigmas(self) -> torch.Tensor:
        return super().sigmas().clamp(min=self.lowest)


@dataclass(frozen=True)
class WithList(Levels):
    """A rule of one's own without a hash."""

    num_steps: int = 2
    sigma_min: float | None = 1.0
    sigma_max: float | None = 4.0
    values: list = field(default_factory=lambda: [4.0, 1.0])

    def sigmas(self) -> torch.Tensor:
        return torch.tensor(self.values, dtype=torch.float64)


def test_a_rule_of_ones_own_may_change_between_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    rule, other = Changing(2), Changing(3)
    assert rule == other
    assert [len(supported_sigmas(each, 0.5, 0.0, 1e9)) for each in (rule, other)] == [2, 3]
    rule.num_steps = 5
    assert len(supported_sigmas(rule, 0.5, 0.0, 1e9)) == 5
    clamped, listed = Clamped(2), WithList()
    assert supported_sigmas(clamped, 0.5, 0.0, 1e9)[-1] == 1.0
    monkeypatch.setattr(Clamped, "lowest", 2.0)
    assert supported_sigmas(clamped, 0.5, 0.0, 1e9)[-1] == 2.0
    assert supported_sigmas(listed, 0.5, 0.0, 1e9) == (4.0, 1.0)
    listed.values[1] = 2.0
    assert supported_sigmas(listed, 0.5, 0.0, 1e9) == (4.0, 2.0)
