"""openedm: the design space of diffusion models (Karras et al. 2022) as replaceable objects.

    import openedm

    denoiser = openedm.load_denoiser("runs/demo/run")
    sampler = openedm.Sampler(levels=openedm.Karras(num_steps=18), solver=openedm.Heun())
    x = sampler.sample(denoiser, seeds=range(4))

The names below are the ones that most programs need. Everything else is in the room of its design choice, such as
`openedm.schedules` or `openedm.sampling`; names that stand for several things in the paper, such as EDM or VP, are
always used through their room: `openedm.schedules.VP`, `openedm.preconditioning.VP`. Rooms are loaded when they are
first used, so that `import openedm` is cheap.
"""

import inspect
from typing import Any

import lazy_loader

__version__ = "0.2.0"

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the names are in __init__.pyi


class _NoAttributeError(AttributeError):
    """Looks where else a name is only when it is shown: parsers of options ask for missing ones hundreds of times."""

    def __str__(self) -> str:
        return f"module 'openedm' has no attribute {self.name!r}{_where_else(self.name)}"


def __getattr__(name: str) -> Any:
    try:
        return _load(name)
    except AttributeError as error:
        if name in __all__ or name.startswith("_"):
            raise
        raise _NoAttributeError(name=name) from error


def _where_else(name: str) -> str:
    """The rooms that have a public name of this kind, for the message of an error."""
    rooms = [_load(room) for room in __all__ if room.islower()]
    found = sorted(f"{r.__name__}.{name}" for r in rooms if inspect.ismodule(r) and name in getattr(r, "__all__", ()))
    return f"; did you mean {' or '.join(found)}?" if found else ""
