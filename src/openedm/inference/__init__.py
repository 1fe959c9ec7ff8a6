"""Simulation-based inference: p(θ | x) from simulations.

    from openedm.inference import Box, fit, simulate

    prior = Box(low=[-1, -1], high=[1, 1])
    simulations = simulate(simulator, prior, 10_000)
    posterior = fit(simulations)
    samples = posterior.sample(x_observed, 10_000)

Names are loaded when they are first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the names are in __init__.pyi
