"""Metrics: distances between samples and data, with their errors, in the features of a network."""

from openedm.metrics.c2st import c2st
from openedm.metrics.classifier import Classifier, train_classifier
from openedm.metrics.evaluate import METRICS, Metric, applicable_metrics, compare, evaluate
from openedm.metrics.extractors import (
    ClassifierFeatures,
    EfficientNetLite0,
    Extractor,
    FeatureNetwork,
    ModuleFeatures,
    TrainedClassifier,
)
from openedm.metrics.features import (
    Features,
    content_hash,
    extract,
    image_batches,
    kept_features,
    stream_statistics,
    warn_of_units,
)
from openedm.metrics.frechet import Gaussian, GaussianStatistics, frechet_distance, frechet_error, gaussian
from openedm.metrics.inception import Inception, InceptionFeatures
from openedm.metrics.inception_score import InceptionScore, inception_score
from openedm.metrics.kernel import KernelDistance, kernel_distance
from openedm.metrics.neighbours import Neighbours, neighbours
from openedm.metrics.own import OwnMetric
from openedm.metrics.report import Measure, Report
from openedm.metrics.values import ValueFeatures, Values

__all__ = [
    "METRICS",
    "Classifier",
    "ClassifierFeatures",
    "EfficientNetLite0",
    "Extractor",
    "FeatureNetwork",
    "Features",
    "Gaussian",
    "GaussianStatistics",
    "Inception",
    "InceptionFeatures",
    "InceptionScore",
    "KernelDistance",
    "Measure",
    "Metric",
    "ModuleFeatures",
    "Neighbours",
    "OwnMetric",
    "Report",
    "TrainedClassifier",
    "ValueFeatures",
    "Values",
    "applicable_metrics",
    "c2st",
    "compare",
    "content_hash",
    "evaluate",
    "extract",
    "frechet_distance",
    "frechet_error",
    "gaussian",
    "image_batches",
    "inception_score",
    "kept_features",
    "kernel_distance",
    "neighbours",
    "stream_statistics",
    "train_classifier",
    "warn_of_units",
]
