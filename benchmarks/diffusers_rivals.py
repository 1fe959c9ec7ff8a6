"""The schedulers of diffusers that ours is compared with, with every option that they have for their levels."""

import itertools
from collections.abc import Mapping
from typing import Any

import diffusers
import torch

SPACINGS = ("trailing", "linspace", "leading")
LEVELS: tuple[Mapping[str, Any], ...] = ({}, {"use_karras_sigmas": True})


def rivals(scheduler: Any) -> dict[str, Any]:
    """The schedulers of diffusers for a model, by name, with all options of their levels."""
    if isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler):
        flow = diffusers.FlowMatchEulerDiscreteScheduler
        shifts = {f"FlowMatchEuler shift {shift:g}": flow(shift=shift) for shift in (1.0, 2.0, 3.0)}
        return {
            **shifts,
            "FlowMatchEuler Karras": flow(use_karras_sigmas=True),
            "FlowMatchHeun": diffusers.FlowMatchHeunDiscreteScheduler(),
            **{
                f"{name} flow {shift:g}": cls.from_config(
                    {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
                )
                for name, cls in (
                    ("DPMSolverMultistep", diffusers.DPMSolverMultistepScheduler),
                    ("UniPC", diffusers.UniPCMultistepScheduler),
                )
                for shift in (1.0, 3.0)
            },
        }
    config = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    config.pop("steps_offset", None)
    kinds: list[tuple[str, Any, tuple[Mapping[str, Any], ...]]] = [
        ("DDIM", diffusers.DDIMScheduler, ({},)),
        ("Euler", diffusers.EulerDiscreteScheduler, LEVELS),
        ("Heun", diffusers.HeunDiscreteScheduler, LEVELS),
        ("LMS", diffusers.LMSDiscreteScheduler, LEVELS),
        ("DEIS", diffusers.DEISMultistepScheduler, LEVELS),
        ("DPMSolverMultistep 2", diffusers.DPMSolverMultistepScheduler, LEVELS),
        (
            "DPMSolverMultistep 3",
            diffusers.DPMSolverMultistepScheduler,
            tuple({"solver_order": 3, **o} for o in LEVELS),
        ),
        ("DPMSolverMultistep Lu", diffusers.DPMSolverMultistepScheduler, ({"use_lu_lambdas": True},)),
        ("UniPC 2", diffusers.UniPCMultistepScheduler, LEVELS),
        ("UniPC 3", diffusers.UniPCMultistepScheduler, tuple({"solver_order": 3, **o} for o in LEVELS)),
    ]
    return {
        f"{name}{' Karras' if options.get('use_karras_sigmas') else ''} {spacing}": cls.from_config(
            config, timestep_spacing=spacing, **options
        )
        for name, cls, choices in kinds
        for options, spacing in itertools.product(choices, SPACINGS)
    }


def starting_scale(scheduler: Any) -> float:
    """The factor of the noise with which a scheduler starts from the same state as all others.

    Schedulers in units of data start from x = σ n, others from the model's input n = x/√(1+σ²), σ being their own first
    level, which with some spacings of the timesteps is below the highest one.
    """
    start = float(torch.as_tensor(scheduler.init_noise_sigma))
    return (1 + float(scheduler.sigmas[0]) ** 2) ** 0.5 / start if start > 1 else 1.0
