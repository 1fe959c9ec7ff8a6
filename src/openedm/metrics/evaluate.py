"""How good are generated images: distances to real ones beside what real ones have among each other.

A Fréchet distance between finite sets is biased upward, by an amount that grows as they shrink, and precision, recall,
density and coverage depend on the numbers, too: a number alone says little. `evaluate` therefore reports the floor,
real against real at the same number, next to generated against real.
"""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from openedm.data.dataset import Dataset
from openedm.ground import checks
from openedm.metrics.bootstrap import frechet_error, inception_score_error, mean_error
from openedm.metrics.classifier import Classifier
from openedm.metrics.extractors import ClassifierFeatures, FeatureNetwork
from openedm.metrics.features import Features, extract, image_batches
from openedm.metrics.frechet import frechet_distance, gaussian
from openedm.metrics.inception_score import inception_score
from openedm.metrics.kernel import kernel_distance
from openedm.metrics.neighbours import neighbours
from openedm.metrics.report import Measure, Report

Metric = Literal["kernel", "neighbours", "inception"]
METRICS: tuple[Metric, ...] = ("kernel", "neighbours", "inception")
"""The kernel distance; precision, recall, density and coverage; the Inception score."""

FEWEST = {"kernel": 3, "neighbours": 6, "inception": 2}

Found = dict[str, tuple[float, Callable[[], float]]]
"""A metric's value, and how to find its standard error."""


def evaluate(
    samples: Float[Tensor, "samples channels height width"],
    labels: Int[Tensor, " samples"] | None,
    reference: Dataset,
    extractor: Classifier | FeatureNetwork,
    *,
    held_out: Dataset | None = None,
    seed: int = 0,
    num_splits: int = 8,
    batch_size: int = 256,
    metrics: Sequence[Metric] | None = None,
) -> Report:
    """Compare generated images with real ones in the features of `extractor`; see `compare` for what is measured.

    Args:
        samples: generated images, in [-1, 1].
        labels: the classes they were made for; None leaves the accuracy out.
        reference: real images. Take those that the generator learned from, to see what it has learned.
        extractor: see `train_classifier` and `Extractor.load`.
        held_out: labelled real images that the classifier was not trained on, for its accuracy on real data.
        seed: of the draws; the same seed gives the same report.
        num_splits: number of draws.
        batch_size: images that pass through the classifier at once.
        metrics: besides the Fréchet distance; all that apply by default.

    Raises:
        ValueError: shapes, labels or classes do not fit each other, `samples` has values that are not finite, or there
            are too few images: below 2 samples or 4 real ones.
    """
    checks.at_least("the number of samples", len(samples), 2)
    checks.at_least("the number of images in reference", len(reference), 4)
    checks.at_least("num_splits", num_splits, 1)
    checks.at_least("batch_size", batch_size, 1)
    _check_fit(samples, labels, reference, extractor, held_out)
    network = ClassifierFeatures(extractor) if isinstance(extractor, Classifier) else extractor
    applicable_metrics(metrics, min(len(samples), len(reference) // 2), network.num_classes > 0)
    made = [(samples[i : i + batch_size], None) for i in range(0, len(samples), batch_size)]
    seen = extract(network, made)
    report = compare(
        Features(seen.values, seen.probabilities, labels, seen.judges, seen.fingerprint),
        extract(network, image_batches(reference, batch_size)),
        held_out=None if held_out is None else extract(network, image_batches(held_out, batch_size)),
        seed=seed,
        num_splits=num_splits,
        metrics=metrics,
    )
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
    device: str | torch.device = "cpu",
) -> Report:
    """Compare generated images with real ones, both as features of one network.

    In each of `num_splits` draws, 2n real images are taken at random, n = min(samples, reference / 2): one half is the
    yardstick of the draw, and both the other half (the floor) and n generated images are measured against it. The two
    averages are thus of equal bias and can be compared; the spread between draws comes with them. Where labels of
    `made` are given, the generated classes were chosen, not drawn, and so the halves are drawn with equal shares of
    each class: make samples in the proportions of the reference.

    Args:
        made: generated images.
        real: real ones.
        held_out: labelled real images that the network was not trained on, for its accuracy on real data.
        seed: of the draws; the same seed gives the same report.
        num_splits: number of draws.
        metrics: besides the Fréchet distance; all that apply by default.
        num_pairwise: the most images on either side of metrics that compare all pairs: their cost is its square.
        num_bootstrap: replicates of the Fréchet distance's bootstrap; 0 leaves its error out.
        device: where to compute; needs float64.

    Raises:
        ValueError: the features are of different networks, there are fewer than 2 samples or 4 real images, or a metric
            is asked for that does not apply.
    """
    checks.at_least("the number of samples", len(made), 2)
    checks.at_least("the number of images in reference", len(real), 4)
    checks.at_least("num_splits", num_splits, 1)
    checks.at_least("num_pairwise", num_pairwise, max(FEWEST.values()))
    if num_bootstrap:
        checks.at_least("num_bootstrap", num_bootstrap, 2)
    if made.fingerprint != real.fingerprint:
        raise ValueError("made and real must be features of one network, got those of two")
    n = min(len(made), len(real) // 2)
    m = min(n, num_pairwise)
    chosen = applicable_metrics(metrics, m, real.probabilities is not None)
    strata = real.labels if made.labels is not None else None
    x, y = made.values.to(device), real.values.to(device)
    generator = torch.Generator().manual_seed(seed)
    matched, floor = [], []
    found: list[tuple[Found, Found]] = []
    for _ in range(num_splits):
        one, other = _halves(len(real), n, strata, generator)
        some = torch.randperm(len(made), generator=generator)[:n]
        yardstick = gaussian(y[one])
        floor.append(frechet_distance(gaussian(y[other]), yardstick))
        matched.append(frechet_distance(gaussian(x[some]), yardstick))
        # The halves are in the order of the classes where there are some: m of n have to be taken evenly.
        even = torch.arange(m) * n // m
        ruler = y[one[even]]
        found.append(
            (
                _measure(x[some[:m]], _rows(made.probabilities, some[:m]), ruler, chosen, seed),
                _measure(y[other[even]], _rows(real.probabilities, other[even]), ruler, chosen, seed),
            )
        )
    predicted = made.predicted
    return Report(
        num_samples=len(made),
        num_reference=len(real),
        frechet=frechet_distance(gaussian(x), gaussian(y)),
        matched_samples=n,
        num_splits=num_splits,
        frechet_matched=statistics.fmean(matched),
        frechet_matched_std=statistics.pstdev(matched),
        floor=statistics.fmean(floor),
        floor_std=statistics.pstdev(floor),
        accuracy=None if made.labels is None or predicted is None else _share(predicted == made.labels.cpu()),
        accuracy_real=_accuracy(held_out),
        notes=_notes(len(made), len(real), n, m, real.values.shape[1], metrics, chosen, real.probabilities is not None),
        frechet_error=frechet_error(x, y, num=num_bootstrap, seed=seed) if num_bootstrap else None,
        measures=tuple(_together(name, found) for name in found[0][0]),
        measured_samples=m,
        fingerprint=real.fingerprint,
    )


def _measure(x: Tensor, probabilities: Tensor | None, y: Tensor, metrics: Sequence[Metric], seed: int) -> Found:
    """The metrics of x against y; `probabilities` are those of x."""
    found: Found = {}
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
        p = cast(Tensor, probabilities)
        score = inception_score(p, num_splits=1)
        found["Inception score"] = score.value, lambda: inception_score_error(p, seed=seed)
    return found


def _together(name: str, found: list[tuple[Found, Found]]) -> Measure:
    """One metric over the draws; the error is that of the first draw."""
    values, floors = ([side[name][0] for side in sides] for sides in zip(*found, strict=True))
    return Measure(
        name=name,
        value=statistics.fmean(values),
        std=statistics.pstdev(values),
        error=found[0][0][name][1](),
        floor=statistics.fmean(floors),
        floor_std=statistics.pstdev(floors),
    )


def applicable_metrics(metrics: Sequence[Metric] | None, count: int, classes: bool) -> tuple[Metric, ...]:
    """The metrics that are asked for, checked; all that apply where nothing is.

    Args:
        metrics: what is asked for.
        count: images on either side.
        classes: whether the extractor gives class probabilities.

    Raises:
        ValueError: a metric does not exist, needs more images, or needs probabilities.
    """
    if metrics is None:
        return tuple(m for m in METRICS if count >= FEWEST[m] and (m != "inception" or classes))
    for metric in metrics:
        checks.one_of("metrics", metric, METRICS)
        checks.at_least(f"the number of images on either side, for {metric!r},", count, FEWEST[metric])
        if metric == "inception" and not classes:
            raise ValueError("metrics must not have 'inception': the extractor gives no class probabilities")
    return tuple(metrics)


def _check_fit(
    samples: Tensor,
    labels: Tensor | None,
    reference: Dataset,
    extractor: Classifier | FeatureNetwork,
    held_out: Dataset | None,
) -> None:
    judge = extractor if isinstance(extractor, Classifier) else getattr(extractor, "classifier", None)
    shape = judge.event_shape if isinstance(judge, Classifier) else reference.event_shape
    owner = "the classifier's" if isinstance(judge, Classifier) else "the reference's"
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
    if not isinstance(judge, Classifier):
        return
    if labels is not None and not 0 <= int(labels.min()) <= int(labels.max()) < judge.num_classes:
        raise ValueError(f"labels must be between 0 and {judge.num_classes - 1}, the classes of the classifier")
    if held_out is not None and held_out.num_classes != judge.num_classes:
        raise ValueError(f"held_out must have the classifier's {judge.num_classes} classes, not {held_out.num_classes}")


def _halves(real: int, n: int, strata: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two disjoint random sets of n out of `real` indices, with equal shares (±1) of each of the `strata`."""
    order = torch.randperm(real, generator=generator)
    if strata is not None:
        order = order[strata[order].argsort(stable=True)]
    chosen = order[torch.arange(2 * n) * real // (2 * n)]
    return chosen[0::2], chosen[1::2]


def _rows(tensor: Tensor | None, index: Tensor) -> Tensor | None:
    return None if tensor is None else tensor[index]


def _accuracy(held_out: Features | None) -> float | None:
    if held_out is None or held_out.predicted is None or held_out.labels is None:
        return None
    return _share(held_out.predicted == held_out.labels)


def _share(hits: Tensor) -> float:
    return float(hits.double().mean())


def _notes(
    samples: int,
    real: int,
    n: int,
    m: int,
    dim: int,
    metrics: Sequence[Metric] | None,
    chosen: Sequence[Metric],
    classes: bool,
) -> tuple[str, ...]:
    notes = []
    if n < samples:
        notes.append(
            f"{real} real images cannot give two disjoint sets of {samples}: the floor is at {n} on either side, "
            f"and so is the distance above it"
        )
    if n <= dim:
        notes.append(f"{n} images do not determine a covariance of {dim} features: distances are mostly bias")
    left_out = [name for name in METRICS if metrics is None and name not in chosen and (classes or name != "inception")]
    if left_out:
        notes.append(f"{m} images on either side are too few for: {', '.join(left_out)}")
    return tuple(notes)
