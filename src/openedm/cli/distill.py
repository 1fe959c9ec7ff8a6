"""`openedm distill`: turn a trained denoiser into a model of one or two evaluations."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from openedm.cli.budgeting import dotted_names, names_given
from openedm.cli.data_of_runs import recorded_data
from openedm.cli.importing import check_known_classes, listed_imports
from openedm.cli.plain import read_options
from openedm.cli.running import Tracker, check_run_folder, run_training
from openedm.data import Digits, Source
from openedm.ground import checks
from openedm.objective import ConsistencyTuning
from openedm.sampling import Sampler
from openedm.training import HalfLife, Initial, Model, Options, find_checkpoint, make_accelerator, read_model
from openedm.training.checkpoints import read_progress, trained_without_dropout

OPTIONS = Options(images=400_000, learning_rate=5e-4, clip_norm=1.0, average=HalfLife(half_life=10_000.0))
"""Those of training, but for these."""


def distill(
    teacher: str,
    out: str,
    data: Source = Digits(),
    validation: Source | None = None,
    objective: ConsistencyTuning = ConsistencyTuning(pairs="teacher", first=4),
    options: Options = OPTIONS,
    dropout: float | None = None,
    sampler: Sampler = Sampler(),
    resume: bool = False,
    tracker: Tracker = "tensorboard",
    vae: str | None = None,
) -> int:
    """Turn a trained denoiser into a consistency model, which draws a sample with one or two evaluations.

    Training starts from the averaged weights of the teacher and makes f(x; σ), the end of the path of the ODE through
    x, agree between neighbouring noise levels of one sample, closer and closer (easy consistency tuning, Geng et al.
    2024). Writes a run folder like `openedm train`; `openedm sample OUT samples --nfe 2` draws from it.

    Args:
        teacher: the checkpoint or run to start from: a denoiser, best with EDM's preconditioning.
        out: the run folder.
        data: the source of the training data: by default those that the teacher's run names.
        validation: the source of the data of the validation loss; without it losses are measured on training data.
        objective: how pairs of noise levels are made, how they come closer, and the weight of guidance.
        options: options of training.
        dropout: the dropout of the network in training, instead of the teacher's; 0.2 is reported to help where the
            teacher overfits.
        sampler: the sampler of the sample grids of the run; by default two evaluations.
        resume: continue from the newest checkpoint in the run folder, if there is one, with the options of the run.
        tracker: the tracker that also receives the curves, as for `openedm train`.
        vae: for data of `openedm data encode`: the autoencoder that decodes the grids of samples, as for `openedm
            train`.
    """
    values = locals() | {"resume": False}
    run = Path(out)
    earlier = check_run_folder(run, tracker, resume=resume)
    folder = find_checkpoint(run if earlier else teacher)
    model = _student(read_model(folder), None if earlier else dropout)
    if not earlier and objective.guidance != 1 and trained_without_dropout(folder):
        raise ValueError("objective.guidance requires a teacher that was trained with label_dropout, got one without")
    return run_training(
        run,
        model,
        data.load(),
        objective,
        options,
        values=values,
        validation=validation,
        sampler=sampler,
        init=Initial(teacher),
        tracker=tracker,
        vae=vae,
        accelerator=make_accelerator(tracker=None if tracker == "none" else tracker, folder=run),
    )


def _student(model: Model, dropout: float | None) -> Model:
    """The teacher's model, with another dropout."""
    if dropout is None:
        return model
    checks.between("dropout", dropout, 0, 1 - 1e-9)
    if "dropout" not in {field.name for field in fields(model.network)}:
        raise ValueError(f"dropout must not be given for {type(model.network).__name__}, which has none, got {dropout}")
    return replace(model, network=replace(model.network, dropout=dropout))  # type: ignore[call-arg]


def recorded_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the run that is resumed; or the data of the teacher's run, and its label_dropout."""
    names_given.set(dotted_names(given))
    run, teacher = given.get("out"), given.get("") or given.get("teacher")
    if given.get("resume") is True and isinstance(run, str) and (file := Path(run) / "config.yaml").is_file():
        content = read_options(str(file))
        listed_imports(str(file), content)
        check_known_classes(str(file), content)
        return {name: value for name, value in content.items() if name not in ("teacher", "out", "resume")}
    found = recorded_data(given, "teacher")
    try:
        training = read_progress(find_checkpoint(str(teacher)))
        rate = training["options"]["init_args"]["label_dropout"]
    except (KeyError, OSError, TypeError, ValueError):
        return found
    return found | ({"options": {"label_dropout": rate}} if rate else {})


distill.recorded_options = recorded_options  # type: ignore[attr-defined]
