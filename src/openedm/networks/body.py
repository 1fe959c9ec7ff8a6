"""What the U-Nets DDPM++, NCSN++ and ADM share: the way down, the way up and what leads from one to the other.

    encoder, level ℓ = 0, 1, …:  conv3×3 (ℓ = 0) or a block that halves the size, then the auxiliary path:
        residual   x ← aux ← (x + down(conv3×3(aux)))/√2      aux = the network's input at first
        skip       x ← x + conv1×1(aux), aux ← down(aux)
    then num_blocks blocks; every x from here on is kept as a skip
    decoder, levels backwards:   two blocks (lowest level) or a block that doubles the size; then num_blocks + 1 blocks,
        each on [x, skip], the skips being the encoder's outputs in reverse
    F = conv3×3(silu(norm(x))), or, with the skip decoder, the sum of such images of all levels: F ← up(F) + conv3×3(…)

Sources: Karras et al. 2022 (arXiv 2206.00364), Appendix F.1; Song et al. 2021 (arXiv 2011.13456), Appendix H.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from openedm.ground import checks
from openedm.networks.blocks import BlockStyle, ResidualBlock
from openedm.networks.embeddings import Labels, check_inputs
from openedm.networks.layers import Conv2d, Downsample, FusedDownConv2d, Upsample, filter_kernel, group_norm

ENCODERS = ("standard", "skip", "residual")
DECODERS = ("standard", "skip")


@dataclass(frozen=True)
class Plan:
    """The sizes of a U-Net's levels.

    Attributes:
        resolution: the longer side of the image.
        stem_channels: the channels of the first convolution's output.
        channels: those of the levels, finest first.
        embedding_channels: those of the embedding e.
        num_blocks: blocks in a level of the encoder; the decoder has one more.
        attn_resolutions: the levels with attention, by their resolution.
        attends_throughout: whether all decoder blocks of such a level have attention, or only the last.
        encoder, decoder: which of `ENCODERS` and `DECODERS`.
    """

    resolution: int
    stem_channels: int
    channels: tuple[int, ...]
    embedding_channels: int
    num_blocks: int
    attn_resolutions: tuple[int, ...]
    attends_throughout: bool = False
    encoder: str = "standard"
    decoder: str = "standard"


class UNetBody(nn.Module):
    """A U-Net around an embedding of what it is told: `body(x, c_noise, condition=None, augment=None)`.

    Args:
        embedding: (c_noise, condition, augment) → e, (batch, embedding_channels).
        in_channels, out_channels: channels of the input and of F.
        num_classes, augment_dim: the widths of the labels that the embedding takes, 0 for none.
        plan: the sizes.
        style: what the blocks share.

    Raises:
        ValueError: an argument is out of its range, or `attn_resolutions` names a resolution that no level has.
    """

    def __init__(
        self,
        embedding: nn.Module,
        in_channels: int,
        out_channels: int,
        *,
        num_classes: int,
        augment_dim: int,
        plan: Plan,
        style: BlockStyle,
    ) -> None:
        super().__init__()
        counts = {"resolution": plan.resolution, "in_channels": in_channels, "out_channels": out_channels}
        for name, count in counts.items():
            checks.at_least(name, count, 1)
        filter_kernel(style.resample_filter)  # Raises where there is none.
        self.resolutions = level_resolutions(plan.resolution, len(plan.channels))
        check_attn_resolutions(plan.attn_resolutions, self.resolutions)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.num_classes, self.augment_dim = num_classes, augment_dim
        self.resample_filter = style.resample_filter

        self.embedding = embedding
        self.conv_in = Conv2d(in_channels, plan.stem_channels, 3, init=style.init)
        block = partial(ResidualBlock, embedding_channels=plan.embedding_channels, style=style)
        channels, num_blocks = plan.channels, plan.num_blocks
        levels = range(len(channels))
        has_attention = [r in plan.attn_resolutions for r in self.resolutions]

        self.encoder = nn.ModuleList()
        skip_channels: list[int] = []
        aux_channels, now = in_channels, plan.stem_channels
        for level in levels:
            down = block(now, now, resample="down") if level > 0 else None
            auxiliary: nn.Module | None = None
            if level > 0 and plan.encoder == "residual":
                auxiliary = ResidualPath(aux_channels, now, style)
                aux_channels = now
            elif level > 0 and plan.encoder == "skip":
                auxiliary = SkipPath(aux_channels, now, style)
            inputs = [now] + [channels[level]] * (num_blocks - 1)
            skip_channels += [now] + [channels[level]] * num_blocks
            now = channels[level]
            blocks = [block(c, now, has_attention=has_attention[level]) for c in inputs]
            self.encoder.append(EncoderLevel(down, auxiliary, blocks))

        self.decoder = nn.ModuleList()
        for level in reversed(levels):
            lowest = level == levels[-1]
            bottom = [block(now, now, has_attention=True), block(now, now)] if lowest else []
            enter = bottom or [block(now, now, resample="up")]
            blocks = []
            for index in range(num_blocks + 1):
                attends = has_attention[level] and (plan.attends_throughout or index == num_blocks)
                blocks.append(block(now + skip_channels.pop(), channels[level], has_attention=attends))
                now = channels[level]
            output = Output(now, out_channels, style) if plan.decoder == "skip" and level > 0 else None
            self.decoder.append(DecoderLevel(enter, blocks, output))
        self.norm_out = group_norm(now, style.norm_eps)
        self.conv_out = Conv2d(now, out_channels, 3, init=style.init_output)
        self.up_image = Upsample(out_channels, style.resample_filter) if plan.decoder == "skip" else None

    def forward(
        self,
        x: Float[Tensor, "batch *event"],
        c_noise: Float[Tensor, " batch"],
        condition: Labels | None = None,
        augment: Float[Tensor, "rows augment_dim"] | None = None,
    ) -> Float[Tensor, "batch *out"]:
        """F(x; c_noise), of shape (batch, out_channels, height, width).

        Args:
            x: images (batch, in_channels, height, width).
            c_noise: the noise level as the preconditioning gives it, (batch,).
            condition: class labels, (batch,) integers with −1 for no class, or (batch, num_classes) rows, all zero for
                no class. None means no class.
            augment: augmentation labels (batch, augment_dim). None means not augmented, as does zero.

        Raises:
            ValueError: a shape does not fit, a label is out of range, or `condition` or `augment` is given to a network
                that was built without.
        """
        check_inputs(self, x, c_noise, condition, augment, sides=("height", "width"))
        e = self.embedding(c_noise, condition, augment)
        x, aux = self.conv_in(x), x
        skips: list[Tensor] = []
        for level in self.encoder:
            x, aux = level(x, aux, e, skips)
        image: Tensor | None = None
        for level in self.decoder:
            x, part = level(x, e, skips)
            if part is not None:
                image = self._added(part, image)
        result: Tensor = self.conv_out(functional.silu(self.norm_out(x)))
        return self._added(result, image)

    def _added(self, part: Tensor, image: Tensor | None) -> Tensor:
        """One level's part of the output image, and those of the levels below it at the same size."""
        if image is None or self.up_image is None:
            return part
        below: Tensor = self.up_image(image)
        return part + below[..., : part.shape[-2], : part.shape[-1]]


class ResidualPath(nn.Module):
    """NCSN++'s auxiliary path: x ← aux ← (x + down(conv3×3(aux)))/√2."""

    def __init__(self, aux_channels: int, channels: int, style: BlockStyle) -> None:
        super().__init__()
        self.conv = FusedDownConv2d(aux_channels, channels, 3, init=style.init, taps=style.resample_filter)
        self.scale = style.skip_scale

    def forward(self, x: Tensor, aux: Tensor) -> tuple[Tensor, Tensor]:
        """The new x and the new auxiliary image, which are the same here."""
        x = (x + self.conv(aux)) * self.scale
        return x, x


class SkipPath(nn.Module):
    """The auxiliary path that shows each level the input at its size: aux ← down(aux), x ← x + conv1×1(aux)."""

    def __init__(self, aux_channels: int, channels: int, style: BlockStyle) -> None:
        super().__init__()
        self.down = Downsample(aux_channels, style.resample_filter)
        self.conv = Conv2d(aux_channels, channels, 1, init=style.init)

    def forward(self, x: Tensor, aux: Tensor) -> tuple[Tensor, Tensor]:
        """The new x and the new auxiliary image."""
        aux = self.down(aux)
        return x + self.conv(aux), aux


class Output(nn.Module):
    """A level's part of the image that the skip decoder returns: conv3×3(silu(norm(x)))."""

    def __init__(self, channels: int, out_channels: int, style: BlockStyle) -> None:
        super().__init__()
        self.norm = group_norm(channels, style.norm_eps)
        self.conv = Conv2d(channels, out_channels, 3, init=style.init_output)

    def forward(self, x: Tensor) -> Tensor:
        """The part, (batch, out_channels, height, width)."""
        part: Tensor = self.conv(functional.silu(self.norm(x)))
        return part


class EncoderLevel(nn.Module):
    """One resolution on the way down: the halving block and the auxiliary path (not at the finest), then the blocks."""

    def __init__(self, down: nn.Module | None, auxiliary: nn.Module | None, blocks: Sequence[ResidualBlock]) -> None:
        super().__init__()
        self.down, self.auxiliary, self.blocks = down, auxiliary, nn.ModuleList(blocks)

    def forward(self, x: Tensor, aux: Tensor, e: Tensor, skips: list[Tensor]) -> tuple[Tensor, Tensor]:
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
    """One resolution on the way up: the block that doubles the size (the lowest: two that keep it), then the blocks.

    With `output`, also the level's part of the image.
    """

    def __init__(
        self, enter: Sequence[ResidualBlock], blocks: Sequence[ResidualBlock], output: nn.Module | None
    ) -> None:
        super().__init__()
        self.enter, self.blocks, self.output = nn.ModuleList(enter), nn.ModuleList(blocks), output

    def forward(self, x: Tensor, e: Tensor, skips: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """The level's x and its part of the image, if any. Takes one of `skips` from the end for each block."""
        for block in self.enter:
            x = block(x, e)
        height, width = skips[-1].shape[-2:]
        x = x[..., :height, :width]  # One more than the skip has where its size is odd.
        for block in self.blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), e)
        return x, None if self.output is None else self.output(x)


def level_resolutions(resolution: int, num_levels: int) -> tuple[int, ...]:
    """The resolutions of a U-Net's levels, finest first: each half of the one before, rounded up.

    >>> level_resolutions(28, 3), level_resolutions(25, 3)
    ((28, 14, 7), (25, 13, 7))
    """
    return tuple(-(-resolution // 2**level) for level in range(num_levels))


def check_unet_sizes(
    model_channels: int, channel_mult: Sequence[int], channel_mult_emb: int, num_blocks: int, dropout: float
) -> None:
    """Raise ValueError unless the sizes are ≥ 1, `model_channels` even and the dropout in [0, 1)."""
    counts = {"model_channels": model_channels, "channel_mult_emb": channel_mult_emb, "num_blocks": num_blocks}
    counts["number of channel_mult"] = len(channel_mult)
    counts |= {f"channel_mult[{level}]": multiplier for level, multiplier in enumerate(channel_mult)}
    for name, count in counts.items():
        checks.at_least(name, count, 1)
    if model_channels % 2:
        raise ValueError(f"model_channels must be even (a sine and a cosine for each frequency), got {model_channels}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be >= 0 and < 1, got {dropout!r}")


def check_attn_resolutions(attn_resolutions: Sequence[int], resolutions: Sequence[int]) -> None:
    """Raise ValueError if attention is asked for at a resolution that is none of the levels'."""
    absent = [r for r in attn_resolutions if r not in resolutions]
    if absent:
        raise ValueError(f"attn_resolutions {absent} are no level's; the levels' resolutions are {list(resolutions)}")
