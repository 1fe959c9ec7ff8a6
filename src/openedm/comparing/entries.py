"""The columns of a comparison, read and measured: runs times ways of sampling."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from openedm.comparing.comparison import Entry
from openedm.comparing.measuring import measure_loss, measure_quality, recorded_quality, shared_scoring
from openedm.comparing.runs import TrainedRun
from openedm.data import Source
from openedm.generation import CheckpointSampler, SamplingOptions, ScoringOptions, pictures_of
from openedm.generation.images import Log
from openedm.generation.kinds import method_for
from openedm.ground import checks
from openedm.ground.choices import to_config
from openedm.ground.progress import Progress, ShowProgress, showing
from openedm.training import ValidationLoss

__all__ = ["Losses", "Way", "measure_entries"]

Losses = Literal["log", "measured"]


@dataclass(frozen=True)
class Way:
    """One way of sampling.

    Attributes:
        options: all options of sampling.
        varied: those that differ between the ways that are compared, by their dotted names.
    """

    options: SamplingOptions = SamplingOptions()
    varied: Mapping[str, str] | None = None

    @property
    def name(self) -> str:
        """The options that are varied, and their values."""
        return ",".join(f"{name}={value}" for name, value in (self.varied or {}).items())


def measure_entries(
    runs: Sequence[TrainedRun],
    ways: Sequence[Way] = (Way(),),
    num: int | None = None,
    *,
    data: Source | None = None,
    held_out: Source | None = None,
    scoring: ScoringOptions = ScoringOptions(),
    losses: Losses = "log",
    keep: Path | None = None,
    progress: ShowProgress = None,
    log: Log = lambda line: None,
) -> list[Entry]:
    """Every run with every way of sampling.

    Args:
        runs: what was trained.
        ways: the ways of sampling.
        num: the number of samples that are drawn of each run in each way and scored; None for none. Then reports that
            `openedm evaluate` has written into the run are shown.
        data: the real data; None for the training data of each run.
        held_out: labelled data for the classifier's accuracy on real images.
        scoring: how samples are compared with data.
        losses: log, the validation losses that runs have written; measured, all of them anew, see `measure_loss`, on
            the validation data of the first run.
        keep: a folder where results are kept, and read if they are there.
        progress: None shows a bar in a terminal or notebook, True always, False never; a function is called with the
            name of the work and what is done.
        log: called with a line about what is done.

    Raises:
        ValueError: several ways without samples, a way that is none for a run, a run whose data are not known, or data
            that do not fit.
    """
    if len(ways) > 1 and num is None:
        raise ValueError("num must be given: ways of sampling are compared by the samples that they draw")
    checks.at_least("num", 2 if num is None else num, 2)
    sources = [_data_of(run, data) for run in runs] if num is not None else []
    if num is not None:
        for run in runs:
            for way in ways:
                _check(run, way)
    entries: list[Entry] = []
    with ExitStack() as stack:
        report = stack.enter_context(showing(progress))
        found = _measured(runs, report) if losses == "measured" else [run.loss for run in runs]
        shared: list[tuple[Source, ScoringOptions]] = []
        for i, (run, loss) in enumerate(zip(runs, found, strict=True)):
            for way in ways:
                entry = Entry(_name(run, way, alone=len(runs) == 1), run, dict(way.varied or {}), loss=loss)
                if num is None:
                    entries.append(replace(entry, quality=recorded_quality(run)))
                    continue
                options = next((options for source, options in shared if source == sources[i]), None)
                if options is None:
                    options = stack.enter_context(shared_scoring(scoring, sources[i]))
                    shared.append((sources[i], options))
                log(f"{entry.name}: {num} samples")
                quality = measure_quality(
                    run,
                    num,
                    sources[i],
                    held_out,
                    way.options,
                    options,
                    keep=keep,
                    identity=to_config(scoring),
                    progress=report,
                )
                entries.append(replace(entry, quality=quality))
    return entries


def _check(run: TrainedRun, way: Way) -> None:
    """Check that a way of sampling is one for a run, before samples of the others are drawn."""
    if run.model.condition_shape is None:
        CheckpointSampler(run.checkpoint, way.options)
    else:
        method_for(way.options.method, run.model, way.options.nfe, way.options.levels)


def _name(run: TrainedRun, way: Way, *, alone: bool) -> str:
    if not way.name:
        return run.name
    return way.name if alone else f"{run.name} {way.name}"


def _data_of(run: TrainedRun, data: Source | None) -> Source:
    if data is None and run.data is None:
        raise ValueError(f"data must be given: {run.path} does not tell which data it was trained on, for num")
    found = run.data if data is None else data
    assert found is not None
    return pictures_of(found)


def _measured(runs: Sequence[TrainedRun], progress: Progress) -> list[ValidationLoss]:
    source = runs[0].validation
    if source is None:
        raise ValueError(f"losses must be 'log': {runs[0].path} does not tell its data, on which they are measured")
    return measure_loss(runs, source.load(), progress=progress)
