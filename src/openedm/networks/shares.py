"""Counts whose sum is known, as how many of N cases fall into each of several kinds: a multinomial distribution.

    q(n | u) = Π_j B(n_j; N − n_1 − … − n_(j−1), p_j(u)),      p_j/(1 − p_j) = e^η_j(u)

B is the binomial distribution, of what the columns before leave. The last column, which follows from the others, tells
nothing: taken as a count of its own it would count twice what they tell. Where the sum is another one than that of the
simulations, the last column has a small density that does not depend on u. Densities are those of n + v with v uniform
in ±½, as in `counts`.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from openedm.networks.counts import CountMixture, at_odds, binomial, outside_or
from openedm.networks.mixtures import ConditionalMixture, Outputs

__all__ = ["ShareMixture"]


class ShareMixture(CountMixture):
    """q(y | u) of integers y + v whose sum is the same in all rows.

    Args:
        condition_dim, dim: dimensions of u and y; dim ≥ 2.
        sizes: those of `ConditionalMixture`.

    Raises:
        ValueError: a count is out of its range.
    """

    structure = "shares"
    curves = False
    fast = ()

    total: Tensor

    def __init__(self, condition_dim: int, dim: int, **sizes: Any) -> None:
        super().__init__(condition_dim, dim, **sizes)
        del self.log_size
        self.register_buffer("total", torch.ones(self.members, 1, 1))

    @property
    def size(self) -> Float[Tensor, "members one one"]:
        """N."""
        return self.total

    def _density(self, y: Float[Tensor, "members rows dim"], outputs: Outputs) -> Float[Tensor, "members rows"]:
        logits, eta, total = self._terms(outputs)
        n = y.round()[..., None, :]
        rest = total - (n.cumsum(-1) - n)
        last = torch.arange(self.dim, device=y.device) == self.dim - 1
        some = rest.clamp_min(1)
        counts = n.clamp_min(0).minimum(some)
        highest = at_odds(counts.double(), some.double()).to(y)
        found = torch.where(last | (rest < 1), 0.0, binomial(counts, eta + some.log(), some, highest))
        each = outside_or(n, (n >= 0) & torch.where(last, n == rest, n <= rest), found)
        result: Tensor = (logits.log_softmax(-1) + each.sum(-1)).logsumexp(-1)
        return result

    def _draw(
        self,
        eta: Float[Tensor, "members rows dim"],
        size: Float[Tensor, "members rows dim"],
        generator: torch.Generator,
    ) -> Float[Tensor, "members rows dim"]:
        """Counts of these η, one column after the other."""
        rest, drawn = size[..., 0].contiguous(), []
        for column in range(self.dim - 1):
            drawn.append(torch.binomial(rest, eta[..., column].sigmoid(), generator))
            rest = rest - drawn[-1]
        return torch.stack([*drawn, rest], -1)

    @torch.no_grad()
    def fit_linear(self, y: Float[Tensor, "rows dim"], u: Float[Tensor, "rows condition"]) -> None:
        """Start from η that is linear in u, by least squares of ln n_j less that of what comes after it.

        Raises:
            ValueError: the rows have different sums.
        """
        n = y.double().round()
        sums = n.sum(1)
        if bool((sums != sums[0]).any()):
            raise ValueError(f"y must have one sum in all rows, got {float(sums.min()):g} to {float(sums.max()):g}")
        self.total.fill_(float(sums[0]))
        after = sums[0] - n.cumsum(1)
        ConditionalMixture.fit_linear(self, (n + 0.5).log() - (after.clamp_min(0) + 0.5).log(), u)
