"""What pictures are turned into: one size, as many channels, one encoding."""

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Literal

from openedm.data.decoding import central, resized
from openedm.ground import checks
from openedm.ground.choices import Choice

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Form(Choice):
    """What each picture becomes.

    Args:
        size: side of the square results; None, with `crop` "none" alone, leaves pictures as they are.
        crop: "centre": the central square, then Lanczos. "adm": halved by averages of 2×2 as long as both sides stay at
            least twice `size`, then bicubic until the shorter side is `size`, then the central square; what ImageNet
            is prepared with for ADM and EDM (Dhariwal and Nichol 2021). "wide": the central part with sides `size` :
            `height`, Lanczos, and black bars above and below that make it a square, as LSUN's cars are prepared.
            "none": nothing is cut off, so that all pictures must be of one size; with `size` they are resized, and
            those that are not square are distorted.
        height: for "wide", and for it alone: height of the part between the bars.
        channels: 1 (grey), 3 (RGB; transparent parts become white) or 4 (with alpha).
        encoding: of the results, both without loss: PNG is faster to decode, WebP takes a third less space.

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
            raise ValueError(f"size must be given with crop={self.crop!r}, got None; crop='none' leaves sizes alone")
        if (self.height is not None) != (self.crop == "wide"):
            raise ValueError(f"height must be given with crop='wide' alone, got {self.height} with {self.crop!r}")
        if self.height is not None and self.size is not None:
            checks.between("height", self.height, 1, self.size)

    def apply(self, picture: "Image") -> "Image":
        """The cropped and resized picture; `picture` is upright, in mode L, RGB or RGBA."""
        if self.size is None:
            return picture
        if self.crop == "adm":
            return _adm(picture, self.size)
        if self.crop == "wide":
            return _wide(picture, self.size, self.height or self.size)
        return resized(central(picture, 1, 1) if self.crop == "centre" else picture, self.size, self.size)

    def encode(self, picture: "Image") -> bytes:
        """The file's content."""
        buffer = BytesIO()
        if self.encoding == "png":
            picture.save(buffer, format="PNG", optimize=False, compress_level=6)
        else:
            picture.save(buffer, format="WEBP", lossless=True, exact=True)
        return buffer.getvalue()


def _adm(picture: "Image", size: int) -> "Image":
    import PIL.Image

    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), PIL.Image.Resampling.BOX)
    scale = size / min(picture.size)
    sides = (round(picture.width * scale), round(picture.height * scale))
    picture = picture.resize(sides, PIL.Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return picture.crop((left, top, left + size, top + size))


def _wide(picture: "Image", width: int, height: int) -> "Image":
    import PIL.Image

    black = (0, 0, 0, 255) if picture.mode == "RGBA" else 0
    square = PIL.Image.new(picture.mode, (width, width), black)
    square.paste(resized(central(picture, width, height), width, height), (0, (width - height) // 2))
    return square
