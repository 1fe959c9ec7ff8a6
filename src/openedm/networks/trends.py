"""Smooth means by kernel regression, and conditional mixtures of what they leave.

    m_e(u) = Σ_j b_j Σ_i w_eij exp(−½ ‖(u − c_i)/ℓ_j‖²),      q_e(y | u) = q'_e(y − m_e(u) | u)

Each member e of the ensemble has weights of its own, so that members disagree where few simulations tell the mean. Of a
smooth simulator with little noise a kernel regression learns the mean from far fewer simulations than a network.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from openedm.ground import checks
from openedm.networks.mixtures import ConditionalDensity, ConditionalMixture
from openedm.networks.structured import mixture_config, mixture_from_config

__all__ = ["KernelTrend", "TrendedMixture", "density_config", "density_from_config", "gaussian_kernel"]


class KernelTrend(nn.Module):
    """m_e(u), sums of Gaussian kernels around centres c_i, in float64.

    Args:
        members: how many e.
        centres: how many.
        condition_dim: dimension of u.
        directions: how many b_j, each with lengths ℓ_j and weights w_eij of its own.
        dim: dimension of m.

    Raises:
        ValueError: a count is out of its range.
    """

    centres: Float64[Tensor, "centres condition"]
    lengths: Float64[Tensor, "directions condition"]
    weights: Float64[Tensor, "directions centres members"]
    directions: Float64[Tensor, "directions dim"]

    def __init__(self, members: int, centres: int, condition_dim: int, directions: int, dim: int) -> None:
        super().__init__()
        sizes = {
            "members": members,
            "centres": centres,
            "condition_dim": condition_dim,
            "directions": directions,
            "dim": dim,
        }
        for name, size in sizes.items():
            checks.size(name, size)
        self.sizes = sizes
        self.register_buffer("centres", torch.zeros(centres, condition_dim, dtype=torch.float64))
        self.register_buffer("lengths", torch.ones(directions, condition_dim, dtype=torch.float64))
        self.register_buffer("weights", torch.zeros(directions, centres, members, dtype=torch.float64))
        self.register_buffer("directions", torch.zeros(directions, dim, dtype=torch.float64))

    def forward(self, u: Float[Tensor, "rows condition"]) -> Float64[Tensor, "members rows dim"]:
        """m_e at each u, of all members."""
        u, parts = u.double(), zip(self.lengths, self.weights, strict=True)
        along = [gaussian_kernel(u, self.centres, lengths) @ weights for lengths, weights in parts]
        return torch.einsum("jre,jd->erd", torch.stack(along), self.directions)

    def member(self, number: int) -> "KernelTrend":
        """That of one member alone."""
        single = KernelTrend(**{**self.sizes, "members": 1}).to(self.centres.device)
        state = self.state_dict()
        single.load_state_dict({**state, "weights": state["weights"][..., number : number + 1]}, assign=True)
        return single


def gaussian_kernel(
    a: Float64[Tensor, "rows d"], b: Float64[Tensor, "columns d"], lengths: Float64[Tensor, " d"]
) -> Float64[Tensor, "rows columns"]:
    """exp(−½ ‖(a − b)/ℓ‖²) of all pairs."""
    a, b = a / lengths, b / lengths
    exponents = torch.addmm(-0.5 * b.square().sum(1), a, b.T)
    # In place, which gradients allow: most of the time is the memory's.
    return exponents.sub_(0.5 * a.square().sum(1)[:, None]).clamp_max_(0).exp_()


class TrendedMixture(ConditionalDensity):
    """q(y | u), whose members are mixtures of y − m_e(u).

    Args:
        trend: m_e.
        mixture: of the rest, with as many members.

    Raises:
        ValueError: trend and mixture differ in members or dimensions.
    """

    def __init__(self, trend: KernelTrend, mixture: ConditionalMixture) -> None:
        super().__init__()
        for name in ("members", "condition_dim", "dim"):
            if trend.sizes[name] != getattr(mixture, name):
                own = getattr(mixture, name)
                raise ValueError(f"trend must have the {name} of the mixture, {own}, got {trend.sizes[name]}")
        self.trend, self.mixture = trend, mixture
        self.condition_dim, self.dim, self.structure = mixture.condition_dim, mixture.dim, mixture.structure
        self.members, self.components = mixture.members, mixture.components

    def member_log_prob(
        self, y: Float[Tensor, "members rows dim"], u: Float[Tensor, "members rows condition"]
    ) -> Float[Tensor, "members rows"]:
        """ln q_e(y | u) of each member e, for rows that differ between members."""
        means = torch.stack([self.trend(each)[e] for e, each in enumerate(u)])
        return self.mixture.member_log_prob((y.double() - means).to(u), u)

    def each_log_prob(
        self, y: Float[Tensor, "rows dim"], u: Float[Tensor, "rows condition"]
    ) -> Float[Tensor, "members rows"]:
        """ln q_e(y | u) of each member e, for the same rows."""
        return self.mixture.member_log_prob((y.double() - self.trend(u)).to(u), u.expand(self.members, *u.shape))

    def product_log_prob(
        self, y: Float[Tensor, "observations dim"], u: Float[Tensor, "rows condition"]
    ) -> Float64[Tensor, " rows"]:
        """Σᵢ ln q(yᵢ | u) over several y, for which trend and networks are evaluated once."""
        return self.mixture.product_log_prob((y[:, None, None].double() - self.trend(u)).to(u), u)

    def member(self, number: int) -> "TrendedMixture":
        """One member alone; its parameters share the ensemble's memory."""
        return TrendedMixture(self.trend.member(number), self.mixture.member(number))

    @torch.no_grad()
    def sample(self, u: Float[Tensor, "rows condition"], generator: torch.Generator) -> Float[Tensor, "rows dim"]:
        """One y for each row of u; row i is drawn from member i mod `members`."""
        rows = torch.arange(len(u), device=u.device)
        y: Tensor = self.trend(u)[rows % self.members, rows] + self.mixture.sample(u, generator)
        return y.to(u)


def density_config(density: ConditionalDensity) -> dict[str, Any]:
    """Structure and sizes of a mixture, or of a trend and the mixture of what it leaves, plain data."""
    if isinstance(density, TrendedMixture):
        return {**mixture_config(density.mixture), "trend": dict(density.trend.sizes)}
    assert isinstance(density, ConditionalMixture)
    return mixture_config(density)


def density_from_config(config: Mapping[str, Any] | None) -> ConditionalDensity | None:
    """What `density_config` described, whose numbers are read afterwards; None of None.

    Raises:
        ValueError: an unknown structure, or a count is out of its range.
    """
    mixture = mixture_from_config(config)
    if mixture is None or config is None or (sizes := config.get("trend")) is None:
        return mixture
    return TrendedMixture(KernelTrend(**{name: int(size) for name, size in sizes.items()}), mixture)
