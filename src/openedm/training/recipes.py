"""Recipes: network, batch and length of training for a machine and a time, from the shape of the data.

    width of the network: the largest whose MIN_IMAGES images fit into the time, and one sample into the memory
    length: as many images as fit into the time, at the speed that was measured

The widths and depths follow the networks of Karras et al. 2022, scaled down; the cosine schedule, the averages and the
ramp-up are fractions of the length.
"""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import torch

from openedm import objective as objectives
from openedm.data import Dataset
from openedm.ground import checks
from openedm.networks import MLP, DDPMpp, Network
from openedm.objective import Objective
from openedm.training.averaging import HalfLife
from openedm.training.model import Model
from openedm.training.options import Options
from openedm.training.resources import Cost, available_on, format_seconds, measure_cost
from openedm.training.steps import LossModule

__all__ = ["BudgetName", "Recipe", "budget_of", "choose_recipe", "max_resolution", "recipe_summary"]

BudgetName = Literal["cpu-hour", "gpu-8gb", "gpu-24gb", "gpu-80gb"]


class Budget(NamedTuple):
    """What a recipe may use.

    Attributes:
        device: "cpu" or "cuda".
        seconds: the time of training.
        memory: bytes; None for what is free.
        resolution: the largest side of images that are not cropped to a size of the user's.
        batch_size: the batch.
    """

    device: str
    seconds: float
    memory: int | None
    resolution: int
    batch_size: int


BUDGETS: dict[str, Budget] = {
    "cpu-hour": Budget("cpu", 3600, None, 32, 64),
    "gpu-8gb": Budget("cuda", 12 * 3600, 8 * 10**9, 64, 128),
    "gpu-24gb": Budget("cuda", 24 * 3600, 24 * 10**9, 64, 256),
    "gpu-80gb": Budget("cuda", 48 * 3600, 80 * 10**9, 128, 512),
}
MIN_IMAGES = 250_000
"""The number of images below which a wider network is not worth its time."""
MAX_IMAGES = 200_000_000
MLP_MAX_IMAGES = 20_000_000
LADDER = ((16, 1), (24, 1), (32, 1), (48, 1), (64, 2), (96, 2), (128, 3), (128, 4), (192, 4))
"""Base channels and blocks of the U-Nets, smallest first."""
LOWEST_RESOLUTION = 4
MAX_LEVELS = 6
BF16_GAIN = 1.2
"""How much faster mixed precision must be on the host to be chosen."""


@dataclass(frozen=True)
class Recipe:
    """The choices of a budget.

    Attributes:
        budget: its name.
        network: the network.
        options: length, batch, learning rate, averages and intervals.
        cost: what was measured of the network.
    """

    budget: str
    network: Network
    options: Options
    cost: Cost

    def settings(self) -> dict[str, Any]:
        """The options of the command line that the recipe sets, by their names, with their values."""
        sizes = [name for name in _CHOSEN_SIZES if hasattr(self.network, name)]
        fields = {f"network.{name}": getattr(self.network, name) for name in sizes}
        chosen = {f"options.{name}": getattr(self.options, name) for name in _CHOSEN_OPTIONS if name != "average"}
        half_life = {"options.average.half_life": self.options.average.half_life}
        return {"network": type(self.network).__name__, **fields, **chosen, **half_life}


_CHOSEN_SIZES = ("model_channels", "channel_mult", "num_blocks", "width", "dropout")


_CHOSEN_OPTIONS = (
    "images",
    "batch_size",
    "learning_rate",
    "rampup",
    "schedule",
    "precision",
    "average",
    "validate_every",
    "snapshot_every",
    "checkpoint_every",
)


def budget_of(device: torch.device) -> BudgetName:
    """The budget for a machine: that of its GPU's memory, or an hour of its processors.

    >>> budget_of(torch.device("cpu"))
    'cpu-hour'
    """
    if device.type != "cuda":
        return "cpu-hour"
    total = torch.cuda.get_device_properties(device).total_memory
    fitting = [name for name in get_args(BudgetName) if 0 < (BUDGETS[name].memory or 0) <= 1.1 * total]
    return fitting[-1] if fitting else "gpu-8gb"


def max_resolution(budget: BudgetName) -> int:
    """The largest side of images that a budget trains on."""
    return BUDGETS[budget].resolution


def choose_recipe(
    budget: BudgetName,
    dataset: Dataset,
    device: torch.device,
    *,
    network: Network | None = None,
    objective: Objective = objectives.EDM(),
    base: Options = Options(),
    keep: Collection[str] = (),
) -> Recipe:
    """Measure networks on the device, and choose the network, the batch and the length of training.

    Args:
        budget: the budget.
        dataset: the training data.
        device: the device of training.
        network: a network that was chosen already; None for one of the recipe's.
        objective: the objective, whose cost is measured with the network's.
        base: options that the recipe does not set, such as augmentation and label dropout.
        keep: the names of further options of `base` that hold, such as "images"; the others are chosen for them.

    Raises:
        ValueError: the budget is unknown, or for another kind of device.
        MemoryError: not even the smallest network fits.
    """
    checks.one_of("budget", budget, get_args(BudgetName))
    limits = BUDGETS[budget]
    if limits.device != device.type:
        raise ValueError(f"budget={budget!r} needs a device of type {limits.device!r}, got {device.type!r}")
    memory = min(available_on(device), limits.memory or available_on(device))
    candidates = list(_candidates(dataset)) if network is None else [network]
    if "precision" not in keep:
        base = replace(base, precision=_precision(candidates[0], dataset, device, objective, base))
    found: Recipe | None = None
    for candidate in candidates:
        measured = _measure(candidate, dataset, device, objective, base)
        too_slow = measured.seconds * MIN_IMAGES > limits.seconds
        if found is not None and (too_slow or measured.bytes(1) > 0.8 * memory):
            break
        found = Recipe(budget, candidate, _options(base, keep, limits, measured, dataset, candidate), measured)
    assert found is not None
    return found


def _measure(network: Network, dataset: Dataset, device: torch.device, objective: Objective, base: Options) -> Cost:
    model = Model.for_data(dataset, network, augment_dim=base.augment_dim, condition_dropout=base.label_dropout > 0)
    denoiser = model.build(0).to(device)
    return measure_cost(LossModule(denoiser, objective).to(device).train(), model, base)


def _precision(
    network: Network, dataset: Dataset, device: torch.device, objective: Objective, base: Options
) -> Literal["fp32", "bf16"]:
    """bf16 on a GPU, and on a host whose processors multiply it faster."""
    if device.type == "cuda" or base.precision == "bf16":
        return "bf16"
    if len(dataset.event_shape) == 1:
        return "fp32"
    times = {
        name: _measure(network, dataset, device, objective, replace(base, precision=name)).seconds
        for name in ("fp32", "bf16")
    }
    return "bf16" if times["fp32"] > BF16_GAIN * times["bf16"] else "fp32"


def _candidates(dataset: Dataset) -> Iterator[Network]:
    """Networks for the data, the smallest first."""
    shape = dataset.event_shape
    if len(shape) == 1:
        yield from (MLP(width=width) for width in (128, 256, 512))
        return
    if len(shape) > 4:
        raise ValueError(f"data must have one to four axes for a recipe, got {shape}: give a network")
    sides = max(shape[1:])
    levels = min(MAX_LEVELS, 1 + math.ceil(math.log2(max(1, sides / LOWEST_RESOLUTION))))
    multipliers = (1, 2, *[4 if levels <= 4 else 2] * (levels - 2))[:levels]
    for channels, blocks in LADDER:
        yield DDPMpp(channels, multipliers, num_blocks=blocks, dropout=0.0 if channels < 64 else 0.1)


def _options(
    base: Options, keep: Collection[str], limits: Budget, cost: Cost, dataset: Dataset, network: Network
) -> Options:
    most = MLP_MAX_IMAGES if isinstance(network, MLP) else MAX_IMAGES
    batch = min(limits.batch_size if len(dataset.event_shape) > 1 else 256, max(8, len(dataset)))
    batch = base.batch_size if "batch_size" in keep else batch
    # A tenth of the time is for validation, grids and averages.
    images = min(most, int(0.9 * limits.seconds / cost.seconds))
    images = base.images if "images" in keep else max(batch, round(images, 2 - len(str(images))))
    chosen: dict[str, Any] = {
        "images": images,
        "batch_size": batch,
        "learning_rate": 1e-3 if batch <= 128 else 1.5e-3,
        "rampup": min(10_000, images // 20),
        "schedule": "cosine",
        "average": HalfLife(half_life=float(max(batch, min(500_000, images // 40)))),
        "validate_every": max(1, images // 20),
        "snapshot_every": max(1, images // 10),
        "checkpoint_every": max(1, images // 20),
    }
    return replace(base, **{name: value for name, value in chosen.items() if name not in keep})


def recipe_summary(recipe: Recipe, dataset: Dataset) -> str:
    """What the recipe expects, in a line."""
    seconds = recipe.options.images * recipe.cost.seconds
    passes = recipe.options.images / len(dataset)
    return f"{recipe.budget}: {recipe.options.images:,} images, {passes:.0f} passes, about {format_seconds(seconds)}"
