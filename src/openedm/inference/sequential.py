"""Sequential refinement for one observation: rounds of simulations where the posterior so far has its mass.

After each round the prior is cut to a box around the posterior's samples, and the next simulations are drawn from the
prior inside it. Cutting changes the posterior by a constant where it has mass, so that all simulations inside can be
learned from together: truncated proposals (Deistler et al. 2022, arXiv 2210.04815), with a box for the region.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from openedm.ground import checks
from openedm.ground.progress import ShowProgress
from openedm.inference.arrays import Values
from openedm.inference.composite import MARGIN, Truncated, as_prior
from openedm.inference.fitting import fit
from openedm.inference.priors import Prior
from openedm.inference.settings import Settings
from openedm.inference.simulation import simulate
from openedm.inference.simulations import Simulations
from openedm.inference.trained import DenoiserPosterior

__all__ = ["Round", "fit_sequentially"]


@dataclass(frozen=True)
class Round:
    """One round of a sequential fit.

    Attributes:
        simulations: how many were made in it.
        used: how many, of all rounds, lie in the region and were learned from.
        low, high: the region.
        posterior: what was learned.
    """

    simulations: int
    used: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    posterior: DenoiserPosterior


def fit_sequentially(
    simulator: Callable[..., Any],
    prior: Any,
    x_observed: Values,
    *,
    rounds: int = 3,
    simulations: int = 2000,
    batched: bool = True,
    margin: float = MARGIN,
    seed: int = 0,
    settings: Settings | None = None,
    progress: ShowProgress = None,
) -> list[Round]:
    """Posteriors for one observation, each from simulations where the one before has its mass.

    Args:
        simulator: as for `simulate`.
        prior: as for `fit`; not None.
        x_observed: the observation, x_shape.
        rounds: how many, ≥ 1.
        simulations: in each round.
        batched: whether the simulator takes many θ at once; unlike in `simulate`, the default is that it does.
        margin: the region reaches beyond the samples' outermost by this share of their range, ≥ 0.
        seed: of everything random.
        settings: of each fit; None means `Settings.of`.
        progress: as for `fit`.

    Returns:
        The rounds; the last one's posterior is the best, has `x_observed` as its default observation, and holds for
        observations like it.

    Raises:
        TypeError, ValueError: as `simulate` and `fit`; rounds < 1, margin < 0, or no prior.
    """
    checks.at_least("rounds", rounds, 1)
    checks.at_least("margin", margin, 0)
    full_prior = as_prior(prior)
    if full_prior is None:
        raise ValueError("prior must be given, got None")
    region: Prior = full_prior
    made: list[Simulations] = []
    done: list[Round] = []
    for number in range(rounds):
        made.append(simulate(simulator, region, simulations, seed=seed + number, batched=batched, progress=progress))
        theta, x = torch.cat([each.theta for each in made]), torch.cat([each.x for each in made])
        inside = region.log_prob(theta) > -math.inf
        posterior = fit(
            theta[inside],
            made[-1].form.split(x[inside]),
            region,
            seed=seed + number,
            settings=settings,
            names=full_prior.names,
            on_nonfinite="drop",
            progress=progress,
        )
        posterior.set_default_x(x_observed)
        low, high = region.bijection.low, region.bijection.high
        done.append(Round(len(made[-1].theta), int(inside.sum()), tuple(low), tuple(high), posterior))
        if number < rounds - 1:
            samples = posterior.sample(x_observed, 4000, seed=seed)
            region = Truncated.around(full_prior, samples, margin, region)
    return done
