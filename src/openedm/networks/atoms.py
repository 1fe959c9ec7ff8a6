"""Columns in which single values recur: the zeros of dry days, the limit of a sensor, yes and no.

    q(y | u) = p_a(u)                                       where y is the value a
             = (1 − Σ_a p_a(u)) N(y; μ(u), s²(u))/Z(u)      elsewhere

Such values have a probability, and a density has none there: Gaussians would become ever narrower around them. All
probabilities and s are functions of u, and μ_j is one of u and of the columns before: m_j(u) − Σ_i L_ji (y_i − m_i(u))
over those that are not at such a value. Where one of the values is an end, beyond which there is nothing, the Gaussian
ends there as well, and Z is the share that is left of it: a limit at which a sensor stops is learned as that.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn
from torch.special import log_ndtr, ndtri

from openedm.networks.counts import LOG_OUTSIDE
from openedm.networks.mixtures import MAX_LOG_DIAGONAL, ConditionalMixture, Outputs
from openedm.networks.recurring import MOST, SAME, all_recurring, cut_off, is_at, log_shares

__all__ = ["AtomMixture", "CensoredMixture", "log_between"]

NO_END, MOST_DEVIATIONS = 1e6, 30.0
"""An end that there is not, and how many standard deviations away an end still counts."""


def _below(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """An interval or its mirror image, whose middle is below 0, so that shares do not cancel; and whether mirrored."""
    above = low + high > 0
    return torch.where(above, -high, low), torch.where(above, -low, high), above


def _gaussian(share: Float64[Tensor, "*batch"]) -> Float64[Tensor, "*batch"]:
    """The number below which a share of a standard Gaussian lies, not far beyond where float64 tells shares apart."""
    deviations: Tensor = ndtri(share)
    return deviations.clamp(-MOST_DEVIATIONS, MOST_DEVIATIONS)


def log_between(low: Float[Tensor, "*batch"], high: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """ln of the share of a standard Gaussian between two numbers, without cancellation in its tails."""
    low, high, _ = _below(low, high)
    most: Tensor = log_ndtr(high)
    least: Tensor = log_ndtr(low)
    return most + (-(least - most).exp().clamp_max(1 - SAME)).log1p()


class AtomMixture(ConditionalMixture):
    """q(y | u) of columns with values that recur, one column after the other.

    Args:
        condition_dim, dim: dimensions of u and y.
        sizes: those of `ConditionalMixture`.

    Raises:
        ValueError: a count is out of its range.
    """

    structure = "atoms"
    curves = True

    atoms: Tensor
    low: Tensor
    high: Tensor
    rest: Tensor
    _strict: Tensor

    def __init__(self, condition_dim: int, dim: int, **sizes: Any) -> None:
        super().__init__(condition_dim, dim, **sizes)
        self.lower = nn.Parameter(torch.zeros(self.members, self.components, dim, dim))
        self.register_buffer("_strict", torch.ones(dim, dim).tril(-1), persistent=False)
        self.register_buffer("atoms", torch.full((self.members, 1, 1, dim, MOST), math.nan))
        self.register_buffer("low", torch.full((self.members, 1, 1, dim), -NO_END))
        self.register_buffer("high", torch.full((self.members, 1, 1, dim), NO_END))
        self.register_buffer("rest", torch.zeros(self.members, 1, 1, dim))

    @property
    def outputs_each(self) -> int:
        """The number of outputs for one component: its weight, means, scales and logits of values that recur."""
        return 1 + (2 + MOST) * self.dim

    def parameters_of(self, u: Float[Tensor, "members rows condition"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Not supported: this is no mixture of Gaussians.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("AtomMixture has no parameters of Gaussians")

    def _terms(self, outputs: Outputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits (members, rows, K), μ and ln 1/s (…, K, dim), ln p of what recurs and of the rest (…, MOST + 1)."""
        logits, means, logs, *odds = outputs.tensor_split([1 + i * self.dim for i in range(MOST + 2)], -1)
        shares = log_shares(torch.stack(odds, -1), self.atoms, self.rest.expand(means.shape))
        return logits[..., 0], means, logs.clamp(-MAX_LOG_DIAGONAL, MAX_LOG_DIAGONAL), shares

    def _ends(self, means: Tensor, logs: Tensor) -> tuple[Tensor, Tensor]:
        """Both ends of each column, in standard deviations from μ."""
        ends = ((end - means) * logs.exp() for end in (self.low, self.high))
        low, high = (end.clamp(-MOST_DEVIATIONS, MOST_DEVIATIONS) for end in ends)
        return low, high

    def _density(self, y: Float[Tensor, "members rows dim"], outputs: Outputs) -> Float[Tensor, "members rows"]:
        logits, means, logs, shares = self._terms(outputs)
        y = cut_off(y)[..., None, :]
        at = is_at(y, self.atoms)
        errors = torch.where(at.any(-1), 0.0, y - means)
        means = means - torch.einsum("mrkj,mkij->mrki", errors, self.lower * self._strict)
        gaussian = logs - 0.5 * ((y - means) * logs.exp()).square() - 0.5 * math.log(2 * math.pi)
        known, rest = self._log_shares(means, logs, shares)
        known, rest = torch.where(at, known, 0.0).sum(-1), rest + gaussian
        each = torch.where(at.any(-1), known, rest)
        result: Tensor = (logits.log_softmax(-1) + each.sum(-1)).logsumexp(-1)
        return result

    def beyond(self, y: Float[Tensor, "rows dim"]) -> Bool[Tensor, "rows dim"]:
        """Which values lie beyond an end."""
        y = cut_off(y)
        low, high = self.low[0, 0], self.high[0, 0]
        return (y < low - SAME * (1 + low.abs())) | (y > high + SAME * (1 + high.abs()))

    def _log_shares(self, means: Tensor, logs: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """ln p of what recurs (…, K, dim, MOST), and of the rest over the share of the Gaussian that it is from."""
        return shares[..., :-1], shares[..., -1] - log_between(*self._ends(means, logs))

    @torch.no_grad()
    def sample(self, u: Float[Tensor, "rows condition"], generator: torch.Generator) -> Float[Tensor, "rows dim"]:
        """One y for each row of u; row i is drawn from member i mod `members`."""
        logits, means, logs, shares = self._terms(self._outputs(self._grouped(u)))
        size = (*logits.shape, self.dim)  # of all components; one of them is taken at the end
        random = [torch.rand(size, generator=generator).to(means) for _ in range(2)]
        errors, columns = torch.zeros_like(means), []
        for j in range(self.dim):
            shift = (errors * (self.lower * self._strict)[:, None, :, j]).sum(-1)
            ends = self.low[..., j], self.high[..., j]
            y, at = self._drawn(means[..., j] - shift, logs[..., j], ends, [each[..., j] for each in random], shares, j)
            errors[..., j] = torch.where(at, 0.0, y - means[..., j])
            columns.append(y)
        uniform = torch.rand(logits.shape[:2], generator=generator).to(u)
        chosen = (logits.softmax(-1).cumsum(-1) < uniform[..., None]).sum(-1).clamp_max(self.components - 1)
        place = chosen[..., None, None].expand(-1, -1, 1, self.dim)
        return torch.stack(columns, -1).gather(2, place)[:, :, 0].transpose(0, 1).flatten(0, 1)[: len(u)]

    def _drawn(
        self,
        means: Tensor,
        logs: Tensor,
        ends: tuple[Tensor, Tensor],
        random: Sequence[Tensor],
        shares: Tensor,
        column: int,
    ) -> tuple[Tensor, Tensor]:
        """y of a column of given means, from two uniform numbers each, and whether it is what recurs."""
        sides = [((end - means) * logs.exp()).clamp(-MOST_DEVIATIONS, MOST_DEVIATIONS).double() for end in ends]
        low, high, above = _below(*sides)
        low, high = (log_ndtr(side).exp() for side in (low, high))
        deviations = _gaussian(low + (high - low) * random[0].double())
        deviations = torch.where(above, -deviations, deviations).to(means)
        y = (means + deviations * (-logs).exp()).clamp(*ends)
        number = (shares[..., column, :].exp().cumsum(-1) < random[1][..., None]).sum(-1).clamp_max(MOST)
        for i in range(MOST):
            y = torch.where(number == i, self.atoms[..., column, i], y)
        return y, number < MOST

    @torch.no_grad()
    def fit_linear(self, y: Float[Tensor, "rows dim"], u: Float[Tensor, "rows condition"]) -> None:
        """Find the values that recur, and start from the least-squares fit of the others, with what noise they have.

        What recurs starts from logits that are linear in u, by least squares of what is linear in them near the mean.
        """
        y = cut_off(y.double())
        atoms = all_recurring(y)
        at = is_at(y, atoms)
        free = ~at.any(-1)
        self.atoms.copy_(atoms.expand_as(self.atoms))
        for j in range(self.dim):
            others, known = y[free[:, j], j], atoms[j][~atoms[j].isnan()]
            if not len(others):
                self.rest[..., j] = LOG_OUTSIDE
            elif len(known):
                if float(known.min()) < float(others.min()):
                    self.low[..., j] = float(known.min())
                if float(known.max()) > float(others.max()):
                    self.high[..., j] = float(known.max())
        solution, left = _least_squares(y, free, u)
        scales, lower = _factor(left, free, u.shape[1] + 1)
        self.lower.copy_(lower.expand_as(self.lower))
        rest = torch.where(free.any(0), free.double().mean(0).clamp_min(0.01), 1.0)
        numbers = [solution, _constant(scales, len(solution))]
        for i in range(MOST):
            share = at[..., i].double().mean(0).clamp(0.01, None)
            logits = (
                (share / rest).log()
                + (at[..., i].double() - share) / share
                - (free.double() - rest) / rest * free.any(0)
            )
            numbers.append(_least_squares(logits, torch.ones_like(free), u)[0])
        self._start(torch.cat(numbers, 1), scales)

    def _start(self, numbers: Float64[Tensor, "inputs outputs"], scales: Float64[Tensor, " dim"]) -> None:
        """Start from linear functions of u, means first, and ln 1/s."""
        weight = self.linear.weight.view(self.members, -1, self.components, self.outputs_each)
        bias = self.linear.bias.view(self.members, 1, self.components, self.outputs_each)
        weight[..., 1:] = numbers[:-1, None].to(weight)
        bias[..., 1:] = numbers[-1].to(bias)

    def _empty(self) -> ConditionalMixture:
        return type(self)(self.condition_dim, self.dim, **self._sizes())


class CensoredMixture(AtomMixture):
    """As `AtomMixture`, but what recurs are ends, and stands for all that lies beyond: a sensor that stops there.

        q(y | u) = Φ((a − μ(u))/s) at the lower end a, Φ((μ(u) − b)/s) at the upper end b, N(y; μ(u), s²) between

    s does not depend on u (Tobin 1958).

    Args:
        condition_dim, dim: dimensions of u and y.
        sizes: those of `ConditionalMixture`.

    Raises:
        ValueError: a count is out of its range.
    """

    structure = "censored"
    fast = ("log_scale",)

    def __init__(self, condition_dim: int, dim: int, **sizes: Any) -> None:
        super().__init__(condition_dim, dim, **sizes)
        self.log_scale = nn.Parameter(torch.zeros(self.members, self.components, dim))

    @property
    def outputs_each(self) -> int:
        """The number of outputs for one component: its weight and means."""
        return 1 + self.dim

    def _terms(self, outputs: Outputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        means = outputs[..., 1:]
        logs = self.log_scale[:, None].clamp(-MAX_LOG_DIAGONAL, MAX_LOG_DIAGONAL).expand(means.shape)
        return outputs[..., 0], means, logs, means[..., None]

    def _log_shares(self, means: Tensor, logs: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self._ends(means, logs)
        below, above = log_ndtr(low)[..., None], log_ndtr(-high)[..., None]
        return torch.where(self.atoms == self.low[..., None], below, above), torch.zeros_like(means)

    def _drawn(
        self,
        means: Tensor,
        logs: Tensor,
        ends: tuple[Tensor, Tensor],
        random: Sequence[Tensor],
        shares: Tensor,
        column: int,
    ) -> tuple[Tensor, Tensor]:
        y = (means + _gaussian(random[0].double()).to(means) * (-logs).exp()).clamp(*ends)
        return y, (y == ends[0]) | (y == ends[1])

    def _start(self, numbers: Float64[Tensor, "inputs outputs"], scales: Float64[Tensor, " dim"]) -> None:
        super()._start(numbers[:, : self.dim], scales)
        self.log_scale.copy_(scales.expand_as(self.log_scale))


def _constant(values: Float64[Tensor, " dim"], rows: int) -> Float64[Tensor, "rows dim"]:
    """A linear function of u that is none: all rows but the last are zero."""
    return torch.cat([values.new_zeros(rows - 1, len(values)), values[None]])


def _least_squares(
    y: Float64[Tensor, "rows dim"], used: Bool[Tensor, "rows dim"], u: Float[Tensor, "rows condition"]
) -> tuple[Float64[Tensor, "inputs dim"], Float64[Tensor, "rows dim"]]:
    """Slopes, with offsets as the last row, and what they leave; of each column from the rows that it uses.

    A ridge makes the fit stable where few rows are used. What is left of rows that are not used is zero.
    """
    inputs = torch.cat([u.double(), torch.ones_like(u[:, :1], dtype=torch.float64)], 1)
    products = torch.einsum("ri,rj,rd->dij", inputs, inputs, used.double())
    ridge = torch.full((inputs.shape[1],), 1.0, dtype=torch.float64, device=y.device)
    ridge[-1] = 1e-6
    answers = torch.einsum("ri,rd->di", inputs, torch.where(used, y, 0.0))
    solution = torch.linalg.solve(products + torch.diag(ridge), answers[..., None])[..., 0].T
    return solution, torch.where(used, y - inputs @ solution, 0.0)


def _factor(
    left: Float64[Tensor, "rows dim"], used: Bool[Tensor, "rows dim"], inputs: int
) -> tuple[Float64[Tensor, " dim"], Float64[Tensor, "dim dim"]]:
    """ln 1/s and L of what least squares with so many inputs left, from pairs of columns in the rows that both use."""
    pairs = used.double().T @ used.double() - inputs
    products = left.T @ left
    covariance = torch.where(
        pairs > 0, products / pairs.clamp_min(1), torch.eye(len(pairs), dtype=products.dtype).to(products)
    )
    covariance.diagonal().clamp_(min=1e-8)
    factor, wrong = torch.linalg.cholesky_ex(covariance)
    if bool(wrong):  # pairs of different rows need not go together
        factor = covariance.diagonal().sqrt().diag_embed()
    inverse = torch.linalg.inv(factor)
    scales = inverse.diagonal()
    return scales.log(), (inverse / scales[:, None]).tril(-1)
