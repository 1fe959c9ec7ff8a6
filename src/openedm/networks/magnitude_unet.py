"""The U-Net of EDM2, for series, images and volumes: magnitude 1 in every layer without group normalisation.

    e = mp_silu(mp_sum(L_noise fourier(c_noise), L_class √k onehot; ½))           x ← [x, image condition, 1]
    block of the encoder   x ← down(x);  x ← conv1×1(x) if channels differ;  x ← x/√(mean of x² over the channels)
    block of the decoder   x ← up(x)
    of both                y = conv3×3(mp_silu(conv3×3(mp_silu(x)) · (g L e + 1)));  x ← mp_sum(x, y; 0.3)
                           decoder: before the sum, x ← conv1×1(x) if channels differ
    with attention         x ← mp_sum(x, conv1×1(softmax(q̂·k̂/√C_head) v̂); 0.3),  each of q, k, v of magnitude 1
                           x ← x clipped to ±256
    decoder                blocks on mp_cat(x, skip; ½)
    F = g_out conv3×3(x)

The gains g and g_out start at 0, so that a new network returns 0. Levels, skips and odd sizes are those of
`openedm.networks.unet`, in the layout of ADM; layers are those of `openedm.networks.magnitude`, whose weights training
normalises after every step. Source: Karras et al. 2024 (arXiv 2312.02696), Section 2, configuration G, and Appendix B.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from openedm.ground import checks
from openedm.networks.conditions import classes_of, join_image, values_of
from openedm.networks.embeddings import ClassVector
from openedm.networks.layers import Downsample, Upsample, attention, seeded
from openedm.networks.magnitude import MPConv, MPFourier, MPLinear, MPUncertainty, mp_cat, mp_silu, mp_sum, normalize
from openedm.networks.network import GRIDS, Labels, Network, RawNetwork, Signature
from openedm.networks.pointwise import Dropout
from openedm.networks.unet import DecoderLevel, EncoderLevel, attention_levels, level_resolutions

__all__ = ["EDM2UNet", "MagnitudePreservingUNet"]

CLIP = 256.0
"""The largest absolute value after a block, which half precision can hold."""


@dataclass(frozen=True)
class EDM2UNet(Network):
    """The U-Net of EDM2 (Karras et al. 2024): magnitude-preserving layers, whose weights training keeps normalised.

    The default is the paper's S, 280 million parameters for 64×64×4 latents in 1000 classes. `model_channels` of the
    others: XXS 64 (31 million), XS 128 (125), M 256 (498), L 320 (777), XL 384 (1119), XXL 448 (1523); see the presets
    edm2-img512-xxs … edm2-img64-xl. Its learning rates, about 0.01, are ten times those of other U-Nets, and fall with
    the root of the images seen (`schedule: inverse_sqrt`).

    Args:
        model_channels: channels that the multipliers multiply.
        channel_mult: the multipliers of the levels, finest first; each level has half the resolution of the one before.
        num_blocks: residual blocks in a level of the encoder; the decoder has one more.
        attn_resolutions: resolutions, the longest sides of levels, with self-attention over all positions. None means
            16 and 8, or the levels nearest to these. The lowest level's first decoder block has attention in any case.
        dropout: probability of dropout, in [0, 1); the paper has 0.1 for M and larger.
        head_channels: channels of a head of the attention; levels with attention must have at least as many.
        label_balance: the share of the class, and that of a vector condition, in the embedding, in [0, 1].
        concat_balance: the share of the encoder's output in an input of the decoder, in [0, 1].
        res_balance: the share of a block's branch in its output, in [0, 1].
        attn_balance: the share of attention in a block's output, in [0, 1].
        uncertainty_channels: features of the network's own u(σ) for objectives with learned uncertainty, as in the
            published files (128); 0 for none, and such an objective then has one beside the network.

    Raises:
        ValueError: a value is out of its range.

    >>> choice = EDM2UNet(model_channels=16, channel_mult=(1, 4), num_blocks=1, head_channels=16)
    >>> network = choice.build((1, 8, 8), num_classes=10, seed=0)
    >>> network(torch.ones(2, 1, 8, 8), torch.zeros(2), torch.tensor([3, -1])).abs().max().item()  # It starts at zero.
    0.0
    """

    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    num_blocks: int = 3
    attn_resolutions: tuple[int, ...] | None = None
    dropout: float = 0.0
    head_channels: int = field(default=64, kw_only=True)
    label_balance: float = field(default=0.5, kw_only=True)
    concat_balance: float = field(default=0.5, kw_only=True)
    res_balance: float = field(default=0.3, kw_only=True)
    attn_balance: float = field(default=0.3, kw_only=True)
    uncertainty_channels: int = field(default=0, kw_only=True)

    axes: ClassVar = GRIDS
    condition_kinds: ClassVar = ("vector", "image")
    attends_near: ClassVar[tuple[int, ...]] = (16, 8)

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("model_channels", "num_blocks", "head_channels")}
        sizes["number of channel_mult"] = len(self.channel_mult)
        sizes |= {f"channel_mult[{level}]": multiplier for level, multiplier in enumerate(self.channel_mult)}
        for name, size in sizes.items():
            checks.size(name, size)
        checks.size("uncertainty_channels", self.uncertainty_channels, 0)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be >= 0 and < 1, got {self.dropout!r}")
        for name in ("label_balance", "concat_balance", "res_balance", "attn_balance"):
            checks.between(name, getattr(self, name), 0, 1)
        for resolution in self.attn_resolutions or ():
            checks.at_least("attn_resolutions", resolution, 1)
        self.num_heads(self.channels[-1])  # The lowest level has attention in any case.

    @property
    def channels(self) -> tuple[int, ...]:
        """The channels of the levels, finest first."""
        return tuple(self.model_channels * multiplier for multiplier in self.channel_mult)

    def module(self, signature: Signature, seed: int | None) -> "MagnitudePreservingUNet":
        """The U-Net for series, images or volumes; see `Network.build`.

        Raises:
            ValueError: `attn_resolutions` names a resolution that no level has, or a level with attention does not
                divide into heads.
        """
        with seeded(seed):
            return MagnitudePreservingUNet(self, signature)

    def attention_at(self, resolutions: Sequence[int]) -> tuple[int, ...]:
        """The resolutions of the levels that have attention; errors as for `module`."""
        return attention_levels(resolutions, self.attn_resolutions, self.attends_near)

    def num_heads(self, channels: int) -> int:
        """The number of heads for `channels` channels, ⌊channels/head_channels⌋.

        Raises:
            ValueError: there are fewer channels than in a head, or they do not divide into the heads.
        """
        heads = channels // self.head_channels
        if heads == 0 or channels % heads:
            rule = f">= head_channels={self.head_channels}" if heads == 0 else f"a multiple of {heads}, its heads"
            raise ValueError(
                f"channels of a level with attention must be {rule}, got {channels}: choose other model_channels, "
                "channel_mult or head_channels (the lowest level has attention in any case)"
            )
        return heads


class MagnitudePreservingUNet(RawNetwork):
    """The raw network F of EDM2: `unet(x, c_noise, condition=None, augment=None)`.

    The input may have other sizes than those that the network was built for, as for `openedm.networks.UNet`.

    Args:
        choice: the sizes.
        signature: the shapes of its inputs and its output.

    Attributes:
        dimension: the number of axes besides channels: 1 for series, 2 for images, 3 for volumes.
        resolutions: the longest side of each level, finest first.
        uncertainty_head: u(c_noise), which training uses with learned uncertainty; None if the choice has none.

    Raises:
        ValueError: as for `EDM2UNet.module`.
    """

    choice: EDM2UNet

    def __init__(self, choice: EDM2UNet, signature: Signature) -> None:
        super().__init__(choice, signature)
        channels = choice.channels
        self.dimension = len(signature.event_shape) - 1
        self.resolutions = level_resolutions(max(signature.event_shape[1:]), len(channels))
        attending = choice.attention_at(self.resolutions)
        has_attention = [resolution in attending for resolution in self.resolutions]
        self.embedding = MPEmbedding(choice, signature)
        self.conv_in = MPConv(signature.joined_channels + 1, channels[0], 3, self.dimension)
        encodes = partial(MPBlock, choice=choice, dimension=self.dimension)
        decodes = partial(encodes, decodes=True)

        self.encoder = nn.ModuleList()
        skip_channels: list[int] = []
        current = channels[0]
        for level, width in enumerate(channels):
            down = encodes(current, current, resample="down") if level > 0 else None
            widths = [current, *[width] * choice.num_blocks]
            blocks = [encodes(c, width, has_attention=has_attention[level]) for c in widths[:-1]]
            self.encoder.append(EncoderLevel(down, None, blocks))
            skip_channels += widths
            current = width

        self.decoder = nn.ModuleList()
        for level, width in reversed(list(enumerate(channels))):
            if level == len(channels) - 1:
                enter = [decodes(current, current, has_attention=True), decodes(current, current)]
            else:
                enter = [decodes(current, current, resample="up")]
            blocks = []
            for _ in range(choice.num_blocks + 1):
                blocks.append(decodes(current + skip_channels.pop(), width, has_attention=has_attention[level]))
                current = width
            self.decoder.append(DecoderLevel(enter, blocks, None, partial(mp_cat, t=choice.concat_balance)))
        self.conv_out = MPConv(current, signature.out_channels, 3, self.dimension)
        self.gain_out = nn.Parameter(torch.zeros(1))
        features = choice.uncertainty_channels
        self.uncertainty_head = MPUncertainty(features) if features else None

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
        x = join_image(self.signature, x, condition)
        x = self.conv_in(torch.cat([x, torch.ones_like(x[:, :1])], dim=1))
        skips: list[Tensor] = []
        for level in self.encoder:
            x, _ = level(x, x, e, skips)
        for level in self.decoder:
            x, _ = level(x, e, skips)
        result: Tensor = self.conv_out(x, self.gain_out)
        return result


class MPEmbedding(nn.Module):
    """The second input of every block: noise level, class, vector condition and augmentation, of magnitude 1.

    e = L fourier(c_noise);  e ← mp_sum(e, L_class √k rows; t);  e ← mp_sum(e, L₁ mp_silu(L₀ [v, 1, a]); t);
    e ← e + g L_augment augment, where g starts at 0;  mp_silu(e)

    The classes are the paper's, vectors v and augmentation labels this library's: a = 1 for samples without v, with
    condition dropout, and v = 0 there.

    Args:
        choice: the sizes and t, `label_balance`.
        signature: the widths of the inputs. Images among the conditions are not for the embedding.
    """

    def __init__(self, choice: EDM2UNet, signature: Signature) -> None:
        super().__init__()
        self.signature, self.balance = signature, choice.label_balance
        width, num_classes = max(choice.channels), signature.num_classes
        self.noise = MPFourier(choice.channels[0])
        self.layer = MPLinear(choice.channels[0], width)
        self.class_vector = ClassVector(num_classes) if num_classes else None
        self.classes = MPLinear(num_classes, width) if num_classes else None
        self.vector0 = self.vector1 = self.augment = None
        if signature.condition_shape is not None and signature.condition_kind == "vector":
            self.vector0 = MPLinear(signature.condition_shape[0] + 1 + signature.condition_dropout, width)
            self.vector1 = MPLinear(width, width)
        if signature.augment_dim:
            self.augment = MPLinear(signature.augment_dim, width)
            self.augment_gain = nn.Parameter(torch.zeros(1))

    def forward(
        self,
        c_noise: Float[Tensor, " batch"],
        condition: Labels | Float[Tensor, "rows *features"] | None,
        augment: Tensor | None,
    ) -> Float[Tensor, "batch channels"]:
        """The embedding e, in the dtype of the weights (or of autocast).

        Args:
            c_noise: the noise level as computed by the preconditioning.
            condition: the condition of the network, as for `RawNetwork.forward`.
            augment: the augmentation labels.
        """
        weight = self.layer.weight
        e: Tensor = self.layer(self.noise(c_noise).to(weight.dtype))
        if self.class_vector is not None and self.classes is not None:
            rows = self.class_vector(classes_of(self.signature, condition, len(c_noise)), like=e[:, 0])
            e = mp_sum(e, self.classes(rows * math.sqrt(rows.shape[1])), self.balance)
        if self.vector0 is not None and self.vector1 is not None:
            values, present = values_of(self.signature, condition, weight)
            flags = [torch.ones_like(present), 1 - present][: 1 + self.signature.condition_dropout]
            hidden = mp_silu(self.vector0(torch.cat([values, *flags], dim=1)))
            e = mp_sum(e, self.vector1(hidden), self.balance)
        if self.augment is not None and augment is not None:
            e = e + self.augment(augment.to(weight.dtype), self.augment_gain)
        return mp_silu(e)


class MPBlock(nn.Module):
    """One block: `block(x, e)` with x (batch, in_channels, *size) and the embedding e; see the module's formulas.

    Args:
        in_channels, out_channels: the channels.
        choice: the sizes of the network.
        dimension: the number of axes in `size`: 1, 2 or 3.
        decodes: whether it is a block of the decoder.
        resample: "down" halves the size (rounded up), "up" doubles it, "none" keeps it.
        has_attention: whether the block ends with attention.

    Raises:
        ValueError: with attention, `out_channels` does not divide into heads.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        choice: EDM2UNet,
        dimension: int,
        decodes: bool = False,
        resample: str = "none",
        has_attention: bool = False,
    ) -> None:
        super().__init__()
        self.res_balance, self.attn_balance, self.decodes = choice.res_balance, choice.attn_balance, decodes
        resamplers = {"down": Downsample, "up": Upsample}
        makes = resamplers.get(resample, lambda *_, **__: nn.Identity())
        self.resample: nn.Module = makes(in_channels, (1, 1), dimension=dimension)
        self.skip = None if in_channels == out_channels else MPConv(in_channels, out_channels, 1, dimension)
        self.conv0 = MPConv(in_channels if decodes else out_channels, out_channels, 3, dimension)
        self.affine = MPLinear(max(choice.channels), out_channels)
        self.gain = nn.Parameter(torch.zeros(1))
        self.dropout = Dropout(choice.dropout)
        self.conv1 = MPConv(out_channels, out_channels, 3, dimension)
        self.num_heads = choice.num_heads(out_channels) if has_attention else 0
        if has_attention:
            self.qkv = MPConv(out_channels, 3 * out_channels, 1, dimension)
            self.proj = MPConv(out_channels, out_channels, 1, dimension)

    def forward(self, x: Float[Tensor, "batch c *size"], e: Float[Tensor, "batch e"]) -> Float[Tensor, "batch d *new"]:
        """The block's output."""
        x = self.resample(x)
        if not self.decodes:
            x = normalize(self._skip(x), [1])
        scale = self.affine(e, self.gain) + 1
        y = self.conv0(mp_silu(x))
        y = mp_silu(y * scale.reshape(*scale.shape, *[1] * (x.ndim - 2)))
        y = self.conv1(self.dropout(y))
        x = mp_sum(self._skip(x) if self.decodes else x, y, self.res_balance)
        if self.num_heads:
            y = self.proj(cosine_attention(self.qkv(x), self.num_heads))
            x = mp_sum(x, y, self.attn_balance)
        return x.clamp(-CLIP, CLIP)

    def _skip(self, x: Float[Tensor, "batch c *size"]) -> Float[Tensor, "batch d *size"]:
        return x if self.skip is None else self.skip(x)


def cosine_attention(qkv: Float[Tensor, "batch c3 *size"], num_heads: int) -> Float[Tensor, "batch c *size"]:
    """`openedm.networks.layers.attention` with queries, keys and values of magnitude 1 over the channels of a head.

    Args:
        qkv: its channels are ordered (head, channel, {q, k, v}), the last fastest.
        num_heads: the number of heads.
    """
    by_head = qkv.reshape(len(qkv), num_heads, -1, 3, *qkv.shape[2:])
    return attention(normalize(by_head, [2]).flatten(1, 3), num_heads)
