"""What is given in the wrong kind is refused by name, with what would be right, when it is given."""

import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from torch import nn

import openedm
from openedm import data, exact, levels, networks, objective, preconditioning, schedules, suggest, training
from openedm.ground.choices import Choice, subclasses
from openedm.ground.tensors import as_tensor

pytestmark = pytest.mark.usefixtures("without_type_checker")

X = torch.arange(128.0).reshape(64, 2) / 128
D = openedm.ExactDataset(X)
VECTORS = openedm.Model(network=openedm.MLP(), event_shape=(2,), images=False)


def function(returned: Callable[[torch.Tensor], Any]) -> openedm.FunctionDenoiser:
    return openedm.FunctionDenoiser(lambda x, sigma, condition: returned(x), (2,))


MISUSES: dict[str, tuple[Callable[[], object], str]] = {
    "a solver by name": (lambda: openedm.Sampler(solver="heun"), r"write solver=openedm\.sampling\.Heun\(\)"),
    "a solver that is not known": (lambda: openedm.Sampler(solver="rk9"), r"solver must be .*write an instance of .*"),
    "a class of solvers": (lambda: openedm.Sampler(solver=openedm.Heun), r"got the class Heun: write Heun\(\)"),
    "a number for levels": (lambda: openedm.Sampler(levels=18), r"such as levels=openedm\.Karras\(18\)"),
    "no levels": (lambda: openedm.Sampler(levels=None), r"levels must be an instance of openedm\.levels\.Levels"),
    "levels in a list": (lambda: openedm.Sampler(levels=[1.0, 0.0]), r"levels must be .*Explicit"),
    "a number for churn": (lambda: openedm.Sampler(churn=40.0), r"churn must be an instance of .*Churn"),
    "churn in words": (lambda: openedm.Churn("1"), r"s_churn must be a number, got '1'"),
    "a plain function": (lambda: openedm.Sampler().sample(lambda x, s: x, seeds=[0]), r"openedm\.FunctionDenoiser\("),
    "a plain module": (lambda: openedm.Sampler().sample(nn.Linear(2, 2), seeds=[0]), r"openedm\.Preconditioned\("),
    "a path": (lambda: openedm.Sampler().sample("run", seeds=[0]), r"openedm\.load_denoiser\(path\)"),
    "no denoiser": (lambda: openedm.Sampler().sample(None, seeds=[0]), r"denoiser must be a Denoiser, got NoneType"),
    "auto without denoiser": (lambda: openedm.Auto().sample(None, seeds=[0]), r"denoiser must be a Denoiser"),
    "a float seed": (lambda: openedm.Sampler().sample(D, seeds=[1.5]), r"seeds must be integers, got 1\.5"),
    "a single seed": (lambda: openedm.Sampler().sample(D, seeds=4), r"seeds must be integers, such as range\(4\)"),
    "noise that is a number": (lambda: openedm.Sampler().sample(D, noise=3), r"noise must be a tensor"),
    "half a sample": (lambda: openedm.Options(batch_size=1.5), r"batch_size must be an integer, got 1\.5"),
    "images as a float": (lambda: openedm.Options(images=1e6), r"images must be an integer, got 1000000\.0: write 10"),
    "images in words": (lambda: openedm.Options(images="5"), r"images must be an integer, got '5'"),
    "a rate in words": (lambda: openedm.Options(learning_rate="1e-3"), r"learning_rate must be a number"),
    "a truth in words": (lambda: openedm.Options(compile="yes"), r"compile must be True or False, got 'yes'"),
    "a number for an average": (lambda: openedm.Options(average=0.999), r"average must be .*HalfLife"),
    "no network": (lambda: openedm.Model(network=None), r"network must be an instance of .*, got None"),
    "a class of networks": (lambda: openedm.Model(network=openedm.MLP), r"got the class MLP: write MLP\(\)"),
    "a number for a shape": (lambda: openedm.Model(event_shape=3), r"event_shape must be a tuple .*\(3,\)"),
    "a shape of floats": (lambda: openedm.Model(event_shape=(1.5,)), r"event_shape\[0\] must be an integer"),
    "a shape to build": (lambda: openedm.MLP().build(2), r"event_shape must be a tuple of integers, such as"),
    "classes in words": (lambda: openedm.Model(num_classes="3"), r"num_classes must be an integer"),
    "a network to train": (lambda: openedm.Trainer(openedm.MLP(), X), r"model must be a Model.*Model\.for_data"),
    "no data": (lambda: openedm.Trainer(VECTORS, None), r"dataset must be a Dataset .*__len__ and fetch"),
    "an objective by name": (lambda: openedm.Trainer(VECTORS, X, "edm"), r"objective must be an Objective, such as"),
    "options in a dict": (lambda: openedm.Trainer(VECTORS, X, options={}), r"options must be Options, such as"),
    "a function to observe": (lambda: openedm.Trainer(VECTORS, X, observers=[print]), r"observers must be"),
    "no data to measure": (lambda: data.measure(X), r"dataset must be a Dataset.*as_dataset"),
    "no data to suggest for": (lambda: suggest.suggest(None), r"data must be a Dataset"),
    "samples of nothing": (lambda: openedm.ExactDataset(None), r"data must be a tensor, an array or a list"),
    "samples of words": (lambda: data.InMemory(["a"]), r"x must be a tensor, an array or a list of numbers"),
    "words in an array": (lambda: data.InMemory(np.array(["a"])), r"x must be .*got an array of <U1"),
    "F that is a choice": (
        lambda: openedm.Preconditioned(openedm.MLP(), preconditioning.EDM()),
        r"network must be an nn\.Module.*got MLP: write network\.build\(event_shape\)",
    ),
    "F that is nothing": (lambda: openedm.Preconditioned(None, preconditioning.EDM()), r"network\(x, c_noise, cond"),
    "a class of preconditionings": (
        lambda: openedm.Preconditioned(nn.Linear(2, 2), preconditioning.EDM),
        r"preconditioning must be .*got the class EDM",
    ),
    "a number for D": (lambda: openedm.FunctionDenoiser(3), r"function must be a function D\(x, sigma, condition\)"),
    "D of one argument": (lambda: openedm.FunctionDenoiser(lambda x: x), r"D\(x, sigma, condition\) or D\(x, sigma\)"),
    "a function to guide": (lambda: openedm.ClassifierFree(lambda x, s: x, 2.0), r"FunctionDenoiser\(function\)"),
    "nothing that guides": (lambda: openedm.Guided(D, None, 2.0), r"guiding must be a Denoiser"),
    "a density of a function": (lambda: openedm.log_prob(lambda x, s: x, X), r"denoiser must be a Denoiser"),
    "a density of an array": (lambda: openedm.log_prob(D, X.numpy()), r"x must be a tensor"),
    "a number for a path": (lambda: openedm.load_denoiser(5), r"path must be the path of a checkpoint or run"),
    "steps in words": (lambda: openedm.Karras("18"), r"num_steps must be an integer"),
    "steps as a float": (lambda: openedm.Karras(18.0), r"num_steps must be an integer, got 18\.0: write 18"),
    "noise levels by number": (lambda: objective.EDM(noise=1.0), r"noise must be .*LogNormal"),
    "x in integers": (lambda: D(X.long(), 1.0), r"x must be a tensor of floating-point numbers.*write x\.float\(\)"),
    "x in an array": (lambda: D(X.numpy(), 1.0), r"x must be a tensor of floating-point numbers, got ndarray"),
    "sigma in words": (lambda: D(X, "1"), r"sigma must be a number, got '1'"),
    "no sigma": (lambda: D(X, None), r"sigma must be a number, got None"),
    "too few rows": (lambda: openedm.Sampler().sample(function(lambda x: x[:1]), [0, 1]), r"must return that shape"),
    "too few columns": (lambda: openedm.Sampler().sample(function(lambda x: x[:, :1]), [0]), r"got \(1, 1\)"),
    "one number": (lambda: openedm.Sampler().sample(function(lambda x: x.mean()), [0]), r"must return that shape"),
    "integers": (lambda: openedm.Sampler().sample(function(lambda x: x.long()), [0]), r"floating-point numbers"),
    "nothing": (lambda: openedm.Sampler().sample(function(lambda x: None), [0]), r"must return a tensor"),
}


@pytest.mark.parametrize("name", MISUSES)
def test_what_is_of_the_wrong_kind_is_refused_with_what_is_right(name: str) -> None:
    call, message = MISUSES[name]
    with pytest.raises((TypeError, ValueError), match=message):
        call()


ROOMS = [room for name in openedm.__all__ if inspect.ismodule(room := getattr(openedm, name))]
PUBLIC = [getattr(room, name) for room in ROOMS for name in getattr(room, "__all__", ())]
CHOICES = sorted(
    {c for c in PUBLIC if isinstance(c, type) and issubclass(c, Choice) and not inspect.isabstract(c)},
    key=lambda cls: f"{cls.__module__}.{cls.__name__}",
)


UNMADE = {"Piecewise", "Columns", "JoinedSummary", "LearnedSolver", "ParameterMap"}
"""Choices whose required fields are tables: one of them is refused before the other."""


class Wrong:
    """A value of no kind that an option can have."""


def made(cls: type[Choice], **changes: Any) -> Choice:
    """A choice whose required fields hold something of the right kind, or `changes`."""
    examples = {int: 3, float: 0.5, str: "x", bool: True}
    hints = get_type_hints(cls)
    required = {
        field.name: examples.get(hints[field.name])
        for field in dataclasses.fields(cls)
        if field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    return cls(**(required | changes))


@pytest.mark.parametrize("cls", CHOICES, ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_every_option_of_every_choice_refuses_a_value_of_no_kind_by_name(cls: type[Choice]) -> None:
    plain = (int, float, bool, str, int | None, float | None, str | None, tuple[int, ...], tuple[float, ...])
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        is_choice = isinstance(hint, type) and issubclass(hint, Choice)
        if field.init and (is_choice or hint in plain) and cls.__name__ not in UNMADE:
            with pytest.raises(TypeError, match=rf"^{re.escape(field.name)} must be "):
                made(cls, **{field.name: Wrong()})


def test_there_are_choices_in_all_rooms_of_the_design_space() -> None:
    covered = {cls.__module__.split(".")[1] for cls in CHOICES}
    assert covered >= {"data", "guidance", "inference", "levels", "likelihood", "networks", "objective"}
    assert covered >= {"preconditioning", "sampling", "schedules", "training"}
    assert len(CHOICES) <= len(set(subclasses(Choice)))


def test_numbers_of_numpy_become_those_of_python_and_lists_become_tuples() -> None:
    options = openedm.Options(images=np.int64(64), batch_size=np.int32(8), learning_rate=np.float32(0.5))
    assert options == openedm.Options(images=64, batch_size=8, learning_rate=0.5)
    assert type(options.images) is int
    assert type(options.learning_rate) is float
    model = openedm.Model(event_shape=[1, 8, 8])
    assert model.event_shape == (1, 8, 8)
    assert hash(model) == hash(openedm.Model(event_shape=(1, 8, 8)))


@pytest.mark.parametrize(
    "given",
    [X.numpy(), X.tolist(), X.numpy()[::-1][::-1], X.double().numpy().astype(">f8"), X.numpy().astype(np.longdouble)],
)
def test_arrays_and_lists_are_data(given: Any) -> None:
    assert torch.equal(openedm.ExactDataset(given)(X, 0.5), D(X, 0.5))
    assert torch.equal(data.InMemory(given).fetch([3])[0], X[3:4])
    assert torch.equal(as_tensor("x", given).double(), X.double())


@pytest.mark.parametrize("given", [X.to_sparse(), X.to("meta")])
def test_tensors_without_numbers_in_memory_are_refused(given: Any) -> None:
    with pytest.raises(TypeError, match="x must be a tensor with its numbers in memory"):
        data.InMemory(given)


@pytest.mark.parametrize(
    ("given", "described"),
    [
        (X, "64 vectors of 2 without labels"),
        (X.numpy(), "64 vectors of 2 without labels"),
        ((X, torch.arange(64) % 3), "64 vectors of 2 in 3 classes"),
        ((X.numpy(), X.numpy()), "64 vectors of 2 with conditions of 2"),
        (torch.utils.data.TensorDataset(X), "64 vectors of 2 without labels"),
        (data.Toy(num_samples=5), "5 vectors of 2 in 2 classes"),
    ],
)
def test_what_people_have_is_a_dataset(given: Any, described: str) -> None:
    assert data.as_dataset(given).describe() == described
    model = openedm.Model.for_data(given, openedm.MLP(width=8, num_blocks=1))
    assert model.event_shape == (2,)
    options = openedm.Options(images=8, batch_size=4, validate_every=0)
    training.Trainer(model, given, options=options).fit()


def test_a_function_without_condition_is_a_denoiser() -> None:
    shrink = openedm.FunctionDenoiser(lambda x, sigma: x / (1 + sigma**2))
    assert torch.equal(shrink(torch.ones(1, 2), 3.0), torch.full((1, 2), 0.1))
    with pytest.raises(ValueError, match=r"condition must be None for a function D\(x, sigma\)"):
        shrink(torch.ones(1, 2), 3.0, torch.zeros(1))


def test_a_function_is_a_network() -> None:
    denoiser = openedm.Preconditioned(lambda x, c_noise, condition=None: 0 * x, preconditioning.EDM())
    c_skip = preconditioning.EDM().coefficients(schedules.float64(1.0), 0.5)[0]
    assert torch.allclose(denoiser(X, 1.0), c_skip.float() * X)
    assert exact.ExactDataset is openedm.ExactDataset
    assert levels.Karras is openedm.Karras
    assert networks.MLP is openedm.MLP
