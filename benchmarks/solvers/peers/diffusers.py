"""diffusers' schedulers on EDM's levels, driven as its pipelines drive them: set_timesteps, then step after step.

The EDM schedulers take a network's raw output F, which is recovered from D by EDM's preconditioning. The others are
told that the network predicts the sample, and work on x/√(1+σ²) (but Heun and LMS, on x). Of those that cannot be told
σ_min and σ_max the table of trained ᾱ is set to span them: `trained_betas` alone would give σ_min to 0.1 %, for it
is kept in float32. σ is float32 throughout, and `EDMEulerScheduler` keeps x in float32 too.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from benchmarks.solvers.methods import SIGMA_MAX, SIGMA_MIN, Denoise, Method, Run
from torch import Tensor

from openedm.denoiser import Denoiser

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers

Make = Callable[[], Any]
SIGMA_DATA = 0.5


def edm(scheduler: type, **options: Any) -> Make:
    """A scheduler that knows EDM's levels."""
    return lambda: scheduler(sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX, sigma_data=SIGMA_DATA, **options)


def discrete(scheduler: type, **options: Any) -> Make:
    """A scheduler of a discrete VP model that was trained from σ_min to σ_max."""

    def make() -> Any:
        made = scheduler(use_karras_sigmas=True, prediction_type="sample", **options)
        span = torch.linspace(math.log(SIGMA_MIN), math.log(SIGMA_MAX), len(made.alphas_cumprod), dtype=torch.float64)
        made.alphas_cumprod = 1 / (1 + span.exp().square())
        return made

    return make


def raw_output(denoised: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """F = (D − c_skip x)/c_out of EDM's preconditioning."""
    total = sigma**2 + SIGMA_DATA**2
    return (denoised - SIGMA_DATA**2 / total * x) / (sigma * SIGMA_DATA / total**0.5)


def run_scheduler(make: Make, num_steps: int, scaled: bool, ends: bool, options: dict[str, Any]) -> Run:
    """A run of `num_steps` levels.

    Args:
        make: the scheduler.
        num_steps: how many levels.
        scaled: the scheduler works on x/√(1+σ²).
        ends: its last level is 0; if not, the last level comes twice, and D is taken where the scheduler arrives.
        options: of each step.
    """
    scheduler = make()
    takes_raw_output = hasattr(scheduler, "precondition_outputs")

    def run(denoise: Denoise, noise: Tensor) -> Tensor:
        scheduler.set_timesteps(num_steps)
        scheduler.set_begin_index(0)
        sigmas = scheduler.sigmas
        x = noise * SIGMA_MAX
        if scaled:
            x = x / math.sqrt(1 + SIGMA_MAX**2)
        timesteps = scheduler.timesteps if ends else scheduler.timesteps[:-1]
        for i, timestep in enumerate(timesteps):
            sigma = sigmas[i]
            scheduler.is_scale_input_called = True
            denoised = denoise(x * (1 + sigma**2) ** 0.5 if scaled else x, sigma)
            output = raw_output(denoised, x, sigma) if takes_raw_output else denoised
            x = scheduler.step(output, timestep, x, return_dict=False, **options)[0]
        if ends:
            return x
        sigma = sigmas[len(timesteps)]
        return denoise(x * (1 + sigma**2) ** 0.5 if scaled else x, sigma)

    return run


def method(
    name: str, make: Make, *, stages: int = 1, scaled: bool = False, ends: bool = True, **options: Any
) -> Method:
    """A scheduler of `stages` evaluations a step, one in the last."""

    def prepare(nfe: float, denoiser: Denoiser) -> Run | None:
        num_steps = (int(nfe) - 1) // stages + 1
        return run_scheduler(make, num_steps, scaled, ends, options) if num_steps >= 2 else None

    return Method("diffusers", name, prepare)


def unipc(order: int, solver_type: str) -> Make:
    """UniPC of an order and a B(h)."""
    return discrete(
        diffusers.UniPCMultistepScheduler,
        solver_order=order,
        solver_type=solver_type,
        sigma_min=SIGMA_MIN,
        sigma_max=SIGMA_MAX,
    )


MULTISTEP = diffusers.EDMDPMSolverMultistepScheduler
SINGLESTEP = diffusers.DPMSolverSinglestepScheduler

FIXED = [
    method("EDMEuler", edm(diffusers.EDMEulerScheduler)),
    method("EDM DPM++ 2M", edm(MULTISTEP, solver_order=2)),
    method("EDM DPM++ 2M heun", edm(MULTISTEP, solver_order=2, solver_type="heun")),
    method("EDM DPM++ 3M", edm(MULTISTEP, solver_order=3)),
    method("UniPC-2", unipc(2, "bh2"), scaled=True),
    method("UniPC-3", unipc(3, "bh2"), scaled=True),
    method("UniPC-2 bh1", unipc(2, "bh1"), scaled=True),
    method("DEIS-2", discrete(diffusers.DEISMultistepScheduler, solver_order=2), scaled=True, ends=False),
    method("DEIS-3", discrete(diffusers.DEISMultistepScheduler, solver_order=3), scaled=True, ends=False),
    method("DPM++ 2S", discrete(SINGLESTEP, solver_order=2, lower_order_final=True), scaled=True),
    method("DPM++ 3S", discrete(SINGLESTEP, solver_order=3, lower_order_final=True), scaled=True),
    method("Heun", discrete(diffusers.HeunDiscreteScheduler), stages=2),
]

STOCHASTIC = [
    method("EDM SDE-DPM++ 2M", edm(MULTISTEP, solver_order=2, algorithm_type="sde-dpmsolver++")),
    method("EDMEuler, churn 0.4 a step", edm(diffusers.EDMEulerScheduler), s_churn=math.inf),
]

OVERHEAD = [
    method for method in FIXED if method.name in ("EDMEuler", "EDM DPM++ 2M", "EDM DPM++ 3M", "UniPC-2", "Heun")
]
