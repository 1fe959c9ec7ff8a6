"""Every choice of the package survives its plain form; names are looked up and never imported."""

import dataclasses
import importlib
import inspect
import json
import math
import pkgutil
import sys
from abc import ABC
from pathlib import Path
from typing import Any, Literal, get_type_hints

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

import openedm
from openedm import levels, preconditioning, schedules
from openedm.data import Form
from openedm.data.autoencoder import Autoencoder
from openedm.ground.choices import Choice, brief, class_path, complete, from_config, to_config
from openedm.inference import (
    Bijection,
    Box,
    Columns,
    Independent,
    LogNormal,
    Normal,
    OwnPrior,
    ScipyPrior,
    TorchPrior,
    Truncated,
)
from openedm.inference.maps import Coordinates, ParameterMap
from openedm.networks import JoinedSummary
from openedm.sampling import Churn, Heun, LearnedSolver, Sampler, Solver
from properties.strategies import (
    all_levels,
    all_objectives,
    all_preconditionings,
    all_samplers,
    all_schedules,
    all_solvers,
    continuous_noise,
)

for _module in pkgutil.walk_packages(openedm.__path__, "openedm."):
    importlib.import_module(_module.name)


def below(cls: type[Choice]) -> set[type[Choice]]:
    return {cls}.union(*(below(c) for c in cls.__subclasses__()))


CONCRETE = sorted(
    (c for c in below(Choice) if c.__module__.startswith("openedm.") and not inspect.isabstract(c) and c is not Choice),
    key=class_path,
)
REQUIRED: dict[Any, object] = {
    str: "a/path",
    int: 3,
    float: 0.5,
    tuple[float, ...]: (0.5, 2.0),
    Literal["members", "values"]: "members",
}
"""Values for the fields that have no default."""
PLAIN = Columns(("identity",), (0.0,), (1.0,), (0.0,), (1.0,))
UNIT = Bijection((0.0,), (1.0,))
EXAMPLES: dict[type[Choice], Choice] = {
    Bijection: UNIT,
    Columns: PLAIN,
    Coordinates: Coordinates(UNIT, PLAIN),
    ParameterMap: ParameterMap(UNIT, PLAIN, PLAIN),
    Box: Box((0.0,), (1.0,)),
    Normal: Normal((0.0,), (1.0,)),
    LogNormal: LogNormal((0.0,), (1.0,)),
    Independent: Independent([Box((0.0,), (1.0,))]),
    TorchPrior: TorchPrior(torch.distributions.Gamma(2.0, 3.0)),
    ScipyPrior: ScipyPrior("gamma", (2.0,), 0.0, 3.0),
    OwnPrior: OwnPrior(torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))),
    Truncated: Truncated(Box((0.0,), (1.0,)), (0.2,), (0.4,)),
    Form: Form(size=8),
    Autoencoder: Autoencoder("vae", False, "0" * 64, (3, 16, 24)),
    LearnedSolver: LearnedSolver(80.0, (80.0, 1.0), (1.0, 0.1), ((), (0.5,), (0.2, 0.8)), 0.5),
    JoinedSummary: JoinedSummary(("image", "number"), ((1, 8, 8), (1,))),
}
"""Choices whose fields have no defaults, and no values that suit them all."""
PRIORS = {Independent, OwnPrior, TorchPrior, Truncated}
"""Made of other priors, distributions or objects: `prior_to_config` writes them (tests/inference/test_priors.py)."""


def kind_of(choice: Choice) -> type[Choice]:
    """The kind below `Choice` that it belongs to: Schedule for a VP."""
    return next(c for c in type(choice).__mro__ if Choice in c.__bases__)


def with_defaults(cls: type[Choice]) -> Choice:
    if cls in EXAMPLES:
        return EXAMPLES[cls]
    hints = get_type_hints(cls)
    required = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
    return cls(**{name: REQUIRED[hints[name]] for name in required})


def through_json(choice: Choice) -> Any:
    """The content of a file that `choice` was written to, by the JSON standard, which has no infinities."""
    return json.loads(json.dumps(to_config(choice), allow_nan=False))


def through_the_command_line(choice: Choice) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--choice", type=kind_of(choice))
    # JSON has no infinity: `from_config` knows the text, the command line `.inf` (and `inf` where it is typed).
    plain = json.loads(json.dumps(through_json(choice)).replace('"inf"', "Infinity"))
    return parser.instantiate(parser.parse_object({"choice": plain})).choice


@pytest.mark.parametrize("cls", [c for c in CONCRETE if c not in PRIORS], ids=class_path)
def test_every_choice_survives_json_with_its_defaults(cls: type[Choice]) -> None:
    choice = with_defaults(cls)
    assert from_config(kind_of(choice), through_json(choice)) == choice


@pytest.mark.parametrize("cls", [c for c in CONCRETE if issubclass(c, ABC) and c not in PRIORS], ids=class_path)
def test_every_choice_that_has_alternatives_is_read_by_the_command_line(cls: type[Choice]) -> None:
    choice = with_defaults(cls)
    assert through_the_command_line(choice) == choice


@given(
    st.one_of(
        all_samplers(), all_levels(), all_schedules(), all_preconditionings(), all_objectives(), continuous_noise()
    )
)
def test_any_choice_survives_json_to_the_last_digit(choice: Choice) -> None:
    back = from_config(kind_of(choice), through_json(choice))
    assert back == choice
    assert hash(back) == hash(choice)
    assert repr(back) == repr(choice)


@given(st.one_of(all_levels(), all_schedules(), all_solvers(), all_objectives(), all_preconditionings()))
def test_any_choice_is_read_by_the_command_line_to_the_last_digit(choice: Choice) -> None:
    assert through_the_command_line(choice) == choice


def shortened(choice: Choice) -> dict[str, Any]:
    """The plain form, as a version wrote it that had none of the arguments that have their defaults now."""
    defaults = {f.name: f.default for f in dataclasses.fields(choice) if f.default is not dataclasses.MISSING}
    arguments = {
        name: shortened(value) if isinstance(value := getattr(choice, name), Choice) else plain
        for name, plain in to_config(choice)["init_args"].items()
        if name not in defaults or getattr(choice, name) != defaults[name]
    }
    return {"class_path": class_path(type(choice)), "init_args": arguments}


@given(st.one_of(all_samplers(), all_solvers(), all_objectives(), all_preconditionings()))
def test_arguments_newer_than_a_file_have_their_defaults(choice: Choice) -> None:
    whole = {"list": [to_config(choice)], "name": "x", "none": None}
    assert complete({"list": [shortened(choice)], "name": "x", "none": None}) == whole
    assert complete(whole) == whole


def test_descriptions_of_unknown_choices_are_left_as_they_are() -> None:
    settings = {"other": {"class_path": "elsewhere.Sampler", "init_args": {"steps": 3}}, "bad": {"class_path": None}}
    assert complete(settings) == settings


@pytest.mark.parametrize("cls", CONCRETE, ids=class_path)
def test_a_choice_cannot_be_changed(cls: type[Choice]) -> None:
    choice = with_defaults(cls)
    for field in dataclasses.fields(choice):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(choice, field.name, getattr(choice, field.name))


@dataclasses.dataclass(frozen=True)
class Interval(Choice):
    low: float = -math.inf
    high: float = math.inf


def test_infinities_are_written_as_words() -> None:
    assert to_config(Interval())["init_args"] == {"low": "-inf", "high": "inf"}
    assert from_config(Interval, through_json(Interval())) == Interval()
    assert from_config(Churn, through_json(Churn(1.0))) == Churn(1.0)


def test_a_class_is_named_by_the_package_that_users_import_it_from() -> None:
    assert class_path(Heun) == "openedm.sampling.Heun"
    assert class_path(schedules.VP) == "openedm.schedules.VP"


def test_a_name_may_be_shortened_where_one_choice_has_it() -> None:
    assert from_config(schedules.Schedule, {"class_path": "VP"}) == schedules.VP()
    assert from_config(levels.Levels, {"class_path": "VP", "init_args": {"num_steps": 5}}) == levels.VP(5)
    with pytest.raises(ValueError, match=r"class_path 'EDM' is ambiguous for a Choice; known: .*openedm.schedules.EDM"):
        from_config(Choice, {"class_path": "EDM"})


@pytest.mark.parametrize("config", [{}, {"class_path": None}, {"class_path": "VPP"}, {"class_path": "builtins.print"}])
def test_an_unknown_name_is_refused_with_the_names_that_are_known(config: dict[str, Any]) -> None:
    name = config.get("class_path")
    with pytest.raises(ValueError, match=rf"class_path {name!r} is not known for a Schedule; known: .*schedules.VP"):
        from_config(schedules.Schedule, config)


def test_a_choice_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"class_path 'openedm.sampling.Heun' is not known for a Schedule"):
        from_config(schedules.Schedule, to_config(Heun()))


def test_a_kind_is_no_choice() -> None:
    with pytest.raises(ValueError, match=r"class_path 'openedm.schedules.Schedule' is not known"):
        from_config(schedules.Schedule, {"class_path": "openedm.schedules.Schedule"})


def test_unknown_arguments_are_refused_by_name() -> None:
    config = {"class_path": "openedm.schedules.VP", "init_args": {"beta_max": 20.0, "beta_min": 0.1}}
    with pytest.raises(ValueError, match=r"init_args of 'openedm.schedules.VP': unknown names \['beta_max'\]"):
        from_config(schedules.Schedule, config)


def test_a_value_out_of_range_in_a_file_is_refused_as_in_python() -> None:
    with pytest.raises(ValueError, match=r"beta_d must be finite and > 0, got -1.0"):
        from_config(schedules.Schedule, {"class_path": "VP", "init_args": {"beta_d": -1.0}})


@pytest.mark.parametrize("nested", [False, True])
def test_reading_a_file_imports_no_module_that_it_names(
    nested: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mischief.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    config: dict[str, Any] = {"class_path": "mischief.Solver"}
    if nested:
        config = {"class_path": "Sampler", "init_args": {"solver": config}}
    with pytest.raises(ValueError, match=r"class_path 'mischief.Solver' is not known"):
        from_config(Sampler if nested else Solver, config)
    assert "mischief" not in sys.modules


def test_a_table_stays_a_tuple_of_numbers() -> None:
    choice = preconditioning.IDDPM(num_levels=2, table=(2.0, 1.0, 0.0))
    back = from_config(preconditioning.Preconditioning, through_json(choice))
    assert isinstance(back, preconditioning.IDDPM)
    assert back.table == (2.0, 1.0, 0.0)


def test_a_nested_choice_of_another_kind_is_refused() -> None:
    config = {"class_path": "Sampler", "init_args": {"solver": to_config(schedules.EDM())}}
    with pytest.raises(ValueError, match=r"class_path 'openedm.schedules.EDM' is not known for a Solver"):
        from_config(Sampler, config)


def test_a_nested_name_may_be_shortened_among_the_choices_of_its_field() -> None:
    config = {"class_path": "Sampler", "init_args": {"schedule": {"class_path": "EDM"}, "levels": {"class_path": "VP"}}}
    assert from_config(Sampler, config) == Sampler(schedule=schedules.EDM(), levels=levels.VP())


@pytest.mark.parametrize("value", ["Heun", 2, None, [1.0]])
def test_a_plain_value_is_refused_where_a_choice_belongs(value: object) -> None:
    with pytest.raises(ValueError, match=r"init_args solver must be a Solver, \{\"class_path\": …\}, got "):
        from_config(Sampler, {"class_path": "Sampler", "init_args": {"solver": value}})


@pytest.mark.usefixtures("without_type_checker")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sampler(solver=Heun), "solver must be an instance of openedm.sampling.Solver, got the class Heun"),  # type: ignore[arg-type]
        (lambda: Sampler(solver="Heun"), "solver must be an instance of openedm.sampling.Solver, got 'Heun'"),  # type: ignore[arg-type]
        (lambda: Sampler(levels=18), "levels must be an instance of openedm.levels.Levels, got 18, of type int"),  # type: ignore[arg-type]
        (lambda: Sampler(schedule=levels.VP()), "schedule must be an .*, of type openedm.levels.VP"),  # type: ignore[arg-type]
        (lambda: Sampler(scaling=1.0), "scaling must be an instance of openedm.schedules.Scaling or None, got 1.0"),  # type: ignore[arg-type]
        (lambda: levels.Uniform(schedule=preconditioning.EDM()), "schedule must be an .* openedm.preconditioning.EDM"),  # type: ignore[arg-type]
    ],
)
def test_another_value_is_refused_where_a_choice_belongs_when_it_is_made(make: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make()


def test_none_stays_none_where_the_field_allows_it() -> None:
    assert from_config(Sampler, {"class_path": "Sampler", "init_args": {"scaling": None}}) == Sampler(scaling=None)


def test_a_class_may_be_named_by_the_module_that_defines_it() -> None:
    assert from_config(Solver, {"class_path": "openedm.sampling.solvers.Heun"}) == Heun()


def test_a_choice_in_brief_is_what_differs_from_the_defaults():
    assert brief(schedules.EDM()) == "EDM"
    assert brief(levels.Karras(18, sigma_max=80.0)) == "Karras(sigma_max=80)"
    sampler = openedm.Sampler(levels.Karras(5, sigma_min=0.0021234), schedules.VP())
    assert brief(sampler) == "Sampler(levels=Karras(num_steps=5, sigma_min=0.00212), schedule=VP)"
    listed = levels.Explicit(tuple(8 / 3**i for i in range(9)))
    assert brief(listed) == "Explicit(values=(8, 2.67, … 6 more …, 0.00122))"
    assert brief(levels.Explicit((3.0, 1.0))) == "Explicit(values=(3, 1))"
