"""Counts, counts of a total, and columns of zeros and ones: distributions of integers whose means depend on u.

    counts       q(n | u) = Γ(n + r)/(Γ(r) n!) · (r/(r + μ))ʳ (μ/(r + μ))ⁿ,     μ = e^η(u)
    totals       q(n | u) = T!/(n! (T − n)!) · pⁿ (1 − p)^(T − n),              p/(1 − p) = e^η(u)/T
    0 and 1      q(1 | u) = 1/(1 + e^−η(u))

The negative binomial distribution is Poisson's for large r, a number of each column; its variance is μ + μ²/r. How many
of T persons are ill or of T trials succeed varies less than that, by T p (1 − p); T, a number of each column that no
simulation exceeds, is learned, too. Densities are those of n + v with v uniform in ±½, so that they can be compared
with those of Gaussians. Negative numbers, and others than 0 and 1 where all simulations had these, have a small density
that does not depend on u. More than a total is taken as the total, much less likely.
"""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn

from openedm.networks.mixtures import ConditionalMixture, Outputs

__all__ = ["CountMixture", "DispersedCounts", "TotalMixture"]

LARGEST, START = 12.0, 3.0
"""ln r is kept between the negative of the first and itself, and starts at the second."""

MAX_LOG_MEAN = 40.0

LOG_OUTSIDE = -14.0
"""ln of the density of what no count is, less ln 2 for each step away: whatever u is, so that it tells nothing of u."""

FAR = -0.9
"""Where r + μ is smaller by this share than for the likeliest u, logarithms are subtracted; else that would cancel."""

ABOVE = 1.02
"""A total starts from so many times the largest count."""


def at_mean(m: Float[Tensor, "..."], r: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """ln q(m) of negative binomial distributions whose mean is m, or a half for 0.

    Args:
        m: counts.
        r: sizes, > 0, of a shape that goes with that of m.
    """
    mean = m.clamp_min(0.5)
    counts = (m + r).lgamma() - r.lgamma() - (m + 1).lgamma()
    return counts + m * mean.log() + r * r.log() - (m + r) * (mean + r).log()


def negative_binomial(
    n: Float[Tensor, "..."], eta: Float[Tensor, "..."], r: Float[Tensor, "..."], highest: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """ln q(n) of negative binomial distributions, from that of those whose mean is n, so that large n do not cancel.

    Args:
        n, eta, r: counts, logarithms of means, sizes.
        highest: `at_mean(n, r)`.
    """
    near = n.clamp_min(0.5)
    off = eta - near.log()
    change = near * off.expm1() / (near + r)
    far = torch.logaddexp(r.log(), eta) - (near + r).log()
    return highest + n * off - (n + r) * torch.where(change > FAR, change.clamp_min(FAR).log1p(), far)


def at_odds(m: Float[Tensor, "..."], total: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """ln q(m) of binomial distributions whose odds are m to T − m, with a half for 0.

    Args:
        m, total: counts and their totals, m ≤ T.
    """
    rest = total - m
    odds = m.clamp_min(0.5).log() - rest.clamp_min(0.5).log()
    ways = (total + 1).lgamma() - (m + 1).lgamma() - (rest + 1).lgamma()
    return ways + m * odds - total * nn.functional.softplus(odds)


def binomial(
    n: Float[Tensor, "..."], eta: Float[Tensor, "..."], total: Float[Tensor, "..."], highest: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """ln q(n) of binomial distributions, from that of those whose odds are n to T − n, as `negative_binomial`.

    Args:
        n, eta, total: counts, logarithms of the odds with ln T added, and totals.
        highest: `at_odds(n, total)`.
    """
    near, rest = n.clamp_min(0.5), (total - n).clamp_min(0.5)
    odds = near.log() - rest.log()
    off = eta - total.log() - odds
    change = near / (near + rest) * off.expm1()
    far = nn.functional.softplus(odds + off) - nn.functional.softplus(odds)
    close = change.clamp_min(FAR).log1p()
    return highest + n * off - total * torch.where(change > FAR, close, far)


def outside_or(
    n: Float[Tensor, "..."], possible: Bool[Tensor, "..."], log_probs: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """ln q where n is possible, and else what tells nothing of u."""
    return torch.where(possible, log_probs, LOG_OUTSIDE - n.abs() * math.log(2))


class CountMixture(ConditionalMixture):
    """q(y | u) of integers y + v, each column independent of the others given u and the component.

    Args:
        condition_dim, dim: dimensions of u and y.
        sizes: those of `ConditionalMixture`.

    Raises:
        ValueError: a count is out of its range.
    """

    structure = "counts"
    curves = True
    fast: tuple[str, ...] = ("log_size",)

    binary: Tensor

    def __init__(self, condition_dim: int, dim: int, **sizes: Any) -> None:
        super().__init__(condition_dim, dim, **sizes)
        self.log_size = nn.Parameter(torch.full((self.members, self.components, dim), START))
        self.register_buffer("binary", torch.zeros(self.members, 1, dim, dtype=torch.bool))

    @property
    def outputs_each(self) -> int:
        """The number of outputs for one component: its weight and η."""
        return 1 + self.dim

    def parameters_of(self, u: Float[Tensor, "members rows condition"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Not supported: this is no mixture of Gaussians.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("CountMixture has no parameters of Gaussians")

    @property
    def size(self) -> Float[Tensor, "members components dim"]:
        """r."""
        return self.log_size.clamp(-LARGEST, LARGEST).exp()

    def _terms(self, outputs: Outputs) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (members, rows, K), η (…, K, dim), and r, which broadcasts with η."""
        eta = outputs[..., 1 : 1 + self.dim].clamp(-MAX_LOG_MEAN, MAX_LOG_MEAN)
        return outputs[..., 0], eta, self.size[:, None]

    def _density(self, y: Float[Tensor, "members rows dim"], outputs: Outputs) -> Float[Tensor, "members rows"]:
        logits, eta, size = self._terms(outputs)
        n = y.round()[..., None, :]
        bits = outside_or(n, n <= 1, n * eta - nn.functional.softplus(eta))
        each = outside_or(n, n >= 0, torch.where(self.binary[:, None], bits, self._counts(y, n, eta, size)))
        result: Tensor = (logits.log_softmax(-1) + each.sum(-1)).logsumexp(-1)
        return result

    def _counts(
        self, y: Float[Tensor, "members rows dim"], n: Float[Tensor, "members rows one dim"], eta: Tensor, size: Tensor
    ) -> Float[Tensor, "members rows components dim"]:
        """ln q(n | η) of negative binomial distributions."""
        return negative_binomial(n, eta, size, self._at_mean(y, size))

    def _at_mean(
        self, y: Float[Tensor, "members rows dim"], size: Tensor
    ) -> Float[Tensor, "members rows components dim"]:
        """ln q of distributions whose mean is n, or near it where that cannot be.

        Densities are computed from these, so that large numbers do not cancel. Of one observation at many u, rows that
        follow on an equal one, they are not computed anew.
        """
        inverse: slice | Tensor = slice(None)
        if y.stride(0) == 0:  # the same of all members
            different, inverse = torch.unique_consecutive(y[0], dim=0, return_inverse=True)
            y = different[None]
        return self._highest(y.round().clamp_min(0)[:, :, None].double(), size.double()).to(y)[:, inverse]

    def _highest(self, m: Float64[Tensor, "some rows one dim"], size: Tensor) -> Float64[Tensor, "..."]:
        """ln q(m) of the distribution whose mean is m, or a half for 0."""
        return at_mean(m, size)

    @torch.no_grad()
    def sample(self, u: Float[Tensor, "rows condition"], generator: torch.Generator) -> Float[Tensor, "rows dim"]:
        """One y for each row of u; row i is drawn from member i mod `members`."""
        logits, eta, size = self._terms(self._outputs(self._grouped(u)))
        uniform = torch.rand(logits.shape[:2], generator=generator).to(u)
        chosen = (logits.softmax(-1).cumsum(-1) < uniform[..., None]).sum(-1).clamp_max(self.components - 1)
        place = chosen[..., None, None].expand(-1, -1, 1, self.dim)
        eta, size = (each.expand(eta.shape).gather(2, place)[:, :, 0].cpu() for each in (eta, size))
        counts = self._draw(eta, size, generator)
        bits = torch.rand(eta.shape, generator=generator) < eta.sigmoid()
        n = torch.where(self.binary.cpu(), bits.to(eta), counts)
        y = (n + torch.rand(n.shape, generator=generator) - 0.5).to(u)
        return y.transpose(0, 1).flatten(0, 1)[: len(u)]

    def _draw(
        self,
        eta: Float[Tensor, "members rows dim"],
        size: Float[Tensor, "members rows dim"],
        generator: torch.Generator,
    ) -> Float[Tensor, "members rows dim"]:
        """Counts of these η and r."""
        return torch.poisson(torch._standard_gamma(size, generator) / size * eta.exp(), generator)

    @torch.no_grad()
    def fit_linear(self, y: Float[Tensor, "rows dim"], u: Float[Tensor, "rows condition"]) -> None:
        """Start from η that is linear in u, by least squares of what is linear in it near the mean."""
        n = y.double().round()
        binary = n.amax(0) <= 1
        self.binary.copy_(binary.expand_as(self.binary))
        mean = n.mean(0).clamp(0.01, None)
        logarithms = (n + 0.5).log()
        share = mean.clamp_max(0.99)
        logits = (share / (1 - share)).log() + (n - share) / (share * (1 - share))
        super().fit_linear(torch.where(binary, logits, logarithms), u)

    def _set_factor(
        self, factor: Float[Tensor, "dim dim"], bias: Float[Tensor, "members one components outputs"]
    ) -> None:
        """Nothing: there is no factor."""

    def _empty(self) -> ConditionalMixture:
        return type(self)(self.condition_dim, self.dim, **self._sizes())


class TotalMixture(CountMixture):
    """q(y | u) of integers y + v that are counts of a total: binomial distributions.

    Args:
        condition_dim, dim: dimensions of u and y.
        sizes: those of `ConditionalMixture`.

    Raises:
        ValueError: a count is out of its range.
    """

    structure = "totals"

    largest: Tensor
    start: Tensor

    def __init__(self, condition_dim: int, dim: int, **sizes: Any) -> None:
        super().__init__(condition_dim, dim, **sizes)
        with torch.no_grad():
            self.log_size.zero_()
        self.register_buffer("largest", torch.ones(self.members, 1, dim))
        self.register_buffer("start", torch.ones(self.members, 1, dim))

    @property
    def size(self) -> Float[Tensor, "members components dim"]:
        """T, an integer; its gradient is that of the number that is rounded."""
        exact = self.largest + self.start * self.log_size.clamp(-LARGEST, LARGEST).exp()
        return exact + (exact.round() - exact).detach()

    def _counts(
        self, y: Float[Tensor, "members rows dim"], n: Float[Tensor, "members rows one dim"], eta: Tensor, size: Tensor
    ) -> Float[Tensor, "members rows components dim"]:
        """ln q(n | η) of binomial distributions."""
        above = (n - size).clamp_min(0)
        counts = binomial(n - above, eta, size, self._at_mean(y, size))
        return torch.where(above > 0, counts + LOG_OUTSIDE - 2 * above.log1p(), counts)

    def _highest(self, m: Float64[Tensor, "some rows one dim"], size: Tensor) -> Float64[Tensor, "..."]:
        """ln q(m) of the distribution whose odds are m to T − m, with a half for 0."""
        return at_odds(torch.minimum(m, size), size)

    def _draw(
        self,
        eta: Float[Tensor, "members rows dim"],
        size: Float[Tensor, "members rows dim"],
        generator: torch.Generator,
    ) -> Float[Tensor, "members rows dim"]:
        return torch.binomial(size, (eta - size.log()).sigmoid(), generator)

    @torch.no_grad()
    def fit_linear(self, y: Float[Tensor, "rows dim"], u: Float[Tensor, "rows condition"]) -> None:
        """Start from η that is linear in u, with the same total for all columns, a little above the largest count."""
        n = y.double().round()
        largest = n.amax(0).clamp_min(1)
        self.largest.copy_(largest.expand_as(self.largest))
        self.start.copy_((ABOVE * largest.max() + 0.5 - largest).expand_as(self.start))
        super().fit_linear(y, u)


class DispersedCounts(CountMixture):
    """As `CountMixture`, but r depends on u: what counts vary by may be a parameter, or differ with their mean.

    Args:
        condition_dim, dim: dimensions of u and y.
        sizes: those of `ConditionalMixture`.

    Raises:
        ValueError: a count is out of its range.
    """

    structure = "dispersed_counts"

    @property
    def outputs_each(self) -> int:
        """The number of outputs for one component: its weight, η and what is added to ln r."""
        return 1 + 2 * self.dim

    def _terms(self, outputs: Outputs) -> tuple[Tensor, Tensor, Tensor]:
        logits, eta, _ = super()._terms(outputs)
        sizes = self.log_size[:, None] + outputs[..., 1 + self.dim :]
        return logits, eta, sizes.clamp(-LARGEST, LARGEST).exp()

    def _at_mean(self, y: Float[Tensor, "members rows dim"], size: Tensor) -> Float[Tensor, "..."]:
        return self._highest(y.round().clamp_min(0)[:, :, None].double(), size.double()).to(y)
