"""Decoding of images to bytes (channels, height, width), and the form of converted images.

Pillow decodes and resizes. This module adds the stored orientation, transparency, depths other than 8 bits, crops, and
errors that name the image.
"""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase, BytesIO
from typing import IO, TYPE_CHECKING, Literal, cast

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from openedm.ground import checks
from openedm.ground.choices import Choice

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["SUFFIXES", "Form", "as_pixels", "decode_image", "decode_upright", "read_shape"]

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_ORIENTATION = 0x0112
_FORMATS_WITH_ORIENTATION = (
    "JPEG",
    "MPO",
    "WEBP",
)  # Pillow rotates TIFF itself, and reads the orientation of a PNG only when decoding
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


@dataclass(frozen=True)
class Form(Choice):
    """The size, crop, channels and encoding of converted images.

    Args:
        size: side of the square results; None, allowed with `crop` "none" only, keeps the size of the images.
        crop: "centre": the central square, then Lanczos. "adm": halved by averages of 2×2 while both sides are at least
            twice `size`, then bicubic until the shorter side is `size`, then the central square, as ImageNet is
            prepared for ADM and EDM (Dhariwal and Nichol 2021). "wide": the central part with sides `size` : `height`,
            Lanczos, and black bars above and below that make it a square, as LSUN's cars are prepared. "none": the
            whole image, so that all images must have the same size; with `size` they are resized, which distorts those
            that are not square.
        height: the height of the part between the bars; for "wide" only.
        channels: 1 (grey), 3 (RGB; transparent parts become white) or 4 (with alpha).
        encoding: the encoding of the results, both lossless: PNG is faster to decode, WebP is a third smaller.

    Raises:
        ValueError: a value is out of its range, or `size` and `height` do not fit `crop`.
    """

    size: int | None = None
    crop: Literal["centre", "adm", "wide", "none"] = "centre"
    height: int | None = None
    channels: Literal[1, 3, 4] = 3
    encoding: Literal["png", "webp"] = "png"

    def __post_init__(self) -> None:
        checks.one_of("crop", self.crop, ("centre", "adm", "wide", "none"))
        checks.one_of("channels", self.channels, (1, 3, 4))
        checks.one_of("encoding", self.encoding, ("png", "webp"))
        if self.size is not None:
            checks.at_least("size", self.size, 1)
        elif self.crop != "none":
            raise ValueError(f"size must be given with crop={self.crop!r}, got None; crop='none' keeps the sizes")
        if (self.height is not None) != (self.crop == "wide"):
            raise ValueError(f"height must be given with crop='wide' only, got {self.height} with {self.crop!r}")
        if self.height is not None and self.size is not None:
            checks.between("height", self.height, 1, self.size)

    def apply(self, image: "Image") -> "Image":
        """The cropped and resized image; `image` is upright, in mode L, RGB or RGBA."""
        if self.size is None:
            return image
        if self.crop == "adm":
            return _crop_adm(image, self.size)
        if self.crop == "wide":
            return _crop_wide(image, self.size, self.height or self.size)
        return _resize(_crop_centre(image, 1, 1) if self.crop == "centre" else image, self.size, self.size)

    def encode(self, image: "Image") -> bytes:
        """The encoded image."""
        buffer = BytesIO()
        if self.encoding == "png":
            image.save(buffer, format="PNG", optimize=False, compress_level=6)
        else:
            image.save(buffer, format="WEBP", lossless=True, exact=True)
        return buffer.getvalue()


def read_shape(file: BufferedIOBase, name: str) -> tuple[int, int, int]:
    """(channels, height, width) of an image as it will be decoded, from its header alone.

    1 channel for grey, 4 for an image with transparency, else 3.

    Raises:
        ValueError: `file` is not an image, or has more than 8 bits a channel; the message begins with `name`.
    """
    with _open_image(file, name) as image:
        # The stored orientation may exchange height and width.
        rotated = image.format in _FORMATS_WITH_ORIENTATION and image.getexif().get(_ORIENTATION, 1) >= 5
        width, height = image.size[::-1] if rotated else image.size
        return _num_channels(image, name), height, width


def decode_image(
    file: BufferedIOBase, name: str, channels: int, resolution: int | None
) -> UInt8[Tensor, "channels h w"]:
    """An image as bytes, with `channels` 1, 3 or 4; transparent parts become white if there are fewer than 4.

    With a `resolution` it is cropped to its central square and resized (Lanczos) to that side. The orientation that a
    camera stored is applied. The result of an animation is its first frame.

    Raises:
        ValueError: as for `read_shape`, or the data is damaged or ends early.
    """
    with _open_image(file, name) as image:
        _num_channels(image, name)
        upright = _convert_mode(_rotate_upright(image), channels)
        if resolution is not None:
            upright = _resize(_crop_centre(upright, 1, 1), resolution, resolution)
        return as_pixels(upright)


def decode_upright(file: BufferedIOBase, name: str, channels: int) -> "Image":
    """An image of any depth with 8 bits a channel, upright, in mode L, RGB or RGBA; otherwise like `decode_image`.

    16 bits a channel become 8: grey is rounded; for colour, Pillow keeps the upper byte. Colour profiles are ignored;
    CMYK becomes RGB by Pillow's plain formula.

    Raises:
        ValueError: the image has 32 bits a channel, is damaged or ends early; the message begins with `name`.
    """
    with _open_image(file, name) as image:
        return _convert_mode(_rotate_upright(_to_eight_bits(image, name)), channels)


def as_pixels(image: "Image") -> UInt8[Tensor, "channels h w"]:
    """The bytes of an image in mode L, RGB or RGBA."""
    array = np.array(image).reshape(image.height, image.width, -1)
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


class _WrongDepth(ValueError):
    pass


@contextmanager
def _open_image(file: BufferedIOBase, name: str) -> "Iterator[Image]":
    import PIL.Image

    try:
        with PIL.Image.open(cast(IO[bytes], file)) as image:
            yield image
    except _WrongDepth:
        raise
    except (*_DECODING_ERRORS, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"{name} cannot be decoded: {error}") from error


def _num_channels(image: "Image", name: str) -> int:
    if image.mode.startswith(("I", "F")):
        raise _WrongDepth(f"{name} must have 8 bits a channel, but is of mode {image.mode!r}: convert it first")
    if image.has_transparency_data:
        return 4
    return 1 if image.mode in ("1", "L") else 3


def _rotate_upright(image: "Image") -> "Image":
    from PIL import ImageOps

    return ImageOps.exif_transpose(image) if image.format in _FORMATS_WITH_ORIENTATION else image


def _convert_mode(image: "Image", channels: int) -> "Image":
    """The image in mode L, RGB or RGBA; on white if the mode has no transparency."""
    import PIL.Image

    if channels < 4 and image.has_transparency_data:
        white = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert(_MODES[channels])


def _to_eight_bits(image: "Image", name: str) -> "Image":
    """The image with 8 bits a channel; 16 bits are scaled by 255 / 65535."""
    import PIL.Image

    # Earlier versions of Pillow open grey PNG of 16 bits in mode I.
    if not (image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")):
        _num_channels(image, name)
        return image
    levels = (np.asarray(image).astype(np.int64) * 255 + 32767) // 65535
    return PIL.Image.fromarray(levels.astype(np.uint8))


def _crop_centre(image: "Image", across: int, down: int) -> "Image":
    """The largest part with sides `across` : `down` around the centre, in whole pixels."""
    width = min(image.width, max(1, round(image.height * across / down)))
    height = min(image.height, max(1, round(image.width * down / across)))
    left, top = (image.width - width) // 2, (image.height - height) // 2
    # Cropped first: the filter of resize(box=…) would use pixels outside the box.
    return image.crop((left, top, left + width, top + height))


def _resize(image: "Image", width: int, height: int) -> "Image":
    import PIL.Image

    return image.resize((width, height), PIL.Image.Resampling.LANCZOS)


def _crop_adm(image: "Image", size: int) -> "Image":
    import PIL.Image

    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), PIL.Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), PIL.Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _crop_wide(image: "Image", width: int, height: int) -> "Image":
    import PIL.Image

    black = (0, 0, 0, 255) if image.mode == "RGBA" else 0
    square = PIL.Image.new(image.mode, (width, width), black)
    square.paste(_resize(_crop_centre(image, width, height), width, height), (0, (width - height) // 2))
    return square
