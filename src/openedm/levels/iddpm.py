"""Levels of Improved DDPM: entries of the table of noise levels with which it was trained."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float64
from torch import Tensor

from openedm.ground import checks
from openedm.levels.rules import Levels

__all__ = ["IDDPM", "iddpm_table"]


@lru_cache(maxsize=8)
def iddpm_table(m: int = 1000, c_1: float = 0.001, c_2: float = 0.008) -> tuple[float, ...]:
    """The noise levels of Improved DDPM, u_0 > u_1 > … > u_M = 0 (Karras et al. 2022, Table 1 and Appendix B.1).

    u_{j−1} = √((u_j² + 1)/max(ᾱ_{j−1}/ᾱ_j, C₁) − 1), ᾱ_j = sin²(½π j/(M (C₂+1))), in float64 throughout (the reference
    computes ᾱ in float32, with errors of up to 4.6e-4; to reproduce its numbers, pass its table).

    Args:
        m: M ≥ 1, the number of non-zero levels.
        c_1: C₁, the bound on the ratio, between 0 and 1.
        c_2: C₂ > 0, the offset.

    Raises:
        TypeError: m is no integer.
        ValueError: a value is out of its range.
    """
    checks.integer("m", m, 1)
    checks.positive("c_1", c_1)
    if c_1 >= 1:
        raise ValueError(f"c_1 must be < 1, got {c_1!r}")
    checks.positive("c_2", c_2)
    alpha_bar = [math.sin(0.5 * math.pi * j / (m * (c_2 + 1))) ** 2 for j in range(m + 1)]
    u = [0.0] * (m + 1)
    for j in range(m, 0, -1):
        u[j - 1] = math.sqrt((u[j] ** 2 + 1) / max(alpha_bar[j - 1] / alpha_bar[j], c_1) - 1)
    return tuple(u)


@dataclass(frozen=True)
class IDDPM(Levels):
    """Levels picked from a table of trained noise levels, evenly in its index (Improved DDPM).

    Of the K entries inside [σ_min, σ_max], level i is entry round((K−1)/(N−1) · i).

    Args:
        num_steps: 1 ≤ N ≤ K.
        sigma_min: entries below are not used.
        sigma_max: entries above are not used.
        table: the levels u_0 > … > u_M ≥ 0; None means `iddpm_table()`, with M = 1000.

    Raises:
        ValueError: a value is out of its range, the table does not decrease, or num_steps exceeds the number of
            entries.
    """

    num_steps: int = 18
    sigma_min: float | None = 0.002
    sigma_max: float | None = 81.0
    table: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        self._check_range()
        if self.table is not None:
            checks.decreasing("table", self.table)
        if self.num_steps > len(self._entries()):
            raise ValueError(
                f"num_steps must be at most {len(self._entries())}, the number of table entries in "
                f"[{self.sigma_min:g}, {self.sigma_max:g}], got {self.num_steps}"
            )

    def _entries(self) -> list[float]:
        low, high = self.ends
        table = iddpm_table() if self.table is None else self.table
        return [u for u in table if low <= u <= high]

    def sigmas(self) -> Float64[Tensor, "num_steps"]:
        """u[round((K−1)/(N−1) · i)] among the K entries kept; halves round to even."""
        kept = torch.tensor(self._entries(), dtype=torch.float64)
        step = (len(kept) - 1) / max(self.num_steps - 1, 1)
        return kept[(step * torch.arange(self.num_steps, dtype=torch.float64)).round().long()]
