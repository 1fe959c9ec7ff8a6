"""The U-Nets DDPM++, NCSN++ and ADM, for series, images and volumes: an encoder, a decoder and the skips between them.

    e = embedding of c_noise, class, augmentation and vector condition;  x ← [x, image condition]
    encoder, level ℓ = 0, 1, …:  conv3×3 (ℓ = 0) or a block that halves the size, then the auxiliary path:
        residual   x ← aux ← (x + down(conv3×3(aux)))/√2      aux starts as the network's input
        skip       x ← x + conv1×1(aux), aux ← down(aux)
    then num_blocks blocks; every x from here on is kept as a skip
    decoder, levels backwards:   two blocks (lowest level) or a block that doubles the size; then num_blocks + 1 blocks,
        each on [x, skip], with the encoder's outputs as skips, in reverse order
    F = conv3×3(silu(norm(x))), or, with the skip decoder, the sum of such images of all levels: F ← up(F) + conv3×3(…)

With patch_size p the network's image is the input with its blocks of pᵈ values as channels, and F is put together from
such blocks: a p-th of the resolution, whose convolutions over many channels cost less than those over many positions.

The papers' networks are two-dimensional. In one dimension conv3×3 means three values, in three dimensions 3×3×3, and
"size" each axis other than the channels; nothing else differs.

Sources: Karras et al. 2022 (arXiv 2206.00364), Appendix F.1; Song et al. 2021 (arXiv 2011.13456), Appendix H.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from openedm.ground import checks
from openedm.networks.blocks import EMBEDDINGS, ResidualBlock, UNetStyle
from openedm.networks.conditions import join_image
from openedm.networks.embeddings import Embedding
from openedm.networks.layers import CONVOLUTIONS, Downsample, PadToEven, Upsample, group_norm, seeded
from openedm.networks.network import GRIDS, Labels, Network, RawNetwork, Signature
from openedm.networks.patches import blocks_to_channels, channels_to_blocks
from openedm.networks.pointwise import silu_of

__all__ = ["DecoderLevel", "EncoderLevel", "SkipPath", "UNet", "UNetNetwork", "attention_levels", "level_resolutions"]


@dataclass(frozen=True)
class UNetNetwork(Network):
    """A U-Net: its fields are the sizes, its `style` is the design; see `openedm.networks.designs`.

    Attributes:
        patch_size: the size of the blocks of the data that are one position of the finest level, with their values as
            channels; 1 in the papers. 2 halves every resolution, for a third less time with as many operations.
        attends_near: the resolutions with attention if `attn_resolutions` is None; the nearest level is used for each.
    """

    model_channels: int = 128
    channel_mult: tuple[int, ...] = (2, 2, 2)
    channel_mult_emb: int = 4
    num_blocks: int = 4
    attn_resolutions: tuple[int, ...] | None = None
    dropout: float = 0.10
    patch_size: int = field(default=1, kw_only=True)

    axes: ClassVar = GRIDS
    condition_kinds: ClassVar = ("vector", "image")
    attends_near: ClassVar[tuple[int, ...]] = (16,)

    @property
    @abstractmethod
    def style(self) -> UNetStyle:
        """The design."""

    def __post_init__(self) -> None:
        sizes = {
            name: getattr(self, name) for name in ("model_channels", "channel_mult_emb", "num_blocks", "patch_size")
        }
        sizes["number of channel_mult"] = len(self.channel_mult)
        sizes |= {f"channel_mult[{level}]": multiplier for level, multiplier in enumerate(self.channel_mult)}
        for name, size in sizes.items():
            checks.size(name, size)
        if self.model_channels % 2:
            raise ValueError(
                f"model_channels must be even (a sine and a cosine for each frequency), got {self.model_channels}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be >= 0 and < 1, got {self.dropout!r}")
        for resolution in self.attn_resolutions or ():
            checks.at_least("attn_resolutions", resolution, 1)
        self.style.num_heads(self.channels[-1])  # The lowest level has attention in any case.

    @property
    def channels(self) -> tuple[int, ...]:
        """The channels of the levels, finest first."""
        return tuple(self.model_channels * multiplier for multiplier in self.channel_mult)

    def module(self, signature: Signature, seed: int | None) -> "UNet":
        """The U-Net for series, images or volumes; see `Network.build`.

        Raises:
            ValueError: `attn_resolutions` names a resolution that no level has. A level's resolution is its longest
                side.
        """
        with seeded(seed):
            return UNet(self, signature)

    def attention_at(self, resolutions: Sequence[int]) -> tuple[int, ...]:
        """The resolutions of the levels that have attention.

        Raises:
            ValueError: `attn_resolutions` names a resolution that no level has.
        """
        return attention_levels(resolutions, self.attn_resolutions, self.attends_near)


class UNet(RawNetwork):
    """The raw network F of a U-Net: `unet(x, c_noise, condition=None, augment=None)`.

    The input may have other sizes than those that the network was built for, which may also be unequal: the latter only
    determine which levels have attention. Sizes that are not multiples of `patch_size` are padded by repeating the last
    values, and odd sizes by one on the way down; both are cropped on the way up. An axis that has reached size 1 keeps
    it at all lower levels.

    Args:
        choice: the sizes and the design.
        signature: the shapes of its inputs and its output.

    Attributes:
        dimension: the number of axes besides channels: 1 for series, 2 for images, 3 for volumes.
        resolutions: the longest side of each level, finest first.

    Raises:
        ValueError: `attn_resolutions` names a resolution that no level has, or a level with attention does not divide
            into heads.
    """

    choice: UNetNetwork

    def __init__(self, choice: UNetNetwork, signature: Signature) -> None:
        super().__init__(choice, signature)
        style, channels = choice.style, choice.channels
        self.dimension = len(signature.event_shape) - 1
        convolution = CONVOLUTIONS[self.dimension]
        volume = choice.patch_size**self.dimension
        in_channels, out_channels = signature.joined_channels * volume, signature.out_channels * volume
        self.resolutions = level_resolutions(-(-max(signature.event_shape[1:]) // choice.patch_size), len(channels))
        attending = choice.attention_at(self.resolutions)
        has_attention = [resolution in attending for resolution in self.resolutions]
        self.embedding = Embedding(
            EMBEDDINGS[style.embedding](choice.model_channels * style.channel_mult_noise),
            choice.model_channels * choice.channel_mult_emb,
            signature,
            init=style.init,
            late_classes=style.late_classes,
        )
        stem_channels = channels[0] if style.stem_multiplied else choice.model_channels
        self.conv_in = convolution(in_channels, stem_channels, 3, init=style.init)
        block = partial(
            ResidualBlock,
            embedding_channels=choice.model_channels * choice.channel_mult_emb,
            style=style,
            dropout=choice.dropout,
            dimension=self.dimension,
        )

        self.encoder = nn.ModuleList()
        skip_channels: list[int] = []
        current, aux_channels = stem_channels, in_channels
        for level, width in enumerate(channels):
            down = block(current, current, resample="down") if level > 0 else None
            auxiliary: nn.Module | None = None
            if level > 0 and style.encoder == "residual":
                auxiliary = ResidualPath(aux_channels, current, style, self.dimension)
                aux_channels = current
            elif level > 0 and style.encoder == "skip":
                auxiliary = SkipPath(aux_channels, current, style, self.dimension)
            widths = [current, *[width] * choice.num_blocks]
            blocks = [block(c, width, has_attention=has_attention[level]) for c in widths[:-1]]
            self.encoder.append(EncoderLevel(down, auxiliary, blocks))
            skip_channels += widths
            current = width

        self.decoder = nn.ModuleList()
        for level, width in reversed(list(enumerate(channels))):
            lowest = level == len(channels) - 1
            bottom = [block(current, current, has_attention=True), block(current, current)] if lowest else []
            enter = bottom or [block(current, current, resample="up")]
            blocks = []
            for index in range(choice.num_blocks + 1):
                attends = has_attention[level] and (style.attends_throughout or index == choice.num_blocks)
                blocks.append(block(current + skip_channels.pop(), width, has_attention=attends))
                current = width
            output: nn.Module | None = None
            if style.decoder == "skip" and level > 0:
                output = Output(current, out_channels, style, self.dimension)
            self.decoder.append(DecoderLevel(enter, blocks, output))
        self.norm_out = group_norm(current, style.norm_eps)
        self.conv_out = convolution(current, out_channels, 3, init=style.init_output)
        self.up_image: Upsample | None = None
        if style.decoder == "skip":
            self.up_image = Upsample(out_channels, style.resample_filter, dimension=self.dimension)

    def forward(
        self,
        x: Float[Tensor, "batch *event"],
        c_noise: Float[Tensor, " batch"],
        condition: Labels | Float[Tensor, "conditions *shape"] | None = None,
        augment: Float[Tensor, "rows augment_dim"] | None = None,
    ) -> Float[Tensor, "batch *out"]:
        """F(x; c_noise), of shape (batch, out_channels, *size); see `RawNetwork.forward`."""
        self.signature.check(x, c_noise, condition, augment, self.choice.axes)
        e = self.embedding(c_noise, condition, augment)
        joined, patch = join_image(self.signature, x, condition), self.choice.patch_size
        x = joined if patch == 1 else blocks_to_channels(joined, patch)
        x, aux = self.conv_in(x), x
        skips: list[Tensor] = []
        for level in self.encoder:
            x, aux = level(x, aux, e, skips)
        image: Tensor | None = None
        for level in self.decoder:
            x, part = level(x, e, skips)
            if part is not None:
                image = self._add_upsampled(part, image)
        result: Tensor = self.conv_out(silu_of(self.norm_out, x))
        result = self._add_upsampled(result, image)
        return result if patch == 1 else channels_to_blocks(result, patch, joined.shape[2:])

    def _add_upsampled(
        self, part: Float[Tensor, "batch c *size"], image: Float[Tensor, "batch c *half"] | None
    ) -> Float[Tensor, "batch c *size"]:
        """The sum of one level's part of the output image and, upsampled, of the parts of the levels below it."""
        if image is None or self.up_image is None:
            return part
        below: Tensor = self.up_image(image)
        return part + _fit(below, part)


class ResidualPath(nn.Module):
    """NCSN++'s auxiliary path: x ← aux ← (x + down(conv3×3(aux)))/√2.

    All the padding is in front of the convolution. An odd size is first padded to even, as in `Downsample`.
    """

    def __init__(self, aux_channels: int, channels: int, style: UNetStyle, dimension: int = 2) -> None:
        super().__init__()
        margin = (len(style.resample_filter) - 1) // 2
        self.conv = CONVOLUTIONS[dimension](
            aux_channels, channels, 3, init=style.init, resample=PadToEven(style.resample_filter), extra_padding=margin
        )
        self.down = Downsample(channels, style.resample_filter, dimension=dimension, padding=0)
        self.scale = style.skip_scale

    def forward(
        self, x: Float[Tensor, "batch c *size"], aux: Float[Tensor, "batch a *above"]
    ) -> tuple[Float[Tensor, "batch c *size"], Float[Tensor, "batch c *size"]]:
        """The new x and the new auxiliary image, which are equal in this path."""
        x = (x + self.down(self.conv(aux))) * self.scale
        return x, x


class SkipPath(nn.Module):
    """The auxiliary path that adds the input at each level's size: aux ← down(aux), x ← x + conv1×1(aux)."""

    def __init__(self, aux_channels: int, channels: int, style: UNetStyle, dimension: int = 2) -> None:
        super().__init__()
        self.down = Downsample(aux_channels, style.resample_filter, dimension=dimension)
        self.conv = CONVOLUTIONS[dimension](aux_channels, channels, 1, init=style.init)

    def forward(
        self, x: Float[Tensor, "batch c *size"], aux: Float[Tensor, "batch a *above"]
    ) -> tuple[Float[Tensor, "batch c *size"], Float[Tensor, "batch a *size"]]:
        """The new x and the new auxiliary image."""
        aux = self.down(aux)
        return x + self.conv(aux), aux


class Output(nn.Module):
    """A level's part of the image that the skip decoder returns: conv3×3(silu(norm(x)))."""

    def __init__(self, channels: int, out_channels: int, style: UNetStyle, dimension: int = 2) -> None:
        super().__init__()
        self.norm = group_norm(channels, style.norm_eps)
        self.conv = CONVOLUTIONS[dimension](channels, out_channels, 3, init=style.init_output)

    def forward(self, x: Float[Tensor, "batch c *size"]) -> Float[Tensor, "batch out *size"]:
        """The part, (batch, out_channels, *size)."""
        part: Tensor = self.conv(silu_of(self.norm, x))
        return part


def concatenate(
    x: Float[Tensor, "batch a *size"], skip: Float[Tensor, "batch b *size"]
) -> Float[Tensor, "batch c *size"]:
    """[x, skip] on the channels."""
    return torch.cat([x, skip], dim=1)


class EncoderLevel(nn.Module):
    """One level of the encoder: the halving block and the auxiliary path, except at the finest level, then blocks."""

    def __init__(self, down: nn.Module | None, auxiliary: nn.Module | None, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.down, self.auxiliary, self.blocks = down, auxiliary, nn.ModuleList(blocks)

    def forward(
        self,
        x: Float[Tensor, "batch c *size"],
        aux: Float[Tensor, "batch a *above"],
        e: Float[Tensor, "batch e"],
        skips: list[Tensor],
    ) -> tuple[Float[Tensor, "batch _ ..."], Float[Tensor, "batch _ ..."]]:
        """The level's x and auxiliary image. Appends every output of the main path to `skips`."""
        if self.down is not None:
            x = self.down(x, e)
        if self.auxiliary is not None:
            x, aux = self.auxiliary(x, aux)
        skips.append(x)
        for block in self.blocks:
            x = block(x, e)
            skips.append(x)
        return x, aux


class DecoderLevel(nn.Module):
    """One level of the decoder: the block that doubles the size (two that keep it at the lowest level), then the
    blocks.

    With `output`, it also returns the level's part of the image. `join` makes the input of a block of x and a skip.
    """

    def __init__(
        self,
        enter: Sequence[nn.Module],
        blocks: Sequence[nn.Module],
        output: nn.Module | None,
        join: Callable[[Tensor, Tensor], Tensor] = concatenate,
    ) -> None:
        super().__init__()
        self.enter, self.blocks, self.output = nn.ModuleList(enter), nn.ModuleList(blocks), output
        self.join = join

    def forward(
        self, x: Float[Tensor, "batch c *size"], e: Float[Tensor, "batch e"], skips: list[Tensor]
    ) -> tuple[Float[Tensor, "batch d *new"], Float[Tensor, "batch out *new"] | None]:
        """The level's x and its part of the image, if any. Removes one entry from the end of `skips` for each block."""
        for block in self.enter:
            x = block(x, e)
        x = _fit(x, skips[-1])
        for block in self.blocks:
            x = block(self.join(x, skips.pop()), e)
        return x, None if self.output is None else self.output(x)


def level_resolutions(resolution: int, num_levels: int) -> tuple[int, ...]:
    """The resolutions of a U-Net's levels, finest first: each half of the one before, rounded up.

    >>> level_resolutions(28, 3), level_resolutions(25, 3)
    ((28, 14, 7), (25, 13, 7))
    """
    return tuple(-(-resolution // 2**level) for level in range(num_levels))


def attention_levels(
    resolutions: Sequence[int], chosen: tuple[int, ...] | None, near: Sequence[int]
) -> tuple[int, ...]:
    """The resolutions of the levels that have attention.

    Args:
        resolutions: those of all levels.
        chosen: those with attention; None for the levels nearest to `near`.
        near: resolutions, of levels or not.

    Raises:
        ValueError: `chosen` names a resolution that no level has.
    """
    if chosen is None:
        nearest = (min(resolutions, key=lambda level: abs(level - each)) for each in near)
        return tuple(dict.fromkeys(nearest))
    absent = [r for r in chosen if r not in resolutions]
    if absent:
        raise ValueError(
            f"attn_resolutions must be among the resolutions of the levels, {list(resolutions)}, got {absent}"
        )
    return chosen


def _fit(x: Float[Tensor, "batch c *size"], like: Tensor) -> Float[Tensor, "batch c *fitted"]:
    """The first entries of `x` along each axis, as many as in `like`; the last is repeated where one is missing.

    An upsampled image is one larger than an image of odd size; by a filter with an odd number of taps it is one smaller
    than an image of even size.
    """
    for axis in range(2, x.ndim):
        if x.shape[axis] < like.shape[axis]:
            x = torch.cat([x, x.narrow(axis, x.shape[axis] - 1, 1)], dim=axis)
        elif x.shape[axis] > like.shape[axis]:  # not otherwise: the gradient of a slice is a copy, channels first
            x = x.narrow(axis, 0, like.shape[axis])
    return x
