"""The report of an evaluation: numbers, their floors and errors, and notes on how to read them.

An interval is the estimate ± 1.96 standard errors (Efron 1979), not the quantiles of resampled values, as
scipy.stats.bootstrap has them: a resampled set has repeated rows, so its Fréchet distance is larger than the estimate,
by about as much as the estimate is larger than the truth. Close to the floor, where the distance is mostly bias, the
error is up to twice as large as it should be: an interval is then wide, not narrow. Intervals of shares are Wilson's
(1927), which stay in [0, 1] and have a width at 0 and 1 too: 0 of 100 is [0, 0.037].
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

__all__ = ["Measure", "Report", "share_interval"]

Z = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""

SHARES = ("precision", "recall", "coverage")
"""The metrics that are shares of images."""

RANGES = {
    "density": (0.0, math.inf),
    "Inception score": (1.0, math.inf),
}
"""The values that a metric can have, to which its interval is cut."""


def share_interval(share: float, count: int, error: float = 0.0) -> tuple[float, float]:
    """Wilson's 95 % interval of a share.

    >>> [round(end, 3) for end in share_interval(0.0, 100)]
    [0.0, 0.037]

    Args:
        share: the share found, in [0, 1].
        count: of how many, ≥ 1.
        error: its standard error where it is known to be larger than that of independent draws, as of resampled
            images; the interval is then that of as many independent draws as have this error.
    """
    variance = share * (1 - share)
    effective = min(count, variance / error**2) if error > 0 and variance > 0 else count
    centre = (share + Z**2 / (2 * effective)) / (1 + Z**2 / effective)
    half = Z / (1 + Z**2 / effective) * math.sqrt(variance / effective + Z**2 / (4 * effective**2))
    return 0.0 if share == 0 else max(centre - half, 0.0), 1.0 if share == 1 else min(centre + half, 1.0)


@dataclass(frozen=True)
class Measure:
    """One metric at n images on either side.

    Attributes:
        name: of the metric.
        value: n generated against n real, averaged over random draws.
        std: its standard deviation over the draws.
        error: its standard error: the jackknife's for the kernel distance, the bootstrap's otherwise.
        floor: its value for n other real images in place of the generated ones.
        floor_std: its standard deviation over the draws.
    """

    name: str
    value: float
    std: float
    error: float
    floor: float
    floor_std: float


@dataclass(frozen=True)
class Report:
    """The result of `evaluate`. Distances are squared Fréchet distances in the extractor's features.

    Attributes:
        num_samples: generated images.
        num_reference: real images.
        frechet: all generated against all real.
        matched_samples: n, the number on either side of `frechet_matched` and `floor`.
        num_splits: number of random draws that these are averaged over.
        frechet_matched: n generated against n real.
        frechet_matched_std: its standard deviation over the draws.
        floor: n other real against the same n real: the distance that samples as good as the data have.
        floor_std: its standard deviation over the draws.
        accuracy: share of generated images whose class by the classifier is the one they were generated for.
        accuracy_real: share of held-out real images whose class by the classifier is their label.
        accuracy_real_samples: held-out real images; 0 in older reports.
        notes: warnings on how to read these numbers.
        frechet_error: the bootstrap's standard deviation of `frechet`.
        measures: further metrics, at n images or fewer.
        measured_samples: number of images of `measures` on either side.
        extractor: the network's description.
        fingerprint: the network's hash; distances of different networks cannot be compared.
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
    frechet_error: float | None = None
    measures: tuple[Measure, ...] = ()
    measured_samples: int = 0
    fingerprint: str = ""
    accuracy_real_samples: int = 0
    extractor: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def frechet_interval(self) -> tuple[float, float] | None:
        """95 % for `frechet`, bias included: the estimate ± 1.96 bootstrap standard deviations, not below 0."""
        if self.frechet_error is None:
            return None
        return max(self.frechet - Z * self.frechet_error, 0.0), self.frechet + Z * self.frechet_error

    def _spread(self, std: float, digits: str) -> str:
        """A standard deviation over the draws; nothing for a single one, which has none."""
        return "" if self.num_splits == 1 else f" ± {std:{digits}}"

    def measure(self, name: str) -> Measure:
        """The metric of this name.

        Raises:
            ValueError: the report does not have it.
        """
        for found in self.measures:
            if found.name == name:
                return found
        raise ValueError(f"name must be one of {', '.join(repr(m.name) for m in self.measures)}, got {name!r}")

    def interval(self, measure: Measure) -> tuple[float, float]:
        """95 % for one of `measures`, within the values that the metric can have: Wilson's of shares."""
        if measure.name in SHARES and self.measured_samples:
            return share_interval(measure.value, self.measured_samples, measure.error)
        lowest, highest = RANGES.get(measure.name, (-math.inf, math.inf))
        return max(measure.value - Z * measure.error, lowest), min(measure.value + Z * measure.error, highest)

    def rows(self) -> list[tuple[str, str]]:
        """Pairs of a description and a formatted number, for a table; 95 % intervals are in brackets."""
        n = self.matched_samples
        interval = "" if self.frechet_interval is None else " [{:.2f}, {:.2f}]".format(*self.frechet_interval)
        rows = [
            (
                f"Fréchet distance, {self.num_samples} generated to {self.num_reference} real",
                f"{self.frechet:.2f}{interval}",
            ),
            (
                f"Fréchet distance, {n} generated to {n} real",
                f"{self.frechet_matched:.2f}{self._spread(self.frechet_matched_std, '.2f')}",
            ),
            (f"floor: {n} real to {n} other real", f"{self.floor:.2f}{self._spread(self.floor_std, '.2f')}"),
        ]
        for m in self.measures:
            low, high = self.interval(m)
            scale, unit = (1000, ", × 1000") if m.name == "kernel distance" else (1, "")
            value, floor = (f"{scale * number:.3g}" for number in (m.value, m.floor))
            rows.append(
                (
                    f"{m.name}{unit}, {self.measured_samples} images",
                    f"{value} [{scale * low:.3g}, {scale * high:.3g}], "
                    f"real {floor}{self._spread(scale * m.floor_std, '.2g')}",
                )
            )
        if self.accuracy is not None:
            rows.append(
                ("accuracy of the classifier on generated labels", _with_interval(self.accuracy, self.num_samples))
            )
        if self.accuracy_real is not None:
            shown = _with_interval(self.accuracy_real, self.accuracy_real_samples)
            rows.append(("accuracy of the classifier on held-out real labels", shown))
        return rows

    def table(self) -> str:
        """The rows as aligned text, followed by the notes."""
        width = max(len(name) for name, _ in self.rows())
        return "\n".join([f"{name:<{width}}  {value}" for name, value in self.rows()] + [f"({n})" for n in self.notes])

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        content = dataclasses.asdict(self)
        return {**content, "notes": list(self.notes), "measures": list(content["measures"])}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Report":
        """The inverse of `to_dict`; older reports have fewer metrics, and `drawn` of the command line is left out."""
        content = {name: value for name, value in content.items() if name != "drawn"}
        measures = tuple(Measure(**m) for m in content.get("measures", ()))
        return cls(**{**content, "notes": tuple(content["notes"]), "measures": measures})


def _with_interval(share: float, count: int) -> str:
    """A share in percent, with its 95 % interval if the number of images is known."""
    if not count:
        return f"{share:.1%}"
    low, high = share_interval(share, count)
    return f"{share:.1%} [{low:.1%}, {high:.1%}]"
