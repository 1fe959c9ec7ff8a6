"""Tests of a posterior at one observation.

`local_c2st` trains classifiers to tell (θ, x) of the simulator from (θ', x), θ' drawn from q(θ | x), and measures how
far from ½ they are at samples for it, compared with classifiers whose labels are shuffled (L-C2ST, Linhart et al. 2023,
arXiv 2306.03580; the classifiers and the test are the `sbi` package's). `predictive_check` simulates new data from
samples.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from openedm.ground import checks
from openedm.inference.arrays import Values, as_rows, as_tensor
from openedm.inference.calibration import check_simulations, count_trained_on
from openedm.inference.draws import numbered_seeds
from openedm.inference.posterior import Posterior
from openedm.inference.simulation import data_for

__all__ = ["LocalTest", "PredictiveCheck", "Simulator", "local_c2st", "predictive_check"]

Simulator = Callable[[Tensor, int], Tensor]
"""Data (n, *x_shape) of parameters (n, dim) and a seed, such as a task's `simulate`."""


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
    x_observed: Values,
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
        x_observed: the observation, (*x_shape), or a mapping where there are several kinds of data.
        num_samples: of the posterior there, at which the classifiers are compared.
        num_trials: classifiers with shuffled labels; 100 or more for a test at the 1 % level.
        seed: of samples and classifiers.

    Raises:
        ImportError: sbi is not installed.
        TypeError: a number or the seed is not an integer.
        ValueError: shapes do not fit, values are not finite, or a number is out of its range.

    Warns:
        UserWarning: some of the simulations were used in the fit.
    """
    try:
        from sbi.diagnostics import LC2ST
    except ImportError as error:
        raise ImportError("local_c2st needs the sbi package: pip install 'openedm[sbi]'") from error
    checks.integer("num_trials", num_trials, 1)
    theta, x = as_rows("theta", theta), as_rows("x", posterior.flat(x))
    check_simulations(posterior, theta, x)
    observed = _observation(posterior, x_observed)
    if bool(x.isnan().any()) or bool(observed.isnan().any()):
        raise ValueError(
            "local_c2st supports no data with absent members or values (NaN): its classifiers need numbers"
        )
    count_trained_on(posterior, theta, x)
    theta_observed = posterior.sample(observed, num_samples, seed=seed).to(theta)
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
        observation = observed.to(x).flatten()
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
    x_observed: Values,
    *,
    num_draws: int = 1000,
    statistics: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    batched: bool = True,
) -> PredictiveCheck:
    """Data simulated from posterior samples, to compare with the observation (posterior predictive check).

    Args:
        posterior: p(θ | x).
        simulator: `simulator(theta, seed)` gives data (n, *x_shape). Draws that are not finite are left out.
        x_observed: one observation, (*x_shape), or a mapping where there are several kinds of data.
        num_draws: ≥ 1.
        statistics: from data (n, *x_shape) to (n, k); None means the data themselves, flattened, without members and
            values that are absent in x_observed.
        seed: of samples and simulations.
        batched: whether the simulator takes all θ (n, dim) at once; False for one that takes a single θ, as `simulate`
            calls it by default.

    Raises:
        RuntimeError: a simulator of single θ raises; what another raises is raised with a note.
        TypeError: num_draws or the seed is not an integer.
        ValueError: x_observed has another shape or is not finite, the simulator's data have another shape, or no draw
            is finite.
    """
    observation = _observation(posterior, x_observed)
    theta = posterior.sample(observation, num_draws, seed=seed).cpu()
    data = as_tensor("simulator(theta)", posterior.flat(data_for(simulator, theta, seed, batched)))
    if tuple(data.shape) != (num_draws, *posterior.x_shape):
        raise ValueError(f"simulator must give {(num_draws, *posterior.x_shape)}, got {tuple(data.shape)}")
    (complete,), _ = posterior._observations(observation)
    present = ~complete.cpu().flatten().isnan()
    statistics = statistics or (lambda x: x.flatten(1)[:, present.to(x.device)])
    draws, observed = statistics(data).double().cpu(), statistics(complete[None].to(data)).double().cpu()
    finite = draws.isfinite().all(1)
    if not bool(finite.any()):
        raise ValueError("simulator must give finite data, got none in any draw")
    return PredictiveCheck(observed[0].numpy(), draws[finite].numpy(), theta[finite])


def _observation(posterior: Posterior, x_observed: Values) -> Float[Tensor, "..."]:
    """One observation as a tensor."""
    x = as_tensor("x_observed", posterior.flat(x_observed))
    shape = tuple(posterior._complete(x).shape)
    if shape != posterior.x_shape:
        raise ValueError(f"x_observed must be one observation {posterior.x_shape}, got {shape}")
    return x
