"""Standardisation: columns go to about N(0, 1) and come back."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openedm.ground.choices import from_config, to_config
from openedm.inference.bijections import Bijection
from openedm.inference.columns import Columns, is_count
from openedm.inference.maps import ParameterMap
from openedm.inference.prepare import constant_columns, duplicated_columns

GENERATOR = torch.Generator().manual_seed(0)


def rows(kind: str, n: int = 2000) -> torch.Tensor:
    normal = torch.randn(n, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return {
        "identity": 3 * normal + 5,
        "log": (2 * normal).exp(),
        "asinh": normal.sinh() ** 3,
        "root": (3 * normal + 8).clamp_min(0).square().round(),
    }[kind]


@pytest.mark.parametrize("kind", ["identity", "log", "asinh", "root"])
def test_each_kind_of_column_gets_the_map_that_suits_it(kind: str) -> None:
    assert Columns.of(rows(kind)).kinds == (kind,)


@pytest.mark.parametrize("kind", ["identity", "log", "asinh", "root"])
def test_columns_are_standardised_and_come_back(kind: str) -> None:
    v = rows(kind)
    columns = Columns.of(v)
    y = columns.forward(v)
    torch.testing.assert_close(y.mean(0), torch.zeros(1, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(y.std(0), torch.ones(1, dtype=torch.float64))
    torch.testing.assert_close(columns.inverse(y), v, rtol=1e-8, atol=1e-8)


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_the_log_determinant_is_that_of_the_jacobian(seed: int) -> None:
    columns = Columns(("identity", "log", "asinh", "root"), (0, 0, 1, 0), (1, 1, 2, 1), (0, 1, 2, 3), (1, 2, 3, 4))
    v = torch.rand(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    jacobian = torch.autograd.functional.jacobian(columns.forward, v)
    torch.testing.assert_close(columns.log_det(v), jacobian.diagonal().abs().log().sum())


def test_warps_can_be_forbidden_and_constant_columns_stay_finite() -> None:
    assert Columns.of(rows("log"), warp=False).kinds == ("identity",)
    assert Columns.of(torch.ones(5, 1)).forward(torch.ones(2, 1)).tolist() == [[0.0], [0.0]]


def test_an_emulator_gets_logarithms_of_parameters_between_ends_of_different_orders() -> None:
    share = torch.rand(500, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    theta = torch.cat([10.0 ** (8 * share - 4), share, 10.0 ** (8 * share - 4), 10.0 ** (8 * share - 4)], 1)
    bounds = Bijection([1e-4, 0.0, -1.0, -math.inf], [1e4, 1.0, 1e4, math.inf])
    found = ParameterMap.of(theta, bounds)
    assert found.inputs.kinds == ("log", "identity", "identity", "identity")  # others may be negative
    assert found.inputs_of(theta)[:, 0].numpy() == pytest.approx(found.inputs_of(theta)[:, 1].numpy(), abs=1e-5)


def test_a_map_comes_back_from_its_plain_data() -> None:
    columns = Columns.of(torch.cat([rows("log"), rows("asinh")], 1))
    assert from_config(Columns, to_config(columns)) == columns


def test_constant_and_duplicated_columns_are_found() -> None:
    v = torch.tensor([[1.0, 2, 1, 2, 3], [1, 3, 1, 3, 4]])
    assert constant_columns(v) == [0, 2]
    assert duplicated_columns(v) == [(1, 3)]


def test_counts_are_non_negative_integers() -> None:
    assert is_count(torch.tensor([0.0, 3, 2]))
    assert not is_count(torch.tensor([-1.0, 3]))
    assert not is_count(torch.tensor([0.5]))


def test_lengths_and_kinds_are_checked() -> None:
    with pytest.raises(ValueError, match="centres must hold 1 numbers, got 2"):
        Columns(("log",), (0, 0), (1,), (0,), (1,))
    with pytest.raises(ValueError, match=r"kinds\[0\] must be"):
        Columns(("cube",), (0,), (1,), (0,), (1,))
