"""Parametrisation: what a network predicts, and how a network becomes a denoiser (Karras et al. 2022, Table 1)."""

from openedm.preconditioning.preconditionings import (
    EDM,
    IDDPM,
    VE,
    VP,
    Adapter,
    Coefficients,
    Preconditioning,
    nearest_level,
)
from openedm.preconditioning.predictions import (
    DataPrediction,
    EpsilonPrediction,
    NetworkPrediction,
    Prediction,
    ScheduleVelocity,
    ScorePrediction,
    VelocityPrediction,
    VPrediction,
)

__all__ = [
    "EDM",
    "IDDPM",
    "VE",
    "VP",
    "Adapter",
    "Coefficients",
    "DataPrediction",
    "EpsilonPrediction",
    "NetworkPrediction",
    "Preconditioning",
    "Prediction",
    "ScheduleVelocity",
    "ScorePrediction",
    "VPrediction",
    "VelocityPrediction",
    "nearest_level",
]
