"""Embedded pairs have their orders; the integrator keeps its tolerance with a step size for each sample."""

import math
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from openedm.sampling.engine.integrate import Solution, integrate
from openedm.sampling.engine.pairs import (
    DORMAND_PRINCE,
    EXPONENTIAL,
    TSIT5,
    EmbeddedTableau,
    Pair,
    phi,
)
from properties.strategies import EPS

TABLEAUX = {"dormand_prince": DORMAND_PRINCE, "tsit5": TSIT5}
PAIRS: dict[str, Pair] = {**TABLEAUX, "exponential": EXPONENTIAL}
DENSE_ORDER = {"dormand_prince": 4, "tsit5": 4, "exponential": 2}


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def conditions(a: np.ndarray, b: np.ndarray, theta: float = 1.0) -> list[float]:
    """For each order up to 5 the largest violation of its conditions (Hairer et al., II.2, Table 2.2)."""
    c = a.sum(1)
    trees = [
        [(b.sum(), 1)],
        [(b @ c, 2)],
        [(b @ c**2, 3), (b @ a @ c, 6)],
        [(b @ c**3, 4), ((b * c) @ a @ c, 8), (b @ a @ c**2, 12), (b @ a @ a @ c, 24)],
        [
            (b @ c**4, 5),
            ((b * c**2) @ a @ c, 10),
            ((b * c) @ a @ c**2, 15),
            ((b * c) @ a @ a @ c, 30),
            (b @ (a @ c) ** 2, 20),
            (b @ a @ c**3, 20),
            (b @ a @ (c * (a @ c)), 40),
            (b @ a @ a @ c**2, 60),
            (b @ a @ a @ a @ c, 120),
        ],
    ]
    return [max(abs(have - theta**q / want) for have, want in trees[q - 1]) for q in range(1, 6)]


def matrix(tableau: EmbeddedTableau) -> np.ndarray:
    size = len(tableau.b)
    return np.array([[*row, *[0.0] * (size - len(row))] for row in tableau.a])


@pytest.mark.parametrize("name", TABLEAUX)
def test_a_pair_has_the_two_orders_that_it_states(name: str) -> None:
    pair = TABLEAUX[name]
    rounding = 1e3 * EPS  # weights up to 21 times 16 digits, up to four of them multiplied
    high, low = conditions(matrix(pair), np.array(pair.b)), conditions(matrix(pair), np.array(pair.b_hat))
    assert all(violation < rounding for violation in high[: pair.order])
    assert all(violation < rounding for violation in low[: pair.order - 1])
    assert low[pair.order - 1] > 1e-5
    assert all(len(row) == i for i, row in enumerate(pair.a))
    assert pair.first_same_as_last


@pytest.mark.parametrize("name", TABLEAUX)
@pytest.mark.parametrize("theta", [0.2, 0.5, 0.9, 1.0])
def test_dense_output_satisfies_the_order_conditions_inside_the_step(name: str, theta: float) -> None:
    pair = TABLEAUX[name]
    decay, rows = pair.dense(torch.tensor([theta], dtype=torch.float64), None)
    weights = np.array([float(row) for row in rows])
    violations = conditions(matrix(pair), weights, theta)
    assert decay is None
    assert all(violation < 1e3 * EPS for violation in violations[: DENSE_ORDER[name]])
    if theta == 1.0:
        np.testing.assert_allclose(weights, pair.b, rtol=0, atol=1e3 * EPS)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("z", [-40.0, -3.0, -1.0, -0.999, -1e-3, 0.0, 1e-9, 0.3, 1.0, 5.0])
def test_phi_functions_are_their_integrals(k: int, z: float) -> None:
    expected = quad(lambda s: math.exp((1 - s) * z) * s ** (k - 1) / math.factorial(k - 1), 0, 1, epsabs=1e-15)[0]
    assert float(phi(torch.tensor([z], dtype=torch.float64), k)) == pytest.approx(expected, rel=1e-13)


def slope(t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
    """y' = y (cos t) + t: smooth, not autonomous, not linear in t."""
    return y * t.cos()[:, None] + y.square() * 0.1 * t[:, None]


def exact(t: float, y0: Tensor) -> Tensor:
    """Bernoulli's equation: with v = 1/y, v' = −v cos t − t/10."""
    inner = quad(lambda s: 0.1 * s * math.exp(math.sin(s)), 0, t, epsabs=1e-14)[0]
    return math.exp(math.sin(t)) / (1 / y0 - inner)


def by_steps(pair: Pair, count: int, linear: float = 0.0, end: float = 2.0) -> Tensor:
    """The solution at the end by `count` equal steps of a pair, none of them rejected."""
    y = column(0.5, 1.0)
    for i in range(count):
        start, stop = end * i / count, end * (i + 1) / count
        step = integrate(
            lambda t, y, rows: slope(t, y, rows) - linear * y,
            y,
            start,
            stop,
            method=pair,
            linear=linear,
            tolerance=1e9,
            first_step=10.0,
        )
        assert step.accepted.tolist() == [1, 1]
        y = step.x
    return y


@pytest.mark.parametrize(
    ("name", "linear"), [*((name, 0.0) for name in PAIRS), ("exponential", 1.0), ("exponential", -1.0)]
)
def test_equal_steps_converge_at_the_order_of_the_pair(name: str, linear: float) -> None:
    pair, truth = PAIRS[name], exact(2.0, column(0.5, 1.0))
    counts = (24, 48)
    errors = [float((by_steps(pair, n, linear) - truth).norm()) for n in counts]
    assert errors[1] > 1e-12
    assert math.log2(errors[0] / errors[1]) == pytest.approx(pair.order, abs=0.25)


@pytest.mark.parametrize(
    ("name", "linear"), [*((name, 0.0) for name in PAIRS), ("exponential", 1.0), ("exponential", -1.0)]
)
def test_dense_output_inside_a_step_has_its_order(name: str, linear: float) -> None:
    pair, errors = PAIRS[name], []
    for h in (0.2, 0.1) if pair.order == 5 else (0.05, 0.025):
        at = torch.linspace(0.0, h, 6, dtype=torch.float64)
        step = integrate(
            lambda t, y, rows: slope(t, y, rows) - linear * y,
            column(0.5, 1.0),
            0.0,
            h,
            method=pair,
            linear=linear,
            tolerance=1e9,
            first_step=1.0,
            at=at,
        )
        assert step.dense is not None
        truth = torch.stack([exact(float(t), column(0.5, 1.0)) for t in at])
        assert torch.equal(step.dense[0], column(0.5, 1.0))
        torch.testing.assert_close(step.dense[-1], step.x, rtol=1e-14, atol=0)
        errors.append(float((step.dense - truth)[1:-1].abs().max()))
    assert math.log2(errors[0] / errors[1]) > DENSE_ORDER[name] + 1 - 0.3


def test_an_exponential_pair_takes_the_linear_part_exactly() -> None:
    # y' = −50 y + 50: the step of size 1 would be unstable for the other pairs.
    result = integrate(
        lambda t, y, rows: torch.full_like(y, 50.0),
        column(3.0),
        0.0,
        1.0,
        method=EXPONENTIAL,
        linear=-50.0,
        tolerance=1e9,
        first_step=1.0,
    )
    assert result.accepted.tolist() == [1]
    assert float(result.x) == pytest.approx(1 + 2 * math.exp(-50), rel=1e-14)


@pytest.mark.parametrize("name", PAIRS)
def test_the_error_is_proportional_to_the_tolerance(name: str) -> None:
    y0, tolerances = column(0.2, 0.5, 1.0), (1e-4, 1e-6, 1e-8)
    results = [integrate(slope, y0, 0.0, 2.0, method=PAIRS[name], tolerance=tol) for tol in tolerances]
    ratios = [float((r.x - exact(2.0, y0)).abs().max()) / tol for r, tol in zip(results, tolerances, strict=True)]
    # Errors of some twenty steps or less at the loosest, along a flow that stretches about tenfold.
    assert max(ratios) < 40
    assert max(ratios) < 20 * min(ratios)
    evaluations = [float(r.nfe.double().mean()) for r in results]
    growth = [math.log(high / low) / math.log(100) for low, high in pairwise(evaluations)]
    assert growth[-1] == pytest.approx(1 / PAIRS[name].order, abs=0.06)


def test_a_smooth_problem_is_rarely_rejected() -> None:
    result = integrate(
        lambda t, y, rows: torch.stack([y[:, 1], -y[:, 0]], 1), torch.eye(2).double(), 0.0, 100.0, tolerance=1e-6
    )
    assert float((result.rejected / (result.rejected + result.accepted)).max()) < 0.02
    # The step is steady here: the ratio e settles where 0.9 e^{−0.6/5} e^{0.2/5} = 1, that is e = 0.9^{12.5} = 0.27.
    longest = integrate(
        lambda t, y, rows: torch.stack([y[:, 1], -y[:, 0]], 1), torch.eye(2).double(), 0.0, 100.0, tolerance=0.27e-6
    )
    assert int(longest.accepted[0]) / int(result.accepted[0]) == pytest.approx(0.27 ** (-1 / 5), rel=0.03)


def relaxation(rates: Tensor):
    """y' = −rate (y − cos t), a rate for each sample."""
    return lambda t, y, rows: -rates[rows, None] * (y - t.cos()[:, None])


@pytest.mark.parametrize("name", TABLEAUX)
def test_stability_limits_the_steps_of_a_stiff_problem_without_a_train_of_rejections(name: str) -> None:
    result = integrate(relaxation(torch.tensor([500.0])), column(0.0), 0.0, 3.0, method=PAIRS[name], tolerance=1e-5)
    assert bool(result.finished.all())
    # The stability interval ends near 3.3 for the pairs 5(4) and at 2.5 for 3(2); a controller without memory would
    # try in vain every other step.
    assert 1500 / 3.5 < int(result.accepted) < 1500 / 2.0
    assert int(result.rejected) < 0.05 * int(result.accepted)
    truth = (500**2 * math.cos(3) + 500 * math.sin(3)) / (1 + 500**2)  # the slow solution
    assert float(result.x) == pytest.approx(truth, abs=1e-4)


@pytest.mark.parametrize("name", PAIRS)
def test_a_sudden_change_is_rejected_until_the_step_fits_it(name: str) -> None:
    width = 0.01

    def pulse(t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        return torch.exp(-((t - 1) ** 2) / (2 * width**2))[:, None] / width - y

    result = integrate(pulse, column(1.0), 0.0, 3.0, method=PAIRS[name], tolerance=1e-5)
    assert int(result.rejected) >= 3
    area = math.sqrt(2 * math.pi) * math.exp(-2 + width**2 / 2)
    assert float(result.x) == pytest.approx(math.exp(-3) + area, abs=1e-4)


def test_hard_samples_do_not_make_easy_ones_pay_and_arrived_ones_are_not_evaluated() -> None:
    rates = torch.tensor([0.5, 300.0, 5.0], dtype=torch.float64)
    asked = torch.zeros(3, dtype=torch.int64)

    def counting(t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        asked.index_add_(0, rows, torch.ones_like(rows))
        return relaxation(rates)(t, y, rows)

    result = integrate(counting, column(0.0, 0.0, 0.0), 0.0, 5.0, tolerance=1e-6)
    assert torch.equal(asked, result.nfe)
    assert int(result.nfe[1]) > 10 * int(result.nfe[0])
    steps = result.accepted + result.rejected
    assert torch.equal(result.nfe, 2 + 6 * steps)


@pytest.mark.parametrize("name", PAIRS)
def test_a_sample_does_not_depend_on_its_neighbours(name: str) -> None:
    rates = torch.tensor([0.5, 60.0, 5.0, 0.1], dtype=torch.float64)
    y0, at = column(0.0, 1.0, -1.0, 2.0), torch.linspace(0, 2, 5, dtype=torch.float64)
    together = integrate(relaxation(rates), y0, 0.0, 2.0, method=PAIRS[name], tolerance=1e-5, at=at)
    for i in range(4):
        alone = integrate(
            relaxation(rates[i : i + 1]), y0[i : i + 1], 0.0, 2.0, method=PAIRS[name], tolerance=1e-5, at=at
        )
        for field in ("x", "time", "nfe", "accepted", "rejected"):
            assert torch.equal(getattr(alone, field), getattr(together, field)[i : i + 1]), field
        assert alone.dense is not None
        assert together.dense is not None
        assert torch.equal(alone.dense[:, 0], together.dense[:, i])


@pytest.mark.parametrize("name", PAIRS)
def test_evaluations_are_capped_for_each_sample_and_the_state_reached_is_returned(name: str) -> None:
    rates, y0 = torch.tensor([0.1, 200.0], dtype=torch.float64), column(1.0, 1.0)
    free = integrate(relaxation(rates), y0, 0.0, 2.0, method=PAIRS[name], tolerance=1e-4)
    cap = int(free.nfe[0])
    assert cap < int(free.nfe[1])
    result = integrate(relaxation(rates), y0, 0.0, 2.0, method=PAIRS[name], tolerance=1e-4, max_evaluations=cap)
    assert result.finished.tolist() == [True, False]
    assert result.failed.tolist() == [False, False]
    assert cap // 2 < int(result.nfe[1]) <= cap  # it stops where the steps that are left are too short
    assert torch.equal(result.x[0], free.x[0])
    stopped = float(result.time[1])
    assert 0 < stopped < 2
    r = 200.0
    slow = (r**2 * math.cos(stopped) + r * math.sin(stopped)) / (1 + r**2)
    assert float(result.x[1]) == pytest.approx(slow + (1 - r**2 / (1 + r**2)) * math.exp(-r * stopped), abs=1e-3)
    assert integrate(relaxation(rates), y0, 0.0, 2.0, method=PAIRS[name], max_evaluations=1).accepted.tolist() == [0, 0]


@pytest.mark.parametrize("name", PAIRS)
def test_time_may_run_backward(name: str) -> None:
    y0 = column(0.5, 1.0)
    at = torch.linspace(2.0, 0.0, 4, dtype=torch.float64)
    back = integrate(slope, exact(2.0, y0), 2.0, 0.0, method=PAIRS[name], tolerance=1e-8, at=at)
    torch.testing.assert_close(back.x, y0, rtol=0, atol=1e-6)
    assert back.dense is not None
    for t, y in zip(at.tolist(), back.dense, strict=True):
        torch.testing.assert_close(y, exact(t, y0), rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", PAIRS)
def test_dense_output_holds_the_tolerance_between_the_steps(name: str) -> None:
    y0, at = column(0.2, 1.0), torch.linspace(0, 2, 41, dtype=torch.float64)
    result = integrate(slope, y0, 0.0, 2.0, method=PAIRS[name], tolerance=1e-7, at=at)
    truth = torch.stack([exact(float(t), y0) for t in at])
    assert result.dense is not None
    # Order p − 1 of the pairs 5(4) leaves more error between their long steps than at the ends.
    assert float((result.dense - truth).abs().max()) < 1e-5


def test_times_that_a_capped_sample_does_not_reach_are_nan() -> None:
    at = torch.tensor([0.0, 1e-3, 2.0], dtype=torch.float64)
    result = integrate(relaxation(torch.tensor([200.0])), column(1.0), 0.0, 2.0, max_evaluations=60, at=at)
    assert result.dense is not None
    assert result.dense.isnan().flatten().tolist() == [False, False, True]


def fall(t: Tensor, y: Tensor, rows: Tensor) -> Tensor:
    """y' = −1/(2y), which is infinite where y = √(y(0)² − t) is 0, and has no solution beyond."""
    return torch.where(y > 0, -0.5 / y, math.nan)


@pytest.mark.parametrize("name", PAIRS)
def test_a_sample_whose_solution_ends_is_reported_and_the_others_arrive(name: str) -> None:
    result = integrate(fall, column(2.0, 1.0), 0.0, 2.0, method=PAIRS[name], tolerance=1e-4)
    assert result.finished.tolist() == [True, False]
    assert result.failed.tolist() == [False, True]
    assert float(result.x[0]) == pytest.approx(math.sqrt(2), abs=1e-3)
    assert float(result.time[1]) == pytest.approx(1.0, abs=1e-3)
    message = "the step size of 1 of 2 samples fell below rounding, of sample 1 at time "
    with pytest.raises(FloatingPointError, match=message):
        result.check("time", "slope")


@pytest.mark.parametrize("first_step", [None, 0.5])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_slope_that_is_not_finite_fails_at_once(first_step: float | None, bad: float) -> None:
    result = integrate(
        lambda t, y, rows: torch.where(rows[:, None] == 1, bad, -y), column(1.0, 1.0), 0.0, 1.0, first_step=first_step
    )
    assert result.failed.tolist() == [False, True]
    assert int(result.nfe[1]) <= 2
    assert result.time.tolist() == [1.0, 0.0]


def test_a_slope_that_stops_being_finite_is_approached_and_reported() -> None:
    result = integrate(lambda t, y, rows: torch.where(t[:, None] > 0.3, math.nan, y), column(1.0), 0.0, 1.0)
    assert result.failed.tolist() == [True]
    assert 0.29 < float(result.time) <= 0.3
    assert float(result.x) == pytest.approx(math.exp(float(result.time)), abs=1e-6)


def test_check_passes_what_has_not_failed() -> None:
    result = integrate(fall, column(2.0), 0.0, 2.0)
    assert isinstance(result, Solution)
    assert result.check() is result


def test_a_first_step_that_is_given_saves_an_evaluation() -> None:
    assert int(integrate(slope, column(0.5), 0.0, 1e-3, first_step=1.0, tolerance=1e-3).nfe) == 7
    assert int(integrate(slope, column(0.5), 0.0, 1e-3, tolerance=1e-3).nfe) == 8


def test_the_state_keeps_its_dtype_and_shape() -> None:
    y0 = torch.linspace(0.1, 1, 12).reshape(2, 3, 2)
    result = integrate(lambda t, y, rows: -y, y0, 0.0, 1.0, tolerance=1e-4)
    assert (result.x.dtype, result.x.shape) == (torch.float32, (2, 3, 2))
    assert result.time.dtype == torch.float64
    torch.testing.assert_close(result.x, y0 * math.exp(-1), rtol=0, atol=1e-3)


def test_tolerances_may_weigh_the_parts_of_a_sample_and_the_norm_may_be_chosen() -> None:
    y0 = torch.tensor([[1.0, 1.0]], dtype=torch.float64)

    def evaluations(tolerance: float | Tensor, **given: object) -> int:
        result = integrate(
            lambda t, y, rows: y * torch.tensor([0.0, -3.0]).double(), y0, 0.0, 2.0, tolerance=tolerance, **given
        )
        return int(result.nfe)

    tight, loose = 1e-9, 1e-3
    both, only_first = evaluations(tight), evaluations(torch.tensor([tight, loose], dtype=torch.float64))
    assert only_first < both
    # The mean square over two parts of which one has no error is half the largest square.
    assert evaluations(tight, norm=lambda values: values.flatten(1).abs().amax(1)) == evaluations(tight / math.sqrt(2))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"end": 0.0}, "end must differ from start, got 0.0 for both"),
        ({"end": math.inf}, "end must be a finite number, got inf"),
        ({"tolerance": 0.0}, "tolerance must be finite and > 0, got 0.0"),
        ({"linear": 1.0}, "linear must be 0 for a pair that is not exponential, got 1.0"),
        ({"first_step": 0.0}, "first_step must be finite and > 0, got 0.0"),
        ({"max_evaluations": 0}, "max_evaluations must be >= 1, got 0"),
        ({"at": torch.tensor([0.5, 0.2])}, "at must hold times from 0.0 to 1.0, in that order, got [0.5, 0.2"),
        ({"at": torch.tensor([0.5, 1.5])}, "at must hold times from 0.0 to 1.0, in that order, got [0.5, 1.5]"),
        ({"at": torch.tensor([])}, "at must hold times from 0.0 to 1.0, in that order, got []"),
    ],
)
def test_an_argument_out_of_range_is_named(given: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"start": 0.0, "end": 1.0, **given}
    with pytest.raises(ValueError, match=re.escape(message)):
        integrate(slope, column(1.0), **arguments)  # type: ignore[arg-type]


def test_types_that_do_not_fit_are_named(without_type_checker: None) -> None:
    with pytest.raises(TypeError, match=re.escape("y0 must be floating point, got torch.int64")):
        integrate(slope, torch.ones(1, 1, dtype=torch.int64), 0.0, 1.0)
    with pytest.raises(TypeError, match=re.escape("max_evaluations must be an integer, got 10.0")):
        integrate(slope, column(1.0), 0.0, 1.0, max_evaluations=10.0)  # type: ignore[arg-type]
