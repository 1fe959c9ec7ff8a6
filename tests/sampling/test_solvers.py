"""Butcher tableaux satisfy the order conditions that their solvers state; churn follows Algorithm 2."""

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openedm.exact import GaussianMixture
from openedm.levels import Karras
from openedm.sampling import RK4, Alpha, Churn, Euler, Heun, Midpoint, Ralston, Sampler, Solver
from openedm.schedules import LogSigma
from properties.strategies import EPS, all_churns, all_solvers, log_uniform


def order_conditions(solver: Solver) -> list[list[tuple[float, float]]]:
    """For each order up to 4 the elementary weights of its rooted trees and what they must be (Hairer et al., II.2)."""
    rows, b = solver.tableau.a, np.array(solver.tableau.b)
    a = np.array([[*row, *[0.0] * (len(b) - len(row))] for row in rows])
    c = a.sum(1)
    return [
        [(b.sum(), 1)],
        [(b @ c, 1 / 2)],
        [(b @ c**2, 1 / 3), (b @ a @ c, 1 / 6)],
        [(b @ c**3, 1 / 4), ((b * c) @ a @ c, 1 / 8), (b @ a @ c**2, 1 / 12), (b @ a @ a @ c, 1 / 24)],
    ]


@given(all_solvers())
def test_a_tableau_has_the_order_that_its_solver_states_and_no_more(solver: Solver) -> None:
    tolerance = 16 * EPS * max(abs(b) for b in solver.tableau.b)
    met = [all(abs(have - want) <= tolerance for have, want in each) for each in order_conditions(solver)]
    assert all(met[: solver.order])
    assert solver.order == 4 or not met[solver.order]


@given(all_solvers())
def test_a_tableau_is_explicit_and_starts_at_the_present(solver: Solver) -> None:
    tableau = solver.tableau
    assert [len(row) for row in tableau.a] == list(range(len(tableau.b)))
    assert tableau.c == tuple(sum(row) for row in tableau.a)
    assert tableau.c[0] == 0


def test_the_named_members_of_the_alpha_family_are_what_they_say() -> None:
    assert Heun().tableau == Alpha(1.0).tableau
    assert Heun().tableau.b == (0.5, 0.5)
    assert Midpoint().tableau == Alpha(0.5).tableau
    assert Midpoint().tableau.b == (0.0, 1.0)
    assert Ralston().tableau == Alpha(2 / 3).tableau
    assert Ralston().tableau.b == pytest.approx((0.25, 0.75), rel=4 * EPS)


@given(all_churns(), log_uniform(1e-3, 100.0), st.integers(1, 1000))
def test_gamma_follows_algorithm_2(churn: Churn, sigma: float, num_steps: int) -> None:
    gamma = churn.gamma(sigma, num_steps)
    if churn.s_min <= sigma <= churn.s_max:
        assert gamma == min(churn.s_churn / num_steps, math.sqrt(2) - 1)
    else:
        assert gamma == 0
    # At most √2 − 1: noise of at most the variance that is there is added.
    assert (1 + gamma) ** 2 - 1 <= 1 + 4 * EPS


def test_churn_covers_its_ends() -> None:
    churn = Churn(10.0, s_min=0.05, s_max=50.0)
    assert [churn.gamma(sigma, 100) for sigma in (0.049, 0.05, 50.0, 50.1)] == [0.0, 0.1, 0.1, 0.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Alpha(0.0), "alpha must be finite and > 0, got 0.0"),
        (lambda: Alpha(-0.5), "alpha must be finite and > 0, got -0.5"),
        (lambda: Churn(-1.0), "s_churn must be >= 0, got -1.0"),
        (lambda: Churn(math.nan), "s_churn must be >= 0, got nan"),
        (lambda: Churn(1.0, s_min=-1.0), "s_min must be >= 0, got -1.0"),
        (lambda: Churn(1.0, s_min=2.0, s_max=1.0), "s_max must be >= 2.0, got 1.0"),
        (lambda: Churn(1.0, s_noise=0.0), "s_noise must be finite and > 0, got 0.0"),
        (lambda: Churn(s_noise=1.007), "s_min=0.0, s_max=inf, s_noise=1.007 have no effect while s_churn is 0"),
        (lambda: Churn(s_max=50.0), "s_min=0.0, s_max=50.0, s_noise=1.0 have no effect while s_churn is 0"),
    ],
)
def test_a_value_out_of_range_is_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_a_solver_of_ones_own_needs_a_tableau_and_an_order() -> None:
    class Unfinished(Solver):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Unfinished()
    assert RK4().order == 4
    assert Euler().order == 1


def test_steps_in_logarithmic_time_converge_to_the_exact_flow() -> None:
    gaussian = GaussianMixture([1.0], [[0.5, 1.0]], [[[1.0, 0.2], [0.2, 0.3]]])
    levels, noise = Karras(num_steps=64, sigma_min=0.01), torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    states = list(Sampler(levels=levels, schedule=LogSigma(), solver=RK4()).steps(gaussian, noise=noise))
    exact = gaussian.ode_solution(states[0].x, states[0].sigma, states[-2].sigma)
    torch.testing.assert_close(states[-2].x, exact, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="final must be 'denoise' for LogSigma"):
        Sampler(levels=levels, schedule=LogSigma(), final="euler").check(gaussian)
