"""Sizes of images, and the form of converted images: size, crop, channels, bits and encoding.

Pillow resizes: bytes as they are, other numbers one channel at a time in floating point.
"""

import re
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Shaped

from openedm.data.deep import AnyPixels, encode_deep
from openedm.ground import checks
from openedm.ground.choices import Choice

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image

__all__ = ["Crop", "Form", "Resize", "Size", "as_size", "crop_to", "parse_size", "resize_to", "sides"]

Size = int | tuple[int, int] | str
"""The side of squares, or height and width: (64, 128) or "64x128"."""

Crop = Literal["centre", "adm", "wide", "pad", "none"]

Resize = Literal["bicubic", "nearest"]
"""How the image that is a condition is resized to the size of its sample; "nearest" keeps numbers that are labels."""


MAX_SIDE = 2**16
"""The longest side of an image, in pixels."""


def parse_size(name: str, size: Size) -> int | tuple[int, int]:
    """A size as it is written in files: the side of squares, otherwise (height, width).

    >>> parse_size("size", "64x128"), parse_size("size", "32"), parse_size("size", (8, 8))
    ((64, 128), 32, 8)

    Raises:
        ValueError: it is not one or two integers between 1 and 65536, the height first.
    """
    words = re.split(r"\s*[x×,\s]\s*", size.strip("[]() "), flags=re.IGNORECASE) if isinstance(size, str) else [size]
    numbers: list[Any] = list(size) if isinstance(size, tuple | list) else [_as_integer(word) for word in words]
    if not 1 <= len(numbers) <= 2 or not all(type(n) is int for n in numbers):
        raise ValueError(f"{name} must be a side or height x width in pixels, such as 64 or 64x128, got {size!r}")
    for number in numbers:
        checks.integer(name, number, 1, MAX_SIDE)
    height, width = numbers[0], numbers[-1]
    return height if height == width else (height, width)


def _as_integer(word: object) -> object:
    return int(word) if isinstance(word, str) and word.isdecimal() else word


def sides(size: Size) -> tuple[int, int]:
    """(height, width) of a size."""
    parsed = parse_size("size", size)
    return parsed if isinstance(parsed, tuple) else (parsed, parsed)


@dataclass(frozen=True)
class Form(Choice):
    """The size, crop, channels and encoding of converted images.

    Args:
        size: side of square results, or height and width, (64, 128) or "64x128"; None, allowed with `crop` "none" only,
            keeps the size of the images.
        crop: "centre": the largest central part with the proportions of `size`, then Lanczos. "adm": halved by averages
            of 2×2 while both sides are at least twice `size`, then bicubic until one side is that of `size` and the
            other not smaller, then the central part, as ImageNet is prepared for ADM and EDM (Dhariwal and Nichol
            2021). "wide": the central part with sides width : `height`, Lanczos, and black bars above and below that
            fill `size`, as LSUN's cars are prepared. "pad": the whole image, Lanczos, and black bars where its
            proportions are not those of `size`. "none": the whole image, so that all images must have the same size;
            with `size` they are resized, which distorts those of other proportions.
        height: the height of the part between the bars; for "wide" only.
        channels: 1 (grey), 3 (RGB; transparent parts become white) or 4 (with alpha).
        encoding: the encoding of the results, both lossless: PNG is faster to decode, WebP is a third smaller and has 8
            bits a channel only.
        bits: bits of a channel: None keeps those of each image, 8 rounds 16 bits to 8.

    Raises:
        ValueError: a value is out of its range, or `size` and `height` do not fit `crop`.
    """

    size: Size | None = None
    crop: Crop = "centre"
    height: int | None = None
    channels: Literal[1, 3, 4] = 3
    encoding: Literal["png", "webp"] = "png"
    bits: Literal[8] | None = None

    def __post_init__(self) -> None:
        checks.one_of("crop", self.crop, ("centre", "adm", "wide", "pad", "none"))
        checks.one_of("channels", self.channels, (1, 3, 4))
        checks.one_of("encoding", self.encoding, ("png", "webp"))
        checks.one_of("bits", self.bits, (None, 8))
        if self.size is not None:
            object.__setattr__(self, "size", parse_size("size", self.size))
        elif self.crop != "none":
            raise ValueError(f"size must be given with crop={self.crop!r}, got None; crop='none' keeps the sizes")
        if (self.height is not None) != (self.crop == "wide"):
            raise ValueError(f"height must be given with crop='wide' only, got {self.height} with {self.crop!r}")
        if self.height is not None and self.size is not None:
            checks.between("height", self.height, 1, sides(self.size)[0])

    def apply(self, picture: "Image | AnyPixels", *, nearest: bool = False) -> "Image | AnyPixels":
        """The cropped and resized picture; an image is upright, in mode 1, L, RGB or RGBA.

        Args:
            picture: the picture.
            nearest: take the nearest pixel instead of a mean of several.
        """
        if self.size is None:
            return picture
        return crop_to(picture, sides(self.size), self.crop, self.height, nearest=nearest)

    def encode(self, picture: "Image | AnyPixels") -> bytes:
        """The encoded picture.

        Raises:
            ValueError: the numbers of a channel do not fit the encoding.
        """
        buffer = BytesIO()
        if isinstance(picture, np.ndarray):
            if picture.dtype != np.uint16 or self.encoding != "png":
                raise ValueError(
                    f"encoding must be 'png' for 16 bits a channel, or bits 8 to round them, got {self.encoding!r} for "
                    f"{picture.dtype}"
                )
            return encode_deep(picture)
        if self.encoding == "png":
            picture.save(buffer, format="PNG", optimize=False, compress_level=6)
        else:
            picture.save(buffer, format="WEBP", lossless=True, exact=True)
        return buffer.getvalue()


def crop_to(
    picture: "Image | AnyPixels",
    size: tuple[int, int],
    crop: Crop,
    between: int | None = None,
    *,
    nearest: bool = False,
) -> "Image | AnyPixels":
    """A picture cropped and resized to a size (height, width), as described for `Form`.

    An array keeps its type: integers are rounded.

    Args:
        picture: an image, or an array `(rows, columns, channels)` of any numbers.
        size: height and width.
        crop: how the proportions change.
        between: the height between the bars, for "wide".
        nearest: take the nearest pixel instead of a mean of several.
    """
    filter = "NEAREST" if nearest else None
    if not isinstance(picture, np.ndarray):
        if picture.mode == "1" and not nearest:
            picture = picture.convert("L")  # what is between black and white becomes grey
        return _crop_image(picture, size, crop, between, filter)
    if picture.shape[:2] == size and crop != "wide":
        return picture
    return _by_bands(picture, lambda band: _crop_image(band, size, crop, between, filter))


def resize_to(picture: "Image | AnyPixels", size: tuple[int, int], resize: Resize) -> "Image | AnyPixels":
    """A picture of any kind at a size (height, width); the same picture if it has that size."""
    import PIL.Image

    if as_size(picture) == size:
        return picture
    filter = "NEAREST" if resize == "nearest" else "BICUBIC"
    if not isinstance(picture, np.ndarray):
        if picture.mode == "1" and resize != "nearest":
            picture = picture.convert("L")
        return picture.resize(size[::-1], PIL.Image.Resampling[filter])
    return _by_bands(picture, lambda band: band.resize(size[::-1], PIL.Image.Resampling[filter]))


def as_size(picture: "Image | AnyPixels") -> tuple[int, int]:
    """Height and width of a picture."""
    return (picture.shape[0], picture.shape[1]) if isinstance(picture, np.ndarray) else picture.size[::-1]


def _by_bands(picture: AnyPixels, change: "Callable[[Image], Image]") -> Shaped[np.ndarray, "height width bands"]:
    """An array whose channels are changed one by one, in floating point."""
    import PIL.Image

    bands = [PIL.Image.fromarray(np.ascontiguousarray(band, dtype=np.float32)) for band in np.moveaxis(picture, -1, 0)]
    found = np.stack([np.asarray(change(band)) for band in bands], axis=-1)
    if np.issubdtype(picture.dtype, np.floating):
        return found.astype(picture.dtype)
    limits = np.iinfo(picture.dtype)
    return found.astype(np.float64).round().clip(limits.min, limits.max).astype(picture.dtype)


def _crop_image(
    image: "Image", size: tuple[int, int], crop: Crop, between: int | None, filter: str | None = None
) -> "Image":
    height, width = size
    if crop == "adm":
        return _crop_adm(image, width, height, filter)
    if crop in ("wide", "pad"):
        if crop == "wide":
            part = _resize(_crop_centre(image, width, between or height), width, between or height, filter)
        else:
            scale = min(width / image.width, height / image.height)
            part = _resize(image, max(1, round(image.width * scale)), max(1, round(image.height * scale)), filter)
        return _with_bars(part, width, height)
    return _resize(_crop_centre(image, width, height) if crop == "centre" else image, width, height, filter)


def _crop_centre(image: "Image", across: int, down: int) -> "Image":
    """The largest part with sides `across` : `down` around the centre, in whole pixels."""
    width = min(image.width, max(1, round(image.height * across / down)))
    height = min(image.height, max(1, round(image.width * down / across)))
    left, top = (image.width - width) // 2, (image.height - height) // 2
    # Cropped first: the filter of resize(box=…) would use pixels outside the box.
    return image.crop((left, top, left + width, top + height))


def _resize(image: "Image", width: int, height: int, filter: str | None = None) -> "Image":
    import PIL.Image

    return image.resize((width, height), PIL.Image.Resampling["LANCZOS" if filter is None else filter])


def _crop_adm(image: "Image", width: int, height: int, filter: str | None = None) -> "Image":
    import PIL.Image

    halving = PIL.Image.Resampling["BOX" if filter is None else filter]
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), halving)
    scale = max(width / image.width, height / image.height)
    last = PIL.Image.Resampling["BICUBIC" if filter is None else filter]
    image = image.resize((round(image.width * scale), round(image.height * scale)), last)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _with_bars(image: "Image", width: int, height: int) -> "Image":
    """The image in the middle of a black one."""
    import PIL.Image

    black = (0, 0, 0, 255) if image.mode == "RGBA" else 0
    full = PIL.Image.new(image.mode, (width, height), black)
    full.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return full
