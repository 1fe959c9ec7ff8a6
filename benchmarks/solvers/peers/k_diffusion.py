"""k-diffusion's samplers, `k_diffusion.sampling`.

Importing the package pulls in its training side: CLIP, wandb, kornia, clean-fid and torchvision, gigabytes that its
samplers do not use. Its own code is used unchanged; only the package's `__init__` is left out, and for the time of the
import empty modules stand in for torchvision, of which it takes two picture conversions.
"""

import importlib
import sys
from functools import partial
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torchdiffeq  # noqa: F401 (k-diffusion imports it; here so that both get the same module)
from benchmarks.solvers.methods import SIGMA_MAX, SIGMA_MIN, Denoise, Method, Run
from torch import Tensor

from openedm.denoiser import Denoiser
from openedm.levels import Karras


def _sampling() -> Any:
    spec = find_spec("k_diffusion")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    package = ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations)
    torchvision, transforms = ModuleType("torchvision"), ModuleType("torchvision.transforms")
    transforms.functional = None  # type: ignore[attr-defined]
    sys.modules["k_diffusion"] = package
    sys.modules["torchvision"], sys.modules["torchvision.transforms"] = torchvision, transforms
    try:
        return importlib.import_module("k_diffusion.sampling")
    finally:
        del sys.modules["torchvision"], sys.modules["torchvision.transforms"]


sampling = _sampling()


def sigmas(num_steps: int) -> Tensor:
    """EDM's levels and 0. In float64: k-diffusion's own `get_sigmas_karras` computes them in float32."""
    return sampling.append_zero(Karras(num_steps, SIGMA_MIN, SIGMA_MAX).sigmas())


def no_noise(sigma: Tensor, sigma_next: Tensor) -> float:
    """A noise source for η = 0, which spares the samplers the Brownian tree that they would draw and discard."""
    return 0.0


def fixed(name: str, function: str, stages: int = 1, **options: Any) -> Method:
    """A sampler of `stages` evaluations a step, one in the step to 0."""

    def prepare(nfe: float, denoiser: Denoiser) -> Run | None:
        num_steps = (int(nfe) - 1) // stages + 1
        return partial(_sample, getattr(sampling, function), num_steps, options) if num_steps >= 2 else None

    return Method("k-diffusion", name, prepare)


def _sample(sample: Any, num_steps: int, options: dict[str, Any], denoise: Denoise, noise: Tensor) -> Tensor:
    levels = sigmas(num_steps).to(noise.dtype)
    return sample(denoise, noise * SIGMA_MAX, levels, disable=True, **options)


def fast(nfe: float, denoiser: Denoiser) -> Run:
    """DPM-Solver-fast to σ_min, and D there."""

    def run(denoise: Denoise, noise: Tensor) -> Tensor:
        x = sampling.sample_dpm_fast(denoise, noise * SIGMA_MAX, SIGMA_MIN, SIGMA_MAX, int(nfe) - 1, disable=True)
        return denoise(x, SIGMA_MIN)

    return run


def adaptive(order: int) -> Method:
    """DPM-Solver-12 or -23 to σ_min at rtol = atol = tolerance, one step size for the batch, and D there."""

    def prepare(tolerance: float, denoiser: Denoiser) -> Run:
        def run(denoise: Denoise, noise: Tensor) -> Tensor:
            x = sampling.sample_dpm_adaptive(
                denoise,
                noise * SIGMA_MAX,
                SIGMA_MIN,
                SIGMA_MAX,
                disable=True,
                order=order,
                rtol=tolerance,
                atol=tolerance,
            )
            return denoise(x, SIGMA_MIN)

        return run

    return Method("k-diffusion", f"DPM-Solver adaptive-{order}", prepare)


def churned(name: str, function: str, stages: int, each: float) -> Method:
    """EDM's stochastic sampler with S_churn = `each` a step."""

    def prepare(nfe: float, denoiser: Denoiser) -> Run:
        num_steps = (int(nfe) - 1) // stages + 1
        return partial(_sample, getattr(sampling, function), num_steps, {"s_churn": each * num_steps})

    return Method("k-diffusion", name, prepare)


def seeded(name: str, function: str, stages: int = 1) -> Method:
    """A stochastic sampler with one Brownian tree a sample would take minutes: independent noise for each step."""

    def prepare(nfe: float, denoiser: Denoiser) -> Run:
        def run(denoise: Denoise, noise: Tensor) -> Tensor:
            options = {"noise_sampler": sampling.default_noise_sampler(noise)}
            return _sample(getattr(sampling, function), (int(nfe) - 1) // stages + 1, options, denoise, noise)

        return run

    return Method("k-diffusion", name, prepare)


FIXED = [
    fixed("Euler", "sample_euler"),
    fixed("Heun", "sample_heun", stages=2),
    fixed("DPM2", "sample_dpm_2", stages=2),
    fixed("LMS-4", "sample_lms"),
    fixed("LMS-3", "sample_lms", order=3),
    fixed("LMS-2", "sample_lms", order=2),
    fixed("DPM++ 2M", "sample_dpmpp_2m"),
    fixed("DPM++ 2M SDE, eta=0", "sample_dpmpp_2m_sde", eta=0.0, noise_sampler=no_noise),
    fixed("DPM++ 3M SDE, eta=0", "sample_dpmpp_3m_sde", eta=0.0, noise_sampler=no_noise),
    fixed("DPM++ 2S ancestral, eta=0", "sample_dpmpp_2s_ancestral", stages=2, eta=0.0, noise_sampler=no_noise),
    Method("k-diffusion", "DPM-Solver-fast", fast),
]

ADAPTIVE = [adaptive(2), adaptive(3)]

STOCHASTIC = [
    seeded("Euler ancestral", "sample_euler_ancestral"),
    seeded("DPM2 ancestral", "sample_dpm_2_ancestral", stages=2),
    seeded("DPM++ 2S ancestral", "sample_dpmpp_2s_ancestral", stages=2),
    seeded("DPM++ SDE", "sample_dpmpp_sde", stages=2),
    seeded("DPM++ 2M SDE", "sample_dpmpp_2m_sde"),
    seeded("DPM++ 3M SDE", "sample_dpmpp_3m_sde"),
    churned("Heun, churn 0.2 a step", "sample_heun", 2, 0.2),
    churned("Euler, churn 0.4 a step", "sample_euler", 1, 0.4),
]


def brownian(nfe: float, denoiser: Denoiser) -> Run:
    """DPM++ 2M SDE with its default noise, a Brownian tree: for the overhead."""
    return partial(_sample, sampling.sample_dpmpp_2m_sde, int(nfe), {})


OVERHEAD = [
    *(method for method in FIXED if method.name in ("Euler", "Heun", "LMS-4", "DPM++ 2M", "DPM++ 3M SDE, eta=0")),
    Method("k-diffusion", "DPM++ 2M SDE, Brownian tree", brownian),
    Method("k-diffusion", "Euler ancestral", STOCHASTIC[0].prepare),
]
