"""The U-Nets DDPM++ and NCSN++, and what lies between them.

    e = embedding(c_noise) + L_class(√k · onehot) + L_augment(a);  e ← silu(L1 silu(L0 e))

then the encoder and decoder of `body`. DDPM++: positional embedding, standard encoder, filter (1, 1). NCSN++: Fourier
embedding of twice the channels, residual encoder, filter (1, 3, 3, 1). Source: Karras et al. 2022 (arXiv 2206.00364),
Appendix F.1.
"""

from collections.abc import Callable, Sequence
from functools import partial

from openedm.ground import checks
from openedm.networks.blocks import BlockStyle
from openedm.networks.body import DECODERS, ENCODERS, Plan, UNetBody, check_unet_sizes
from openedm.networks.embeddings import Embedding, FourierEmbedding, NoiseEmbedding, PositionalEmbedding

SINES_FIRST = ("sin", "cos")
EMBEDDINGS: dict[str, Callable[[int], NoiseEmbedding]] = {
    "positional": partial(PositionalEmbedding, endpoint=True, order=SINES_FIRST),
    "fourier": partial(FourierEmbedding, order=SINES_FIRST),
}


class UNet(UNetBody):
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
        encoder: "standard"; "skip" or "residual" for an auxiliary path beside it (see `openedm.networks.body`).
        decoder: "standard", or "skip" for an image at every level, summed up.
        resample_filter: the taps of the filter that the image is resampled with.

    Raises:
        ValueError: an argument is out of its range, or `attn_resolutions` names a resolution that no level has.

    >>> import torch
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
        decoder: str = "standard",
        resample_filter: Sequence[float] = (1, 1),
    ) -> None:
        check_unet_sizes(model_channels, channel_mult, channel_mult_emb, num_blocks, dropout)
        check_variant(embedding, channel_mult_noise, encoder, decoder)
        style = BlockStyle(dropout=dropout, resample_filter=tuple(resample_filter))
        super().__init__(
            Embedding(
                EMBEDDINGS[embedding](model_channels * channel_mult_noise),
                model_channels * channel_mult_emb,
                num_classes=num_classes,
                augment_dim=augment_dim,
                init=style.init,
            ),
            in_channels,
            out_channels,
            num_classes=num_classes,
            augment_dim=augment_dim,
            plan=Plan(
                resolution,
                stem_channels=model_channels,
                channels=tuple(model_channels * multiplier for multiplier in channel_mult),
                embedding_channels=model_channels * channel_mult_emb,
                num_blocks=num_blocks,
                attn_resolutions=tuple(attn_resolutions),
                encoder=encoder,
                decoder=decoder,
            ),
            style=style,
        )


def check_variant(embedding: str, channel_mult_noise: int, encoder: str, decoder: str) -> None:
    """Raise ValueError unless there are such an embedding, encoder and decoder."""
    checks.one_of("embedding", embedding, EMBEDDINGS)
    checks.at_least("channel_mult_noise", channel_mult_noise, 1)
    checks.one_of("encoder", encoder, ENCODERS)
    checks.one_of("decoder", decoder, DECODERS)
