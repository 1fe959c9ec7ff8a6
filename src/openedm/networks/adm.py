"""ADM, the U-Net of Dhariwal and Nichol 2021 in the form that Karras et al. 2022 trained on ImageNet.

    e = L1 silu(L0 (embedding(c_noise) + L_augment(a)));  e ← silu(e + L_class(onehot))

then the encoder and decoder of `body`, with a scale and a shift by e in every block, heads of 64 channels, and skips
that are added unscaled. Sources: Dhariwal and Nichol 2021 (arXiv 2105.05233), Section 3; Karras et al. 2022
(arXiv 2206.00364), Appendix F.1.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from openedm.networks.blocks import BlockStyle
from openedm.networks.body import Plan, UNetBody, check_unet_sizes
from openedm.networks.embeddings import LateClassEmbedding, PositionalEmbedding
from openedm.networks.layers import Init

INIT = Init("kaiming_uniform", weight_gain=math.sqrt(1 / 3), bias_gain=math.sqrt(1 / 3))
ZERO = Init("kaiming_uniform", weight_gain=0)
STYLE = BlockStyle(
    init=INIT,
    init_output=ZERO,
    init_qkv=INIT,
    norm_eps=1e-5,
    skip_scale=1.0,
    head_channels=64,
    adaptive_scale=True,
    projects_resampled=False,
)


class ADMUNet(UNetBody):
    """The raw network F of ADM: `unet(x, c_noise, condition=None, augment=None)`.

    As with `UNet`, images of other and odd sizes are taken.

    Args:
        resolution: the image's height and width.
        in_channels, out_channels: channels of the input and of F.
        num_classes: the number of classes, 0 for a network without.
        augment_dim: the width of the augmentation labels, 0 for a network without.
        model_channels: the channels that the multipliers multiply.
        channel_mult: the multipliers of the levels, finest first.
        channel_mult_emb: the multiplier of the embedding e.
        num_blocks: blocks in a level of the encoder; the decoder has one more.
        attn_resolutions: the levels with attention in every block, by their resolution. The lowest level's first
            decoder block has attention in any case.
        dropout: probability of dropout in the blocks, in [0, 1).

    Raises:
        ValueError: an argument is out of its range, `attn_resolutions` names a resolution that no level has, or a level
            with attention has fewer than 64 channels, which is one head.

    >>> import torch
    >>> unet = ADMUNet(8, 1, 1, model_channels=64, channel_mult=(1, 1), num_blocks=1, attn_resolutions=(4,))
    >>> unet(torch.ones(2, 1, 8, 8), c_noise=torch.zeros(2)).abs().max().item()
    0.0
    """

    def __init__(
        self,
        resolution: int,
        in_channels: int,
        out_channels: int,
        *,
        num_classes: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
    ) -> None:
        check_unet_sizes(model_channels, channel_mult, channel_mult_emb, num_blocks, dropout)
        channels = tuple(model_channels * multiplier for multiplier in channel_mult)
        super().__init__(
            LateClassEmbedding(
                PositionalEmbedding(model_channels, endpoint=False),
                model_channels * channel_mult_emb,
                num_classes=num_classes,
                augment_dim=augment_dim,
                init=INIT,
            ),
            in_channels,
            out_channels,
            num_classes=num_classes,
            augment_dim=augment_dim,
            plan=Plan(
                resolution,
                stem_channels=channels[0],
                channels=channels,
                embedding_channels=model_channels * channel_mult_emb,
                num_blocks=num_blocks,
                attn_resolutions=tuple(attn_resolutions),
                attends_throughout=True,
            ),
            style=replace(STYLE, dropout=dropout),
        )
