"""What an evaluation found: numbers, what real images score in their place, and what to bear in mind."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from openedm.metrics.bootstrap import Z


@dataclass(frozen=True)
class Measure:
    """One metric at n images on either side.

    Attributes:
        name: of the metric.
        value: n generated against n real, averaged over random draws.
        std: its standard deviation over the draws.
        error: its standard error: the jackknife's for the kernel distance, the bootstrap's otherwise.
        floor: n other real images in place of the generated ones: what samples as good as the data would get.
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
    """What `evaluate` found. Distances are squared Fréchet distances in the extractor's features.

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
        frechet_error: the bootstrap's standard deviation of `frechet`.
        measures: further metrics, at n images or fewer.
        measured_samples: how many images those were taken at.
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
    extractor: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def frechet_interval(self) -> tuple[float, float] | None:
        """95 % for `frechet`: the estimate ± 1.96 bootstrap standard deviations, not below 0. Its bias is in it."""
        if self.frechet_error is None:
            return None
        return max(self.frechet - Z * self.frechet_error, 0.0), self.frechet + Z * self.frechet_error

    def measure(self, name: str) -> Measure:
        """The metric of this name.

        Raises:
            ValueError: it was not measured.
        """
        for found in self.measures:
            if found.name == name:
                return found
        raise ValueError(f"name must be one of {', '.join(repr(m.name) for m in self.measures)}, got {name!r}")

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
                f"{self.frechet_matched:.2f} ± {self.frechet_matched_std:.2f}",
            ),
            (f"floor: {n} real to {n} other real", f"{self.floor:.2f} ± {self.floor_std:.2f}"),
        ]
        for m in self.measures:
            low, high = m.value - Z * m.error, m.value + Z * m.error
            scale, unit = (1000, ", × 1000") if m.name == "kernel distance" else (1, "")
            value, floor = (f"{scale * number:.3g}" for number in (m.value, m.floor))
            rows.append(
                (
                    f"{m.name}{unit}, {self.measured_samples} images",
                    f"{value} [{scale * low:.3g}, {scale * high:.3g}], real {floor} ± {scale * m.floor_std:.2g}",
                )
            )
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
        content = dataclasses.asdict(self)
        return {**content, "notes": list(self.notes), "measures": list(content["measures"])}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Report":
        """Undo `to_dict`; a report of an older version has fewer metrics, one of the command line says how it drew."""
        content = {name: value for name, value in content.items() if name != "drawn"}
        measures = tuple(Measure(**m) for m in content.get("measures", ()))
        return cls(**{**content, "notes": tuple(content["notes"]), "measures": measures})
