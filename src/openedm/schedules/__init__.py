"""Noise schedules σ(t) and scalings s: a noisy sample at time t is x(t) = s(t) (y + σ(t) n) with n ~ N(0, I).

Rows "Schedule" and "Scaling" of Table 1 of Karras et al. 2022, and more. A schedule is a strictly increasing function
σ(t) with its inverse and derivative. It is the one kind of variable in this library: samplers step and interpolate in
its time t, and levels are even steps of it (`openedm.levels`). A scaling is written as a function of σ,
s(t) = s(σ(t)), so that any scaling goes with any schedule; ṡ = s'(σ) σ̇ by the chain rule.

| schedule | σ(t) | σ⁻¹(σ) | own scaling |
|---|---|---|---|
| LogSigma | e^t | ln σ | none |
| PowerSigma(ρ) | t^ρ | σ^{1/ρ} | none |
| EDM = PowerSigma(1) | t | σ | none |
| VE = PowerSigma(½) | √t | σ² | none |
| VP | √(e^{½ β_d t² + β_min t} − 1) | (√(β_min² + 2 β_d ln(1+σ²)) − β_min)/β_d | VP |
| Angle(σ_d, ρ) | σ_d tan t^ρ | atan(σ/σ_d)^{1/ρ} | none |
| Cosine: Angle(1, 1) in quarter turns | tan(πt/2) | (2/π) atan σ | VP |
| FlowTime(σ_d) | σ_d t/(1−t) | σ/(σ+σ_d) | none |
| RectifiedFlow = FlowTime(1) | t/(1−t) | σ/(1+σ) | flow |

All functions compute in float64 (VP near t = 0 loses 2 % in float32), in float32 on devices without it, and are
differentiable.
"""

from openedm.ground.tensors import Values, float64, noise_levels
from openedm.schedules.clocks import (
    EDM,
    VE,
    VP,
    Angle,
    Cosine,
    FlowTime,
    LogSigma,
    PowerLaw,
    PowerSigma,
    RectifiedFlow,
    Schedule,
)
from openedm.schedules.scalings import FlowScaling, NoScaling, Scaling, VPScaling

__all__ = [
    "EDM",
    "VE",
    "VP",
    "Angle",
    "Cosine",
    "FlowScaling",
    "FlowTime",
    "LogSigma",
    "NoScaling",
    "PowerLaw",
    "PowerSigma",
    "RectifiedFlow",
    "Scaling",
    "Schedule",
    "VPScaling",
    "Values",
    "float64",
    "noise_levels",
]
