"""The checker refuses arguments that do not fit each other, and a result that does not fit the arguments."""

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor

from openedm.levels import Karras
from typechecker import checked


@jaxtyped(typechecker=checked)
def scaled(x: Float[Tensor, "batch size"], by: float, row: Float[Tensor, " size"], cut: int) -> Float[Tensor, "size"]:
    return (x.sum(0) * by * row)[cut:]


def test_arguments_and_result_that_fit_pass() -> None:
    assert torch.equal(scaled(torch.ones(2, 3), 2, torch.ones(3), 0), torch.full((3,), 4.0))


def test_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TypeCheckError, match="parameters"):
        scaled(torch.ones(2, 3), 2.0, torch.ones(1), 0)
    with pytest.raises(TypeCheckError, match="parameters"):
        scaled(torch.ones(2, 3), "2", torch.ones(3), 0)


def test_a_result_that_does_not_fit_the_arguments_is_refused() -> None:
    with pytest.raises(TypeCheckError, match="return value"):
        scaled(torch.ones(2, 3), 2.0, torch.ones(3), 1)


def test_the_library_is_checked() -> None:
    with pytest.raises(TypeCheckError, match="parameters"):
        Karras(num_steps="18")
