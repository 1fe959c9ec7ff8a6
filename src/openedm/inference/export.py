"""Posteriors for ArviZ: samples as an `InferenceData` (ArviZ below 1.0) or a `DataTree` (from 1.0 on)."""

import inspect
from typing import Any

import numpy as np
from torch import Tensor

from openedm.ground import checks
from openedm.inference.arrays import Values
from openedm.inference.local_checks import Simulator, predictive_check
from openedm.inference.posterior import Posterior

__all__ = ["to_arviz"]


def to_arviz(
    posterior: Posterior,
    x_observed: Values,
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
        x_observed: one observation, as `Posterior.sample` takes it: (*x_shape).
        num_draws: of each chain, ≥ 1.
        num_chains: ≥ 1.
        simulator: `simulator(theta, seed)`; its draws must all be finite: sets filled up with NaN have no predictions.
        seed: of samples, of the prior and of simulations.

    Raises:
        ImportError: ArviZ is not installed.
        TypeError: a number or the seed is no integer, or there is no posterior.
        ValueError: x_observed has another shape or is not finite, a number is < 1, a parameter is named chain or draw,
            or a simulation is not finite.
    """
    try:
        import arviz
    except ImportError as error:
        raise ImportError("to_arviz needs the arviz package: pip install 'openedm[sbi]'") from error
    checks.instance("posterior", posterior, Posterior, "a Posterior, such as the result of fit")
    for name, number in (("num_draws", num_draws), ("num_chains", num_chains)):
        checks.integer(name, number, 1)
    if taken := sorted({"chain", "draw"} & set(posterior.names)):
        raise ValueError(f"names of parameters must not be those of ArviZ's dimensions, got {taken}")
    observations, single = posterior._observations(x_observed)
    if not single:
        raise ValueError(f"x_observed must be one observation {posterior.x_shape}, got a batch of {len(observations)}")
    x, total = observations[0], num_chains * num_draws

    def columns(theta: Tensor) -> dict[str, np.ndarray]:
        by_chain = theta.cpu().double().reshape(num_chains, num_draws, posterior.dim).numpy()
        return {name: by_chain[..., i] for i, name in enumerate(posterior.names)}

    groups: dict[str, Any] = {
        "posterior": columns(posterior.sample(x, total, seed=seed)),
        "observed_data": {"x": x.cpu().double().numpy()},
    }
    if posterior.prior is not None:
        groups["prior"] = columns(posterior.prior.sample(total, seed))
    if simulator is not None:
        found = predictive_check(posterior, simulator, x, num_draws=total, statistics=lambda x: x.flatten(1), seed=seed)
        if len(found.draws) < total:
            raise ValueError(f"simulator must give finite data, got {total - len(found.draws)} draws that are not")
        predicted = found.draws.reshape(num_chains, num_draws, *posterior.x_shape)
        groups["posterior_predictive"] = {"x": predicted}
    # ArviZ 1 takes one mapping of groups, versions before take a keyword a group.
    by_keyword = "observed_data" in inspect.signature(arviz.from_dict).parameters
    return arviz.from_dict(**groups) if by_keyword else arviz.from_dict(groups)
