"""The figure of a comparison."""

import statistics
from collections.abc import Sequence

from matplotlib.figure import Figure

from openedm.comparing.comparison import FRECHET, LOSS, Comparison, Entry, Number, losses_comparable
from openedm.plots.comparison import MetricValues, comparison
from openedm.training import ValidationLoss

__all__ = ["figure_of"]

METRICS = ("kernel distance", "precision", "recall", "coverage", "accuracy")
"""The metrics that are drawn beside the Fréchet distance, the first of them that are there."""


def figure_of(found: Comparison) -> Figure | None:
    """Validation loss against images and by noise level, and metrics with their intervals.

    What cannot be compared is left out; None if nothing is left.
    """
    first = {id(group[0].run): name for name, group in reversed(list(zip(found.columns, found.entries, strict=True)))}
    groups = dict(zip(found.columns, found.entries, strict=True))
    runs = {name: groups[name] for name in found.columns if first[id(groups[name][0].run)] == name}
    curves, by_sigma = {}, {}
    if len(runs) > 1 and losses_comparable([entry for group in runs.values() for entry in group]):
        curves = {name: _curve(group) for name, group in runs.items()}
    if len(runs) > 1 and LOSS not in found.incomparable:
        losses = {name: _mean_loss(group) for name, group in runs.items()}
        by_sigma = {name: loss for name, loss in losses.items() if loss is not None}
    metrics = {
        name if name != "kernel distance" else f"{name} × 1000": _values(found, name)
        for name in (*_matched(found), *METRICS)
        if name in found.numbers and name not in found.incomparable
    }
    if not curves and not by_sigma and not metrics:
        return None
    return comparison(found.columns, curves, by_sigma, metrics)


def _curve(group: Sequence[Entry]) -> list[tuple[int, float]]:
    """The validation loss while training, of several seeds the mean where all have one."""
    rows = [{images: loss.loss for images, loss in entry.run.validations} for entry in group]
    shared = [images for images in rows[0] if all(images in row for row in rows)]
    return [(images, statistics.fmean(row[images] for row in rows)) for images in shared]


def _mean_loss(group: Sequence[Entry]) -> ValidationLoss | None:
    losses = [entry.loss for entry in group if entry.loss is not None]
    levels = [(loss.sigmas, loss.tail_sigmas) for loss in losses]
    if not losses or any(each != levels[0] for each in levels):
        return None

    def mean(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
        return tuple(map(statistics.fmean, zip(*rows, strict=True)))

    return ValidationLoss(
        losses[0].sigmas,
        mean([loss.errors for loss in losses]),
        mean([loss.losses for loss in losses]),
        statistics.fmean(loss.loss for loss in losses),
        losses[0].tail_sigmas,
        mean([loss.tail_losses for loss in losses]),
        all(loss.held_out for loss in losses),
    )


def _values(found: Comparison, name: str) -> MetricValues:
    scale = 1000.0 if name == "kernel distance" else 1.0
    numbers = {c: n for c, n in zip(found.columns, found.numbers[name], strict=True) if n is not None}
    floors = {number.floor for number in numbers.values()}
    floor = floors.pop() if len(floors) == 1 else None
    return MetricValues(
        {column: _interval(number, scale) for column, number in numbers.items()},
        None if floor is None else scale * floor,
    )


def _interval(number: Number, scale: float) -> tuple[float, float, float]:
    low = number.value if number.low is None else number.low
    high = number.value if number.high is None else number.high
    return scale * number.value, scale * low, scale * high


def _matched(found: Comparison) -> list[str]:
    """The Fréchet distance at the number of images of its floor."""
    return [name for name in found.numbers if name.startswith(f"{FRECHET},")]
