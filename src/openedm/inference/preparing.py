"""Simulations as users have them: checked, what is wrong with them named, split and standardised."""

import math
import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from openedm.inference.maps import DataMap, ParameterMap
from openedm.inference.posterior import Values
from openedm.inference.priors import Prior
from openedm.inference.transforms import constant_columns, duplicated_columns, named

LEAST = 100


@dataclass(frozen=True)
class Prepared:
    """Checked simulations, how networks see them, and which are trained on and held out."""

    theta: Tensor
    x: Tensor
    prior: Prior | None
    parameters: ParameterMap
    data: DataMap
    training: Tensor
    held: Tensor


def checked(
    theta: Values, x: Values, prior: Prior | None, on_nonfinite: str
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n ..."]]:
    """θ and x as float32 tensors. Errors as for `fit`."""
    parameters, values = _tensor("theta", theta), _tensor("x", x)
    if parameters.ndim != 2 or parameters.shape[1] == 0:
        raise ValueError(f"theta must have shape (n, d), got {tuple(parameters.shape)}")
    if values.ndim < 2 or values[:1].numel() == 0:
        raise ValueError(f"x must have shape (n, *x_shape) with at least one value each, got {tuple(values.shape)}")
    if len(parameters) != len(values):
        raise ValueError(f"theta and x must have one row a simulation, got {len(parameters)} and {len(values)}")
    if prior is not None and prior.dim != parameters.shape[1]:
        raise ValueError(f"prior must have as many parameters as theta, {parameters.shape[1]}, got {prior.dim}")
    bad = ~(parameters.isfinite().all(1) & values.flatten(1).isfinite().all(1))
    if bool(bad.any()):
        rows = bad.nonzero()[:, 0].tolist()
        if on_nonfinite == "error":
            raise ValueError(
                f"theta and x must be finite, but {len(rows)} of {len(bad)} simulations are not: {named(rows)}; "
                "on_nonfinite='drop' leaves them out"
            )
        parameters, values = parameters[~bad], values[~bad]
    if len(parameters) < LEAST:
        raise ValueError(f"there must be at least {LEAST} simulations, got {len(parameters)}")
    if prior is not None:
        outside = (~(prior.log_prob(parameters) > -math.inf)).nonzero()[:, 0].tolist()
        if outside:
            raise ValueError(f"theta must lie in the prior's support, but {len(outside)} do not: {named(outside)}")
    constant = constant_columns(parameters)
    if constant:
        raise ValueError(f"theta must vary, but these columns are constant: {named(constant)}")
    return parameters, values


def _tensor(name: str, values: Values) -> Tensor:
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must hold numbers: {error}") from error
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name} must hold real numbers, got {tensor.dtype}")
    return tensor.detach().float()


def prepare(theta: Tensor, x: Tensor, prior: Prior | None, held_out: float, seed: int) -> Prepared:
    """The standardisation of checked simulations, and which are held out. Warnings and errors as for `fit`."""
    keep: tuple[int, ...] = ()
    if x.ndim == 2:
        constant, twins = constant_columns(x), duplicated_columns(x)
        if constant:
            warnings.warn(f"columns of x that are constant are left out: {named(constant)}", stacklevel=3)
        if twins:
            pairs = ", ".join(f"{later} (as {first})" for first, later in twins[:8])
            warnings.warn(f"columns of x that equal others are left out: {pairs}", stacklevel=3)
        left = {*constant, *(later for _, later in twins)}
        keep = tuple(i for i in range(x.shape[1]) if i not in left)
        if not keep:
            raise ValueError("x must vary, but all its columns are constant")
    elif bool((x == x.flatten()[0]).all()):
        raise ValueError("x must vary, but all its values are the same")
    order = torch.randperm(len(theta), generator=torch.Generator().manual_seed(seed))
    count = min(max(1, round(held_out * len(theta))), len(theta) // 2)
    held, training = order[:count].sort().values, order[count:].sort().values
    bijection = None if prior is None else prior.bijection
    return Prepared(theta, x, prior, ParameterMap.of(theta, bijection), DataMap.of(x[training], keep), training, held)
