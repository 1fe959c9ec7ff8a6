"""Arguments of the inference commands: tasks, settings, simulations, posteriors."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from openedm.cli.arguments import arrays_of, numbers_of
from openedm.cli.parsing import build
from openedm.cli.plain import overlay, to_plain
from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.inference import tasks
from openedm.inference.absent import Kind
from openedm.inference.settings import Settings
from openedm.inference.simulations import Simulations, Store
from openedm.inference.tasks import Task
from openedm.inference.trained import SAMPLER, DenoiserPosterior
from openedm.networks import Summary
from openedm.sampling import Sampler, SamplerChoice


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
        x: one observation, or a batch of them.
        single: whether it is a single observation.
    """

    posterior: DenoiserPosterior
    x: Tensor
    single: bool


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
    """The simulations of a store, or of an npz file with the arrays theta and x.

    Args:
        path: the folder or file.
        num: the number of simulations, the first ones; None for all.

    Raises:
        ValueError: there are no simulations, or fewer than `num`.
    """
    if Path(path).is_dir():
        found = Store(path).load()
    else:
        arrays = arrays_of("simulations", path)
        if missing := {"theta", "x"} - arrays.keys():
            raise ValueError(f"simulations: {path} must hold the arrays theta and x, {sorted(missing)} missing")
        found = Simulations.of(torch.from_numpy(arrays["theta"]), torch.from_numpy(arrays["x"]))
    if num is None:
        return found
    if len(found) < num:
        raise ValueError(f"simulations: {path} must have num={num} results, got {len(found)}")
    return Simulations.of(found.theta[:num], found.x[:num], found.prior)


def load_observed(
    posterior: str, x: str | None, device: str, options: PosteriorOptions = PosteriorOptions()
) -> ObservedPosterior:
    """The posterior of a folder, with these options, and the observation `x`.

    Raises:
        ValueError: the posterior or the observation cannot be read, or the observation has another shape.
    """
    loaded = options.applied(DenoiserPosterior.load(posterior, device))
    observed = numbers_of("x", x)
    _, single = loaded._observations(observed)  # an error if the shape does not fit, before any work
    return ObservedPosterior(loaded, observed, single)
