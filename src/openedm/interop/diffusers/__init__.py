"""Models, schedulers and pipelines of diffusers: their models as denoisers, our samplers as their schedulers.

It needs the optional group `interop` (`pip install openedm[interop]`); it is imported without, and says so when used.
"""

import importlib
from typing import Any

__all__ = ["DiffusersDenoiser", "Process", "Scheduler", "denoiser_of", "from_diffusers", "process_of", "to_unet2d"]

_MODULES = {
    "DiffusersDenoiser": "denoisers",
    "Process": "process",
    "Scheduler": "scheduler",
    "denoiser_of": "denoisers",
    "from_diffusers": "denoisers",
    "process_of": "process",
    "to_unet2d": "export",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
