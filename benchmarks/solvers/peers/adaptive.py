"""Adaptive solvers of ordinary differential equations: torchdiffeq and torchode on dx/d ln σ = x − D(x; σ).

rtol = atol = the tolerance. torchdiffeq has one step size for the whole batch, torchode one for each sample; both
evaluate the whole batch until the last sample arrives. D at σ_min is the last evaluation.
"""

import math
from typing import Any

import torch
import torchdiffeq
import torchode
from benchmarks.solvers.methods import SIGMA_MAX, SIGMA_MIN, Denoise, Method, Run
from torch import Tensor

from openedm.denoiser import Denoiser

SPAN = (math.log(SIGMA_MAX), math.log(SIGMA_MIN))


def one_step_size(solver: str) -> Method:
    """A solver of torchdiffeq."""

    def prepare(tolerance: float, denoiser: Denoiser) -> Run:
        def run(denoise: Denoise, noise: Tensor) -> Tensor:
            times = torch.tensor(SPAN, dtype=noise.dtype)
            path = torchdiffeq.odeint(
                lambda t, x: x - denoise(x, t.exp()),
                noise * SIGMA_MAX,
                times,
                rtol=tolerance,
                atol=tolerance,
                method=solver,
            )
            return denoise(path[-1], SIGMA_MIN)

        return run

    return Method("torchdiffeq", solver, prepare)


def step_size_each(name: str, solver: Any) -> Method:
    """A solver of torchode."""

    def prepare(tolerance: float, denoiser: Denoiser) -> Run:
        def run(denoise: Denoise, noise: Tensor) -> Tensor:
            term = torchode.ODETerm(lambda t, x: x - denoise(x, t.exp()))
            controller = torchode.IntegralController(atol=tolerance, rtol=tolerance, term=term)
            start, end = (torch.full((len(noise),), t, dtype=noise.dtype) for t in SPAN)
            problem = torchode.InitialValueProblem(y0=noise * SIGMA_MAX, t_start=start, t_end=end)
            solution = torchode.AutoDiffAdjoint(solver(term=term), controller).solve(problem)
            return denoise(solution.ys[:, -1], SIGMA_MIN)

        return run

    return Method("torchode", name, prepare)


ADAPTIVE = [
    one_step_size("dopri5"),
    one_step_size("bosh3"),
    one_step_size("dopri8"),
    step_size_each("dopri5", torchode.Dopri5),
    step_size_each("tsit5", torchode.Tsit5),
]
