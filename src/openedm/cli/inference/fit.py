"""`openedm inference fit`: fit a posterior to simulations."""

from pathlib import Path
from typing import Literal

from openedm.cli.inference.choosing import gathered, settings_of, task_of
from openedm.cli.inference.progress import Stages
from openedm.cli.inference.reading import simulations_of
from openedm.cli.inference.reporting import fields, summary_of
from openedm.inference import fitting
from openedm.inference.priors import Prior

spelled_out = gathered


def fit(
    simulations: str,
    out: str,
    prior: Prior | None = None,
    task: str | None = None,
    num: int | None = None,
    seed: int = 0,
    on_nonfinite: Literal["error", "drop"] = "error",
    settings: str | None = None,
    run: str | None = None,
    resume: bool = False,
) -> None:
    """Fit a posterior to simulations.

    Everything is chosen by rule from the number of simulations and their shape, and judged on some that are held out;
    what was chosen is printed. With `--run`, Ctrl-C keeps what was trained, and the same command with `--resume true`
    goes on from there.

    Args:
        simulations: a store that `openedm inference simulate` made, or an npz file with the arrays theta and x.
        out: the folder for the posterior, a new one.
        prior: of the parameters, such as --prior Box --prior.low [0,0] --prior.high [1,5]. By default the task's or the
            store's; an npz file needs none, but a posterior without a prior cannot be refined.
        task: the benchmark task that the simulations are of, for its prior.
        num: fit to the first so many simulations alone.
        seed: of everything random.
        on_nonfinite: whether simulations with NaN or infinities are refused or left out.
        settings: what is to differ from the rule, such as --settings.images 1000000; or a YAML file of such fields.
        run: a folder for checkpoints.
        resume: go on from the checkpoints in `run`.
    """
    target = Path(out)
    if target.exists():
        raise ValueError(f"out={out} exists already: a posterior is never overwritten, choose another name")
    known = task_of(task)
    if known is not None and prior is not None:
        raise ValueError("prior must not be given with a task: it has its own")
    found = simulations_of(simulations, num)
    chosen = prior or (None if known is None else known.prior) or found.prior
    changed = settings_of(settings, len(found.theta), found.theta.shape[-1], tuple(found.x.shape[1:]))
    with Stages() as stages:
        try:
            posterior = fitting.fit(
                found.theta,
                found.x,
                chosen,
                seed=seed,
                settings=changed,
                on_nonfinite=on_nonfinite,
                run=run,
                resume=resume,
                progress=stages,
            )
        except KeyboardInterrupt:
            stages.close()
            if run is not None:
                print(f"stopped; what was trained is in {run}: the same command with --resume true goes on")
            raise
    posterior.save(target)
    prior_text = "none" if chosen is None else type(chosen).__name__
    print(fields({"prior": prior_text, **summary_of(posterior.report), "posterior": out}))
