"""The noise levels {σ_i}, i = 0…N−1, that a sampler visits, from σ_max down to σ_min (σ_N = 0 is implied).

Row "Time steps" of Table 1 of Karras et al. 2022, stated in σ (the paper's t_i are σ⁻¹(σ_i)). Most rules are even
steps in the time t of a schedule, σ_i = σ(t_max + i/(N−1) (t_min − t_max)) with t_min, t_max the times of σ_min, σ_max:

| rule | schedule or σ_i |
|---|---|
| Uniform | any schedule |
| Karras (EDM, eq. 5) | PowerSigma(ρ): (σ_max^{1/ρ} + i/(N−1) (σ_min^{1/ρ} − σ_max^{1/ρ}))^ρ |
| VP | the VP schedule with σ(ε_s) = σ_min, σ(1) = σ_max: σ_VP(1 + i/(N−1) (ε_s − 1)) |
| LogLinear, VE | LogSigma: σ_max (σ_min/σ_max)^{i/(N−1)} |
| IDDPM | u_{j(i)}, the table below |
| Logistic | quantiles of a logistic distribution of ln σ |
| Explicit | given one by one |

N = 1 means the single level σ_max. Levels are planned in float64 on the host.

EDM's numbers are for data of standard deviation σ_data = 0.5. Where a rule has None for one of them, the number is
EDM's times σ_data/0.5, with the σ_data of the denoiser that is sampled (`Levels.for_data`), so that data in other units
have the same samples in those units. A number that is given is taken as it is. VP, VE and IDDPM have the numbers of
their papers.
"""

from openedm.levels.iddpm import IDDPM, iddpm_table
from openedm.levels.logistic import Logistic
from openedm.levels.rules import (
    EDM_SIGMA_DATA,
    VE,
    VP,
    EvenLevels,
    Explicit,
    Karras,
    Levels,
    LogLinear,
    Uniform,
    numbers_for_data,
)

__all__ = [
    "EDM_SIGMA_DATA",
    "IDDPM",
    "VE",
    "VP",
    "EvenLevels",
    "Explicit",
    "Karras",
    "Levels",
    "LogLinear",
    "Logistic",
    "Uniform",
    "iddpm_table",
    "numbers_for_data",
]
