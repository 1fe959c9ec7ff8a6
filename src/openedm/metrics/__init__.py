"""Metrics: how far samples are from the data."""

from openedm.metrics.c2st import c2st
from openedm.metrics.classifier import Classifier, train_classifier
from openedm.metrics.evaluate import Report, evaluate
from openedm.metrics.extractors import (
    ClassifierFeatures,
    EfficientNetLite0,
    Extractor,
    FeatureNetwork,
    ModuleFeatures,
    TrainedClassifier,
)
from openedm.metrics.frechet import Gaussian, GaussianStatistics, frechet_distance, gaussian
from openedm.metrics.inception import Inception, InceptionFeatures
from openedm.metrics.inception_score import InceptionScore, inception_score
from openedm.metrics.kernel import KernelDistance, kernel_distance
from openedm.metrics.neighbours import Neighbours, neighbours

__all__ = [
    "Classifier",
    "ClassifierFeatures",
    "EfficientNetLite0",
    "Extractor",
    "FeatureNetwork",
    "Gaussian",
    "GaussianStatistics",
    "Inception",
    "InceptionFeatures",
    "InceptionScore",
    "KernelDistance",
    "ModuleFeatures",
    "Neighbours",
    "Report",
    "TrainedClassifier",
    "c2st",
    "evaluate",
    "frechet_distance",
    "gaussian",
    "inception_score",
    "kernel_distance",
    "neighbours",
    "train_classifier",
]
