"""Simulations: parameters, the data that were simulated with them, their prior, and the simulations that failed.

`simulate` returns them, a `Store` keeps them, `fit` learns from them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from openedm.inference.priors import Prior

__all__ = ["Failure", "Simulations"]


@dataclass(frozen=True, order=True)
class Failure:
    """A simulation that gave no result.

    Attributes:
        index: its number, from 0.
        theta: its parameters.
        seed: its seed.
        error: the type and text of the error.
    """

    index: int
    theta: tuple[float, ...]
    seed: int
    error: str

    def __str__(self) -> str:
        values = ", ".join(f"{value:.6g}" for value in self.theta)
        return f"simulation {self.index} (theta = ({values}), seed = {self.seed}): {self.error}"


@dataclass(frozen=True, eq=False)
class Simulations:
    """Parameters, the data that were simulated with them, and the simulations that failed.

    Attributes:
        theta: (n, d).
        x: (n, *x_shape); NaN and infinities as the simulator returned them.
        index: (n,), ascending: the number of the simulation in each row.
        seeds: (n,), of each; −1 where they are not known.
        failures: the simulations that gave no result, in the order of their indices.
        prior: that theta was drawn from; None where it is not known.
    """

    theta: Float32[Tensor, "n d"]
    x: Float32[Tensor, "n *x_shape"]
    index: Int64[Tensor, " n"]
    seeds: Int64[Tensor, " n"]
    failures: tuple[Failure, ...] = ()
    prior: Prior | None = None

    @classmethod
    def of(
        cls, theta: Float[Tensor, "n d"], x: Float[Tensor, "n *x_shape"], prior: Prior | None = None
    ) -> "Simulations":
        """Simulations that were made elsewhere, numbered in the order of their rows.

        >>> len(Simulations.of(torch.zeros(5, 2), torch.ones(5, 3)))
        5
        """
        n = len(theta)
        return cls(theta.float(), x.float(), torch.arange(n), torch.full((n,), -1), prior=prior)

    @classmethod
    def joined(cls, parts: "Sequence[Simulations]") -> "Simulations":
        """The simulations of all parts, in the order of their indices. Parts without results add their failures."""
        failures = tuple(sorted(failure for part in parts for failure in part.failures))
        full = [part for part in parts if len(part)] or list(parts[:1])
        theta, x, index, seeds = (
            torch.cat([getattr(part, name) for part in full]) for name in ("theta", "x", "index", "seeds")
        )
        order = torch.from_numpy(np.argsort(index.numpy()))
        return cls(theta[order], x[order], index[order], seeds[order], failures, parts[0].prior)

    @property
    def names(self) -> Sequence[str] | None:
        """The names of the parameters, or None: those of the prior."""
        return None if self.prior is None else self.prior.names

    def __len__(self) -> int:
        return len(self.theta)
