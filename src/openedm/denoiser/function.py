"""A function D(x, sigma, condition) as a denoiser."""

import inspect
import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from openedm.denoiser.interface import Condition, Denoiser
from openedm.ground import checks
from openedm.ground.devices import device_of, float64_on
from openedm.ground.tensors import all_finite, count_not_finite

__all__ = ["FunctionDenoiser"]


class FunctionDenoiser(Denoiser):
    """A denoiser from any function D(x, sigma, condition), for closed forms and experiments.

    Args:
        function: called as `function(x, sigma, condition)`, or as `function(x, sigma)` if it takes two arguments;
            sigma is a float64 tensor of shape () or (batch,).
        event_shape: the shape of one sample; None if any.
        sigma_min: lowest noise level the function supports.
        sigma_max: highest noise level the function supports.
        sigma_data: standard deviation of the data, > 0.
        mean: where its data are, from which samplers start: a number, or a tensor that broadcasts against a sample.
            None means D(0; σ_max): one evaluation more in each run, with one row for each row of the condition.

    >>> shrink = FunctionDenoiser(lambda x, sigma, condition: x / (1 + sigma**2))
    >>> shrink(torch.ones(1, 2), 3.0)
    tensor([[0.1000, 0.1000]])
    """

    def __init__(
        self,
        function: Callable[[Tensor, Tensor, Condition], Tensor] | Callable[[Tensor, Tensor], Tensor],
        event_shape: tuple[int, ...] | None = None,
        sigma_min: float = 0.0,
        sigma_max: float = math.inf,
        sigma_data: float = Denoiser.sigma_data,
        mean: float | Tensor | None = None,
    ) -> None:
        super().__init__()
        checks.positive("sigma_data", sigma_data)
        if not callable(function) or isinstance(function, type):
            raise TypeError(f"function must be a function D(x, sigma, condition), got {function!r}")
        self.sigma_data = sigma_data
        self.function = function
        self._takes_condition = _takes_three(function)
        self.event_shape = event_shape
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        checks.at_least("sigma_min", sigma_min, 0)
        checks.ordered("sigma_min", sigma_min, "sigma_max", sigma_max)
        self._mean = None if mean is None else _mean_for(mean, event_shape)

    @torch.no_grad()
    def mean(
        self, sigma_max: float, condition: Condition = None, event_shape: Sequence[int] | None = None
    ) -> Float[Tensor, "rows *event_or_ones"]:
        """The given mean, or D(0; σ_max), one row or one for each row of the condition."""
        if self._mean is not None:
            return self._mean[None]
        shape = self.event_shape if event_shape is None else tuple(event_shape)
        if shape is None:
            raise ValueError("event_shape must be given for a denoiser without event_shape, got None")
        device = device_of(self, condition)
        origin = torch.zeros(1 if condition is None else len(condition), *shape, device=device)
        return self(origin.to(float64_on(device)), sigma_max, condition)

    def denoise(
        self, x: Float[Tensor, "batch *event"], sigma: Float64[Tensor, "*batch_or_none"], condition: Condition
    ) -> Float[Tensor, "batch *event"]:
        """`function(x, sigma, condition)`."""
        if self._takes_condition:
            return self.function(x, sigma, condition)  # type: ignore[call-arg]
        if condition is not None:
            raise ValueError("condition must be None for a function D(x, sigma): write it as D(x, sigma, condition)")
        return self.function(x, sigma)  # type: ignore[call-arg]


def _mean_for(mean: float | Tensor, event_shape: tuple[int, ...] | None) -> Float64[Tensor, "*event_or_ones"]:
    found = torch.as_tensor(mean, dtype=torch.float64)
    if not all_finite(found):
        raise ValueError(f"mean must be finite, got {count_not_finite(found)}")
    if event_shape is not None and (
        found.ndim > len(event_shape)
        or any(size not in (1, wanted) for size, wanted in zip(found.shape[::-1], event_shape[::-1], strict=False))
    ):
        raise ValueError(f"mean must be a number or broadcast against a sample {event_shape}, got {tuple(found.shape)}")
    return found


def _takes_three(function: Callable[..., Tensor]) -> bool:
    """Whether a function can be called with three arguments; True where that is not known.

    Raises:
        TypeError: it can be called with neither two nor three.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return True
    for count in (3, 2):
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        return count == 3
    raise TypeError(f"function must be called as D(x, sigma, condition) or D(x, sigma), got one with {signature}")
