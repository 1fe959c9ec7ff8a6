import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.image.kid import poly_mmd

from openedm.metrics import kernel_distance


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mean_kernel(shift: float, dim: int) -> float:
    """E k(x, y) for x ~ N(0, I), y ~ N(shift, I), k = (x·y/d + 1)³: x·y has moments E s = 0, s², s³ in closed form."""
    # Given y, s = x·y is N(0, ‖y‖²): E (s/d + 1)³ = 1 + 3 ‖y‖²/d², and E ‖y‖² = d (1 + shift²).
    return 1 + 3 * (1 + shift**2) / dim


def mean_kernel_shifted(shift: float, dim: int) -> float:
    """E k(y, y') for two independent y ~ N(shift, I)."""
    # s = y·y': given y, N(m, v) with m = shift Σyᵢ and v = ‖y‖². E (s/d + 1)³ = u³ + 3 u v/d², u = m/d + 1.
    # Σyᵢ ~ N(d shift, d); E u v needs the covariance of Σyᵢ and ‖y‖², 2 d shift.
    mean, variance = 1 + shift**2, shift**2 / dim  # of u
    third = mean**3 + 3 * mean * variance
    u_times_v = mean * dim * (1 + shift**2) + shift * 2 * dim * shift / dim
    return third + 3 * u_times_v / dim**2


def test_it_is_without_bias_and_its_standard_error_is_what_repeated_draws_show():
    dim, shift, repeats = 4, 0.5, 400
    expected = mean_kernel(0, dim) + mean_kernel_shifted(shift, dim) - 2 * mean_kernel(shift, dim)
    found = [
        kernel_distance(normal(20, dim, seed=2 * i), shift + normal(30, dim, seed=2 * i + 1)) for i in range(repeats)
    ]
    values = torch.tensor([f.value for f in found])
    errors = torch.tensor([f.standard_error for f in found])
    assert float(values.mean()) == pytest.approx(expected, abs=4 * float(values.std()) / repeats**0.5)
    # The jackknife is right to first order, and errs upward.
    assert 1 < float(errors.square().mean().sqrt() / values.std()) < 1.5


def test_of_one_distribution_it_is_zero_on_average_and_often_below():
    values = torch.tensor(
        [kernel_distance(normal(25, 3, seed=i), normal(25, 3, seed=1000 + i)).value for i in range(300)]
    )
    assert abs(float(values.mean())) < 4 * float(values.std()) / 300**0.5
    assert 0.3 < float((values < 0).double().mean()) < 0.8


@settings(deadline=None, max_examples=20)
@given(st.integers(3, 20), st.integers(1, 6), st.integers(1, 4), st.integers(0, 1000))
def test_it_is_torchmetrics_number_on_one_subset_of_all(count, dim, degree, seed):
    x, y = normal(count, dim, seed=seed), 1 + normal(count, dim, seed=seed + 1)
    expected = float(poly_mmd(x, y, degree, None, 1.0))
    assert kernel_distance(x, y, degree=degree).value == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_tiles_of_any_size_give_the_same(block):
    x, y = normal(23, 5, seed=0), normal(17, 5, seed=1)
    expected = kernel_distance(x, y)
    assert kernel_distance(x, y, block=block) == pytest.approx(expected, rel=1e-12)


def test_the_standard_error_is_the_jackknifes():
    x, y = normal(6, 2, seed=0), normal(5, 2, seed=1)
    variance = 0.0
    for rows, value in ((6, lambda i: kernel_distance(torch.cat([x[:i], x[i + 1 :]]), y).value), (5, None)):
        value = value or (lambda i: kernel_distance(x, torch.cat([y[:i], y[i + 1 :]])).value)
        left_out = torch.tensor([value(i) for i in range(rows)], dtype=torch.float64)
        variance += (rows - 1) * float(left_out.var(correction=0))
    assert kernel_distance(x, y).standard_error == pytest.approx(variance**0.5, rel=1e-9)


def test_what_cannot_be_compared_is_refused(without_type_checker):
    x = normal(5, 2, seed=0)
    for arguments, message in [
        ((x, normal(5, 3, seed=0)), "as many features, got 2 and 3"),
        ((x[:2], x), "number of samples must be >= 3, got 2"),
        ((x, x[:2]), "number of rows of reference must be >= 3, got 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            kernel_distance(*arguments)
    with pytest.raises(ValueError, match="block must be >= 1"):
        kernel_distance(x, x, block=0)
