"""What users bring as numbers: masked arrays, lists, tables with columns of objects, formats that torch lacks."""

from typing import Any

import numpy as np
import pytest
import torch

from openedm.inference import Box, simulate
from openedm.inference.arrays import as_tensor
from openedm.inference.prepare import prepare
from openedm.networks import JoinedSummary

GENERATOR = torch.Generator().manual_seed(0)
THETA = torch.rand(300, 2, generator=GENERATOR, dtype=torch.float64)
X = THETA + 0.1 * torch.randn(300, 2, generator=GENERATOR, dtype=torch.float64)
MASKED = np.ma.masked_where(torch.stack([X[:, 0] < 0, X[:, 0] >= 0], 1).numpy() & (X < 0.2).numpy(), X.numpy())
PRIOR = Box([0, 0], [1, 1])


def test_masked_numbers_are_absent_and_not_what_stands_below_the_mask() -> None:
    assert as_tensor("x", MASKED).isnan().numpy().tolist() == MASKED.mask.tolist()
    assert as_tensor("x", [MASKED[0], MASKED[1]]).dtype == torch.float64
    assert as_tensor("x", np.ma.masked_array([1, 2], mask=[True, False])).isnan().tolist() == [True, False]
    assert as_tensor("x", np.ma.masked_array([1, 2])).tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match=f"must be finite, but {int(MASKED.mask.any(1).sum())} of 300 simulations"):
        prepare(THETA, MASKED, PRIOR)
    assert prepare(THETA, MASKED[:, None], PRIOR).data.absence is not None  # a series with gaps
    assert simulate(lambda theta: np.ma.masked_array([1.0, 2.0], mask=[True, False]), PRIOR, 3).x.isnan().all(0)[0]
    with pytest.raises(TypeError, match=r"x\['a'\] must have no masked entries"):
        JoinedSummary.of({"a": MASKED})


@pytest.mark.parametrize("kind", [list, lambda values: list(values.tolist()), lambda values: list(values.numpy())])
def test_numbers_of_python_keep_their_digits(kind: Any) -> None:
    days = 2.46e6 + 0.01 * X
    found = prepare(THETA, kind(days), PRIOR)
    assert found.x.dtype == torch.float64
    assert torch.equal(found.x, days)
    assert prepare(THETA.tolist(), X.tolist(), PRIOR).x.dtype == torch.float32


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[1.5, True], [None, 2]], dtype=object), [[1.5, 1.0], [float("nan"), 2.0]]),
        (np.array([1, 65535], dtype=np.uint16), [1.0, 65535.0]),
        (torch.tensor([1, 65535], dtype=torch.uint16), [1.0, 65535.0]),
        (np.array([1, 2**63 + 2**40], dtype=np.uint64), [1.0, 2.0**63 + 2.0**40]),
        (np.array([1.5, 2.5], dtype=np.longdouble), [1.5, 2.5]),
        (np.array([1.5, 2.5], dtype=">f8"), [1.5, 2.5]),
        (np.array([1.5, 2.5])[::-1], [2.5, 1.5]),
    ],
)
def test_formats_that_torch_lacks_are_read(values: Any, expected: Any) -> None:
    torch.testing.assert_close(as_tensor("x", values).double(), torch.tensor(expected).double(), equal_nan=True)


def test_tables_of_several_kinds_of_columns_are_read() -> None:
    pandas = pytest.importorskip("pandas")
    columns = {"a": [1.5, 2.5], "b": [True, False], "c": pandas.array([3, None], dtype="Int64")}
    torch.testing.assert_close(
        as_tensor("x", pandas.DataFrame(columns)),
        torch.tensor([[1.5, 1.0, 3.0], [2.5, 0.0, float("nan")]], dtype=torch.float64),
        equal_nan=True,
    )
    with pytest.raises(TypeError, match=r"x must be a tensor, .* got DataFrame: 'u' is text, not a number"):
        as_tensor("x", pandas.DataFrame({"a": [1.5, 2.5], "b": ["u", "v"]}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            np.zeros(3, dtype=[("a", "f8"), ("b", "f8")]),
            "its fields a, b are not columns",
        ),
        (np.zeros(3, dtype="datetime64[s]"), "entries are of datetime64.*, not numbers"),
        (X.to_sparse(), r"x must be dense, got .*sparse.*: give x.to_dense\(\)"),
        (X + 1j, "x must be real"),
        ([[1.0, 2.0], [1.0]], "x must be a tensor, .* got list"),
    ],
)
def test_what_holds_no_numbers_is_named(values: Any, message: str, without_type_checker: None) -> None:
    with pytest.raises(TypeError, match=message):
        as_tensor("x", values)
