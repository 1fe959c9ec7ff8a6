"""Weight averaging: the exponential moving average for sampling, and averages whose width is chosen after training.

β = ½^{batch / max(h, tiny)}, h = min(half-life, ramp · images seen)        (Karras et al. 2022, Appendix F.2)
β_t = (1 − 1/t)^{γ+1}, σ_rel = √((γ + 1)/((γ + 2)² (γ + 3)))   (Karras et al. 2024, arXiv 2312.02696)
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from openedm.ground import checks
from openedm.ground.choices import Choice

__all__ = ["HalfLife", "MovingAverage", "PowerFunction", "exponent"]


@dataclass(frozen=True)
class HalfLife(Choice):
    """Half-life EMA with a ramp, so that the average of a short run is not dominated by its first weights.

    Args:
        half_life: number of images over which the contribution of old weights halves, ≥ 0; 0 means no average.
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


@dataclass(frozen=True)
class PowerFunction(Choice):
    """Averages with a power of the step as profile; from stored snapshots of them any width can be rebuilt.

    Snapshots contain the parameters only. Half precision causes a relative error of 2e-4 in a rebuilt average.

    Args:
        sigma_rel: widths of the averages that are tracked, each above 0 and at most 0.288: the standard deviation of
            the profile, relative to the length of training.
        every: number of images between two snapshots. With 24 or more in a run all widths from 0.05 to 0.25 can be
            rebuilt.
        precision: the precision of the snapshots, "fp16" or "fp32".

    Raises:
        ValueError: there are no widths, two are equal, or a value is out of its range.
    """

    sigma_rel: tuple[float, ...] = (0.05, 0.10)
    every: int = 25_000
    precision: Literal["fp16", "fp32"] = "fp16"

    def __post_init__(self) -> None:
        if not self.sigma_rel or len(set(self.sigma_rel)) < len(self.sigma_rel):
            raise ValueError(f"sigma_rel must hold one or more widths, all different, got {self.sigma_rel}")
        for width in self.sigma_rel:
            exponent(width)
        checks.at_least("every", self.every, 1)
        checks.one_of("precision", self.precision, ("fp16", "fp32"))

    def decay(self, sigma_rel: float, step: int) -> float:
        """β of the update after step number `step`, from 1."""
        return float((1 - 1 / step) ** (exponent(sigma_rel) + 1))


@lru_cache
def exponent(sigma_rel: float) -> float:
    """γ ≥ 0 of the profile τ^γ whose relative width is `sigma_rel`: γ³ + 7 γ² + (16 − s) γ + 12 = s, s = σ_rel⁻².

    Raises:
        ValueError: `sigma_rel` is not above 0 and at most 0.288; a uniform average has √(1/12) = 0.2887.
    """
    if not 0 < sigma_rel <= 0.288:
        raise ValueError(f"sigma_rel must be > 0 and <= 0.288, got {sigma_rel!r}")
    s = sigma_rel**-2
    return float(np.roots([1, 7, 16 - s, 12 - s]).real.max())


class MovingAverage:
    """An exponential moving average of a module's parameters, in a second module of the same structure.

    Args:
        average: the module with the average; changed in place.
        current: the module that is trained.
    """

    def __init__(self, average: nn.Module, current: nn.Module) -> None:
        self._average, self._current = average, current

    @cached_property
    def _parameters(self) -> tuple[list[Tensor], list[Tensor]]:  # found at the first update, after sharding
        return list(self._average.parameters()), list(self._current.parameters())

    @cached_property
    def _buffers(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self._average.buffers(), self._current.buffers(), strict=True))

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """average ← β average + (1 − β) current for parameters, with β = `decay`; buffers are copied."""
        average, current = self._parameters
        torch._foreach_lerp_(average, current, 1 - decay)
        for averaged, new in self._buffers:
            averaged.copy_(new)
