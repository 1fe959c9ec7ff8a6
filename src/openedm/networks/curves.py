"""Outputs for each column of a curve, a spectrum or a series, or for each pixel: one function of the place.

    h_j = sin((B + C g(u)) t_j + A g(u) + b),      outputs_j = W silu(V h_j + v) + c_j

t_j are places between −1 and 1 along each axis, g(u) the features of u. A peak that moves, a wave whose frequency is a
parameter or an edge are then learned once, not anew for every column, and from as many values as all columns have. With
sines, as in Sitzmann et al. 2020 (arXiv 2006.09661), frequencies and phases are the network's own.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from openedm.networks.member_linear import MemberLinear

__all__ = ["AlongColumns"]

WIDTH = 16
"""Of the layers that are evaluated for each column."""

PART = 2**20
"""Numbers of a hidden layer that are computed at a time where no gradient is needed: they stay in the cache."""

FREQUENCY, GAIN = 3.0, 1.15
"""Standard deviation of B at first, and gain of A and C."""


class AlongColumns(nn.Module):
    """Outputs for each column from features of the condition, of all members of an ensemble.

    Args:
        members: number of members.
        features: how many there are.
        sizes: how many places there are along each axis.
        outputs: for each place.
    """

    _places: Tensor

    def __init__(self, members: int, features: int, sizes: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.phases = MemberLinear(members, features, WIDTH, gain=GAIN)
        self.slopes = MemberLinear(members, features, WIDTH * len(sizes), gain=GAIN)
        self.frequency = nn.Parameter(FREQUENCY * torch.randn(members, 1, WIDTH * len(sizes)))
        self.phase = nn.Parameter(2 * math.pi * torch.rand(members, 1, WIDTH))
        self.hidden = MemberLinear(members, WIDTH, WIDTH, gain=math.sqrt(2))
        self.layer_out = MemberLinear(members, WIDTH, outputs, gain=0.0)
        self.offset = nn.Parameter(torch.zeros(members, 1, math.prod(sizes), outputs))
        axes = [torch.linspace(-1, 1, size) if size > 1 else torch.zeros(1) for size in sizes]
        self.register_buffer("_places", torch.cartesian_prod(*axes).reshape(-1, len(sizes)), persistent=False)

    def forward(
        self, features: Float[Tensor, "members rows features"]
    ) -> Float[Tensor, "members rows columns outputs"]:
        """The outputs of all places, the last axis the fastest."""
        if torch.is_grad_enabled():
            return self._part(features)
        rows = max(1, PART // (len(features) * len(self._places) * WIDTH))
        return torch.cat([self._part(part) for part in torch.split(features, rows, 1)], 1)

    def _part(self, features: Float[Tensor, "members rows features"]) -> Float[Tensor, "members rows columns outputs"]:
        phases, slopes = self.phases(features) + self.phase, self.slopes(features) + self.frequency
        angles = phases[:, :, None]
        for slope, place in zip(slopes.split(WIDTH, -1), self._places.T, strict=True):
            angles = torch.addcmul(angles, slope[:, :, None], place[:, None])
        keep = torch.is_grad_enabled()
        h = self.hidden((angles.sin() if keep else angles.sin_()).flatten(1, 2))
        out: Tensor = self.layer_out(functional.silu(h, inplace=not keep))
        return self.offset + out.reshape(*angles.shape[:3], -1)
