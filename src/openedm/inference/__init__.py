"""Simulation-based inference: p(θ | x) from simulations.

    from openedm.inference import Box, fit, simulate

    prior = Box(low=[-1, -1], high=[1, 1])
    simulations = simulate(simulator, prior, 10_000)
    posterior = fit(simulations.theta, simulations.x, prior)
    samples = posterior.sample(x_observed, 10_000)

Names are loaded when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openedm.inference import tasks
    from openedm.inference.bijections import Bijection
    from openedm.inference.calibration import Calibration, calibrate
    from openedm.inference.export import to_arviz
    from openedm.inference.files import load, save
    from openedm.inference.fitting import fit
    from openedm.inference.joint import Joint, fit_joint
    from openedm.inference.local import LocalTest, PredictiveCheck, local_c2st, predictive_check
    from openedm.inference.maps import DataMap, ParameterMap
    from openedm.inference.masks import Masks
    from openedm.inference.posterior import Posterior
    from openedm.inference.prior_conversion import as_prior, prior_from_config, prior_to_config
    from openedm.inference.priors import Box, Independent, LogNormal, Normal, Prior, TorchPrior
    from openedm.inference.refine import Refinement
    from openedm.inference.sequential import Round, fit_sequentially
    from openedm.inference.settings import MixtureOptions, Settings
    from openedm.inference.simulation import SimulationProgress, simulate
    from openedm.inference.simulations import Failure, Simulations
    from openedm.inference.store import Store
    from openedm.inference.trained import DenoiserPosterior, Parts
    from openedm.inference.transforms import Columns
    from openedm.inference.truncated import Truncated

_ROOMS = {
    "bijections": ("Bijection",),
    "calibration": ("Calibration", "calibrate"),
    "export": ("to_arviz",),
    "files": ("load", "save"),
    "fitting": ("fit",),
    "joint": ("Joint", "fit_joint"),
    "local": ("LocalTest", "PredictiveCheck", "local_c2st", "predictive_check"),
    "maps": ("DataMap", "ParameterMap"),
    "masks": ("Masks",),
    "posterior": ("Posterior",),
    "prior_conversion": ("as_prior", "prior_from_config", "prior_to_config"),
    "priors": ("Box", "Independent", "LogNormal", "Normal", "Prior", "TorchPrior"),
    "refine": ("Refinement",),
    "sequential": ("Round", "fit_sequentially"),
    "settings": ("MixtureOptions", "Settings"),
    "simulation": ("SimulationProgress", "simulate"),
    "simulations": ("Failure", "Simulations"),
    "store": ("Store",),
    "trained": ("DenoiserPosterior", "Parts"),
    "transforms": ("Columns",),
    "truncated": ("Truncated",),
}
_HOMES = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
    "Bijection",
    "Box",
    "Calibration",
    "Columns",
    "DataMap",
    "DenoiserPosterior",
    "Failure",
    "Independent",
    "Joint",
    "LocalTest",
    "LogNormal",
    "Masks",
    "MixtureOptions",
    "Normal",
    "ParameterMap",
    "Parts",
    "Posterior",
    "PredictiveCheck",
    "Prior",
    "Refinement",
    "Round",
    "Settings",
    "SimulationProgress",
    "Simulations",
    "Store",
    "TorchPrior",
    "Truncated",
    "as_prior",
    "calibrate",
    "fit",
    "fit_joint",
    "fit_sequentially",
    "load",
    "local_c2st",
    "predictive_check",
    "prior_from_config",
    "prior_to_config",
    "save",
    "simulate",
    "tasks",
    "to_arviz",
]


def __getattr__(name: str) -> Any:
    if name == "tasks":
        return importlib.import_module("openedm.inference.tasks")
    if name not in _HOMES:
        raise AttributeError(f"module 'openedm.inference' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"openedm.inference.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
