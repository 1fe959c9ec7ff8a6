"""States of the explorer as URLs, command lines and Python; and what a URL cannot do."""

import shlex
from dataclasses import dataclass
from urllib.parse import parse_qsl

import pytest
import torch

from marks import FAR_APART
from openedm import guidance, levels, objective, preconditioning, sampling, schedules
from openedm.cli.explore import explore
from openedm.cli.parsing import parse
from openedm.exploring import State, exact_problem
from openedm.exploring.controls import controls_of
from openedm.exploring.fields import changed, classes_of, defaults_of
from openedm.exploring.links import command_line, from_query, python_lines, query_of, sample_line
from openedm.sampling import Churn, Sampler, Solver

STATES = [
    State(),
    State(view="compare", run="a b&c", against="ü", num=64, seed=2**32 - 1),
    State(sampler=Sampler(levels.Karras(9, 0.01, 50.0), schedules.VP(beta_d=15.0), schedules.NoScaling())),
    State(sampler=Sampler(solver=sampling.Restart(sampling.Euler(), low=0.1, high=2.0)), data="rings"),
    State(sampler=Sampler(levels.Explicit((80.0, 1.0, 0.01)), churn=Churn(5.0, 0.05, 10.0))),
    State(guidance=guidance.Piecewise((0.3, 3.0), (1.0, 2.0)), label=1),
    State(
        guidance=guidance.Interval(1.5, 0.1), label=0, preconditioning=preconditioning.VE(), objective=objective.VP()
    ),
    State(sampler=Sampler(solver=sampling.Tsit5(tolerance=1e-4, variable=schedules.VP()))),
]


@pytest.mark.parametrize("state", STATES, ids=lambda state: query_of(state)[:30] or "default")
def test_a_state_is_its_url_and_its_command_line(state: State) -> None:
    assert from_query(parse_qsl(query_of(state), keep_blank_values=True)) == state
    program, command, *arguments = shlex.split(command_line(state, ["runs/a"]))
    assert (program, command) == ("openedm", "explore")
    values = parse("openedm explore", explore, arguments)
    assert (values["state"], values["runs"]) == (state, ["runs/a"])


@FAR_APART
@pytest.mark.parametrize("cls", classes_of(Solver), ids=lambda cls: cls.__name__)
def test_every_solver_can_be_chosen_by_name(cls: type[Solver]) -> None:
    state = from_query([("sampler.solver", cls.__name__)])
    assert state.sampler.solver == cls(**defaults_of(cls))
    names = [control.name for group in controls_of(state) for control in group.controls]
    assert "sampler.solver" in names
    assert len(set(names)) == len(names)


def test_the_options_of_another_class_start_from_its_defaults() -> None:
    state = from_query([("sampler.levels", "VE"), ("sampler.levels.num_steps", "5")])
    assert state.sampler.levels == levels.VE(num_steps=5)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("sampler.levels.num_steps=abc", "num_steps must be an integer, got 'abc'"),
        ("sampler.levels.num_steps=1000000000", "num_steps must be at most 10,000 here"),
        ("sampler.levels.num_steps=5000", "num_steps must be between 1 and 256, got 5000"),
        ("sampler.levels.rho=-1", "rho must be finite and > 0, got -1"),
        ("num=1000000000", "num must be between 1 and 256, got 1000000000"),
        ("sampler.solver=Hoin", "sampler.solver must be one of Multistep, .*, got 'Hoin'"),
        ("sampler.solver=subprocess.Popen", "sampler.solver must be one of"),
        ("sampler.solver=openedm.networks.MLP", "sampler.solver must be one of"),
        ("preconditioning=IDDPM&preconditioning.num_levels=1000000000", "num_levels must be at most 10,000 here"),
        ("guidance=Piecewise&guidance.sigmas=[3,1]&guidance.weights=[1,1]", "sigmas must"),
        ("data=ImageFolder", "data must be one of"),
        ("data.path=/etc/passwd", "data has no options, got data.path"),
        ("runs=/etc", "there is no option runs; known: view, data"),
        ("config=/etc/passwd", "there is no option config"),
        ("import=os", "there is no option import"),
        ("num=3&num=4", "num must be given once, got '3' and '4'"),
        ("sampler.levels=Explicit&sampler.levels.values=" + "[" * 3000, "must have at most 2000 characters"),
        ("sampler.levels=Explicit&sampler.levels.values=" + "[" * 1500, "values must be"),
        (".".join(["sampler"] * 10) + "=1", "there is no option"),
        ("&".join(f"x{i}=1" for i in range(101)), "at most 100 options"),
    ],
)
def test_what_does_not_fit_says_why(query: str, message: str, without_type_checker: None) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        from_query(parse_qsl(query, keep_blank_values=True))


def test_the_lines_of_python_draw_the_samples_of_the_page() -> None:
    state = from_query(
        parse_qsl("sampler.solver=Euler&sampler.levels.num_steps=5&label=1&guidance.weight=2&num=3&seed=4")
    )
    found: dict[str, torch.Tensor] = {}
    exec(python_lines(state), found)
    expected = state.sampler.sample(exact_problem("two_moons", 1, state.guidance).denoiser, range(4, 7))
    assert torch.equal(found["x"], expected)


def test_the_samples_of_a_run_are_those_of_a_command() -> None:
    state = State(view="samples", num=4, seed=2, label=3)
    assert sample_line(state, "runs/a b") == "openedm sample 'runs/a b' samples --seeds 2-5 --classes 3 --nfe null"
    state = from_query([("view", "samples"), ("sampler.churn.s_churn", "2")])
    assert sample_line(state, "a") == "openedm sample a samples --seeds 0-15 --sampler.churn.s_churn 2"


def test_nothing_is_written_that_is_a_default() -> None:
    assert list(changed(State(), State())) == []
    assert query_of(State(num=4)) == "num=4"


@dataclass(frozen=True)
class Countless(levels.Levels):
    def sigmas(self) -> torch.Tensor:
        return torch.ones(1)


def test_a_rule_of_ones_own_without_a_number_of_levels_is_a_state() -> None:
    state = State(sampler=Sampler(Countless()))
    assert dict(parse_qsl(query_of(state)))["sampler.levels"].endswith("Countless")
