"""Metrics of one's own in the report of an evaluation, beside those of the package."""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from openedm.ground.choices import Choice

__all__ = ["OwnMetric"]

NUM_BOOTSTRAP = 20


class OwnMetric(Choice, ABC):
    """A number that compares generated with real samples by their features. A subclass defines `measure`.

    A frozen dataclass; on the command line `openedm evaluate RUN --import my_parts --own_metric MyMetric`.
    """

    @property
    def name(self) -> str:
        """What the report calls it: the name of the class."""
        return type(self).__name__

    @abstractmethod
    def measure(self, made: Float[Tensor, "made dim"], real: Float[Tensor, "real dim"]) -> float:
        """The number, of the features of generated and of real samples, one row a sample."""

    def checked(self, made: Float[Tensor, "made dim"], real: Float[Tensor, "real dim"]) -> float:
        """The number.

        Raises:
            TypeError: `measure` returns something else than a number.
            ValueError: the number is not finite.
        """
        value = self.measure(made, real)
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{self.name}.measure must return a number, got {type(value).__name__}") from error
        if not math.isfinite(number):
            raise ValueError(f"{self.name}.measure must return a finite number, got {number}")
        return number

    def error(self, made: Float[Tensor, "made dim"], real: Float[Tensor, "real dim"], seed: int) -> float:
        """The standard deviation over sets of rows drawn again with replacement, on both sides."""
        generator = torch.Generator().manual_seed(seed)

        def again(x: Tensor) -> Tensor:
            return x[torch.randint(len(x), (len(x),), generator=generator)]

        return float(torch.tensor([self.checked(again(made), again(real)) for _ in range(NUM_BOOTSTRAP)]).std())
