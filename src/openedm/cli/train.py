"""`openedm train`: train a denoiser."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openedm import objective as objectives
from openedm import preconditioning as preconditionings
from openedm.cli.budgeting import choose, dotted_names, names_given
from openedm.cli.gathering import option_words, typed
from openedm.cli.importing import check_known_classes, listed_imports
from openedm.cli.plain import read_options, to_plain
from openedm.cli.running import Tracker, check_run_folder, run_training
from openedm.data import Dataset, Digits, Source
from openedm.guidance import GuidanceWeight, Interval
from openedm.networks import DDPMpp, Network
from openedm.objective import Objective
from openedm.preconditioning import Preconditioning
from openedm.sampling import Sampler
from openedm.training import (
    BudgetName,
    Initial,
    Model,
    Options,
    find_checkpoint,
    list_checkpoints,
    make_accelerator,
    read_model,
)

MEASURED = ("validate_samples", "validate_levels", "validate_tails")
"""Options of the losses that are measured, without how often."""


def train(
    out: str,
    data: Source = Digits(),
    validation: Source | None = None,
    network: Network = DDPMpp(),
    preconditioning: Preconditioning = preconditionings.EDM(),
    objective: Objective = objectives.EDM(),
    options: Options = Options(),
    sampler: Sampler = Sampler(),
    guidance: GuidanceWeight = Interval(),
    conditional: bool = True,
    standardise: bool = True,
    init: Initial = Initial(),
    resume: bool = False,
    budget: BudgetName | None = None,
    tracker: Tracker = "tensorboard",
    vae: str | None = None,
    preset: str | None = None,
    plan: bool = False,
) -> int:
    """Train a denoiser on images, arrays or toy data.

    Writes into the run folder: config.yaml (all options; `openedm train NEW_RUN --config RUN/config.yaml` repeats the
    run), checkpoints/, log.jsonl, figures/ (loss curves, sample grids) and the tracker's files. Ctrl-C saves a
    checkpoint and stops; `--resume true` continues a run that stopped or was killed, with the same steps. The GPU is
    used if there is one, and several processes under `torchrun` or `accelerate launch`.

    Args:
        out: the run folder.
        data: the source of the training data.
        validation: the source of the data of the validation loss; without it losses are measured on training data.
        network: the architecture; its shape follows from the data. If it is not given, network, length and batch are
            chosen for this machine, as by a budget.
        preconditioning: the preconditioning that turns the network into a denoiser.
        objective: noise levels and weights in training.
        options: options of training.
        sampler: the sampler of the sample grids of the run.
        guidance: the weight of classifier-free guidance of the sample grids, for training with label_dropout.
        conditional: condition on the classes or conditions of the data, if there are any.
        standardise: whether data that are not images are standardised, each channel to mean 0 and σ_data 0.5, and float
            conditions; samples are in the units of the data all the same. False for data that already are. A run that
            is resumed goes on as it began.
        init: start from the averaged weights of this checkpoint or run (fine-tuning): --init runs/first. Network and
            preconditioning are then those of the checkpoint, unless given, and pictures of several sizes get its size
            unless data.resolution is given; the units of the data are measured anew.
        resume: continue from the newest checkpoint in the run folder, if there is one. The options are then those of
            the run, unless given: --options.images, learning_rate, rampup, schedule, clip_norm, label_dropout,
            precision, average.half_life and --objective.noise may change in the middle, which is printed; other
            options that would change its steps are refused.
        budget: network, batch, length and intervals for a machine and a time, measured with the data before training:
            cpu-hour; gpu-8gb, for 12 hours; gpu-24gb, for a day; gpu-80gb, for two days. Options that are given keep
            their values; what is chosen is printed as options. Pictures of several sizes, or larger than the budget's
            (32, 64, 64 and 128), are cropped and resized unless data.resolution is given.
        tracker: the tracker that also receives the curves, grids of samples, the options and a description of the run:
            tensorboard; csv, for the numbers alone; wandb, mlflow or comet_ml where these are installed; none.
        vae: for data of `openedm data encode`: the folder of the autoencoder that decodes the grids of samples, or its
            name on the Hugging Face Hub, if it is no longer where it was when the data were encoded.
        preset: a configuration of Karras et al. 2022, with lower priority than all other options and --config:
            cifar10-ddpmpp, cifar10-ncsnpp, with -cond for class-conditional ones, ffhq64-ddpmpp, ffhq64-ncsnpp,
            afhqv2-64-ddpmpp, afhqv2-64-ncsnpp or imagenet64-adm; or of Karras et al. 2024: edm2-img64-xs, edm2-img64-s,
            edm2-img64-m, edm2-img64-l or edm2-img64-xl for images; edm2-img512-xxs, edm2-img512-xs, edm2-img512-s,
            edm2-img512-m, edm2-img512-l, edm2-img512-xl or edm2-img512-xxl for latents.
        plan: print what the run would cost on this machine, by a step that is timed, and on 2, 8 and 64 of its kind by
            a model whose assumptions are printed; nothing is trained or written.
    """
    values = {name: value for name, value in locals().items() if name not in ("preset", "budget", "plan")} | {
        "resume": False
    }
    if preset is not None:  # on the command line it is replaced by a --config file
        raise ValueError(f"preset must be given on the command line, as --preset {preset}, and not in a --config file")
    run = Path(out)
    earlier = check_run_folder(run, tracker, resume=resume)
    accelerator = make_accelerator(tracker=None if tracker == "none" else tracker, folder=run)
    shape = None if earlier or init is None or init.path is None else read_model(find_checkpoint(init.path)).event_shape
    chosen = choose(
        budget, data, network, objective, options, sampler, guidance, accelerator, conditional, earlier, shape
    )
    dataset, network, options, guidance = chosen.dataset, chosen.network, chosen.options, chosen.guidance
    _check_effects(options, init)
    values |= {"data": chosen.data, "network": network, "options": options, "guidance": guidance}
    standardise = read_model(find_checkpoint(run)).standardised if earlier else standardise
    model = _describe_model(dataset, network, preconditioning, options, conditional, standardise)
    return run_training(
        run,
        model,
        dataset,
        objective,
        options,
        values=values,
        validation=validation,
        sampler=sampler,
        guidance=guidance,
        init=init,
        tracker=tracker,
        accelerator=accelerator,
        vae=vae,
        notes=chosen.lines,
        plan_only=plan,
    )


def _check_effects(options: Options, init: Initial) -> None:
    """Refuse options on the command line that others leave without effect."""
    for name, _ in option_words(typed.get()):
        if name == "init.mismatch" and (init is None or init.path is None):
            raise ValueError("init.mismatch has no effect without init, the checkpoint to start from")
        first, _, field = name.partition(".")
        if first in ("sampler", "guidance") and options.snapshot_every == 0:
            raise ValueError(f"{name} has no effect with options.snapshot_every 0: there are no grids of samples")
        if first == "options" and field in MEASURED and options.validate_every == 0:
            raise ValueError(f"{name} has no effect with options.validate_every 0: no losses are measured")


def _describe_model(
    dataset: Dataset,
    network: Network,
    preconditioning: Preconditioning,
    options: Options,
    conditional: bool,
    standardise: bool,
) -> Model:
    """The description of the denoiser for the data."""
    return Model.for_data(
        dataset,
        network,
        preconditioning,
        conditional=conditional,
        augment_dim=options.augment_dim,
        condition_dropout=options.label_dropout > 0,
        standardise=standardise,
    )


def recorded_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the run that is resumed, or network and preconditioning of the checkpoint that is fine-tuned."""
    names_given.set(dotted_names(given))
    run, init = given.get("") or given.get("out"), given.get("init") or given.get("init.path")
    init = _path(init)
    if given.get("resume") is True and isinstance(run, str) and (file := Path(run) / "config.yaml").is_file():
        content = read_options(str(file))
        listed_imports(str(file), content)
        check_known_classes(str(file), content)
        found = {name: value for name, value in content.items() if name not in ("out", "resume")}
        if not list_checkpoints(Path(run)):  # nothing is chosen anew for a run that has to begin again
            names_given.set(dotted_names(given) | dotted_names(found))
        elif init is not None and init != _path(content.get("init")):
            raise ValueError(f"init must not be given to a run that goes on from its own checkpoint, got {init}")
        return found
    if isinstance(init, str) and not (isinstance(run, str) and list_checkpoints(Path(run))):
        model = read_model(find_checkpoint(init))
        return {"network": to_plain(model.network), "preconditioning": to_plain(model.preconditioning)}
    return {}


def _path(init: Any) -> Any:
    """The path of a plain `Initial`, which may be the path alone."""
    return init.get("path") if isinstance(init, dict) else init


train.recorded_options = recorded_options  # type: ignore[attr-defined]
