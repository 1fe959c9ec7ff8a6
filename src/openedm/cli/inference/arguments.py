"""What the inference commands make of their arguments: tasks, settings, simulations, posteriors."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from openedm.cli.arguments import arrays_of, numbers_of
from openedm.cli.parsing import build, overlay, to_plain
from openedm.ground import checks
from openedm.inference import tasks
from openedm.inference.settings import Settings
from openedm.inference.simulations import Simulations, Store
from openedm.inference.tasks import Task
from openedm.inference.trained import DenoiserPosterior


class Given(NamedTuple):
    """A posterior and the observation that it is given.

    Attributes:
        posterior: on its device, without refinement where that is left out.
        x: one observation, or a batch of them.
        single: whether it is one.
    """

    posterior: DenoiserPosterior
    x: Tensor
    single: bool


def task_of(name: str | None) -> Task | None:
    """The benchmark task, or None where none is named.

    Raises:
        ValueError: there is no such task.
    """
    if name is None:
        return None
    checks.one_of("task", name, tasks.names())
    return tasks.get(name)


def tasks_of(names: str) -> list[Task]:
    """The benchmark tasks of a list such as "slcp,two_moons", or "all".

    Raises:
        ValueError: there is no such task.
    """
    listed = tasks.names() if names == "all" else [name.strip() for name in names.split(",")]
    return [task for name in dict.fromkeys(listed) if (task := task_of(name)) is not None]


def settings_of(
    changes: dict[str, Any] | None, simulations: int, dim: int, x_shape: tuple[int, ...]
) -> Settings | None:
    """The rule's settings with some changed; None without changes.

    Args:
        changes: fields of `Settings` as YAML holds them; a field that is another class as its name or as
            {"class_path": …, …}.
        simulations: the number of simulations.
        dim: the number of parameters.
        x_shape: shape of one observation.

    Raises:
        ArgumentError: a name is not known, or a value has the wrong type.
        ValueError: a value is out of its range.
    """
    if changes is None:
        return None
    rule = to_plain(Settings.of(simulations, dim, x_shape))
    return build(Settings, "settings", overlay(Settings, rule, changes))


def simulations_of(path: str, num: int | None = None) -> Simulations:
    """The simulations of a store, or of an npz file with the arrays theta and x.

    Args:
        path: the folder or file.
        num: take the first so many alone.

    Raises:
        ValueError: there are none, or not as many.
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
        raise ValueError(f"simulations: {path} holds {len(found)} that gave a result, but num={num}")
    return Simulations.of(found.theta[:num], found.x[:num], found.prior)


def load_given(posterior: str, x: str | None, device: str, *, plain: bool) -> Given:
    """The posterior of a folder and the observation that is written in `x`.

    Raises:
        ValueError: there is no such posterior or observation, or the observation has another shape.
    """
    loaded = DenoiserPosterior.load(posterior, device)
    observed = numbers_of("x", x)
    loaded._observations(observed)  # refuses what does not fit, before any work
    return Given(loaded.plain() if plain else loaded, observed, tuple(observed.shape) == loaded.x_shape)
