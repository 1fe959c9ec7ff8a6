"""`fit`: from simulations to a posterior, in one call and four steps, each of which hands on a value.

1. `prepare`: θ is made unbounded and standardised, x standardised; errors name the rows and columns that cannot be
   learned from. Some simulations are held out: nothing is trained on them.
2. Columns of x that are draws of one distribution are sorted (`exchangeable`).
3. `choose_posterior`: a denoiser is trained on the simulations and, but for sets and data with gaps, an emulator
   is fitted; what has the highest ln q(θ | x) on held-out simulations is taken.
4. The posterior comes with a report of all this, and a verdict whether there were enough simulations.
"""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from openedm.ground import checks
from openedm.ground.choices import to_config
from openedm.ground.locks import locked_folder
from openedm.ground.progress import ShowProgress, showing
from openedm.ground.storage import check_folders
from openedm.ground.threads import at_most_threads
from openedm.inference.arrays import Values
from openedm.inference.candidates import Job
from openedm.inference.exchangeable import are_exchangeable
from openedm.inference.judging import Verdict, choose_posterior
from openedm.inference.prepare import Prepared, prepare, takes_all_columns
from openedm.inference.settings import Settings
from openedm.inference.simulations import Failure, Simulations
from openedm.inference.trained import DenoiserPosterior
from openedm.networks import JoinedSummary
from openedm.training import Observer

__all__ = ["fit"]

SMALL = 256
"""Numbers of an observation that one thread learns from."""


def fit(
    theta: Values | Simulations,
    x: Values | None = None,
    prior: Any = None,
    *,
    seed: int = 0,
    settings: Settings | None = None,
    embedding: Any = None,
    names: Sequence[str] | None = None,
    on_nonfinite: Literal["error", "drop"] = "error",
    run: str | Path | None = None,
    resume: bool = False,
    observers: Sequence[Observer] = (),
    progress: ShowProgress = None,
) -> DenoiserPosterior:
    """The posterior p(θ | x) from simulations.

    Where x is a vector of at most 256 numbers, and without an embedding of one's own, torch computes with one thread
    whatever `torch.set_num_threads` says: of matrices so small a second thread doubled the processor's time and saved
    at most a tenth of the wall's. Images, series and sets use all threads.

    Args:
        theta: parameters (n, d), drawn from the prior; or `Simulations`, which hold x and the prior as well.
        x: what the simulator gave for each, (n, *x_shape): vectors, or series (channels, time), images (c, h, w), sets
            (members, features); or, of several kinds at once, a mapping from names to vectors, series or images. NaN
            mark absent members of sets, whole rows, and values of series that were not measured; the kind follows from
            their pattern, or from the summary in `settings`.
        prior: of θ: a `Prior`, a torch distribution, a list of one-dimensional ones, a pair (low, high) of a box's
            ends, or None. Samples lie inside its support, and an emulator draws its θ from it.
        seed: of everything random; the same seed and machine give the same posterior.
        settings: how to fit; None means `Settings.of`, the rule.
        embedding: the network that summarises x for the denoiser, in place of the rule's: an `nn.Module` of your own,
            called as `embedding(x)` with standardised data (rows, *x_shape), which returns (rows, any number), its
            class, a function that makes one, or a `Summary`. It is trained together with the denoiser. None means
            that of the rule.
        names: of the parameters; None means the prior's.
        on_nonfinite: "error" refuses simulations with infinities or other NaN than those and names them, "drop" leaves
            them out, with a warning that says how many. The posterior is then conditional on the simulator's success.
        run: folder for the trainer's checkpoints; None writes none.
        resume: continue from the checkpoints in `run`, which an earlier call with the same arguments has written.
        observers: of the trainers, for logs and trackers.
        progress: None shows a bar in a terminal or notebook, True always, False never; a function is called with the
            name of each stage and the share of it that is done.

    Returns:
        A posterior, in evaluation mode; `.report` holds what was tried and chosen.

    Raises:
        FloatingPointError: a training came to numbers that are not finite.
        TypeError, ValueError: arguments that do not fit, too few simulations, values that are not finite, parameters
            outside the prior's support, or that are constant.

    Warns:
        UserWarning: how many simulations gave no result (`Simulations.failures`); columns of x that are constant, equal
            to others or unrelated to θ and to all that is not, which are left out; or x with absent members whose rows
            differ in distribution, or which the settings take as series; or that more simulations are needed
            (`shortfall`): the same words as `.report["verdict"]`.
    """
    failures: tuple[Failure, ...] = ()
    if isinstance(theta, Simulations):
        if x is not None:
            raise ValueError("x must not be given beside Simulations, which hold it")
        prior, failures = theta.prior if prior is None else prior, theta.failures
        if failures:
            warnings.warn(
                f"{len(failures)} of {len(theta) + len(failures)} simulations gave no result and are left out: the "
                f"posterior is conditional on the simulator's success; the first: {failures[0]}",
                stacklevel=2,
            )
        x, theta = theta.data, theta.theta
    if x is None:
        raise TypeError("x must be given, or Simulations in place of theta")
    if isinstance(x, Mapping):
        if embedding is not None or settings is not None:
            raise ValueError("embedding and settings must be None where x is a mapping: each kind has its own summary")
        embedding = JoinedSummary.of(x)
        x = embedding.flatten(x)
    checks.integer("seed", seed, 0)
    checks.one_of("on_nonfinite", on_nonfinite, ("error", "drop"))
    if resume and run is None:
        raise ValueError("run must be given to resume")
    if run is not None:
        check_folders("run", Path(run))
    drop_nonfinite = on_nonfinite == "drop"
    folder = None if run is None else Path(run)
    data = prepare(
        theta,
        x,
        prior,
        settings=settings,
        embedding=embedding,
        names=names,
        drop_nonfinite=drop_nonfinite,
        seed=seed,
    )
    data = _sorted_where_exchangeable(data)
    threads = at_most_threads(1) if _is_small(data) else nullcontext()
    lock = nullcontext() if folder is None else locked_folder(folder, "run")
    with threads, lock, showing(progress) as report_progress:
        verdict = choose_posterior(data, Job(folder, resume, tuple(observers), report_progress))
    report = _report(data, verdict, len(failures))
    if verdict.shortfall.is_large:
        warnings.warn(f"{verdict.shortfall}", stacklevel=2)
    return DenoiserPosterior(
        verdict.parts,
        prior=data.prior,
        names=data.names,
        report=report,
        trained_on=data.fingerprints,
        reference=data.reference,
    )


def _sorted_where_exchangeable(data: Prepared) -> Prepared:
    """The same simulations; of columns that are draws of one distribution networks get the order statistics."""
    rows, maps = data.training, data.data
    if not maps.vector or takes_all_columns(data.settings):
        return data
    if not are_exchangeable(data.x[rows][:, list(maps.keep)], data.u[rows]):
        return data
    return replace(data, data=maps.sorted(data.x[rows]))


def _is_small(data: Prepared) -> bool:
    """Whether a second thread would wait more than it computes."""
    return data.data.vector and data.data.shape[0] <= SMALL and not takes_all_columns(data.settings)


def _report(data: Prepared, verdict: Verdict, failures: int) -> Mapping[str, Any]:
    """What was tried and chosen, as plain data."""
    report: dict[str, Any] = {"settings": to_config(data.settings), "simulations": len(data.theta), "seed": data.seed}
    if failures:
        report["left out, without a result"] = failures
    if data.dropped:
        report["left out, not finite"] = data.dropped
    if (absence := data.data.absence) is not None:
        report["data"] = absence.describe(data.data.x_shape)
    if isinstance(joined := getattr(data.settings.network, "summary", None), JoinedSummary):
        kinds = ", ".join(f"{name} {shape}" for name, shape in zip(joined.names, joined.shapes, strict=True))
        report["data"] = f"several kinds at once: {kinds}"
    if data.data.exchangeable:
        report["data"] = "the columns of x are draws of one distribution: networks get them sorted"
    if (found := verdict.simulator) is not None:
        report["emulated"] = {
            "noise": found.fitted.mixture.structure,
            "components": found.fitted.mixture.components,
            "curve": found.fitted.mixture.curve,
            "reach": getattr(found.fitted.mixture, "reach", None),
            "columns": None if found.target is None else list(found.target.kinds),
            "trend": None if found.trend is None else "kernel regression",
            "log_prob": found.fitted.log_prob,
            "steps": found.fitted.steps,
        }
    report["seconds"] = dict(verdict.seconds)
    report["skipped"] = dict(verdict.skipped)
    report["held_out_log_prob"] = dict(verdict.log_probs)
    if verdict.gain is not None:
        report["held_out_gain_of_refinement"] = verdict.gain
    return {**report, "chosen": verdict.chosen, "shortfall": verdict.shortfall.nats, "verdict": f"{verdict.shortfall}"}
