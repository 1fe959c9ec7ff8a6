"""Images that are the conditions of other images: read, resized and cropped as those are."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional

from openedm.data.decoding import as_array, decode_picture, to_tensor
from openedm.data.forms import Crop, Resize, crop_to, resize_to
from openedm.data.stored import common_type, promote

if TYPE_CHECKING:
    from openedm.data.encoded import EncodedImages

__all__ = ["ConditionImages", "resize_images"]


def resize_images(
    x: Float[Tensor, "batch channels height width"], size: tuple[int, int], resize: Resize
) -> Float[Tensor, "batch channels rows columns"]:
    """Images at another height and width; bicubic with antialiasing, or nearest.

    Bicubic interpolation leaves the range of the values beside edges. An image in [-1, 1] is cut to this range, as
    pictures are to the range of their bytes; values in other units are not cut. Each image is resized by itself: the
    result does not depend on the others.
    """
    if tuple(x.shape[2:]) == size:
        return x
    if resize == "nearest":
        return functional.interpolate(x, size, mode="nearest-exact")
    resized = functional.interpolate(x, size, mode="bicubic", antialias=True)
    inside = (x.abs() <= 1).flatten(1).all(1).reshape(-1, 1, 1, 1)
    return torch.where(inside, resized.clamp(-1, 1), resized)


class ConditionImages:
    """Decodes the image that is the condition of each sample, at the size of the samples.

    An image of another size than the stored image of its sample is first resized to that; then both are cropped alike.

    Args:
        images: one image a sample, in the order of the samples.
        size: height and width of the samples.
        cropped: whether the samples are cropped and resized to `size`; otherwise they have it.
        crop: how.
        resize: how sizes change; "nearest" keeps the numbers of pixels.

    Attributes:
        shape: (channels, height, width) of a condition.
        dtype: the type of its stored numbers.

    Raises:
        ValueError: the numbers of channels or the types differ, by name.
    """

    def __init__(
        self, images: "EncodedImages", size: tuple[int, int], *, cropped: bool, crop: Crop, resize: Resize
    ) -> None:
        self._images, self._size, self._cropped, self._crop = images, size, cropped, crop
        self._resize: Resize = resize
        self._first = images.describe(0)
        self.dtype, channels, resized = "", 0, cropped
        for index, header in enumerate(images.shapes()):
            name = images.describe(index)
            channels = channels or header.channels
            if header.channels != channels:
                raise ValueError(
                    f"{name} has {header.channels} channels, but {self._first} has {channels}: convert the images that "
                    "are conditions"
                )
            self.dtype = common_type(self.dtype or header.dtype, header.dtype, name, self._first)
            resized = resized or header[1:3] != size
        if resized and resize != "nearest" and self.dtype == "bool":
            self.dtype = "uint8"  # resizing makes grey
        self.shape = (channels, *size)

    def read(
        self, indices: Sequence[int], sizes: Sequence[tuple[int, int]]
    ) -> Shaped[Tensor, "rows channels height width"]:
        """The stored numbers of the conditions at `indices`.

        Args:
            indices: which.
            sizes: height and width of the stored images of their samples.

        Raises:
            ValueError: an image cannot be decoded or has other channels, by name.
        """
        pixels = torch.empty(len(indices), *self.shape, dtype=getattr(torch, self.dtype))
        for row, (content, _) in enumerate(self._images.read(indices)):
            name = self._images.describe(indices[row])
            picture = decode_picture(io.BytesIO(content), name, self.shape[0])
            picture = resize_to(picture, sizes[row], self._resize)
            if self._cropped:
                picture = crop_to(picture, self._size, self._crop, nearest=self._resize == "nearest")
            pixels[row] = to_tensor(promote(as_array(picture), self.dtype, None, name, self._first))
        return pixels
