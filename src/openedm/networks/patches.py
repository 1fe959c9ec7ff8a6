"""Blocks of pᵈ values as channels, and back: (channels, *size) ↔ (channels · pᵈ, *⌈size/p⌉).

The channels are ordered (channel, position in the block), the last axis fastest, as in `torch.pixel_unshuffle`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["blocks_to_channels", "channels_to_blocks"]


def blocks_to_channels(x: Float[Tensor, "batch channels *size"], patch: int) -> Float[Tensor, "batch more *fewer"]:
    """The values of every block of `patch` along each axis as channels of one position.

    Sizes that are not multiples of `patch` are padded by repeating the last values.

    >>> blocks_to_channels(torch.tensor([[[1.0, 2.0, 3.0]]]), 2)
    tensor([[[1., 3.],
             [2., 3.]]])
    """
    dimension = x.ndim - 2
    for axis in range(2, x.ndim):
        if missing := -x.shape[axis] % patch:
            last = x.narrow(axis, x.shape[axis] - 1, 1)
            x = torch.cat([x, last.expand(*[missing if i == axis else -1 for i in range(x.ndim)])], dim=axis)
    grid = [side // patch for side in x.shape[2:]]
    split = x.reshape(*x.shape[:2], *(part for side in grid for part in (side, patch)))
    within, among = range(3, 3 + 2 * dimension, 2), range(2, 2 + 2 * dimension, 2)
    return split.permute(0, 1, *within, *among).reshape(len(x), -1, *grid)


def channels_to_blocks(
    x: Float[Tensor, "batch more *fewer"], patch: int, size: Sequence[int]
) -> Float[Tensor, "batch channels *size"]:
    """The inverse of `blocks_to_channels`, cropped to `size`.

    >>> channels_to_blocks(torch.tensor([[[1.0, 3.0], [2.0, 3.0]]]), 2, (3,))
    tensor([[[1., 2., 3.]]])
    """
    dimension, grid = x.ndim - 2, x.shape[2:]
    split = x.reshape(len(x), -1, *[patch] * dimension, *grid)
    order = (axis for i in range(dimension) for axis in (2 + dimension + i, 2 + i))
    joined = split.permute(0, 1, *order).reshape(len(x), -1, *(side * patch for side in grid))
    for axis, side in enumerate(size, start=2):
        joined = joined.narrow(axis, 0, side)
    return joined
