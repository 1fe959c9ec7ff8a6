"""Metrics: how far samples are from the data."""

from openedm.metrics.c2st import c2st
from openedm.metrics.classifier import Classifier, train_classifier
from openedm.metrics.evaluate import Report, evaluate
from openedm.metrics.frechet import Gaussian, GaussianStatistics, frechet_distance, gaussian

__all__ = [
    "Classifier",
    "Gaussian",
    "GaussianStatistics",
    "Report",
    "c2st",
    "evaluate",
    "frechet_distance",
    "gaussian",
    "train_classifier",
]
