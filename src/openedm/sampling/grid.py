"""What a solver is asked to follow: the levels of a run, the curve σ(t), s(σ) through them, and EDM's churn."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.schedules import EDM, NoScaling, Scaling, Schedule

Final = Literal["denoise", "euler"]


@dataclass(frozen=True)
class Churn(Choice):
    """EDM's stochastic sampling (Karras et al. 2022, Algorithm 2): noise is added back before each step.

    γ = min(S_churn/N, √2 − 1) for σ in [S_min, S_max], else 0; σ̂ = σ + γ σ. Without churn no noise is drawn.

    Args:
        s_churn: amount of stochasticity over the whole run, ≥ 0; 0 is the deterministic sampler.
        s_min: lowest noise level at which noise is added, ≥ 0.
        s_max: highest noise level at which noise is added.
        s_noise: standard deviation of the added noise, > 0; a little above 1 counteracts the loss of detail.

    Raises:
        ValueError: a value is out of its range, or an option is set that `s_churn = 0` makes idle.
    """

    s_churn: float = 0.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        checks.at_least("s_churn", self.s_churn, 0)
        checks.at_least("s_min", self.s_min, 0)
        checks.at_least("s_max", self.s_max, self.s_min)
        checks.positive("s_noise", self.s_noise)
        if self.s_churn == 0 and (self.s_min, self.s_max, self.s_noise) != (0.0, math.inf, 1.0):
            raise ValueError(
                f"s_min={self.s_min}, s_max={self.s_max}, s_noise={self.s_noise} have no effect while s_churn is 0: "
                "set s_churn > 0 or leave them at their defaults"
            )

    def gamma(self, sigma: float, num_steps: int) -> float:
        """γ at noise level `sigma` in a run of `num_steps` steps."""
        inside = self.s_min <= sigma <= self.s_max
        return min(self.s_churn / num_steps, math.sqrt(2) - 1) if inside else 0.0


def _unrounded(sigma: Tensor) -> Tensor:
    return sigma


@dataclass(frozen=True)
class Grid:
    """The levels of one run and the curve through them.

    Attributes:
        sigmas: σ_0 … σ_{N−1}, already rounded to what the denoiser knows; downward, or upward for an inversion.
        schedule: σ(t).
        scaling: s(σ).
        churn: how much noise each level gets.
        final: the step from the lowest level to 0.
        round_sigma: the denoiser's rounding, applied to levels that a solver adds.
    """

    sigmas: tuple[float, ...]
    schedule: Schedule = EDM()
    scaling: Scaling = NoScaling()
    churn: Churn = Churn()
    final: Final = "denoise"
    round_sigma: Callable[[Tensor], Tensor] = field(default=_unrounded, compare=False)

    def rounded(self, sigma: float) -> float:
        """The nearest level that the denoiser knows."""
        return float(self.round_sigma(torch.tensor(sigma, dtype=torch.float64)))

    def scale(self, sigma: float) -> float:
        """s(σ)."""
        return float(self.scaling.scale(sigma))
