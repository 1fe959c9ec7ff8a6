"""Averages of any width, from snapshots of averages of a few   (Karras et al. 2024, arXiv 2312.02696, Section 3).

The average of width σ_rel after t steps weighs the weights of step τ by p(τ) = (γ + 1) τ^γ / t^{γ+1}, τ ∈ [0, t]. Any
other profile p is nearly a linear combination Σ x_i p_i of those of the snapshots; the same combination of the
snapshots is its average. x minimises ‖Σ x_i p_i − p‖² with a small penalty, and with Σ x_i = 1, so that constant
weights are reproduced. The inner product of two profiles is, with γ' that of the later time,

    ⟨p₁, p₂⟩ = (γ₁ + 1)(γ₂ + 1)/(γ₁ + γ₂ + 1) · (min t / max t)^{γ'} / max t.

Snapshots are files RUN/averages/<images seen>-<digest>.safetensors; older versions wrote no digest.
"""

import copy
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from openedm.ground.digests import check_digest
from openedm.ground.storage import parse_json, write_tensors
from openedm.ground.tensors import all_finite, count_not_finite
from openedm.optimisation import full_tensor
from openedm.training.averaging import MovingAverage, PowerFunction, exponent
from openedm.training.checkpoints import build_described, find_checkpoint, load_weights, read_model, read_weights

__all__ = [
    "PowerAverages",
    "ProfileCombination",
    "Snapshot",
    "combine",
    "list_snapshots",
    "reachable",
    "reconstruct",
    "remove_snapshots",
]

FORMAT = "openedm-averages-1"
FOLDER = "averages"
PENALTY = 1e-9
"""The weight of the penalty for profiles of norm 1: far below the error of a combination, far above rounding."""
MAX_PROFILE_ERROR = 0.05
"""A width is reachable if ‖Σ x_i p_i − p‖/‖p‖ is at most this; averages of random walks then differ by about 1 %."""

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


class PowerAverages:
    """Power-function averages of a network's parameters while it is trained; at first equal to the parameters.

    Args:
        choice: the widths.
        network: the network that is trained.
    """

    def __init__(self, choice: PowerFunction, network: nn.Module) -> None:
        self.choice = choice
        self.networks = [copy.deepcopy(network).eval().requires_grad_(False) for _ in choice.sigma_rel]
        self._moving_averages = [MovingAverage(average, network) for average in self.networks]

    def update(self, step: int) -> None:
        """Update all averages after step number `step`, from 1: average ← β average + (1 − β) parameters."""
        for moving, width in zip(self._moving_averages, self.choice.sigma_rel, strict=True):
            moving.update(self.choice.decay(width, step))

    def save(self, run: Path, images: int, step: int, *, write: bool = True) -> None:
        """Write a snapshot of the averaged parameters, complete or not at all.

        Args:
            run: the run folder.
            images: number of images seen, with which the name of the file begins.
            step: number of steps taken.
            write: whether this process writes; if parameters are sharded, the others only send their slices.
        """
        dtype = torch.float16 if self.choice.precision == "fp16" else torch.float32
        tensors = {
            f"{i}.{name}": full_tensor(p.detach()).to("cpu", dtype).contiguous()
            for i, network in enumerate(self.networks)
            for name, p in network.named_parameters()
        }
        if not write:
            return
        header = {"step": step, "sigma_rel": self.choice.sigma_rel}
        # One entry of the header: the order of several is random.
        write_tensors(run / FOLDER / f"{images:012d}.safetensors", tensors, {FORMAT: json.dumps(header)}, digest=True)


@dataclass(frozen=True)
class Snapshot:
    """The description of a file of averages, from its header.

    Attributes:
        path: the file.
        images: number of images seen.
        step: number of steps taken.
        sigma_rel: the widths of the averages.
    """

    path: Path
    images: int
    step: int
    sigma_rel: tuple[float, ...]


def list_snapshots(run: str | Path) -> list[Snapshot]:
    """The snapshots of a run, oldest first.

    Raises:
        ValueError: a file is damaged or of another format.
    """
    folder = Path(run) / FOLDER
    found = [_read_snapshot(path, images) for images, path in _files(folder)]
    return [snapshot for snapshot in found if snapshot.step > 0]  # a snapshot before the first step has no average


def remove_snapshots(run: Path, after: int) -> None:
    """Delete the snapshots after `after` images seen: a run that resumes there writes them again."""
    for images, path in _files(run / FOLDER):
        if images > after:
            path.unlink()


def _files(folder: Path) -> list[tuple[int, Path]]:
    """The number of images seen and the file of each snapshot, in order."""
    numbers = [(path.stem.partition("-")[0], path) for path in folder.glob("*.safetensors")]
    return sorted((int(number), path) for number, path in numbers if number.isdecimal())


def _read_snapshot(path: Path, images: int) -> Snapshot:
    try:
        with safe_open(path, framework="pt") as file:
            header = parse_json((file.metadata() or {})[FORMAT], FORMAT)
        widths = tuple(float(width) for width in header["sigma_rel"])
        return Snapshot(path, images, int(header["step"]), widths)
    except (OSError, KeyError, OverflowError, TypeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{path} is not a snapshot of averages: {error!r}") from error


@dataclass(frozen=True)
class ProfileCombination:
    """A profile as a linear combination of the profiles of snapshots.

    Attributes:
        weights: x, one row for each snapshot, with one number for each of its widths.
        error: ‖Σ x_i p_i − p‖/‖p‖.
    """

    weights: tuple[tuple[float, ...], ...]
    error: float


def combine(snapshots: list[Snapshot], sigma_rel: float, step: float) -> ProfileCombination:
    """The combination of snapshots that is closest to the average of width `sigma_rel` after `step` steps.

    Args:
        snapshots: the snapshots, at least one.
        sigma_rel: the width, above 0 and at most 0.288.
        step: the number of steps at which the average ends, > 0.

    Raises:
        ValueError: `sigma_rel` is out of its range.
    """
    gammas = np.array([exponent(width) for s in snapshots for width in s.sigma_rel])
    times = np.array([float(s.step) for s in snapshots for _ in s.sigma_rel])
    gamma, end = np.array([exponent(sigma_rel)]), np.array([float(step)])
    gram, target = _inner(gammas[:, None], times[:, None], gammas, times), _inner(gammas, times, gamma, end)
    scale = 1 / np.sqrt(np.diagonal(gram))
    # The conditions of the minimum, with a multiplier for Σ x_i = 1; the unknowns are x_i / `scale`.
    system = np.zeros((len(scale) + 1, len(scale) + 1))
    system[:-1, :-1] = gram * scale[:, None] * scale + PENALTY * np.eye(len(scale))
    system[-1, :-1] = system[:-1, -1] = scale
    x = np.linalg.solve(system, np.append(target * scale, 1.0))[:-1] * scale
    size = float(_inner(gamma, end, gamma, end)[0])
    error = math.sqrt(max(float(x @ gram @ x - 2 * x @ target) + size, 0.0) / size)
    rows = iter(x.tolist())
    return ProfileCombination(tuple(tuple(next(rows) for _ in s.sigma_rel) for s in snapshots), error)


def _inner(gamma_1: Array, t_1: Array, gamma_2: Array, t_2: Array) -> Array:
    early, late = np.minimum(t_1, t_2), np.maximum(t_1, t_2)
    later = np.where(t_1 >= t_2, gamma_1, gamma_2)
    product: Array = (gamma_1 + 1) * (gamma_2 + 1) / (gamma_1 + gamma_2 + 1) * (early / late) ** later / late
    return product


def reachable(snapshots: list[Snapshot], step: float) -> tuple[float, float] | None:
    """The smallest and the largest σ_rel, in steps of 0.005, whose profile the snapshots reproduce, or None."""
    widths = [i / 200 for i in range(1, 58)]
    reached = [width for width in widths if combine(snapshots, width, step).error <= MAX_PROFILE_ERROR]
    return (reached[0], reached[-1]) if reached else None


def reconstruct(run: str | Path, sigma_rel: float, images: int | None = None) -> dict[str, Tensor]:
    """The weights of a run's network averaged with width `sigma_rel`; buffers are those of its newest checkpoint.

    Args:
        run: a run that was trained with `power_average`.
        sigma_rel: the standard deviation of the profile, relative to the length of training.
        images: the images seen at the snapshot at which the average ends; None means the last one.

    Raises:
        ValueError: there are no snapshots or checkpoints, there is no snapshot at `images`, or the width cannot be
            rebuilt from them; the message lists the snapshots and the widths that can.
    """
    snapshots = list_snapshots(run)
    if not snapshots:
        raise ValueError(f"{run} has no snapshots of averages: train with options.power_average")
    exponent(sigma_rel)
    step = _step_at(snapshots, images)
    found = combine(snapshots, sigma_rel, step)
    if not found.error <= MAX_PROFILE_ERROR:
        reached = reachable(snapshots, step)
        within = f"between {reached[0]:.3f} and {reached[1]:.3f}" if reached else "none"
        raise ValueError(
            f"sigma_rel={sigma_rel} cannot be rebuilt at {snapshots[-1].images if images is None else images} images: "
            f"possible widths: {within}, with {_format_snapshots(snapshots)}"
        )
    return _combine_weights(Path(run), snapshots, found)


def _step_at(snapshots: list[Snapshot], images: int | None) -> int:
    """The number of steps at `images` images seen; a combination can only end at a snapshot, as its profiles do."""
    steps = {s.images: s.step for s in snapshots}
    if images is not None and images not in steps:
        raise ValueError(f"images must be that of a snapshot, got {images}; found {_format_snapshots(snapshots)}")
    return snapshots[-1].step if images is None else steps[images]


def _format_snapshots(snapshots: list[Snapshot]) -> str:
    widths = sorted({width for s in snapshots for width in s.sigma_rel})
    counts = [f"{s.images:,}" for s in snapshots]
    shown = ", ".join(counts if len(counts) <= 8 else [*counts[:3], "…", *counts[-3:]])
    return f"{len(snapshots)} snapshots of sigma_rel {', '.join(map(str, widths))} at {shown} images"


def _combine_weights(run: Path, snapshots: list[Snapshot], found: ProfileCombination) -> dict[str, Tensor]:
    """Σ x_i snapshot_i, computed in float64 one file after the other, in the dtypes of the network."""
    folder = find_checkpoint(run)
    weights_now = read_weights(folder)
    network = build_described(read_model(folder), weights_now, folder).network
    load_weights(network, weights_now, folder)
    totals = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in network.named_parameters()}
    for snapshot, weights in zip(snapshots, found.weights, strict=True):
        check_digest(snapshot.path)
        try:
            with safe_open(snapshot.path, framework="pt") as file:
                for i, weight in enumerate(weights):
                    for name, total in totals.items():
                        total.add_(_average(file.get_tensor(f"{i}.{name}"), f"{i}.{name}"), alpha=weight)
        except (OSError, RuntimeError, SafetensorError, ValueError) as error:
            raise ValueError(f"{snapshot.path} does not hold the averages of this run's network: {error}") from error
    state = network.state_dict()
    return state | {name: total.to(state[name].dtype) for name, total in totals.items()}


def _average(tensor: Tensor, name: str) -> Tensor:
    """The averaged parameter of this name in float64.

    Raises:
        ValueError: it does not hold finite floating-point numbers.
    """
    if not tensor.is_floating_point():
        raise ValueError(f"{name} holds {tensor.dtype} instead of floating-point numbers")
    if not all_finite(tensor):
        raise ValueError(f"{name} holds {count_not_finite(tensor)}")
    return tensor.double()
