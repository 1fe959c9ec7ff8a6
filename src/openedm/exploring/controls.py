"""What can be set on the page: a control for each field of the state, found from the fields' types and docstrings."""

import dataclasses
import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from docstring_parser import parse as parse_docstring

from openedm.exploring.fields import classes_of, kind_of, name_of, text_of
from openedm.exploring.state import State
from openedm.ground.choices import Choice

__all__ = ["Control", "Group", "controls_of"]

RANGES: Mapping[str, tuple[float, float, float]] = {
    "num_steps": (1, 64, 1),
    "rho": (1, 14, 0.5),
    "s_churn": (0, 80, 1),
    "s_noise": (0.9, 1.1, 0.005),
    "weight": (0, 6, 0.1),
    "num": (1, 64, 1),
    "seed": (0, 200, 1),
    "seed_to": (0, 200, 1),
    "eta": (0, 2, 0.05),
    "alpha": (0.05, 1, 0.05),
    "snr": (0.01, 0.5, 0.01),
    "corrections": (0, 5, 1),
    "repeats": (1, 10, 1),
    "predictor": (1, 4, 1),
    "corrector": (0, 4, 1),
    "correction": (0.05, 1, 0.05),
    "p_std": (0.1, 3, 0.1),
    "beta_d": (1, 40, 0.1),
    "spread": (0.2, 4, 0.1),
}
"""Low, high and step of the sliders, by the field's name; a number beside the slider may be outside."""

GROUPS: Mapping[str, Sequence[str]] = {
    "Data": ("data", "data_1d", "label", "guidance", "num", "seed"),
    "Sampler": ("sampler",),
    "Training": ("preconditioning", "objective"),
}
GROUPS_OF_RUNS: Mapping[str, Sequence[str]] = {
    "Run": ("run", "against", "label", "guidance", "num", "seed", "seed_to"),
    "Sampler": ("sampler",),
}
UNUSED: Mapping[str, Sequence[str]] = {
    "samples": ("against", "seed_to"),
    "walk": ("against",),
    "levels": ("against", "seed_to"),
    "compare": ("seed_to",),
}
"""The fields of a run that a view does not use."""
TITLES = {"label": "class"}
HIDDEN = ("stratified", "learned_uncertainty")


class Control(NamedTuple):
    """One control.

    Attributes:
        name: the dotted name of the field.
        title: its last part.
        value: the present text.
        kind: select, slider or text.
        options: (text, title) to select from.
        range: low, high and step of a slider.
        depth: how far it is inside other choices.
        about: what the docstring says.
    """

    name: str
    title: str
    value: str
    kind: Literal["select", "slider", "text"]
    options: Sequence[tuple[str, str]] = ()
    range: tuple[float, float, float] = (0, 1, 1)
    depth: int = 0
    about: str = ""


class Group(NamedTuple):
    """Controls under a title."""

    title: str
    controls: Sequence[Control]


def controls_of(state: State, runs: Sequence[str] = ()) -> list[Group]:
    """The controls that a state's view uses, in groups.

    Args:
        state: gives the view and the present values.
        runs: the names of the runs that can be chosen.
    """
    groups = GROUPS if state.view == "exact" else GROUPS_OF_RUNS
    unused = UNUSED.get(state.view, ())
    found = []
    for title, names in groups.items():
        controls: list[Control] = []
        for name in names:
            if name in ("run", "against"):
                if name not in unused:
                    controls.append(_choice_of_run(state, name, runs))
            elif name not in unused:
                controls += _controls(State, name, getattr(state, name), name, 0)
        found.append(Group(title, controls))
    return found


def _choice_of_run(state: State, name: str, runs: Sequence[str]) -> Control:
    value = getattr(state, name)
    first = runs[:1] if name == "run" else runs[1:2] or runs[:1]
    shown = value if value is not None else "".join(first)
    return Control(name, name, shown, "select", [(run, run) for run in runs], about=_about(State).get(name, ""))


def _controls(owner: type[Choice], field: str, value: Any, name: str, depth: int) -> list[Control]:
    """The control of a field, and those of the fields of the choice in it."""
    annotation, about = get_type_hints(owner)[field], _about(owner).get(field, "")  # type: ignore[arg-type]  # classes are hashable
    kind = kind_of(annotation)
    title = TITLES.get(field, field.replace("_", " "))
    if kind is None:
        return [_plain_control(annotation, Control(name, title, text_of(value), "text", depth=depth, about=about))]
    classes = classes_of(kind)
    options = [("null", "as the schedule")] if type(None) in get_args(annotation) else []
    options += [(name_of(cls), cls.__name__) for cls in classes]
    single = len(options) == 1
    found = [] if single else [Control(name, title, text_of(value), "select", options, depth=depth, about=about)]
    if isinstance(value, Choice):
        for inner in dataclasses.fields(value):
            if inner.init and inner.name not in HIDDEN:
                below = depth if single else depth + 1
                found += _controls(type(value), inner.name, getattr(value, inner.name), f"{name}.{inner.name}", below)
    return found


def _plain_control(annotation: Any, control: Control) -> Control:
    if get_origin(annotation) is Literal:
        return control._replace(
            kind="select", options=[(text, text.replace("_", " ")) for text in get_args(annotation)]
        )
    if annotation is bool:
        return control._replace(kind="select", options=[("true", "yes"), ("false", "no")])
    field = control.name.rpartition(".")[2]
    if annotation in (int, float) and field in RANGES:
        return control._replace(kind="slider", range=RANGES[field])
    return control


@functools.cache
def _about(cls: Any) -> dict[str, str]:
    parsed = parse_docstring(inspect.cleandoc(cls.__doc__ or ""))
    return {p.arg_name: " ".join((p.description or "").split()) for p in parsed.params}
