"""Image files that Pillow cannot hold: PNG of 16 bits in colour, and TIFF of any number of channels.

imagecodecs and tifffile, of the optional group `images`, read and write them; Pillow has grey of 16 bits.
"""

import importlib
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from types import ModuleType
from typing import Any, cast

import numpy as np
from jaxtyping import Shaped, UInt16

__all__ = [
    "AnyPixels",
    "RefusedImage",
    "check_pixels",
    "decode_png",
    "decode_tiff",
    "encode_deep",
    "import_images",
    "is_tiff",
    "read_tiff_header",
]

AnyPixels = Shaped[np.ndarray, "rows columns bands"]
"""Pixels of bytes, 16 bits, bool or other numbers."""

_DAMAGE = (ValueError, TypeError, LookupError, RuntimeError, OSError, AttributeError, ArithmeticError, struct.error)
"""The errors of tifffile for damaged files."""
_TIFF_DTYPES = ("bool", "uint8", "uint16", "int16", "int32", "float32", "float64")


MAX_PIXELS = 2**27
"""The largest number of pixels of an image, of which a small file can claim any number."""


class RefusedImage(ValueError):
    """An error that already names the image."""


class DamagedImage(ValueError):
    """An image cannot be decoded."""


def check_pixels(name: str, height: int, width: int, channels: int = 1) -> None:
    """Raise ValueError for an image of more than 134 million pixels, or for more than 4 channels as many numbers."""
    if height * width * max(1, channels / 4) > MAX_PIXELS:
        raise RefusedImage(f"{name} must have at most {MAX_PIXELS:,} pixels, got {height}×{width}: split it")


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


def decode_png(content: bytes, name: str) -> UInt16[np.ndarray, "rows columns bands"]:
    """The pixels of a PNG of 16 bits in colour: RGB, or with alpha 4 channels.

    Raises:
        ValueError: it is damaged, or imagecodecs is not installed; the message begins with `name`.
    """
    codecs = import_images("imagecodecs", f"{name} has 16 bits in colour, which")
    try:
        pixels: UInt16[np.ndarray, "rows columns bands"] = codecs.png_decode(content)
    except (ValueError, RuntimeError) as error:
        raise DamagedImage(f"{name} cannot be decoded: {error}") from error
    if pixels.ndim == 3 and pixels.shape[-1] == 2:  # grey and alpha
        return pixels[:, :, [0, 0, 0, 1]]
    return pixels


def is_tiff(start: bytes) -> bool:
    """Whether a file with these first four bytes is a TIFF, of up to 4 GB or larger."""
    return start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_tiff_header(content: bytes, name: str) -> tuple[int, int, int, str]:
    """(channels, height, width, dtype) of a TIFF.

    Raises:
        ValueError: as for `decode_tiff`.
    """
    with _open_tiff(content, name) as page:
        height, width, bands = _shape(page, name)
        return bands, height, width, str(page.dtype)


def decode_tiff(content: bytes, name: str) -> AnyPixels:
    """The pixels of a TIFF of one page and any number of channels.

    Raises:
        ValueError: it is damaged, has several pages or another type of numbers, or tifffile is not installed; the
            message begins with `name`.
    """
    with _open_tiff(content, name) as page:
        _shape(page, name)
        pixels: AnyPixels = page.asarray()
        pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
        return np.ascontiguousarray(np.moveaxis(pixels, 0, -1) if page.axes == "SYX" else pixels)


@contextmanager
def _open_tiff(content: bytes, name: str) -> Iterator[Any]:
    """The only page of a TIFF."""
    tifffile = import_images("tifffile", f"{name} is a TIFF of more than 8 bits or 4 channels, which")
    try:
        with tifffile.TiffFile(BytesIO(content)) as tiff:
            pages = [page for page in tiff.pages if not page.is_reduced]
            if len(pages) != 1:
                raise RefusedImage(
                    f"{name} has {len(pages)} pages: save each page as a file; or, if they are channels or volumes, "
                    "all as one .npy file for Arrays"
                )
            yield pages[0]
    except RefusedImage:
        raise
    except _DAMAGE as error:
        raise DamagedImage(f"{name} cannot be decoded: {error}") from error


def _shape(page: Any, name: str) -> tuple[int, int, int]:
    """(height, width, channels) of a page; its kind is checked."""
    dtype, orientation = str(page.dtype), page.tags.get("Orientation")
    if dtype not in _TIFF_DTYPES:
        raise RefusedImage(f"{name} must hold numbers of {', '.join(_TIFF_DTYPES)}, got {dtype}")
    if page.axes not in ("YX", "YXS", "SYX"):
        raise RefusedImage(f"{name} must have rows, columns and channels, got axes {page.axes}")
    if page.photometric in (0, 3, 5, 6, 8) or (orientation is not None and orientation.value not in (0, 1)):
        raise RefusedImage(
            f"{name} must be grey, RGB or channels, upright, got {page.photometric.name}"
            f"{'' if orientation is None else f' of orientation {orientation.value}'}: convert it first"
        )
    bands = page.shape[0] if page.axes == "SYX" else page.shape[2] if page.axes == "YXS" else 1
    height, width = page.shape[page.axes.index("Y")], page.shape[page.axes.index("X")]
    check_pixels(name, height, width, bands)
    return height, width, bands
