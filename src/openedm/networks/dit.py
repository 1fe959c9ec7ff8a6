"""The diffusion transformer DiT with adaLN-zero blocks, for series, images and volumes.

    tokens   one for each patch of x, with p values along each axis: h_i = L_in patch_i + position_i
    block    (b₁, s₁, g₁, b₂, s₂, g₂) = L_e e
             h ← h + g₁ · attention(norm(h)(1 + s₁) + b₁)
             h ← h + g₂ · L_b gelu(L_a(norm(h)(1 + s₂) + b₂))
    output   patch_i = L_out(norm(h_i)(1 + s) + b),  (b, s) = L_f e

e is the embedding of c_noise, class, augmentation and vector condition; norm has no weights of its own. L_e, L_f and
L_out start at zero (adaLN-zero): a new block is the identity, and F starts at exactly 0. Positions are fixed,
[sin ω_k i, cos ω_k i] with ω_k from 1 towards 1/10000 for the index i along each axis, so that the network takes
samples of other sizes than it was built for. Source: Peebles and Xie 2023 (arXiv 2212.09748), Section 3.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from openedm.ground import checks
from openedm.networks.conditions import join_image
from openedm.networks.embeddings import Embedding, SmoothEmbedding
from openedm.networks.layers import ZERO, Init, Linear, seeded
from openedm.networks.network import GRIDS, Labels, Network, RawNetwork, Signature
from openedm.networks.pointwise import Dropout

__all__ = ["DIT_SIZES", "DiT", "DiTNetwork"]

DIT_SIZES: Mapping[str, tuple[int, int, int]] = {
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}
"""Width, number of blocks and number of heads of the sizes of the paper (Table 1)."""
INIT = Init("xavier_uniform")
NOISE_FEATURES = 256


@dataclass(frozen=True)
class DiT(Network):
    """DiT, the diffusion transformer of Peebles and Xie 2023: patches as tokens, adaLN-zero blocks. The default is S/2.

    The paper's sizes, with their parameters for 32×32×4 latents in 1000 classes and patches of 2: S (width 384, 12
    blocks, 6 heads; 33 million), B (768, 12, 12; 130 million), L (1024, 24, 16; 458 million) and XL (1152, 28, 16;
    675 million); `DiT.of_size("B")` has them by name. Attention costs the square of the number of patches: choose
    `patch_size` for some hundreds of them.

    Args:
        patch_size: the size of a patch along each axis; or one size for each axis, such as (1, 4, 4).
        width: the length of a token, a multiple of `num_heads`, at least 2 for each axis of the data.
        num_blocks: blocks of attention and two layers.
        num_heads: heads of the attention.
        mlp_ratio: the width of a block's hidden layer, in widths of a token.
        dropout: probability of dropout at the end of each branch, in [0, 1).

    Raises:
        ValueError: a value is out of its range.

    >>> network = DiT(width=32, num_blocks=2, num_heads=2).build((1, 28, 28), num_classes=10, seed=0)
    >>> network(torch.ones(2, 1, 28, 28), torch.zeros(2), torch.tensor([3, -1])).abs().max().item()  # It starts at 0.
    0.0
    """

    patch_size: int | tuple[int, ...] = 2
    width: int = 384
    num_blocks: int = 12
    num_heads: int = 6
    mlp_ratio: int = 4
    dropout: float = 0.0

    axes: ClassVar = GRIDS
    condition_kinds: ClassVar = ("vector", "image")

    def __post_init__(self) -> None:
        for name in ("width", "num_blocks", "num_heads", "mlp_ratio"):
            checks.size(name, getattr(self, name))
        for size in self.patch_size if isinstance(self.patch_size, tuple) else (self.patch_size,):
            checks.size("patch_size", size)
        if self.width % self.num_heads:
            raise ValueError(f"width must be a multiple of num_heads={self.num_heads}, got {self.width}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be >= 0 and < 1, got {self.dropout!r}")

    @classmethod
    def of_size(cls, name: str, patch_size: int | tuple[int, ...] = 2, dropout: float = 0.0) -> "DiT":
        """The network of a size of the paper: "S", "B", "L" or "XL".

        >>> DiT.of_size("B", patch_size=4)
        DiT(patch_size=4, width=768, num_blocks=12, num_heads=12, mlp_ratio=4, dropout=0.0)

        Raises:
            ValueError: the name is not one of these, or a value is out of its range.
        """
        checks.one_of("name", name, DIT_SIZES)
        width, num_blocks, num_heads = DIT_SIZES[name]
        return cls(patch_size, width, num_blocks, num_heads, dropout=dropout)

    def module(self, signature: Signature, seed: int | None) -> "DiTNetwork":
        """The network for series, images or volumes; see `Network.build`.

        Raises:
            ValueError: a size of the samples is not a multiple of the patch's, `patch_size` has another number of axes
                than the samples, or `width` is below 2 for each axis.
        """
        with seeded(seed):
            return DiTNetwork(self, signature)

    def patch_of(self, size: Sequence[int], name: str = "event_shape") -> tuple[int, ...]:
        """The patch for samples of this size, without channels.

        Raises:
            ValueError: a size is not a multiple of the patch's, which the message calls a size of `name`, or
                `patch_size` has another number of axes.
        """
        given = self.patch_size
        patch = (given,) * len(size) if isinstance(given, int) else given
        if len(patch) != len(size):
            raise ValueError(f"patch_size must have {len(size)} sizes, one for each axis of {tuple(size)}, got {patch}")
        if any(side % part for side, part in zip(size, patch, strict=True)):
            common = math.gcd(*size)
            divisors = [str(d) for d in range(1, common + 1) if common % d == 0]
            raise ValueError(
                f"the sizes of {name} must be multiples of patch_size={given} for DiT, got {tuple(size)}: choose a "
                f"patch_size that divides them ({', '.join(divisors)}, or one for each axis), or crop or pad the data"
            )
        return patch


class DiTNetwork(RawNetwork):
    """The raw network F of a DiT: `network(x, c_noise, condition=None, augment=None)`.

    The input may have other sizes than those that the network was built for, if they are multiples of the patch's.

    Args:
        choice: the sizes.
        signature: the shapes of its inputs and its output.

    Raises:
        ValueError: the sizes do not fit the samples, see `DiT.module`.
    """

    choice: DiT
    positions: Tensor

    def __init__(self, choice: DiT, signature: Signature) -> None:
        super().__init__(choice, signature)
        size = signature.event_shape[1:]
        checks.at_least(f"width, for {len(size)} axes,", choice.width, 2 * len(size))
        self.patch = choice.patch_of(size)
        volume = math.prod(self.patch)
        checks.size("the number of patches", math.prod(self._grid(size)))
        self.embedding = Embedding(
            SmoothEmbedding(NOISE_FEATURES), choice.width, signature, init=INIT, late_classes=True
        )
        self.layer_in = Linear(signature.joined_channels * volume, choice.width, init=INIT)
        self.register_buffer("positions", position_features(self._grid(size), choice.width), persistent=False)
        self.blocks = nn.ModuleList(_Block(choice) for _ in range(choice.num_blocks))
        self.norm_out = nn.LayerNorm(choice.width, elementwise_affine=False, eps=1e-6)
        self.modulation_out = Linear(choice.width, 2 * choice.width, init=ZERO)
        self.layer_out = Linear(choice.width, signature.out_channels * volume, init=ZERO)

    def forward(
        self,
        x: Float[Tensor, "batch *event"],
        c_noise: Float[Tensor, " batch"],
        condition: Labels | Float[Tensor, "conditions *shape"] | None = None,
        augment: Float[Tensor, "rows augment_dim"] | None = None,
    ) -> Float[Tensor, "batch *out"]:
        """F(x; c_noise), of shape (batch, out_channels, *size); see `RawNetwork.forward`."""
        self.signature.check(x, c_noise, condition, augment, self.choice.axes)
        size = x.shape[2:]
        self.choice.patch_of(size, "x")
        e = self.embedding(c_noise, condition, augment)[:, None]
        h = self.layer_in(self._patches(join_image(self.signature, x, condition)))
        h = h + self._positions(size).to(h)
        for block in self.blocks:
            h = block(h, e)
        shift, scale = self.modulation_out(e).chunk(2, dim=-1)
        return self._join(self.layer_out(torch.addcmul(shift, self.norm_out(h), 1 + scale)), size)

    def _grid(self, size: Sequence[int]) -> tuple[int, ...]:
        """The number of patches along each axis."""
        return tuple(side // part for side, part in zip(size, self.patch, strict=True))

    def _positions(self, size: Sequence[int]) -> Float[Tensor, "tokens width"]:
        if tuple(size) == self.signature.event_shape[1:]:
            return self.positions
        return position_features(self._grid(size), self.choice.width).to(self.positions)

    def _patches(self, x: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch tokens features"]:
        """The patches of x, row by row, each as one vector with the channels first."""
        axes = len(self.patch)
        sides = [part for pair in zip(self._grid(x.shape[2:]), self.patch, strict=True) for part in pair]
        split = x.reshape(*x.shape[:2], *sides)
        order = (0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 2 + 2 * axes, 2))
        return split.permute(order).flatten(1 + axes).flatten(1, axes)

    def _join(
        self, patches: Float[Tensor, "batch tokens features"], size: Sequence[int]
    ) -> Float[Tensor, "batch channels *size"]:
        """The samples of this size that `_patches` would split into these."""
        axes, grid = len(self.patch), self._grid(size)
        split = patches.reshape(len(patches), *grid, -1, *self.patch)
        pairs = [axis for i in range(axes) for axis in (1 + i, 2 + axes + i)]
        return split.permute(0, 1 + axes, *pairs).reshape(len(patches), -1, *size)


class _Block(nn.Module):
    """An adaLN-zero block: h + g₁ attention(…) and then + g₂ layers(…), each modulated by the embedding."""

    def __init__(self, choice: DiT) -> None:
        super().__init__()
        width, hidden = choice.width, choice.mlp_ratio * choice.width
        self.num_heads = choice.num_heads
        self.modulation = Linear(width, 6 * width, init=ZERO)
        self.norm0 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv = Linear(width, 3 * width, init=INIT)
        self.mix = Linear(width, width, init=INIT)
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.layer0 = Linear(width, hidden, init=INIT)
        self.layer1 = Linear(hidden, width, init=INIT)
        self.dropout = Dropout(choice.dropout)

    def forward(
        self, h: Float[Tensor, "batch tokens width"], e: Float[Tensor, "batch one width"]
    ) -> Float[Tensor, "batch tokens width"]:
        """The tokens after the block."""
        shift0, scale0, gate0, shift1, scale1, gate1 = self.modulation(e).chunk(6, dim=-1)
        branch = self._attention(torch.addcmul(shift0, self.norm0(h), 1 + scale0))
        h = torch.addcmul(h, gate0, self.dropout(self.mix(branch)))
        branch = functional.gelu(self.layer0(torch.addcmul(shift1, self.norm1(h), 1 + scale1)), approximate="tanh")
        return torch.addcmul(h, gate1, self.dropout(self.layer1(branch)))

    def _attention(self, h: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        q, k, v = self.qkv(h).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).contiguous().unbind()
        return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def position_features(grid: Sequence[int], width: int) -> Float[Tensor, "positions width"]:
    """The fixed features of each position of a grid, row by row: sines and cosines of its index along each axis.

    Each axis has ⌊width/(2 · axes)⌋ frequencies ω_k = 10000^(−k/count); features that are left over are 0.

    >>> position_features((2,), 4).shape, position_features((2, 3), 9)[0].tolist()
    (torch.Size([2, 4]), [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0])
    """
    count = width // (2 * len(grid))
    omega = 10000 ** -(torch.arange(count, dtype=torch.float64) / count)
    features = []
    for axis, length in enumerate(grid):
        angle = torch.arange(length, dtype=torch.float64)[:, None] * omega
        along = torch.cat([angle.sin(), angle.cos()], dim=1).float()
        shape = [1] * len(grid)
        shape[axis] = length
        features.append(along.reshape(*shape, -1).expand(*grid, -1))
    joined = torch.cat(features, dim=-1).flatten(0, -2)
    return functional.pad(joined, (0, width - joined.shape[1]))
