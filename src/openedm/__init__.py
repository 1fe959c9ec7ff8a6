"""openedm: the design space of diffusion models (Karras et al. 2022) as replaceable objects.

    import openedm
    from openedm import levels, schedules
    from openedm.sampling import Heun, Sampler

    denoiser = openedm.load_denoiser("runs/demo/run")
    sampler = Sampler(levels=levels.Karras(num_steps=18), schedule=schedules.EDM(), solver=Heun())
    x = sampler.sample(denoiser, seeds=range(4))

The rooms are loaded when they are first named: `import openedm` is cheap.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openedm import (
        conditioning,
        data,
        denoiser,
        exact,
        guidance,
        inference,
        interop,
        levels,
        likelihood,
        measurements,
        metrics,
        networks,
        objective,
        plots,
        preconditioning,
        sampling,
        schedules,
        suggest,
        training,
    )
    from openedm.training import load_denoiser

__version__ = "0.1.0"

__all__ = [
    "conditioning",
    "data",
    "denoiser",
    "exact",
    "guidance",
    "inference",
    "interop",
    "levels",
    "likelihood",
    "load_denoiser",
    "measurements",
    "metrics",
    "networks",
    "objective",
    "plots",
    "preconditioning",
    "sampling",
    "schedules",
    "suggest",
    "training",
]


def __getattr__(name: str) -> Any:
    if name == "load_denoiser":
        return importlib.import_module("openedm.training").load_denoiser
    if name in __all__:
        return importlib.import_module(f"openedm.{name}")
    raise AttributeError(f"module 'openedm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
