"""The ten benchmark tasks of sbibm (Lueckmann et al. 2021), with their priors, simulators and likelihoods.

>>> from openedm.inference import tasks
>>> task = tasks.get("two_moons")
>>> task.simulate(task.prior.sample(3, seed=1), seed=2).shape
torch.Size([3, 2])
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from openedm.ground import checks
from openedm.inference.tasks.dynamics import SIR, LotkaVolterra
from openedm.inference.tasks.explicit import (
    SLCP,
    BernoulliGLM,
    BernoulliGLMRaw,
    GaussianLinear,
    GaussianLinearUniform,
    GaussianMixture,
    SLCPDistractors,
    TwoMoons,
)
from openedm.inference.tasks.task import Task

__all__ = [
    "SIR",
    "SLCP",
    "BernoulliGLM",
    "BernoulliGLMRaw",
    "GaussianLinear",
    "GaussianLinearUniform",
    "GaussianMixture",
    "LotkaVolterra",
    "Observations",
    "SLCPDistractors",
    "Task",
    "TwoMoons",
    "get",
    "names",
    "observations",
]

_ALL: tuple[type[Task], ...] = (
    *(TwoMoons, SLCP, SLCPDistractors, GaussianLinear, GaussianLinearUniform, GaussianMixture),
    *(BernoulliGLM, BernoulliGLMRaw, SIR, LotkaVolterra),
)
_TASKS = {task.name: task for task in _ALL}


class Observations(NamedTuple):
    """Observations of a task, with samples of their posteriors.

    Attributes:
        x: (k, dx).
        theta: (k, d), the parameters that made them.
        reference: (k, 10000, d), samples of p(θ|x).
    """

    x: Float32[Tensor, "k dx"]
    theta: Float32[Tensor, "k d"]
    reference: Float32[Tensor, "k n d"]


def names() -> tuple[str, ...]:
    """The names of the tasks."""
    return tuple(_TASKS)


def get(name: str) -> Task:
    """The task with that name.

    Raises:
        ValueError: there is no such task.
    """
    checks.one_of("name", name, _TASKS)
    return _TASKS[name]()


def observations(name: str, folder: str | Path) -> Observations:
    """The observations of a task and samples of their posteriors, from `<folder>/<name>.npz`.

    Args:
        name: of the task.
        folder: with files of the arrays `observations`, `true_parameters` and `reference_samples`.

    Raises:
        ValueError: there is no such task, or the arrays are missing or of other shapes.
        FileNotFoundError: there is no such file.
    """
    task = get(name)
    path = Path(folder) / f"{name}.npz"
    if not path.is_file():
        raise FileNotFoundError(f"folder must hold {name}.npz, got {folder}")
    with np.load(path, allow_pickle=False) as file:
        if missing := {"observations", "true_parameters", "reference_samples"} - set(file.files):
            raise ValueError(f"{path.name} must hold {', '.join(sorted(missing))}, got {', '.join(file.files)}")
        x, theta, reference = (
            torch.from_numpy(file[key]).float() for key in ("observations", "true_parameters", "reference_samples")
        )
    k = len(x)
    found = tuple(x.shape), tuple(theta.shape), tuple(reference.shape)
    if (*found[:2], (*found[2][:1], *found[2][2:])) != ((k, *task.x_shape), (k, task.dim), (k, task.dim)):
        raise ValueError(
            f"{path.name} must hold observations (k, {task.x_shape[0]}), true_parameters (k, {task.dim}) and "
            f"reference_samples (k, n, {task.dim}), got {found[0]}, {found[1]}, {found[2]}"
        )
    return Observations(x, theta, reference)
