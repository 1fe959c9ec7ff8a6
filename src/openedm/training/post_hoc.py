"""Averages of any width after training, from snapshots of a few   (Karras et al. 2024, arXiv 2312.02696, Section 3).

The average of width σ_rel after t steps weighs the weights of step τ by p(τ) = (γ + 1) τ^γ / t^{γ+1}, τ ∈ [0, t]. Any
other profile p is nearly a linear combination Σ x_i p_i of those of the snapshots; the same combination of the
snapshots is its average. x minimises ‖Σ x_i p_i − p‖² with a small penalty, and with Σ x_i = 1, so that weights that
never moved come out as they are. Of two profiles the inner product is, with γ' that of the later time,

    ⟨p₁, p₂⟩ = (γ₁ + 1)(γ₂ + 1)/(γ₁ + γ₂ + 1) · (min t / max t)^{γ'} / max t.

Snapshots are files RUN/averages/<images seen>.safetensors.
"""

import copy
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from openedm.ground.storage import replacing
from openedm.optimisation import full_tensor
from openedm.training.averaging import MovingAverage, PowerFunction, exponent
from openedm.training.checkpoints import find_checkpoint, load_weights, read_model, read_weights

__all__ = [
    "Combination",
    "PowerAverages",
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
"""On x, for snapshots scaled to profiles of norm 1: far below what the profiles miss, far above float64's rounding."""
REACHABLE = 0.05
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
        self._moving = [MovingAverage(average, network) for average in self.networks]

    def update(self, step: int) -> None:
        """Update all averages after step number `step`, from 1: average ← β average + (1 − β) parameters."""
        for moving, width in zip(self._moving, self.choice.sigma_rel, strict=True):
            moving.update(self.choice.decay(width, step))

    def save(self, run: Path, images: int, step: int, *, write: bool = True) -> None:
        """Write a snapshot of the averaged parameters, complete or not at all.

        Args:
            run: the run folder.
            images: images seen, which name it.
            step: the steps taken.
            write: whether this process writes; where parameters are sharded, the others only send their slices.
        """
        path = run / FOLDER / f"{images:012d}.safetensors"
        dtype = torch.float16 if self.choice.precision == "fp16" else torch.float32
        tensors = {
            f"{i}.{name}": full_tensor(p.detach()).to("cpu", dtype).contiguous()
            for i, network in enumerate(self.networks)
            for name, p in network.named_parameters()
        }
        if not write:
            return
        about = {"step": step, "sigma_rel": self.choice.sigma_rel}
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            save_file(tensors, temporary, {FORMAT: json.dumps(about)})  # one entry: the order of more is random


@dataclass(frozen=True)
class Snapshot:
    """A file of averages, as its header describes it.

    Attributes:
        path: the file.
        images: images seen.
        step: steps taken.
        sigma_rel: the widths that it holds.
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
    found = [_read_snapshot(path) for path in sorted(folder.glob("*.safetensors")) if path.stem.isdigit()]
    return [snapshot for snapshot in found if snapshot.step > 0]  # before any step there is nothing to average


def remove_snapshots(run: Path, after: int) -> None:
    """Delete snapshots beyond `after` images seen: a run that resumes there writes them again."""
    for path in (run / FOLDER).glob("*.safetensors"):
        if path.stem.isdigit() and int(path.stem) > after:
            path.unlink()


def _read_snapshot(path: Path) -> Snapshot:
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[FORMAT])
        widths = tuple(float(width) for width in about["sigma_rel"])
        return Snapshot(path, int(path.stem), int(about["step"]), widths)
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{path} is not a snapshot of averages: {error!r}") from error


@dataclass(frozen=True)
class Combination:
    """A profile as a linear combination of those of snapshots.

    Attributes:
        weights: x, one row for each snapshot, with one number for each of its widths.
        error: ‖Σ x_i p_i − p‖/‖p‖.
    """

    weights: tuple[tuple[float, ...], ...]
    error: float


def combine(snapshots: list[Snapshot], sigma_rel: float, step: float) -> Combination:
    """The combination of snapshots that is nearest to the average of width `sigma_rel` after `step` steps.

    Args:
        snapshots: at least one.
        sigma_rel: the width, above 0 and at most 0.288.
        step: of the average, > 0.

    Raises:
        ValueError: `sigma_rel` is out of its range.
    """
    gammas = np.array([exponent(width) for s in snapshots for width in s.sigma_rel])
    times = np.array([float(s.step) for s in snapshots for _ in s.sigma_rel])
    gamma, end = np.array([exponent(sigma_rel)]), np.array([float(step)])
    gram, aim = _inner(gammas[:, None], times[:, None], gammas, times), _inner(gammas, times, gamma, end)
    scale = 1 / np.sqrt(np.diagonal(gram))
    # The conditions of the minimum, with a multiplier for Σ x_i = 1; unknown are the x_i over `scale`.
    system = np.zeros((len(scale) + 1, len(scale) + 1))
    system[:-1, :-1] = gram * scale[:, None] * scale + PENALTY * np.eye(len(scale))
    system[-1, :-1] = system[:-1, -1] = scale
    x = np.linalg.solve(system, np.append(aim * scale, 1.0))[:-1] * scale
    size = float(_inner(gamma, end, gamma, end)[0])
    error = math.sqrt(max(float(x @ gram @ x - 2 * x @ aim) + size, 0.0) / size)
    rows = iter(x.tolist())
    return Combination(tuple(tuple(next(rows) for _ in s.sigma_rel) for s in snapshots), error)


def _inner(gamma_1: Array, t_1: Array, gamma_2: Array, t_2: Array) -> Array:
    early, late = np.minimum(t_1, t_2), np.maximum(t_1, t_2)
    later = np.where(t_1 >= t_2, gamma_1, gamma_2)
    product: Array = (gamma_1 + 1) * (gamma_2 + 1) / (gamma_1 + gamma_2 + 1) * (early / late) ** later / late
    return product


def reachable(snapshots: list[Snapshot], step: float) -> tuple[float, float] | None:
    """The smallest and the largest σ_rel, in steps of 0.005, whose profile the snapshots reproduce; None if none."""
    widths = [i / 200 for i in range(1, 58)]
    reached = [width for width in widths if combine(snapshots, width, step).error <= REACHABLE]
    return (reached[0], reached[-1]) if reached else None


def reconstruct(run: str | Path, sigma_rel: float, images: int | None = None) -> dict[str, Tensor]:
    """The weights of a run's network averaged with width `sigma_rel`; buffers are those of its newest checkpoint.

    Args:
        run: a run that was trained with `power_average`.
        sigma_rel: the standard deviation of the profile, relative to the length of training.
        images: the images seen at the snapshot at which the average ends; None means the last one.

    Raises:
        ValueError: there are no snapshots or checkpoints, none has seen `images` images, or the width cannot be rebuilt
            from them; lists the snapshots and the widths that can.
    """
    snapshots = list_snapshots(run)
    if not snapshots:
        raise ValueError(f"{run} holds no snapshots of averages: train with options.power_average")
    exponent(sigma_rel)
    step = _step_at(snapshots, images)
    found = combine(snapshots, sigma_rel, step)
    if not found.error <= REACHABLE:
        reached = reachable(snapshots, step)
        within = f"between {reached[0]:.3f} and {reached[1]:.3f}" if reached else "none"
        raise ValueError(
            f"sigma_rel={sigma_rel} cannot be rebuilt at {snapshots[-1].images if images is None else images} images: "
            f"reachable is {within}, with {_listed(snapshots)}"
        )
    return _combined(Path(run), snapshots, found)


def _step_at(snapshots: list[Snapshot], images: int | None) -> int:
    """The steps taken at `images` images seen. Only at a snapshot does a combination end as abruptly as a profile."""
    steps = {s.images: s.step for s in snapshots}
    if images is not None and images not in steps:
        raise ValueError(f"images must be those of a snapshot, got {images}: there are {_listed(snapshots)}")
    return snapshots[-1].step if images is None else steps[images]


def _listed(snapshots: list[Snapshot]) -> str:
    widths = sorted({width for s in snapshots for width in s.sigma_rel})
    at = [f"{s.images:,}" for s in snapshots]
    shown = ", ".join(at if len(at) <= 8 else [*at[:3], "…", *at[-3:]])
    return f"{len(snapshots)} snapshots of sigma_rel {', '.join(map(str, widths))} at {shown} images"


def _combined(run: Path, snapshots: list[Snapshot], found: Combination) -> dict[str, Tensor]:
    """Σ x_i snapshot_i in float64, one file after the other, in the dtypes of the network."""
    folder = find_checkpoint(run)
    network = read_model(folder).build().network
    load_weights(network, read_weights(folder), folder)
    totals = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in network.named_parameters()}
    for snapshot, weights in zip(snapshots, found.weights, strict=True):
        try:
            with safe_open(snapshot.path, framework="pt") as file:
                for i, weight in enumerate(weights):
                    for name, total in totals.items():
                        total.add_(file.get_tensor(f"{i}.{name}").double(), alpha=weight)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"{snapshot.path} does not hold the averages of this run's network: {error}") from error
    state = network.state_dict()
    return state | {name: total.to(state[name].dtype) for name, total in totals.items()}
