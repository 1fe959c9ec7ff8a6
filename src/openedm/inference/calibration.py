"""Tests of posteriors: on average over simulations (θ*, x) by ranks (`calibrate`), and at one observation.

If q is the true posterior, θ* and the samples are exchangeable given x, and the rank r of any function of them among
the n samples is uniform on 0 … n. Taken here as u = (r + v)/(n + 1), v uniform, it is uniform on [0, 1] exactly, also
where values tie, and the Kolmogorov–Smirnov test of u is exact. The functions:

- each parameter: simulation-based calibration, SBC                            (Talts et al. 2018, arXiv 1804.06788);
- the distance to a reference point that is independent of θ*: TARP            (Lemos et al. 2023, arXiv 2302.03026);
- the density q(θ | x): coverage of highest-density regions                    (Deistler et al. 2022, arXiv 2210.04815).

The ranks are those of `sbi.diagnostics`, whose functions also take a `Posterior`. They are computed here for the tests:
sbi's test of SBC treats ranks as continuous, and the p-value of `check_tarp` compares points of the coverage curve with
those of the diagonal as if both were samples, so that it does not fail at a stated rate.

At one observation, `local_c2st` trains classifiers to tell (θ, x) of the simulator from (θ', x), θ' drawn from
q(θ | x), and measures how far from ½ they are at samples for it, compared with classifiers whose labels are shuffled
(L-C2ST, Linhart et al. 2023, arXiv 2306.03580; the classifiers and the test are the `sbi` package's).
`predictive_check` simulates new data from samples.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from scipy.stats import kstest
from torch import Tensor

from openedm.ground import checks
from openedm.inference.draws import numbered_seeds
from openedm.inference.posterior import Posterior
from openedm.inference.sbi_calls import as_rows

__all__ = ["Calibration", "LocalTest", "PredictiveCheck", "calibrate", "local_c2st", "predictive_check"]

Simulator = Callable[[Tensor, int], Tensor]
"""Data (n, *x_shape) of parameters (n, dim) and a seed, such as a task's `simulate`."""

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
    _check_simulations(posterior, theta, x)
    count, trained_on = len(theta), len(posterior.trained_rows(theta, x))
    if trained_on:
        warnings.warn(
            f"theta and x hold at least {trained_on} simulations that the posterior was fitted to, on which it does "
            "better than on others: calibrate on fresh ones, such as simulate(…) with another seed",
            stacklevel=2,
        )
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


@dataclass(frozen=True)
class LocalTest:
    """The result of L-C2ST at one observation.

    Attributes:
        statistic: mean (d − ½)² of the classifier's probabilities d; 0 where it cannot tell the two sets apart.
        null: the statistics of classifiers with shuffled labels.
        p_value: the share of `null` and the statistic itself that is at least the statistic: never below
            1/(trials + 1).
    """

    statistic: float
    null: Float64[np.ndarray, "trials"]

    @property
    def p_value(self) -> float:
        """The share of all statistics that are at least that of the posterior."""
        return float((1 + (self.null >= self.statistic).sum()) / (1 + len(self.null)))


def local_c2st(
    posterior: Posterior,
    theta: Float[Tensor, "simulations dim"],
    x: Float[Tensor, "simulations ..."],
    x_observed: Float[Tensor, "..."],
    *,
    num_samples: int = 1000,
    num_trials: int = 100,
    seed: int = 0,
) -> LocalTest:
    """L-C2ST at one observation, by sbi's `LC2ST`: an MLP of two layers on standardised (θ, x).

    Trains 1 + num_trials classifiers: minutes, for thousands of simulations.

    Args:
        posterior: to be tested.
        theta: true parameters, drawn from the prior, (N, dim), N ≥ 20; thousands are needed for power.
        x: the data simulated with them; flattened for the classifier.
        x_observed: the observation, (*x_shape).
        num_samples: of the posterior there, at which the classifiers are compared.
        num_trials: classifiers with shuffled labels; 100 or more for a test at the 1 % level.
        seed: of samples and classifiers.

    Raises:
        ImportError: sbi is not installed.
        TypeError: a number or the seed is not an integer.
        ValueError: shapes do not fit, values are not finite, or a number is out of its range.
    """
    try:
        from sbi.diagnostics import LC2ST
    except ImportError as error:
        raise ImportError("local_c2st needs the sbi package: pip install 'openedm[sbi]'") from error
    checks.integer("num_trials", num_trials, 1)
    theta, x = as_rows("theta", theta), as_rows("x", posterior.flat(x))
    _check_simulations(posterior, theta, x)
    _check_observation(posterior, x_observed)
    if bool(x.isnan().any()) or bool(x_observed.isnan().any()):
        raise ValueError(
            "local_c2st supports no data with absent members or values (NaN): its classifiers need numbers"
        )
    theta_observed = posterior.sample(x_observed, num_samples, seed=seed).to(theta)
    theta_posterior = posterior.sample(x, 1, seed=numbered_seeds(seed, len(x)))[:, 0].to(theta)
    test = LC2ST(
        prior_samples=theta,
        xs=x.reshape(len(x), -1),
        posterior_samples=theta_posterior,
        z_score=True,
        num_trials_null=num_trials,
        classifier_kwargs={"random_state": seed},
    )
    # sbi shuffles labels by torch's global generator.
    with torch.random.fork_rng(devices=[]):
        test.train_on_observed_data(verbosity=0).train_under_null_hypothesis(verbosity=0)
        observation = x_observed.flatten()
        statistic = test.get_statistic_on_observed_data(theta_o=theta_observed, x_o=observation)
        null = test.get_statistics_under_null_hypothesis(theta_o=theta_observed, x_o=observation, verbosity=0)
    return LocalTest(float(statistic), np.asarray(null.scores, dtype=np.float64))


@dataclass(frozen=True)
class PredictiveCheck:
    """An observation beside data simulated from posterior samples.

    Attributes:
        observed: the statistics of the observation.
        draws: those of the simulated data.
        theta: the parameters they were simulated with.
    """

    observed: Float64[np.ndarray, "statistics"]
    draws: Float64[np.ndarray, "draws statistics"]
    theta: Float[Tensor, "draws dim"]

    @property
    def tails(self) -> Float64[np.ndarray, "statistics"]:
        """The share of draws below each observed statistic, ties counted half: near 0 or 1 the model does not fit."""
        below, ties = self.draws < self.observed, self.draws == self.observed
        return np.asarray(below.mean(0) + ties.mean(0) / 2)

    @property
    def p_values(self) -> Float64[np.ndarray, "statistics"]:
        """Two-sided p-values: 2 min(tail, 1 − tail). Conservative, since the posterior depends on the observation."""
        return np.asarray(2 * np.minimum(self.tails, 1 - self.tails))


def predictive_check(
    posterior: Posterior,
    simulator: Simulator,
    x_observed: Float[Tensor, "..."],
    *,
    num_draws: int = 1000,
    statistics: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
) -> PredictiveCheck:
    """Data simulated from posterior samples, to compare with the observation (posterior predictive check).

    Args:
        posterior: p(θ | x).
        simulator: `simulator(theta, seed)` gives data (n, *x_shape). Draws that are not finite are left out.
        x_observed: one observation, (*x_shape).
        num_draws: ≥ 1.
        statistics: from data (n, *x_shape) to (n, k); None means the data themselves, flattened, without members and
            values that are absent in x_observed.
        seed: of samples and simulations.

    Raises:
        TypeError: num_draws or the seed is not an integer.
        ValueError: x_observed has another shape or is not finite, the simulator's data have another shape, or no draw
            is finite.
    """
    _check_observation(posterior, x_observed)
    theta = posterior.sample(x_observed, num_draws, seed=seed).cpu()
    data = torch.as_tensor(posterior.flat(simulator(theta, seed)))
    if tuple(data.shape) != (num_draws, *posterior.x_shape):
        raise ValueError(f"simulator must give {(num_draws, *posterior.x_shape)}, got {tuple(data.shape)}")
    (x_observed,), _ = posterior._observations(x_observed)
    present = ~x_observed.cpu().flatten().isnan()
    statistics = statistics or (lambda x: x.flatten(1)[:, present.to(x.device)])
    draws, observed = statistics(data).double().cpu(), statistics(x_observed[None].to(data)).double().cpu()
    finite = draws.isfinite().all(1)
    if not bool(finite.any()):
        raise ValueError("simulator must give finite data, got none in any draw")
    return PredictiveCheck(observed[0].numpy(), draws[finite].numpy(), theta[finite])


def _check_observation(posterior: Posterior, x: Float[Tensor, "..."]) -> None:
    shape = tuple(posterior._complete(x).shape)
    if shape != posterior.x_shape:
        raise ValueError(f"x_observed must be one observation {posterior.x_shape}, got {shape}")


def _check_simulations(posterior: Posterior, theta: Float[Tensor, "..."], x: Float[Tensor, "..."]) -> None:
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
