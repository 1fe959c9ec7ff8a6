"""`openedm inference fit`: fit a posterior to simulations."""

import warnings
from collections.abc import Mapping
from typing import Any, Literal

from openedm.cli.arguments import function_of
from openedm.cli.inference.arguments import settings_of, simulations_of, task_of
from openedm.cli.parsing import Changes
from openedm.cli.terminal import Bars, rows
from openedm.ground.choices import to_config
from openedm.ground.storage import new_path
from openedm.inference import fitting
from openedm.inference.absent import kind_in
from openedm.inference.prepare import summary_of
from openedm.inference.priors import Prior
from openedm.inference.trained import DenoiserPosterior


def fit(
    simulations: str,
    out: str,
    prior: Prior | None = None,
    task: str | None = None,
    num: int | None = None,
    seed: int = 0,
    on_nonfinite: Literal["error", "drop"] = "error",
    settings: Changes | None = None,
    embedding: str | None = None,
    run: str | None = None,
    resume: bool = False,
) -> None:
    """Fit a posterior to simulations.

    A rule chooses the settings from the number of simulations and their shape, and candidates are compared on held-out
    simulations; the choices are printed. With `--run`, training continues after Ctrl-C by the same command with
    `--resume true`.

    Args:
        simulations: a store that `openedm inference simulate` wrote, or an npz file with the arrays theta and x, or, of
            several kinds of data, x_NAME for each.
        out: a new folder for the posterior.
        prior: prior of the parameters, such as --prior Box --prior.low [0,0] --prior.high [1,5]. By default that of the
            task or the store; it is optional for an npz file, but a posterior without a prior cannot be refined.
        task: the benchmark task of the simulations, for its prior.
        num: number of simulations, the first ones; by default all.
        seed: seed of all random numbers.
        on_nonfinite: error: simulations with NaN or infinities are an error, except for NaN that mark absent members of
            sets or values of series. drop: they are left out.
        settings: settings that differ from the rule, such as --settings.images 1000000; or a YAML file of such fields.
        embedding: a network of your own that summarises x, in place of the rule's: file.py:Class, a class of nn.Module
            that is made without arguments (or with condition_shape and features). Commands that read the posterior then
            need --import with the name of that module.
        run: a folder for checkpoints.
        resume: continue from the checkpoints in `run`.
    """
    new_path("out", out, what="a posterior")
    known = task_of(task)
    if known is not None and prior is not None:
        raise ValueError("prior and task are mutually exclusive, because a task has a prior")
    summary = None if embedding is None else summary_of(function_of(embedding, "embedding"))
    found = simulations_of(simulations, num)
    chosen = prior or (None if known is None else known.prior) or found.prior
    if chosen is not None and found.prior is not None and to_config(chosen) != to_config(found.prior):
        warnings.warn(
            f"the parameters of {simulations} were drawn from another prior than the one given: the denoiser learns "
            "the posterior of the former, which refinement alone corrects",
            stacklevel=2,
        )
    sizes = len(found), found.theta.shape[-1], tuple(found.x.shape[1:])
    changed = settings_of(settings, *sizes, kind_in(found.x), summary)
    with Bars() as bars:
        try:
            posterior = fitting.fit(
                found,
                prior=chosen,
                seed=seed,
                settings=changed,
                embedding=summary if changed is None else None,
                on_nonfinite=on_nonfinite,
                run=run,
                resume=resume,
                progress=bars,
            )
        except KeyboardInterrupt:
            if run is not None:
                bars.log(f"stopped; the checkpoints are in {run}: the same command with --resume true continues")
            raise
    posterior.save(out)
    print(rows({"prior": "none" if chosen is None else type(chosen).__name__, **_report(posterior), "posterior": out}))


def _report(posterior: DenoiserPosterior) -> dict[str, str]:
    """The report of a fit, as names and values to print."""
    found: dict[str, str] = {}
    for name, value in posterior.report.items():
        label = name.replace("_", " ")
        if isinstance(value, Mapping) and name != "settings":
            found |= {f"{label}, {inner}": _text(number) for inner, number in value.items()}
        elif name != "settings":
            found[label] = _text(value)
    return found


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
