"""The U-Nets DDPM++ and NCSN++.

    e = embedding(c_noise) + L_class(√k · onehot) + L_augment(a);  e ← silu(L1 silu(L0 e))
    encoder, level ℓ = 0, 1, …:  conv3×3 (ℓ = 0) or a block that halves the size; with the residual path also
        x ← aux ← (x + down(conv3×3(aux)))/√2, aux = the network's input at first; then num_blocks blocks
    decoder, levels backwards:   two blocks (lowest level) or a block that doubles the size; then num_blocks + 1 blocks,
        each on [x, skip], the skips being the encoder's outputs in reverse
    F = conv3×3(silu(norm(x)))

DDPM++: positional embedding, standard encoder, filter (1, 1). NCSN++: Fourier embedding of twice the channels, residual
encoder, filter (1, 3, 3, 1). Source: Karras et al. 2022 (arXiv 2206.00364), Appendix F.1.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from openedm import checks
from openedm.networks.blocks import BlockStyle, ResidualBlock
from openedm.networks.embeddings import (
    Embedding,
    FourierEmbedding,
    Labels,
    NoiseEmbedding,
    PositionalEmbedding,
    check_inputs,
)
from openedm.networks.layers import Conv2d, FusedDownConv2d, filter_kernel, group_norm

SINES_FIRST = ("sin", "cos")
EMBEDDINGS: dict[str, Callable[[int], NoiseEmbedding]] = {
    "positional": partial(PositionalEmbedding, endpoint=True, order=SINES_FIRST),
    "fourier": partial(FourierEmbedding, order=SINES_FIRST),
}
ENCODERS = ("standard", "residual")


def level_resolutions(resolution: int, num_levels: int) -> tuple[int, ...]:
    """The resolutions of a U-Net's levels, finest first: each half of the one before, rounded up.

    >>> level_resolutions(28, 3), level_resolutions(25, 3)
    ((28, 14, 7), (25, 13, 7))
    """
    return tuple(-(-resolution // 2**level) for level in range(num_levels))


class UNet(nn.Module):
    """The raw network F of DDPM++ or NCSN++: `unet(x, c_noise, condition=None, augment=None)`.

    The input may have another height and width than `resolution`, and unequal ones: `resolution` says at which levels
    attention stands, no more. Odd sizes are padded by one on the way down and cropped on the way up.

    Args:
        resolution: the image's height and width.
        in_channels, out_channels: channels of the input and of F.
        num_classes: the number of classes, 0 for a network without.
        augment_dim: the width of the augmentation labels, 0 for a network without.
        model_channels: the channels that the multipliers multiply.
        channel_mult: the multipliers of the levels, finest first.
        channel_mult_emb: the multiplier of the embedding e.
        num_blocks: blocks in a level of the encoder; the decoder has one more.
        attn_resolutions: the levels with attention, by their resolution. The lowest level's first decoder block has
            attention in any case.
        dropout: probability of dropout in the blocks, in [0, 1).
        embedding: of c_noise, "positional" or "fourier".
        channel_mult_noise: the multiplier of the embedding of c_noise.
        encoder: "standard", or "residual" for the auxiliary path.
        resample_filter: the taps of the filter that the image is resampled with.

    Raises:
        ValueError: an argument is out of its range, or `attn_resolutions` names a resolution that no level has.

    >>> unet = UNet(28, 1, 1, model_channels=8, channel_mult=(1, 2, 2), num_blocks=1, attn_resolutions=(14,))
    >>> unet(torch.zeros(2, 1, 28, 28), c_noise=torch.zeros(2)).shape
    torch.Size([2, 1, 28, 28])
    """

    def __init__(
        self,
        resolution: int,
        in_channels: int,
        out_channels: int,
        *,
        num_classes: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,
        embedding: str = "positional",
        channel_mult_noise: int = 1,
        encoder: str = "standard",
        resample_filter: Sequence[float] = (1, 1),
    ) -> None:
        super().__init__()
        check_unet_sizes(model_channels, channel_mult, channel_mult_emb, num_blocks, dropout)
        counts = {"resolution": resolution, "in_channels": in_channels, "out_channels": out_channels}
        for name, count in (counts | {"channel_mult_noise": channel_mult_noise}).items():
            checks.at_least(name, count, 1)
        checks.one_of("embedding", embedding, EMBEDDINGS)
        checks.one_of("encoder", encoder, ENCODERS)
        filter_kernel(resample_filter)  # Raises where there is none.
        self.resolutions = level_resolutions(resolution, len(channel_mult))
        check_attn_resolutions(attn_resolutions, self.resolutions)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.num_classes, self.augment_dim = num_classes, augment_dim
        self.resample_filter = tuple(resample_filter)

        style = BlockStyle(dropout=dropout, resample_filter=self.resample_filter)
        block = partial(ResidualBlock, embedding_channels=model_channels * channel_mult_emb, style=style)
        channels = [model_channels * multiplier for multiplier in channel_mult]
        levels = range(len(channels))
        has_attention = [r in attn_resolutions for r in self.resolutions]

        self.embedding = Embedding(
            EMBEDDINGS[embedding](model_channels * channel_mult_noise),
            model_channels * channel_mult_emb,
            num_classes=num_classes,
            augment_dim=augment_dim,
            init=style.init,
        )
        self.conv_in = Conv2d(in_channels, model_channels, 3, init=style.init)

        self.encoder = nn.ModuleList()
        skip_channels: list[int] = []
        aux_channels, now = in_channels, model_channels
        for level in levels:
            down = block(now, now, resample="down") if level > 0 else None
            auxiliary = None
            if level > 0 and encoder == "residual":
                auxiliary = ResidualPath(aux_channels, now, style)
                aux_channels = now
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
                attends = has_attention[level] and index == num_blocks
                blocks.append(block(now + skip_channels.pop(), channels[level], has_attention=attends))
                now = channels[level]
            self.decoder.append(DecoderLevel(enter, blocks))
        self.norm_out = group_norm(now, style.norm_eps)
        self.conv_out = Conv2d(now, out_channels, 3, init=style.init_output)

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
        for level in self.decoder:
            x = level(x, e, skips)
        result: Tensor = self.conv_out(functional.silu(self.norm_out(x)))
        return result


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
    """One resolution on the way up: the block that doubles the size (the lowest: two that keep it), then the blocks."""

    def __init__(self, enter: Sequence[ResidualBlock], blocks: Sequence[ResidualBlock]) -> None:
        super().__init__()
        self.enter, self.blocks = nn.ModuleList(enter), nn.ModuleList(blocks)

    def forward(self, x: Tensor, e: Tensor, skips: list[Tensor]) -> Tensor:
        """The level's x. Takes one of `skips` from the end for each block."""
        for block in self.enter:
            x = block(x, e)
        height, width = skips[-1].shape[-2:]
        x = x[..., :height, :width]  # One more than the skip has where its size is odd.
        for block in self.blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), e)
        return x


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
