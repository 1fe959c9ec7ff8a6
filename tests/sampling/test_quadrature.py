"""Exponential weights: exact for polynomials of the interpolation variable, and equal to their closed forms."""

import math
from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import Polynomial
from scipy.integrate import quad, solve_ivp
from scipy.special import hyp1f1

from openedm import preconditioning, schedules
from openedm.preconditioning import DataPrediction, EpsilonPrediction, NetworkPrediction, Prediction, VelocityPrediction
from openedm.sampling.engine.quadrature import RuleName, StepWeights, step_weights
from openedm.schedules import Angle, FlowTime, LogSigma, PowerSigma, Schedule
from properties.strategies import EPS, all_predictions, all_variables, log_uniform, sigmas

widths = log_uniform(0.05, 5.0)
predictions, variables = all_predictions(), all_variables()
Nodes = tuple[float, ...]
Ends = tuple[float, float, Nodes]
etas = st.one_of(st.just(0.0), st.floats(0.1, 3.0))


@st.composite
def steps(draw: st.DrawFn, max_nodes: int = 4) -> Ends:
    """σ, σ' and nodes σ_0 = σ < σ_1 < …, sometimes with σ' before them, as a corrector has."""
    start = draw(log_uniform(0.02, 60.0))
    end = start * math.exp(-draw(st.floats(0.05, 2.0)))
    gaps = draw(st.lists(st.floats(0.1, 1.0), max_size=max_nodes - 1))
    nodes = start * np.exp(np.cumsum([0.0, *gaps]))
    corrects = len(nodes) < max_nodes and draw(st.booleans())
    return start, end, (end, *nodes) if corrects else tuple(nodes)


def weigh(
    prediction: Prediction,
    variable: Schedule,
    start: float,
    end: float,
    nodes: Nodes,
    rule: RuleName = "exact",
    eta: float = 0.0,
) -> tuple[float, np.ndarray, float]:
    """`step_weights` of one step: the weight of x, those of q and the standard deviation of the noise."""
    rows = (torch.tensor([value], dtype=torch.float64) for value in (start, end, nodes))
    found = step_weights(prediction, variable, *rows, rule=rule, eta=eta)
    return float(found.keep[0]), found.of_past[0].numpy(), float(found.noise_std[0])


def denoised(prediction: Prediction, x: float, q: float, sigma: float) -> float:
    """D, from each quantity's own definition."""
    match prediction:
        case EpsilonPrediction():
            return x - sigma * q
        case DataPrediction():
            return q
        case VelocityPrediction(width):
            return (x / sigma - q) / (1 / sigma + 1 / width)
        case NetworkPrediction(width):
            c_skip, c_out, *_ = preconditioning.EDM().coefficients(torch.tensor(sigma, dtype=torch.float64), width)
            return float(c_skip) * x + float(c_out) * q
    raise AssertionError


def value(variable: Schedule, sigma: float) -> float:
    return float(variable.time(sigma))


def tau(variable: Schedule, start: float, end: float, sigma: float) -> float:
    """Where σ lies between the ends of a step, in the variable."""
    at = partial(value, variable)
    return (at(sigma) - at(start)) / (at(end) - at(start))


# Against the differential equation.


@pytest.mark.usefixtures("without_type_checker")
@settings(max_examples=60)
@given(predictions, variables, steps(), etas, st.floats(-2.0, 2.0), st.data())
def test_a_polynomial_of_the_variable_is_integrated_as_the_differential_equation_has_it(
    prediction: Prediction, variable: Schedule, step: Ends, eta: float, x: float, data: st.DataObject
) -> None:
    start, end, nodes = step
    coefficient = st.floats(-1.0, 1.0)
    polynomial = Polynomial(data.draw(st.lists(coefficient, min_size=len(nodes), max_size=len(nodes))))

    def q(sigma: float) -> float:
        return float(polynomial(tau(variable, start, end, sigma)))

    def slope(log: float, x: np.ndarray) -> np.ndarray:
        sigma = math.exp(log)
        return (1 + eta) * (x - denoised(prediction, float(x[0]), q(sigma), sigma))

    ends = math.log(start), math.log(end)
    solution = solve_ivp(slope, ends, [x], method="DOP853", rtol=1e-11, atol=1e-13).y[0, -1]
    keep, weights, _ = weigh(prediction, variable, start, end, nodes, eta=eta)
    known = np.array([q(node) for node in nodes])
    size = abs(keep * x) + np.abs(weights) @ (1 + np.abs(known))
    assert keep * x + weights @ known == pytest.approx(solution, rel=0, abs=1e-9 * size)


@given(predictions, sigmas())
def test_a_prediction_is_the_quantity_that_it_is_named_after(prediction: Prediction, sigma: float) -> None:
    of_x, of_denoised = (float(c) for c in prediction.coefficients(torch.tensor(sigma, dtype=torch.float64)))
    for x, q in ((1.0, 0.0), (0.3, -2.0)):
        d = denoised(prediction, x, q, sigma)
        assert of_x * x + of_denoised * d == pytest.approx(q, abs=1e-12 * (abs(of_x * x) + abs(of_denoised * d)))


@given(predictions, sigmas(0.01, 100.0))
def test_the_growth_is_that_of_the_linear_part(prediction: Prediction, sigma: float) -> None:
    h = 1e-3
    below, above = prediction.log_growth(sigma * torch.tensor([-h, h], dtype=torch.float64).exp()).tolist()
    of_x, of_denoised = (float(c) for c in prediction.coefficients(torch.tensor(sigma, dtype=torch.float64)))
    # d ln Φ/d ln σ = 1 + a/b; the third derivative of ½ ln(σ² + σ_d²) in ln σ, the most curved, is below 1.
    assert (above - below) / (2 * h) == pytest.approx(1 + of_x / of_denoised, abs=h**2 / 6 + 16 * EPS / h)


# Closed forms.


@given(steps(1), etas)
def test_one_node_of_epsilon_is_the_ddim_step(step: Ends, eta: float) -> None:
    start, end, _ = step
    keep, weights, noise = weigh(EpsilonPrediction(), LogSigma(), start, end, (start,), eta=eta)
    assert keep == 1
    assert weights == pytest.approx([(1 + eta) * (end - start)], rel=1e-13)
    assert noise == pytest.approx(math.sqrt(eta * (start**2 - end**2)), rel=1e-13)


@given(steps(1), etas)
def test_one_node_of_data_is_the_first_step_of_dpm_solver_plus_plus(step: Ends, eta: float) -> None:
    start, end, _ = step
    h = math.log(start / end)
    keep, weights, noise = weigh(DataPrediction(), LogSigma(), start, end, (start,), eta=eta)
    assert keep == pytest.approx(end / start * math.exp(-eta * h), rel=1e-13)
    assert weights == pytest.approx([-math.expm1(-(1 + eta) * h)], rel=1e-13)
    assert noise == pytest.approx(end * math.sqrt(-math.expm1(-2 * eta * h)), rel=1e-13)


@given(steps(1), widths)
def test_one_node_of_the_velocity_moves_along_the_chord_of_rectified_flow(step: Ends, width: float) -> None:
    start, end, _ = step
    keep, weights, _ = weigh(VelocityPrediction(width), FlowTime(width), start, end, (start,))
    # z = x σ_d/(σ + σ_d) is the state of rectified flow, dz = σ_d q dt its equation.
    shrunk, times = [width / (s + width) for s in (start, end)], [s / (s + width) for s in (start, end)]
    assert keep == pytest.approx(shrunk[0] / shrunk[1], rel=1e-13)
    assert weights == pytest.approx([width * (times[1] - times[0]) / shrunk[1]], rel=1e-12)


@given(steps(1), widths)
def test_one_node_of_the_network_turns_the_state_by_an_angle(step: Ends, width: float) -> None:
    start, end, _ = step
    keep, weights, _ = weigh(NetworkPrediction(width), Angle(width), start, end, (start,))
    assert keep == pytest.approx(math.hypot(end, width) / math.hypot(start, width), rel=1e-13)
    turned = math.hypot(end, width) * (math.atan(start / width) - math.atan(end / width))
    assert weights == pytest.approx([turned], rel=1e-12)


@given(steps(), etas)
def test_moments_in_ln_sigma_are_phi_functions(step: Ends, eta: float) -> None:
    start, end, nodes = step
    h = math.log(start / end)
    at = np.array([math.log(start / node) / h for node in nodes])
    data, epsilon = (
        weigh(p, LogSigma(), start, end, nodes, eta=eta)[1] for p in (DataPrediction(), EpsilonPrediction())
    )
    for p in range(len(nodes)):
        # p! φ_{p+1}(z) = ₁F₁(1; p+2; z)/(p+1)
        shrinking = (1 + eta) * h * hyp1f1(1, p + 2, -(1 + eta) * h) / (p + 1)
        growing = -(1 + eta) * h * end * hyp1f1(1, p + 2, h) / (p + 1)
        assert data @ at**p == pytest.approx(shrinking, abs=64 * EPS * float(np.abs(data) @ np.abs(at) ** p))
        assert epsilon @ at**p == pytest.approx(growing, abs=64 * EPS * float(np.abs(epsilon) @ np.abs(at) ** p))


@given(variables, predictions, steps(2))
def test_the_midpoint_rule_halves_the_first_moment(variable: Schedule, prediction: Prediction, step: Ends) -> None:
    start, end, nodes = step
    rest = weigh(prediction, variable, start, end, (start,))[1].sum()
    weights = weigh(prediction, variable, start, end, nodes, "midpoint")[1]
    at = np.array([tau(variable, start, end, node) for node in nodes])
    assert weights.sum() == pytest.approx(rest, rel=1e-11)
    if len(nodes) == 2:
        assert weights @ at == pytest.approx(rest / 2, rel=1e-11)


@given(predictions, steps())
def test_the_rule_of_dpm_solver_plus_plus_halves_the_second_moment_too(prediction: Prediction, step: Ends) -> None:
    start, end, nodes = step
    exact, midpoint, published = (
        weigh(prediction, LogSigma(), start, end, nodes, rule)[1] for rule in ("exact", "midpoint", "dpm-solver++")
    )
    if len(nodes) != 3:
        assert (published == midpoint).all()
        return
    assert (midpoint == exact).all()
    at = np.array([tau(LogSigma(), start, end, node) for node in nodes])
    for p, share in ((0, 1), (1, 1), (2, 0.5)):
        assert published @ at**p == pytest.approx(share * (exact @ at**p), abs=1e-12 * float(np.abs(exact) @ at**2 + 1))


ADAMS_BASHFORTH = [(1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24)]
ADAMS_MOULTON = [(1 / 2, 1 / 2), (5 / 12, 8 / 12, -1 / 12), (9 / 24, 19 / 24, -5 / 24, 1 / 24)]


@given(variables, log_uniform(0.1, 60.0), st.floats(0.05, 2.0))
def test_the_rule_of_adams_and_bashforth_has_their_constants_wherever_the_levels_lie(
    variable: Schedule, start: float, h: float
) -> None:
    end = start * math.exp(-h)
    past = start * np.exp([0.0, 0.3, 1.1, 1.3])
    for constants in ADAMS_BASHFORTH:
        found = weigh(EpsilonPrediction(), variable, start, end, tuple(past[: len(constants)]), "adams-bashforth")[1]
        assert found == pytest.approx(np.multiply(constants, end - start), rel=1e-12)
    for constants in ADAMS_MOULTON:
        nodes = (end, *past[: len(constants) - 1])
        found = weigh(EpsilonPrediction(), variable, start, end, nodes, "adams-bashforth")[1]
        assert found == pytest.approx(np.multiply(constants, end - start), rel=1e-12)


# Laws of composition and change of units.


@given(predictions, steps(1), st.floats(0.05, 2.0), etas)
def test_two_steps_in_turn_are_one_where_the_quantity_is_constant(
    prediction: Prediction, step: Ends, further: float, eta: float
) -> None:
    start, middle, _ = step
    end = middle * math.exp(-further)
    first, second, whole = (
        weigh(prediction, LogSigma(), a, b, (a,), eta=eta) for a, b in ((start, middle), (middle, end), (start, end))
    )
    assert whole[0] == pytest.approx(first[0] * second[0], rel=1e-13)
    assert whole[1] == pytest.approx(first[1] * second[0] + second[1], rel=1e-12)
    assert whole[2] ** 2 == pytest.approx((first[2] * second[0]) ** 2 + second[2] ** 2, rel=1e-12)


@given(predictions, variables, steps(), st.floats(0.0, 2.0))
def test_a_step_of_the_ode_taken_back_from_the_same_values_returns(
    prediction: Prediction, variable: Schedule, step: Ends, x: float
) -> None:
    start, end, nodes = step
    there, back = (weigh(prediction, variable, *ends, nodes) for ends in ((start, end), (end, start)))
    q = np.cos(np.arange(len(nodes)))
    size = back[0] * (abs(there[0] * x) + np.abs(there[1]).sum()) + np.abs(back[1]).sum()
    assert back[0] * (there[0] * x + there[1] @ q) + back[1] @ q == pytest.approx(x, abs=1e-10 * size)


@pytest.mark.parametrize(
    ("variable", "same"),
    [
        (PowerSigma(1.0), schedules.EDM()),
        (PowerSigma(0.5), schedules.VE()),
        (FlowTime(1.0), schedules.RectifiedFlow()),
        (Angle(1.0), schedules.Cosine()),
        (PowerSigma(1e6), LogSigma()),
    ],
    ids=repr,
)
def test_variables_that_are_affine_functions_of_one_another_weigh_alike(variable: Schedule, same: Schedule) -> None:
    step = (0.8, 0.5, (0.8, 1.1, 2.0))
    one, other = (weigh(NetworkPrediction(), v, *step)[1] for v in (variable, same))
    # σ^{1/ρ} = 1 + ln σ/ρ + O(ρ⁻²), and rounds to ρ ε.
    assert one == pytest.approx(other, rel=1e-5 if variable == PowerSigma(1e6) else 1e-12)


@given(steps(), etas, log_uniform(0.01, 100.0))
def test_weights_follow_the_unit_of_the_data(step: Ends, eta: float, unit: float) -> None:
    start, end, nodes = step
    scaled = unit * start, unit * end, tuple(unit * node for node in nodes)
    # D has the unit of x; ε, v and F are pure numbers, so that their weights have it.
    for make, carried in (
        (lambda c: (DataPrediction(), Angle(0.5 * c)), 1.0),
        (lambda c: (EpsilonPrediction(), FlowTime(0.5 * c)), unit),
        (lambda c: (VelocityPrediction(0.5 * c), LogSigma()), unit),
        (lambda c: (NetworkPrediction(0.5 * c), PowerSigma(7.0)), unit),
    ):
        one, other = weigh(*make(1.0), *step, eta=eta), weigh(*make(unit), *scaled, eta=eta)
        assert other[0] == pytest.approx(one[0], rel=1e-12)
        assert other[1] == pytest.approx(carried * one[1], rel=1e-10, abs=1e-11 * carried * float(np.abs(one[1]).sum()))
        assert other[2] == pytest.approx(unit * one[2], rel=1e-11)


def test_steps_are_weighed_row_by_row() -> None:
    start, end, eta = torch.tensor([[3.0, 1.0, 0.1], [1.0, 0.1, 0.02], [0.0, 0.5, 2.0]], dtype=torch.float64)
    nodes = torch.tensor([[3.0, 4.0], [1.0, 3.0], [0.1, 1.0]], dtype=torch.float64)
    together = step_weights(NetworkPrediction(), Angle(), start, end, nodes, eta=eta)
    assert isinstance(together, StepWeights)
    for i in range(3):
        step = float(start[i]), float(end[i]), tuple(nodes[i].tolist())
        keep, weights, noise = weigh(NetworkPrediction(), Angle(), *step, eta=float(eta[i]))
        assert keep == pytest.approx(float(together.keep[i]), rel=1e-14)
        assert noise == pytest.approx(float(together.noise_std[i]), rel=1e-14)
        assert weights == pytest.approx(together.of_past[i].numpy(), rel=1e-14)
    ode = step_weights(NetworkPrediction(), Angle(), start, end, nodes)
    assert (ode.noise_std == 0).all()
    torch.testing.assert_close(ode.of_past[0], together.of_past[0], rtol=1e-14, atol=0)


# Extremes.

PREDICTIONS = [EpsilonPrediction(), DataPrediction(), VelocityPrediction(0.5), NetworkPrediction(0.5)]
VARIABLES = [
    LogSigma(),
    PowerSigma(1.0),
    PowerSigma(7.0),
    Angle(),
    FlowTime(),
    schedules.VP(),
    schedules.Cosine(),
]
GROWTHS: dict[type, Callable[[float], float]] = {
    EpsilonPrediction: lambda sigma: 1.0,
    DataPrediction: lambda sigma: sigma,
    VelocityPrediction: lambda sigma: sigma + 0.5,
    NetworkPrediction: lambda sigma: math.hypot(sigma, 0.5),
}


@pytest.mark.parametrize(("prediction", "variable"), list(product(PREDICTIONS, VARIABLES)), ids=repr)
def test_one_step_from_80_to_0002_is_integrated_to_rounding(prediction: Prediction, variable: Schedule) -> None:
    start, end = 80.0, 0.002
    growth = GROWTHS[type(prediction)]

    def integrand(log: float, p: int) -> float:
        s = math.exp(log)
        # dx/d ln s = (x − D): the part of it that q drives, carried to the end.
        driven = -denoised(prediction, 0.0, 1.0, s)
        return growth(end) / growth(s) * driven * tau(variable, start, end, s) ** p

    keep, weights, _ = weigh(prediction, variable, start, end, (end, start))
    assert keep == pytest.approx(growth(end) / growth(start), rel=1e-12)
    bends = [math.log(0.01), math.log(0.1), 0.0, math.log(10.0)]
    moments = [
        quad(integrand, math.log(start), math.log(end), (p,), epsabs=0, epsrel=1e-12, points=bends, limit=200)[0]
        for p in (0, 1)
    ]
    assert weights.sum() == pytest.approx(moments[0], rel=1e-11)
    assert weights[0] == pytest.approx(moments[1], rel=1e-11)  # τ = 1 at the end, 0 at the start


@pytest.mark.parametrize("eta", [0.1, 1.0, 10.0])
def test_noise_of_one_step_from_80_to_0002_is_integrated_to_rounding(eta: float) -> None:
    _, _, noise = weigh(DataPrediction(), LogSigma(), 80.0, 0.002, (80.0,), eta=eta)
    exact = 0.002 * math.sqrt(-math.expm1(-2 * eta * math.log(80.0 / 0.002)))
    # At η = 10 the integrand falls by e⁻²³³ within the step; no run takes such a step with so much noise.
    assert noise == pytest.approx(exact, rel=1e-12 if eta < 10 else 1e-3)
    _, _, noise = weigh(EpsilonPrediction(), LogSigma(), 80.0, 0.002, (80.0,), eta=eta)
    assert noise == pytest.approx(math.sqrt(eta * (80.0**2 - 0.002**2)), rel=1e-13)


def test_a_tiny_step_keeps_its_accuracy() -> None:
    start, h = 3.0, 1e-6
    end = start * math.exp(-h)
    nodes = (start, start * math.exp(h), start * math.exp(2 * h))
    _, weights, _ = weigh(EpsilonPrediction(), LogSigma(), start, end, nodes)
    # Adams–Bashforth's constants for equal steps, up to h; τ rounds to ε/h.
    assert weights / (end - start) == pytest.approx(ADAMS_BASHFORTH[2], abs=2 * h + 16 * EPS / h)


# Errors.


@pytest.mark.usefixtures("without_type_checker")
@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_width_or_an_exponent_that_is_none_is_refused(bad: float) -> None:
    for kind in (VelocityPrediction, NetworkPrediction, Angle, FlowTime):
        with pytest.raises(ValueError, match=f"sigma_data must be finite and > 0, got {bad}"):
            kind(bad)
    with pytest.raises(ValueError, match=f"rho must be finite and > 0, got {bad}"):
        PowerSigma(bad)


def test_a_step_that_ends_where_it_starts_is_refused() -> None:
    start, end = torch.tensor([[3.0, 2.0], [2.0, 2.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match="levels must differ for an exponential solver, got sigma = 2 twice in a row"):
        step_weights(DataPrediction(), LogSigma(), start, end, start[:, None])


def test_the_variables_rise_strictly() -> None:
    levels = torch.logspace(-3, 3, 200, dtype=torch.float64)
    for variable in VARIABLES:
        assert bool((variable.time(levels).diff() > 0).all())
