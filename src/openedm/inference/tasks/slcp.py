"""Simple likelihood, complex posterior: slcp, and slcp_distractors with 92 numbers that do not depend on θ.

The distractors' mixture is sbibm's: its constants are the first numbers of numpy's legacy generator with seed 42.
"""

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

from openedm.inference.priors import Box
from openedm.inference.tasks.task import Data, Points, Rows, Task

__all__ = ["SLCP", "SLCPDistractors"]

DRAWS = 4
COMPONENTS, DISTRACTORS = 20, 92
# Where each column of the finished observation comes from: 0-7 are slcp's numbers, 8-99 the distractors.
# fmt: off
PERMUTATION = (
    87, 47, 39, 9, 25, 21, 26, 94, 41, 30, 34, 44, 12, 27, 89, 20, 6, 13, 51, 40, 54, 5, 0, 2, 75,
    43, 14, 97, 29, 72, 79, 99, 98, 1, 38, 65, 83, 52, 74, 63, 19, 70, 4, 36, 96, 81, 35, 49, 31, 76,
    84, 28, 11, 66, 37, 85, 56, 60, 48, 10, 22, 82, 24, 8, 42, 32, 73, 3, 59, 95, 90, 50, 18, 68, 45,
    67, 92, 91, 17, 93, 33, 78, 88, 62, 46, 64, 57, 86, 55, 77, 7, 80, 69, 23, 58, 71, 15, 61, 53, 16,
)
# fmt: on


class SLCP(Task):
    """θ ~ U(−3, 3)⁵; x is four draws of N(m, S), m = (θ₁, θ₂), S of θ₃², θ₄² and the correlation tanh θ₅.

    S = [[s₁², ρ s₁s₂], [ρ s₁s₂, s₂²]] + 10⁻⁶ I with s₁ = θ₃², s₂ = θ₄². Four symmetric modes.
    """

    name = "slcp"
    x_shape = (2 * DRAWS,)
    prior = Box((-3.0,) * 5, (3.0,) * 5)

    def _simulate(self, theta: Rows, generator: torch.Generator) -> Tensor:
        noise = torch.randn(len(theta), DRAWS, 2, dtype=torch.float64, generator=generator)
        l11, l21, l22 = _root(theta)
        first = theta[:, None, 0] + l11[:, None] * noise[..., 0]
        second = theta[:, None, 1] + l21[:, None] * noise[..., 0] + l22[:, None] * noise[..., 1]
        return torch.stack([first, second], -1).flatten(1)

    def _log_likelihood(self, theta: Points, x: Data) -> Tensor:
        l11, l21, l22 = (entry[..., None] for entry in _root(theta))
        first, second = x[..., 0::2] - theta[..., 0:1], x[..., 1::2] - theta[..., 1:2]
        white = first / l11
        squares = white**2 + ((second - l21 * white) / l22) ** 2
        each: Tensor = -squares / 2 - (l11 * l22).log() - math.log(2 * math.pi)
        return each.sum(-1)


class SLCPDistractors(SLCP):
    """slcp's x with 92 numbers of a mixture of twenty Student-t (df 2) appended, and the 100 columns permuted.

    The posterior is slcp's. `log_likelihood` is that of slcp's numbers: the distractors' density is free of θ.
    """

    name = "slcp_distractors"
    x_shape = (2 * DRAWS + DISTRACTORS,)

    def _simulate(self, theta: Rows, generator: torch.Generator) -> Tensor:
        informative = super()._simulate(theta, generator)
        loc, root = distractor_mixture()
        component = torch.randint(COMPONENTS, (len(theta),), generator=generator)
        noise = torch.randn(len(theta), DISTRACTORS, dtype=torch.float64, generator=generator)
        # χ²₂/2 is exponential.
        noise = noise / torch.empty(len(theta), 1, dtype=torch.float64).exponential_(generator=generator).sqrt()
        appended = torch.empty_like(noise)
        for k in range(COMPONENTS):
            rows = component == k
            appended[rows] = loc[k] + noise[rows] @ root[k].mT
        return torch.cat([informative, appended], -1)[:, torch.tensor(PERMUTATION)]

    def _log_likelihood(self, theta: Points, x: Data) -> Tensor:
        columns = [PERMUTATION.index(i) for i in range(2 * DRAWS)]
        return super()._log_likelihood(theta, x[..., columns])


def _root(theta: Points) -> tuple[Tensor, Tensor, Tensor]:
    """The lower triangle of S's Cholesky factor."""
    s1, s2, rho = theta[..., 2] ** 2, theta[..., 3] ** 2, theta[..., 4].tanh()
    l11 = (s1**2 + 1e-6).sqrt()
    l21 = rho * s1 * s2 / l11
    # s₂² + 10⁻⁶ − l₂₁², without the cancellation at |ρ| ≈ 1.
    sech2 = 1 / theta[..., 4].cosh() ** 2
    l22 = (s2**2 * (s1**2 * sech2 + 1e-6) / (s1**2 + 1e-6) + 1e-6).sqrt()
    return l11, l21, l22


@cache
def distractor_mixture() -> tuple[Tensor, Tensor]:
    """The components' locations (20, 92) and lower triangular scales (20, 92, 92)."""
    stream = np.random.RandomState(42)  # sbibm's constants are this generator's.
    loc = 15 * stream.standard_normal((COMPONENTS, DISTRACTORS))
    roots = []
    for _ in range(COMPONENTS):
        matrix = stream.standard_normal((DISTRACTORS, DISTRACTORS))
        roots.append(3 * (np.tril(matrix) + np.diag(np.exp(stream.standard_normal(DISTRACTORS)))))
    return torch.from_numpy(loc), torch.from_numpy(np.stack(roots))
