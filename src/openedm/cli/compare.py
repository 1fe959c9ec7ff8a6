"""`openedm compare`: runs, checkpoints and ways of sampling side by side."""

import shutil
from pathlib import Path

from openedm.cli.comparing import (
    SAMPLING,
    check_figure,
    check_single_process,
    draw,
    form_of,
    ways_of,
    with_variations,
    write,
)
from openedm.cli.gathering import Positional, Repeated, typed
from openedm.cli.parsing import Flat
from openedm.cli.terminal import Bars
from openedm.comparing import (
    Format,
    Losses,
    Way,
    combinations,
    compare_runs,
    formatted,
    measure_entries,
    parse_variations,
    read_run,
    short_names,
)
from openedm.data import Source
from openedm.generation import SamplingOptions, ScoringOptions


def compare(
    paths: Positional,
    vary: Repeated = [],  # noqa: B006  # it is not changed
    num: int | None = None,
    data: Source | None = None,
    held_out: Source | None = None,
    losses: Losses = "log",
    average_seeds: bool = True,
    format: Format = "text",
    out: str | None = None,
    figure: str | None = None,
    reports: str | None = None,
    sampling: Flat[SamplingOptions] = SamplingOptions(),
    scoring: Flat[ScoringOptions] = ScoringOptions(),
) -> None:
    """Compare runs, checkpoints or ways of sampling: one table, one figure.

    `openedm compare runs/a runs/b` shows the options of training that differ, parameters, images, the time of the
    steps, and the validation loss, in all and by noise level. With `--num 1000` it also draws samples and scores them
    as `openedm evaluate` does: metrics with 95 % intervals, beside what other real images score, evaluations of the
    network, and samples a second. `--vary nfe=8,16,32` compares ways of sampling.

    What cannot be compared (losses at other noise levels, metrics against other data) is marked and explained below the
    table. Nothing is ranked.

    Args:
        paths: run folders, for their newest checkpoints, or checkpoint folders.
        vary: an option of sampling and the values that it takes in turn, such as sampler.solver=Heun,Euler; may be
            repeated, for all combinations.
        num: the number of samples to draw and to score, with seeds 0 … num − 1 and the classes in turn. Without it,
            report.json in a run or checkpoint is shown, if openedm evaluate wrote it about the same weights.
        data: the real data; by default the training data of each run.
        held_out: labelled data for the classifier's accuracy on real images, as in openedm evaluate.
        losses: log, the validation losses that runs wrote while they were trained; measured, all of them now, with the
            weights and at the noise levels of objective EDM, on the validation data of the first run.
        average_seeds: whether runs that differ in options.seed alone become one column: mean ± standard deviation.
        format: of what is printed: text, markdown, csv (a line a run), or json.
        out: also write the table to this .txt, .md, .csv or .json file.
        figure: also draw losses and metrics to this file.
        reports: a folder where scores are kept: those that are there are not measured again.
        sampling: options of sampling, as in openedm sample.
        scoring: options of the scores, as in openedm evaluate.
    """
    form, keep = form_of(out), None if reports is None else Path(reports)
    check_figure(figure)
    check_single_process()
    variations = parse_variations(vary)
    for variation in variations:
        if variation.name.partition(".")[0] not in SAMPLING:
            raise ValueError(
                f"vary {variation.name} must be an option of sampling ({', '.join(sorted(SAMPLING))}): other options "
                "are trained by openedm sweep"
            )
    ways = ways_of("openedm compare", compare, typed.get(), combinations(variations)) if variations else []
    runs = [read_run(path, name) for path, name in zip(paths, short_names(paths), strict=True)]
    with Bars() as bars:
        entries = measure_entries(
            runs,
            ways or [Way(sampling)],
            num,
            data=data,
            held_out=held_out,
            scoring=scoring,
            losses=losses,
            keep=keep,
            progress=bars,
            log=bars.log if format == "text" else lambda line: None,
        )
    found = compare_runs(entries, average_seeds=average_seeds, measured=losses == "measured")
    print(formatted(found, format, shutil.get_terminal_size((120, 24)).columns))
    if out is not None and form is not None:
        write(found, Path(out), form)
    if figure is not None:
        draw(found, figure)


compare.with_variations = with_variations  # type: ignore[attr-defined]
