"""What `openedm train` chooses by the machine: the network and the options that the user has not given."""

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from openedm.data import Dataset, Source
from openedm.data.decoded import ImageSource
from openedm.data.forms import Size, parse_size
from openedm.guidance import GuidanceWeight, Interval
from openedm.networks import Network
from openedm.objective import Objective
from openedm.plots.runs import grid_evaluations
from openedm.sampling import Sampler
from openedm.training import (
    GUIDANCE,
    BudgetName,
    Options,
    Recipe,
    budget_of,
    choose_recipe,
    label_dropout_for,
    max_resolution,
    recipe_summary,
)

names_given: ContextVar[frozenset[str] | None] = ContextVar("names_given", default=None)
"""The dotted names of the options that the present command was given, in files or on the command line."""


def dotted_names(options: Mapping[str, Any]) -> frozenset[str]:
    """The dotted names of options, nested or not, such as "network" and "options.images"."""
    found: set[str] = set()
    for name, value in options.items():
        parts = name.split(".")
        found |= {".".join(parts[: i + 1]) for i in range(len(parts))}
        fields = value.get("init_args", value) if isinstance(value, Mapping) else {}
        found |= {f"{name}.{field}" for field in dotted_names(fields)}
    return frozenset(found)


@dataclass(frozen=True)
class Choices:
    """What is chosen for a budget.

    Attributes:
        data, network, options, guidance: as given, and where they were not given as the recipe has them.
        dataset: the data, loaded.
        lines: what was chosen, for people.

    Raises:
        ValueError: guidance without training that leaves conditions out.
    """

    data: Source
    dataset: Dataset
    network: Network
    options: Options
    guidance: GuidanceWeight
    lines: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.guidance.is_one and self.options.label_dropout == 0:
            raise ValueError(f"guidance requires training with options.label_dropout > 0, got 0 with {self.guidance}")


def choose(
    budget: BudgetName | None,
    data: Source,
    network: Network,
    objective: Objective,
    options: Options,
    sampler: Sampler,
    guidance: GuidanceWeight,
    accelerator: Accelerator,
    conditional: bool,
    resumed: bool,
    initial_shape: Sequence[int] | None = None,
) -> Choices:
    """Load the data, and choose the network and the options that were not given.

    A recipe chooses if there is a budget, or a command line without network; not for a run that is resumed. The main
    process measures, and the others take its choices. Pictures of several sizes get that of `initial_shape`, the event
    shape of the checkpoint that is fine-tuned, or else the recipe's.

    Raises:
        ValueError: the budget is for another machine, or the data cannot be loaded.
    """
    names, device = names_given.get(), accelerator.device
    if resumed or (budget is None and (names is None or "network" in names or "init" in names)):
        data, *lines = (data,) if resumed or initial_shape is None else _fit_to_initial(data, initial_shape)
        return Choices(data, data.load(), network, options, guidance, tuple(lines))
    budget, names = budget or budget_of(device), names or frozenset()
    data, *lines = (data,) if initial_shape is None else _fit_to_initial(data, initial_shape)
    data, *more = _fit_pictures(data, budget)
    lines += more
    dataset = data.load()
    if options.precision == "auto":  # which the recipe measures
        names -= {"options.precision"}
    keep = [name.partition(".")[2] for name in names if name.startswith("options.")]
    if "label_dropout" not in keep:
        options = replace(options, label_dropout=label_dropout_for(dataset) if conditional else 0.0)
    guides = "guidance" not in names and options.label_dropout > 0 and dataset.condition_shape is None
    guidance = Interval(GUIDANCE) if guides else guidance
    found: list[Recipe | None] = [None]
    if accelerator.is_main_process:
        own = network if names & {"network", "init"} else None
        grid = grid_evaluations(dataset, sampler, guidance)
        measured = choose_recipe(
            budget,
            dataset,
            device,
            network=own,
            objective=objective,
            base=options,
            keep=keep,
            grid_evaluations=grid,
        )
        found = [measured]
    (recipe,) = broadcast_object_list(found) if accelerator.num_processes > 1 else found
    assert recipe is not None
    settings = {name: value for name, value in recipe.settings().items() if name not in names}
    if guides:
        settings["guidance.weight"] = GUIDANCE
    lines += [recipe_summary(recipe), _typed(settings)]
    return Choices(data, dataset, recipe.network, recipe.options, guidance, tuple(lines))


def _fit_pictures(source: Source, budget: BudgetName) -> tuple[Any, ...]:
    """The source, its pictures cropped to the budget's size if they are larger or differ, and a line if they are."""
    if not isinstance(source, ImageSource) or source.resolution is not None:
        return (source,)
    sizes = _sizes(source)
    if len(sizes) == 1 and max(next(iter(sizes))) <= max_resolution(budget):
        return (source,)
    size = min(max_resolution(budget), min(map(min, sizes)))
    shown = "of several sizes" if len(sizes) > 1 else f"of {'×'.join(map(str, next(iter(sizes))))}"
    return _resized(source, size), f"--data.resolution {size}, because the pictures are {shown}"


def _fit_to_initial(source: Source, shape: Sequence[int]) -> tuple[Any, ...]:
    """The source, its pictures cropped to the size of the checkpoint's if they differ, and a line if they do."""
    if not isinstance(source, ImageSource) or source.resolution is not None or len(shape) != 3:
        return (source,)
    if len(_sizes(source)) == 1:
        return (source,)
    size = parse_size("resolution", (shape[1], shape[2]))
    shown = size if isinstance(size, int) else "x".join(map(str, size))
    why = "that of init, because the pictures are of several sizes"
    return _resized(source, size), f"--data.resolution {shown}, {why}"


def _sizes(source: ImageSource) -> set[tuple[int, int]]:
    """The heights and widths of the pictures as they are stored."""
    images = source.images()
    sizes = {(header.height, header.width) for header in images.shapes()}
    images.close()
    return sizes


def _resized(source: ImageSource, size: Size) -> ImageSource:
    resized: ImageSource = replace(source, resolution=size)  # type: ignore[call-arg]  # a field of all its classes
    return resized


def _typed(settings: Mapping[str, Any]) -> str:
    """Options as they are given on the command line."""

    def text(value: Any) -> str:
        return f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else str(value)

    return " ".join(f"--{name} {text(value)}" for name, value in settings.items())
