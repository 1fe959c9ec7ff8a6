"""Trained denoisers side by side: values, what of them can be compared, and means over seeds."""

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from openedm.comparing.measuring import Quality
from openedm.comparing.runs import TrainedRun
from openedm.comparing.settings import Setting, differing, same_settings
from openedm.metrics import Report
from openedm.metrics.report import share_interval
from openedm.training import ValidationLoss

__all__ = ["Comparison", "Entry", "Number", "compare_runs"]

SEED = "options.seed"
"""The option whose values are averaged over."""


class Number(NamedTuple):
    """A number and where it may lie.

    Attributes:
        value: the number, or the mean over seeds.
        low: the lower end of its 95 % interval, or the mean less a standard deviation; None for neither.
        high: the upper end.
        floor: the value of real data in place of samples; None where there is none.
        spread: whether the ends are a standard deviation from the mean: over seeds, or over random halves of the data.
    """

    value: float
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    spread: bool = False


@dataclass(frozen=True)
class Entry:
    """One column of a comparison: a trained denoiser, with one way of sampling.

    Attributes:
        name: its name in tables.
        run: the denoiser, and how it came about.
        sampling: the options of sampling that are varied, by their dotted names.
        quality: its samples against data; None if they were not measured.
        loss: its validation loss: as the run wrote it, or measured anew, for all entries alike.
    """

    name: str
    run: TrainedRun
    sampling: Mapping[str, str] = field(default_factory=dict)
    quality: Quality | None = None
    loss: ValidationLoss | None = None

    @property
    def settings(self) -> dict[str, Setting]:
        """The options of training and of sampling."""
        return {**self.run.settings, **{name: Setting(value) for name, value in self.sampling.items()}}


@dataclass(frozen=True)
class Comparison:
    """Columns of values, a name each.

    Attributes:
        columns: the names of the columns.
        options: the options that differ, by their dotted names, a text a column; "–" where a column does not have it.
        numbers: the numbers by their names, one a column; None where a column does not have it.
        incomparable: for names of numbers that cannot be compared between the columns, why.
        notes: what is the same for all, and what cannot be compared.
        entries: the entries of each column: several seeds of one run, or a single one.
    """

    columns: tuple[str, ...]
    options: Mapping[str, tuple[str, ...]]
    numbers: Mapping[str, tuple[Number | None, ...]]
    incomparable: Mapping[str, str]
    notes: tuple[str, ...]
    entries: tuple[tuple[Entry, ...], ...]


def compare_runs(entries: Sequence[Entry], *, average_seeds: bool = True, measured: bool = False) -> Comparison:
    """Entries side by side.

    Args:
        entries: what to compare, at least one.
        average_seeds: whether entries that differ in `options.seed` alone become one column of means.
        measured: whether the losses were measured anew, all alike, instead of by the runs themselves.

    Raises:
        ValueError: there is no entry.
    """
    if not entries:
        raise ValueError("entries must be at least one, got none")
    groups = _by_seed(entries) if average_seeds else [[entry] for entry in entries]
    heads = [group[0].settings for group in groups]
    names = differing([entry.settings for entry in entries])
    averaged = any(len(group) > 1 for group in groups)
    several = len({entry.run.checkpoint for entry in entries}) > 1 or len(entries) == 1
    options = {name: tuple(_texts(group, name) for group in groups) for name in names}
    numbers = {
        name: tuple(_mean([found.get(name) for found in map(_numbers, group)]) for group in groups)
        for name in dict.fromkeys(name for entry in entries for name in _numbers(entry))
        if several or not name.startswith(AT_SIGMA)
    }
    reasons = _incomparable(entries, heads, measured=measured)
    notes = [f"{what}: {why}" for what, why in reasons.items()]
    if averaged:
        notes.insert(0, "mean ± standard deviation over the seeds of training; intervals of single runs are left out")
    return Comparison(
        columns=tuple(_column_name(group) for group in groups),
        options=options,
        numbers=numbers,
        incomparable={name: why for what, why in reasons.items() for name in numbers if _CONCERNS[what](name)},
        notes=(*notes, *_same(entries)),
        entries=tuple(tuple(group) for group in groups),
    )


def _by_seed(entries: Sequence[Entry]) -> list[list[Entry]]:
    """The entries, those together whose options differ in the seed alone, in the order of the first of each group."""
    groups: dict[object, list[Entry]] = {}
    for entry in entries:
        texts = {name: setting.text for name, setting in entry.settings.items() if name != SEED}
        key = (tuple(sorted(texts.items())), entry.run.images, entry.run.model)
        groups.setdefault(key, []).append(entry)
    found: list[list[Entry]] = []
    for group in groups.values():  # of one seed twice there is no spread over seeds
        distinct = len({entry.settings.get(SEED) for entry in group}) == len(group)
        found += [group] if distinct else [[entry] for entry in group]
    return found


def _column_name(group: Sequence[Entry]) -> str:
    if len(group) == 1:
        return group[0].name
    name = re.sub(rf",?\b{re.escape(SEED)}=[^, ]+", "", group[0].name).lstrip(",")
    return f"{name} ({len(group)} seeds)".lstrip()


def _texts(group: Sequence[Entry], name: str) -> str:
    found = [entry.settings.get(name) for entry in group]
    return ", ".join(dict.fromkeys("–" if setting is None else setting.text for setting in found))


def _mean(found: Sequence[Number | None]) -> Number | None:
    """The mean over seeds, with their standard deviation; a single number as it is."""
    there = [number for number in found if number is not None]
    if len(there) < len(found) or not there:
        return None
    if len(there) == 1:
        return there[0]
    values = [number.value for number in there]
    mean, std = statistics.fmean(values), statistics.stdev(values)
    floors = [number.floor for number in there if number.floor is not None]
    return Number(mean, mean - std, mean + std, statistics.fmean(floors) if floors else None, True)


def _numbers(entry: Entry) -> dict[str, Number]:
    """All numbers of an entry, by their names in the table."""
    run, found = entry.run, {"parameters": Number(entry.run.parameters)}
    if run.images is not None:
        found["images of training"] = Number(run.images)
    if run.seconds is not None:
        found["seconds of training"] = Number(run.seconds)
    if entry.loss is not None:
        found[LOSS] = Number(entry.loss.loss)
        for sigma, loss in entry.loss.curve:
            found[f"{AT_SIGMA}{sigma:.3g}"] = Number(loss)
    if entry.quality is not None:
        found |= metrics_of(entry.quality.report)
        if entry.quality.nfe is not None:
            found["evaluations a sample"] = Number(entry.quality.nfe)
        if entry.quality.images_per_second is not None:
            found["samples a second"] = Number(entry.quality.images_per_second)
    return found


METRICS: frozenset[str] = frozenset(
    {"kernel distance", "precision", "recall", "density", "coverage", "Inception score", "accuracy"}
)
LOSS = "validation loss"
AT_SIGMA = "loss at σ = "


def metrics_of(report: Report) -> dict[str, Number]:
    """The metrics of a report, with their 95 % intervals, and the values of real data."""
    n = report.matched_samples
    low, high = report.frechet_interval or (None, None)
    found = {
        FRECHET: Number(report.frechet, low, high),
        f"{FRECHET}, {n} to {n}": Number(report.frechet_matched, *_draws(report), report.floor, True),
    }
    for m in report.measures:
        found[m.name] = Number(m.value, *report.interval(m), m.floor)
    if report.accuracy is not None:
        found["accuracy"] = Number(
            report.accuracy, *share_interval(report.accuracy, report.num_samples), report.accuracy_real
        )
    return found


def _draws(report: Report) -> tuple[float | None, float | None]:
    """The distance at the number of the floor, less and more its standard deviation over the draws."""
    if report.num_splits == 1:
        return None, None
    value, std = report.frechet_matched, report.frechet_matched_std
    return value - std, value + std


FRECHET = "Fréchet distance"

_CONCERNS: dict[str, Callable[[str], bool]] = {
    "validation losses cannot be compared": lambda name: name == LOSS or name.startswith(AT_SIGMA),
    "metrics cannot be compared": lambda name: name in METRICS or name.startswith(FRECHET),
    "validation losses have other noise": lambda name: False,
}


def _incomparable(
    entries: Sequence[Entry], heads: Sequence[Mapping[str, Setting]], *, measured: bool
) -> dict[str, str]:
    """What cannot be compared, and why."""
    found: dict[str, str] = {}
    losses = [entry for entry in entries if entry.loss is not None]
    if len(losses) > 1:
        found |= _losses(losses, measured=measured)
    reports = [entry.quality.report for entry in entries if entry.quality is not None]
    if len({report.fingerprint for report in reports}) > 1:
        found["metrics cannot be compared"] = "they are in the features of other networks, or of other data"
    elif len({(r.num_samples, r.num_reference, r.measured_samples) for r in reports}) > 1:
        found["metrics cannot be compared"] = (
            "the numbers of samples or of real images differ, and with them the floors"
        )
    return found


def losses_comparable(entries: Sequence[Entry]) -> bool:
    """Whether the validation losses that the runs wrote can be compared."""
    return not any("cannot" in what for what in _losses(entries, measured=False))


def _losses(entries: Sequence[Entry], *, measured: bool) -> dict[str, str]:
    runs = [entry.run for entry in entries]
    settings = [run.settings for run in runs]
    key, way = "validation losses cannot be compared", "; --losses measured measures all alike"
    if any(abs(run.model.sigma_data / runs[0].model.sigma_data - 1) > 1e-6 for run in runs):
        return {key: "σ_data differ, and with them weights and noise levels"}
    if measured:
        return {}
    if not same_settings(settings, "data", "validation"):
        return {key: "they are of other data"}
    if not same_settings(settings, "objective"):
        return {key: f"the objectives have other noise levels or weights{way}"}
    if not same_settings(settings, "options.validate_samples", "options.validate_levels"):
        return {key: f"they are of other samples or levels{way}"}
    if not same_settings(settings, SEED):
        return {"validation losses have other noise": f"it depends on {SEED}{way}"}
    return {}


def _same(entries: Sequence[Entry]) -> list[str]:
    """What is the same for all entries, as notes."""
    notes = []
    reports = [entry.quality.report for entry in entries if entry.quality is not None]
    if reports:
        report = reports[0]
        notes.append(
            f"metrics: {report.num_samples} samples against {report.num_reference} real images; in brackets 95 % "
            "intervals; after “real”, other real images in place of samples"
        )
        notes += list(report.notes) if len({r.notes for r in reports}) == 1 else []
    samplers = {entry.quality.sampler for entry in entries if entry.quality is not None}
    if len(samplers) == 1 and (sampler := samplers.pop()):
        notes.append(f"sampler: {sampler}")
    missing = [entry.name for entry in entries if entry.loss is None]
    if missing and len(missing) < len(entries):
        notes.append(f"no validation losses: {', '.join(missing)}")
    seen = [entry.name for entry in entries if entry.loss is not None and not entry.loss.held_out]
    if seen:
        notes.append(f"losses on training data, as there are no validation data: {', '.join(dict.fromkeys(seen))}")
    return notes
