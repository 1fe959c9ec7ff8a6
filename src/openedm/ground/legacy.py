"""Names in files of older versions, and the names that replaced them.

A configuration names classes by the room and the class, `openedm.sampling.Heun`. Where a class moved to another room or
got another name, a row here maps the old name to the new one; where its arguments changed as well, a function rewrites
its configuration. Modules inside a room are not part of these names: `room_name` leaves them out.
"""

from collections.abc import Callable, Mapping
from typing import Any

RENAMED: dict[str, str] = {
    "openedm.choices.Choice": "openedm.ground.choices.Choice",
    **{
        f"openedm.sampling.{name}": f"openedm.schedules.{name}"
        for name in ("LogSigma", "PowerSigma", "Angle", "FlowTime")
    },
    **{
        f"openedm.sampling.{name}Prediction": f"openedm.preconditioning.{name}Prediction"
        for name in ("Epsilon", "Data", "Velocity", "Network")
    },
}
"""Old room and class name → new room and class name."""

REWRITTEN: dict[str, Callable[[dict[str, Any]], Any]] = {
    # The time of a schedule is the schedule itself.
    "openedm.sampling.ScheduleTime": lambda arguments: arguments.get(
        "schedule", {"class_path": "openedm.schedules.VP"}
    ),
}
"""Old room and class name → a function of its arguments that returns the configuration as it is written now."""

ABSOLUTE: dict[str, frozenset[str]] = {
    "openedm.sampling.Auto": frozenset({"nfe", "tolerance", "sigma_min", "sigma_max"}),
    "openedm.sampling.DormandPrince": frozenset({"tolerance", "max_nfe", "first_step", "variable"}),
    "openedm.sampling.Tsit5": frozenset({"tolerance", "max_nfe", "first_step", "variable"}),
    "openedm.sampling.Exponential23": frozenset({"tolerance", "max_nfe", "first_step", "prediction"}),
}
"""Classes whose tolerances were in data units before `relative` was an argument → all arguments that they had."""


def room_name(path: str) -> str:
    """The room and the class of a class path, without the modules between: `openedm.room.Class`.

    >>> room_name("openedm.sampling.methods.multistep.DEIS")
    'openedm.sampling.DEIS'
    """
    parts = path.split(".")
    return ".".join([*parts[:2], parts[-1]]) if parts[0] == "openedm" and len(parts) > 3 else path


def upgrade(config: Any) -> Any:
    """A configuration with the class paths and arguments of today, at any depth; other values as they are."""
    if isinstance(config, list | tuple):
        return [upgrade(value) for value in config]
    if not isinstance(config, Mapping):
        return config
    upgraded = {key: upgrade(value) for key, value in config.items()}
    name = upgraded.get("class_path")
    if not isinstance(name, str):
        return upgraded
    old = room_name(_BARE_NAMES.get(name, name))
    if old in REWRITTEN:
        return upgrade(REWRITTEN[old](dict(upgraded.get("init_args") or {})))
    arguments = upgraded.get("init_args")
    if old in ABSOLUTE and isinstance(arguments, Mapping) and ABSOLUTE[old] == arguments.keys():
        return {**upgraded, "init_args": {**arguments, "relative": False}}
    return {**upgraded, "class_path": RENAMED[old]} if old in RENAMED else upgraded


_BARE_NAMES = {path.rpartition(".")[2]: path for path in REWRITTEN}
"""Class names that no longer exist, without their room as in files written by hand → room and class name."""
