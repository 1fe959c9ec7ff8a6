"""Denoisers: D(x; σ, condition) estimates the clean y from x = y + σ S n. All rooms use this one interface."""

from openedm.denoiser.checking import check_denoiser, check_evaluation_mode, check_no_per_sample_settings
from openedm.denoiser.function import FunctionDenoiser
from openedm.denoiser.interface import Condition, Denoiser, StandardisedInside, check_condition_type, per_sample
from openedm.denoiser.preconditioned import Preconditioned, configure_execution
from openedm.denoiser.wrapping import CONDITION, RANGE, UNITS, Wrapper, take_attributes

__all__ = [
    "CONDITION",
    "RANGE",
    "UNITS",
    "Condition",
    "Denoiser",
    "FunctionDenoiser",
    "Preconditioned",
    "StandardisedInside",
    "Wrapper",
    "check_condition_type",
    "check_denoiser",
    "check_evaluation_mode",
    "check_no_per_sample_settings",
    "configure_execution",
    "per_sample",
    "take_attributes",
]
