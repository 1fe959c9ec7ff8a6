"""Linear layers of all members of an ensemble at once, as batched matrices."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["MemberLinear"]


class MemberLinear(nn.Module):
    """x W_e + b_e for each member e of an ensemble, with W_e ~ N(0, gain²/inputs) and b_e = 0 at first.

    Args:
        members: number of members.
        inputs, outputs: sizes of x and of the result.
        gain: of the weights.
    """

    def __init__(self, members: int, inputs: int, outputs: int, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(members, inputs, outputs) * (gain / math.sqrt(inputs)))
        self.bias = nn.Parameter(torch.zeros(members, 1, outputs))

    def forward(self, x: Float[Tensor, "members rows inputs"]) -> Float[Tensor, "members rows outputs"]:
        """The result for the rows of each member."""
        return torch.baddbmm(self.bias, x, self.weight)
