"""Densities corrected near a region by the rows there: what a network that fits all rows leaves of the mean of a few.

    q(y | u) = N(y; m_e(u) + s_e(u), Σ),      s_e(u) = k(u) Σ_j w_ej f_j(u)

m_e is the mean of a member of the ensemble, f_j are monomials up to degree three in u, whitened by the points of the
region; k is one where these points are, and falls to zero where rows have no part any more. The weights w are a local
regression (Cleveland and Devlin 1988) of what the member leaves of the nearest rows. How many rows, which degree, and
whether Σ is that of the network or of what the regression leaves, is decided by each row's density without itself. A
network's full factor is not kept: of what its mean misses it makes correlations.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from openedm.ground import checks
from openedm.networks.mixtures import ConditionalDensity, ConditionalMixture
from openedm.networks.structured import mixture_config, mixture_from_config
from openedm.networks.trends import KernelTrend, TrendedMixture

__all__ = ["CORRECTED", "CorrectedDensity", "RememberingDensity", "density_config", "density_from_config"]

CORRECTED = ("constant", "scaled", "banded", "full")
"""Structures, of one Gaussian, whose mean can be corrected."""

MOST_CONDITIONS = 12
"""Of more u neither neighbours nor monomials are of use."""

ROWS = (200, 400, 800, 1600)
"""So many nearest rows are tried."""

REACH = 2.0
"""The rows of a regression reach so many times as far from the centre as the points of the region."""

JUDGED, MOST_JUDGED = 100, 400
"""So many nearest rows decide, and all that are among the points, up to the second."""

MOST_FEATURES = 100

RIDGE = 1e-3

Shifted = ConditionalMixture | TrendedMixture


def means_of(density: Shifted, u: Float[Tensor, "rows condition"]) -> Float64[Tensor, "members rows dim"]:
    """m_e(u) of a single Gaussian."""
    if isinstance(density, TrendedMixture):
        with_trend: Tensor = density.trend(u) + means_of(density.mixture, u)
        return with_trend
    members = density.members
    means: Tensor = density._outputs(u.expand(members, *u.shape))[..., 0, 1 : 1 + density.dim].double()
    return means


class Region(NamedTuple):
    """Where a density is corrected: z = A (u − c), within ‖z‖ < 1."""

    centre: Float64[Tensor, " condition"]
    factor: Float64[Tensor, "condition condition"]

    def coordinates(self, u: Float[Tensor, "rows condition"]) -> Float64[Tensor, "rows condition"]:
        """z."""
        return (u.double() - self.centre) @ self.factor.T


@dataclass(frozen=True)
class Fit:
    """A local regression: Σ and weights, and what the rows that judge it say without themselves."""

    region: Region
    degree: int
    weights: Float64[Tensor, "members features dim"]
    noise: Float64[Tensor, "dim dim"] | None
    log_probs: Float64[Tensor, " judged"]


class CorrectedDensity(ConditionalDensity):
    """q(y | u) near a region, made by `RememberingDensity.near`.

    Args:
        density: what is corrected.
        fit: how.
    """

    def __init__(self, density: Shifted, fit: Fit) -> None:
        super().__init__()
        self.density, self.fit = density, fit
        self.condition_dim, self.dim, self.structure = density.condition_dim, density.dim, density.structure
        self.members, self.components = density.members, density.components

    def shifts(self, u: Float[Tensor, "rows condition"]) -> Float64[Tensor, "members rows dim"]:
        """s_e(u)."""
        z = self.fit.region.coordinates(u)
        features = _monomials(z, self.fit.degree) * _fade(z.square().sum(1).sqrt())[:, None]
        shifts: Tensor = features @ self.fit.weights
        return shifts

    def each_log_prob(
        self, y: Float[Tensor, "rows dim"], u: Float[Tensor, "rows condition"]
    ) -> Float[Tensor, "members rows"]:
        """ln q_e(y | u) of each member e, for the same rows."""
        moved = y.double() - self.shifts(u)
        if self.fit.noise is None:
            return self.density.member_log_prob(moved.to(u), u.expand(self.members, *u.shape))
        return _gaussian(moved - means_of(self.density, u), self.fit.noise).to(u)

    def member_log_prob(
        self, y: Float[Tensor, "members rows dim"], u: Float[Tensor, "members rows condition"]
    ) -> Float[Tensor, "members rows"]:
        """ln q_e(y | u) of each member e, for rows that differ between members."""
        return torch.stack([self.member(e).each_log_prob(y[e], u[e])[0] for e in range(self.members)])

    def product_log_prob(
        self, y: Float[Tensor, "observations dim"], u: Float[Tensor, "rows condition"]
    ) -> Float64[Tensor, " rows"]:
        """Σᵢ ln q(yᵢ | u) over several y."""
        return torch.stack([self.log_prob(one.expand(len(u), -1), u).double() for one in y]).sum(0)

    def member(self, number: int) -> "CorrectedDensity":
        """One member alone; its parameters share the ensemble's memory."""
        fit = self.fit
        weights = fit.weights[number : number + 1]
        return CorrectedDensity(
            self.density.member(number), Fit(fit.region, fit.degree, weights, fit.noise, fit.log_probs)
        )

    def sample(self, u: Float[Tensor, "rows condition"], generator: torch.Generator) -> Float[Tensor, "rows dim"]:
        """One y for each row of u; row i is drawn from member i mod `members`."""
        rows = torch.arange(len(u), device=u.device)
        shifts = self.shifts(u)[rows % self.members, rows]
        if self.fit.noise is None:
            moved: Tensor = self.density.sample(u, generator) + shifts.to(u)
            return moved
        means = means_of(self.density, u)[rows % self.members, rows] + shifts
        normal = torch.randn(len(u), self.dim, generator=generator, dtype=torch.float64).to(means)
        drawn: Tensor = (means + torch.linalg.solve(self.fit.noise, normal.T).T).to(u)
        return drawn


class RememberingDensity(ConditionalDensity):
    """q(y | u) with the rows that it was fitted to, by which it can be corrected near a region.

    Args:
        density: of one Gaussian, with one of the structures `CORRECTED`.
        u, y: the rows.
    """

    u: Float[Tensor, "rows condition"]
    y: Float[Tensor, "rows dim"]

    def __init__(self, density: Shifted, u: Float[Tensor, "rows condition"], y: Float[Tensor, "rows dim"]) -> None:
        super().__init__()
        self.density = density
        self.condition_dim, self.dim, self.structure = density.condition_dim, density.dim, density.structure
        self.members, self.components = density.members, density.components
        self.register_buffer("u", u)
        self.register_buffer("y", y)

    @staticmethod
    def may_correct(density: ConditionalDensity) -> bool:
        """Whether a density has a mean that can be corrected."""
        return (
            isinstance(density, ConditionalMixture | TrendedMixture)
            and density.components == 1
            and density.structure in CORRECTED
            and density.condition_dim <= MOST_CONDITIONS
        )

    def member_log_prob(
        self, y: Float[Tensor, "members rows dim"], u: Float[Tensor, "members rows condition"]
    ) -> Float[Tensor, "members rows"]:
        """ln q_e(y | u) of each member e, for rows that differ between members."""
        return self.density.member_log_prob(y, u)

    def each_log_prob(
        self, y: Float[Tensor, "rows dim"], u: Float[Tensor, "rows condition"]
    ) -> Float[Tensor, "members rows"]:
        """ln q_e(y | u) of each member e, for the same rows."""
        return self.density.each_log_prob(y, u)

    def product_log_prob(
        self, y: Float[Tensor, "observations dim"], u: Float[Tensor, "rows condition"]
    ) -> Float64[Tensor, " rows"]:
        """Σᵢ ln q(yᵢ | u) over several y."""
        return self.density.product_log_prob(y, u)

    def member(self, number: int) -> ConditionalDensity:
        """One member alone, without the rows; its parameters share the ensemble's memory."""
        return self.density.member(number)

    def sample(self, u: Float[Tensor, "rows condition"], generator: torch.Generator) -> Float[Tensor, "rows dim"]:
        """One y for each row of u; row i is drawn from member i mod `members`."""
        return self.density.sample(u, generator)

    @torch.no_grad()
    def near(self, points: Float[Tensor, "points condition"]) -> ConditionalDensity:
        """The density corrected where the points are; as it is where the rows or the points do not allow a regression.

        Of several regressions that is taken whose mean density of the nearest rows, each without its own part in it,
        is the highest. The density itself is none of them: its networks know these rows, so that it looks better on
        them than it is. Whether to correct is a question for rows that are held out.

        Args:
            points: a sample of the region, more than conditions.
        """
        found = self._order(points)
        if found is None:
            return self.density
        region, distances, order, reach = found
        judged = int((distances < reach / REACH).sum())
        judged = min(max(JUDGED, judged), MOST_JUDGED)
        fits = self._fits(region, distances, order, reach, judged)
        finite = (fit for fit in fits if bool(fit.log_probs.isfinite().all()))
        best = max(finite, key=lambda fit: float(fit.log_probs.mean()), default=None)
        return self.density if best is None else CorrectedDensity(self.density, best)

    def _order(self, points: Tensor) -> tuple[Region, Tensor, Int64[Tensor, " rows"], float] | None:
        """The whitened region, distances of rows from its centre, their order, and how far a regression must reach."""
        points = points.double()
        centre, covariance = points.mean(0), torch.cov(points.T).reshape(points.shape[1], -1)
        covariance = covariance + 1e-12 * torch.eye(len(centre), dtype=torch.float64, device=points.device)
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if int(failed) or len(self.u) < ROWS[0]:
            return None
        identity = torch.eye(len(centre), dtype=torch.float64, device=points.device)
        region = Region(centre, torch.linalg.solve_triangular(factor, identity, upper=False))
        distances = region.coordinates(self.u).square().sum(1).sqrt()
        reach = REACH * float(region.coordinates(points).square().sum(1).sqrt().quantile(0.99))
        return region, distances, distances.argsort(), reach

    def _fits(
        self, region: Region, distances: Tensor, order: Int64[Tensor, " rows"], reach: float, judged: int
    ) -> Iterator[Fit]:
        """Local regressions by so many rows, of each degree, with each noise."""
        inside = int((distances < reach).sum())
        numbers = [k for k in ROWS if max(inside, judged) <= k <= len(order)]
        if not numbers and 2 * judged <= inside <= 2 * ROWS[-1]:
            numbers = [inside]
        if not numbers:
            return
        rows = order[: numbers[-1]]
        u, y = self.u[rows], self.y[rows]
        rest = y.double() - means_of(self.density, u)  # of each member
        whiten = self._whitening(region.centre.to(u))
        for count in numbers:
            far = float(distances[rows[count - 1]])
            scaled = Region(region.centre, region.factor / far)
            z = scaled.coordinates(u[:count])
            weights = _window(z.square().sum(1).sqrt())
            for degree in range(4):
                features = _monomials(z, degree)
                if 3 * features.shape[1] > count or features.shape[1] > MOST_FEATURES:
                    break
                yield from self._regressed(scaled, degree, features, weights, rest[:, :count], y, u, judged, whiten)

    def _regressed(
        self,
        region: Region,
        degree: int,
        features: Float64[Tensor, "rows features"],
        weights: Float64[Tensor, " rows"],
        rest: Float64[Tensor, "members rows dim"],
        y: Float[Tensor, "all dim"],
        u: Float[Tensor, "all condition"],
        judged: int,
        whiten: Float64[Tensor, "dim dim"],
    ) -> Iterator[Fit]:
        weighted = features * weights[:, None]
        precision = weighted.T @ features
        precision.diagonal().add_(RIDGE)
        inverse = torch.linalg.inv(precision)
        solve = inverse @ weighted.T  # features × rows
        leverage = (features * solve.T).sum(1).clamp_max(0.9)
        found = solve @ rest
        left = rest - features @ found
        errors = left / (1 - leverage)[:, None]  # each without itself
        # Members differ as estimates by other rows would, beside what they differ by anyway.
        spread, failed = torch.linalg.cholesky_ex(solve @ solve.T + 1e-12 * torch.eye(len(solve)).to(solve))
        if int(failed):  # the rows do not tell the features apart
            return
        share, mean_left, mean_error = weights[:, None] / weights.sum(), left.mean(0), errors.mean(0)
        scale = (share * mean_left * mean_error).sum(0).clamp_min(0).sqrt()  # without bias, where neither alone is
        members = len(rest)
        draws = torch.randn(members, *found.shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        draws = (draws - draws.mean(0)) * math.sqrt(members / max(members - 1, 1))
        found = found + spread @ draws.to(found) * scale
        some = errors[:, :judged]
        if self.structure != "full":
            shifted = y[:judged].double() - rest[:, :judged] + some  # y less what the regression says
            kept = self.density.member_log_prob(shifted.to(u), u[:judged].expand(members, -1, -1)).double()
            yield Fit(region, degree, found, None, kept.logsumexp(0) - math.log(members))
        for basis in (torch.eye(self.dim, dtype=torch.float64, device=u.device), whiten):
            variance = (share * (mean_left @ basis.T) * (mean_error @ basis.T)).sum(0)
            noise = basis / variance.clamp_min(1e-12).sqrt()[:, None]
            log_probs = _gaussian(some, noise).logsumexp(0) - math.log(members)
            yield Fit(region, degree, found, noise, log_probs)

    def _whitening(self, u: Float[Tensor, " condition"]) -> Float64[Tensor, "dim dim"]:
        """P of the network at some u, averaged over members."""
        mixture = self.density.mixture if isinstance(self.density, TrendedMixture) else self.density
        factors: Tensor = mixture.parameters_of(u.expand(mixture.members, 1, -1))[2][:, 0, 0].double().mean(0)
        return factors


def density_config(density: ConditionalDensity) -> dict[str, Any]:
    """Structure and sizes of a mixture, of a trend and the mixture of what it leaves, and how many rows, plain data."""
    if isinstance(density, RememberingDensity):
        return {**density_config(density.density), "remembered": len(density.u)}
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
    if mixture is None or config is None:
        return mixture
    density: Shifted = mixture
    if (sizes := config.get("trend")) is not None:
        density = TrendedMixture(KernelTrend(**{name: int(size) for name, size in sizes.items()}), mixture)
    if (rows := config.get("remembered")) is None:
        return density
    checks.size("remembered", int(rows))
    return RememberingDensity(
        density, torch.zeros(int(rows), mixture.condition_dim), torch.zeros(int(rows), mixture.dim)
    )


def _monomials(z: Float64[Tensor, "rows condition"], degree: int) -> Float64[Tensor, "rows features"]:
    """All products of up to so many columns, with 1."""
    if degree == 0:
        return torch.ones_like(z[:, :1])
    columns = z.shape[1]
    which = list(combinations_with_replacement(range(columns + 1), degree))  # the last stands for 1
    factors = torch.cat([z, torch.ones_like(z[:, :1])], 1)[:, torch.tensor(which, device=z.device)]
    return factors.prod(-1)


def _window(distance: Float64[Tensor, " rows"]) -> Float64[Tensor, " rows"]:
    """(1 − r³)³, zero from r = 1 on."""
    return (1 - distance.clamp_max(1) ** 3) ** 3


def _fade(distance: Float64[Tensor, " rows"]) -> Float64[Tensor, " rows"]:
    """One where the points of a region are, zero from r = 1 on."""
    inside = ((1 - distance) / (1 - 1.2 / REACH)).clamp(0, 1)
    return inside**2 * (3 - 2 * inside)


def _gaussian(
    errors: Float64[Tensor, "members rows dim"], factor: Float64[Tensor, "dim dim"]
) -> Float64[Tensor, "members rows"]:
    """The log-density of Gaussian noise whose precision is PᵀP."""
    constant = 0.5 * len(factor) * math.log(2 * math.pi)
    log_det = torch.linalg.slogdet(factor)[1]
    result: Tensor = log_det - 0.5 * (errors @ factor.T).square().sum(-1) - constant
    return result
