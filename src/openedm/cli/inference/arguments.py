"""Arguments of the inference commands: tasks, settings, simulations, posteriors."""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from openedm.cli.arguments import arrays_of, numbers_of
from openedm.cli.parsing import build
from openedm.cli.plain import overlay, to_plain
from openedm.data.array_files import ArrayFile
from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.ground.kinds import KINDS, holding
from openedm.inference import tasks
from openedm.inference.absent import Kind
from openedm.inference.arrays import as_tensor
from openedm.inference.repeated import RepeatedPosterior
from openedm.inference.results import Form
from openedm.inference.settings import Settings
from openedm.inference.simulations import Simulations, Store
from openedm.inference.tasks import Task
from openedm.inference.trained import SAMPLER, DenoiserPosterior
from openedm.networks import JoinedSummary, Summary
from openedm.sampling import Sampler, SamplerChoice

FEWEST_TESTED = 20
"""Simulations that tests of a posterior need."""


@dataclass(frozen=True)
class PosteriorOptions(Choice):
    """How samples are drawn from a posterior.

    Args:
        plain: leave out refinement, for faster samples of the denoiser alone.
        nfe: the number of network evaluations of a sample; solver and noise levels are then chosen by rule. By default
            the sampler that was saved with the posterior.
        sampler: levels, schedule, solver and stochasticity one by one, instead of nfe, such as
            --sampler.churn.s_churn 10.
        noise: noise of a stochastic sampler: independent draws; or path, the increments of one Brownian path a sample,
            so that samples converge as the number of steps grows.

    Raises:
        ValueError: both nfe and sampler, or noise without a sampler.
    """

    plain: bool = False
    nfe: int | None = None
    sampler: Sampler | None = None
    noise: Literal["independent", "path"] = "independent"

    def __post_init__(self) -> None:
        if self.nfe is not None and self.sampler is not None:
            raise ValueError(f"nfe and sampler options are mutually exclusive, got nfe={self.nfe} and {self.sampler}")
        if self.noise == "path" and self.sampler is None:
            raise ValueError("noise='path' requires sampler options, of a stochastic sampler")

    def applied(self, posterior: DenoiserPosterior) -> DenoiserPosterior:
        """The posterior with these options.

        Raises:
            ValueError: the sampler does not suit the denoiser, or noise='path' has no effect on it.
        """
        chosen = posterior.plain() if self.plain else posterior
        sampler: SamplerChoice | None = self.sampler if self.nfe is None else replace(SAMPLER, nfe=self.nfe)
        return chosen if sampler is None else chosen.with_sampler(sampler, self.noise)


class ObservedPosterior(NamedTuple):
    """A posterior and an observation.

    Attributes:
        posterior: the posterior on its device, without refinement if that is left out.
        x: one observation, or a batch of them; of several kinds of data, all numbers of each in a row.
        single: whether it is a single observation.
        form: of one observation.
        together: the posterior of all rows of x as independent observations; None unless that is asked for.
    """

    posterior: DenoiserPosterior
    x: Tensor
    single: bool
    form: Form
    together: RepeatedPosterior | None = None

    @property
    def given(self) -> DenoiserPosterior | RepeatedPosterior:
        """What takes x: the posterior of all its rows together if that is asked for, else of one observation."""
        return self.posterior if self.together is None else self.together

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The observation as arrays of an npz file: x, or x_NAME for each kind of data."""
        if self.form.kinds is None:
            return {"x": self.x.numpy()}
        alone = self.x.ndim == 1  # several observations together are a single one, too
        parts = self.form.split(self.x[None] if alone else self.x)
        return {f"x_{name}": (part[0] if alone else part).numpy() for name, part in dict(parts).items()}


def task_of(name: str | None) -> Task | None:
    """The benchmark task of this name; None for None.

    Raises:
        ValueError: the task is unknown.
    """
    if name is None:
        return None
    checks.one_of("task", name, tasks.names())
    return tasks.get(name)


def tasks_of(names: str) -> list[Task]:
    """The benchmark tasks of a list such as "slcp,two_moons", or "all".

    Raises:
        ValueError: a task is unknown.
    """
    listed = tasks.names() if names == "all" else [name.strip() for name in names.split(",")]
    return [task for name in dict.fromkeys(listed) if (task := task_of(name)) is not None]


def settings_of(
    changes: dict[str, Any] | None,
    simulations: int,
    dim: int,
    x_shape: tuple[int, ...],
    absent: Kind | None = None,
    embedding: Summary | None = None,
) -> Settings | None:
    """The settings of the rule with some changes; None without changes.

    Args:
        changes: fields of `Settings` in their YAML form; a class is given by its name or as {"class_path": …, …}.
        simulations: the number of simulations.
        dim: the number of parameters.
        x_shape: shape of one observation.
        absent: what NaN in the data mark, as for `Settings.of`.
        embedding: the user's network that summarises an observation, as for `Settings.of`.

    Raises:
        ArgumentError: a name is not known, or a value has the wrong type.
        ValueError: a value is out of its range.
    """
    if changes is None:
        return None
    rule = to_plain(Settings.of(simulations, dim, x_shape, absent, embedding))
    return build(Settings, "settings", overlay(Settings, rule, changes))


def simulations_of(path: str, num: int | None = None) -> Simulations:
    """The simulations of a store, or of an npz file with the arrays theta and x, or x_NAME for each kind of data.

    Args:
        path: the folder or file.
        num: the number of simulations, the first ones; None for all.

    Raises:
        ValueError: there are no simulations, or fewer than `num`.
    """
    checks.at_least("num", 1 if num is None else num, 1)
    folder = Path(path)
    if folder.is_dir() and not (folder / "manifest.json").is_file():
        raise ValueError(
            f"simulations: the folder {path} holds none: give a store that `openedm inference simulate` wrote, or an "
            "npz file"
        )
    try:
        found = Store(path).load() if folder.is_dir() else _simulations_in_file(path)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith("simulations") else f"simulations: {text}") from error
    if num is None:
        return found
    if len(found) < num:
        raise ValueError(f"simulations: {path} must have num={num} results, got {len(found)}")
    return found.first(num)


def _simulations_in_file(path: str) -> Simulations:
    if Path(path).suffix not in ("", ".npy", ".npz") and Path(path).is_file():
        raise ValueError(f"simulations must be a store, or an .npz file of the arrays theta and x, got {path!r}")
    arrays = arrays_of("simulations", path)
    kinds = {name.removeprefix("x_"): array for name, array in arrays.items() if name.startswith("x_")}
    missing = [name for name in ("theta", "x") if name not in arrays and not (name == "x" and kinds)]
    if missing:
        raise ValueError(f"{path} must hold the arrays theta and x, {missing} missing (or x_NAME for each kind of x)")
    if "x" in arrays and kinds:
        raise ValueError(f"{path} must hold either x or {', '.join(f'x_{name}' for name in kinds)}, got both")
    found = {name: array for name, array in arrays.items() if name in ("theta", "x") or name.startswith("x_")}
    counts = {name: len(array) if array.ndim else 0 for name, array in found.items()}
    if len(set(counts.values())) > 1 or not min(counts.values()):
        listed = ", ".join(f"{name} {tuple(found[name].shape)}" for name in found)
        raise ValueError(f"{path} must hold one row a simulation in each array, got {listed}")
    return Simulations.of(found["theta"], kinds or found["x"])


def form_of(posterior: DenoiserPosterior) -> Form:
    """The form of an observation of a posterior: its shape, and the kinds of data where there are several."""
    joined = getattr(posterior.parts.model and posterior.parts.model.network, "summary", None)
    kinds = tuple(zip(joined.names, joined.shapes, strict=True)) if isinstance(joined, JoinedSummary) else None
    return Form(posterior.x_shape, kinds)


def usable(posterior: DenoiserPosterior, simulations: Simulations) -> Simulations:
    """Those of the simulations that the posterior takes: without NaN that mark nothing absent, or infinities.

    Raises:
        ValueError: the simulations have other parameters or data than the posterior, or it takes fewer than 20.
    """
    form = form_of(posterior)
    if simulations.kinds is not None:
        if form.kinds is None or dict(form.kinds) != dict(simulations.kinds):
            raise ValueError(f"simulations must have x of shape {form}, as the posterior, got {simulations.form}")
        flat = as_tensor("x", posterior.flat(simulations.data))
        simulations = replace(simulations, x=flat, kinds=form.kinds)
    sizes = simulations.theta.shape[1], tuple(simulations.x.shape[1:])
    if sizes != (posterior.dim, posterior.x_shape):
        raise ValueError(
            f"simulations must have {posterior.dim} parameters and x of shape {form}, as the posterior, got {sizes[0]} "
            f"and {simulations.form}"
        )
    kept = simulations.theta.isfinite().all(1) & posterior.accepts(simulations.x)
    if int(kept.sum()) < FEWEST_TESTED:
        raise ValueError(
            f"simulations must be at least {FEWEST_TESTED} that the posterior takes, got {int(kept.sum())} of "
            f"{len(simulations)}"
        )
    rows = {name: getattr(simulations, name)[kept] for name in ("theta", "x", "index", "seeds")}
    return replace(simulations, **rows)


def load_posterior(path: str, device: str, options: PosteriorOptions) -> DenoiserPosterior:
    """The posterior of a folder, on a device and with these options.

    Raises:
        ValueError: the posterior cannot be read, there is no such device, or the options do not suit it.
    """
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        known = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise ValueError(f"device must be one of this machine ({', '.join(known)}), got {device!r}") from error
    if (kind := holding(Path(path))) not in (None, KINDS["openedm-posterior"]):
        raise ValueError(f"posterior: {path} holds {kind}: give the folder that openedm inference fit wrote")
    try:
        loaded = DenoiserPosterior.load(path, found)
    except ValueError as error:
        raise ValueError(f"posterior: {error}") from error
    return options.applied(loaded)


def load_observed(
    posterior: str,
    x: str | None,
    device: str,
    options: PosteriorOptions = PosteriorOptions(),
    *,
    single: str | None = None,
    together: bool = False,
    theta: str | None = None,
) -> ObservedPosterior:
    """The posterior of a folder, with these options, and the observation `x`. Warns of a file of simulations as `x`.

    Args:
        posterior: the folder.
        x: numbers or a file, as `numbers_of` reads them; of several kinds of data, an npz file with an array of each.
        device: where samples are drawn.
        options: how they are drawn.
        single: what requires a single observation, for the message; None takes a batch, too.
        together: whether the rows of x are independent observations of the same parameters.
        theta: what the command reads parameters from, which may be the file of x.

    Raises:
        ValueError: the posterior or the observation cannot be read, or the observation has another shape.
    """
    loaded, repeated = load_posterior(posterior, device, options), None
    form = form_of(loaded)
    observed = numbers_of("x", x) if form.kinds is None else _kinds_of(x, loaded, form)
    if together:
        shape, one_number = tuple(observed.shape), loaded.x_shape == (1,) and observed.ndim == 1
        observed = observed[:, None] if one_number else observed
        if tuple(observed.shape[1:]) != loaded.x_shape:
            wanted = ", ".join(map(str, ("n", *loaded.x_shape)))
            raise ValueError(f"x must be several observations ({wanted}) with together, got {shape}")
        repeated = loaded.repeated(len(observed), plain=options.plain)
    rows, alone = (repeated or loaded)._observations(observed)  # an error if the shape does not fit, before any work
    if single is not None and not alone:
        raise ValueError(f"{single} requires a single observation, got x of {len(rows)}")
    if x is not None and x != theta and "theta" not in dict(form.kinds or ()) and _holds_theta(x):
        count = len(observed) if together else len(rows)
        taken = "one observation" if count == 1 else f"{count} observations"
        warnings.warn(f"x: {taken} of {x} taken, and theta of that file is not used", stacklevel=2)
    return ObservedPosterior(loaded, observed, alone, form, repeated)


def _holds_theta(x: str) -> bool:
    """Whether the observations are in a file that holds parameters, too, as one of simulations does."""
    return x.endswith(".npz") and "theta" in ArrayFile(x, "x")


def _kinds_of(text: str | None, posterior: DenoiserPosterior, form: Form) -> Tensor:
    """An observation of several kinds of data, from an npz file."""
    if text is None or not text.endswith(".npz"):
        given = "nothing" if text is None else repr(text)
        raise ValueError(f"x must be an .npz file with an array for each of {form}, got {given}")
    return as_tensor("x", posterior.flat(arrays_of("x", text)))
