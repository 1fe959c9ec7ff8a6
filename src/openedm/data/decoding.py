"""Decoding of image files of any depth: their shape and type from the header, and their pixels.

Pillow decodes bytes, bool and grey of 16 bits; `deep` the rest. This module adds the stored orientation, transparency,
and errors that name the image.
"""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BufferedIOBase
from typing import IO, TYPE_CHECKING, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from openedm.data.deep import (
    AnyPixels,
    DamagedImage,
    RefusedImage,
    check_pixels,
    decode_png,
    decode_tiff,
    is_tiff,
    read_tiff_header,
)

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "SUFFIXES",
    "Header",
    "as_array",
    "as_pixels",
    "decode_picture",
    "decode_upright",
    "is_animation",
    "read_header",
    "to_tensor",
    "warn_of_animations",
]

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_ORIENTATION = 0x0112
_BITS, _PHOTOMETRIC, _BANDS = 258, 262, 277
"""Tags of TIFF: bits a sample, what the numbers mean, samples a pixel."""
_FORMATS_WITH_ORIENTATION = (
    "JPEG",
    "MPO",
    "WEBP",
)  # Pillow rotates TIFF itself, and reads the orientation of a PNG only when decoding
_ANIMATED_FORMATS = ("GIF", "PNG", "WEBP")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)
_DEEP = "deep"
"""The type of files that Pillow would reduce to 8 bits, or cannot open."""


class Header(NamedTuple):
    """What the header of an image says about its pixels, as they will be decoded.

    Attributes:
        channels: 1 for grey, 4 for an image with transparency, else 3; any number for TIFF.
        height, width: with the stored orientation applied.
        dtype: "bool", "uint8" or "uint16"; "int32" or "float32", which require a range.
        animated: whether it is an animation, whose first frame is decoded.
    """

    channels: int
    height: int
    width: int
    dtype: str = "uint8"
    animated: bool = False


def read_header(file: BufferedIOBase, name: str) -> Header:
    """The shape and type of an image as it will be decoded, from its header alone.

    Raises:
        ValueError: `file` is not an image that can be decoded; the message begins with `name`.
    """
    with _open_image(file, name) as image:
        dtype = _DEEP if image is None else _dtype(image, name)
        if image is not None and dtype != _DEEP:
            # The stored orientation may exchange height and width.
            rotated = image.format in _FORMATS_WITH_ORIENTATION and image.getexif().get(_ORIENTATION, 1) >= 5
            width, height = image.size[::-1] if rotated else image.size
            return Header(_num_channels(image), height, width, dtype, _is_animated(image))
        if image is not None and image.format == "PNG":
            return Header(3 if image.mode == "RGB" else 4, image.height, image.width, "uint16")
    file.seek(0)
    return Header(*read_tiff_header(file.read(), name))


def decode_picture(file: BufferedIOBase, name: str, channels: int) -> "Image | AnyPixels":
    """An image with all its bits: in mode 1, L, RGB or RGBA, or a deeper array `(rows, columns, channels)`.

    Transparent parts become white if there are fewer than 4 channels. The orientation that a camera stored is applied.
    The result of an animation is its first frame.

    Raises:
        ValueError: as for `read_header`, or the data is damaged or ends early, or the channels cannot be converted.
    """
    with _open_image(file, name) as image:
        dtype = _DEEP if image is None else _dtype(image, name)
        if image is not None and dtype in ("bool", "uint8"):
            if dtype == "bool" and channels == 1:
                return image.copy()
            return _convert_mode(_rotate_upright(image), channels)
        if image is not None and dtype != _DEEP:
            return _with_channels(np.asarray(image).astype(dtype)[:, :, None], channels, name)
        is_png = image is not None and image.format == "PNG"
    file.seek(0)
    content = file.read()
    return _with_channels(decode_png(content, name) if is_png else decode_tiff(content, name), channels, name)


def decode_upright(file: BufferedIOBase, name: str, channels: int) -> "Image":
    """An image of any depth with 8 bits a channel, upright, in mode L, RGB or RGBA; otherwise like `decode_picture`.

    16 bits a channel are rounded to 8. Colour profiles are ignored; CMYK becomes RGB by Pillow's plain formula.

    Raises:
        ValueError: the image has 32 bits a channel, is damaged or ends early; the message begins with `name`.
    """
    import PIL.Image

    picture = decode_picture(file, name, channels)
    if not isinstance(picture, np.ndarray):
        return picture.convert(_MODES[channels])
    if picture.dtype != np.uint16:
        raise ValueError(f"{name} must have 8 or 16 bits a channel, but is of {picture.dtype}")
    levels = ((picture.astype(np.int64) * 255 + 32767) // 65535).astype(np.uint8)
    return PIL.Image.fromarray(levels[:, :, 0] if channels == 1 else levels)


def as_array(picture: "Image | AnyPixels") -> AnyPixels:
    """The numbers of a picture, `(rows, columns, channels)`."""
    if isinstance(picture, np.ndarray):
        return picture
    return np.array(picture).reshape(picture.height, picture.width, -1)


def as_pixels(image: "Image") -> UInt8[Tensor, "channels h w"]:
    """The bytes of an image in mode L, RGB or RGBA."""
    return to_tensor(as_array(image))


def to_tensor(pixels: AnyPixels) -> Shaped[Tensor, "channels h w"]:
    """Pixels as a tensor with the channels first."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, 0)))


@contextmanager
def _open_image(file: BufferedIOBase, name: str) -> "Iterator[Image | None]":
    """The image, opened by Pillow; None for a TIFF that Pillow cannot open."""
    import PIL.Image

    try:
        with PIL.Image.open(cast(IO[bytes], file)) as image:
            check_pixels(name, image.height, image.width)
            yield image
    except RefusedImage:
        raise
    except PIL.UnidentifiedImageError as error:
        file.seek(0)
        start = file.read(4)
        if not start:
            raise DamagedImage(f"{name} cannot be decoded: the file is empty") from error
        if not is_tiff(start):
            raise DamagedImage(f"{name} cannot be decoded: it is no image, or of an unknown kind") from error
        yield None
    except (*_DECODING_ERRORS, PIL.Image.DecompressionBombError) as error:
        raise DamagedImage(f"{name} cannot be decoded: {error}") from error


def _dtype(image: "Image", name: str) -> str:
    """The type of the pixels; `_DEEP` for files that Pillow would reduce to 8 bits."""
    if image.format == "TIFF":
        return _dtype_of_tiff(image, name)
    arguments = str([tile[3] for tile in image.tile])  # type: ignore[attr-defined]
    if image.mode.startswith("I") and image.format in ("PNG", "PPM"):
        if "transparency" in image.info:
            raise RefusedImage(f"{name} has 16 bits and a transparent grey, which is not supported: save it without")
        return "uint16"
    if image.mode.startswith(("I", "F")):
        raise RefusedImage(f"{name} must have 8 or 16 bits a channel, but is {image.format} of mode {image.mode!r}")
    if image.format == "PNG" and ";16" in arguments:
        return _DEEP
    if image.format == "PPM" and image.mode == "RGB" and not arguments.endswith(("255)]", "'RGB']", "0]")):
        raise RefusedImage(f"{name} has more than 8 bits a channel in PPM, which is not supported: save it as PNG")
    return "bool" if image.mode == "1" else "uint8"


def _dtype_of_tiff(image: "Image", name: str) -> str:
    tags = image.tag_v2  # type: ignore[attr-defined]
    if _num_pages(image) > 1:
        raise RefusedImage(
            f"{name} has {_num_pages(image)} pages: save each page as a file; or, if they are channels or volumes, all "
            "as one .npy file for Arrays"
        )
    if max(tags.get(_BITS, (1,))) > 8 or tags.get(_BANDS, 1) > 4:
        if tags.get(_PHOTOMETRIC) == 0:
            raise RefusedImage(f"{name} stores white as 0 in more than 8 bits, which is not supported: invert it")
        deep = {"F": "float32", "I": "int32"}
        return "uint16" if image.mode.startswith("I;16") else deep.get(image.mode, _DEEP)
    return "bool" if image.mode == "1" else "uint8"


def is_animation(content: bytes, name: str) -> bool:
    """Whether an encoded image is an animation; ValueError if it cannot be opened."""
    with _open_image(io.BytesIO(content), name) as image:
        return image is not None and _is_animated(image)


def warn_of_animations(names: Sequence[str]) -> None:
    """Warn of animations, of which the first frame alone is used, if there are any."""
    if names:
        warnings.warn(
            f"{len(names)} pictures are animations, of which the first frame is used, such as {names[0]}: save each "
            "frame as a file to use all",
            stacklevel=3,
        )


def _is_animated(image: "Image") -> bool:
    return image.format in _ANIMATED_FORMATS and getattr(image, "is_animated", False)


def _num_pages(image: "Image") -> int:
    """The pages of a TIFF; smaller copies of one are not counted."""
    count = getattr(image, "n_frames", 1)
    if count == 1:
        return 1
    pages = 0
    for number in range(count):
        image.seek(number)
        pages += not image.tag_v2.get(254, 0) & 1  # type: ignore[attr-defined]
    image.seek(0)
    return pages


def _num_channels(image: "Image") -> int:
    if image.has_transparency_data:
        return 4
    return 1 if image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16") else 3


def _with_channels(pixels: AnyPixels, channels: int, name: str) -> AnyPixels:
    """Pixels of any depth with so many channels; transparent parts become white if there are fewer than 4."""
    found = pixels.shape[-1]
    if found == channels:
        return pixels
    if found not in _MODES or channels not in _MODES or pixels.dtype not in (np.uint16, np.uint8):
        raise RefusedImage(
            f"{name} has {found} channels of {pixels.dtype}, which cannot be converted to {channels}: 1 (grey), 3 "
            "(RGB) and 4 (with alpha) of 8 or 16 bits can"
        )
    full = np.iinfo(pixels.dtype).max
    colour, alpha = pixels[:, :, : 3 if found > 1 else 1].astype(np.float64), np.full((*pixels.shape[:2], 1), full)
    if found == 4 and channels < 4:
        weight = pixels[:, :, 3:] / full
        colour = colour * weight + full * (1 - weight)
    if channels == 1 and found > 1:
        colour = colour @ np.array([[0.299], [0.587], [0.114]])
    elif channels > 1 and found == 1:
        colour = colour.repeat(3, axis=-1)
    return np.concatenate([colour, alpha][: 1 + (channels == 4)], axis=-1).round().astype(pixels.dtype)


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
