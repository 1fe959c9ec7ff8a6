"""openedm's own posterior: `fit` with nothing but the simulations and the prior."""

from typing import Any

import torch
from benchmarks.inference.exchange import Array, Simulations

from openedm import inference
from openedm.inference import tasks

PACKAGES = ("openedm", "torch", "numpy")


class Fitted:
    """A posterior of `openedm.inference.fit`."""

    def __init__(self, posterior: Any) -> None:
        self.posterior = posterior
        self.notes = {"stopped": "itself"}

    def sample(self, x: Array, n: int, seed: int) -> Array:
        """Samples (n, d)."""
        found: Array = self.posterior.sample(torch.as_tensor(x), n, seed=seed).numpy()
        return found


def train(method: str, given: Simulations, budget: float, seed: int) -> Fitted:
    """Train by the library's own rule; it knows no budget."""
    prior = tasks.get(given.task).prior
    return Fitted(inference.fit(torch.as_tensor(given.theta), torch.as_tensor(given.x), prior=prior, seed=seed))
