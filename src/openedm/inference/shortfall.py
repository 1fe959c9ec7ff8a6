"""Whether there are enough simulations: what a posterior is estimated to lose because there are no more of them.

    s = (E_training ln q(θ | x) − E_held-out ln q(θ | x)) / 2

A fit of maximum likelihood does better on what it was fitted to than on new data, and with infinitely many simulations
it would come out half-way between the two: each is off by the same amount, to first order in 1/n (Akaike 1974,
Takeuchi 1976). So s, in nats, is the Kullback–Leibler divergence to what the same network could learn; it falls as 1/n.
A width that is 20 % too large costs 0.03 nats, a mean that is off by 0.3 standard deviations 0.045.
"""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

__all__ = ["ENOUGH", "Shortfall"]

ENOUGH = 0.05
"""Nats a parameter that may be lost: about those of the mean and width above."""


@dataclass(frozen=True)
class Shortfall:
    """An estimate of what is lost for want of simulations.

    Attributes:
        nats: s.
        error: its standard error.
        dim: number of parameters.
        simulations: how many there are.
    """

    nats: float
    error: float
    dim: int
    simulations: int

    @classmethod
    def of(
        cls, trained: Float[Tensor, " rows"], held_out: Float[Tensor, " others"], dim: int, simulations: int
    ) -> "Shortfall":
        """The estimate from ln q of simulations that were trained on and of others; ∞ where one is not finite."""
        rows = [values.double() for values in (trained, held_out)]
        difference = float(rows[0].mean() - rows[1].mean()) / 2
        error = math.sqrt(sum(float(values.var()) / len(values) for values in rows if len(values) > 1)) / 2
        if not math.isfinite(difference):
            return cls(math.inf, math.inf, dim, simulations)
        return cls(difference, error, dim, simulations)

    @property
    def is_large(self) -> bool:
        """Whether more is lost than means and widths can bear."""
        return self.nats > ENOUGH * self.dim

    @property
    def needed(self) -> float:
        """How many simulations would bring it down to `ENOUGH`, to one digit: a rough guess, since s falls as 1/n."""
        wanted = self.simulations * self.nats / (ENOUGH * self.dim)
        if not math.isfinite(wanted) or wanted <= 0:
            return wanted
        digit = 10.0 ** math.floor(math.log10(wanted))
        return math.ceil(wanted / digit) * digit

    def __str__(self) -> str:
        allowed = ENOUGH * self.dim
        if not math.isfinite(self.nats):
            return "more simulations are needed: some held-out simulations have no density at all"
        found = f"an estimated {self.nats:.2f} ± {self.error:.2f} nats are lost, {allowed:.2g} are bearable"
        if not self.is_large:
            return f"{self.simulations:,} simulations seem to be enough: {found}"
        return (
            f"more simulations are needed: with {self.simulations:,}, {found}; means and widths of the posterior "
            f"cannot be trusted, some {self.needed:,.0f} simulations may do"
        )
