"""Generated images against real ones: features, metrics with their floor and their error, report.

A Fréchet distance between finite sets is biased upward, the more the smaller they are, and precision, recall, density
and coverage depend on the numbers of images, too. Every number is therefore reported with its floor: real images
against other real images, at the same number.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from openedm.data.dataset import Dataset
from openedm.data.wrapping import as_dataset
from openedm.ground import checks
from openedm.ground.progress import ShowProgress, reported, showing
from openedm.ground.tensors import as_tensor
from openedm.metrics.classifier import Classifier
from openedm.metrics.extractors import ClassifierFeatures, FeatureNetwork
from openedm.metrics.features import Features, ImageBatch, extract, image_batches, warn_of_units
from openedm.metrics.frechet import frechet_distance, frechet_error, gaussian
from openedm.metrics.inception_score import inception_score, inception_score_error
from openedm.metrics.kernel import kernel_distance
from openedm.metrics.neighbours import mean_error, neighbours
from openedm.metrics.own import OwnMetric
from openedm.metrics.report import Measure, Report

__all__ = ["METRICS", "Metric", "applicable_metrics", "compare", "evaluate"]

Metric = Literal["kernel", "neighbours", "inception"]
METRICS: tuple[Metric, ...] = ("kernel", "neighbours", "inception")
"""The kernel distance; precision, recall, density and coverage; the Inception score."""

MIN_IMAGES = {"kernel": 3, "neighbours": 6, "inception": 2}

Estimates = dict[str, tuple[float, Callable[[], float]]]
"""By the name of the metric its value, and a function that computes its standard error."""


def evaluate(
    samples: Float[Tensor, "samples *event"],
    labels: Int[Tensor, " samples"] | None,
    reference: Dataset,
    extractor: Classifier | FeatureNetwork,
    *,
    held_out: Dataset | None = None,
    seed: int = 0,
    num_splits: int = 8,
    batch_size: int = 256,
    metrics: Sequence[Metric] | None = None,
    progress: ShowProgress = None,
) -> Report:
    """Compare generated images with real ones in the features of `extractor`; see `compare` for what is measured.

    Args:
        samples: generated images, in [-1, 1]; or other data, for `ValueFeatures`. A tensor or an array.
        labels: the classes that they were generated for; None leaves the accuracy out.
        reference: real images, usually those that the generator was trained on: a dataset, or what
            `openedm.data.as_dataset` takes.
        extractor: see `train_classifier` and `Extractor.load`.
        held_out: labelled real images that the classifier was not trained on, for its accuracy on real data.
        seed: of the draws; the same seed gives the same report.
        num_splits: number of draws.
        batch_size: images that pass through the classifier at once.
        metrics: besides the Fréchet distance; all that apply by default.
        progress: None shows a bar in a terminal or notebook, True always, False never; a function is called with the
            name of a set of images and the batches that are done.

    Raises:
        ValueError: shapes, labels or classes do not fit each other, `samples` has values that are not finite, or there
            are too few images: below 2 samples or 4 real ones.

    Warns:
        UserWarning: the samples are in other units than the data, for `ValueFeatures`.
    """
    samples, reference = as_tensor("samples", samples), as_dataset(reference, "reference")
    labels = None if labels is None else as_tensor("labels", labels)
    checks.at_least("the number of samples", len(samples), 2)
    checks.at_least("the number of images in reference", len(reference), 4)
    checks.at_least("num_splits", num_splits, 1)
    checks.at_least("batch_size", batch_size, 1)
    _check_fit(samples, labels, reference, extractor, held_out)
    network = ClassifierFeatures(extractor) if isinstance(extractor, Classifier) else extractor
    applicable_metrics(metrics, min(len(samples), len(reference) // 2), network.num_classes > 0)
    with showing(progress) as show:

        def features(name: str, batches: Iterable[ImageBatch], count: int) -> Features:
            return extract(network, reported(batches, name, math.ceil(count / batch_size), show))

        chunks = ((samples[i : i + batch_size], None) for i in range(0, len(samples), batch_size))
        generated = features("samples", chunks, len(samples))
        real = features("reference", image_batches(reference, batch_size), len(reference))
        others = None
        if held_out is not None:
            others = features("held out", image_batches(held_out, batch_size), len(held_out))
    warn_of_units(network, generated)
    generated = dataclasses.replace(generated, labels=labels)
    report = compare(generated, real, held_out=others, seed=seed, num_splits=num_splits, metrics=metrics)
    return dataclasses.replace(report, extractor=network.description)


def compare(
    made: Features,
    real: Features,
    *,
    held_out: Features | None = None,
    seed: int = 0,
    num_splits: int = 8,
    metrics: Sequence[Metric] | None = None,
    num_pairwise: int = 10_000,
    num_bootstrap: int = 50,
    own: OwnMetric | None = None,
    device: str | torch.device = "cpu",
) -> Report:
    """Compare generated images with real ones, both as features of one network.

    In each of `num_splits` draws, 2n real images are taken at random, n = min(samples, reference / 2), and both the
    first half (the floor) and n generated images are compared with the second half. The two averages thus have equal
    bias and can be compared; their standard deviations over the draws are reported, too. Where labels of `made` are
    given, the generated classes were chosen, not drawn, and so the halves, and the n generated images where there are
    more, are drawn with equal shares of each class: generate samples in the proportions of the reference.

    Args:
        made: generated images.
        real: real ones.
        held_out: labelled real images that the network was not trained on, for its accuracy on real data.
        seed: of the draws; the same seed gives the same report.
        num_splits: number of draws.
        metrics: besides the Fréchet distance; all that apply by default.
        num_pairwise: the largest number of images on either side for metrics of all pairs, whose cost is its square.
        num_bootstrap: replicates of the Fréchet distance's bootstrap; 0 leaves its error out.
        own: a further metric of one's own, at as many samples as those of all pairs.
        device: for the computation; must have float64.

    Raises:
        ValueError: the features are of different networks, there are fewer than 2 samples or 4 real images, or one of
            `metrics` does not apply.
    """
    checks.at_least("the number of samples", len(made), 2)
    checks.at_least("the number of images in reference", len(real), 4)
    checks.at_least("num_splits", num_splits, 1)
    checks.at_least("num_pairwise", num_pairwise, max(MIN_IMAGES.values()))
    if num_bootstrap:
        checks.at_least("num_bootstrap", num_bootstrap, 2)
    if made.fingerprint != real.fingerprint:
        raise ValueError("made and real must be features of one network, got features of two")
    n = min(len(made), len(real) // 2)
    m = min(n, num_pairwise)
    chosen = applicable_metrics(metrics, m, real.probabilities is not None)
    x, y = (dataclasses.replace(features, values=features.values.to(device)) for features in (made, real))
    generator = torch.Generator().manual_seed(seed)
    draws = [_draw(x, y, n, m, chosen, own, generator, seed) for _ in range(num_splits)]
    distances, floors = ([getattr(draw, name) for draw in draws] for name in ("frechet", "floor"))
    error = frechet_error(x.values, y.values, num=num_bootstrap, seed=seed) if num_bootstrap else None
    left_out = [name for name in METRICS if metrics is None and name not in chosen]
    return Report(
        num_samples=len(made),
        num_reference=len(real),
        frechet=frechet_distance(gaussian(x.values), gaussian(y.values)),
        matched_samples=n,
        num_splits=num_splits,
        frechet_matched=statistics.fmean(distances),
        frechet_matched_std=statistics.pstdev(distances),
        floor=statistics.fmean(floors),
        floor_std=statistics.pstdev(floors),
        accuracy=made.accuracy,
        accuracy_real=None if held_out is None else held_out.accuracy,
        accuracy_real_samples=0 if held_out is None else len(held_out),
        notes=_notes(made, real, n, m, left_out),
        frechet_error=error,
        measures=tuple(_average(name, draws) for name in draws[0].measures),
        measured_samples=m,
        fingerprint=real.fingerprint,
    )


@dataclass(frozen=True)
class _Draw:
    """n generated and n real images, each compared with n other real ones."""

    frechet: float
    floor: float
    measures: Estimates
    floor_measures: Estimates


def _draw(
    made: Features,
    real: Features,
    n: int,
    m: int,
    metrics: Sequence[Metric],
    own: OwnMetric | None,
    generator: torch.Generator,
    seed: int,
) -> _Draw:
    x, y = made.values, real.values
    second, first = _halves(len(real), n, real.labels if made.labels is not None else None, generator)
    some = _drawn(len(made), n, made.labels if real.labels is not None else None, generator)
    reference = gaussian(y[second])
    floor = frechet_distance(gaussian(y[first]), reference)
    distance = frechet_distance(gaussian(x[some]), reference)
    # All are in the order of the classes where there are some: m of n have to be taken evenly.
    even = torch.arange(m) * n // m
    other = y[second[even]]
    return _Draw(
        distance,
        floor,
        _estimate(made, some[even], other, metrics, own, seed),
        _estimate(real, first[even], other, metrics, own, seed),
    )


def _estimate(
    features: Features,
    index: Int64[Tensor, " m"],
    y: Float[Tensor, "m dim"],
    metrics: Sequence[Metric],
    own: OwnMetric | None,
    seed: int,
) -> Estimates:
    """The metrics of the rows `index` of `features` against y."""
    found: Estimates = {}
    x = features.values[index]
    if "kernel" in metrics:
        kernel = kernel_distance(x, y)
        found["kernel distance"] = kernel.value, lambda: kernel.standard_error
    if "neighbours" in metrics:
        near = neighbours(x, y)
        found["precision"] = near.precision, lambda: mean_error(near.precise)
        found["recall"] = near.recall, lambda: mean_error(near.recalled)
        found["density"] = near.density, lambda: mean_error(near.dense)
        found["coverage"] = near.coverage, lambda: mean_error(near.covered)
    if "inception" in metrics:
        p = cast(Tensor, features.probabilities)[index]
        score = inception_score(p, num_splits=1)
        found["Inception score"] = score.value, lambda: inception_score_error(p, seed=seed)
    if own is not None:
        found[own.name] = own.checked(x, y), lambda: own.error(x, y, seed)
    return found


def _average(name: str, draws: Sequence[_Draw]) -> Measure:
    """One metric over the draws; the error is that of the first draw."""
    values, floors = [draw.measures[name][0] for draw in draws], [draw.floor_measures[name][0] for draw in draws]
    return Measure(
        name=name,
        value=statistics.fmean(values),
        std=statistics.pstdev(values),
        error=draws[0].measures[name][1](),
        floor=statistics.fmean(floors),
        floor_std=statistics.pstdev(floors),
    )


def applicable_metrics(metrics: Sequence[Metric] | None, count: int, classes: bool) -> tuple[Metric, ...]:
    """`metrics`, checked; all that apply where None is given.

    Args:
        metrics: besides the Fréchet distance, or None.
        count: images on either side.
        classes: whether the extractor gives class probabilities.

    Raises:
        ValueError: a metric does not exist, needs more images, or needs probabilities.
    """
    if metrics is None:
        return tuple(m for m in METRICS if count >= MIN_IMAGES[m] and (m != "inception" or classes))
    for metric in metrics:
        checks.one_of("metrics", metric, METRICS)
        checks.at_least(f"the number of images on either side, for {metric!r},", count, MIN_IMAGES[metric])
        if metric == "inception" and not classes:
            raise ValueError("metrics must not have 'inception': the extractor gives no class probabilities")
    return tuple(metrics)


def _check_fit(
    samples: Float[Tensor, "samples *event"],
    labels: Int[Tensor, " samples"] | None,
    reference: Dataset,
    extractor: Classifier | FeatureNetwork,
    held_out: Dataset | None,
) -> None:
    classifier = extractor if isinstance(extractor, Classifier) else getattr(extractor, "classifier", None)
    shape = classifier.event_shape if isinstance(classifier, Classifier) else reference.event_shape
    owner = "the classifier's" if isinstance(classifier, Classifier) else "the reference's"
    shapes = {"samples": tuple(samples.shape[1:]), "reference": reference.event_shape}
    if held_out is not None:
        shapes["held_out"] = held_out.event_shape
    for name, own in shapes.items():
        if own != shape:
            raise ValueError(f"{name} must have {owner} image shape {shape}, got {own}")
    broken = int((~samples.isfinite()).flatten(1).any(1).sum())
    if broken:
        raise ValueError(f"samples must be finite, but {broken} of {len(samples)} are not")
    if labels is not None and len(labels) != len(samples):
        raise ValueError(f"labels must be one per sample, {len(samples)}, got {len(labels)}")
    if not isinstance(classifier, Classifier):
        return
    if labels is not None and not 0 <= int(labels.min()) <= int(labels.max()) < classifier.num_classes:
        raise ValueError(f"labels must be between 0 and {classifier.num_classes - 1}, the classes of the classifier")
    if held_out is not None and held_out.num_classes != classifier.num_classes:
        raise ValueError(
            f"held_out must have the classifier's {classifier.num_classes} classes, not {held_out.num_classes}"
        )


def _halves(
    real: int, n: int, strata: Int[Tensor, " real"] | None, generator: torch.Generator
) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"]]:
    """Two disjoint random sets of n out of `real` indices, with equal shares (±1) of each of the `strata`."""
    chosen = _drawn(real, 2 * n, strata, generator)
    return chosen[0::2], chosen[1::2]


def _drawn(count: int, n: int, strata: Int[Tensor, " count"] | None, generator: torch.Generator) -> Int64[Tensor, " n"]:
    """n random ones of `count` indices, with equal shares (±1) of each of the `strata`, and in their order."""
    order = torch.randperm(count, generator=generator)
    if strata is not None:
        order = order[strata.cpu()[order].argsort(stable=True)]
    return order[torch.arange(n) * count // n]


def _notes(made: Features, real: Features, n: int, m: int, left_out: Sequence[Metric]) -> tuple[str, ...]:
    notes, dim = [], real.values.shape[1]
    if n < len(made):
        notes.append(
            f"{len(real)} real images cannot give two disjoint sets of {len(made)}: the floor is at {n} on either "
            "side, and so is the distance above it"
        )
    if n <= dim:
        notes.append(f"{n} images do not determine a covariance of {dim} features: distances are mostly bias")
    too_few = [name for name in left_out if real.probabilities is not None or name != "inception"]
    if too_few:
        notes.append(f"{m} images on either side are too few for: {', '.join(too_few)}")
    return tuple(notes)
