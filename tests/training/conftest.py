"""Runs small enough to be repeated many times, and what there is to compare between two of them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from openedm.data import Dataset, Digits, InMemory
from openedm.networks import MLP, DDPMpp
from openedm.objective import EDM, EDM2
from openedm.training import HalfLife, Model, Options, Trainer

State = dict[str, Any]


@pytest.fixture(autouse=True)
def _fresh_accelerate(fresh_accelerate: None) -> None:
    """Every test starts and ends without accelerate's singletons."""


@pytest.fixture(scope="session")
def vectors() -> InMemory:
    """96 samples in two dimensions, in three classes, about (1, −1)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 3
    x = torch.randn(96, 2, generator=generator) * 0.5 + torch.tensor([1.0, -1.0]) + 0.5 * labels[:, None]
    return InMemory(x, labels)


@pytest.fixture(scope="session")
def trainer(vectors: InMemory) -> Callable[..., Trainer]:
    """`trainer(options…, dataset=…, run=…)`: a small MLP on `vectors`, 16 samples a step, 8 steps."""

    def make(
        *,
        dataset: Dataset = vectors,
        network: Any = MLP(width=16, num_blocks=1),
        objective: Any = EDM(),
        conditional: bool = True,
        run: Path | None = None,
        observers: Any = (),
        validation: Dataset | None = None,
        standardise: bool = True,
        **options: Any,
    ) -> Trainer:
        chosen = replace(
            Options(images=128, batch_size=16, rampup=64, average=HalfLife(half_life=40), patience=3), **options
        )
        settings = {"conditional": conditional, "augment_dim": chosen.augment_dim, "standardise": standardise}
        model = Model.for_data(dataset, network, **settings)
        return Trainer(model, dataset, objective, chosen, run=run, observers=observers, validation=validation)

    return make


@pytest.fixture(scope="session")
def everything_on(trainer: Callable[..., Trainer]) -> Callable[..., Trainer]:
    """`everything_on(run=…, options…)`: a U-Net on digits with every source of randomness and state there is."""

    def make(**arguments: Any) -> Trainer:
        settings = {
            "dataset": Digits("test").load(),
            "network": DDPMpp(model_channels=8, channel_mult=(1,), num_blocks=1, dropout=0.3),
            "objective": EDM2(stratified=True),
            "accumulate": 2,
            "label_dropout": 0.3,
            "clip_norm": 1.0,
            "checkpoint_every": 48,
            "keep": 0,
        }
        return trainer(**(settings | arguments))

    return make


@pytest.fixture(scope="session")
def state_of() -> Callable[[Trainer], State]:
    """All that a run carries from step to step: raw and averaged weights, moments, u(σ), counts; copied."""

    def state(trainer: Trainer) -> State:
        tensors: State = {}
        for name, module in (("raw", trainer._loss_module), ("average", trainer.average)):
            tensors |= {f"{name}.{key}": value.clone() for key, value in module.state_dict().items()}
        for i, entry in trainer.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{key}": value.clone() for key, value in entry.items()}
        numbers = trainer.state.to_json(trainer.objective, trainer.options)
        return tensors | {name: n for name, n in numbers.items() if name not in ("objective", "options")}

    return state


@pytest.fixture(scope="session")
def differences() -> Callable[[State, State], list[str]]:
    """The names at which two states are not equal bit for bit."""

    def compare(one: State, other: State) -> list[str]:
        assert one.keys() == other.keys()
        return [name for name in one if not _same(one[name], other[name])]

    return compare


def _same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other
