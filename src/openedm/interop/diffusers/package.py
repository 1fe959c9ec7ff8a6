"""The package diffusers, imported when it is first needed."""

import importlib
from types import ModuleType

__all__ = ["diffusers"]


def diffusers() -> ModuleType:
    """The package.

    Raises:
        ImportError: it is not installed; the message names the optional group.
    """
    try:
        return importlib.import_module("diffusers")
    except ModuleNotFoundError as error:
        raise ImportError(
            "openedm.interop.diffusers needs the package diffusers: pip install 'openedm[interop]'"
        ) from error
