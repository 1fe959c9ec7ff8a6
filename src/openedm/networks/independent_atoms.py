"""Draws of one distribution in which single values recur, such as zeros of dry days."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from openedm.networks.independent import IndependentMixture
from openedm.networks.mixtures import MAX_LOG_DIAGONAL, ConditionalMixture, Outputs
from openedm.networks.recurring import MOST, all_recurring, cut_off, is_at, log_shares

__all__ = ["IndependentAtoms"]


class IndependentAtoms(IndependentMixture):
    """Draws from one distribution in which values recur: a mixture of Gaussians and these values that depends on u.

    Args:
        condition_dim, dim: dimension of u, number of draws.
        sizes: those of `ConditionalMixture`.

    Raises:
        ValueError: a count is out of its range.
    """

    structure = "independent_atoms"

    atoms: Tensor

    def __init__(self, condition_dim: int, dim: int, **sizes: Any) -> None:
        super().__init__(condition_dim, dim, **sizes)
        self.register_buffer("atoms", torch.full((self.members, 1, 1, 1, MOST), math.nan))

    @property
    def outputs_each(self) -> int:
        """The number of outputs for one component: its weight, mean, scale and logits of values that recur."""
        return 3 + MOST

    def _all_terms(self, outputs: Outputs) -> tuple[Tensor, Tensor, Tensor]:
        """μ and ln 1/s, (members, rows, 1, K), and ln weights of what recurs and of the Gaussian, (…, MOST + 1)."""
        logits, means, logs, *odds = outputs[:, :, None].unbind(-1)
        shares = log_shares(torch.stack(odds, -1), self.atoms, torch.zeros_like(means))
        weights = logits.log_softmax(-1)[..., None] + shares
        return means, logs.clamp(-MAX_LOG_DIAGONAL, MAX_LOG_DIAGONAL), weights

    def _density(self, y: Float[Tensor, "members rows dim"], outputs: Outputs) -> Float[Tensor, "members rows"]:
        means, logs, weights = self._all_terms(outputs)
        y = cut_off(y)
        at = is_at(y, self.atoms[:, 0])
        known = torch.where(at, weights[..., :-1].logsumexp(-2), 0.0).sum(-1)
        gaussian = logs - 0.5 * ((y[..., None] - means) * logs.exp()).square()
        rest = (weights[..., -1] + gaussian).logsumexp(-1) - 0.5 * math.log(2 * math.pi)
        return torch.where(at.any(-1), known, rest).sum(-1)

    @torch.no_grad()
    def sample(self, u: Float[Tensor, "rows condition"], generator: torch.Generator) -> Float[Tensor, "rows dim"]:
        """One y for each row of u; row i is drawn from member i mod `members`."""
        means, logs, weights = self._all_terms(self._outputs(self._grouped(u)))
        each = torch.cat([weights[..., -1], weights[..., :-1].logsumexp(-2)], -1)[:, :, 0]  # the Gaussians, what recurs
        chosen = self._chosen(each, generator)
        component = chosen.clamp_max(self.components - 1)
        noise = torch.randn(chosen.shape, generator=generator).to(u)
        y = means[:, :, 0].gather(-1, component) + noise * (-logs[:, :, 0].gather(-1, component)).exp()
        for i in range(MOST):
            y = torch.where(chosen == self.components + i, self.atoms[:, 0, 0, :, i, None], y)
        return y.transpose(0, 1).flatten(0, 1)[: len(u)]

    @torch.no_grad()
    def fit_linear(self, y: Float[Tensor, "rows dim"], u: Float[Tensor, "rows condition"]) -> None:
        """Find the values that recur, and start from Gaussians spread evenly over all others, whatever u is."""
        values = cut_off(y.flatten().double())
        atoms = all_recurring(values[:, None])
        at = is_at(values, atoms[0])
        others = values[~at.any(-1)]
        self.atoms.copy_(atoms.expand_as(self.atoms))
        self._spread(others if len(others) > 1 else values)
        rest = (~at.any(-1)).double().mean().clamp_min(0.01)
        odds = (at.double().mean(0).clamp_min(1e-3) / rest).log()
        self.linear.bias.view(self.members, 1, self.components, self.outputs_each)[..., 3:] = odds.to(u)

    def _empty(self) -> ConditionalMixture:
        return IndependentAtoms(self.condition_dim, self.dim, **self._sizes())
