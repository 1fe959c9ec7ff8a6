"""Guidance: a denoiser extrapolated away from a less accurate one.

    D(x; σ) = D₁(x; σ) + (w(σ) − 1) (D₁(x; σ) − D₀(x; σ))

w = 1 is D₁ alone, w = 0 is D₀ alone, w > 1 extrapolates. (Ho & Salimans 2022 write (1 + w′) ε₁ − w′ ε₀, so their w′ is
w − 1 here; Karras et al. 2024 and Kynkäänniemi et al. 2024 write w as here.)

| guidance | D₁ | D₀ |
|---|---|---|
| `ClassifierFree` (Ho & Salimans 2022) | a denoiser with the condition | the same without a condition |
| `Guided` as autoguidance (Karras et al. 2024) | a denoiser | a smaller or less trained one, with the same condition |
| `Guided` as guidance by an unconditional model | a conditional denoiser | an unconditional one |

The weight is a function of σ: `Constant`, `Interval` or `Piecewise`.

Where w = 1, D₀ is not evaluated. The score of D is that of p₁(x; σ)^w p₀(x; σ)^{1−w}, which is not the density of data
with added noise: guided samples do not follow p₁^w p₀^{1−w}.
"""

from openedm.guidance.guided import ClassifierFree, Guided
from openedm.guidance.weights import Constant, GuidanceWeight, Interval, Piecewise

__all__ = ["ClassifierFree", "Constant", "GuidanceWeight", "Guided", "Interval", "Piecewise"]
