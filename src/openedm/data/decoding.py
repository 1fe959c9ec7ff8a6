"""Picture files to bytes: (channels, height, width), upright, cropped and resized where asked."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from typing import IO, TYPE_CHECKING, cast

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from openedm.ground import checks

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_ORIENTATION = 0x0112
_TURNED = ("JPEG", "MPO", "WEBP")  # Pillow turns TIFF by itself, and must decode a PNG to know
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


def check_form(resolution: int | None, channels: int | None) -> None:
    """Raise ValueError unless pictures can be asked for in this form; None leaves them as they are."""
    if resolution is not None:
        checks.at_least("resolution", resolution, 1)
    if channels is not None:
        checks.one_of("channels", channels, (1, 3, 4))


def read_shape(file: BufferedIOBase, name: str) -> tuple[int, int, int]:
    """(channels, height, width) of a picture as it will be decoded, from its header alone.

    1 channel for grey, 4 where there is transparency, else 3.

    Raises:
        ValueError: `file` is no picture, or has more than 8 bits a channel; the message begins with `name`.
    """
    with _opened(file, name) as image:
        width, height = image.size[::-1] if _is_turned(image) else image.size
        return _channels(image, name), height, width


def read_picture(
    file: BufferedIOBase, name: str, channels: int, resolution: int | None
) -> UInt8[Tensor, "channels h w"]:
    """A picture as bytes, with `channels` 1, 3 or 4; transparent parts become white where there are fewer than 4.

    With a `resolution` it is cropped to its central square and resized (Lanczos) to that side. The orientation that a
    camera stored is applied. Of an animation it is the first frame.

    Raises:
        ValueError: as of `read_shape`, or the data is damaged or ends early.
    """
    with _opened(file, name) as image:
        _channels(image, name)
        picture = _converted(_upright(image), channels)
        if resolution is not None:
            picture = resized(central(picture, 1, 1), resolution, resolution)
        return as_pixels(picture)


def read_upright(file: BufferedIOBase, name: str, channels: int) -> "Image":
    """A picture of any depth with 8 bits a channel, upright; otherwise as `read_picture` gives it.

    16 bits a channel become 8: grey is rounded, of colour Pillow keeps the upper byte. Colour profiles are left out;
    CMYK becomes RGB by Pillow's plain formula.

    Raises:
        ValueError: the picture has 32 bits a channel, is damaged or ends early; the message begins with `name`.
    """
    with _opened(file, name) as image:
        return _converted(_upright(_shallow(image, name)), channels)


def as_pixels(picture: "Image") -> UInt8[Tensor, "channels h w"]:
    """The bytes of a picture in mode L, RGB or RGBA."""
    array = np.array(picture).reshape(picture.height, picture.width, -1)
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def central(picture: "Image", across: int, down: int) -> "Image":
    """The largest part with sides `across` : `down` around the centre, whole pixels."""
    width = min(picture.width, max(1, round(picture.height * across / down)))
    height = min(picture.height, max(1, round(picture.width * down / across)))
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    # Cropped first: resize(box=…) would let the filter look beyond the box.
    return picture.crop((left, top, left + width, top + height))


def resized(picture: "Image", width: int, height: int) -> "Image":
    """The whole picture at another size (Lanczos)."""
    import PIL.Image

    return picture.resize((width, height), PIL.Image.Resampling.LANCZOS)


@contextmanager
def _opened(file: BufferedIOBase, name: str) -> "Iterator[Image]":
    import PIL.Image

    try:
        with PIL.Image.open(cast(IO[bytes], file)) as image:
            yield image
    except _WrongDepth:
        raise
    except (*_UNREADABLE, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"{name} cannot be decoded: {error}") from error


class _WrongDepth(ValueError):
    pass


def _channels(image: "Image", name: str) -> int:
    if image.mode.startswith(("I", "F")):
        raise _WrongDepth(f"{name} must have 8 bits a channel, but is of mode {image.mode!r}: convert it first")
    if image.has_transparency_data:
        return 4
    return 1 if image.mode in ("1", "L") else 3


def _is_turned(image: "Image") -> bool:
    """Whether height and width change places when the orientation stored by a camera is applied."""
    return image.format in _TURNED and image.getexif().get(_ORIENTATION, 1) >= 5


def _upright(image: "Image") -> "Image":
    from PIL import ImageOps

    return ImageOps.exif_transpose(image) if image.format in _TURNED else image


def _converted(upright: "Image", channels: int) -> "Image":
    """In mode L, RGB or RGBA; on white where transparency is given up."""
    import PIL.Image

    if channels < 4 and upright.has_transparency_data:
        white = PIL.Image.new("RGBA", upright.size, "white")
        upright = PIL.Image.alpha_composite(white, upright.convert("RGBA"))
    return upright.convert(_MODES[channels])


def _shallow(image: "Image", name: str) -> "Image":
    """With 8 bits a channel; what was 16 bits is scaled by 255 / 65535."""
    import PIL.Image

    # Earlier versions of Pillow open grey PNG of 16 bits in mode I.
    if not (image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")):
        _channels(image, name)
        return image
    levels = (np.asarray(image).astype(np.int64) * 255 + 32767) // 65535
    return PIL.Image.fromarray(levels.astype(np.uint8))
