"""A prior, simulators and a comparison that several tests of simulation share."""

import torch

from openedm.inference.priors import Box
from openedm.inference.simulations import Simulations

PRIOR = Box(low=(-1.0, 0.0), high=(1.0, 5.0))


def own_seed(theta, seed):
    return theta + torch.randn(2, generator=torch.Generator().manual_seed(seed))


def row_seeds(theta, seeds):
    return torch.stack([own_seed(row, int(seed)) for row, seed in zip(theta, seeds, strict=True)])


def global_torch(theta):
    return theta + torch.randn(2)


def same(a: Simulations, b: Simulations) -> bool:
    arrays = all(torch.equal(getattr(a, k), getattr(b, k)) for k in ("theta", "x", "index", "seeds"))
    return arrays and a.failures == b.failures
