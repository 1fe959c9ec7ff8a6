"""Image files that Pillow cannot hold: PNG of 16 bits in colour, and TIFF of any number of channels.

imagecodecs and tifffile, of the optional group `images`, read and write them; Pillow has grey of 16 bits.
"""

import importlib
from io import BytesIO
from types import ModuleType
from typing import cast

import numpy as np
from jaxtyping import Shaped, UInt16

__all__ = ["AnyPixels", "encode_deep", "import_images"]

AnyPixels = Shaped[np.ndarray, "rows columns bands"]
"""Pixels of bytes, 16 bits, bool or other numbers."""


def import_images(name: str, what: str) -> ModuleType:
    """A module of the optional group `images`.

    Raises:
        ValueError: it is not installed; the message begins with `what` needs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"{what} requires {name}: pip install openedm[images] ({error})") from error


def encode_deep(pixels: UInt16[np.ndarray, "rows columns bands"]) -> bytes:
    """A PNG of 16 bits a channel: 1 (grey), 3 (RGB) or 4 (RGB and alpha).

    Raises:
        ValueError: imagecodecs is not installed, which colour requires.
    """
    if pixels.shape[-1] == 1:
        import PIL.Image

        buffer = BytesIO()
        PIL.Image.fromarray(pixels[:, :, 0]).save(buffer, format="PNG", compress_level=6)
        return buffer.getvalue()
    codecs = import_images("imagecodecs", "PNG of 16 bits in colour")
    return cast(bytes, codecs.png_encode(np.ascontiguousarray(pixels), level=6))
