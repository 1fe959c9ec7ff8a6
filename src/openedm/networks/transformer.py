"""Transformers whose tokens are single numbers: parameters and data of a simulator, noisy or known.

    t_i = x_i a_{i,f} + b_i + f_i-th flag,      f_i = 1 where variable i is known, 0 where it is noisy
    h ← h + L_o attention(modulate h),          h ← h + L_b silu(L_a modulate h),          num_blocks times
    F_i = o_i · (modulate h)_i

modulate h = (1 + scale) h + shift, with (scale, shift) a linear map of the embedding of c_noise, as in Peebles & Xie
2023 (DiT, arXiv 2212.09748) but without the layer norm before it: tokens start at unit variance, and on a linear
Gaussian problem the norm doubled the distance to the exact denoiser. L_o, L_b and o start at zero, so that F starts at
zero. One network, trained with random flags, represents every conditional of its variables: the idea of Gloeckler et
al. 2024 (Simformer, arXiv 2404.09636).
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from openedm.ground import checks
from openedm.networks.conditions import classes_of, values_of
from openedm.networks.embeddings import Embedding, SmoothEmbedding
from openedm.networks.layers import KAIMING, ZERO, Linear, seeded
from openedm.networks.mlp import Modulation
from openedm.networks.network import Labels, Network, RawNetwork, Signature

__all__ = ["ConditionalTransformer", "JointTransformer", "MaskedTransformer", "Transformer"]


@dataclass(frozen=True)
class Transformer(Network):
    """A transformer for vectors given data, `ConditionalTransformer`: one token for each number of both.

    Its cost grows with the square of the number of tokens: for hundreds, summarise the data first. The output channels
    are a multiple of the features; each feature has the same number of outputs.

    Args:
        width: the length of a token, a multiple of `num_heads`.
        num_blocks: blocks of attention and two layers.
        num_heads: heads of the attention.

    Raises:
        ValueError: a value is out of its range.

    >>> network = Transformer(width=16).build((2,), condition_shape=(3,), seed=0)
    >>> network(torch.ones(4, 2), torch.zeros(4), torch.ones(4, 3)).shape
    torch.Size([4, 2])
    """

    width: int = 64
    num_blocks: int = 4
    num_heads: int = 4

    axes: ClassVar = ("features",)
    takes_conditions: ClassVar = True

    def __post_init__(self) -> None:
        for name in ("width", "num_blocks", "num_heads"):
            checks.size(name, getattr(self, name))
        if self.width % self.num_heads:
            raise ValueError(f"width must be a multiple of num_heads={self.num_heads}, got {self.width}")

    def module(self, signature: Signature, seed: int | None) -> "ConditionalTransformer":
        """The network for vectors and, if there is a condition, its numbers; see `Network.build`.

        Raises:
            ValueError: `out_channels` is not a multiple of the features.
        """
        with seeded(seed):
            return ConditionalTransformer(self, signature)


@dataclass(frozen=True)
class JointTransformer(Transformer):
    """A transformer for all conditionals of a vector, `MaskedTransformer`: one token for each variable.

    Conditions have the shape (2 · features,): the values, and 1 for each that is known, else 0. Args and errors as for
    `Transformer`.

    >>> network = JointTransformer(width=16).build((3,), condition_shape=(6,), seed=0)
    >>> network(torch.ones(4, 3), torch.zeros(4), torch.tensor([[0.0, 5, 0, 0, 1, 0]]).expand(4, 6)).shape
    torch.Size([4, 3])
    """

    def module(self, signature: Signature, seed: int | None) -> "MaskedTransformer":
        """The network for vectors and conditions of twice their length; see `Network.build`.

        Raises:
            ValueError: the condition has another shape, or `out_channels` is not a multiple of the features.
        """
        expected = (2 * signature.in_channels,)
        if signature.condition_shape != expected:
            raise ValueError(
                f"condition_shape must be {expected}, values and flags, for event_shape={signature.event_shape}, "
                f"got {signature.condition_shape}"
            )
        with seeded(seed):
            return MaskedTransformer(self, signature)


class ConditionalTransformer(RawNetwork):
    """The raw network F(x; c_noise, y): noisy tokens for the numbers of x, known tokens for those of the condition y.

    Args:
        choice: the sizes.
        signature: the shapes of its inputs and its output.

    Raises:
        ValueError: `out_channels` is not a multiple of the features.
    """

    def __init__(self, choice: Transformer, signature: Signature) -> None:
        super().__init__(choice, signature)
        features = signature.in_channels
        if signature.out_channels % features:
            raise ValueError(
                f"out_channels must be a multiple of the number of features, {features}, got {signature.out_channels}"
            )
        # The floats of the condition are tokens, and not in the embedding.
        self.without_floats = replace(signature, condition_shape=None, condition_dropout=False)
        self.embedding = Embedding(SmoothEmbedding(), choice.width, self.without_floats, init=KAIMING)
        self.tokens = _Tokens(choice, self.num_variables, signature.out_channels // features)
        self.absent = nn.Parameter(torch.randn(choice.width)) if signature.condition_dropout else None

    @property
    def num_variables(self) -> int:
        """The number of tokens."""
        shape = self.signature.condition_shape
        return self.signature.in_channels + (0 if shape is None else math.prod(shape))

    def forward(
        self,
        x: Float[Tensor, "batch *event"],
        c_noise: Float[Tensor, " levels"],
        condition: Labels | Float[Tensor, "conditions *shape"] | None = None,
        augment: Float[Tensor, "rows augment_dim"] | None = None,
    ) -> Float[Tensor, "batch out"]:
        """F, of shape (batch, outputs · features): all first outputs, then all second ones."""
        signature = self.signature
        signature.check(x, c_noise, condition, augment, Transformer.axes)
        e = self.embedding(c_noise, classes_of(signature, condition, len(x)), augment)
        data = x.new_zeros(len(x), 0)
        if signature.condition_shape is not None:
            given, present = values_of(signature, condition, x)
            data = given.expand(len(x), *signature.condition_shape)
            if self.absent is not None:
                e = e + (1 - present) * self.absent
        values, known = self.split(x, data)
        result: Tensor = self.tokens(values, known, e)[:, : signature.in_channels]
        return result.mT.flatten(1)

    def split(
        self, x: Float[Tensor, "batch features"], condition: Float[Tensor, "batch *shape"]
    ) -> tuple[Float[Tensor, "batch variables"], Bool[Tensor, "#batch variables"]]:
        """The value of every token, x and then the condition, and whether it is known: those of the condition are."""
        data = condition.flatten(1)
        known = torch.arange(x.shape[1] + data.shape[1], device=x.device) >= x.shape[1]
        return torch.cat([x, data], 1), known[None]


class MaskedTransformer(ConditionalTransformer):
    """The raw network F of a joint distribution: condition (batch, 2 · features) = [values, 1 where known and else 0].

    The input of a known variable is its value in the condition; that of any other variable is x.
    """

    @property
    def num_variables(self) -> int:
        """The number of tokens."""
        return self.signature.in_channels

    def split(
        self, x: Float[Tensor, "batch features"], condition: Float[Tensor, "batch *shape"]
    ) -> tuple[Float[Tensor, "batch variables"], Bool[Tensor, "#batch variables"]]:
        """The values of the condition where known, otherwise x, and which variables are known."""
        values, flags = condition.chunk(2, dim=1)
        known = flags > 0.5
        return torch.where(known, values, x), known


class _Tokens(nn.Module):
    """F for `num_variables` numbers, some noisy and the others known, with `outputs` outputs for each."""

    def __init__(self, choice: Transformer, num_variables: int, outputs: int) -> None:
        super().__init__()
        width = choice.width
        third = math.sqrt(1 / 3)  # value, identity and flag have a total variance of 1
        self.scales = nn.Parameter(third * torch.randn(2, num_variables, width))
        self.identities = nn.Parameter(third * torch.randn(num_variables, width))
        self.flags = nn.Parameter(third * torch.randn(2, width))
        self.blocks = nn.ModuleList(_TransformerBlock(width, choice.num_heads) for _ in range(choice.num_blocks))
        self.modulation = Modulation(width, width)
        self.heads = nn.Parameter(torch.zeros(num_variables, outputs, width))

    def forward(
        self,
        values: Float[Tensor, "batch variables"],
        known: Bool[Tensor, "#batch variables"],
        e: Float[Tensor, "batch channels"],
    ) -> Float[Tensor, "batch variables outputs"]:
        """F for every variable; it is arbitrary for known variables."""
        is_known, e = known[..., None], e[:, None]
        tokens = values[..., None] * torch.where(is_known, self.scales[1], self.scales[0])
        h = tokens + self.identities + torch.where(is_known, self.flags[1], self.flags[0])
        for block in self.blocks:
            h = block(h, e)
        result: Tensor = torch.einsum("bnw,nkw->bnk", self.modulation(h, e), self.heads)
        return result


class _TransformerBlock(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.modulation0 = Modulation(width, width)
        self.qkv = Linear(width, 3 * width, init=KAIMING)
        self.mix = Linear(width, width, init=ZERO)
        self.modulation1 = Modulation(width, width)
        self.layer0 = Linear(width, 4 * width, init=KAIMING)
        self.layer1 = Linear(4 * width, width, init=ZERO)

    def forward(
        self, h: Float[Tensor, "batch tokens width"], e: Float[Tensor, "batch one channels"]
    ) -> Float[Tensor, "batch tokens width"]:
        h = h + self.mix(self._attention(self.modulation0(h, e)))
        branch: Tensor = self.layer1(functional.silu(self.layer0(self.modulation1(h, e))))
        return h + branch

    def _attention(self, h: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        q, k, v = self.qkv(h).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).contiguous().unbind()
        return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
