"""Transformers whose tokens are single numbers: parameters and data of a simulator, noisy or known.

    t_i = x_i a_{i,f} + b_i + f_i-th flag,      f_i = 1 where variable i is known, 0 where it is noisy
    h ← h + L_o attention(modulate h),          h ← h + L_b silu(L_a modulate h),          num_blocks times
    F_i = o_i · (modulate h)_i

modulate h = (1 + scale) h + shift, with (scale, shift) a linear map of the embedding of c_noise, as in Peebles & Xie
2023 (DiT, arXiv 2212.09748) but without the layer norm before it: tokens start at unit variance, and on a problem of
linear Gaussians the norm doubled the distance to the exact denoiser. L_o, L_b and o start at zero, so that F starts at
zero. That one network, trained with random flags, can serve every conditional of its variables is the idea of Gloeckler
et al. 2024 (Simformer, arXiv 2404.09636).
"""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from openedm.ground import checks
from openedm.networks.configs import Network
from openedm.networks.embeddings import Embedding, Labels, SmoothEmbedding
from openedm.networks.layers import Init, Linear, seeded

INIT, ZERO = Init("kaiming_normal"), Init("kaiming_normal", weight_gain=0)


class TokenTransformer(nn.Module):
    """F for `num_variables` numbers, some noisy and the rest known: `network(values, known, e)`.

    Args:
        num_variables: the number of tokens.
        outputs: numbers returned for each of them.
        embedding_channels: the length of the embedding of the noise level.
        width: the length of a token, a multiple of `num_heads`.
        num_blocks: blocks of attention and two layers.
        num_heads: heads of the attention.
    """

    def __init__(
        self,
        num_variables: int,
        outputs: int,
        *,
        embedding_channels: int,
        width: int,
        num_blocks: int,
        num_heads: int,
    ) -> None:
        super().__init__()
        third = math.sqrt(1 / 3)  # value, identity and flag share a variance of 1
        self.scales = nn.Parameter(third * torch.randn(2, num_variables, width))
        self.identities = nn.Parameter(third * torch.randn(num_variables, width))
        self.flags = nn.Parameter(third * torch.randn(2, width))
        self.blocks = nn.ModuleList(_Block(width, num_heads, embedding_channels) for _ in range(num_blocks))
        self.modulation = _Modulation(width, embedding_channels)
        self.heads = nn.Parameter(torch.zeros(num_variables, outputs, width))

    def forward(
        self,
        values: Float[Tensor, "batch variables"],
        known: Bool[Tensor, "#batch variables"],
        e: Float[Tensor, "batch channels"],
    ) -> Float[Tensor, "batch variables outputs"]:
        """F for every variable; what it is for those that are known means nothing."""
        choose = known[..., None]
        tokens = values[..., None] * torch.where(choose, self.scales[1], self.scales[0])
        h = tokens + self.identities + torch.where(choose, self.flags[1], self.flags[0])
        for block in self.blocks:
            h = block(h, e)
        result: Tensor = torch.einsum("bnw,nkw->bnk", self.modulation(h, e), self.heads)
        return result


class _Modulation(nn.Module):
    """(1 + scale) h + shift for every token, with (scale, shift) a linear map of the embedding."""

    def __init__(self, width: int, embedding_channels: int) -> None:
        super().__init__()
        self.map = Linear(embedding_channels, 2 * width, init=INIT)

    def forward(
        self, h: Float[Tensor, "batch tokens width"], e: Float[Tensor, "batch channels"]
    ) -> Float[Tensor, "batch tokens width"]:
        scale, shift = self.map(e)[:, None].chunk(2, dim=2)
        modulated: Tensor = h * (1 + scale) + shift
        return modulated


class _Block(nn.Module):
    def __init__(self, width: int, num_heads: int, embedding_channels: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.modulation0 = _Modulation(width, embedding_channels)
        self.qkv = Linear(width, 3 * width, init=INIT)
        self.mix = Linear(width, width, init=ZERO)
        self.modulation1 = _Modulation(width, embedding_channels)
        self.layer0 = Linear(width, 4 * width, init=INIT)
        self.layer1 = Linear(4 * width, width, init=ZERO)

    def forward(
        self, h: Float[Tensor, "batch tokens width"], e: Float[Tensor, "batch channels"]
    ) -> Float[Tensor, "batch tokens width"]:
        h = h + self.mix(self._attention(self.modulation0(h, e)))
        branch: Tensor = self.layer1(functional.silu(self.layer0(self.modulation1(h, e))))
        return h + branch

    def _attention(self, h: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        q, k, v = self.qkv(h).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).contiguous().unbind()
        return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class _OverTokens(nn.Module):
    """What the two networks below share: the embedding of the noise level, the tokens and the checks."""

    def __init__(
        self,
        dim: int,
        data: int,
        condition_shape: tuple[int, ...],
        outputs: int,
        *,
        num_classes: int,
        augment_dim: int,
        width: int,
        num_blocks: int,
        num_heads: int,
    ) -> None:
        super().__init__()
        self.in_channels, self.condition_shape = dim, condition_shape
        self.num_classes, self.augment_dim = num_classes, augment_dim
        self.embedding = Embedding(
            SmoothEmbedding(), width, num_classes=num_classes, augment_dim=augment_dim, init=INIT
        )
        self.tokens = TokenTransformer(
            dim + data,
            outputs,
            embedding_channels=width,
            width=width,
            num_blocks=num_blocks,
            num_heads=num_heads,
        )

    @abstractmethod
    def split(
        self, x: Float[Tensor, "batch dim"], condition: Float[Tensor, "batch *shape"]
    ) -> tuple[Float[Tensor, "batch variables"], Bool[Tensor, "#batch variables"]]:
        """The value of every token, and whether it is known."""

    def forward(
        self,
        x: Float[Tensor, "batch *event"],
        c_noise: Float[Tensor, " levels"],
        condition: Float[Tensor, "conditions *shape"] | Labels | None = None,
        augment: Float[Tensor, "rows augment_dim"] | None = None,
    ) -> Float[Tensor, "batch out"]:
        """F(x; c_noise, condition), of shape (batch, outputs · dim): all first outputs, then all second ones.

        Args:
            x: noisy vectors (batch, dim), of about unit variance.
            c_noise: the noise level as the preconditioning gives it, (batch,).
            condition: (batch or 1, *condition_shape), a single row for all samples; class labels for a network with
                classes; None for one without either.
            augment: augmentation labels (batch, augment_dim), or None.

        Raises:
            ValueError: a shape does not fit.
        """
        _check_rows("x", x, (self.in_channels,), None)
        _check_rows("c_noise", c_noise, (), len(x))
        if augment is not None:
            if not self.augment_dim:
                raise ValueError("augment must be None: the network was built without labels for it (augment_dim=0)")
            _check_rows("augment", augment, (self.augment_dim,), len(x))
        if self.condition_shape:
            if condition is None:
                raise ValueError(f"condition must have shape (batch, {_sizes(self.condition_shape)}), got None")
            if len(condition) == 1:
                condition = condition.expand(len(x), *condition.shape[1:])
            _check_rows("condition", condition, self.condition_shape, len(x))
        elif condition is not None and not self.num_classes:
            raise ValueError("condition must be None: the network was built without one (condition_shape=None)")
        e = self.embedding(c_noise, condition if self.num_classes else None, augment)
        rows = condition.to(x.dtype) if self.condition_shape and condition is not None else x.new_zeros(len(x), 0)
        values, known = self.split(x, rows)
        result: Tensor = self.tokens(values, known, e)[:, : self.in_channels]
        return result.mT.flatten(1)


class ConditionalTransformer(_OverTokens):
    """The raw network F(θ; c_noise, x) of a posterior: noisy tokens for θ, known tokens for the numbers of x."""

    def split(
        self, x: Float[Tensor, "batch dim"], condition: Float[Tensor, "batch *shape"]
    ) -> tuple[Float[Tensor, "batch variables"], Bool[Tensor, "#batch variables"]]:
        """x, then the numbers of the condition, which are known."""
        data = condition.flatten(1)
        known = torch.arange(x.shape[1] + data.shape[1], device=x.device) >= x.shape[1]
        return torch.cat([x, data], 1), known[None]


class MaskedTransformer(_OverTokens):
    """The raw network F of a joint distribution: condition (batch, 2·dim) = [values, whether each is known, 1 or 0].

    Of variables that are known it sees the value in the condition, and x of the others.
    """

    def split(
        self, x: Float[Tensor, "batch dim"], condition: Float[Tensor, "batch *shape"]
    ) -> tuple[Float[Tensor, "batch variables"], Bool[Tensor, "#batch variables"]]:
        """The given values where known, else x."""
        values, flags = condition.chunk(2, dim=1)
        known = flags > 0.5
        return torch.where(known, values, x), known


@dataclass(frozen=True)
class Transformer(Network):
    """A transformer for vectors given data, `ConditionalTransformer`: one token for each number of both.

    Its cost grows with the square of how many there are: for hundreds, summarise the data first.

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

    def __post_init__(self) -> None:
        for name in ("width", "num_blocks", "num_heads"):
            checks.at_least(name, getattr(self, name), 1)
        if self.width % self.num_heads:
            raise ValueError(f"width must be a multiple of num_heads={self.num_heads}, got {self.width}")

    def build(
        self,
        event_shape: tuple[int, ...],
        *,
        condition_shape: tuple[int, ...] | None = None,
        num_classes: int = 0,
        augment_dim: int = 0,
        out_channels: int | None = None,
        seed: int | None = None,
    ) -> _OverTokens:
        """The network for vectors of shape (features,); see `Network.build`.

        Args:
            condition_shape: the shape of the data, whose numbers become tokens; None for a network without.

        Raises:
            ValueError: the shape is no vector's, there are both data and classes, or `out_channels` is no multiple of
                the features.
        """
        shape, outputs = _checked_shapes(event_shape, condition_shape, num_classes, out_channels)
        with seeded(seed):
            return ConditionalTransformer(
                event_shape[0],
                math.prod(shape) if shape else 0,
                shape,
                outputs,
                num_classes=num_classes,
                augment_dim=augment_dim,
                width=self.width,
                num_blocks=self.num_blocks,
                num_heads=self.num_heads,
            )


@dataclass(frozen=True)
class JointTransformer(Transformer):
    """A transformer for all conditionals of a vector, `MaskedTransformer`: one token for each variable.

    Args and errors as for `Transformer`.

    >>> network = JointTransformer(width=16).build((3,), condition_shape=(6,), seed=0)
    >>> network(torch.ones(4, 3), torch.zeros(4), torch.tensor([[0.0, 5, 0, 0, 1, 0]]).expand(4, 6)).shape
    torch.Size([4, 3])
    """

    def build(
        self,
        event_shape: tuple[int, ...],
        *,
        condition_shape: tuple[int, ...] | None = None,
        num_classes: int = 0,
        augment_dim: int = 0,
        out_channels: int | None = None,
        seed: int | None = None,
    ) -> _OverTokens:
        """The network for vectors of shape (features,), with conditions of shape (2 · features,); see `Network.build`.

        Raises:
            ValueError: the shapes do not fit, or `out_channels` is no multiple of the features.
        """
        shape, outputs = _checked_shapes(event_shape, condition_shape, num_classes, out_channels)
        if shape != (2 * event_shape[0],):
            raise ValueError(
                f"condition_shape must be ({2 * event_shape[0]},), values and flags, for event_shape={event_shape}, "
                f"got {condition_shape}"
            )
        with seeded(seed):
            return MaskedTransformer(
                event_shape[0],
                0,
                shape,
                outputs,
                num_classes=num_classes,
                augment_dim=augment_dim,
                width=self.width,
                num_blocks=self.num_blocks,
                num_heads=self.num_heads,
            )


def _checked_shapes(
    event_shape: tuple[int, ...], condition_shape: tuple[int, ...] | None, num_classes: int, out_channels: int | None
) -> tuple[tuple[int, ...], int]:
    """The shape of the condition, () for none, and the outputs for each number."""
    if len(event_shape) != 1 or min(event_shape) < 1:
        raise ValueError(f"event_shape must be (features,), each >= 1, got {event_shape}")
    shape = () if condition_shape is None else tuple(condition_shape)
    if condition_shape is not None and (not shape or min(shape) < 1):
        raise ValueError(f"condition_shape must hold sizes >= 1, got {condition_shape}")
    if shape and num_classes:
        raise ValueError(f"num_classes must be 0 where condition_shape is given, got {num_classes}")
    outputs = event_shape[0] if out_channels is None else out_channels
    if outputs < 1 or outputs % event_shape[0]:
        raise ValueError(f"out_channels must be a multiple of {event_shape[0]}, one set a number, got {out_channels}")
    return shape, outputs // event_shape[0]


def _check_rows(name: str, value: Tensor, shape: tuple[int, ...], rows: int | None) -> None:
    if tuple(value.shape[1:]) != shape or (rows is not None and len(value) != rows):
        layout = ", ".join([*(("batch",) if rows is None else (str(rows),)), *map(str, shape)])
        raise ValueError(f"{name} must have shape ({layout}{'' if shape else ','}), got {tuple(value.shape)}")


def _sizes(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
