"""`openedm sweep`: train all combinations of some choices, and compare them."""

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from openedm.cli import main
from openedm.cli.comparing import SAMPLING, check_single_process, ways_of, write
from openedm.cli.gathering import Forwarded, Repeated, typed
from openedm.cli.parsing import Flat
from openedm.cli.sweeping import (
    SweptRun,
    array_script,
    check_record,
    check_ways,
    is_finished,
    plan_runs,
    sampling_arguments,
    sampling_only,
    write_record,
)
from openedm.cli.terminal import Bars
from openedm.comparing import (
    Comparison,
    Losses,
    Way,
    combinations,
    compare_runs,
    figure_of,
    formatted,
    measure_entries,
    parse_variations,
    read_run,
)
from openedm.data import Source
from openedm.generation import ScoringOptions
from openedm.ground import checks
from openedm.ground.locks import hold_folder
from openedm.ground.storage import check_folders, new_path, replacing
from openedm.plots import save_figure


def sweep(
    out: str,
    vary: Repeated = [],  # noqa: B006  # it is not changed
    num: int | None = None,
    dry_run: bool = False,
    slurm: str | None = None,
    real_data: Source | None = None,
    held_out: Source | None = None,
    losses: Losses = "measured",
    average_seeds: bool = True,
    training: Forwarded = [],  # noqa: B006
    scoring: Flat[ScoringOptions] = ScoringOptions(),
) -> int:
    """Train all combinations of some choices, one after the other, and compare them.

    `openedm sweep runs/sweep --config base.yaml --vary objective=EDM,VP,VE --num 1000` trains three runs below
    runs/sweep, each named by its choices, and writes comparison.md, comparison.json and comparison.png there. All other
    options are those of `openedm train`, and `--config` is a file of them; what is varied replaces what they say.

    All combinations are checked before the first is trained. A run that is finished is not trained again, and one that
    was interrupted continues: after Ctrl-C, the same command goes on; more values of an option add runs. Options of
    sampling (nfe, sampler, guidance, …) are not trained: every run is sampled with each of them.

    Args:
        out: the folder of the runs.
        vary: an option and the values that it takes in turn, such as objective=EDM,VP or options.seed=0,1,2; may be
            repeated, for all combinations. config=a.yaml,b.yaml varies files of options, which replace those of
            --config: for combinations that are no cross product.
        num: the number of samples to draw and to score, as in openedm compare; without it only losses are compared.
        dry_run: check all combinations, and print the commands instead of running them.
        slurm: check all combinations, and write a SLURM script of an array of jobs to this file instead of training.
        real_data: the data to score against; by default the training data of each run.
        held_out: labelled data for the classifier's accuracy on real images, as in openedm evaluate.
        losses: measured, the validation losses of all runs alike; log, those that the runs wrote. See openedm compare.
        average_seeds: whether runs that differ in options.seed alone become one column: mean ± standard deviation.
        training: the options of openedm train, and of sampling.
        scoring: options of the scores, as in openedm evaluate.
    """
    folder, script = Path(out), new_path("slurm", slurm)
    runs, ways = _plan(folder, vary, num, training)
    if dry_run:
        print("\n".join(f"openedm {shlex.join(run.command)}" for run in runs))
        return 0
    if script is not None:
        _write_script(script, folder, runs)
        return 0
    hold_folder(folder, "out")
    write_record(folder, runs)
    status, failed = _train_all(runs)
    done = [read_run(run.folder) for run in runs if run not in failed] if status < 128 else []
    if done:
        alike = len({(run.model.sigma_data, run.model.event_shape, run.model.num_classes) for run in done}) == 1
        measured = losses == "measured" and alike and done[0].validation is not None
        with Bars() as bars:
            entries = measure_entries(
                done,
                ways,
                num,
                data=real_data,
                held_out=held_out,
                scoring=scoring,
                losses="measured" if measured else "log",
                keep=folder / "reports",
                progress=bars,
                log=bars.log,
            )
        _report(folder, compare_runs(entries, average_seeds=average_seeds, measured=measured))
    for run in failed:
        print(f"openedm sweep: {run.folder} failed, see above", file=sys.stderr)
    return status


def _plan(folder: Path, vary: Sequence[str], num: int | None, given: Sequence[str]) -> tuple[list[SweptRun], list[Way]]:
    """The runs and the ways of sampling of a sweep, all of them checked."""
    variations = parse_variations(vary)
    if not variations:
        raise ValueError("vary must be given, such as --vary objective=EDM,VP,VE; openedm train trains a single run")
    checks.at_least("num", 2 if num is None else num, 2)
    sampled = [variation for variation in variations if variation.name.partition(".")[0] in SAMPLING]
    if sampled and num is None:
        raise ValueError(f"num must be given with --vary {sampled[0].name}: ways of sampling are compared by samples")
    check_folders("out", folder)
    check_single_process()
    ways = ways_of("openedm sweep", sampling_only, sampling_arguments(given), combinations(sampled))
    runs = plan_runs(folder, given, variations)
    check_ways(runs, ways)
    check_record(folder, runs)
    return runs, ways


def _write_script(script: Path, folder: Path, runs: Sequence[SweptRun]) -> None:
    script.parent.mkdir(parents=True, exist_ok=True)
    with replacing(script) as path:
        path.write_text(array_script(runs, _again()), encoding="utf-8")
    write_record(folder, runs)
    print(f"{len(runs)} jobs: sbatch {script}\nwhen they have ended:\n  {_again()}")


def _train_all(runs: Sequence[SweptRun]) -> tuple[int, list[SweptRun]]:
    """Train all runs; the exit status, and the runs that failed. A signal ends it."""
    again = _again()  # commands inside have arguments of their own
    failed: list[SweptRun] = []
    for i, run in enumerate(runs):
        status = _train(run, f"{i + 1} of {len(runs)}")
        if status >= 128:
            print(f"the same command goes on: {again}")
            return status, failed
        failed += [run] if status else []
    return int(bool(failed)), failed


def _again() -> str:
    """The command, without --slurm."""
    words: list[str] = []
    for before, word in zip(("", *typed.get()), typed.get(), strict=False):
        words += [] if word.startswith("--slurm") or before == "--slurm" else [word]
    return f"openedm sweep {shlex.join(words)}"


def _train(run: SweptRun, number: str) -> int:
    """Train a run, unless it is finished; the exit status."""
    if is_finished(run):
        print(f"[{number}] {run.folder} is finished")
        return 0
    print(f"[{number}] $ openedm {shlex.join(run.command)}", flush=True)
    return main.main(run.command)


def _report(folder: Path, found: Comparison) -> None:
    """Print a comparison, and write it into the folder."""
    write(found, folder / "comparison.md", "markdown")
    write(found, folder / "comparison.json", "json")
    print(formatted(found, "text", shutil.get_terminal_size((120, 24)).columns))
    print(f"table: {folder / 'comparison.md'}")
    if (figure := figure_of(found)) is not None:
        save_figure(figure, folder / "comparison.png")
        print(f"figure: {folder / 'comparison.png'}")
