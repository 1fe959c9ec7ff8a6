"""Conditional mixtures with fewer free numbers: what noise looks like is learned once, not anew for every condition.

    full         P(u) any lower triangle                                    dim (dim + 1)/2 functions of u
    banded       P(u) = diag(e^a(u)) (I + L + B(u)), B below the diagonal    2 dim − 1 functions of u, L constant
    scaled       P(u) = diag(e^a(u)) (I + L)                                dim functions of u
    constant     P = diag(e^a) (I + L)                                      none
    heavy        as scaled, but P (y − μ) has Student's t distributions      dim functions of u
    stationary   P(u) has three diagonals whose entries are equal from the third row on, and so are all of μ(u)
                                                                            7 functions of u, whatever dim is
    counts       y_j have negative binomial distributions, or are 0 and 1           dim functions of u
    totals       y_j have binomial distributions, or are 0 and 1                    dim functions of u
    shares       y_j are counts of one known sum, which have a multinomial distribution     dim functions of u
    dispersed_counts     as counts, with r that depends on u                        2 dim functions of u
    atoms        y_j are Gaussian, or values that recur, each with a probability            4 dim functions of u
    censored     y_j are Gaussian, and stop at ends                                         dim functions of u
    placed       y are the values of a series, an image or a volume, whose means and noise are functions of their place
    placed_heavy         the same with Student's t distributions
    independent  q(y | u) = Π_j Σ_k w_k(u) N(y_j; μ_k(u), s_k²(u))          3 K functions of u, whatever dim is
    independent_counts   the same of negative binomial distributions, or Bernoulli's
    independent_atoms    the same with values that recur

From a thousand simulations of twenty columns a full factor, 210 functions, cannot be learned; a curve with one kind of
noise is `constant`, or `heavy` where some values lie far off, noise that grows with the signal `scaled`, an
autoregressive process `banded`, or `stationary` if every time is like every other, and draws from one distribution
`independent`. Which of them it is shows held-out likelihood. Each but `full`, `stationary`, `shares` and the last three
may also be a curve, whose columns share one function of their place (`AlongColumns`).

L has dim (dim − 1)/2 entries, each with an error of 1/√rows: of a hundred columns of a thousand rows they cost several
nats. Noise of "constant", "scaled", "banded" and "heavy" may be kept to neighbours, or independent, by their `reach`.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from openedm.ground import checks
from openedm.networks.atoms import AtomMixture, CensoredMixture
from openedm.networks.counts import CountMixture, DispersedCounts, TotalMixture
from openedm.networks.independent import IndependentCounts, IndependentMixture
from openedm.networks.independent_atoms import IndependentAtoms
from openedm.networks.layers import seeded
from openedm.networks.mixtures import MAX_LOG_DIAGONAL, ConditionalMixture, Outputs
from openedm.networks.placed import HeavyPlacedMixture, PlacedMixture
from openedm.networks.shares import ShareMixture
from openedm.networks.tails import FREEDOM, freedom_of, log_student, student

__all__ = [
    "PLACED",
    "REACHING",
    "STRUCTURES",
    "HeavyMixture",
    "StationaryMixture",
    "StructuredMixture",
    "build_mixture",
    "mixture_config",
    "mixture_from_config",
]

SIZES = ("condition_dim", "dim", "members", "components", "width", "num_blocks")
STRUCTURES = (
    "full",
    "banded",
    "scaled",
    "constant",
    "independent",
    "heavy",
    "stationary",
    "counts",
    "totals",
    "dispersed_counts",
    "independent_counts",
    "shares",
    "atoms",
    "censored",
    "independent_atoms",
    "placed",
    "placed_heavy",
)

PLACED = ("placed", "placed_heavy")
"""Structures of series, images and volumes."""

REACHING = ("constant", "scaled", "banded", "heavy")
"""Structures whose noise may be kept to neighbouring columns, or independent."""


def build_mixture(structure: str, condition_dim: int, dim: int, **sizes: Any) -> ConditionalMixture:
    """A mixture of one of `STRUCTURES`; the sizes are those of `ConditionalMixture`.

    Raises:
        ValueError: an unknown structure, or a count is out of its range.
    """
    checks.one_of("structure", structure, STRUCTURES)
    classes: tuple[type[ConditionalMixture], ...] = (
        ConditionalMixture,
        HeavyMixture,
        StationaryMixture,
        CountMixture,
        TotalMixture,
        DispersedCounts,
        IndependentMixture,
        IndependentCounts,
        ShareMixture,
        AtomMixture,
        CensoredMixture,
        IndependentAtoms,
        PlacedMixture,
        HeavyPlacedMixture,
    )
    for cls in classes:
        if cls.structure == structure:
            return cls(condition_dim, dim, **sizes)
    return StructuredMixture(condition_dim, dim, structure=structure, **sizes)


def mixture_config(mixture: ConditionalMixture) -> dict[str, Any]:
    """Structure and sizes of a mixture, plain data."""
    more: dict[str, Any] = {"shape": list(mixture.shape)} if isinstance(mixture, PlacedMixture) else {}
    if isinstance(mixture, StructuredMixture) and mixture.reach is not None:
        more["reach"] = mixture.reach
    return {name: getattr(mixture, name) for name in (*SIZES, "structure", "curve")} | more


def mixture_from_config(config: Mapping[str, Any] | None) -> ConditionalMixture | None:
    """A mixture of the structure and sizes that `mixture_config` gave, whose weights are read afterwards; None of None.

    Raises:
        ValueError: an unknown structure, or a count is out of its range.
    """
    if config is None:
        return None
    condition_dim, dim, *others = (int(config[name]) for name in SIZES)
    with seeded(0):
        sizes: dict[str, Any] = dict(zip(SIZES[2:], others, strict=True)) | {"curve": bool(config.get("curve", False))}
        if "shape" in config:
            sizes["shape"] = [int(size) for size in config["shape"]]
        if "reach" in config:
            sizes["reach"] = int(config["reach"])
        return build_mixture(config.get("structure", "full"), condition_dim, dim, **sizes)


class StructuredMixture(ConditionalMixture):
    """q(y | u) whose precisions share a factor that does not depend on u.

    Args:
        condition_dim, dim: dimensions of u and y.
        structure: "banded", "scaled" or "constant"; "heavy" in the class that is.
        reach: of how many columns before it the noise of a column may depend, by L; None means of all.
        sizes: those of `ConditionalMixture`.

    Raises:
        ValueError: an unknown structure, or a count is out of its range.
    """

    curves = True
    fast: tuple[str, ...] = ("log_scale",)

    _strict: Tensor

    def __init__(self, condition_dim: int, dim: int, *, structure: str, reach: int | None = None, **sizes: Any) -> None:
        checks.one_of("structure", structure, REACHING)
        if reach is not None:
            checks.between("reach", reach, 0, dim - 1)
        self.structure, self.reach = structure, reach
        super().__init__(condition_dim, dim, **sizes)
        each = (self.members, self.components)
        # L, or for each distance 1 … reach the entries of all rows, of which the first few are not used
        self.lower = nn.Parameter(torch.zeros(*each, dim if reach is None else reach, dim))
        self.log_scale = nn.Parameter(torch.zeros(*each, dim))
        self.register_buffer("_strict", torch.ones(dim, dim).tril(-1), persistent=False)

    @property
    def outputs_each(self) -> int:
        """The number of outputs for one component: its weight, mean and what of the factor depends on u."""
        return 1 + self.dim + {"banded": 2 * self.dim - 1, "constant": 0}.get(self.structure, self.dim)

    def _terms(self, outputs: Outputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits (members, rows, K), μ and a (…, K, dim), and B's entries (…, K, dim − 1), or none."""
        logits, means, scales, band = outputs.tensor_split([1, 1 + self.dim, 1 + 2 * self.dim], -1)
        logs = self.log_scale[:, None] + (scales if scales.shape[-1] else torch.zeros_like(means))
        return logits[..., 0], means, logs.clamp(-MAX_LOG_DIAGONAL, MAX_LOG_DIAGONAL), band

    def _raw_parameters(self, outputs: Outputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        logits, means, logs, band = self._terms(outputs)
        factor = self._factor()[:, None].expand(*means.shape, self.dim)
        if band.shape[-1]:
            factor = factor + torch.diag_embed(band, -1)
        rows, columns = torch.tril_indices(self.dim, self.dim, -1, device=factor.device)
        return logits, means, logs, (logs.exp()[..., None] * factor)[..., rows, columns]

    def _density(self, y: Float[Tensor, "members rows dim"], outputs: Outputs) -> Float[Tensor, "members rows"]:
        logits, means, logs, band = self._terms(outputs)
        errors = y[..., None, :] - means
        mixed = errors + self._from_before(errors)
        if band.shape[-1]:
            mixed = mixed + functional.pad(band * errors[..., :-1], (1, 0))
        log_probs = logs.sum(-1) + self._log_noise(logs.exp() * mixed)
        result: Tensor = (logits.log_softmax(-1) + log_probs).logsumexp(-1)
        return result

    def _factor(self) -> Float[Tensor, "members components dim dim"]:
        """L."""
        if self.reach is None:
            return self.lower * self._strict
        parts = [torch.diag_embed(entries[..., k:], -k) for k, entries in enumerate(self.lower.unbind(-2), 1)]
        return (
            torch.stack(parts).sum(0) if parts else torch.zeros_like(self._strict).expand(*self.lower.shape[:2], -1, -1)
        )

    def _from_before(
        self, errors: Float[Tensor, "members rows components dim"]
    ) -> Float[Tensor, "members rows components dim"]:
        """L (y − μ)."""
        if self.reach is None:
            return torch.einsum("mrkj,mkij->mrki", errors, self.lower * self._strict)
        total = torch.zeros_like(errors)
        for k, entries in enumerate(self.lower.unbind(-2), 1):
            total = total + functional.pad(entries[:, None, :, k:] * errors[..., :-k], (k, 0))
        return total

    def _log_noise(self, z: Float[Tensor, "members rows components dim"]) -> Float[Tensor, "members rows components"]:
        """The log-density of P (y − μ)."""
        return -0.5 * z.square().sum(-1) - 0.5 * self.dim * math.log(2 * math.pi)

    @torch.no_grad()
    def fit_linear(self, y: Float[Tensor, "rows dim"], u: Float[Tensor, "rows condition"]) -> None:
        """As that of `ConditionalMixture`; within reach, L is a least-squares fit of each residual to others."""
        if self.reach is None:
            super().fit_linear(y, u)
            return
        residual = self._fit_means(y, u)
        covariance = residual.T @ residual / max(len(u) - u.shape[1] - 1, 1)
        covariance += 1e-8 * torch.eye(self.dim, dtype=torch.float64, device=u.device)
        for j in range(self.dim):
            before = slice(max(0, j - self.reach), j)
            weights = torch.linalg.solve(covariance[before, before], covariance[before, j])
            variance = covariance[j, j] - covariance[before, j] @ weights
            self.log_scale[..., j] = -0.5 * variance.log()
            self.lower[..., : len(weights), j] = -weights.flip(0).to(self.lower)

    def _set_factor(
        self, factor: Float[Tensor, "dim dim"], bias: Float[Tensor, "members one components outputs"]
    ) -> None:
        diagonal = factor.diagonal()
        self.log_scale.copy_(diagonal.log().expand_as(self.log_scale))
        self.lower.copy_(((factor / diagonal[:, None]).tril(-1)).expand_as(self.lower))

    def _sizes(self) -> dict[str, Any]:
        return super()._sizes() | {"reach": self.reach}

    def _empty(self) -> ConditionalMixture:
        return StructuredMixture(self.condition_dim, self.dim, structure=self.structure, **self._sizes())


class HeavyMixture(StructuredMixture):
    """q(y | u) as "scaled", but each entry of P (y − μ) has Student's t distribution, whose ν is learned.

    Args:
        condition_dim, dim: dimensions of u and y.
        sizes: those of `ConditionalMixture`.

    Raises:
        ValueError: a count is out of its range.
    """

    structure = "heavy"
    fast = ("log_scale", "log_freedom")

    def __init__(self, condition_dim: int, dim: int, **sizes: Any) -> None:
        super().__init__(condition_dim, dim, structure="heavy", **sizes)
        self.log_freedom = nn.Parameter(torch.full((self.members, self.components, dim), math.log(FREEDOM)))

    @property
    def freedom(self) -> Float[Tensor, "members components dim"]:
        """ν."""
        return freedom_of(self.log_freedom)

    def parameters_of(self, u: Float[Tensor, "members rows condition"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Not supported: this is no mixture of Gaussians.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("HeavyMixture has no parameters of Gaussians")

    def _log_noise(self, z: Float[Tensor, "members rows components dim"]) -> Float[Tensor, "members rows components"]:
        return log_student(z, self.freedom[:, None]).sum(-1)

    def _gaussians_of(self, u: Float[Tensor, "members rows condition"]) -> tuple[Tensor, Tensor, Tensor]:
        weights, means, factors, _ = super().parameters_of(u)
        return weights, means, factors

    def _noise(self, chosen: Int[Tensor, "members rows"], generator: torch.Generator) -> Float[Tensor, "..."]:
        return student(self.freedom.gather(1, chosen[..., None].expand(-1, -1, self.dim)), generator)

    def _empty(self) -> ConditionalMixture:
        return HeavyMixture(self.condition_dim, self.dim, **self._sizes())


class StationaryMixture(ConditionalMixture):
    """A process y_1, …, y_dim in its steady state, of which each value depends on the two before it.

        e^a_t (e_t + b_t e_{t−1} + c_t e_{t−2}) ~ N(0, 1),      e_t = y_t − μ

    μ, a, b and c depend on u and not on t, but for the first two times, which have fewer before them.

    Args:
        condition_dim, dim: dimension of u, number of times, at least three.
        sizes: those of `ConditionalMixture`.

    Raises:
        ValueError: a count is out of its range.
    """

    structure = "stationary"

    def __init__(self, condition_dim: int, dim: int, **sizes: Any) -> None:
        checks.at_least("dim", dim, 3)
        super().__init__(condition_dim, dim, **sizes)

    @property
    def means_each(self) -> int:
        """The number of means for one component."""
        return 1

    @property
    def outputs_each(self) -> int:
        """The number of outputs for one component: weight, mean, a of three kinds of times, b of two, and c."""
        return 8

    def _terms(self, outputs: Outputs) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Logits (members, rows, K), μ (…, K, 1), a (…, K, dim), b (…, K, dim − 1) and c (…, K, dim − 2)."""
        logits, means, first, second, others, b_second, b_others, c = outputs.tensor_split(8, -1)
        b_others, c, others = (each.expand(*each.shape[:-1], self.dim - 2) for each in (b_others, c, others))
        logs = torch.cat([first, second, others], -1).clamp(-MAX_LOG_DIAGONAL, MAX_LOG_DIAGONAL)
        return logits[..., 0], means, logs, torch.cat([b_second, b_others], -1), c

    def _raw_parameters(self, outputs: Outputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        logits, means, logs, b, c = self._terms(outputs)
        factor = torch.diag_embed(b, -1) + torch.diag_embed(c, -2)
        rows, columns = torch.tril_indices(self.dim, self.dim, -1, device=factor.device)
        return logits, means.expand(logs.shape), logs, (logs.exp()[..., None] * factor)[..., rows, columns]

    def _density(self, y: Float[Tensor, "members rows dim"], outputs: Outputs) -> Float[Tensor, "members rows"]:
        logits, means, logs, b, c = self._terms(outputs)
        errors = y[..., None, :] - means
        mixed = errors + functional.pad(b * errors[..., :-1], (1, 0)) + functional.pad(c * errors[..., :-2], (2, 0))
        squares = (logs.exp() * mixed).square().sum(-1)
        log_probs = logs.sum(-1) - 0.5 * squares - 0.5 * self.dim * math.log(2 * math.pi)
        result: Tensor = (logits.log_softmax(-1) + log_probs).logsumexp(-1)
        return result

    @torch.no_grad()
    def fit_linear(self, y: Float[Tensor, "rows dim"], u: Float[Tensor, "rows condition"]) -> None:
        """Start from independent values of one mean and variance, whatever u is."""
        bias = self.linear.bias.view(self.members, 1, self.components, self.outputs_each)
        values = y.double()
        bias[..., 1] += float(values.mean())
        bias[..., 2:5] = -math.log(float(values.std()))

    def _empty(self) -> ConditionalMixture:
        return StationaryMixture(self.condition_dim, self.dim, **self._sizes())
