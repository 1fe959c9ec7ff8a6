"""Samples with a condition each: the parameters of simulations with what they gave, regression in general."""

from jaxtyping import Float, Shaped
from torch import Tensor

from openedm.data.dataset import Indices, InMemory, Kind, as_float, as_index


class Pairs(InMemory):
    """Samples x with a float condition each, both held in memory.

    >>> import torch
    >>> pairs = Pairs(torch.zeros(5, 2), torch.arange(15.0).reshape(5, 3))
    >>> pairs.fetch([1])
    (tensor([[0., 0.]]), tensor([[3., 4., 5.]]))
    >>> pairs.describe()
    '5 vectors of 2 with conditions of 3'

    Args:
        x: `(num_samples, *event)`, as for `InMemory`.
        condition: `(num_samples, *condition)`, floating point, in any units; kept in float32.
        allow_nan: whether a condition may hold NaN, which stands for what is absent, such as members of a set.
        kind: as for `InMemory`.

    Raises:
        TypeError: `x` or `condition` has another dtype.
        ValueError: the numbers of rows differ, the condition has no axis of its own, a value is not finite (in float32,
            for conditions), or as for `InMemory`; names the first such row.
    """

    condition_shape: tuple[int, ...]

    def __init__(
        self,
        x: Shaped[Tensor, "samples *event"],
        condition: Float[Tensor, "rows *condition"],
        *,
        allow_nan: bool = False,
        kind: Kind | None = None,
    ) -> None:
        super().__init__(x, kind=kind)
        self._condition = _checked(condition, len(x), allow_nan)
        self.condition_shape = tuple(condition.shape[1:])

    def fetch(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """The samples at `indices`, and their conditions."""
        index = as_index(indices, len(self))
        return as_float(self._x[index]), self._condition[index]


def _checked(condition: Tensor, samples: int, allow_nan: bool) -> Tensor:
    if not condition.is_floating_point():
        raise TypeError(f"condition must be floating point, got {condition.dtype}")
    if condition.dim() < 2 or len(condition) != samples or condition.numel() == 0:
        raise ValueError(
            f"condition must have shape ({samples}, *condition), one row per sample, got {tuple(condition.shape)}"
        )
    condition = condition.detach().float()
    bad = condition.isinf() if allow_nan else ~condition.isfinite()
    if bool(bad.any()):
        row = int(bad.flatten(1).any(1).nonzero()[0])
        allowed = "finite or NaN" if allow_nan else "finite"
        found = "infinity" if allow_nan else "NaN or infinity"
        raise ValueError(f"condition must be {allowed}, but condition[{row}] has {found}")
    return condition
