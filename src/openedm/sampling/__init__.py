"""Sampling: levels × schedule × solver × churn, on any denoiser."""

from openedm.sampling.noise import NoiseSource, SeededNoise, initial_noise
from openedm.sampling.sampler import Sampler, State, sample_batches
from openedm.sampling.solvers import RK4, Alpha, Churn, Euler, Heun, Midpoint, Ralston, Solver, Tableau

__all__ = [
    "RK4",
    "Alpha",
    "Churn",
    "Euler",
    "Heun",
    "Midpoint",
    "NoiseSource",
    "Ralston",
    "Sampler",
    "SeededNoise",
    "Solver",
    "State",
    "Tableau",
    "initial_noise",
    "sample_batches",
]
