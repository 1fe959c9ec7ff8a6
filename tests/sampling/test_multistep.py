"""Every named multistep method takes the steps of its paper, here written out again, to rounding."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import hyp1f1
from torch import Tensor

from marks import FAR_APART
from openedm import schedules
from openedm.exact import GaussianMixture
from openedm.levels import Explicit, Karras
from openedm.preconditioning import NetworkPrediction
from openedm.sampling import (
    DDIM,
    DEIS,
    IPNDM,
    LMS,
    AdamsBashforth,
    DPMSolver2M,
    DPMSolverPP2M,
    DPMSolverPP3M,
    Euler,
    Multistep,
    Sampler,
    UniPC,
)
from openedm.schedules import Angle, PowerSigma

pytestmark = pytest.mark.usefixtures("without_type_checker")  # which takes longer than the arithmetic

MIXTURE = GaussianMixture(
    [0.3, 0.7], [[-1.4, 0.7], [0.6, -0.3]], [[[0.20, 0.05], [0.05, 0.10]], [[0.05, 0.0], [0.0, 0.3]]]
)
SIGMAS = (80.0, 31.0, 9.0, 2.5, 1.1, 0.3, 0.05)  # so uneven that nothing falls out by symmetry
START = 80.0 * torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
NOISES = torch.randn(len(SIGMAS), 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Given:
    """Noise that is given."""

    def __init__(self, noises: Tensor = NOISES) -> None:
        self.noises = iter(noises)

    def draw(self, event_shape: tuple[int, ...]) -> Tensor:
        return next(self.noises)


def states(solver: Multistep) -> list[Tensor]:
    """x at every level, and the sample."""
    steps = Sampler(Explicit(SIGMAS), solver=solver).steps(MIXTURE, Given(), noise=START / 80.0)
    return [state.x for state in steps]


Past = Sequence[tuple[float, Tensor, Tensor]]
"""(σ, x, D) of the levels so far, newest first."""


def followed(step: Callable[[Past, float], Tensor]) -> list[Tensor]:
    """x at every level and D at the last, where `step` makes the next x of what is known and the next level."""
    x, past, reached = START, [], [START]
    for sigma, following in pairwise(SIGMAS):
        past.insert(0, (sigma, x, MIXTURE(x, sigma)))
        x = step(past, following)
        reached.append(x)
    return [*reached, MIXTURE(x, SIGMAS[-1])]


def epsilon(known: tuple[float, Tensor, Tensor]) -> Tensor:
    sigma, x, denoised = known
    return (x - denoised) / sigma


def lagrange(nodes: Sequence[float], j: int, at: float) -> float:
    """The polynomial through 1 at node j and 0 at the others."""
    return math.prod((at - node) / (nodes[j] - node) for k, node in enumerate(nodes) if k != j)


def assert_same(one: list[Tensor], other: list[Tensor]) -> None:
    torch.testing.assert_close(torch.stack(one), torch.stack(other), rtol=1e-12, atol=1e-12)


# Methods that interpolate ε: dx/dσ = ε.


def adams(count: int, speed: Callable[[float], float], time: Callable[[float], float]) -> Callable[..., Tensor]:
    """x + Σ_j ε_j ∫ L_j(u) σ'(u) du, by numerical integration in u."""

    def step(past: Past, following: float) -> Tensor:
        known = past[:count]
        nodes = [time(sigma) for sigma, _, _ in known]
        total = known[0][1]
        for j in range(len(known)):
            weight, _ = quad(
                lambda u, j=j, nodes=nodes: lagrange(nodes, j, u) * speed(u),
                nodes[0],
                time(following),
                epsabs=1e-14,
                epsrel=1e-13,
            )
            total = total + weight * epsilon(known[j])
        return total

    return step


def test_ddim_is_a_straight_line_to_the_next_level() -> None:
    assert_same(
        states(DDIM()), followed(lambda past, following: past[0][1] + (following - past[0][0]) * epsilon(past[0]))
    )


def test_ddim_is_eulers_method() -> None:
    euler = [s.x for s in Sampler(Explicit(SIGMAS), solver=Euler()).steps(MIXTURE, noise=START / 80.0)]
    assert_same(states(DDIM()), euler)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_lms_integrates_the_polynomial_in_sigma_through_the_last_epsilons(count: int) -> None:
    assert_same(states(LMS(predictor=count)), followed(adams(count, lambda u: 1.0, lambda sigma: sigma)))


def test_lms_is_of_four_levels_unless_it_is_told() -> None:
    assert LMS() == LMS(predictor=4)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_deis_integrates_the_polynomial_in_ln_sigma(count: int) -> None:
    assert_same(states(DEIS(predictor=count)), followed(adams(count, math.exp, math.log)))


def test_deis_in_the_time_of_vp_is_the_papers_tab() -> None:
    beta_d, beta_min = 19.9, 0.1

    def time(sigma: float) -> float:
        return (math.sqrt(beta_min**2 + 2 * beta_d * math.log1p(sigma**2)) - beta_min) / beta_d

    def speed(t: float) -> float:  # σ² + 1 = exp(½ β_d t² + β_min t)
        grown = math.exp(beta_d * t**2 / 2 + beta_min * t)
        return (beta_d * t + beta_min) * grown / (2 * math.sqrt(grown - 1))

    assert_same(states(DEIS(variable=schedules.VP())), followed(adams(3, speed, time)))


def test_ipndm_has_the_constants_of_adams_and_bashforth() -> None:
    constants = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]

    def step(past: Past, following: float) -> Tensor:
        chosen = constants[min(len(past), 4) - 1]
        slope = sum(c * epsilon(known) for c, known in zip(chosen, past, strict=False))
        return past[0][1] + (following - past[0][0]) * slope

    assert_same(states(IPNDM()), followed(step))


def test_dpm_solver_2m_adds_half_of_the_last_change_of_epsilon() -> None:
    def step(past: Past, following: float) -> Tensor:
        sigma, x, _ = past[0]
        h = math.log(sigma / following)
        moved = x - following * math.expm1(h) * epsilon(past[0])
        if len(past) == 1:
            return moved
        r = math.log(past[1][0] / sigma) / h
        return moved - following * math.expm1(h) / (2 * r) * (epsilon(past[0]) - epsilon(past[1]))

    assert_same(states(DPMSolver2M()), followed(step))


# Methods that interpolate D.


def two_multistep(eta: float) -> Callable[[Past, float], Tensor]:
    """DPM-Solver++(2M) of Lu et al. 2022b, Algorithm 2, and its SDE variant; the noise left out."""

    def step(past: Past, following: float) -> Tensor:
        sigma, x, denoised = past[0]
        h = math.log(sigma / following)
        if len(past) > 1:
            r = math.log(past[1][0] / sigma) / h
            denoised = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * past[1][2]
        return following / sigma * math.exp(-eta * h) * x - math.expm1(-(1 + eta) * h) * denoised

    return step


def three_multistep(eta: float) -> Callable[[Past, float], Tensor]:
    """DPM-Solver++(3M) as its authors publish it, with H = (1+η) h in the SDE; the noise left out."""

    def step(past: Past, following: float) -> Tensor:
        if len(past) < 3:
            return two_multistep(eta)(past, following)
        (sigma, x, d0), (sigma1, _, d1), (sigma2, _, d2) = past[:3]
        h = math.log(sigma / following)
        r0, r1, grown = math.log(sigma1 / sigma) / h, math.log(sigma2 / sigma1) / h, (1 + eta) * h
        near, far = (d0 - d1) / r0, (d1 - d2) / r1
        first, second = near + r0 / (r0 + r1) * (near - far), (near - far) / (r0 + r1)
        phi1 = -math.expm1(-grown)
        phi2 = 1 - phi1 / grown
        phi3 = 0.5 - phi2 / grown
        return following / sigma * math.exp(-eta * h) * x + phi1 * d0 + phi2 * first + phi3 * second

    return step


def noisy(step: Callable[[Past, float], Tensor], std: Callable[[float, float], float]) -> Callable[..., Tensor]:
    """The same step and the next of the given noises."""
    return lambda past, following: step(past, following) + std(past[0][0], following) * NOISES[len(past) - 1]


def test_dpm_solver_plus_plus_2m_is_algorithm_2() -> None:
    assert_same(states(DPMSolverPP2M()), followed(two_multistep(0.0)))


def test_dpm_solver_plus_plus_3m_is_as_published() -> None:
    assert_same(states(DPMSolverPP3M()), followed(three_multistep(0.0)))


@pytest.mark.parametrize("eta", [0.3, 1.0, 2.0])
def test_the_sde_variants_of_dpm_solver_plus_plus_replace_noise(eta: float) -> None:
    def std(sigma: float, following: float) -> float:
        return following * math.sqrt(-math.expm1(-2 * eta * math.log(sigma / following)))

    assert_same(states(DPMSolverPP2M(eta=eta)), followed(noisy(two_multistep(eta), std)))
    assert_same(states(DPMSolverPP3M(eta=eta)), followed(noisy(three_multistep(eta), std)))


@FAR_APART
@pytest.mark.parametrize("eta", [0.3, 1.0, 2.0])
def test_ddim_with_noise_is_the_reverse_sde_with_epsilon_held(eta: float) -> None:
    def step(past: Past, following: float) -> Tensor:
        return past[0][1] + (1 + eta) * (following - past[0][0]) * epsilon(past[0])

    def std(sigma: float, following: float) -> float:
        return math.sqrt(eta * (sigma**2 - following**2))

    assert_same(states(DDIM(eta=eta)), followed(noisy(step, std)))


def uni(past: Sequence[tuple[float, Tensor]], x: Tensor, following: float, newest: Tensor | None) -> Tensor:
    """UniP, or with D at the new level UniC, of Zhao et al. 2023 with B(h) = e^h − 1, by its linear system.

    Σ_k ρ_k r_k^{i−1} = i! h φ_{i+1}(h)/B(h) for i = 1, 2, …; h < 0 since D is predicted.
    """
    (sigma, d0), *older = past
    h = math.log(following / sigma)
    r = [math.log(sigma / other) / -h for other, _ in older]
    differences = [(d - d0) / ratio for (_, d), ratio in zip(older, r, strict=True)]
    if newest is not None:
        r, differences = [*r, 1.0], [*differences, newest - d0]
    scale = math.expm1(h)
    # i! φ_{i+1}(h) = ₁F₁(1; i+2; h)/(i+1)
    wanted = [h * hyp1f1(1, i + 2, h) / (i + 1) / scale for i in range(1, len(r) + 1)]
    matrix = np.array([[ratio**i for ratio in r] for i in range(len(r))])
    rho = [0.5] if len(r) == 1 else np.linalg.solve(matrix, wanted).tolist() if r else []
    total = sum((weight * difference for weight, difference in zip(rho, differences, strict=True)), torch.zeros_like(x))
    return following / sigma * x - scale * d0 - scale * total


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_unipc_solves_its_linear_systems(order: int) -> None:
    past: list[tuple[float, Tensor]] = []
    x, corrected, reached = START, START, [START]
    for sigma, following in pairwise(SIGMAS):
        denoised = MIXTURE(x, sigma)
        if past:
            corrected = uni(past[:order], corrected, sigma, denoised)
        past.insert(0, (sigma, denoised))
        x = uni(past[:order], corrected, following, None)
        reached.append(x)
    reached.append(MIXTURE(x, SIGMAS[-1]))
    assert_same(states(UniPC(predictor=order, corrector=order + 1)), reached)


def test_unipc_is_of_order_two_unless_it_is_told() -> None:
    assert UniPC() == UniPC(predictor=2, corrector=3)


# Methods that interpolate the network's output.


@pytest.mark.parametrize("count", [1, 2, 3])
def test_adams_bashforth_turns_the_state_by_the_angle_along_which_the_network_moves_it(count: int) -> None:
    width, rho = 0.5, 7.0

    def angle(u: float) -> float:
        return math.atan(u**rho / width)

    def network(known: tuple[float, Tensor, Tensor]) -> Tensor:
        sigma, x, denoised = known
        c_skip, c_out = width**2 / (sigma**2 + width**2), sigma * width / math.hypot(sigma, width)
        return (denoised - c_skip * x) / c_out

    def step(past: Past, following: float) -> Tensor:
        known = past[:count]
        nodes, end = [sigma ** (1 / rho) for sigma, _, _ in known], following ** (1 / rho)
        turned = known[0][1] / math.hypot(known[0][0], width)
        for j in range(len(known)):
            # d(x/√(σ²+σ_d²)) = −F dθ, θ = atan(σ/σ_d), and dθ = σ_d dσ/(σ²+σ_d²)
            weight, _ = quad(
                lambda u, j=j, nodes=nodes: lagrange(nodes, j, u) * width * rho * u**6 / (u**14 + width**2),
                nodes[0],
                end,
                epsabs=1e-15,
                epsrel=1e-13,
            )
            turned = turned - weight * network(known[j])
        if count == 1:  # the integral of 1 is the angle itself
            assert weight == pytest.approx(angle(end) - angle(nodes[0]), rel=1e-12)
        return math.hypot(following, width) * turned

    assert_same(states(AdamsBashforth(NetworkPrediction(0.5), predictor=count)), followed(step))


def test_adams_bashforth_is_of_three_levels_in_the_variable_of_karras() -> None:
    assert AdamsBashforth() == AdamsBashforth(NetworkPrediction(), PowerSigma(7.0), 3)


@pytest.mark.parametrize("settings", [{}, {"predictor": 1}, {"variable": Angle(0.5)}, {"corrector": 3}], ids=repr)
def test_the_networks_output_is_followed_exactly_where_the_data_is_one_gaussian_of_its_width(settings: dict) -> None:
    gaussian = GaussianMixture([1.0], [[0.0, 0.0]], [[[0.25, 0.0], [0.0, 0.25]]])
    solver = Multistep(**{"prediction": NetworkPrediction(0.5)} | settings)
    levels = Karras(4, 0.02, 80.0)
    last = list(Sampler(levels, solver=solver).steps(gaussian, noise=START / 80.0))[-2]
    torch.testing.assert_close(last.x, gaussian.ode_solution(START, 80.0, 0.02), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("predictor", "corrector"), [(2, 3), (3, 3), (3, 2)])
def test_a_share_of_the_correction_leads_to_that_share_of_the_way_from_the_predicted_state(predictor, corrector):
    """A step lies on the line from the predictor's result to the corrector's, whatever the directions."""
    full, levels = Multistep(predictor=predictor, corrector=corrector), Karras(6, 0.1, 10.0)
    solvers = (full, replace(full, correction=0.25))
    whole, part = (Sampler(levels, solver=solver).plan(MIXTURE).steps for solver in solvers)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    directions = list(torch.randn(6, 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    for before, step, some in zip(whole, whole[1:-1], part[1:-1], strict=False):
        predicted, corrected = before.advance(x, directions[1:]), step.correct(x, directions)
        torch.testing.assert_close(some.correct(x, directions), torch.lerp(predicted, corrected, 0.25))
    assert all(len(step.correct.weights) <= step.remember + 1 for step in part[1:-1])
