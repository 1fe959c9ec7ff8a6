"""Schedules and scalings of one's own: good ones are taken, and those whose functions disagree are refused by name."""

import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from openedm.exact import GaussianMixture
from openedm.levels import Karras
from openedm.sampling import RungeKutta, Sampler
from openedm.sampling.methods.runge_kutta import Tableau
from openedm.schedules import Cosine, Scaling, Schedule, float64

GAUSSIAN = GaussianMixture([1.0], [[0.5]], [[[0.2]]])
LEVELS = Karras(12, 0.01, 20.0)


@dataclass(frozen=True)
class Square(Schedule):
    """σ(t) = t²."""

    def sigma(self, t: Any) -> Tensor:
        return float64(t).square()

    def sigma_derivative(self, t: Any) -> Tensor:
        return 2 * float64(t)

    def time(self, sigma: Any) -> Tensor:
        return float64(sigma).sqrt()


class Single(Square):
    """The same in single precision."""

    def sigma(self, t: Any) -> Tensor:
        return float64(t).float().square()

    def time(self, sigma: Any) -> Tensor:
        return float64(sigma).float().sqrt()


class Kinked(Square):
    """σ(t) = t below 1, 3t − 2 above."""

    def sigma(self, t: Any) -> Tensor:
        return torch.maximum(float64(t), 3 * float64(t) - 2)

    def sigma_derivative(self, t: Any) -> Tensor:
        return torch.where(float64(t) < 1, 1.0, 3.0).double()

    def time(self, sigma: Any) -> Tensor:
        return torch.minimum(float64(sigma), (float64(sigma) + 2) / 3)


class Narrow(Cosine):
    """A clipped schedule."""


class WrongInverse(Square):
    def time(self, sigma: Any) -> Tensor:
        return float64(sigma)


class WrongDerivative(Square):
    def sigma_derivative(self, t: Any) -> Tensor:
        return float64(t)


class Decreasing(Square):
    def sigma(self, t: Any) -> Tensor:
        return 1 / float64(t)

    def time(self, sigma: Any) -> Tensor:
        return 1 / float64(sigma)


class Shifted(Square):
    def sigma(self, t: Any) -> Tensor:
        return float64(t) - 5

    def sigma_derivative(self, t: Any) -> Tensor:
        return torch.ones_like(float64(t))

    def time(self, sigma: Any) -> Tensor:
        return float64(sigma) + 5


class Transposed(Square):
    def sigma(self, t: Any) -> Tensor:
        return float64(t)[None].square()


@dataclass(frozen=True)
class Root(Scaling):
    """s = 1/√(1 + σ)."""

    def scale(self, sigma: Any) -> Tensor:
        return (1 + float64(sigma)).rsqrt()

    def derivative(self, sigma: Any) -> Tensor:
        return -(1 + float64(sigma)).pow(-1.5) / 2


class Negative(Root):
    def scale(self, sigma: Any) -> Tensor:
        return -super().scale(sigma)


class WrongSlope(Root):
    def derivative(self, sigma: Any) -> Tensor:
        return torch.zeros_like(float64(sigma))


@pytest.mark.parametrize("schedule", [Square(), Single(), Kinked(), Narrow(1e-3, 1e3)])
@pytest.mark.parametrize("scaling", [None, Root()])
def test_functions_that_fit_each_other_are_taken(schedule: Schedule, scaling: Scaling | None) -> None:
    sampler = Sampler(LEVELS, schedule, scaling)
    assert bool(sampler.sample(GAUSSIAN, seeds=[0]).isfinite())
    assert bool(Sampler(Karras(1), schedule, scaling).sample(GAUSSIAN, seeds=[0]).isfinite())


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (WrongInverse(), "WrongInverse.time must be the inverse of WrongInverse.sigma, got time(0.01) = 0.01"),
        (WrongDerivative(), "sigma_derivative must be the derivative of WrongDerivative.sigma, got "),
        (Decreasing(), "Decreasing.time must increase with sigma, got [100, "),
        (Shifted(), "Shifted.time_of_zero must be the time of sigma = 0, got 0.0 with sigma = -5"),
        (Narrow(0.1, 1e3), "= 0.1; or the schedule does not reach this level"),
    ],
)
def test_a_schedule_whose_functions_disagree_is_refused(schedule: Schedule, message: str) -> None:
    for run in (Sampler(LEVELS, schedule).sample, Sampler(LEVELS, schedule, final="euler").sample):
        with pytest.raises(ValueError, match=re.escape(message)):
            run(GAUSSIAN, seeds=[0])
    with pytest.raises(ValueError, match=re.escape(message)):
        Sampler(LEVELS, schedule).invert(GAUSSIAN, torch.ones(1, 1))


@pytest.mark.usefixtures("without_type_checker")
def test_a_schedule_that_changes_the_shape_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"Transposed.sigma must return the shape \(12,\) that it is given, got \(1, 12\)"
    ):
        Sampler(LEVELS, Transposed()).sample(GAUSSIAN, seeds=[0])


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        (Negative(), "Negative.scale must be finite and > 0, got [-0.995"),
        (WrongSlope(), "derivative must be the derivative of WrongSlope.scale, got 0 at "),
    ],
)
def test_a_scaling_whose_functions_disagree_is_refused(scaling: Scaling, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Sampler(LEVELS, scaling=scaling).sample(GAUSSIAN, seeds=[0])


@dataclass(frozen=True)
class Incomplete(RungeKutta):
    """A method whose tableau is given."""

    order = 1
    tableau: Any = None


@pytest.mark.usefixtures("without_type_checker")
@pytest.mark.parametrize(
    "tableau", [Tableau(((),), (0.5,)), Tableau(((), (1.0,)), (1.0,)), Tableau(((), ()), (0.5, 0.5)), Tableau((), ())]
)
def test_a_tableau_that_is_none_is_refused(tableau: Tableau) -> None:
    with pytest.raises(ValueError, match="tableau of Incomplete must have rows of 0, 1, 2, … coefficients"):
        Sampler(LEVELS, solver=Incomplete(tableau)).sample(GAUSSIAN, seeds=[0])


def test_a_shape_of_samples_beside_noise_of_another_is_refused() -> None:
    with pytest.raises(ValueError, match=r"event_shape must be that of noise, \(1,\), got \(5,\)"):
        Sampler(LEVELS).sample(GAUSSIAN, noise=torch.zeros(2, 1), event_shape=(5,))
