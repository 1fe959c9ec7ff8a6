"""Tests of posteriors on average over simulations (θ*, x), by ranks.

If q is the true posterior, θ* and the samples are exchangeable given x, and the rank r of any function of them among
the n samples is uniform on 0 … n. Taken here as u = (r + v)/(n + 1), v uniform, it is uniform on [0, 1] exactly, also
where values tie, and the Kolmogorov–Smirnov test of u is exact. The functions:

- each parameter: simulation-based calibration, SBC                            (Talts et al. 2018, arXiv 1804.06788);
- the distance to a reference point that is independent of θ*: TARP            (Lemos et al. 2023, arXiv 2302.03026);
- the density q(θ | x): coverage of highest-density regions                    (Deistler et al. 2022, arXiv 2210.04815).

The ranks are those of `sbi.diagnostics`, whose functions also take a `Posterior`. They are computed here for the tests:
sbi's test of SBC treats ranks as continuous, and the p-value of `check_tarp` compares points of the coverage curve with
those of the diagonal as if both were samples, so that it does not fail at a stated rate.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from scipy.stats import kstest
from torch import Tensor

from openedm.ground import checks
from openedm.inference.arrays import as_rows
from openedm.inference.draws import numbered_seeds
from openedm.inference.posterior import Posterior

__all__ = ["Calibration", "calibrate", "check_simulations", "count_trained_on"]

Uniforms = Float64[np.ndarray, "simulations"]

CHUNK_SAMPLES = 1 << 18
"""Samples of all observations that are in memory at a time."""


@dataclass(frozen=True)
class Calibration:
    """Ranks of true parameters among posterior samples, and tests of their uniformity.

    Attributes:
        names: of the parameters.
        num_samples: n, of each observation.
        ranks: SBC ranks, the number of samples below the true value, for each simulation and parameter.
        sbc: u of those ranks; uniform for a right posterior.
        tarp: u of the distance to the reference: the credibility of the ball around it that θ* lies on.
        density: u of minus the density: the credibility of the highest-density region that θ* lies on the edge of; None
            without densities.
        trained_on: how many of the simulations are known to be among those that the posterior was fitted to, on which
            it does better than on others.
    """

    names: tuple[str, ...]
    num_samples: int
    ranks: Int64[np.ndarray, "simulations dim"]
    sbc: Float64[np.ndarray, "simulations dim"]
    tarp: Uniforms
    density: Uniforms | None = None
    trained_on: int = 0

    @property
    def sbc_p_values(self) -> Float64[np.ndarray, "dim"]:
        """P-values of a Kolmogorov–Smirnov test of each parameter, adjusted for their number by Holm's method (1979).

        The chance that any parameter of a right posterior falls below α is at most α.
        """
        raw = np.array([kstest(column, "uniform").pvalue for column in self.sbc.T])
        order = raw.argsort()
        adjusted = np.maximum.accumulate(raw[order] * np.arange(len(raw), 0, -1)).clip(max=1.0)
        return np.asarray(adjusted[order.argsort()])

    @property
    def tarp_p_value(self) -> float:
        """The p-value of the Kolmogorov–Smirnov test of TARP's credibilities."""
        return float(kstest(self.tarp, "uniform").pvalue)

    @property
    def density_p_value(self) -> float | None:
        """The p-value of the Kolmogorov–Smirnov test of the highest-density credibilities; None without densities."""
        return None if self.density is None else float(kstest(self.density, "uniform").pvalue)

    @property
    def tarp_area(self) -> float:
        """∫ (coverage − α) dα over α from ½ to 1: > 0 for posteriors that are too wide, < 0 too narrow (sbi's ATC)."""
        # ∫_½^1 1[u ≤ α] dα = 1 − max(u, ½)
        return float((1 - np.maximum(self.tarp, 0.5)).mean() - 3 / 8)

    @property
    def p_values(self) -> dict[str, float]:
        """The p-value of each test that counts: SBC (the least of the adjusted ones), TARP, and with densities HPD."""
        found = {"SBC": float(self.sbc_p_values.min()), "TARP": self.tarp_p_value}
        return found if self.density_p_value is None else {**found, "HPD": self.density_p_value}

    def passes(self, level: float = 0.01) -> bool:
        """Whether no test rejects at that level: SBC, TARP, and where there are densities that of their regions.

        A right posterior fails each with at most that chance, and any of k tests with at most k times that.

        Args:
            level: between 0 and 1.

        Raises:
            ValueError: the level is not a probability.
        """
        checks.between("level", level, 0.0, 1.0)
        return min(self.p_values.values()) >= level

    def summary(self, level: float = 0.01) -> str:
        """The tests as a few lines of text, the parameter with the lowest p-value first, and the rule of the verdict.

        Args:
            level: of the verdict.

        Raises:
            ValueError: the level is not a probability.
        """
        failed = [name for name, p in self.p_values.items() if p < level]
        verdict = "passes" if self.passes(level) else f"fails ({', '.join(failed)})"
        tests, p_values = self.p_values, self.sbc_p_values
        lines = [
            f"calibration {verdict} at the {level:.3g} level, {len(self.tarp)} simulations, n = {self.num_samples}",
            f"p >= {level:.3g} is required of each of {len(tests)} tests ({', '.join(tests)}); a right posterior fails "
            f"in at most {100 * level * len(tests):.3g} % of cases",
        ]
        if self.trained_on:
            lines += [f"not valid: at least {self.trained_on} of these simulations were used in the fit"]
        adjusted = "" if len(p_values) == 1 else f" (adjusted for {len(p_values)} parameters)"
        lines += [f"SBC   {self.names[i]}: p = {p_values[i]:.3g}{adjusted}" for i in p_values.argsort()]
        lines += [f"TARP  p = {self.tarp_p_value:.3g}, area {self.tarp_area:+.4f} (< 0: too narrow)"]
        if self.density_p_value is not None:
            lines += [f"HPD   p = {self.density_p_value:.3g} (highest-density regions)"]
        return "\n".join(lines)


def calibrate(
    posterior: Posterior,
    theta: Float[Tensor, "simulations *dim"],
    x: Float[Tensor, "simulations ..."],
    *,
    num_samples: int = 1000,
    num_density_samples: int = 0,
    references: Float[Tensor, "simulations dim"] | None = None,
    seed: int = 0,
) -> Calibration:
    """Ranks of each θ among samples of q(θ | x), for simulations that were not trained on.

    Args:
        posterior: of the simulator that made x.
        theta: true parameters, drawn from the prior, (N, dim), N ≥ 20.
        x: the data simulated with them, (N, *x_shape), such as the posterior takes.
        num_samples: of each observation, ≥ 1.
        num_density_samples: the number of samples whose density is computed, for coverage of highest-density regions; 0
            for none: densities may take much longer than samples.
        references: of TARP, (N, dim), independent of theta given x. None means the parameters of another simulation,
            by a random cycle. Distances to them are Euclidean, each parameter divided by its standard deviation.
        seed: of the samples, the references and the v of u.

    Raises:
        TypeError: a number or the seed is not an integer.
        ValueError: shapes do not fit, N < 20, values are not finite, or a number is out of its range.

    Warns:
        UserWarning: some of the simulations were used in the fit.
    """
    checks.integer("num_samples", num_samples, 1)
    checks.integer("num_density_samples", num_density_samples)
    checks.between("num_density_samples", num_density_samples, 0, num_samples)
    theta, x = as_rows("theta", theta), as_rows("x", posterior.flat(x))
    check_simulations(posterior, theta, x)
    count, trained_on = len(theta), count_trained_on(posterior, theta, x)
    generator = np.random.default_rng(seed)
    references = _of_other_rows(theta, generator) if references is None else references
    if references.shape != theta.shape or not bool(references.isfinite().all()):
        raise ValueError(f"references must be finite and {tuple(theta.shape)}, got {tuple(references.shape)}")
    scale = theta.std(0)
    unit = torch.where(scale > 0, scale, 1.0)
    seeds, rows = numbered_seeds(seed, count), max(1, CHUNK_SAMPLES // num_samples)
    sbc, tarp, density = [], [], []
    for start in range(0, count, rows):
        part = slice(start, start + rows)
        truth, observed, reference = theta[part, None], x[part], references[part, None]
        samples = posterior.sample(observed, num_samples, seed=seeds[part])
        drawn = samples.to(theta)
        sbc.append(_Ranks.of(drawn, truth))
        drawn_distance, true_distance = (
            ((points - reference) / unit).square().sum(-1, keepdim=True) for points in (drawn, truth)
        )
        tarp.append(_Ranks.of(drawn_distance, true_distance))
        if num_density_samples:
            points = torch.cat([samples[:, :num_density_samples], truth.to(samples)], 1)
            depth = -posterior.potential(points, observed).cpu()[..., None]
            density.append(_Ranks.of(depth[:, :-1], depth[:, -1:]))
    ranks = _Ranks.joined(sbc)
    return Calibration(
        names=posterior.names,
        num_samples=num_samples,
        ranks=ranks.below,
        sbc=ranks.uniform(num_samples, generator),
        tarp=_Ranks.joined(tarp).uniform(num_samples, generator)[:, 0],
        density=_Ranks.joined(density).uniform(num_density_samples, generator)[:, 0] if density else None,
        trained_on=trained_on,
    )


class _Ranks(NamedTuple):
    """The numbers of samples that lie below the truth, and that tie with it."""

    below: Int64[np.ndarray, "simulations functions"]
    ties: Int64[np.ndarray, "simulations functions"]

    @classmethod
    def of(
        cls, samples: Float[Tensor, "simulations n functions"], truth: Float[Tensor, "simulations 1 functions"]
    ) -> "_Ranks":
        return cls((samples < truth).sum(1).cpu().numpy(), (samples == truth).sum(1).cpu().numpy())

    @classmethod
    def joined(cls, parts: "Sequence[_Ranks]") -> "_Ranks":
        return cls(*map(np.concatenate, zip(*parts, strict=True)))

    def uniform(self, num_samples: int, generator: np.random.Generator) -> Float64[np.ndarray, "simulations functions"]:
        """u = (r + v)/(n + 1), ties broken at random."""
        return np.asarray((self.below + generator.random(self.below.shape) * (self.ties + 1)) / (num_samples + 1))


def _of_other_rows(theta: Float[Tensor, "n d"], generator: np.random.Generator) -> Float[Tensor, "n d"]:
    """Rows of theta along a random cycle: each row gets another one."""
    order = generator.permutation(len(theta))
    successor = np.empty_like(order)
    successor[order] = np.roll(order, 1)
    return theta[torch.from_numpy(successor).to(theta.device)]


def check_simulations(posterior: Posterior, theta: Float[Tensor, "..."], x: Float[Tensor, "..."]) -> None:
    """Raise ValueError unless theta (N, dim) and x (N, *x_shape) are finite and N ≥ 20."""
    if theta.ndim != 2 or theta.shape[1] != posterior.dim:
        raise ValueError(f"theta must be (simulations, {posterior.dim}), got {tuple(theta.shape)}")
    checks.at_least("the number of simulations", len(theta), 20)
    if tuple(x.shape) != (len(theta), *posterior.x_shape):
        raise ValueError(f"x must be {(len(theta), *posterior.x_shape)}, got {tuple(x.shape)}")
    for name, valid in (("theta", theta.isfinite().all(1)), ("x", posterior.accepts(x))):
        if not bool(valid.all()):
            rows = (~valid).nonzero()[:, 0].tolist()
            raise ValueError(f"{name} must be finite, got NaN or infinities in {len(rows)} rows, first {rows[:5]}")


def count_trained_on(posterior: Posterior, theta: Float[Tensor, "rows dim"], x: Float[Tensor, "rows ..."]) -> int:
    """How many simulations are known to be among those of the fit.

    Warns:
        UserWarning: there are some.
    """
    if count := len(posterior.trained_rows(theta, x)):
        warnings.warn(
            f"theta and x hold at least {count} simulations that the posterior was fitted to, on which it does better "
            "than on others: test it on fresh ones, such as simulate(…) with another seed",
            stacklevel=3,
        )
    return count
