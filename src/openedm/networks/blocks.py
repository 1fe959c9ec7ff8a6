"""The residual block of the U-Nets, and the options in which their designs differ.

    h = conv0(silu(norm0(x)))                conv0 resamples
    h = silu(norm1(h + affine(e)))           DDPM++, NCSN++
    h = silu(norm1(h) · (scale + 1) + shift)          ADM, (scale, shift) = affine(e)
    h = conv1(dropout(h))
    x ← (h + skip(x)) · skip_scale
    x ← (proj(attention(qkv(norm2(x)))) + x) · skip_scale      if the block has attention

Source: Karras et al. 2022 (arXiv 2206.00364), Appendix F.1; Song et al. 2021 (arXiv 2011.13456), Appendix H; Dhariwal
and Nichol 2021 (arXiv 2105.05233), Section 3.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from openedm.ground import checks
from openedm.networks.embeddings import FourierEmbedding, NoiseEmbedding, PositionalEmbedding
from openedm.networks.layers import (
    CONVOLUTIONS,
    Downsample,
    Init,
    Linear,
    Upsample,
    attention,
    filter_kernel,
    group_norm,
)
from openedm.networks.pointwise import Dropout, scaled_sum, silu_of

__all__ = ["DECODERS", "EMBEDDINGS", "ENCODERS", "ResidualBlock", "UNetStyle"]

SINES_FIRST = ("sin", "cos")
EMBEDDINGS: Mapping[str, Callable[[int], NoiseEmbedding]] = {
    "positional": partial(PositionalEmbedding, endpoint=True, order=SINES_FIRST),
    "fourier": partial(FourierEmbedding, order=SINES_FIRST),
    "timestep": partial(PositionalEmbedding, endpoint=False),
}
"""The embeddings of c_noise: DDPM++'s, NCSN++'s and ADM's."""
ENCODERS = ("standard", "skip", "residual")
DECODERS = ("standard", "skip")


@dataclass(frozen=True)
class UNetStyle:
    """The options, other than sizes, in which one design of U-Net differs from another.

    Args:
        embedding: the embedding of c_noise, one of `EMBEDDINGS`.
        channel_mult_noise: the multiplier of the width of that embedding.
        late_classes: whether the class is added after the embedding's layers, see `Embedding`.
        encoder, decoder: one of `ENCODERS` and of `DECODERS`, see `openedm.networks.unet`.
        resample_filter: the taps f of the resampling.
        stem_multiplied: whether the first convolution has the channels of the finest level, or `model_channels`.
        attends_throughout: whether all decoder blocks of a level with attention have attention, or only the last one.
        init: the initialisation of all layers other than those of the next two arguments.
        init_output: the initialisation of the last layer of each branch; near zero, so that a block starts almost as
            its skip.
        init_qkv: the initialisation of the queries, keys and values.
        norm_eps: the ε of the group normalisations.
        skip_scale: the factor after each addition; √½ keeps the variance.
        head_channels: the channels of a head of the attention, which has ⌊channels/head_channels⌋ heads; None for one.
        skips_narrow_attention: whether a block with fewer channels than one head has no attention, as in the published
            code, or is an error.
        adaptive_scale: whether the embedding scales and shifts the output of norm1, or is added to its input.
        projects_resampled: whether the skip of a block that resamples is a 1×1 convolution also where it keeps the
            number of channels.

    Raises:
        ValueError: a value is not among those allowed.
    """

    embedding: str = "positional"
    channel_mult_noise: int = 1
    late_classes: bool = False
    encoder: str = "standard"
    decoder: str = "standard"
    resample_filter: tuple[float, ...] = (1, 1)
    stem_multiplied: bool = False
    attends_throughout: bool = False
    init: Init = Init("xavier_uniform")
    init_output: Init = Init("xavier_uniform", weight_gain=1e-5)
    init_qkv: Init = Init("xavier_uniform", weight_gain=math.sqrt(0.2))
    norm_eps: float = 1e-6
    skip_scale: float = math.sqrt(0.5)
    head_channels: int | None = None
    skips_narrow_attention: bool = False
    adaptive_scale: bool = False
    projects_resampled: bool = True

    def __post_init__(self) -> None:
        checks.one_of("embedding", self.embedding, EMBEDDINGS)
        checks.at_least("channel_mult_noise", self.channel_mult_noise, 1)
        checks.one_of("encoder", self.encoder, ENCODERS)
        checks.one_of("decoder", self.decoder, DECODERS)
        filter_kernel(self.resample_filter)  # Raises ValueError for invalid taps.

    def num_heads(self, channels: int) -> int:
        """The number of attention heads for `channels` channels; 0 for no attention.

        Raises:
            ValueError: there are fewer channels than in one head, or their number is not a multiple of the heads.
        """
        if self.head_channels is None:
            return 1
        heads = channels // self.head_channels
        if heads == 0 and self.skips_narrow_attention:
            return 0
        if heads == 0 or channels % heads:
            rule = f">= {self.head_channels}, one head" if heads == 0 else f"a multiple of {heads}, the number of heads"
            raise ValueError(
                f"channels with attention must be {rule}, got {channels}: choose other model_channels or channel_mult, "
                "or other attn_resolutions (the lowest level has attention in any case)"
            )
        return heads


class ResidualBlock(nn.Module):
    """One block: `block(x, e)` with x (batch, in_channels, *size) and the embedding e (batch, embedding_channels).

    Args:
        in_channels, out_channels, embedding_channels: the sizes.
        style: the design of the network.
        dimension: the number of axes in `size`: 1, 2 or 3.
        dropout: the probability of dropout before conv1, in training.
        resample: "down" halves the size (rounded up), "up" doubles it, "none" keeps it.
        has_attention: whether the block ends with attention.

    Raises:
        ValueError: with attention, `out_channels` does not divide into heads.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_channels: int,
        *,
        style: UNetStyle,
        dropout: float,
        dimension: int = 2,
        resample: str = "none",
        has_attention: bool = False,
    ) -> None:
        super().__init__()
        init, eps, taps = style.init, style.norm_eps, style.resample_filter
        self.style = style
        self.norm0 = group_norm(in_channels, eps)
        convolution, resampled = CONVOLUTIONS[dimension], partial(_resample, resample, in_channels, taps, dimension)
        self.conv0 = convolution(in_channels, out_channels, 3, init=init, resample=resampled())
        self.affine = Linear(embedding_channels, out_channels * (2 if style.adaptive_scale else 1), init=init)
        self.norm1 = group_norm(out_channels, eps)
        self.dropout = Dropout(dropout)
        self.conv1 = convolution(out_channels, out_channels, 3, init=style.init_output)
        self.skip: nn.Module = nn.Identity()
        resampling = resampled()
        if in_channels != out_channels or (resampling is not None and style.projects_resampled):
            self.skip = convolution(in_channels, out_channels, 1, init=init, resample=resampling)
        elif resampling is not None:
            self.skip = resampling
        self.num_heads = style.num_heads(out_channels) if has_attention else 0
        self.has_attention = self.num_heads > 0
        if self.has_attention:
            self.norm2 = group_norm(out_channels, eps)
            self.qkv = convolution(out_channels, 3 * out_channels, 1, init=style.init_qkv)
            self.proj = convolution(out_channels, out_channels, 1, init=style.init_output)

    def forward(
        self, x: Float[Tensor, "batch c *size"], embedding: Float[Tensor, "batch e"]
    ) -> Float[Tensor, "batch d *new"]:
        """The block's output."""
        h = self.conv0(silu_of(self.norm0, x))
        p = self.affine(embedding)
        p = p.reshape(*p.shape, *[1] * (x.ndim - 2))
        if self.style.adaptive_scale:
            scale, shift = p.chunk(2, dim=1)
            h = functional.silu(torch.addcmul(shift, self.norm1(h), scale + 1))
        else:
            h = silu_of(self.norm1, h + p)
        h = self.conv1(self.dropout(h))
        x = scaled_sum(h, self.skip(x), self.style.skip_scale)
        if self.has_attention:
            h = self.proj(attention(self.qkv(self.norm2(x)), self.num_heads))
            x = scaled_sum(h, x, self.style.skip_scale)
        return x


def _resample(direction: str, channels: int, taps: Sequence[float], dimension: int) -> nn.Module | None:
    makers = {"down": Downsample, "up": Upsample}
    return makers[direction](channels, taps, dimension=dimension) if direction in makers else None
