"""Conversion of samples in [-1, 1] to bytes, grids and image files."""

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from openedm.data.deep import AnyPixels, encode_deep
from openedm.data.stored import Stored
from openedm.ground import checks
from openedm.ground.storage import replacing

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "IMAGE_CHANNELS",
    "Pixels",
    "beside",
    "captioned",
    "encode_image",
    "grid_columns",
    "image_grid",
    "save_image",
    "to_image",
    "to_pixels",
    "to_uint8",
]

Pixels = UInt8[np.ndarray, "rows columns bands"]
IMAGE_CHANNELS = (1, 3, 4)
CAPTION_POINTS = 11
"""The size of texts above the columns of a grid."""
CAPTION_MARGIN = 5
"""Pixels of background above those texts."""
MAX_CLASS_COLUMNS = 20
"""The largest number of classes with a column each in a grid."""
"""The numbers of channels that an image file can hold: grey, RGB, RGB with alpha."""


def to_uint8(x: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """`x` in [-1, 1] as bytes: round(127.5 (x + 1)), clipped to 0 … 255; the inverse of x = byte / 127.5 − 1.

    >>> to_uint8(torch.tensor([-1.0, 0.0, 1.0, 7.0]))
    tensor([  0, 128, 255, 255], dtype=torch.uint8)

    Raises:
        ValueError: `x` has NaN, which cannot be converted to a byte.
    """
    if x.isnan().any():
        raise ValueError(f"x must not have NaN, got {int(x.isnan().sum())} among {x.numel()} values")
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_pixels(x: Float[Tensor, "channels height width"], stored: Stored | None = None) -> AnyPixels:
    """A sample in [-1, 1] as the pixels of an image file, `(height, width, channels)`.

    Bytes by default, 16 bits for `stored` in uint16, and bool for a mask of one channel. Integers with a range are the
    stored numbers.

    Raises:
        ValueError: `x` has NaN.
    """
    if stored is None or stored.dtype not in ("bool", "uint8", "uint16") or (stored.bits == 1 and len(x) > 1):
        pixels: Pixels = to_uint8(x.detach()).cpu().permute(1, 2, 0).numpy()
        return pixels
    found: AnyPixels = Stored(stored.dtype, stored.range, channels_last=True).restore(x[None])[0]
    return found


def image_grid(
    x: Float[Tensor, "batch channels height width"],
    columns: int | None = None,
    *,
    padding: int = 1,
    scale: int = 1,
    background: int = 255,
) -> Pixels:
    """Images side by side, row by row, as one array of bytes `(height, width, channels)`.

    >>> image_grid(torch.zeros(6, 1, 8, 8), columns=3, scale=2).shape
    (33, 50, 1)

    Args:
        x: images in [-1, 1] with 1 (grey), 3 (RGB) or 4 (RGB and alpha) channels. Of any other number of channels the
            first three are shown as RGB, of two channels the first.
        columns: images in a row; ⌈√batch⌉ by default.
        padding: pixels between images.
        scale: enlarge each image by this whole factor, without smoothing.
        background: the byte between the images and in the empty part of the last row.

    Raises:
        ValueError: an argument is outside its range, there are no images, or they have NaN.
    """
    x = x if x.shape[1] in IMAGE_CHANNELS else x[:, : 1 if x.shape[1] == 2 else 3]
    batch, channels, height, width = x.shape
    checks.at_least("the number of images in x", batch, 1)
    columns = math.ceil(math.sqrt(batch)) if columns is None else columns
    checks.at_least("columns", columns, 1)
    checks.at_least("padding", padding, 0)
    checks.at_least("scale", scale, 1)
    checks.between("background", background, 0, 255)
    columns = min(columns, batch)
    rows = math.ceil(batch / columns)
    pixels = to_uint8(x.detach()).cpu().repeat_interleave(scale, 2).repeat_interleave(scale, 3).numpy()
    down, right = height * scale + padding, width * scale + padding
    grid = np.full((rows * down - padding, columns * right - padding, channels), background, dtype=np.uint8)
    for i, image in enumerate(pixels):
        top, left = i // columns * down, i % columns * right
        grid[top : top + height * scale, left : left + width * scale] = image.transpose(1, 2, 0)
    return grid


def captioned(
    grid: Pixels, captions: Sequence[str], *, padding: int = 1
) -> UInt8[np.ndarray, "captioned_rows columns bands"]:
    """A grid with a text above each of its columns, in a strip of background: upright where all fit, else downwards.

    >>> captioned(image_grid(torch.zeros(4, 1, 32, 32)), ["cat", "dog"]).shape[1]
    65

    Args:
        grid: bytes `(height, width, channels)`, as `image_grid` makes them.
        captions: a text a column.
        padding: pixels between the columns.

    Raises:
        ValueError: there are no captions.
    """
    from PIL import Image, ImageDraw, ImageFont

    checks.at_least("the number of captions", len(captions), 1)
    height, width, channels = grid.shape
    right, font = (width + padding) // len(captions), ImageFont.load_default(CAPTION_POINTS)
    boxes = [font.getbbox(text) for text in captions]
    longest, tallest = (max(int(box[side]) for box in boxes) for side in (2, 3))
    upright = longest <= right - padding
    tall = (tallest if upright else longest) + CAPTION_MARGIN + 1
    strip = Image.new("L", (width, tall), 255)
    for i, (text, box) in enumerate(zip(captions, boxes, strict=True)):
        tile = Image.new("L", (int(box[2]), tallest), 255)
        ImageDraw.Draw(tile).text((0, 0), text, fill=0, font=font)
        tile = tile if upright else tile.rotate(90, expand=True)
        left = i * right + max(right - padding - tile.width, 0) // 2
        strip.paste(tile, (left, tall - tile.height - 1))
    found = np.full((height + tall, width, channels), 255, dtype=np.uint8)
    found[:tall, :, : min(channels, 3)] = np.asarray(strip)[:, :, None]
    found[tall:] = grid
    return found


def beside(
    conditions: Float[Tensor, "batch bands height width"], x: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "tiles shown height width"]:
    """Each image behind the image that is its condition, for a grid with an even number of columns.

    Conditions with values outside [-1, 1] are scaled to it together. Of two channels the first is shown, of five and
    more the first three.
    """
    low, high = float(conditions.min()), float(conditions.max())
    if low < -1 - 1e-3 or high > 1 + 1e-3:
        conditions = (conditions - low) / max(high - low, 1e-12) * 2 - 1
    tiles = [t if t.shape[1] in (1, 3) else t[:, : 1 if t.shape[1] == 2 else 3] for t in (conditions.to(x), x)]
    shown = max(t.shape[1] for t in tiles)
    return torch.stack([t.expand(-1, shown, -1, -1) for t in tiles], 1).flatten(0, 1)


def grid_columns(labels: Int64[Tensor, "seeds"] | None) -> int | None:
    """The columns of a grid of samples: one a class for 2 to MAX_CLASS_COLUMNS classes; or None, for a square grid."""
    classes = 0 if labels is None else len(set(labels.tolist()))
    return classes if 2 <= classes <= MAX_CLASS_COLUMNS else None


def to_image(image: AnyPixels | Float[Tensor, "channels height width"]) -> "Image":
    """A PIL image, from bytes or bool `(height, width, channels)` or a sample in [-1, 1] `(channels, …)`.

    Raises:
        ValueError: the number of channels is not 1, 3 or 4, or there are NaN.
    """
    import PIL.Image

    array = to_uint8(image.detach()).cpu().permute(1, 2, 0).numpy() if isinstance(image, Tensor) else image
    checks.one_of("channels of image", array.shape[-1], IMAGE_CHANNELS)
    return PIL.Image.fromarray(array[:, :, 0] if array.shape[-1] == 1 else array)


def save_image(
    image: AnyPixels | Float[Tensor, "channels height width"],
    path: str | os.PathLike[str],
    stored: Stored | None = None,
) -> None:
    """Write one image in the format of the suffix of `path`.

    The file appears complete or not at all.

    Args:
        image: pixels `(height, width, channels)` in bytes, 16 bits or bool, or a sample in [-1, 1] `(channels, …)`.
        path: the file to write; 16 bits require .png.
        stored: how the data of the sample are stored, which decides on the bits of a channel; None for bytes.

    Raises:
        ValueError: as for `to_image`, the suffix is not that of a known image format, or 16 bits are not for .png.
    """
    content = encode_image(image, path, stored)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def encode_image(
    image: AnyPixels | Float[Tensor, "channels height width"],
    path: str | os.PathLike[str],
    stored: Stored | None = None,
) -> bytes:
    """The content of the file that `save_image` writes; arguments and errors are the same."""
    import PIL.Image

    path = Path(path)
    image_format = PIL.Image.registered_extensions().get(path.suffix.lower())
    if image_format is None:
        raise ValueError(f"path must end in an image format such as .png, got {str(path)!r}")
    pixels = to_pixels(image, stored) if isinstance(image, Tensor) else image
    checks.one_of("channels of image", pixels.shape[-1], IMAGE_CHANNELS)
    if pixels.dtype == np.uint16:
        checks.one_of("the format of 16 bits a channel", image_format, ("PNG",))
        return encode_deep(pixels)
    buffer = io.BytesIO()
    to_image(pixels).save(buffer, format=image_format)
    return buffer.getvalue()
