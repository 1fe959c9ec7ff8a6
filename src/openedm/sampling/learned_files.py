"""Learned solvers in files, with what tells for which denoiser they are.

A file is JSON: the sampler, its errors and a print of the denoiser, D at a few noisy samples of fixed seeds. A denoiser
whose print differs is another one: other weights, another guidance, a network beside the one that was meant. Rounding,
devices and mixed precision change the print by less than what is allowed.
"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openedm.denoiser import Condition, Denoiser
from openedm.ground.choices import from_config, to_config
from openedm.ground.devices import device_of, float64_on
from openedm.ground.storage import read_json, write_json
from openedm.sampling.learning import SolverFit
from openedm.sampling.methods.learned import LearnedSolver
from openedm.sampling.noise import SeededNoise
from openedm.sampling.sampler import Sampler

__all__ = ["load_solver", "save_solver", "solver_content"]

VERSION = 1
SEEDS = range(2**31 - 2, 2**31)
MAX_NUMBERS = 64
"""The numbers of a print, for each level."""
TOLERANCE = 0.02
"""The largest relative difference between prints of one denoiser: mixed precision keeps two or three digits."""


def save_solver(
    path: str | os.PathLike[str],
    fit: SolverFit,
    denoiser: Denoiser,
    *,
    condition: Condition = None,
    event_shape: tuple[int, ...] | None = None,
) -> None:
    """Write a learned solver to a JSON file.

    Args:
        path: the file, which is replaced if there is one.
        fit: the result of `fit_solver`.
        denoiser: the denoiser that it was fitted to.
        condition: any rows of its condition, of which the first is kept to recognise the denoiser; None for a denoiser
            without condition.
        event_shape: the shape of one sample; required if the denoiser has no `event_shape`.

    Raises:
        ValueError: no solver was learned, or the event_shape is missing.
    """
    write_json(Path(path), solver_content(fit, denoiser, condition, event_shape))


def solver_content(
    fit: SolverFit, denoiser: Denoiser, condition: Condition = None, event_shape: tuple[int, ...] | None = None
) -> dict[str, Any]:
    """What `save_solver` writes; arguments as there."""
    if not fit.learned:
        raise ValueError("fit must have a LearnedSolver, but fitted levels alone were better: use fit.sampler directly")
    shape = denoiser.event_shape if event_shape is None else tuple(event_shape)
    if shape is None:
        raise ValueError("event_shape must be given for a denoiser without event_shape, got None")
    row = None if condition is None else condition[:1]
    return {
        "learned": to_config(fit.sampler),
        "version": VERSION,
        "error": fit.error,
        "error_before": fit.error_before,
        "largest": fit.largest,
        "largest_before": fit.largest_before,
        "event_shape": list(shape),
        "condition": None if row is None else row.tolist(),
        "print": _print(denoiser, fit.sampler, row, shape),
    }


def load_solver(
    path: str | os.PathLike[str],
    denoiser: Denoiser,
    *,
    nfe: int | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Sampler:
    """Read a learned solver, for the denoiser that it was fitted to.

    Args:
        path: a file of `save_solver`, or one that `openedm sample --levels learned` keeps beside the checkpoint.
        denoiser: the denoiser that will be sampled.
        nfe: the number of evaluations that is expected; None for any.
        sigma_min: the lowest noise level that is expected; None for any.
        sigma_max: the highest noise level that is expected; None for any.

    Raises:
        ValueError: the file holds no learned solver, or that of another version; or the solver is for another denoiser,
            number of evaluations or range of noise levels.
    """
    content = read_json(Path(path))
    try:
        sampler = from_config(Sampler, content["learned"])
        version, shape, expected = content["version"], tuple(content["event_shape"]), content["print"]
        row = None if content["condition"] is None else torch.tensor(content["condition"])
        stored = torch.tensor(expected, dtype=torch.float64)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold a learned solver of save_solver: {error!r}") from error
    if not isinstance(sampler.solver, LearnedSolver):
        raise ValueError(f"{path} does not hold a LearnedSolver, got {type(sampler.solver).__name__}")
    if version != VERSION:
        raise ValueError(f"{path} must be of version {VERSION}, got version {version}: learn the solver again")
    _check_numbers(path, sampler, nfe, sigma_min, sigma_max)
    if denoiser.event_shape is not None and tuple(denoiser.event_shape) != shape:
        raise ValueError(
            f"denoiser must be that which {path} was learned for, of samples {shape}, got {tuple(denoiser.event_shape)}"
        )
    sampler.check(denoiser)
    found = torch.tensor(_print(denoiser, sampler, row, shape), dtype=torch.float64)
    difference = float((found - stored).square().mean().sqrt() / stored.square().mean().sqrt().clamp(min=1e-300))
    if not difference <= TOLERANCE:
        raise ValueError(
            f"denoiser must be that which {path} was learned for, but what it returns differs by {difference:.0%}: "
            "other weights, guidance or units; learn a solver for it with fit_solver, or --levels learned"
        )
    return sampler


def _check_numbers(
    path: str | os.PathLike[str],
    sampler: Sampler,
    nfe: int | None,
    sigma_min: float | None,
    sigma_max: float | None,
) -> None:
    solver = sampler.solver
    assert isinstance(solver, LearnedSolver)
    if nfe is not None and nfe != len(solver.sigmas):
        raise ValueError(
            f"nfe must be {len(solver.sigmas)}, the number of evaluations that {path} was learned for, got {nfe}"
        )
    if sigma_min is not None and solver.sigmas[-1] < sigma_min * (1 - 1e-6):
        raise ValueError(
            f"sigma_min must be at most {solver.sigmas[-1]:g}, the lowest noise level that {path} was learned for, got "
            f"{sigma_min:g}"
        )
    if sigma_max is not None and abs(solver.sigma_max / sigma_max - 1) > 1e-6:
        raise ValueError(
            f"sigma_max must be {solver.sigma_max:g}, the highest noise level that {path} was learned for, got "
            f"{sigma_max:g}"
        )


@torch.no_grad()
def _print(denoiser: Denoiser, sampler: Sampler, condition: Condition, shape: tuple[int, ...]) -> list[list[float]]:
    """D at two noisy samples at each level, in standard units of the noise; the first numbers of each."""
    solver = sampler.solver
    assert isinstance(solver, LearnedSolver)
    device = device_of(denoiser, None)
    noise: Tensor = SeededNoise(SEEDS).draw(shape).to(device, float64_on(device))
    rows = None
    if condition is not None:
        single = denoiser.condition_shape is not None
        rows = condition.to(device) if single else condition.to(device).expand(len(noise), *condition.shape[1:])
    mean = denoiser.mean(solver.sigma_max, rows, shape)
    found = []
    for sigma in solver.sigmas:
        x = denoiser.restore(sigma * noise) - denoiser.restore(torch.zeros_like(noise))
        x = x if mean is None else mean + x
        found.append(denoiser(x, sigma, rows).flatten()[:MAX_NUMBERS].double().tolist())
    return found
