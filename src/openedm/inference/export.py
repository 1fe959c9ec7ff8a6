"""Posteriors for ArviZ: samples as an `InferenceData` (ArviZ below 1.0) or a `DataTree` (from 1.0 on)."""

import inspect
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from openedm.ground import checks
from openedm.inference.local_checks import Simulator, predictive_check
from openedm.inference.posterior import Posterior

__all__ = ["to_arviz"]


def to_arviz(
    posterior: Posterior,
    x_observed: Float[Tensor, "..."],
    num_draws: int = 1000,
    *,
    num_chains: int = 4,
    simulator: Simulator | None = None,
    seed: int = 0,
) -> Any:
    """Samples for one observation in the groups of ArviZ.

    Groups: `posterior`, one variable a parameter, (chain, draw); `observed_data`, the variable x; `prior`, where the
    posterior has one; `posterior_predictive`, where a simulator is given. Samples are independent, and chains are
    parts of them, so that ArviZ's R̂ and effective sample sizes are at their best.

    Args:
        posterior: p(θ | x).
        x_observed: one observation, (*x_shape).
        num_draws: of each chain, ≥ 1.
        num_chains: ≥ 1.
        simulator: `simulator(theta, seed)`; its draws must all be finite: sets filled up with NaN have no predictions.
        seed: of samples, of the prior and of simulations.

    Raises:
        ImportError: ArviZ is not installed.
        TypeError: a number or the seed is no integer.
        ValueError: x_observed has another shape or is not finite, a number is < 1, or a simulation is not finite.
    """
    try:
        import arviz
    except ImportError as error:
        raise ImportError("to_arviz needs the arviz package: pip install 'openedm[sbi]'") from error
    for name, number in (("num_draws", num_draws), ("num_chains", num_chains)):
        checks.integer(name, number, 1)
    x_observed = posterior._complete(x_observed)
    if tuple(x_observed.shape) != posterior.x_shape:
        raise ValueError(f"x_observed must be one observation {posterior.x_shape}, got {tuple(x_observed.shape)}")
    total = num_chains * num_draws

    def columns(theta: Tensor) -> dict[str, np.ndarray]:
        by_chain = theta.cpu().double().reshape(num_chains, num_draws, posterior.dim).numpy()
        return {name: by_chain[..., i] for i, name in enumerate(posterior.names)}

    groups: dict[str, Any] = {
        "posterior": columns(posterior.sample(x_observed, total, seed=seed)),
        "observed_data": {"x": x_observed.cpu().double().numpy()},
    }
    if posterior.prior is not None:
        groups["prior"] = columns(posterior.prior.sample(total, seed))
    if simulator is not None:
        found = predictive_check(
            posterior, simulator, x_observed, num_draws=total, statistics=lambda x: x.flatten(1), seed=seed
        )
        if len(found.draws) < total:
            raise ValueError(f"simulator must give finite data, got {total - len(found.draws)} draws that are not")
        predicted = found.draws.reshape(num_chains, num_draws, *posterior.x_shape)
        groups["posterior_predictive"] = {"x": predicted}
    # ArviZ 1 takes one mapping of groups, versions before take a keyword a group.
    by_keyword = "observed_data" in inspect.signature(arviz.from_dict).parameters
    return arviz.from_dict(**groups) if by_keyword else arviz.from_dict(groups)
