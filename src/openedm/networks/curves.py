"""Outputs for each column of a curve, a spectrum or a series: one function of the column's place.

    h_j = sin((B + C g(u)) t_j + A g(u) + b),      outputs_j = W silu(V h_j + v) + c_j

t_j are places between −1 and 1, g(u) the features of u. A peak that moves, a wave whose frequency is a parameter or an
edge are then learned once, not anew for every column, and from as many values as all columns have. With sines, as in
Sitzmann et al. 2020 (arXiv 2006.09661), frequencies and phases are the network's own.
"""

import math

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
        columns: how many places t.
        outputs: for each column.
    """

    _places: Tensor

    def __init__(self, members: int, features: int, columns: int, outputs: int) -> None:
        super().__init__()
        self.phases = MemberLinear(members, features, WIDTH, gain=GAIN)
        self.slopes = MemberLinear(members, features, WIDTH, gain=GAIN)
        self.frequency = nn.Parameter(FREQUENCY * torch.randn(members, 1, WIDTH))
        self.phase = nn.Parameter(2 * math.pi * torch.rand(members, 1, WIDTH))
        self.hidden = MemberLinear(members, WIDTH, WIDTH, gain=math.sqrt(2))
        self.layer_out = MemberLinear(members, WIDTH, outputs, gain=0.0)
        self.offset = nn.Parameter(torch.zeros(members, 1, columns, outputs))
        places = torch.linspace(-1, 1, columns) if columns > 1 else torch.zeros(1)
        self.register_buffer("_places", places, persistent=False)

    def forward(
        self, features: Float[Tensor, "members rows features"]
    ) -> Float[Tensor, "members rows columns outputs"]:
        """The outputs of all columns."""
        if torch.is_grad_enabled():
            return self._part(features)
        rows = max(1, PART // (len(features) * len(self._places) * WIDTH))
        return torch.cat([self._part(part) for part in torch.split(features, rows, 1)], 1)

    def _part(self, features: Float[Tensor, "members rows features"]) -> Float[Tensor, "members rows columns outputs"]:
        phases, slopes = self.phases(features) + self.phase, self.slopes(features) + self.frequency
        angles = torch.addcmul(phases[:, :, None], slopes[:, :, None], self._places[:, None])
        keep = torch.is_grad_enabled()
        h = self.hidden((angles.sin() if keep else angles.sin_()).flatten(1, 2))
        out: Tensor = self.layer_out(functional.silu(h, inplace=not keep))
        return self.offset + out.reshape(*angles.shape[:3], -1)
