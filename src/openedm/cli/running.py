"""A run of training on the command line: its folder, what it prints, and the loop until the end or a signal."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from openedm.cli.budgeting import names_given
from openedm.cli.importing import recorded
from openedm.cli.parsing import dump
from openedm.cli.plain import read_options, to_plain
from openedm.cli.planning import describe_plan
from openedm.cli.terminal import StopSignal, print_line
from openedm.data import Dataset, Source
from openedm.data.autoencoder import Codec
from openedm.ground.digests import seal_text
from openedm.ground.locks import hold_folder
from openedm.ground.storage import check_folders, replacing
from openedm.guidance import GuidanceWeight, Interval
from openedm.objective import Objective
from openedm.plots.runs import RunFigures, grid_evaluations
from openedm.sampling import Consistency, Sampler
from openedm.training import (
    Initial,
    LogLines,
    Model,
    Options,
    Plan,
    RunLog,
    RunTracker,
    Trainer,
    TrainingBar,
    list_checkpoints,
    num_parameters,
)
from openedm.training.checkpoints import list_incomplete
from openedm.training.initial import check_teacher
from openedm.training.records import dotted_values
from openedm.training.resuming import check_takes_effect

__all__ = ["Tracker", "check_run_folder", "run_training"]

RUN_CONTENT = ("config.yaml", "checkpoints", "log.jsonl", "tracking", "averages", "figures")

Tracker = Literal["tensorboard", "csv", "wandb", "mlflow", "comet_ml", "none"]


def run_training(
    run: Path,
    model: Model,
    dataset: Dataset,
    objective: Objective,
    options: Options,
    *,
    values: Mapping[str, Any],
    validation: Source | None,
    sampler: Sampler,
    guidance: GuidanceWeight = Interval(),
    init: Initial | None,
    tracker: Tracker,
    accelerator: Accelerator,
    vae: str | None = None,
    notes: Sequence[str] = (),
    plan_only: bool = False,
) -> int:
    """Train, with log lines, a log, figures and a tracker; the exit status.

    Args:
        run: the run folder, which was checked.
        model: the model, objective and options: as for `Trainer`.
        dataset: the training data.
        objective: as for `Trainer`.
        options: as for `Trainer`.
        values: the options of the command, which are recorded.
        validation: the source of the validation data; None for the training data.
        sampler: the sampler of the sample grids.
        guidance: the weight of their guidance.
        init: what training starts from; None for a run that goes on.
        tracker: the tracker of the curves.
        accelerator: the processes.
        vae: the folder or name of the autoencoder for grids of latents; None for where it was.
        notes: lines about what was chosen.
        plan_only: print what the run would cost, and do not train.
    """
    earlier = bool(list_checkpoints(run))
    sampler = _grid_sampler(sampler, objective, model.sigma_data)
    codec = _codec(model, options, vae, accelerator)
    log, bar = RunLog(run / "log.jsonl", options), TrainingBar(options)
    curves = [] if tracker == "none" else [RunTracker(accelerator)]
    shown = dataset if validation is None else validation.load()
    figures = RunFigures(run / "figures", log, objective.for_data(model.sigma_data), sampler, shown, guidance, codec)
    trainer = Trainer(
        model,
        dataset,
        objective,
        options,
        run=run,
        validation=None if validation is None else shown,
        init=None if earlier else init,
        observers=[bar, LogLines(print_line), log, figures, *curves],
        accelerator=accelerator,
    )
    changed = trainer.resume(changes=names_given.get() or ()) if earlier else ()
    check_teacher(objective, trainer.origin)
    if trainer.finished:
        check_takes_effect(run, _changed(run, to_plain(values), trainer.state.images))
    measured = None if trainer.finished else trainer.choose_precision()
    plan = None if trainer.finished else trainer.plan()
    about: list[str] = []
    grid = grid_evaluations(dataset, sampler, guidance)
    if accelerator.is_main_process:
        lines = [f"chosen   {line}" for line in notes] + [f"changed  {line}" for line in changed]
        lines += [] if measured is None else [f"precision {measured.describe()}"]
        about = _describe(trainer, dataset.describe(), plan, lines, grid)
        print(*about, *(describe_plan(trainer, plan, grid) if plan_only else ()), sep="\n")
    if plan_only:
        return 0
    if accelerator.is_main_process:
        # A run that is repeated or resumed has the precision that was chosen.
        values = {**values, "options": replace(options, precision=trainer.options.precision)}
        _record(run, values)
        log.start(trainer.state.images)
    _fit(trainer, bar, curves, to_plain(values), about)
    if accelerator.is_main_process:
        print(_outcome(trainer))
    return 0 if trainer.finished else 130


def _codec(model: Model, options: Options, vae: str | None, accelerator: Accelerator) -> Codec | None:
    """The autoencoder for grids of samples, on the process that draws them; None where there is nothing to decode."""
    if model.autoencoder is None or options.snapshot_every == 0:
        if vae is not None:
            why = "the data are no latents" if model.autoencoder is None else "options.snapshot_every is 0"
            raise ValueError(f"vae must not be given, as {why}, got {vae!r}")
        return None
    if not accelerator.is_main_process:
        return None
    try:
        return model.autoencoder.load(vae, accelerator.device)
    except (ImportError, ValueError) as error:
        raise type(error)(f"{error} (grids of samples need it; without them: --options.snapshot_every 0)") from error


def _grid_sampler(sampler: Sampler, objective: Objective, sigma_data: float) -> Sampler:
    """The sampler of the grids: for a consistency function two jumps, unless another one is described."""
    if objective.trains_consistency and sampler == Sampler():
        return Consistency().sampler_for(sigma_data)
    if objective.trains_consistency != sampler.solver.for_consistency:
        wanted = "MultistepConsistency" if objective.trains_consistency else "a solver for denoisers"
        name = type(sampler.solver).__name__
        raise ValueError(f"sampler.solver must be {wanted} with {type(objective).__name__}, got {name}")
    return sampler


def check_run_folder(run: Path, tracker: str, *, resume: bool) -> bool:
    """Whether the folder has checkpoints; ValueError if it has some but not `resume`, or for an unknown tracker."""
    check_folders("out", run)
    hold_folder(run, "out")
    earlier = bool(list_checkpoints(run))
    others = [path.name for path in run.glob("[!.]*") if path.name not in RUN_CONTENT]
    if others and not any((run / name).exists() for name in RUN_CONTENT):
        raise ValueError(f"out={run} holds other things and no run, such as {min(others)}: choose another folder")
    if earlier and not resume:
        raise ValueError(f"out={run} already has a run: pass --resume true to continue it, or choose another folder")
    for path in list_incomplete(run):
        start = f"the run goes on from {list_checkpoints(run)[-1]}" if earlier else "the run begins at its start"
        warnings.warn(f"{path} is not a complete checkpoint, as files are missing or empty: {start}", stacklevel=2)
    if tracker not in ("none", "csv") and tracker not in [t.value for t in get_available_trackers()]:
        raise ValueError(
            f"tracker={tracker!r} is not installed: pip install {tracker}, or choose tensorboard, csv or none"
        )
    return earlier


def _changed(run: Path, values: Mapping[str, Any], images: int) -> list[str]:
    """The options given that differ from those of a run that has ended, a line each, but for `out` and `tracker`."""
    file = run / "config.yaml"
    before = dict(dotted_values(read_options(str(file)))) if file.is_file() else {}
    names = (names_given.get() or frozenset()) - {"out", "tracker"}
    changed = {name: new for name, new in dotted_values(values) if name in names and new != before.get(name, new)}
    if int(before.get("options.images", 0)) > images:  # fewer images end a run that would have gone on
        changed.pop("options.images", None)
    return [f"{name} was {before[name]!r}, is {new!r}" for name, new in changed.items()]


def _record(run: Path, values: Mapping[str, Any]) -> None:
    """Write the options to the run's config.yaml, and which modules were imported."""
    values = {**values, **({"import": list(recorded.get())} if recorded.get() else {})}
    run.mkdir(parents=True, exist_ok=True)
    with replacing(run / "config.yaml") as path:
        path.write_text(seal_text(dump(values)), encoding="utf-8")


def _fit(
    trainer: Trainer, bar: TrainingBar, curves: Sequence[RunTracker], options: Mapping[str, Any], about: Sequence[str]
) -> None:
    """Train until the end, or until a signal to stop."""
    project = "tracking" if options["tracker"] == "tensorboard" else "openedm"  # TensorBoard's is a folder in the run
    for curve in curves:
        curve.start(project, options, options["out"], "\n".join(about))
    with StopSignal() as stop, closing(bar):
        trainer.fit(stop.is_set)
    if curves:
        trainer.accelerator.end_training()


def _outcome(trainer: Trainer) -> str:
    where = f"{trainer.state.images:,} images; the run is in {trainer.run}"
    if trainer.finished:
        return f"trained on {where}"
    return f"stopped at {where}\ncontinue with the same command and --resume true"


def _describe(trainer: Trainer, data: str, plan: Plan | None, notes: Sequence[str], grid: int) -> list[str]:
    """The lines about a run that are printed before it begins."""
    model, device = trainer.model, trainer.accelerator.device
    lines = list(notes)
    lines.append(f"data     {data}, sigma_data {model.sigma_data:.4f}")
    if model.units is not None:
        lines.append(f"units    mean ± width of a channel: {model.units.describe(model.sigma_data)}")
    lines.append(f"network  {model.network}: {num_parameters(trainer.denoiser):,} parameters on {device}")
    if trainer.origin is not None:
        new = trainer.origin.get("new_parameters")
        lines.append(f"init     {trainer.origin['origin']}" + (f"; {len(new)} parameters start anew" if new else ""))
    if trainer.state.images:
        lines.append(f"resumed  at {trainer.state.images:,} images")
    if plan is not None:
        options, seen = trainer.options, trainer.state.images
        evaluations = options.evaluations(len(trainer.validation), grid, seen)
        lines += plan.describe(options.images - seen, trainer.accelerator.num_processes, evaluations)
    return lines
