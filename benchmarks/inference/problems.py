"""Small simulators of the kinds that scientists have, whose posteriors are known on a grid: uniform priors.

| | | parameters | x |
|---|---|---|---|
| decay | a count rate that falls off exponentially, Gaussian noise | amplitude, rate, offset | 15 times |
| growth | logistic growth, Gaussian noise | rate, ln of the half time | 12 times |
| ar1 | an autoregressive process of order one | coefficient, ln of the noise | 25 steps |
| line | a line whose noise grows along it | offset, slope, ln of the noise | 12 places |
| ring | a point on a ring, seen by two distances | the point's coordinates | 2 |
| lifetimes | a histogram of arrival times, Poisson counts | ln of the lifetime, ln of the strength | 24 bins |
| cauchy | draws of a Cauchy distribution | location, ln of the scale | 10 draws |
| shifted | draws of an exponential distribution from a threshold on | threshold, ln of the mean | 12 draws |
| blob | a bright blob in an image, Gaussian noise | right, down, ln of the size, in pixels | 16×16 pixels |
| wave | a wave that dies down, Gaussian noise | frequency, phase, ln of the decay | a series of 64 times |
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["PROBLEMS", "VECTORS", "Problem", "exact_posterior", "observe"]

REAL = torch.float64
ROWS = 20_000
"""Points of a grid whose likelihood is computed at a time."""


@dataclass(frozen=True)
class Problem(ABC):
    """A simulator with a uniform prior and a likelihood in closed form.

    Attributes:
        low, high: ends of the prior.
        truths: parameters of the observations to test at.
        points: of the grid along each axis.
        shape: of one x for `fit`; () of a vector. The methods here, and peers, take x as a vector.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    truths: tuple[tuple[float, ...], ...]
    points: int = 160
    shape: tuple[int, ...] = ()

    def shaped(self, x: Tensor) -> Tensor:
        """x (n, columns) or (columns,), float32, in the shape for `fit`."""
        return x.float().unflatten(-1, self.shape) if self.shape else x.float()

    def prior(self, n: int, generator: torch.Generator) -> Tensor:
        """n parameters (n, d)."""
        low, high = (torch.tensor(end, dtype=REAL) for end in (self.low, self.high))
        return low + (high - low) * torch.rand(n, len(self.low), generator=generator, dtype=REAL)

    @abstractmethod
    def simulate(self, theta: Tensor, generator: torch.Generator) -> Tensor:
        """Data (n, columns) of parameters (n, d)."""

    @abstractmethod
    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """ln p(x | θ) up to a constant, (n,), of one observation x (columns,)."""


@dataclass(frozen=True)
class Gaussian(Problem):
    """x = m(θ) + s(θ) n.

    Attributes:
        moments: m and s of θ.
    """

    moments: Callable[[Tensor], tuple[Tensor, Tensor]] = lambda theta: (theta, torch.ones_like(theta))

    def simulate(self, theta: Tensor, generator: torch.Generator) -> Tensor:
        mean, std = self.moments(theta)
        return mean + std * torch.randn(mean.shape, generator=generator, dtype=REAL)

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        mean, std = self.moments(theta)
        return (-0.5 * ((x - mean) / std).square() - std.log()).expand_as(mean).sum(-1)


@dataclass(frozen=True)
class Autoregressive(Problem):
    """x_t = φ x_{t−1} + e^θ₂ n_t, from its stationary distribution."""

    steps: int = 25

    def simulate(self, theta: Tensor, generator: torch.Generator) -> Tensor:
        phi, noise = theta[:, 0], theta[:, 1].exp()
        n = torch.randn(len(theta), self.steps, generator=generator, dtype=REAL)
        values = [noise / (1 - phi.square()).sqrt() * n[:, 0]]
        for t in range(1, self.steps):
            values.append(phi * values[-1] + noise * n[:, t])
        return torch.stack(values, 1)

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        phi, log_noise = theta[:, :1], theta[:, 1:]
        errors = (x[1:] - phi * x[:-1]) / log_noise.exp()
        first = x[:1] * (1 - phi.square()).sqrt() / log_noise.exp()
        squares = errors.square().sum(-1, keepdim=True) + first.square()
        return (0.5 * (1 - phi.square()).log() - self.steps * log_noise - 0.5 * squares)[:, 0]


@dataclass(frozen=True)
class Counts(Problem):
    """Poisson counts.

    Attributes:
        rates: expected counts of θ.
    """

    rates: Callable[[Tensor], Tensor] = torch.exp

    def simulate(self, theta: Tensor, generator: torch.Generator) -> Tensor:
        return torch.poisson(self.rates(theta), generator=generator)

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        rates = self.rates(theta)
        return (x * rates.log() - rates).sum(-1)


@dataclass(frozen=True)
class Cauchy(Problem):
    """Independent draws θ₁ + e^θ₂ tan(π(u − ½))."""

    draws: int = 10

    def simulate(self, theta: Tensor, generator: torch.Generator) -> Tensor:
        uniform = torch.rand(len(theta), self.draws, generator=generator, dtype=REAL)
        return theta[:, :1] + theta[:, 1:].exp() * (math.pi * (uniform - 0.5)).tan()

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        errors = (x - theta[:, :1]) / theta[:, 1:].exp()
        return -(errors.square().log1p() + theta[:, 1:]).sum(-1)


@dataclass(frozen=True)
class Shifted(Problem):
    """Independent draws θ₁ − e^θ₂ ln u: none below the threshold, so that the posterior has an edge at the smallest."""

    draws: int = 12

    def simulate(self, theta: Tensor, generator: torch.Generator) -> Tensor:
        uniform = torch.rand(len(theta), self.draws, generator=generator, dtype=REAL)
        return theta[:, :1] - theta[:, 1:].exp() * uniform.log()

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        value = -((x - theta[:, :1]) * (-theta[:, 1:]).exp() + theta[:, 1:]).sum(-1)
        return torch.where(theta[:, 0] <= x.min(), value, -math.inf)


def _decay(theta: Tensor) -> tuple[Tensor, Tensor]:
    amplitude, rate, offset = theta.split(1, 1)
    return amplitude * (-rate * torch.linspace(0, 6, 15, dtype=REAL)).exp() + offset, torch.tensor(0.1, dtype=REAL)


def _growth(theta: Tensor) -> tuple[Tensor, Tensor]:
    times = torch.linspace(0, 10, 12, dtype=REAL)
    return torch.sigmoid(theta[:, :1] * (times - theta[:, 1:].exp())), torch.tensor(0.07, dtype=REAL)


def _line(theta: Tensor) -> tuple[Tensor, Tensor]:
    places = torch.linspace(0, 2, 12, dtype=REAL)
    return theta[:, :1] + theta[:, 1:2] * places, theta[:, 2:].exp() * (0.2 + places)


def _ring(theta: Tensor) -> tuple[Tensor, Tensor]:
    distances = [theta.norm(dim=1), (theta - torch.tensor([4.0, 0.0], dtype=REAL)).norm(dim=1)]
    return torch.stack(distances, 1), torch.tensor([0.08, 0.8], dtype=REAL)


def _lifetimes(theta: Tensor) -> Tensor:
    times = torch.linspace(0, 8, 24, dtype=REAL)
    return theta[:, 1:].exp() * (-times / theta[:, :1].exp()).exp() + 0.5


def _blob(theta: Tensor) -> tuple[Tensor, Tensor]:
    places = torch.arange(16, dtype=REAL)
    right, down = ((-0.5 * ((places - theta[:, i : i + 1]) * (-theta[:, 2:]).exp()).square()).exp() for i in (0, 1))
    return (down[:, :, None] * right[:, None]).flatten(1), torch.tensor(0.3, dtype=REAL)


def _wave(theta: Tensor) -> tuple[Tensor, Tensor]:
    times = torch.linspace(0, 1, 64, dtype=REAL)
    frequency, phase, decay = theta.split(1, 1)
    return (2 * math.pi * frequency * times + phase).sin() * (-decay.exp() * times).exp(), torch.tensor(0.3, dtype=REAL)


PROBLEMS: Mapping[str, Problem] = {
    "decay": Gaussian(
        (0.5, 0.1, -0.5), (3, 2, 0.5), ((2, 0.5, 0), (1, 1.2, 0.2), (2.5, 0.3, -0.2)), moments=_decay, points=120
    ),
    "growth": Gaussian((0.2, 0.5), (3, 2.1), ((1, 1.5), (2.2, 1), (0.6, 1.8)), moments=_growth, points=200),
    "ar1": Autoregressive((-0.5, -1), (0.95, 1), ((0.7, 0), (0.2, -0.5), (-0.3, 0.6)), 200),
    "line": Gaussian((-2, -2, -2), (2, 2, 1), ((0.5, 1, -1), (-1, -0.5, 0), (1, 0, -1.5)), moments=_line, points=120),
    "ring": Gaussian((-2, -2), (2, 2), ((0.9, 0.6), (-1, 0.3), (0.2, -1.5)), moments=_ring, points=200),
    "lifetimes": Counts((-1, 1), (1.5, 5), ((0, 3), (0.8, 4), (-0.5, 2)), rates=_lifetimes, points=200),
    "cauchy": Cauchy((-3, -2), (3, 2), ((1, 0), (-2, -1), (0, 1)), 200),
    "shifted": Shifted((-2, -1.5), (2, 1.5), ((0, 0), (1, -1), (-1.5, 0.8)), 400),
    "blob": Gaussian((2, 2, 0), (13, 13, 1.4), ((5, 9, 0.5), (8, 4, 1.1), (11, 11, 0.2)), 100, (1, 16, 16), _blob),
    "wave": Gaussian((1, -1, -1), (6, 1, 1.5), ((2, 0.3, 0), (4.5, -0.5, -0.5), (1.5, 0, 1)), 120, (1, 64), _wave),
}
VECTORS = tuple(name for name, problem in PROBLEMS.items() if not problem.shape)
"""The eight whose x is a vector."""


def observe(problem: Problem, number: int) -> Tensor:
    """The observation (columns,) of that number."""
    generator = torch.Generator().manual_seed(1000 + number)
    return problem.simulate(torch.tensor([problem.truths[number]], dtype=REAL), generator)[0]


def exact_posterior(problem: Problem, x: Tensor, n: int, seed: int = 0) -> Tensor:
    """n draws (n, d) of p(θ | x): a cell of the grid by its weight, and a uniform place in it."""
    ends = list(zip(problem.low, problem.high, strict=True))
    steps = torch.tensor([(high - low) / problem.points for low, high in ends], dtype=REAL)
    axes = [
        low + step * (torch.arange(problem.points, dtype=REAL) + 0.5)
        for (low, _), step in zip(ends, steps, strict=True)
    ]
    grid = torch.cartesian_prod(*axes).reshape(-1, len(axes))
    logs = torch.cat([problem.log_likelihood(part, x) for part in grid.split(ROWS)])
    generator = torch.Generator().manual_seed(seed)
    rows = torch.multinomial((logs - logs.max()).exp(), n, replacement=True, generator=generator)
    return grid[rows] + steps * (torch.rand(n, len(axes), generator=generator, dtype=REAL) - 0.5)
