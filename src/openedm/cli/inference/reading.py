"""What the inference commands read: simulators, simulations, observations, parameters."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from openedm.inference.posterior import Posterior
from openedm.inference.prior_conversion import prior_from_config
from openedm.inference.priors import Prior
from openedm.inference.store import Store
from openedm.inference.tasks import Task


class Found(NamedTuple):
    """Simulations, and what is known of their prior.

    Attributes:
        theta: (n, d).
        x: (n, *x_shape).
        prior: of theta, where a store tells it.
    """

    theta: Float[Tensor, "n d"]
    x: Float[Tensor, "n ..."]
    prior: Prior | None


class TaskSimulator:
    """A benchmark task's simulator, by the task's name: stores tell simulators apart by name.

    Args:
        task: the task.
    """

    def __init__(self, task: Task) -> None:
        self.task, self.__qualname__ = task, task.name

    def __call__(self, theta: Float[Tensor, "n d"], seed: int) -> Float[Tensor, "n ..."]:
        """One x for each θ."""
        return self.task.simulate(theta, seed)


def simulator_of(text: str) -> Callable[..., Any]:
    """The user's own function `file.py:function`. The file is imported, with its folder first on the path.

    Raises:
        ValueError: there is no such file or function, or another module has the file's name.
    """
    file, colon, name = text.rpartition(":")
    path = Path(file).resolve()
    if not colon or path.suffix != ".py":
        raise ValueError(f"simulator must be file.py:function, got {text!r}")
    if not path.is_file():
        raise ValueError(f"simulator: there is no file {file}")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # as Python does for scripts; worker processes find the module so, too
    module = importlib.import_module(path.stem)
    if Path(getattr(module, "__file__", None) or "").resolve() != path:
        raise ValueError(f"simulator: another module is called {path.stem!r}; give the file {file} another name")
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"simulator: {file} has no function {name!r}")
    return function  # type: ignore[no-any-return]


def simulations_of(path: str, num: int | None = None) -> Found:
    """The simulations of a store, or of an npz file with the arrays theta and x.

    Args:
        path: the folder or file.
        num: take the first so many alone.

    Raises:
        ValueError: there are none, or not as many.
    """
    if Path(path).is_dir():
        store = Store(path)
        simulations, manifest = store.load(), store.manifest
        known = None if manifest is None or manifest.prior is None else prior_from_config(manifest.prior)
        found = Found(simulations.theta[:num], simulations.x[:num], known)
    else:
        arrays = _arrays("simulations", path)
        if missing := {"theta", "x"} - arrays.keys():
            raise ValueError(f"simulations: {path} must hold the arrays theta and x, {sorted(missing)} missing")
        theta, x = (torch.from_numpy(arrays[name]) for name in ("theta", "x"))
        found = Found(theta[:num], x[:num], None)
    if num is not None and len(found.theta) < num:
        raise ValueError(f"simulations: {path} holds {len(found.theta)} that gave a result, but num={num}")
    return found


def numbers_of(name: str, text: str | None) -> Tensor:
    """Numbers from a file, .npy or .npz (the array of that name), or with commas between: "1.0,-2.0".

    Args:
        name: of the argument, for messages.
        text: the file or the numbers.

    Raises:
        ValueError: there is nothing, no such file, or no numbers.
    """
    if text is None:
        raise ValueError(f"{name} must be given: numbers with commas between, --{name}=-1.0,2.0, or a .npy file")
    if text.endswith((".npy", ".npz")):
        arrays = _arrays(name, text)
        if name not in arrays:
            raise ValueError(f"{name}: {text} must hold an array {name}, got {', '.join(sorted(arrays))}")
        return torch.from_numpy(arrays[name])
    try:
        return torch.tensor([float(part) for part in text.split(",")], dtype=torch.float64)
    except ValueError as error:
        raise ValueError(f"{name} must be numbers with commas between, or a .npy or .npz file, got {text!r}") from error


def observation_of(text: str | None, posterior: Posterior) -> Tensor:
    """One observation or a batch of them, of the posterior's shape.

    Raises:
        ValueError: there is none, or it has another shape.
    """
    x = numbers_of("x", text)
    posterior._observations(x)  # refuses what does not fit, before any work
    return x


def _arrays(name: str, path: str) -> dict[str, np.ndarray]:
    """The arrays of a file; a .npy file holds one, called `name`."""
    try:
        with open(path, "rb") as file:
            content = np.load(file, allow_pickle=False)
            return dict(content) if isinstance(content, np.lib.npyio.NpzFile) else {name: content}
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{name}: {path} cannot be read as .npy or .npz: {error}") from error
