"""A generalised linear model of a neuron: bernoulli_glm has sufficient statistics, bernoulli_glm_raw the bins."""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from openedm.inference.priors import Normal
from openedm.inference.tasks.task import Data, Points, Rows, Task

__all__ = ["BernoulliGLM", "BernoulliGLMRaw"]

BINS, TAPS = 100, 9


def _prior() -> Normal:
    difference = np.eye(TAPS) - np.eye(TAPS, k=-1)
    smooth = difference @ difference + np.diag(np.sqrt(np.arange(TAPS) / TAPS))
    precision = np.zeros((TAPS + 1, TAPS + 1))
    precision[0, 0] = 0.5
    precision[1:, 1:] = smooth.T @ smooth
    covariance = np.linalg.inv(precision)
    return Normal((0.0,) * (TAPS + 1), covariance=((covariance + covariance.T) / 2).tolist())


class BernoulliGLMRaw(Task):
    """y_t ~ Bernoulli(sigmoid((Xθ)_t)), t < 100; x = y.

    X's first column is 1, the others are white noise, delayed by 0 … 8 bins. θ ~ N(0, P⁻¹): P couples neighbouring
    taps of the filter, so that it is smooth.
    """

    name = "bernoulli_glm_raw"
    x_shape = (BINS,)
    prior = _prior()

    def _simulate(self, theta: Rows, generator: torch.Generator) -> Tensor:
        rate = (theta @ design_matrix().mT).sigmoid()
        return (torch.rand(rate.shape, dtype=torch.float64, generator=generator) < rate).double()

    def _log_likelihood(self, theta: Points, x: Data) -> Tensor:
        activity = theta @ design_matrix().mT
        each: Tensor = x * activity - torch.nn.functional.softplus(activity)
        return each.sum(-1)


class BernoulliGLM(BernoulliGLMRaw):
    """The same with x = Xᵀy, ten numbers that are sufficient for θ.

    `log_likelihood` leaves out ln of the number of y with this x, which is free of θ.
    """

    name = "bernoulli_glm"
    x_shape = (TAPS + 1,)

    def _simulate(self, theta: Rows, generator: torch.Generator) -> Tensor:
        return super()._simulate(theta, generator) @ design_matrix()

    def _log_likelihood(self, theta: Points, x: Data) -> Tensor:
        activity = theta @ design_matrix().mT
        observed: Tensor = (theta * x).sum(-1)
        return observed - torch.nn.functional.softplus(activity).sum(-1)


@cache
def design_matrix() -> Tensor:
    """X (100, 10), float64."""
    # sbibm's stimulus is the first numbers of this generator, as float32.
    stimulus = np.random.RandomState(42).standard_normal(BINS).astype(np.float32)
    columns = [np.ones(BINS)] + [np.concatenate([np.zeros(j), stimulus[: BINS - j]]) for j in range(TAPS)]
    return torch.from_numpy(np.stack(columns, 1))
