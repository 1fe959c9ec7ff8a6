"""What `openedm train` chooses by the machine: the network and the options that the user has not given."""

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch

from openedm.data import Dataset, Source
from openedm.data.encoded import ImageSource
from openedm.networks import Network
from openedm.objective import Objective
from openedm.training import BudgetName, Options, budget_of, choose_recipe, max_resolution, recipe_summary

given: ContextVar[frozenset[str] | None] = ContextVar("given", default=None)
"""The dotted names of the options that the present command was given, in files or on the command line."""


def names_given(options: Mapping[str, Any]) -> frozenset[str]:
    """The dotted names of options, nested or not, such as "network" and "options.images"."""
    found: set[str] = set()
    for name, value in options.items():
        parts = name.split(".")
        found |= {".".join(parts[: i + 1]) for i in range(len(parts))}
        fields = value.get("init_args", value) if isinstance(value, Mapping) else {}
        found |= {f"{name}.{field}" for field in names_given(fields)}
    return frozenset(found)


@dataclass(frozen=True)
class Choices:
    """What is chosen for a budget.

    Attributes:
        network, options: as given, and where they were not given as the recipe has them.
        lines: what was chosen, for people.
    """

    network: Network
    options: Options
    lines: tuple[str, ...] = ()


def is_budgeted(budget: BudgetName | None) -> bool:
    """Whether a recipe chooses: there is a budget, or a command line without network."""
    names = given.get()
    return budget is not None or (names is not None and "network" not in names)


def fit_pictures(source: Source, budget: BudgetName | None, device: torch.device) -> tuple[Source, str]:
    """The source, its pictures cropped to the budget's size if they are larger or differ, and a line that says so."""
    if not is_budgeted(budget) or not isinstance(source, ImageSource) or source.resolution is not None:
        return source, ""
    largest = max_resolution(budget or budget_of(device))
    images = source.images()
    shapes = {shape[1:] for shape in images.shapes()}
    images.close()
    if len(shapes) == 1 and max(next(iter(shapes))) <= largest:
        return source, ""
    smallest = min(min(shape) for shape in shapes)
    size = min(largest, smallest)
    what = "of several sizes" if len(shapes) > 1 else f"of {'×'.join(map(str, next(iter(shapes))))}"
    return replace(source, resolution=size), f"--data.resolution {size} (the pictures are {what})"


def choose(
    budget: BudgetName | None,
    network: Network,
    objective: Objective,
    options: Options,
    dataset: Dataset,
    device: torch.device,
) -> Choices:
    """The network and options of training: those given, and the recipe's for the others.

    Raises:
        ValueError: the budget is for another machine.
    """
    if not is_budgeted(budget):
        return Choices(network, options)
    names = given.get() or frozenset()
    own = network if "network" in names else None
    recipe = choose_recipe(budget or budget_of(device), dataset, device, network=own, objective=objective, base=options)
    fields = {name: getattr(recipe.options, name) for name in recipe.changed if f"options.{name}" not in names}
    chosen = replace(options, **fields)
    settings = {name: value for name, value in recipe.settings().items() if name not in names}
    return Choices(
        recipe.network, chosen, (recipe_summary(replace(recipe, options=chosen), dataset), describe(settings))
    )


def describe(settings: Mapping[str, Any]) -> str:
    """Options as they are given on the command line."""

    def text(value: Any) -> str:
        return f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else str(value)

    return " ".join(f"--{name} {text(value)}" for name, value in settings.items())
