"""A residual network for parameters θ given data x: the denoiser of simulation-based inference.

    e = silu(L_e silu(summary(x) + L_c embedding(c_noise)))
    h = L_in θ + L_x e
    h ← h + L_b silu(L_a silu((1 + scale) · h + shift)),  (scale, shift) = L_m e,   num_blocks times
    F = L_out silu((1 + scale) · h + shift),              (scale, shift) = L_m e

x and σ enter through e alone. For many samples of one observation at one noise level e is computed once, and a sample
costs the h-path only. The modulation is FiLM (Perez et al. 2018, arXiv 1709.07871).
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from openedm.ground import checks
from openedm.networks.configs import Network
from openedm.networks.embeddings import SmoothEmbedding
from openedm.networks.layers import Init, Linear, seeded
from openedm.networks.mlp import ModulatedBlock, Modulation
from openedm.networks.summaries import Summary, VectorSummary

INIT, ZERO = Init("kaiming_normal"), Init("kaiming_normal", weight_gain=0)


@dataclass(frozen=True)
class ConditionalMLP(Network):
    """A residual multi-layer perceptron for vectors, modulated by a summary of the condition and the noise level.

    Args:
        width: the width of its hidden layers, of the summary and of the embedding.
        num_blocks: the number of residual blocks of two layers each.
        summary: how the condition is summarised.

    Raises:
        ValueError: a count is out of its range.

    >>> import torch
    >>> network = ConditionalMLP(width=32).build((2,), condition_shape=(5,), seed=0)
    >>> network(torch.ones(3, 2), torch.zeros(1), torch.zeros(1, 5)).abs().max().item()  # It starts at zero.
    0.0
    """

    width: int = 128
    num_blocks: int = 3
    summary: Summary = VectorSummary()

    def __post_init__(self) -> None:
        checks.at_least("width", self.width, 1)
        checks.at_least("num_blocks", self.num_blocks, 1)

    def build(
        self,
        event_shape: tuple[int, ...],
        *,
        condition_shape: tuple[int, ...] | None = None,
        num_classes: int = 0,
        augment_dim: int = 0,
        out_channels: int | None = None,
        seed: int | None = None,
    ) -> "ConditionalResidualMLP":
        """The network for vectors of shape (features,), called as `network(x, c_noise, condition)`.

        Args:
            event_shape: (features,).
            condition_shape: the shape of one condition.
            num_classes, augment_dim: must be 0.
            out_channels: features of the output; None means those of the input.
            seed: its initial weights are a function of this number; None means the global generator.

        Raises:
            ValueError: a shape does not fit, there is no condition, or there are classes or augmentation labels.
        """
        if len(event_shape) != 1 or event_shape[0] < 1:
            raise ValueError(f"event_shape must be (features,), each >= 1, got {event_shape}")
        if condition_shape is None:
            raise ValueError("condition_shape must be given to a ConditionalMLP; MLP is the network without conditions")
        if num_classes or augment_dim:
            raise ValueError(f"num_classes and augment_dim must be 0, got {num_classes} and {augment_dim}")
        summary = self.summary.build(condition_shape, self.width, seed=seed)
        with seeded(seed):
            return ConditionalResidualMLP(
                event_shape[0], out_channels or event_shape[0], summary, width=self.width, num_blocks=self.num_blocks
            )


class ConditionalResidualMLP(nn.Module):
    """The raw network F(θ; c_noise, x).

    Args:
        in_channels, out_channels: dimensions of θ and of F.
        summary: maps conditions (rows, *condition_shape) to (rows, width).
        width: the width of the hidden layers.
        num_blocks: the number of residual blocks.

    Attributes:
        broadcasts: c_noise and the condition may have a single row for all samples.
    """

    broadcasts = True

    def __init__(self, in_channels: int, out_channels: int, summary: nn.Module, *, width: int, num_blocks: int) -> None:
        super().__init__()
        self.summary = summary
        self.noise = SmoothEmbedding()
        self.layer_noise = Linear(self.noise.num_channels, width, init=INIT)
        self.layer_embedding = Linear(width, width, init=INIT)
        self.layer_in = Linear(in_channels, width, init=INIT)
        self.layer_condition = Linear(width, width, init=INIT)
        self.blocks = nn.ModuleList(ModulatedBlock(width, width) for _ in range(num_blocks))
        self.modulation_out = Modulation(width, width)
        self.layer_out = Linear(width, out_channels, init=ZERO)

    def forward(
        self,
        x: Float[Tensor, "batch features"],
        c_noise: Float[Tensor, " levels"],
        condition: Float[Tensor, "conditions ..."],
    ) -> Float[Tensor, "batch out"]:
        """F, of shape (batch, out_channels).

        Args:
            x: vectors (batch, in_channels).
            c_noise: the noise level as the preconditioning gives it, (batch,), or (1,) for all.
            condition: (batch, *condition_shape), or one row for all.
        """
        noise: Tensor = self.layer_noise(self.noise(c_noise.to(x.dtype)).to(x.dtype))
        e: Tensor = functional.silu(self.layer_embedding(functional.silu(self.summary(condition) + noise)))
        h: Tensor = self.layer_in(x) + self.layer_condition(e)
        for block in self.blocks:
            h = block(h, e)
        result: Tensor = self.layer_out(functional.silu(self.modulation_out(h, e)))
        return result
