"""How good are generated images: distances to real ones beside what real ones have among each other.

A Fréchet distance between finite sets is biased upward, by an amount that grows as they shrink, so a number alone says
little. `evaluate` therefore reports the floor, real against real at the same number, next to generated against real.
"""

import dataclasses
import statistics
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from openedm import checks
from openedm.data.dataset import Dataset
from openedm.metrics.classifier import Classifier
from openedm.metrics.frechet import frechet_distance, gaussian


@dataclass(frozen=True)
class Report:
    """What `evaluate` found. Distances are squared Fréchet distances in the classifier's features.

    Attributes:
        num_samples: generated images.
        num_reference: real images.
        frechet: all generated against all real.
        matched_samples: n, the number on either side of the next two.
        num_splits: how many random draws the next two are averaged over.
        frechet_matched: n generated against n real.
        frechet_matched_std: its standard deviation over the draws.
        floor: n real against those same n real, disjoint: what samples as good as the data would get.
        floor_std: its standard deviation over the draws.
        accuracy: share of generated images that the classifier puts in the class they were made for.
        accuracy_real: share of real images, held out, that the classifier puts in their class.
        notes: what to bear in mind when reading these numbers.
    """

    num_samples: int
    num_reference: int
    frechet: float
    matched_samples: int
    num_splits: int
    frechet_matched: float
    frechet_matched_std: float
    floor: float
    floor_std: float
    accuracy: float | None
    accuracy_real: float | None
    notes: tuple[str, ...]

    def rows(self) -> list[tuple[str, str]]:
        """Pairs of a description and a formatted number, for a table."""
        n = self.matched_samples
        rows = [
            (f"Fréchet distance, {self.num_samples} generated to {self.num_reference} real", f"{self.frechet:.2f}"),
            (
                f"Fréchet distance, {n} generated to {n} real",
                f"{self.frechet_matched:.2f} ± {self.frechet_matched_std:.2f}",
            ),
            (f"floor: {n} real to {n} other real", f"{self.floor:.2f} ± {self.floor_std:.2f}"),
        ]
        if self.accuracy is not None:
            rows.append(("accuracy of the classifier on generated labels", f"{self.accuracy:.1%}"))
        if self.accuracy_real is not None:
            rows.append(("accuracy of the classifier on held-out real labels", f"{self.accuracy_real:.1%}"))
        return rows

    def table(self) -> str:
        """The rows as aligned text, followed by the notes."""
        width = max(len(name) for name, _ in self.rows())
        return "\n".join([f"{name:<{width}}  {value}" for name, value in self.rows()] + [f"({n})" for n in self.notes])

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {**dataclasses.asdict(self), "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Report":
        """Undo `to_dict`."""
        return cls(**{**content, "notes": tuple(content["notes"])})


def evaluate(
    samples: Float[Tensor, "samples channels height width"],
    labels: Int[Tensor, " samples"] | None,
    reference: Dataset,
    classifier: Classifier,
    *,
    held_out: Dataset | None = None,
    seed: int = 0,
    num_splits: int = 8,
    batch_size: int = 256,
) -> Report:
    """Compare generated images with real ones in the features of `classifier`.

    In each of `num_splits` draws, 2n real images are taken at random, n = min(samples, reference / 2): one half is the
    yardstick of the draw, and both the other half (the floor) and n generated images are measured against it. The two
    averages are thus of equal bias and can be compared; the spread between draws comes with them. Where `labels` are
    given, the generated classes were chosen, not drawn, and so the halves are drawn with equal shares of each class:
    make samples in the proportions of the reference.

    Args:
        samples: generated images, in [-1, 1].
        labels: the classes they were made for; None leaves the accuracy out.
        reference: real images. Take those that the generator learned from, to see what it has learned.
        classifier: see `train_classifier`.
        held_out: labelled real images that the classifier was not trained on, for its accuracy on real data.
        seed: of the draws; the same seed gives the same report.
        num_splits: number of draws.
        batch_size: images that pass through the classifier at once.

    Raises:
        ValueError: shapes, labels or classes do not fit each other, `samples` has values that are not finite, or there
            are too few images: below 2 samples or 4 real ones.
    """
    checks.at_least("the number of samples", len(samples), 2)
    checks.at_least("the number of images in reference", len(reference), 4)
    checks.at_least("num_splits", num_splits, 1)
    checks.at_least("batch_size", batch_size, 1)
    _check_fit(samples, labels, reference, classifier, held_out)

    made, predicted = _features(samples, classifier, batch_size)
    real, _, classes = _real_features(reference, classifier, batch_size)
    strata = classes if labels is not None else None
    n = min(len(made), len(real) // 2)
    generator = torch.Generator().manual_seed(seed)
    matched, floor = [], []
    for _ in range(num_splits):
        one, other = _halves(len(real), n, strata, generator)
        some = torch.randperm(len(made), generator=generator)[:n]
        yardstick = gaussian(real[one])
        floor.append(frechet_distance(gaussian(real[other]), yardstick))
        matched.append(frechet_distance(gaussian(made[some]), yardstick))
    return Report(
        num_samples=len(made),
        num_reference=len(real),
        frechet=frechet_distance(gaussian(made), gaussian(real)),
        matched_samples=n,
        num_splits=num_splits,
        frechet_matched=statistics.fmean(matched),
        frechet_matched_std=statistics.pstdev(matched),
        floor=statistics.fmean(floor),
        floor_std=statistics.pstdev(floor),
        accuracy=None if labels is None else _share(predicted == labels.cpu()),
        accuracy_real=None if held_out is None else _accuracy(held_out, classifier, batch_size),
        notes=_notes(len(made), len(real), n, classifier.dim),
    )


def _check_fit(
    samples: Tensor, labels: Tensor | None, reference: Dataset, classifier: Classifier, held_out: Dataset | None
) -> None:
    shapes = {"samples": tuple(samples.shape[1:]), "reference": reference.event_shape}
    if held_out is not None:
        shapes["held_out"] = held_out.event_shape
    for name, shape in shapes.items():
        if shape != classifier.event_shape:
            raise ValueError(f"{name} must have the classifier's image shape {classifier.event_shape}, got {shape}")
    broken = int((~samples.isfinite()).flatten(1).any(1).sum())
    if broken:
        raise ValueError(f"samples must be finite, but {broken} of {len(samples)} are not")
    if labels is not None and len(labels) != len(samples):
        raise ValueError(f"labels must be one per sample, {len(samples)}, got {len(labels)}")
    if labels is not None and not 0 <= int(labels.min()) <= int(labels.max()) < classifier.num_classes:
        raise ValueError(f"labels must be between 0 and {classifier.num_classes - 1}, the classes of the classifier")
    if held_out is not None and held_out.num_classes != classifier.num_classes:
        raise ValueError(
            f"held_out must have the classifier's {classifier.num_classes} classes, not {held_out.num_classes}"
        )


def _halves(real: int, n: int, strata: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two disjoint random sets of n out of `real` indices, with equal shares (±1) of each of the `strata`."""
    order = torch.randperm(real, generator=generator)
    if strata is not None:
        order = order[strata[order].argsort(stable=True)]
    chosen = order[torch.arange(2 * n) * real // (2 * n)]
    return chosen[0::2], chosen[1::2]


@torch.no_grad()
def _features(x: Tensor, classifier: Classifier, batch_size: int) -> tuple[Tensor, Tensor]:
    """Features and predicted classes, on the CPU."""
    device = next(classifier.parameters()).device
    parts = [classifier.features(x[i : i + batch_size].to(device).float()) for i in range(0, len(x), batch_size)]
    features = torch.cat(parts)
    return features.cpu(), classifier.head(features).argmax(1).cpu()


def _real_features(dataset: Dataset, classifier: Classifier, batch_size: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Features, predicted classes and labels of a whole dataset."""
    parts: list[tuple[Tensor, Tensor]] = []
    classes: list[Tensor] = []
    for start in range(0, len(dataset), batch_size):
        x, labels = dataset.fetch(range(start, min(start + batch_size, len(dataset))))
        parts.append(_features(x, classifier, batch_size))
        classes += [] if labels is None else [labels]
    features, predicted = (torch.cat(part) for part in zip(*parts, strict=True))
    return features, predicted, torch.cat(classes) if classes else None


def _accuracy(dataset: Dataset, classifier: Classifier, batch_size: int) -> float:
    _, predicted, labels = _real_features(dataset, classifier, batch_size)
    return _share(predicted == cast(Tensor, labels))


def _share(hits: Tensor) -> float:
    return float(hits.double().mean())


def _notes(samples: int, real: int, n: int, dim: int) -> tuple[str, ...]:
    notes = []
    if n < samples:
        notes.append(
            f"{real} real images cannot give two disjoint sets of {samples}: the floor is at {n} on either side, "
            f"and so is the distance above it"
        )
    if n <= dim:
        notes.append(f"{n} images do not determine a covariance of {dim} features: distances are mostly bias")
    return tuple(notes)
