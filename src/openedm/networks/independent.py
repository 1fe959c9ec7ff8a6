"""Draws of one distribution: their mixture in one dimension depends on u, whatever their number is."""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor, nn

from openedm.networks.counts import LARGEST, MAX_LOG_MEAN, START, at_mean, negative_binomial, outside_or
from openedm.networks.member_linear import MemberLinear
from openedm.networks.mixtures import MAX_LOG_DIAGONAL, ConditionalMixture, Outputs

__all__ = ["IndependentCounts", "IndependentMixture"]

MANY = 1000
"""Counts above are computed in float64, in which ln n! does not cancel."""


class IndependentMixture(ConditionalMixture):
    """Draws y_1, …, y_dim from one mixture of Gaussians in one dimension that depends on u.

    Args:
        condition_dim, dim: dimension of u, number of draws.
        sizes: those of `ConditionalMixture`.

    Raises:
        ValueError: a count is out of its range.
    """

    structure = "independent"

    @property
    def means_each(self) -> int:
        """The number of means for one component."""
        return 1

    @property
    def outputs_each(self) -> int:
        """The number of outputs for one component: its weight, mean and scale."""
        return 3

    def parameters_of(self, u: Float[Tensor, "members rows condition"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Not supported: the draws together are no mixture of a few Gaussians.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("IndependentMixture has no parameters for all draws together")

    def _terms(self, outputs: Outputs) -> tuple[Tensor, Tensor, Tensor]:
        """ln w, μ and ln 1/s, each (members, rows, K)."""
        logits, means, logs = outputs.unbind(-1)
        return logits.log_softmax(-1), means, logs.clamp(-MAX_LOG_DIAGONAL, MAX_LOG_DIAGONAL)

    def _density(self, y: Float[Tensor, "members rows dim"], outputs: Outputs) -> Float[Tensor, "members rows"]:
        weights, means, logs = (term[..., None, :] for term in self._terms(outputs))
        each = weights + logs - 0.5 * ((y[..., None] - means) * logs.exp()).square()
        result: Tensor = each.logsumexp(-1).sum(-1) - 0.5 * self.dim * math.log(2 * math.pi)
        return result

    @torch.no_grad()
    def sample(self, u: Float[Tensor, "rows condition"], generator: torch.Generator) -> Float[Tensor, "rows dim"]:
        """One y for each row of u; row i is drawn from member i mod `members`."""
        grouped = self._grouped(u)
        weights, means, logs = self._terms(self._outputs(grouped))
        chosen = self._chosen(weights, generator)
        noise = torch.randn(chosen.shape, generator=generator).to(u)
        y = means.gather(-1, chosen) + noise * (-logs.gather(-1, chosen)).exp()
        return y.transpose(0, 1).flatten(0, 1)[: len(u)]

    def _chosen(
        self, weights: Float[Tensor, "members rows components"], generator: torch.Generator
    ) -> Int64[Tensor, "members rows dim"]:
        """A component for each draw; the weights are logarithms."""
        uniform = torch.rand(*weights.shape[:2], self.dim, generator=generator).to(weights)
        return (weights.exp().cumsum(-1)[..., None, :] < uniform[..., None]).sum(-1).clamp_max(weights.shape[-1] - 1)

    @torch.no_grad()
    def fit_linear(self, y: Float[Tensor, "rows dim"], u: Float[Tensor, "rows condition"]) -> None:
        """Start from Gaussians spread evenly over all draws, whatever u is."""
        self._spread(y.flatten().double())

    def _spread(self, values: Float64[Tensor, " draws"]) -> None:
        """Spread the Gaussians evenly over values."""
        bias = self.linear.bias.view(self.members, 1, self.components, self.outputs_each)
        levels = (torch.arange(self.components, dtype=torch.float64) + 0.5) / self.components
        bias[..., 1] = torch.quantile(values[: 1 << 20], levels.to(values)).to(bias)
        bias[..., 2] = self._scale_of(values)
        if isinstance(self.layer_out, MemberLinear) and self.components > 1:  # the means are spread already
            self.layer_out.bias.view(self.members, 1, self.components, self.outputs_each)[..., 1] = 0

    def _scale_of(self, values: Float64[Tensor, " draws"]) -> float:
        """What the third output starts from: ln 1/s."""
        return -math.log(float(values.std()) * 2 / (self.components + 1))

    def _empty(self) -> ConditionalMixture:
        return type(self)(self.condition_dim, self.dim, **self._sizes())


class IndependentCounts(IndependentMixture):
    """Draws n_1 + v_1, …, n_dim + v_dim from one mixture of negative binomial distributions, or of zeros and ones.

    As `CountMixture`, but means and r depend on u: θ may be what counts vary by, or the share of zeros.

    Args:
        condition_dim, dim: dimension of u, number of draws.
        sizes: those of `ConditionalMixture`.

    Raises:
        ValueError: a count is out of its range.
    """

    structure = "independent_counts"

    binary: Bool[Tensor, "members 1 1 1"]
    many: Bool[Tensor, " members"]

    def __init__(self, condition_dim: int, dim: int, **sizes: Any) -> None:
        super().__init__(condition_dim, dim, **sizes)
        self.register_buffer("binary", torch.zeros(self.members, 1, 1, 1, dtype=torch.bool))
        self.register_buffer("many", torch.zeros(self.members, dtype=torch.bool))

    def _terms(self, outputs: Outputs) -> tuple[Tensor, Tensor, Tensor]:
        """ln w, η and ln r, each (members, rows, K)."""
        logits, eta, sizes = outputs.unbind(-1)
        return logits.log_softmax(-1), eta.clamp(-MAX_LOG_MEAN, MAX_LOG_MEAN), sizes.clamp(-LARGEST, LARGEST)

    def _density(self, y: Float[Tensor, "members rows dim"], outputs: Outputs) -> Float[Tensor, "members rows"]:
        weights, eta, sizes = (term[..., None, :] for term in self._terms(outputs))
        n, r = y.round()[..., None], sizes.exp()
        m = n.clamp_min(0)
        highest = (at_mean(m.double(), r.double()) if bool(self.many.any()) else at_mean(m, r)).to(y)
        bits = outside_or(n, n <= 1, n * eta - nn.functional.softplus(eta))
        counts = outside_or(n, n >= 0, torch.where(self.binary, bits, negative_binomial(m, eta, r, highest)))
        result: Tensor = (weights + counts).logsumexp(-1).sum(-1)
        return result

    @torch.no_grad()
    def sample(self, u: Float[Tensor, "rows condition"], generator: torch.Generator) -> Float[Tensor, "rows dim"]:
        """One y for each row of u; row i is drawn from member i mod `members`."""
        weights, eta, sizes = self._terms(self._outputs(self._grouped(u)))
        chosen = self._chosen(weights, generator)
        eta, r = eta.gather(-1, chosen).cpu(), sizes.exp().gather(-1, chosen).cpu()
        counts = torch.poisson(torch._standard_gamma(r, generator) / r * eta.exp(), generator)
        bits = torch.rand(eta.shape, generator=generator) < eta.sigmoid()
        n = torch.where(self.binary[..., 0].cpu(), bits.to(eta), counts)
        y = (n + torch.rand(n.shape, generator=generator) - 0.5).to(u)
        return y.transpose(0, 1).flatten(0, 1)[: len(u)]

    @torch.no_grad()
    def fit_linear(self, y: Float[Tensor, "rows dim"], u: Float[Tensor, "rows condition"]) -> None:
        """Start from means spread evenly over all draws, whatever u is."""
        n = y.round().clamp_min(0)
        self.binary.fill_(bool(n.max() <= 1))
        self.many.fill_(bool(n.max() > MANY))
        share = n.mean().clamp(0.01, 0.99)
        super().fit_linear(torch.where(self.binary[0, 0], (share / (1 - share)).log(), (n + 0.5).log()), u)

    def _scale_of(self, values: Float64[Tensor, " draws"]) -> float:
        """What ln r starts from."""
        return START
