"""Options are a function's arguments: every choice can be spelled on the command line and in YAML alike."""

import ast
import contextlib
import dataclasses
import importlib
import inspect
import io
import textwrap
from abc import ABC
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentError

from openedm import levels, objective, schedules
from openedm.cli.main import COMMANDS, GROUPS
from openedm.cli.parsing import dump, explain, parse
from openedm.cli.sample import sample
from openedm.cli.train import train
from openedm.data import Arrays, Digits, ImageFolder, Toy
from openedm.ground.choices import Choice
from openedm.guidance import Interval
from openedm.networks import ADM, MLP, DDPMpp, NCSNpp, SongUNet
from openedm.objective import EDM, EDM2, VP, LogNormal, UniformTime
from openedm.sampling import RK4, Churn, Euler, Sampler
from openedm.training import HalfLife, Initial, Options
from properties.strategies import all_objectives, all_preconditionings, all_samplers

positive = st.integers(1, 10**6)
texts = st.text("aé /-_.", min_size=1).map(lambda text: "x" + text)
unets = {
    "model_channels": st.integers(1, 64).map(lambda n: 2 * n),
    "channel_mult": st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple),
    "attn_resolutions": st.none() | st.lists(st.sampled_from([8, 16]), max_size=2, unique=True).map(tuple),
    "dropout": st.floats(0, 0.9),
}
sizes_of_adm = {**unets, "model_channels": st.integers(32, 96).map(lambda n: 2 * n), "channel_mult": st.just((2, 1))}
all_networks = st.one_of(
    st.builds(MLP, positive, positive),
    st.builds(DDPMpp, **unets),
    st.builds(NCSNpp, **unets),
    st.builds(
        SongUNet,
        **unets,
        encoder=st.sampled_from(["standard", "skip", "residual"]),
        decoder=st.sampled_from(["standard", "skip"]),
        resample_filter=st.sampled_from([(1, 1), (1, 3, 3, 1)]),
    ),
    st.builds(ADM, **sizes_of_adm),
)
all_sources = st.one_of(
    st.builds(Digits, st.sampled_from(["train", "test", "all"])),
    st.builds(Toy, st.sampled_from(["two_modes", "rings"]), positive, st.integers(0, 9)),
    st.builds(Arrays, texts, st.none() | texts),
    st.builds(ImageFolder, texts, st.none() | st.integers(1, 2**16), channels=st.sampled_from([None, 1, 3, 4])),
)
all_options = st.builds(
    Options,
    images=positive,
    batch_size=positive,
    learning_rate=st.floats(1e-9, 1),
    average=st.builds(HalfLife, st.floats(0, 1e9), st.floats(1e-3, 10) | st.just(float("inf"))),
    clip_norm=st.none() | st.floats(1e-3, 1e3),
    precision=st.sampled_from(["fp32", "bf16", "auto"]),
    compile=st.booleans(),
    seed=st.integers(0, 2**40),
)
runs = st.fixed_dictionaries(
    {
        "out": texts,
        "data": all_sources,
        "validation": st.none() | all_sources,
        "network": all_networks,
        "preconditioning": all_preconditionings(),
        "objective": all_objectives(),
        "options": all_options,
        "sampler": all_samplers(),
        "guidance": st.builds(Interval, st.floats(0, 100))
        | st.builds(Interval, st.just(2.0), st.just(0.1), st.just(5.0)),
        "conditional": st.booleans(),
        "standardise": st.booleans(),
        "init": st.builds(Initial, mismatch=st.sampled_from(["error", "new"])),
        "resume": st.just(False),
        "tracker": st.sampled_from(["tensorboard", "none"]),
        "budget": st.none() | st.sampled_from(["cpu-hour", "gpu-80gb"]),
        "preset": st.none(),
        "vae": st.none() | texts,
        "plan": st.just(False),
    }
)


def spell(name: str, value: Any, default: Any) -> list[str]:
    """`value` on the command line, as one would type it: only what differs from the defaults, classes by short name."""
    if value == default and type(value) is type(default):
        return []
    if not isinstance(value, Choice):
        return [f"--{name}={_text(value)}"]
    typed = []
    if isinstance(value, ABC) and type(value) is not type(default):
        typed, default = [f"--{name}={type(value).__name__}"], type(value)
    for field in dataclasses.fields(value):
        inner = field.default if default is type(value) else getattr(default, field.name)
        typed += spell(f"{name}.{field.name}", getattr(value, field.name), inner)
    return typed


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return f"[{','.join(map(str, value))}]"
    return str(value)


def read(command, *arguments):
    return parse("openedm", command, list(arguments))


DEFAULTS = {name: p.default for name, p in inspect.signature(train).parameters.items()}


# Laws.


@settings(max_examples=12)
@given(runs)
def test_what_is_dumped_into_a_file_and_read_as_config_is_the_same(run):
    path = Path("config.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(_folder())
        path.write_text(dump(run), encoding="utf-8")
        assert read(train, "--config", "config.yaml") == run


def _folder() -> str:
    import tempfile

    return tempfile.mkdtemp()


@settings(max_examples=16)
@given(runs)
def test_a_choice_is_its_class_name_and_what_differs_from_the_defaults_of_that_class(run):
    typed = [run["out"]]
    for name, value in run.items():
        typed += spell(name, value, DEFAULTS[name]) if name != "out" else []
    assert read(train, *typed) == run


@settings(max_examples=6)
@given(runs, runs)
def test_what_is_typed_overrules_the_config_file_wherever_it_stands(file, typed):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(_folder())
        Path("config.yaml").write_text(dump(file), encoding="utf-8")
        options = [*spell("network", typed["network"], file["network"]), f"--conditional={_text(typed['conditional'])}"]
        expected = file | {"out": typed["out"], "network": typed["network"], "conditional": typed["conditional"]}
        assert read(train, typed["out"], *options, "--config=config.yaml") == expected
        assert read(train, "--config", "config.yaml", typed["out"], *options) == expected


# Examples.


def test_without_options_every_argument_is_its_default():
    assert read(train, "here") == DEFAULTS | {"out": "here"}
    assert read(sample, "run", "out")["options"].sampler == Sampler()


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["--sampler.levels=VP"], Sampler(levels.VP())),
        (["--sampler.levels", "VP", "--sampler.levels.num_steps", "5"], Sampler(levels.VP(5))),
        (["--sampler.levels.num_steps=5"], Sampler(levels.Karras(5))),
        (["--sampler.levels=openedm.levels.VE"], Sampler(levels.VE())),
        (["--sampler.levels=Explicit", "--sampler.levels.values=[9,1]"], Sampler(levels.Explicit((9.0, 1.0)))),
        (["--sampler.solver=RK4", "--sampler.final=euler"], Sampler(solver=RK4(), final="euler")),
        (["--sampler.churn.s_churn=40", "--sampler.churn.s_max=50"], Sampler(churn=Churn(40.0, s_max=50.0))),
        (
            ["--sampler.schedule=VP", "--sampler.schedule.beta_d=10", "--sampler.scaling=NoScaling"],
            Sampler(schedule=schedules.VP(10.0), scaling=schedules.NoScaling()),
        ),
    ],
)
def test_a_chosen_class_starts_from_its_own_defaults(typed, expected):
    assert read(sample, "run", "out", *typed)["options"].sampler == expected


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["--objective=EDM2"], EDM2()),
        (["--objective=EDM2", "--objective.noise.p_std=1.5"], EDM2(noise=LogNormal(-0.4, 1.5))),
        (["--objective.noise.p_std=1.5"], EDM(noise=LogNormal(None, 1.5))),
        (["--objective.noise=LogUniform"], EDM(noise=objective.LogUniform())),
        (["--objective=VP", "--objective.noise.epsilon_t=0.01"], VP(noise=UniformTime(epsilon_t=0.01))),
        (
            ["--objective=VP", "--objective.noise.schedule=Cosine"],
            VP(noise=UniformTime(schedule=schedules.Cosine())),
        ),
        (
            ["--objective.noise=UniformTime", "--objective.noise.schedule=Cosine"],
            EDM(noise=UniformTime(schedule=schedules.Cosine())),
        ),
        (
            ["--objective=EDM2", "--objective.noise=UniformTime", "--objective.noise.schedule.beta_d=10"],
            EDM2(noise=UniformTime(schedule=schedules.VP(10.0))),
        ),
    ],
)
def test_a_choice_inside_a_choice_starts_from_the_defaults_of_the_class_around_it(typed, expected):
    assert read(train, "run", *typed)["objective"] == expected


def test_an_optional_choice_is_none_until_it_is_named():
    assert read(train, "run")["validation"] is None
    assert read(train, "run", "--validation=Digits", "--validation.split=test")["validation"] == Digits("test")


def test_a_config_file_may_hold_a_part_of_the_options(tmp_path):
    file = tmp_path / "part.yaml"
    file.write_text("network: {class_path: MLP, init_args: {width: 8}}\noptions: {images: 7}\n")
    values = read(train, "run", "--config", str(file), "--options.batch_size=3")
    assert values["network"] == MLP(width=8)
    assert values["options"] == Options(images=7, batch_size=3)


def test_a_class_that_is_typed_starts_from_its_own_defaults_whatever_the_config_file_says_of_another(tmp_path):
    file = tmp_path / "part.yaml"
    file.write_text("sampler: {levels: {class_path: Karras, init_args: {sigma_min: 0.01, num_steps: 5}}}\n")
    assert read(sample, "run", "out", "--config", str(file))["options"].sampler.levels == levels.Karras(
        5, sigma_min=0.01
    )
    values = read(sample, "run", "out", "--sampler.levels=VP", "--config", str(file))
    assert values["options"].sampler.levels == levels.VP()


def test_what_is_dumped_is_plain_yaml_that_names_every_value():
    plain = yaml.safe_load(dump({"sampler": Sampler(), "objective": EDM2(), "out": "é"}))
    assert plain["out"] == "é"
    assert plain["objective"]["class_path"] == "openedm.objective.EDM2"
    assert plain["objective"]["init_args"]["noise"]["init_args"] == {"p_mean": -0.4, "p_std": 1.0}
    assert plain["sampler"]["churn"] == {"s_churn": 0.0, "s_min": 0.0, "s_max": float("inf"), "s_noise": 1.0}


# Errors.


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ([], ["required", "out"]),
        (["run", "other"], ["other"]),
        (["run", "--netwrk=MLP"], ["--netwrk"]),
        (
            ["run", "--network=MPL"],
            ["network", "MPL", "known: ADM, ConditionalEnsemble, ConditionalMLP, DDPMpp", "MLP, ModuleNetwork, NCSNpp"],
        ),
        (["run", "--network=MLP", "--network.widht=8"], ["network", "widht"]),
        (["run", "--sampler.levels=Kerras"], ["sampler.levels", "Kerras", "Karras"]),
        (
            ["run", "--network=openedm.levels.VP"],
            [
                "network",
                "openedm.levels.VP",
                "known: ADM, ConditionalEnsemble, ConditionalMLP, DDPMpp",
                "MLP, ModuleNetwork, NCSNpp",
            ],
        ),
        (["run", "--options.batch_size=many"], ["options.batch_size", "many", "int"]),
        (["run", "--options.batch_size=1.5"], ["options.batch_size", "1.5", "int"]),
        (["run", "--options.precision=fp16"], ["options.precision", "fp16"]),
        (["run", "--tracker=nowhere"], ["tracker", "nowhere", "tensorboard"]),
        (["run", "--conditional=maybe"], ["conditional", "maybe"]),
        (["run", "--config=nowhere.yaml"], ["config", "nowhere.yaml"]),
        (["run", "--config"], ["--config"]),
    ],
)
def test_an_argument_that_cannot_be_read_is_an_error_on_one_line_that_names_it(typed, names):
    with pytest.raises(ArgumentError) as caught:
        read(train, *typed)
    message = explain(train, str(caught.value))
    assert "\n" not in message
    for name in names:
        assert name in message


def test_known_classes_are_listed_where_a_class_is_wrong_and_not_where_its_options_are():
    with pytest.raises(ArgumentError) as caught:
        read(train, "run", "--network=MLP", "--network.widht=8")
    assert "known:" not in explain(train, str(caught.value))


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--options.batch_size=0"], "batch_size must be >= 1, got 0"),
        (["--network=MLP", "--network.width=-3"], "width must be >= 1, got -3"),
        (["--objective.noise.p_std=0"], "p_std must be finite and > 0, got 0.0"),
        (["--sampler.levels.num_steps=0"], "num_steps must be >= 1, got 0"),
    ],
)
def test_a_value_out_of_range_is_a_value_error_that_names_it(typed, message):
    with pytest.raises(ValueError, match=message):
        read(train, "run", *typed)


@pytest.mark.parametrize(
    "content",
    [
        "options: {imges: 3}",
        "a: [",
        "nothing: 1",
        "network: {class_path: openedm.levels.VP}",
        "- 1",
        "word",
        "class_path: VP",
    ],
)
def test_a_config_file_that_makes_no_sense_is_an_error(content, tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(ArgumentError):
        read(train, "run", "--config", str(file))


# All commands.


def commands():
    """Every command with the name it is called by."""
    for path in [name for name in COMMANDS if name not in GROUPS] + [
        f"{g}.{name}" for g in GROUPS for name in GROUPS[g]
    ]:
        module = importlib.import_module(f"openedm.cli.{path}")
        yield f"openedm {path.replace('.', ' ')}", getattr(module, path.rpartition(".")[2])


def printed(program, command, *typed):
    """What is printed before the command ends."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), pytest.raises(SystemExit) as caught:
        parse(program, command, list(typed))
    assert not caught.value.code
    return text.getvalue()


def test_a_choice_inside_a_chosen_class_has_a_help_too():
    typed = ["run", "out", "--sampler.solver=Multistep", "--sampler.solver.variable.help"]
    assert "  LogSigma " in printed("openedm sample", sample, *typed)
    assert "--objective.noise.p_mean" in printed("openedm train", train, "--objective.noise.help=LogNormal")


def test_the_help_of_a_class_that_does_not_exist_names_those_that_do():
    with pytest.raises(ArgumentError, match=r"must be followed by one of .*Heun.*, got 'Huen'"):
        read(sample, "--sampler.solver.help", "Huen")
    with pytest.raises(ArgumentError, match=r"--sampler.solver.variable.help: there is no choice sampler.solver.var"):
        read(sample, "run", "out", "--sampler.solver.variable.help")  # Heun's method has no variable.


@pytest.mark.parametrize(("program", "command"), list(commands()))
def test_a_command_has_at_most_forty_lines(program, command):
    lines, _ = inspect.getsourcelines(inspect.unwrap(command))
    (function,) = ast.parse(textwrap.dedent("".join(lines))).body
    body = function.body[1:]  # without the docstring
    assert body[-1].end_lineno - body[0].lineno < 40


@pytest.mark.parametrize(("program", "command"), list(commands()))
def test_every_argument_of_every_command_is_described(program, command):
    described = command.__doc__.partition("Args:")[2]
    for argument in get_type_hints(command).keys() - {"return"}:
        assert f"        {argument}: " in described


# Abbreviations, and files of older versions.


@pytest.mark.parametrize(
    ("typed", "nfe"),
    [
        ([], "auto"),
        (["--nfe=null"], None),
        (["--tolerance=0.1"], None),
        (["--sampler.solver=Heun"], None),
        (["--nfe=9"], 9),
    ],
)
def test_the_default_budget_ends_where_a_tolerance_or_a_sampler_is_given(typed, nfe, tmp_path):
    assert read(sample, "run", "out", *typed)["options"].nfe == nfe


def test_the_default_budget_ends_where_a_file_describes_the_sampler(tmp_path):
    file = tmp_path / "part.yaml"
    file.write_text("sampler: {solver: Euler}\n")
    options = read(sample, "run", "out", "--config", str(file))["options"]
    assert (options.nfe, options.sampler) == (None, Sampler(solver=Euler()))


def test_names_of_version_0_1_in_files_and_on_the_command_line_mean_what_they_meant(tmp_path):
    file = tmp_path / "old.yaml"
    file.write_text(
        """
sampler:
  solver:
    class_path: openedm.sampling.Multistep
    init_args:
      predictor: 2
      variable:
        class_path: openedm.sampling.ScheduleTime
        init_args: {schedule: {class_path: openedm.schedules.Cosine}}
      prediction: {class_path: openedm.sampling.VelocityPrediction}
"""
    )
    solver = read(sample, "run", "out", "--config", str(file))["options"].sampler.solver
    assert solver.variable == schedules.Cosine()
    assert type(solver.prediction).__name__.startswith("Velocity")
    solver = ["--sampler.solver=openedm.sampling.Multistep", "--sampler.solver.variable=openedm.sampling.LogSigma"]
    assert read(sample, "run", "out", *solver)["options"].sampler.solver.variable == schedules.LogSigma()
    file.write_text("sampler: {solver: {class_path: Multistep, init_args: {variable: ScheduleTime}}}\n")
    assert read(sample, "run", "out", "--config", str(file))["options"].sampler.solver.variable == schedules.VP()


@pytest.mark.parametrize(
    "words", [["--data.range", "0", "1"], ["--data.range=0,1"], ["--data.range", "[0, 1]"], ["--data.range", "0,", "1"]]
)
def test_a_tuple_is_spelled_as_words_or_a_list(words):
    arguments = ["--data", "Arrays", *words, "--data.path", "x.npy", "--data.layout=channels_last", "run"]
    values = parse("openedm train", train, arguments)
    assert values["data"] == Arrays("x.npy", layout="channels_last", range=(0.0, 1.0))
    assert values["out"] == "run"
    negative = ["run", "--data=x/a.npy", "--data.range", "-1.5", "2e3"]
    assert parse("openedm train", train, negative)["data"] == Arrays("x/a.npy", range=(-1.5, 2e3))
