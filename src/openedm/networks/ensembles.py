"""Ensembles of residual networks for vectors conditioned on vectors, of which few may be known: regularised, averaged.

    F = mean_e F_e(x; c_noise, y),      in training F_e of the rows i ≡ e alone
    s = L_s silu(h),  h = L_y (y + ε) and blocks h ← h + L_b dropout(silu(L_a silu(h)))
    e = silu(s + L_c embedding(c_noise)),   h = L_in x,   h ← h + L_b dropout(silu(L_a silu((1 + scale) · h + shift)))

Members are trained on rows and noise of their own, by the same steps, and evaluated together as batched matrices: three
cost little more than one of these small networks. Their mean errs less than any of them. Dropout and noise ε on y, both
in training only, keep a network from memorising a few hundred conditions. Source: deep ensembles, Lakshminarayanan et
al. 2017 (arXiv 1612.01474); noise on inputs as a penalty on slopes, Bishop 1995.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from openedm.ground import checks
from openedm.networks.embeddings import SmoothEmbedding
from openedm.networks.layers import seeded
from openedm.networks.member_linear import MemberLinear
from openedm.networks.network import Network, RawNetwork, Signature

__all__ = ["ConditionalEnsemble", "ConditionalEnsembleMLP"]


@dataclass(frozen=True)
class ConditionalEnsemble(Network):
    """An ensemble of residual multi-layer perceptrons for vectors, modulated by a condition and the noise level.

    Args:
        members: how many networks are averaged; a batch in training is shared between them.
        width: the width of the hidden layers.
        num_blocks: the residual blocks on the path of x.
        summary_blocks: the residual blocks on the path of the condition.
        dropout: probability with which a hidden number is left out in training.
        condition_noise: standard deviation of the noise on the condition in training, in units of the condition.

    Raises:
        ValueError: a number is out of its range.

    >>> import torch
    >>> network = ConditionalEnsemble(width=32).build((2,), condition_shape=(5,), seed=0)
    >>> network(torch.ones(3, 2), torch.zeros(1), torch.zeros(1, 5)).abs().max().item()  # It starts at zero.
    0.0
    """

    members: int = 3
    width: int = 64
    num_blocks: int = 2
    summary_blocks: int = 1
    dropout: float = 0.1
    condition_noise: float = 0.0

    axes: ClassVar = ("features",)
    takes_conditions: ClassVar = True

    def __post_init__(self) -> None:
        for name, low in (("members", 1), ("width", 1), ("num_blocks", 1), ("summary_blocks", 0)):
            checks.size(name, getattr(self, name), low)
        checks.between("dropout", self.dropout, 0, 1 - 1e-9)
        checks.at_least("condition_noise", self.condition_noise, 0)
        checks.finite("condition_noise", self.condition_noise)

    def module(self, signature: Signature, seed: int | None) -> "ConditionalEnsembleMLP":
        """The network for vectors, called as `network(x, c_noise, condition)`; see `Network.build`.

        Raises:
            ValueError: `condition_shape` is None, or there are classes, augmentation labels or absent conditions.
        """
        if signature.condition_shape is None:
            raise ValueError("condition_shape must be given for a ConditionalEnsemble, got None")
        for name in ("augment_dim", "num_classes", "condition_dropout"):
            if getattr(signature, name):
                raise ValueError(f"{name} must be 0 for a ConditionalEnsemble, got {getattr(signature, name)}")
        with seeded(seed):
            return ConditionalEnsembleMLP(self, signature)


class ConditionalEnsembleMLP(RawNetwork):
    """The raw network F(x; c_noise, y) for vectors x conditioned on data y, which are flattened.

    Args:
        choice: the sizes.
        signature: the shapes of its inputs and its output.

    Attributes:
        broadcasts: c_noise and the condition may have a single row for all samples.
    """

    broadcasts = True
    choice: ConditionalEnsemble

    def __init__(self, choice: ConditionalEnsemble, signature: Signature) -> None:
        super().__init__(choice, signature)
        assert signature.condition_shape is not None  # as `ConditionalEnsemble.module` checks
        self.members, self.dropout, self.condition_noise = choice.members, choice.dropout, choice.condition_noise
        members, width = choice.members, choice.width
        self.noise = SmoothEmbedding()
        self.layer_noise = MemberLinear(members, self.noise.num_channels, width)
        self.layer_condition = MemberLinear(members, math.prod(signature.condition_shape), width)
        self.summary_blocks = nn.ModuleList(_Block(choice) for _ in range(choice.summary_blocks))
        self.layer_summary = MemberLinear(members, width, width, gain=math.sqrt(2))
        self.layer_in = MemberLinear(members, signature.in_channels, width)
        self.blocks = nn.ModuleList(_Block(choice, modulated=True) for _ in range(choice.num_blocks))
        self.layer_out = MemberLinear(members, width, signature.out_channels, gain=0.0)

    def forward(  # type: ignore[override]  # It has no augmentation labels.
        self,
        x: Float[Tensor, "batch features"],
        c_noise: Float[Tensor, " levels"],
        condition: Float[Tensor, "conditions ..."] | None = None,
    ) -> Float[Tensor, "batch out"]:
        """F, of shape (batch, out_channels); in training that of one member for each row, else the members' mean.

        Args:
            x: vectors (batch, in_channels).
            c_noise: the noise level as computed by the preconditioning, (batch,), or (1,) for all samples.
            condition: the condition (batch, *condition_shape), or one row for all samples.
        """
        if condition is None:
            raise ValueError("condition must be given, got None")
        y, noise = condition.flatten(1), self.noise(c_noise.to(x.dtype)).to(x.dtype)
        if not self.training:
            return self._members(*(rows.expand(self.members, *rows.shape) for rows in (x, noise, y))).mean(0)
        count, y = len(x), y + self.condition_noise * torch.randn_like(y)
        each = -(-count // self.members)
        rows = torch.arange(each * self.members, device=x.device) % count
        parts = (values[rows % len(values)].unflatten(0, (self.members, each)) for values in (x, noise, y))
        return self._members(*parts).flatten(0, 1)[:count]

    def member(self, number: int) -> "ConditionalEnsembleMLP":
        """One member alone, in evaluation mode; its parameters share the ensemble's memory.

        Args:
            number: 0 ≤ number < members.
        """
        checks.between("number", number, 0, self.members - 1)
        with seeded(0):
            single = ConditionalEnsembleMLP(replace(self.choice, members=1), self.signature)
        single.to(self.layer_in.weight)
        state = {name: weight[number : number + 1] for name, weight in self.state_dict().items()}
        single.load_state_dict(state, assign=True)
        return single.eval().requires_grad_(False)

    def _members(
        self,
        x: Float[Tensor, "members rows features"],
        noise: Float[Tensor, "members levels channels"],
        y: Float[Tensor, "members conditions numbers"],
    ) -> Float[Tensor, "members rows out"]:
        summary = self.layer_condition(y)
        for block in self.summary_blocks:
            summary = block(summary)
        e = functional.silu(self.layer_summary(functional.silu(summary)) + self.layer_noise(noise))
        h = self.layer_in(x)
        for block in self.blocks:
            h = block(h, e)
        result: Tensor = self.layer_out(functional.silu(h))
        return result


class _Block(nn.Module):
    """h + L_b dropout(silu(L_a silu((1 + scale) · h + shift))), with (scale, shift) a linear map of e, or without."""

    def __init__(self, choice: ConditionalEnsemble, *, modulated: bool = False) -> None:
        super().__init__()
        members, width, self.dropout = choice.members, choice.width, choice.dropout
        self.modulation = MemberLinear(members, width, 2 * width) if modulated else None
        self.layer0 = MemberLinear(members, width, width, gain=math.sqrt(2))
        self.layer1 = MemberLinear(members, width, width, gain=0.0)

    def forward(
        self, h: Float[Tensor, "members rows width"], e: Float[Tensor, "members levels width"] | None = None
    ) -> Float[Tensor, "members rows width"]:
        a = h
        if self.modulation is not None and e is not None:
            scale, shift = self.modulation(e).chunk(2, -1)
            a = h * (1 + scale) + shift
        hidden = functional.silu(self.layer0(functional.silu(a)))
        branch: Tensor = self.layer1(functional.dropout(hidden, self.dropout, self.training))
        return h + branch
