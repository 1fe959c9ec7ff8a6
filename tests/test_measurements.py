"""Linear measurements: adjoints, shapes, and operators that are none."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from openedm.measurements import AveragePool, Function, LinearOperator, Mask, Matrix, Measurement
from properties.strategies import EPS

IMAGE = (2, 4, 6)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blur(x: Tensor) -> Tensor:
    return functional.conv2d(x, torch.ones(2, 2, 3, 3, dtype=x.dtype), padding=1)


OPERATORS: dict[str, LinearOperator] = {
    "matrix": Matrix(normal(7, 48, seed=1)),
    "mask": Mask(normal(*IMAGE, seed=2) > 0.5),
    "pool": AveragePool(2),
    "function": Function(blur),
    "function with adjoint": Function(lambda x: x.cumsum(-1), lambda y: y.flip(-1).cumsum(-1).flip(-1)),
}


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS.keys())
@given(st.integers(0, 99))
def test_an_operator_and_its_adjoint_give_the_same_inner_products(operator: LinearOperator, seed: int) -> None:
    x = normal(3, *IMAGE, seed=seed)
    measured = operator(x)
    y = normal(*measured.shape, seed=seed + 1)
    back = operator.adjoint(y, IMAGE)
    assert back.shape == x.shape
    forth_products, back_products = (measured * y).flatten(1).sum(1), (x * back).flatten(1).sum(1)
    size = measured.flatten(1).norm(dim=1) * y.flatten(1).norm(dim=1)
    assert ((forth_products - back_products).abs() <= 64 * EPS * size).all()


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS.keys())
def test_its_matrix_column_by_column_is_the_transpose_of_that_of_its_adjoint(operator: LinearOperator) -> None:
    matrix = operator(torch.eye(48, dtype=torch.float64).reshape(48, *IMAGE)).flatten(1).T
    rows = operator.adjoint(
        torch.eye(len(matrix), dtype=torch.float64).reshape(-1, *operator(normal(1, *IMAGE)).shape[1:]), IMAGE
    )
    torch.testing.assert_close(rows.flatten(1), matrix, rtol=0, atol=1e-15)


def test_a_mask_keeps_what_is_known_in_order_and_a_pool_averages() -> None:
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    known = torch.zeros(1, 4, 4, dtype=torch.bool)
    known[0, 1, 1:3] = known[0, 3, 3] = True
    assert Mask(known)(image).tolist() == [[5, 6, 15]]
    assert AveragePool(2)(image).tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]


@pytest.mark.parametrize("shape", [(2, 9), (2, 6, 9), (1, 6, 9, 3)])
def test_a_pool_averages_series_images_and_volumes(shape: tuple[int, ...]) -> None:
    x = normal(5, *shape)
    operator, sides = AveragePool(3), shape[1:]
    cells = x.reshape(5, shape[0], *(n for side in sides for n in (side // 3, 3)))
    expected = cells.mean(tuple(range(3, cells.ndim, 2)))
    torch.testing.assert_close(operator(x), expected)
    Measurement(operator, expected[:1], 0.1).check(shape)


@pytest.mark.usefixtures("without_type_checker")
def test_a_mask_may_be_an_array_and_noise_is_one_number() -> None:
    known = np.array([[True, False, True]])
    assert Mask(known)(torch.tensor([[[1.0, 2.0, 3.0]]])).tolist() == [[1.0, 3.0]]  # type: ignore[arg-type]
    for noise in (torch.ones(2), np.ones(2), [1.0, 2.0]):
        with pytest.raises(TypeError, match=r"sigma_y must be one number, got 2: for noise that differs, divide A and"):
            Measurement(Matrix(torch.eye(2)), torch.zeros(1, 2), noise)  # type: ignore[arg-type]


def test_the_residual_is_what_was_measured_less_what_would_be_of_one_row_or_one_a_sample() -> None:
    x, matrix = normal(3, 2), normal(1, 2, seed=1)
    shared = Measurement(Matrix(matrix), torch.tensor([[2.0]]), 0.1)
    torch.testing.assert_close(shared.residual(x), 2 - x @ matrix.T)
    own = Measurement(Matrix(matrix), torch.tensor([[1.0], [2], [3]]), 0.1)
    torch.testing.assert_close(own.residual(x), torch.tensor([[1.0], [2], [3]], dtype=torch.float64) - x @ matrix.T)


def test_linear_operators_with_true_adjoints_pass_the_check() -> None:
    for operator in OPERATORS.values():
        Measurement(operator, torch.zeros_like(operator(normal(1, *IMAGE))), 1.0).check(IMAGE)


def measurement(operator: LinearOperator, *shape: int) -> Measurement:
    return Measurement(operator, torch.zeros(1, *shape), 1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Measurement(Matrix(torch.eye(2)), torch.zeros(1, 2), 0.0), r"sigma_y must be finite and > 0, got 0"),
        (
            lambda: Measurement(Matrix(torch.eye(2)), torch.tensor([[0.0, torch.nan]]), 1.0),
            r"y must be finite, got nan",
        ),
        (lambda: Mask(torch.zeros(3, dtype=torch.bool)), r"known must be true somewhere"),
        (
            lambda: measurement(Mask(torch.ones(4, 6, dtype=torch.bool)), 24).check(IMAGE),
            r"known must have the shape of a sample, \(2, 4, 6\), got \(4, 6\): expand it",
        ),
        (
            lambda: measurement(Matrix(torch.eye(3)), 3).check((2, 2)),
            r"matrix must have a column for each number of a sample, of shape \(2, 2\), got shape \(3, 3\)",
        ),
        (lambda: AveragePool(0), r"factor must be >= 1, got 0"),
        (lambda: AveragePool(2)(torch.zeros(1, 1, 4, 3)), r"x must be images .* divisible by factor=2, got shape"),
        (lambda: AveragePool(2)(torch.zeros(1, 4)), r"x must be images"),
        (
            lambda: measurement(Matrix(torch.eye(2)), 3).check((2,)),
            r"y must have rows of shape \(2,\), which the operator gives for samples of shape \(2,\), got \(3,\)",
        ),
        (
            lambda: measurement(Matrix(torch.eye(2)), 3).residual(torch.zeros(5, 2)),
            r"y must have shape \(5, 2\), or one row for all samples, got \(1, 3\)",
        ),
        (
            lambda: Measurement(Matrix(torch.eye(2)), torch.zeros(3, 2), 1.0).residual(torch.zeros(5, 2)),
            r"y must have shape \(5, 2\), or one row for all samples, got \(3, 2\)",
        ),
        (
            lambda: measurement(Function(lambda x: x + 1), 2).check((2,)),
            r"operator must be linear: A\(a \+ b\) differs",
        ),
        (lambda: measurement(Function(torch.abs), 2).check((2,)), r"operator must be linear"),
        (
            lambda: measurement(Function(lambda x: 2 * x, lambda y: y), 2).check((2,)),
            r"adjoint must be that of the operator",
        ),
        (
            lambda: measurement(Function(lambda x: x[:, :1], lambda y: y), 1).check((2,)),
            r"adjoint must return the shape of a sample, \(1, 2\), got \(1, 1\)",
        ),
    ],
)
def test_what_is_no_linear_measurement_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.usefixtures("without_type_checker")
def test_a_mask_of_numbers_and_half_a_pixel_are_refused() -> None:
    with pytest.raises(TypeError, match=r"known must be a tensor of truth values, got torch\.float32: compare it"):
        Mask(torch.tensor([0.2, 1.0]))
    with pytest.raises(TypeError, match=r"factor must be an integer, got 1\.5"):
        AveragePool(1.5)  # type: ignore[arg-type]


@pytest.mark.usefixtures("without_type_checker")
def test_a_bare_function_or_matrix_is_refused_with_the_operators_to_choose_from() -> None:
    for bare in (torch.eye(2), blur):
        with pytest.raises(TypeError, match=r"operator must be a LinearOperator, such as Matrix\(matrix\)"):
            Measurement(bare, torch.zeros(1, 2), 1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_integers_that_were_measured_are_computed_as_the_numbers_they_are(dtype: torch.dtype) -> None:
    y = torch.tensor([[1, 0]]).to(dtype)
    measurement = Measurement(Matrix(torch.tensor([[1, 1], [0, 3]])), y, 1.0)
    x = torch.tensor([[0.5, 0.25]])
    assert measurement.residual(x).tolist() == [[0.25, -0.75]]
    measurement.check((2,))


@pytest.mark.usefixtures("without_type_checker")
@pytest.mark.parametrize("name", OPERATORS)
def test_integer_samples_and_measurements_are_refused_by_operators(name: str) -> None:
    operator = OPERATORS[name]
    x = torch.ones(1, *IMAGE)
    with pytest.raises(TypeError, match=r"x must hold floating-point numbers, got torch\.int64: write x\.float\(\)"):
        operator(x.long())
    with pytest.raises(TypeError, match=r"y must hold floating-point numbers, got torch\.int64"):
        operator.adjoint(operator(x.double()).long(), IMAGE)


@pytest.mark.usefixtures("without_type_checker")
def test_what_is_no_table_of_real_numbers_is_refused() -> None:
    assert Measurement(Matrix([[1, 1]]), [[2]], 1.0).residual(torch.ones(1, 2)).tolist() == [[0.0]]  # type: ignore[arg-type]
    for make, error, message in (
        (lambda: Matrix(torch.ones(2)), ValueError, r"matrix must have shape \(measured, features\), got \(2,\)"),
        (lambda: Matrix(torch.tensor([[torch.nan]])), ValueError, "matrix must be finite, got nan"),
        (lambda: Matrix(torch.ones(1, 1) * 1j), TypeError, r"matrix must hold real numbers, got torch\.complex64"),
        (lambda: Measurement(Matrix(torch.eye(1)), torch.ones(1, 1) * 1j, 1.0), TypeError, "y must hold real numbers"),
        (lambda: Measurement(Matrix(torch.eye(1)), torch.tensor(2.0), 1.0), ValueError, r"y must have shape .*\(\)"),
        (lambda: Measurement(Matrix(torch.eye(1)), torch.ones(0, 1), 1.0), ValueError, r"y must have shape .*\(0, 1\)"),
        (lambda: Measurement(Matrix(torch.eye(1)), "a", 1.0), TypeError, "y must be a tensor, an array or a list"),
    ):
        with pytest.raises(error, match=message):
            make()
