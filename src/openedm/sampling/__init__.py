"""Sampling: levels × schedule × solver × churn, on any denoiser."""

from openedm.sampling.auto import Auto
from openedm.sampling.brownian import BrownianNoise
from openedm.sampling.consistency import Consistency
from openedm.sampling.engine.integrate import Solution
from openedm.sampling.engine.plan import Churn, Solver, State
from openedm.sampling.fitted import Fit, fit_levels, pilot_seeds
from openedm.sampling.learned_files import load_solver, save_solver, solver_content
from openedm.sampling.learning import SolverFit, fit_solver, solver_seeds
from openedm.sampling.methods.adaptive import (
    AdaptiveSolver,
    DormandPrince,
    Exponential23,
    Tsit5,
    adaptive_flow,
    adaptive_sample,
)
from openedm.sampling.methods.consistency import MultistepConsistency
from openedm.sampling.methods.learned import LearnedSolver
from openedm.sampling.methods.multistep import (
    DDIM,
    DEIS,
    IPNDM,
    LMS,
    AdamsBashforth,
    DPMSolver2M,
    DPMSolverPP2M,
    DPMSolverPP3M,
    Multistep,
    UniPC,
)
from openedm.sampling.methods.restart import Restart
from openedm.sampling.methods.runge_kutta import RK4, Alpha, Euler, Heun, Midpoint, Ralston, RungeKutta
from openedm.sampling.methods.singlestep import DPMSolver2S, DPMSolver3S, DPMSolverPP2S, DPMSolverPP3S
from openedm.sampling.methods.stochastic import (
    Ancestral,
    BandEta,
    ConstantEta,
    Eta,
    EulerMaruyama,
    PredictorCorrector,
)
from openedm.sampling.noise import (
    NoiseSource,
    PathNoise,
    PublishedNoise,
    SeededNoise,
    Seeds,
    class_labels,
    initial_noise,
)
from openedm.sampling.sampler import Sampler, SamplerChoice, sample_batches

__all__ = [
    "DDIM",
    "DEIS",
    "IPNDM",
    "LMS",
    "RK4",
    "AdamsBashforth",
    "AdaptiveSolver",
    "Alpha",
    "Ancestral",
    "Auto",
    "BandEta",
    "BrownianNoise",
    "Churn",
    "Consistency",
    "ConstantEta",
    "DPMSolver2M",
    "DPMSolver2S",
    "DPMSolver3S",
    "DPMSolverPP2M",
    "DPMSolverPP2S",
    "DPMSolverPP3M",
    "DPMSolverPP3S",
    "DormandPrince",
    "Eta",
    "Euler",
    "EulerMaruyama",
    "Exponential23",
    "Fit",
    "Heun",
    "LearnedSolver",
    "Midpoint",
    "Multistep",
    "MultistepConsistency",
    "NoiseSource",
    "PathNoise",
    "PredictorCorrector",
    "PublishedNoise",
    "Ralston",
    "Restart",
    "RungeKutta",
    "Sampler",
    "SamplerChoice",
    "SeededNoise",
    "Seeds",
    "Solution",
    "Solver",
    "SolverFit",
    "State",
    "Tsit5",
    "UniPC",
    "adaptive_flow",
    "adaptive_sample",
    "class_labels",
    "fit_levels",
    "fit_solver",
    "initial_noise",
    "load_solver",
    "pilot_seeds",
    "sample_batches",
    "save_solver",
    "solver_content",
    "solver_seeds",
]
