"""The U-Nets of the papers, by name: the name fixes the design, the arguments the sizes.

All take series (channels, length), images (channels, height, width) and volumes (channels, depth, height, width).
DDPM++: positional embedding, standard encoder, filter (1, 1). NCSN++: Fourier embedding of twice the channels, residual
encoder, filter (1, 3, 3, 1). ADM: late classes, a scale and a shift by the embedding in every block, heads of 64
channels, and unscaled skips. Sources: Karras et al. 2022 (arXiv 2206.00364), Appendix F.1; Song et al. 2021 (arXiv
2011.13456), Appendix H; Dhariwal and Nichol 2021 (arXiv 2105.05233), Section 3.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from openedm.ground import checks
from openedm.networks.blocks import UNetStyle
from openedm.networks.layers import ZERO, Init
from openedm.networks.unet import UNetNetwork

__all__ = ["ADM", "DDPMpp", "NCSNpp", "SongUNet"]

ADM_INIT = Init("kaiming_uniform", weight_gain=math.sqrt(1 / 3), bias_gain=math.sqrt(1 / 3))


@dataclass(frozen=True)
class DDPMpp(UNetNetwork):
    """DDPM++, the U-Net of the VP models of Song et al. 2021, in the sizes of Karras et al. 2022 for CIFAR-10.

    For images it has 56 million parameters; with the same sizes 24 million for series, and 150 million for volumes,
    where `model_channels=32` (9 million) is a good start.

    Args:
        model_channels: channels that the multipliers multiply, even.
        channel_mult: the multipliers of the levels, finest first; each level has half the resolution of the one before.
            For 64² images the paper has (1, 2, 2, 2).
        channel_mult_emb: the multiplier of the embedding of the noise level.
        num_blocks: residual blocks in a level of the encoder; the decoder has one more.
        attn_resolutions: resolutions, the longest sides of levels, with self-attention over all positions. None means
            the level with resolution 16, or the level nearest to it: for longer data the lowest one. The lowest level's
            first decoder block has attention in any case. Attention costs the square of the number of positions: give
            very long series more levels, such as channel_mult (1, 1, 2, 2, 2) for 4096 steps.
        dropout: probability of dropout, in [0, 1).
        patch_size: the size of the blocks of the data whose values are the channels of one position of the finest
            level; every resolution is divided by it. 1 in the paper. 2 is for short training of images that have more
            positions than the time allows: two to three times as many channels cost as much.

    Raises:
        ValueError: a value is out of its range.

    >>> import torch
    >>> network = DDPMpp(model_channels=8, num_blocks=1).build((1, 28, 28), num_classes=10, seed=0)
    >>> network(torch.zeros(2, 1, 28, 28), torch.zeros(2), torch.tensor([3, -1])).shape
    torch.Size([2, 1, 28, 28])
    """

    style: ClassVar = UNetStyle()


@dataclass(frozen=True)
class NCSNpp(UNetNetwork):
    """NCSN++, the U-Net of the VE models of Song et al. 2021: Fourier features, residual input path, smoother filters.

    Args and errors as for `DDPMpp`.
    """

    style: ClassVar = UNetStyle("fourier", 2, encoder="residual", resample_filter=(1, 3, 3, 1))


@dataclass(frozen=True)
class SongUNet(UNetNetwork):
    """Any U-Net of the design space of Song et al. 2021; `DDPMpp` and `NCSNpp` are two points of it.

    Args:
        model_channels, channel_mult, channel_mult_emb, num_blocks, attn_resolutions, dropout, patch_size: as for
            `DDPMpp`.
        embedding: the embedding of the noise level, "positional" or "fourier".
        channel_mult_noise: the multiplier of the width of that embedding.
        encoder: "standard"; "skip" adds the input, at its size, to each level; "residual" adds a filtered copy of the
            features.
        decoder: "standard"; "skip" sums up images of all levels.
        resample_filter: the taps of the resampling filter, an even number of them: (1, 1) or (1, 3, 3, 1).

    Raises:
        ValueError: a value is out of its range.

    >>> import torch
    >>> network = SongUNet(model_channels=8, num_blocks=1, encoder="skip", decoder="skip").build((1, 28, 28), seed=0)
    >>> network(torch.zeros(2, 1, 28, 28), torch.zeros(2)).shape
    torch.Size([2, 1, 28, 28])
    """

    embedding: Literal["positional", "fourier"] = "positional"
    channel_mult_noise: int = 1
    encoder: Literal["standard", "skip", "residual"] = "standard"
    decoder: Literal["standard", "skip"] = "standard"
    resample_filter: tuple[float, ...] = (1, 1)

    def __post_init__(self) -> None:
        checks.one_of("embedding", self.embedding, ("positional", "fourier"))
        super().__post_init__()

    @property
    def style(self) -> UNetStyle:
        """The design that its fields describe."""
        return UNetStyle(
            self.embedding,
            self.channel_mult_noise,
            encoder=self.encoder,
            decoder=self.decoder,
            resample_filter=tuple(self.resample_filter),
        )


ADM_STYLE = UNetStyle(
    "timestep",
    late_classes=True,
    stem_multiplied=True,
    attends_throughout=True,
    init=ADM_INIT,
    init_output=ZERO,
    init_qkv=ADM_INIT,
    norm_eps=1e-5,
    skip_scale=1.0,
    head_channels=64,
    adaptive_scale=True,
    projects_resampled=False,
)


@dataclass(frozen=True)
class ADM(UNetNetwork):
    """ADM, the U-Net of Dhariwal and Nichol 2021, in the sizes of Karras et al. 2022 for ImageNet at 64².

    Args:
        model_channels: channels that the multipliers multiply, even.
        channel_mult: the multipliers of the levels, finest first. The lowest level and every other level with attention
            must have at least 64 channels, one head, unless `skips_narrow_attention`.
        channel_mult_emb: the multiplier of the embedding of the noise level.
        num_blocks: residual blocks in a level of the encoder; the decoder has one more.
        attn_resolutions: resolutions with self-attention. None means the levels with resolutions 32, 16 and 8, or the
            levels nearest to these.
        dropout: probability of dropout, in [0, 1).
        patch_size: as for `DDPMpp`.
        skips_narrow_attention: whether blocks with fewer than 64 channels have no attention, as in the published code,
            instead of being an error.

    Raises:
        ValueError: a value is out of its range.

    >>> import torch
    >>> network = ADM(model_channels=64, channel_mult=(1, 1), num_blocks=1).build((1, 8, 8), num_classes=10, seed=0)
    >>> network(torch.ones(2, 1, 8, 8), torch.zeros(2), torch.tensor([3, -1])).abs().max().item()  # It starts at zero.
    0.0
    """

    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    num_blocks: int = 3
    skips_narrow_attention: bool = False

    attends_near: ClassVar = (32, 16, 8)

    @property
    def style(self) -> UNetStyle:
        """The design of ADM."""
        return replace(ADM_STYLE, skips_narrow_attention=self.skips_narrow_attention)
