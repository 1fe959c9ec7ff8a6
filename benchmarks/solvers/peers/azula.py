"""azula's samplers, `azula.sample`, on EDM's levels.

They step through times from 1 to 0: a schedule maps these to the levels of `Karras`. A run ends at σ_min, where D is
taken as everywhere else.
"""

from typing import Any

import torch
from azula import sample
from azula.denoise import Denoiser as AzulaDenoiser
from azula.denoise import DiracPosterior
from azula.noise import Schedule
from benchmarks.solvers.methods import SIGMA_MAX, SIGMA_MIN, Denoise, Method, Run
from torch import Tensor

from openedm.denoiser import Denoiser

RHO = 7


class KarrasSchedule(Schedule):
    """α = 1, σ(t) = (σ_min^{1/ρ} + t (σ_max^{1/ρ} − σ_min^{1/ρ}))^ρ."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """α and σ at t in [0, 1]."""
        low, high = SIGMA_MIN ** (1 / RHO), SIGMA_MAX ** (1 / RHO)
        return torch.ones_like(t), (low + t * (high - low)) ** RHO


class Adapter(AzulaDenoiser):
    """D as azula's denoiser."""

    def __init__(self, denoise: Denoise) -> None:
        super().__init__()
        self.schedule = KarrasSchedule()
        self.function = denoise

    def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> DiracPosterior:
        """A posterior whose mean is D."""
        return DiracPosterior(self.function(x_t, self.schedule(t)[1]))


def method(name: str, sampler: Any, stages: int = 1, **options: Any) -> Method:
    """A sampler of `stages` evaluations a step, with D at σ_min after the last."""

    def prepare(nfe: float, denoiser: Denoiser) -> Run | None:
        steps = (int(nfe) - 1) // stages
        if steps < 1:
            return None

        def run(denoise: Denoise, noise: Tensor) -> Tensor:
            adapter = Adapter(denoise)
            x = sampler(adapter, steps=steps, silent=True, dtype=torch.float64, **options)(noise * SIGMA_MAX)
            return adapter(x, torch.zeros((), dtype=torch.float64)).mean

        return run

    return Method("azula", name, prepare)


FIXED = [
    method("Euler", sample.EulerSampler),
    method("Heun", sample.HeunSampler, stages=2),
    *(
        method(f"{name}AB-{order}", sampler, order=order)
        for name, sampler in (
            ("z", sample.zABSampler),
            ("v", sample.vABSampler),
            ("zE", sample.zEABSampler),
            ("xE", sample.xEABSampler),
            ("RE", sample.REABSampler),
        )
        for order in (2, 3, 4)
    ),
]

STOCHASTIC = [
    method("DDPM", sample.DDPMSampler),
    method("DDIM, eta=0.5", sample.DDIMSampler, eta=0.5),
    method("Ito", sample.ItoSampler),
    method("predictor-corrector", sample.PCSampler, stages=2),
]

OVERHEAD = [method for method in FIXED if method.name in ("Euler", "Heun", "zAB-2", "zEAB-3", "xEAB-2")]
