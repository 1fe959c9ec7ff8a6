"""The runs of a sweep: names and commands, what is checked before the first of them, and the script of a cluster."""

import difflib
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from openedm.cli.budgeting import names_given
from openedm.cli.comparing import SAMPLING, options_for, parsed, shown
from openedm.cli.gathering import option_words
from openedm.cli.importing import recorded
from openedm.cli.parsing import Flat, options_of
from openedm.cli.plain import read_options, to_plain
from openedm.cli.train import train
from openedm.comparing import Combination, Variation, Way, combinations, differing, name_of, settings_of
from openedm.data import Dataset, Source
from openedm.generation import SamplingOptions
from openedm.ground.storage import read_json, write_json
from openedm.sampling import Consistency
from openedm.training import Model, list_checkpoints
from openedm.training.checkpoints import read_progress
from openedm.training.options import check_compatibility

__all__ = [
    "SweptRun",
    "array_script",
    "check_record",
    "check_ways",
    "is_finished",
    "plan_runs",
    "sampling_arguments",
    "write_record",
]

RECORD = "sweep.json"
"""The file of a sweep that holds the options of its runs."""
FILES = ("config", "preset")
FIXED = frozenset({"out", "resume"})
"""Options of `openedm train` that a sweep sets."""


@dataclass(frozen=True)
class SweptRun:
    """One combination that is trained.

    Attributes:
        folder: of the run.
        combination: the values of the options that are varied.
        arguments: of `openedm train`, without the folder.
        values: the options, parsed.
        described: whether they say which network is trained; else it is chosen for the machine when training starts.
    """

    folder: Path
    combination: Combination
    arguments: tuple[str, ...]
    values: Mapping[str, Any]
    described: bool = True

    @property
    def command(self) -> list[str]:
        """The arguments of `openedm`, which train the run or continue it."""
        imports = [f"--import={module}" for module in recorded.get()]
        return ["train", str(self.folder), *self.arguments, *imports, "--resume=true"]


def sampling_only(sampling: Flat[SamplingOptions] = SamplingOptions()) -> None:
    """The options of sampling, for `parsed`."""


def plan_runs(out: Path, given: Sequence[str], variations: Sequence[Variation]) -> list[SweptRun]:
    """A run for each combination of the options that are trained, all of them checked.

    Args:
        out: the folder of the sweep.
        given: the options of `openedm train` that all runs have.
        variations: the options that are varied; those of sampling are left out.

    Raises:
        ValueError: an option is unknown, a value is wrong, choices do not go together, or two runs have one name.
    """
    known = {*options_of(train), *FILES} - FIXED
    trained = [variation for variation in variations if not _is_sampling(variation.name)]
    for variation in trained:
        _check_known(f"--vary {variation.name}", variation.name, known)
    for name, _ in option_words(given):
        _check_known(f"--{name}", name, known | SAMPLING)
    runs: dict[str, SweptRun] = {}
    loaded: dict[Source, Dataset] = {}
    for combination in combinations(trained):
        name = name_of(combination)
        if name in runs:
            raise ValueError(
                f"--vary {shown(combination)} and {shown(runs[name].combination)} have one name for their runs, {name}"
            )
        arguments = _training_arguments(given, combination)
        values = parsed("openedm train", train, [str(out / name), *arguments], combination)
        described = bool((names_given.get() or frozenset()) & {"network", "init"}) and values["budget"] is None
        _check(values, combination, loaded, described=described)
        runs[name] = SweptRun(out / name, combination, tuple(arguments), values, described)
    return list(runs.values())


def _check_known(shown_as: str, name: str, known: Collection[str]) -> None:
    first = name.partition(".")[0]
    if first not in known:
        near = difflib.get_close_matches(first, [*known, *SAMPLING], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        if "-" in name:
            hint = f": options are written with underscores, {shown_as.replace(name, name.replace('-', '_'))}"
        raise ValueError(f"{shown_as} must be an option of openedm train or openedm sample{hint}")


def _is_sampling(name: str) -> bool:
    return name.partition(".")[0] in SAMPLING


def _training_arguments(given: Sequence[str], combination: Combination) -> list[str]:
    """The arguments of `openedm train`: files before options, and what is varied last."""
    known = {*options_of(train), *FILES}
    kept = [(name, words) for name, words in option_words(given) if _is_trained(name, known)]
    files = [word for name, words in kept if name in FILES for word in words]
    others = [word for name, words in kept if name not in FILES for word in words]
    varied = options_for(combination)
    return [*files, *(v for v in varied if v.startswith("--config=")), *others, *_not_files(varied)]


def _not_files(options: Sequence[str]) -> list[str]:
    return [option for option in options if not option.startswith("--config=")]


def _is_trained(name: str, known: set[str]) -> bool:
    """Whether an option goes to `openedm train`; unknown ones do, too, which refuses them."""
    first = name.partition(".")[0]
    return first in known or first not in SAMPLING


def sampling_arguments(given: Sequence[str]) -> list[str]:
    """The options of sampling among those of a sweep: typed, or of the files, whose sampler and guidance are meant."""
    arguments: list[str] = []
    for name, words in option_words(given):
        if name == "config":
            content = read_options(words[0].partition("=")[2] if "=" in words[0] else words[1])
            arguments += [f"--{key}={_flow(value)}" for key, value in content.items() if key in ("sampler", "guidance")]
    for name, words in option_words(given):
        arguments += words if _is_sampling(name) else []
    return arguments


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    return text.strip()


def check_ways(runs: Sequence[SweptRun], ways: Sequence[Way]) -> None:
    """Check before training that runs can be sampled with guidance, and with so few evaluations.

    Raises:
        ValueError: a way of sampling has guidance, and a run is trained without label_dropout; or it has one or two
            evaluations, and a run trains a denoiser.
    """
    denoisers = [run for run in runs if not run.values["objective"].trains_consistency]
    for way in ways:
        if isinstance(way.options.method, Consistency) and denoisers:
            given = f"--vary {way.name}: " if way.name else ""
            raise ValueError(f"{given}nfe must be >= 3 for a denoiser, got {way.options.method.nfe}")
    guided = [way for way in ways if not way.options.guidance.is_one and way.options.guiding is None]
    without = [run for run in runs if run.described and run.values["options"].label_dropout == 0]
    if guided and without:
        raise ValueError(
            f"guidance ({guided[0].name or guided[0].options.guidance}) requires options.label_dropout > 0 in "
            f"training, got 0 for {without[0].folder.name}"
        )


def _check(
    values: Mapping[str, Any], combination: Combination, loaded: dict[Source, Dataset], *, described: bool
) -> None:
    """Check that data, network, preconditioning and objective go together, as the trainer does before it starts."""
    options = values["options"]
    try:
        data = _load(values["data"], loaded)
        validation = None if values["validation"] is None else _load(values["validation"], loaded)
        if not described:
            return
        model = Model.for_data(
            data,
            values["network"],
            values["preconditioning"],
            conditional=values["conditional"],
            augment_dim=options.augment_dim,
            condition_dropout=options.label_dropout > 0,
            standardise=values["standardise"],
        )
        check_compatibility(model, data, validation, values["objective"], options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"--vary {shown(combination)}: {error}" if combination else str(error)) from error


def _load(source: Source, loaded: dict[Source, Dataset]) -> Dataset:
    if source not in loaded:
        loaded[source] = source.load()
    return loaded[source]


def is_finished(run: SweptRun) -> bool:
    """Whether a run has been trained to its end."""
    options = run.values["options"]
    if not (found := list_checkpoints(run.folder)):
        return False
    progress = read_progress(found[-1])
    stalled = 0 < options.stop_after <= int(progress.get("without_improvement", 0))
    return bool(stalled or int(progress["images"]) >= options.images)


def _plain(run: SweptRun) -> dict[str, Any]:
    return {name: to_plain(value) for name, value in run.values.items() if name not in FIXED}


def check_record(out: Path, runs: Sequence[SweptRun]) -> None:
    """Check that runs which are there have the options that the command gives them.

    Raises:
        ValueError: a run has others; the message names them. The folder holds other things and no sweep.
    """
    file = out / RECORD
    others = [path.name for path in out.glob("[!.]*") if path.name not in {run.folder.name for run in runs}]
    if others and not file.is_file():
        raise ValueError(f"out={out} holds other things and no sweep, such as {min(others)}: choose another folder")
    earlier = read_json(file)["runs"] if file.is_file() else {}
    for run in runs:
        if run.folder.name not in earlier or not list_checkpoints(run.folder):
            continue
        before, now = settings_of(earlier[run.folder.name]), settings_of(_plain(run))
        shared = before.keys() & now.keys()
        changed = differing([{n: before[n] for n in shared}, {n: now[n] for n in shared}])
        if changed:
            first = changed[0]
            raise ValueError(
                f"{run.folder} was trained with {first}={before[first].text}, and the command says {now[first].text}: "
                "give the same options, another out, or move the run away"
            )


def write_record(out: Path, runs: Sequence[SweptRun]) -> None:
    """Write the options of the runs, beside those of earlier commands, into the folder of the sweep."""
    file = out / RECORD
    earlier = read_json(file)["runs"] if file.is_file() else {}
    write_json(file, {"runs": earlier | {run.folder.name: _plain(run) for run in runs}}, files=())


def array_script(runs: Sequence[SweptRun], again: str) -> str:
    """A SLURM script of an array, one task a run.

    Args:
        runs: what is trained.
        again: the command that compares when all tasks have ended.
    """
    lines = [f"  {i}) exec openedm {shlex.join(run.command)} ;;" for i, run in enumerate(runs)]
    return "\n".join(
        [
            "#!/bin/bash",
            "#SBATCH --job-name=openedm-sweep",
            f"#SBATCH --array=0-{len(runs) - 1}",
            "#SBATCH --output=sweep-%A-%a.out",
            "#SBATCH --signal=B:TERM@120",
            "# Add partition, time, CPUs or GPUs of your cluster. A task that is requeued goes on where it stopped.",
            "# When all tasks have ended, this compares the runs:",
            f"#   {again}",
            "set -euo pipefail",
            'case "$SLURM_ARRAY_TASK_ID" in',
            *lines,
            '  *) echo "no run has the number $SLURM_ARRAY_TASK_ID" >&2; exit 2 ;;',
            "esac",
            "",
        ]
    )
