"""Ensembles of conditional mixtures of Gaussians (mixture density networks, Bishop 1994): densities in closed form.

    q_e(y | u) = Σ_k w_k(u) N(y; μ_k(u), (P_k(u)ᵀ P_k(u))⁻¹),     q = mean of the members' q_e

P_k is lower triangular, the Cholesky factor of a precision in reverse order: ln q needs no linear solve. Each member is
a residual network with a linear path beside it, so that linear Gaussian problems are exact from the start; all members
are evaluated together, as batched matrices.
"""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn
from torch.nn import functional

from openedm.ground import checks
from openedm.networks.curves import AlongColumns
from openedm.networks.layers import Residual, seeded
from openedm.networks.member_linear import MemberLinear

__all__ = ["ConditionalDensity", "ConditionalMixture", "Outputs"]

MAX_LOG_DIAGONAL = 9.0
"""The logarithm of P's diagonal is kept between its negative and this, so that factors are finite."""

Outputs = Float[Tensor, "members rows components outputs"]
"""What the networks give for each component at each u."""


class ConditionalDensity(nn.Module, ABC):
    """q(y | u) as the mean of an ensemble's members.

    Attributes:
        condition_dim, dim: dimensions of u and y.
        members: number of members.
        components: number of Gaussians of each member.
        structure: of the noise.
    """

    condition_dim: int
    dim: int
    members: int
    components: int
    structure: str

    @abstractmethod
    def member_log_prob(
        self, y: Float[Tensor, "members rows dim"], u: Float[Tensor, "members rows condition"]
    ) -> Float[Tensor, "members rows"]:
        """ln q_e(y | u) of each member e, for rows that differ between members."""

    @abstractmethod
    def product_log_prob(
        self, y: Float[Tensor, "observations dim"], u: Float[Tensor, "rows condition"]
    ) -> Float64[Tensor, " rows"]:
        """Σᵢ ln q(yᵢ | u) over several y."""

    @abstractmethod
    def member(self, number: int) -> "ConditionalDensity":
        """One member alone; its parameters share the ensemble's memory.

        Args:
            number: 0 ≤ number < members.
        """

    @abstractmethod
    def sample(self, u: Float[Tensor, "rows condition"], generator: torch.Generator) -> Float[Tensor, "rows dim"]:
        """One y for each row of u; row i is drawn from member i mod `members`."""

    def log_prob(self, y: Float[Tensor, "rows dim"], u: Float[Tensor, "rows condition"]) -> Float[Tensor, " rows"]:
        """ln q(y | u): the members' densities averaged."""
        return self.each_log_prob(y, u).logsumexp(0) - math.log(self.members)

    def each_log_prob(
        self, y: Float[Tensor, "rows dim"], u: Float[Tensor, "rows condition"]
    ) -> Float[Tensor, "members rows"]:
        """ln q_e(y | u) of each member e, for the same rows."""
        return self.member_log_prob(y.expand(self.members, *y.shape), u.expand(self.members, *u.shape))


class ConditionalMixture(ConditionalDensity):
    """q(y | u) as an ensemble of mixture density networks.

    Args:
        condition_dim: dimension of u.
        dim: dimension of y.
        members: number of members.
        components: number of Gaussians of each member.
        width: width of the hidden layers.
        num_blocks: number of residual blocks.
        curve: whether the outputs for a column are one function of its place, and not each column's own; only with one
            component, of structures whose outputs are means and what else belongs to a column.

    Raises:
        ValueError: a count is out of its range, or a curve of a structure or with components that cannot be one.
    """

    structure = "full"
    curves = False
    factored = True
    """Whether there is a lower triangle P."""
    fast: tuple[str, ...] = ()
    """Parameters that one number of each column is made of, and that have a long way to go: their rate is larger."""

    _indices: Tensor
    _diagonal: Tensor
    _below: Tensor
    _columns: Tensor
    _rows: Tensor

    def __init__(
        self,
        condition_dim: int,
        dim: int,
        *,
        members: int = 1,
        components: int = 1,
        width: int = 64,
        num_blocks: int = 2,
        curve: bool = False,
    ) -> None:
        super().__init__()
        if curve and not self.curves:
            raise ValueError(f"curve must be False for structure {self.structure!r}, got True")
        if curve and components > 1:
            raise ValueError(f"curve must be False with {components} components, got True")
        counts = {"condition_dim": condition_dim, "dim": dim, "members": members, "components": components}
        for name, count in {**counts, "width": width, "num_blocks": num_blocks}.items():
            checks.size(name, count)
        self.condition_dim, self.dim, self.members, self.components = condition_dim, dim, members, components
        self.width, self.num_blocks, self.curve = width, num_blocks, curve
        outputs = components * self.outputs_each
        self.layer_in = MemberLinear(members, condition_dim, width)
        self.blocks = nn.ModuleList(
            Residual(
                MemberLinear(members, width, width, gain=math.sqrt(2)), MemberLinear(members, width, width, gain=0.0)
            )
            for _ in range(num_blocks)
        )
        self.layer_out: MemberLinear | AlongColumns = (
            self._along_columns() if curve else MemberLinear(members, width, outputs, gain=0.0)
        )
        self.linear = MemberLinear(members, condition_dim, outputs, gain=0.0)
        if isinstance(self.layer_out, MemberLinear) and components > 1:  # equal components would stay equal
            with torch.no_grad():
                means = self.layer_out.bias.view(members, components, -1)[..., 1 : 1 + self.means_each]
                means.copy_(0.5 * torch.randn_like(means))
        if not self.factored:
            return
        rows, columns = torch.tril_indices(dim, dim)
        self.register_buffer("_indices", rows * dim + columns, persistent=False)
        below = rows != columns
        self.register_buffer("_diagonal", (~below).nonzero()[:, 0], persistent=False)
        self.register_buffer("_below", below.nonzero()[:, 0], persistent=False)
        self.register_buffer("_columns", columns[below], persistent=False)
        self.register_buffer("_rows", functional.one_hot(rows[below], dim).float(), persistent=False)

    def _along_columns(self) -> AlongColumns:
        """The layer that gives the outputs of columns that share one function of their place."""
        return AlongColumns(self.members, self.width, (self.dim,), -(-(self.outputs_each - 1) // self.dim))

    def parameters_of(self, u: Float[Tensor, "members rows condition"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """ln w (members, rows, K), μ (…, K, dim), P (…, K, dim, dim) and ln det P (…, K)."""
        logits, means, logs, below = self._raw_parameters(self._outputs(u))
        flat = means.new_zeros(*means.shape[:-1], self.dim * self.dim)
        flat = flat.index_copy(-1, self._indices[self._below], below)
        flat = flat.index_copy(-1, self._indices[self._diagonal], logs.exp())
        matrices = flat.reshape(*flat.shape[:-1], self.dim, self.dim)
        return logits.log_softmax(-1), means, matrices, logs.sum(-1)

    def _raw_parameters(self, outputs: Outputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits (members, rows, K), μ (…, K, dim), the logarithm of P's diagonal (…, K, dim) and entries below it."""
        logits, means, factors = outputs.tensor_split([1, 1 + self.dim], -1)
        logs = factors[..., self._diagonal].clamp(-MAX_LOG_DIAGONAL, MAX_LOG_DIAGONAL)
        return logits[..., 0], means, logs, factors[..., self._below]

    def _outputs(self, u: Float[Tensor, "members rows condition"]) -> Outputs:
        """What the networks give for each component."""
        out: Tensor = self.layer_out(self._features(u))
        if self.curve:  # (…, columns, kinds) → a logit, all of one kind, all of the next
            out = functional.pad(out.transpose(-1, -2).flatten(-2), (1, 0))[..., : self.outputs_each]
        out = out + self.linear(u)
        return out.reshape(*out.shape[:-1], self.components, self.outputs_each)

    def _features(self, u: Float[Tensor, "members rows condition"]) -> Float[Tensor, "members rows width"]:
        """What the last layer gets."""
        h = self.layer_in(u)
        for block in self.blocks:
            h = block(h)
        return functional.silu(h)

    def member_log_prob(
        self, y: Float[Tensor, "members rows dim"], u: Float[Tensor, "members rows condition"]
    ) -> Float[Tensor, "members rows"]:
        """ln q_e(y | u) of each member e, for rows that differ between members."""
        return self._density(y, self._outputs(u))

    def _density(self, y: Float[Tensor, "members rows dim"], outputs: Outputs) -> Float[Tensor, "members rows"]:
        """ln q_e(y | u), from what the networks give for u."""
        logits, means, logs, below = self._raw_parameters(outputs)
        errors = y[..., None, :] - means
        # P e without forming P: its rows are sums over packed products.
        whitened = logs.exp() * errors + torch.matmul(below * errors[..., self._columns], self._rows.to(errors))
        constant = 0.5 * self.dim * math.log(2 * math.pi)
        log_probs = logs.sum(-1) - 0.5 * whitened.square().sum(-1) - constant
        if self.components == 1:
            return log_probs[..., 0]
        result: Tensor = (logits.log_softmax(-1) + log_probs).logsumexp(-1)
        return result

    def product_log_prob(
        self, y: Float[Tensor, "observations *each dim"], u: Float[Tensor, "rows condition"]
    ) -> Float64[Tensor, " rows"]:
        """Σᵢ ln q(yᵢ | u) over several y, for which the networks are evaluated once.

        Args:
            y: each one vector, or one for each member and row (members, rows, dim).
            u: the condition.
        """
        outputs = self._outputs(u.expand(self.members, *u.shape))
        total = torch.zeros(len(u), dtype=torch.float64, device=u.device)
        for one in y:
            each = self._density(one.expand(self.members, len(u), self.dim), outputs)
            total += each.logsumexp(0).double() - math.log(self.members)
        return total

    def member(self, number: int) -> "ConditionalMixture":
        """One member alone; its parameters share the ensemble's memory.

        Args:
            number: 0 ≤ number < members.
        """
        checks.between("number", number, 0, self.members - 1)
        with seeded(0):
            single = self._empty()
        single.to(self.layer_in.weight)
        state = {name: weight[number : number + 1] for name, weight in self.state_dict().items()}
        single.load_state_dict(state, assign=True)
        return single.requires_grad_(False)

    def _sizes(self) -> dict[str, Any]:
        """The sizes of one member."""
        names = ("components", "width", "num_blocks", "curve")
        return {name: getattr(self, name) for name in names}

    def _empty(self) -> "ConditionalMixture":
        """A mixture of one member with the sizes of this one."""
        return ConditionalMixture(self.condition_dim, self.dim, **self._sizes())

    @torch.no_grad()
    def sample(self, u: Float[Tensor, "rows condition"], generator: torch.Generator) -> Float[Tensor, "rows dim"]:
        """One y for each row of u; row i is drawn from member i mod `members`."""
        grouped = self._grouped(u)
        weights, means, factors = self._gaussians_of(grouped)
        uniform = torch.rand(weights.shape[:2], generator=generator).to(u.device)
        chosen = (weights.exp().cumsum(-1) < uniform[..., None]).sum(-1).clamp_max(self.components - 1)
        pick = chosen[..., None, None]
        mean = means.gather(2, pick.expand(-1, -1, 1, self.dim))[:, :, 0]
        factor = factors.gather(2, pick[..., None].expand(-1, -1, 1, self.dim, self.dim))[:, :, 0]
        noise = self._noise(chosen, generator)[..., None]
        y: Tensor = mean + torch.linalg.solve_triangular(factor, noise, upper=False)[..., 0]
        return y.transpose(0, 1).flatten(0, 1)[: len(u)]

    def _gaussians_of(self, u: Float[Tensor, "members rows condition"]) -> tuple[Tensor, Tensor, Tensor]:
        """ln w, μ and P."""
        return self.parameters_of(u)[:3]

    def _noise(self, chosen: Int[Tensor, "members rows"], generator: torch.Generator) -> Float[Tensor, "..."]:
        """P (y − μ), (members, rows, dim), of the components that were chosen."""
        return torch.randn(*chosen.shape, self.dim, generator=generator).to(self.layer_in.weight)

    def _grouped(self, u: Float[Tensor, "rows condition"]) -> Float[Tensor, "members some condition"]:
        """Row i among those of member i mod `members`; the last few are filled up with the first rows."""
        padded = -(-len(u) // self.members) * self.members
        spread = u[torch.arange(padded, device=u.device) % len(u)]
        return spread.reshape(-1, self.members, u.shape[1]).transpose(0, 1)

    @torch.no_grad()
    def fit_linear(self, y: Float[Tensor, "rows dim"], u: Float[Tensor, "rows condition"]) -> None:
        """Initialise every member with the least-squares fit y = A u + b and one covariance of the residuals.

        A small ridge makes the fit stable if there are few rows or the columns of u are linearly dependent.
        """
        residual = self._fit_means(y, u)
        covariance = residual.T @ residual / max(len(u) - u.shape[1] - 1, 1)
        covariance += 1e-8 * torch.eye(self.dim, dtype=torch.float64, device=u.device)
        # P with PᵀP = C⁻¹ and P lower triangular: the inverse of C's lower Cholesky factor.
        factor = torch.linalg.inv(torch.linalg.cholesky(covariance))
        self._set_factor(factor, self.linear.bias.view(self.members, 1, self.components, self.outputs_each))

    def _fit_means(
        self, y: Float[Tensor, "rows dim"], u: Float[Tensor, "rows condition"]
    ) -> Float64[Tensor, "rows dim"]:
        """Make the means of all members the least-squares fit, and return what it leaves of y."""
        rows = len(u)
        centre = u.double().mean(0)
        inputs = torch.cat([u.double() - centre, u.new_ones(rows, 1, dtype=torch.float64)], 1)
        ridge = torch.full((inputs.shape[1],), 1e-6 * rows, dtype=torch.float64, device=u.device)
        ridge[-1] = 0
        solution = torch.linalg.solve(inputs.T @ inputs + torch.diag(ridge), inputs.T @ y.double())
        slope, offset = solution[:-1], solution[-1] - centre @ solution[:-1]
        weight = self.linear.weight.view(self.members, -1, self.components, self.outputs_each)
        bias = self.linear.bias.view(self.members, 1, self.components, self.outputs_each)
        weight[..., 1 : 1 + self.dim] = slope[None, :, None].to(weight)
        bias[..., 1 : 1 + self.dim] = offset.to(bias)
        left: Tensor = y.double() - inputs @ solution
        return left

    def _set_factor(
        self, factor: Float[Tensor, "dim dim"], bias: Float[Tensor, "members one components outputs"]
    ) -> None:
        """Make the factor of all components this one, whatever u is."""
        packed = factor.flatten()[self._indices]
        packed[self._diagonal] = packed[self._diagonal].log()
        bias[..., 1 + self.dim :] = packed.to(bias)

    @property
    def means_each(self) -> int:
        """The number of means for one component."""
        return self.dim

    @property
    def outputs_each(self) -> int:
        """The number of outputs for one component: its weight, mean and factor."""
        return 1 + self.dim + self.dim * (self.dim + 1) // 2
