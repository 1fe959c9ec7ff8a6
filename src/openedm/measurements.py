"""Linear measurements y = A x₀ + σ_y n of a clean sample x₀, n ~ N(0, I): what `openedm.conditioning` conditions on.

| operator A | A x | Aᵀ y |
|---|---|---|
| `Matrix` | the matrix times the flattened sample | its transpose times y |
| `Mask` (inpainting) | the entries that are known | y there, 0 elsewhere |
| `AveragePool` (super-resolution) | means over squares of pixels | by automatic differentiation |
| `Function` | any linear function | given, or by automatic differentiation |
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn import functional

from openedm.ground import checks
from openedm.ground.devices import float64_on
from openedm.ground.tensors import as_tensor, check_floats

__all__ = ["AveragePool", "Function", "LinearOperator", "Mask", "Matrix", "Measurement"]

_POOLS = {3: functional.avg_pool1d, 4: functional.avg_pool2d, 5: functional.avg_pool3d}
"""Means over cells, by the number of axes of a batch."""


class LinearOperator(nn.Module, ABC):
    """A, a linear map from a sample to what is measured of it.

    A subclass defines `forward`, and `adjoint` where it has a direct form. Both take floating-point numbers; integers
    would be computed as integers, and are a TypeError.
    """

    def __call__(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *measured"]:
        """A x; see `forward`."""
        check_floats("x", x, "a tensor of samples (batch, *event)")
        measured: Tensor = super().__call__(x)
        return measured

    @abstractmethod
    def forward(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *measured"]:
        """A x."""

    def adjoint(
        self, y: Float[Tensor, "batch *measured"], event_shape: tuple[int, ...]
    ) -> Float[Tensor, "batch *event"]:
        """Aᵀ y, here by automatic differentiation of A; `event_shape` is the shape of a sample."""
        _check_measured(y)
        vjp = torch.func.vjp(self.forward, y.new_zeros(len(y), *event_shape))[1]
        transposed: Tensor = vjp(y)[0]
        return transposed


class Matrix(LinearOperator):
    """The operator A as a matrix, which multiplies the flattened sample.

    Args:
        matrix: A, (measured, features), of real numbers.

    Raises:
        TypeError: the matrix is not a tensor, an array or a list of real numbers.
        ValueError: it has another number of dimensions, or NaN or infinity. When called, with samples of another
            number of features.

    >>> Matrix(torch.tensor([[1.0, 1.0]]))(torch.tensor([[2.0, 3.0]]))
    tensor([[5.]])
    """

    matrix: Shaped[Tensor, "measured features"]

    def __init__(self, matrix: Shaped[Tensor, "measured features"]) -> None:
        super().__init__()
        self.register_buffer("matrix", _real_numbers("matrix", matrix, "(measured, features)", 2))

    def forward(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch measured"]:
        """A x."""
        if math.prod(x.shape[1:]) != self.matrix.shape[1]:
            raise ValueError(
                f"matrix must have a column for each number of a sample, of shape {tuple(x.shape[1:])}, got shape "
                f"{tuple(self.matrix.shape)}"
            )
        return x.flatten(1) @ self.matrix.to(x.dtype).mT

    def adjoint(
        self, y: Float[Tensor, "batch measured"], event_shape: tuple[int, ...]
    ) -> Float[Tensor, "batch *event"]:
        """Aᵀ y."""
        _check_measured(y)
        return (y @ self.matrix.to(y.dtype)).reshape(-1, *event_shape)


class Mask(LinearOperator):
    """The entries of a sample where the mask is true, in order (inpainting: the other entries are unknown).

    Args:
        known: which entries are measured, of the shape of a sample; a tensor or an array.

    Raises:
        TypeError: the mask is not a tensor or an array of truth values.
        ValueError: no entry is measured. When called: samples of another shape than the mask's.

    >>> Mask(torch.tensor([True, False, True]))(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[1., 3.]])
    """

    indices: Tensor

    def __init__(self, known: Bool[Tensor, "*event"]) -> None:
        super().__init__()
        known = as_tensor("known", known)
        if known.dtype != torch.bool:
            raise TypeError(f"known must be a tensor of truth values, got {known.dtype}: compare it, as in known > 0.5")
        if not bool(known.any()):
            raise ValueError("known must be true somewhere: a mask without true entries has no measurement")
        # Indices, not the mask itself: at each call its entries would have to be counted, which synchronises a device.
        self.register_buffer("indices", known.flatten().nonzero()[:, 0])
        self.event_shape = tuple(known.shape)

    def forward(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch measured"]:
        """x where the mask is true."""
        if tuple(x.shape[1:]) != self.event_shape:
            raise ValueError(
                f"known must have the shape of a sample, {tuple(x.shape[1:])}, got {self.event_shape}: "
                "expand it, as in known.expand(3, 32, 32)"
            )
        return x.flatten(1)[:, self.indices]

    def adjoint(
        self, y: Float[Tensor, "batch measured"], event_shape: tuple[int, ...]
    ) -> Float[Tensor, "batch *event"]:
        """y where the mask is true, 0 elsewhere."""
        _check_measured(y)
        flat = y.new_zeros(len(y), *event_shape).flatten(1)
        return flat.index_copy(1, self.indices, y).reshape(-1, *event_shape)


class AveragePool(LinearOperator):
    """The means over squares of pixels (super-resolution), over parts of series and over cubes of volumes.

    Args:
        factor: the side of the squares, ≥ 1; it must divide the height and the width, or the length of series.

    Raises:
        ValueError: the factor is less than 1. When called: x is not a batch of images, series or volumes, or the factor
            does not divide their sides.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        checks.integer("factor", factor, 1)
        self.factor = factor

    def forward(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *measured"]:
        """The small images (batch, channels, height/factor, width/factor), and likewise of one or three axes."""
        if not 3 <= x.ndim <= 5 or any(side % self.factor for side in x.shape[2:]):
            raise ValueError(
                f"x must be images (batch, channels, height, width), series or volumes with sides divisible by "
                f"factor={self.factor}, got shape {tuple(x.shape)}"
            )
        return _POOLS[x.ndim](x, self.factor)


class Function(LinearOperator):
    """The operator A as a function.

    Args:
        function: A, called on a batch of samples; linear, and able to take float64, in which samplers run.
        adjoint: Aᵀ, called on a batch of measurements; None means by automatic differentiation of the function.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.function = function
        self.given_adjoint = adjoint

    def forward(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *measured"]:
        """`function(x)`."""
        measured: Tensor = self.function(x)
        return measured

    def adjoint(
        self, y: Float[Tensor, "batch *measured"], event_shape: tuple[int, ...]
    ) -> Float[Tensor, "batch *event"]:
        """`adjoint(y)` if an adjoint was given, otherwise Aᵀ y by automatic differentiation."""
        _check_measured(y)
        return super().adjoint(y, event_shape) if self.given_adjoint is None else self.given_adjoint(y)


class Measurement(nn.Module):
    """y = A x₀ + σ_y n: a noisy measurement of the clean sample.

    Args:
        operator: A.
        y: what was measured, real numbers, one row for all samples, (1, *measured), or one row a sample, (batch,
            *measured). Integers become floating-point numbers.
        sigma_y: standard deviation of the measurement's noise, > 0, in the units of y.

    Raises:
        TypeError: the operator is not a `LinearOperator`, y is not a tensor, an array or a list of real numbers, or
            sigma_y is several numbers.
        ValueError: sigma_y is not > 0, or y is not finite or has no rows.
    """

    y: Shaped[Tensor, "rows *measured"]

    def __init__(self, operator: LinearOperator, y: Shaped[Tensor, "rows *measured"], sigma_y: float) -> None:
        super().__init__()
        if not isinstance(operator, LinearOperator):
            raise TypeError(
                f"operator must be a LinearOperator, such as Matrix(matrix), Mask(known), AveragePool(factor) or "
                f"Function(function), got {type(operator).__name__}"
            )
        if isinstance(sigma_y, Tensor | np.ndarray | list | tuple):
            given = as_tensor("sigma_y", sigma_y)
            if given.numel() != 1:
                raise TypeError(
                    f"sigma_y must be one number, got {given.numel()}: for noise that differs, divide A and y by its "
                    "standard deviations, Function(lambda x: A(x) / s) and y / s, and give 1.0"
                )
            sigma_y = float(given)
        checks.positive("sigma_y", sigma_y)
        self.operator = operator
        self.sigma_y = sigma_y
        self.register_buffer("y", _real_numbers("y", y, "(1 or batch, *measured)"))

    def residual(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *measured"]:
        """y − A x.

        Raises:
            ValueError: y has neither a single row nor one row a sample, or another shape than A x.
        """
        measured: Tensor = self.operator(x)
        if self.y.shape[1:] != measured.shape[1:] or len(self.y) not in (1, len(x)):
            raise ValueError(
                f"y must have shape {tuple(measured.shape)}, or one row for all samples, got {tuple(self.y.shape)}"
            )
        return self.y.to(x) - measured

    def check(self, event_shape: tuple[int, ...]) -> None:
        """Raise ValueError unless A is linear, Aᵀ its adjoint, and y fits, for samples of this shape.

        Probes A with two random samples and Aᵀ with the measurement of one: A (a + b) = A a + A b and
        ⟨A a, A b⟩ = ⟨a, Aᵀ A b⟩, to a relative accuracy of 10⁻³.
        """
        generator = torch.Generator().manual_seed(0)
        dtype = float64_on(self.y.device)  # that of a sampler's state
        a, b = torch.randn(2, 1, *event_shape, generator=generator).to(self.y.device, dtype)
        image_a, image_b, both = self.operator(a), self.operator(b), self.operator(a + b)
        if image_a.shape[1:] != self.y.shape[1:]:
            raise ValueError(
                f"y must have rows of shape {tuple(image_a.shape[1:])}, which the operator gives for samples of shape "
                f"{event_shape}, got {tuple(self.y.shape[1:])}"
            )
        if not _close(both, image_a + image_b):
            raise ValueError("operator must be linear: A(a + b) differs from A(a) + A(b)")
        back = self.operator.adjoint(image_b, event_shape)
        if back.shape != b.shape:
            raise ValueError(f"adjoint must return the shape of a sample, {tuple(b.shape)}, got {tuple(back.shape)}")
        if not ((image_a * image_b).sum() - (a * back).sum()).abs() <= 1e-3 * image_a.norm() * image_b.norm():
            raise ValueError("adjoint must be that of the operator: ⟨A a, y⟩ differs from ⟨a, Aᵀ y⟩")


def _real_numbers(name: str, value: object, shape: str, dimensions: int | None = None) -> Tensor:
    """A tensor of finite real numbers, integers as floating-point numbers; an error for anything else."""
    given = as_tensor(name, value)
    if given.is_complex():
        raise TypeError(f"{name} must hold real numbers, got {given.dtype}: measure real and imaginary parts apart")
    if given.ndim == 0 or len(given) == 0 or given.ndim != (dimensions or given.ndim):
        raise ValueError(f"{name} must have shape {shape}, got {tuple(given.shape)}")
    given = given if given.is_floating_point() else given.to(float64_on(given.device))
    if not bool(given.isfinite().all()):
        raise ValueError(f"{name} must be finite, got {given[~given.isfinite()][0].item()}")
    return given


def _check_measured(y: object) -> None:
    check_floats("y", y, "a tensor of measurements (batch, *measured)")


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).norm() <= 1e-3 * b.norm())
