"""Recipes: network, batch and length of training for a machine and a time, from the shape of the data.

    width of the network: the largest whose MIN_IMAGES images fit into the time, and one sample into the memory
    length: as many images as fit into the time beside validation losses and grids, at the speeds that were measured
    augmentation: for images that are seen more than AUGMENTED_PASSES times
    classes: a tenth of the images is trained without them, and grids are guided, as are samples of networks this small

The widths and depths follow the networks of Karras et al. 2022, scaled down; the cosine schedule, the averages and the
ramp-up are fractions of the length. An `EDM2UNet` that is given has its own rates, which fall with the root of the
images seen after a quarter of them.
"""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import torch

from openedm import objective as objectives
from openedm.data import Dataset
from openedm.ground import checks
from openedm.networks import MLP, DDPMpp, EDM2UNet, Network
from openedm.networks.unet import UNetNetwork, level_resolutions
from openedm.objective import Objective
from openedm.training.augmentation import Augmentation
from openedm.training.averaging import HalfLife
from openedm.training.model import Model
from openedm.training.options import Options
from openedm.training.precision import measure_precision
from openedm.training.resources import Cost, available_on, format_seconds, measure_cost
from openedm.training.steps import LossModule

__all__ = [
    "GUIDANCE",
    "BudgetName",
    "Recipe",
    "budget_of",
    "choose_recipe",
    "label_dropout_for",
    "max_resolution",
    "recipe_summary",
]

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
    "cpu-hour": Budget("cpu", 3600, None, 32, 32),
    "gpu-8gb": Budget("cuda", 12 * 3600, 8 * 10**9, 64, 128),
    "gpu-24gb": Budget("cuda", 24 * 3600, 24 * 10**9, 64, 256),
    "gpu-80gb": Budget("cuda", 48 * 3600, 80 * 10**9, 128, 512),
}
MIN_IMAGES = 500_000
"""The number of images below which a wider network is not worth its time."""
MAX_IMAGES = 200_000_000
MLP_MAX_IMAGES = 20_000_000
LADDER = ((16, 1), (24, 1), (32, 1), (48, 1), (64, 2), (96, 2), (128, 3), (128, 4), (192, 4))
"""Base channels and blocks of the U-Nets, smallest first."""
HOST_RESOLUTION = 16
"""The largest resolution of the finest level of a U-Net of images on the host; larger images are taken in blocks."""
MAX_PATCH = 4
EDM2_LEARNING_RATE = 0.01
"""Ten times that of other U-Nets, as in its presets."""
LABEL_DROPOUT = 0.1
"""The share of images of classes that is trained without its class."""
GUIDANCE = 2.0
"""The weight of guidance of grids of classes."""
LOWEST_RESOLUTION = 4
MAX_LEVELS = 6
HOST_ATTENTION = 8
"""The resolution nearest to which U-Nets have attention on the host, where that at 16 takes a tenth of the time."""
AUGMENTED_PASSES = 200
"""The number of passes over the images above which they are transformed, so that fewer of them are learned by heart."""
SLACK = 0.04
"""The share of the time that is for loading data, drawing figures and writing checkpoints."""
MEASURED_SHARE = 0.05
"""The largest share of the time of the validation losses, and that of the grids, but for the fewest of them."""
VALIDATIONS, GRIDS = 20, 10
"""The largest numbers of validation losses and of grids."""
SHORT_VALIDATIONS, SHORT_GRIDS = 5, 2
"""The fewest of a run whose length is given: to see whether it learns."""
GRID_EVALUATIONS = 64 * 35
"""Evaluations of a sample for a grid: 64 samples by the default sampler."""


@dataclass(frozen=True)
class Recipe:
    """The choices of a budget.

    Attributes:
        budget: its name.
        network: the network.
        options: length, batch, learning rate, averages and intervals.
        cost: what was measured of the network.
        samples: the number of samples of the data.
        grid_evaluations: the evaluations of a sample that a grid of samples takes.
    """

    budget: str
    network: Network
    options: Options
    cost: Cost
    samples: int
    grid_evaluations: int

    @property
    def seconds(self) -> float:
        """The time of training with validation losses and grids, on one process."""
        evaluations = self.options.evaluations(self.samples, self.grid_evaluations)
        return self.options.images * self.cost.seconds + evaluations * self.cost.evaluation

    def settings(self) -> dict[str, Any]:
        """The options of the command line that the recipe sets, by their names, with their values."""
        sizes = [name for name in _CHOSEN_SIZES if hasattr(self.network, name)]
        fields = {f"network.{name}": getattr(self.network, name) for name in sizes}
        chosen = {f"options.{name}": getattr(self.options, name) for name in _CHOSEN_OPTIONS if name != "average"}
        chosen["options.average.half_life"] = self.options.average.half_life
        if self.options.label_dropout > 0:
            chosen["options.label_dropout"] = self.options.label_dropout
        if self.options.augmentation is not None:
            chosen["options.augmentation.p"] = self.options.augmentation.p
        chosen = {name: value for name, value in (fields | chosen).items() if value is not None}
        return {"network": type(self.network).__name__, **chosen}


_CHOSEN_SIZES = ("model_channels", "channel_mult", "num_blocks", "attn_resolutions", "width", "dropout", "patch_size")


_CHOSEN_OPTIONS = (
    "images",
    "batch_size",
    "learning_rate",
    "rampup",
    "schedule",
    "decay_after",
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


def label_dropout_for(dataset: Dataset) -> float:
    """The share of samples that a recipe trains without their classes, so that these can guide; 0 without classes.

    Only for images whose conditions are classes alone.
    """
    guides = dataset.kind == "images" and dataset.num_classes > 1 and dataset.condition_shape is None
    return LABEL_DROPOUT if guides else 0.0


def choose_recipe(
    budget: BudgetName,
    dataset: Dataset,
    device: torch.device,
    *,
    network: Network | None = None,
    objective: Objective = objectives.EDM(),
    base: Options = Options(),
    keep: Collection[str] = (),
    grid_evaluations: int = GRID_EVALUATIONS,
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
        grid_evaluations: the evaluations of a sample that a grid of samples takes.

    Raises:
        ValueError: the budget is unknown, or for another kind of device.
        MemoryError: not even the smallest network fits.
    """
    checks.one_of("budget", budget, get_args(BudgetName))
    limits = BUDGETS[budget]
    if limits.device != device.type:
        raise ValueError(f"budget={budget!r} needs a device of type {limits.device!r}, got {device.type!r}")
    memory = min(available_on(device), limits.memory or available_on(device))
    candidates = list(_candidates(dataset, device)) if network is None else [network]
    base = replace(base, batch_size=_batch_size(base, keep, limits, dataset))
    if "precision" not in keep or base.precision == "auto":
        typical = candidates[min(2, len(candidates) - 1)]
        base = replace(base, precision=_precision(typical, dataset, device, objective, base))
    found: Recipe | None = None
    for candidate in candidates:
        cost = _measure(candidate, dataset, device, objective, base)
        too_slow = cost.seconds * MIN_IMAGES > limits.seconds
        if found is not None and (too_slow or cost.bytes(1) > 0.8 * memory):
            break
        options = _options(base, keep, limits, cost, dataset, candidate, grid_evaluations)
        found = Recipe(budget, candidate, options, cost, len(dataset), grid_evaluations)
    assert found is not None
    if found.options.augmentation is not None and base.augmentation is None:  # whose time is measured, too
        base, keep = replace(base, augmentation=found.options.augmentation), [*keep, "augmentation"]
        cost = _measure(found.network, dataset, device, objective, base)
        options = _options(base, keep, limits, cost, dataset, found.network, grid_evaluations)
        found = replace(found, options=options, cost=cost)
    return found


def _measure(network: Network, dataset: Dataset, device: torch.device, objective: Objective, base: Options) -> Cost:
    module, model = _built(network, dataset, device, objective, base)
    return measure_cost(module, model, base)


def _built(
    network: Network, dataset: Dataset, device: torch.device, objective: Objective, base: Options
) -> tuple[LossModule, Model]:
    model = Model.for_data(dataset, network, augment_dim=base.augment_dim, condition_dropout=base.label_dropout > 0)
    return LossModule(model.build_on(device), objective, noises=base.noises).to(device).train(), model


def _precision(
    network: Network, dataset: Dataset, device: torch.device, objective: Objective, base: Options
) -> Literal["fp32", "bf16"]:
    """bf16 on a GPU, unless it is to be measured, and on a host where it is faster and accurate."""
    if (device.type == "cuda" and base.precision == "fp32") or base.precision == "bf16":
        return "bf16"
    if len(dataset.event_shape) == 1 and base.precision == "fp32":
        return "fp32"
    module, model = _built(network, dataset, device, objective, base)
    return measure_precision(module, model, base, base.batch_size).precision


def _candidates(dataset: Dataset, device: torch.device) -> Iterator[Network]:
    """Networks for the data on a device, the smallest first."""
    shape = dataset.event_shape
    if len(shape) == 1:
        yield from (MLP(width=width) for width in (128, 256, 512))
        return
    if len(shape) > 4:
        raise ValueError(f"data must have one to four axes for a recipe, got {shape}: give a network")
    patch = 1
    while device.type == "cpu" and len(shape) == 3 and patch < MAX_PATCH and max(shape[1:]) > patch * HOST_RESOLUTION:
        patch *= 2
    sides = math.ceil(max(shape[1:]) / patch)
    levels = min(MAX_LEVELS, 1 + math.ceil(math.log2(max(1, sides / LOWEST_RESOLUTION))))
    multipliers = (1, 2, *[4 if levels <= 4 else 2] * (levels - 2))[:levels]
    resolutions = level_resolutions(sides, levels)
    nearest = min(resolutions, key=lambda level: abs(level - HOST_ATTENTION))
    attending = (nearest,) if device.type == "cpu" else None
    for channels, blocks in LADDER:
        dropout = 0.0 if channels < 64 else 0.1
        yield DDPMpp(
            channels, multipliers, num_blocks=blocks, attn_resolutions=attending, dropout=dropout, patch_size=patch
        )


def _batch_size(base: Options, keep: Collection[str], limits: Budget, dataset: Dataset) -> int:
    if "batch_size" in keep:
        return base.batch_size
    return min(limits.batch_size if len(dataset.event_shape) > 1 else 256, max(8, len(dataset)))


def _options(
    base: Options,
    keep: Collection[str],
    limits: Budget,
    cost: Cost,
    dataset: Dataset,
    network: Network,
    grid_evaluations: int,
) -> Options:
    """Length, rates and intervals for a network whose cost is known."""
    batch, most = base.batch_size, MLP_MAX_IMAGES if isinstance(network, MLP) else MAX_IMAGES
    is_given = "images" in keep
    seconds = min(limits.seconds, base.images * cost.seconds) if is_given else limits.seconds
    fewest = (SHORT_VALIDATIONS, SHORT_GRIDS) if is_given else (1, 1)
    most_evaluations = MEASURED_SHARE * seconds / max(cost.evaluation, 1e-9)
    loss_evaluations = min(base.validate_samples, len(dataset)) * base.measured_levels
    validations = max(fewest[0], min(VALIDATIONS, int(most_evaluations / loss_evaluations)))
    grids = max(fewest[1], min(GRIDS, int(most_evaluations / grid_evaluations)))
    evaluations = validations * loss_evaluations + grids * grid_evaluations
    left = (1 - SLACK) * limits.seconds - evaluations * cost.evaluation
    images = min(most, int(max(left, limits.seconds / 2) / cost.seconds))
    images = base.images if is_given else max(batch, round(images, 2 - len(str(images))))
    is_image = dataset.kind == "images" and isinstance(network, UNetNetwork | EDM2UNet)
    is_seen_often = is_image and images > AUGMENTED_PASSES * len(dataset)
    chosen: dict[str, Any] = {
        "images": images,
        "learning_rate": 1e-3 if batch <= 128 else 1.5e-3,
        "rampup": min(10_000, images // 20),
        "schedule": "cosine",
        "average": HalfLife(half_life=float(max(batch, min(500_000, images // 40)))),
        "augmentation": Augmentation(p=0.15) if is_seen_often else None,
        "validate_every": max(1, math.ceil(images / validations)),
        "snapshot_every": max(1, math.ceil(images / grids)),
        "checkpoint_every": max(1, math.ceil(images / VALIDATIONS)),
    }
    if isinstance(network, EDM2UNet):  # whose weights have a fixed length, so that rates are relative to it
        chosen |= {"learning_rate": EDM2_LEARNING_RATE}
        if "schedule" not in keep:
            chosen |= {"schedule": "inverse_sqrt", "decay_after": max(1, images // 4)}
    return replace(base, **{name: value for name, value in chosen.items() if name not in keep})


def recipe_summary(recipe: Recipe) -> str:
    """What the recipe expects, in a line."""
    passes = recipe.options.images / recipe.samples
    length = f"{recipe.options.images:,} images, {passes:.0f} passes"
    return f"{recipe.budget}: {length}, about {format_seconds(recipe.seconds)} with measured losses and grids"
