"""Weight averaging: the exponential moving average that samples are drawn from.

β = ½^{batch / max(h, tiny)}, h = min(half-life, ramp · images seen)   (Karras et al. 2022, Appendix F.2).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openedm import checks
from openedm.choices import Choice


@dataclass(frozen=True)
class HalfLife(Choice):
    """Half-life EMA with a ramp, so that the average of a young run is not dominated by its first weights.

    Args:
        half_life: number of images over which a weight's share falls by half, ≥ 0; 0 keeps no average.
        ramp: the half-life is at most this fraction of the images seen, > 0; infinite for no ramp.

    Raises:
        ValueError: a value is out of its range.
    """

    half_life: float = 500_000.0
    ramp: float = 0.05

    def __post_init__(self) -> None:
        checks.at_least("half_life", self.half_life, 0)
        checks.at_least("ramp", self.ramp, 1e-12)

    def decay(self, batch_size: int, images_seen: int) -> float:
        """β of the update after a step that brought the images seen to `images_seen`."""
        half_life = min(self.half_life, self.ramp * images_seen)
        return float(0.5 ** (batch_size / max(half_life, 1e-8)))


def update_average(average: nn.Module, current: nn.Module, decay: float) -> None:
    """average ← β average + (1 − β) current for parameters, in place; buffers are copied.

    The two modules must have the same structure.
    """
    Averaged(average, current).update(decay)


class Averaged:
    """`update_average` for two modules again and again: their tensors are looked up once.

    Args:
        average: what is updated.
        current: what it follows; of the same structure.
    """

    def __init__(self, average: nn.Module, current: nn.Module) -> None:
        self._mine: list[Tensor] = list(average.parameters())
        self._theirs: list[Tensor] = list(current.parameters())
        self._buffers = list(zip(average.buffers(), current.buffers(), strict=True))

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """average ← β average + (1 − β) current."""
        torch._foreach_lerp_(self._mine, self._theirs, 1 - decay)
        for mine, theirs in self._buffers:
            mine.copy_(theirs)
