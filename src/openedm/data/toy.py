"""Toy densities in one and two dimensions, for figures and tests, with a mean of about 0 and σ_data of about 1."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from openedm.data.dataset import Source
from openedm.data.memory import InMemory
from openedm.ground import checks

__all__ = ["Mixture", "Toy"]


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture of Gaussians that share one isotropic standard deviation; float64.

    Attributes:
        weights: `(components,)`, summing to 1.
        means: `(components, dim)`.
        std: the standard deviation of each component along each axis.
    """

    weights: Float64[Tensor, " components"]
    means: Float64[Tensor, "components dim"]
    std: float


MAX_SAMPLES = 10**8


@dataclass(frozen=True)
class Toy(Source):
    """Samples of a toy density in one or two dimensions, with σ_data about 1.

    In one dimension: two_modes, and three_modes of unequal weight. In two: eight_gaussians on a circle, two_moons,
    spiral (a Swiss roll), checkerboard, pinwheel and rings. The label of a sample is its mode, moon, square, arm or
    ring; the spiral has no labels.

    >>> Toy("two_moons", num_samples=500).load().describe()
    '500 vectors of 2 in 2 classes'

    Args:
        name: the name of the density.
        num_samples: how many samples to draw.
        seed: the seed of the samples.
    """

    name: Literal[
        "two_modes", "three_modes", "eight_gaussians", "two_moons", "spiral", "checkerboard", "pinwheel", "rings"
    ] = "two_moons"
    num_samples: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        checks.one_of("name", self.name, (*_MIXTURES, *_DENSITIES))
        checks.size("num_samples", self.num_samples, high=MAX_SAMPLES)

    def load(self) -> InMemory:
        generator = torch.Generator().manual_seed(self.seed)
        mixture = self.mixture()
        if mixture is not None:
            classes = len(mixture.weights)
            labels = torch.multinomial(mixture.weights, self.num_samples, replacement=True, generator=generator)
            x = mixture.means[labels] + mixture.std * _normal(self.num_samples, mixture.means.shape[1], generator)
        else:
            classes, density = _DENSITIES[self.name]
            labels = torch.randint(classes, (self.num_samples,), generator=generator)
            x = density(labels, classes, generator)
        return InMemory(x, labels, num_classes=classes) if classes > 1 else InMemory(x)

    def mixture(self) -> Mixture | None:
        """The density in closed form if it is a mixture of Gaussians (class k is component k); otherwise None."""
        if self.name not in _MIXTURES:
            return None
        weights, means, std = _MIXTURES[self.name]
        return Mixture(torch.tensor(weights, dtype=torch.float64), torch.tensor(means, dtype=torch.float64), std)


def _normal(samples: int, dim: int, generator: torch.Generator) -> Float64[Tensor, "samples dim"]:
    return torch.randn(samples, dim, generator=generator, dtype=torch.float64)


def _uniform(samples: int, generator: torch.Generator) -> Float64[Tensor, " samples"]:
    return torch.rand(samples, generator=generator, dtype=torch.float64)


def _polar(radius: Float64[Tensor, " n"], angle: Float64[Tensor, " n"]) -> Float64[Tensor, "n 2"]:
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)


def _two_moons(labels: Int64[Tensor, " n"], classes: int, generator: torch.Generator) -> Float64[Tensor, "n 2"]:
    """Half circles (cos θ, sin θ) and (1 − cos θ, ½ − sin θ), around their centre."""
    side = 1.0 - 2.0 * labels
    angle = math.pi * _uniform(len(labels), generator)
    x = torch.stack([side * (angle.cos() - 0.5), side * (angle.sin() - 0.25)], 1)
    return 1.35 * x + 0.1 * _normal(len(labels), 2, generator)


def _spiral(labels: Int64[Tensor, " n"], classes: int, generator: torch.Generator) -> Float64[Tensor, "n 2"]:
    """One and a half turns (θ cos θ, θ sin θ), from 1.5 π to 4.5 π."""
    angle = 1.5 * math.pi * (1 + 2 * _uniform(len(labels), generator))
    return _polar(2 * angle / (4.5 * math.pi), angle) + 0.05 * _normal(len(labels), 2, generator)


def _checkerboard(labels: Int64[Tensor, " n"], classes: int, generator: torch.Generator) -> Float64[Tensor, "n 2"]:
    """The eight squares of one colour among 4 × 4 on [-2, 2]², row by row; density ⅛ on them and 0 elsewhere."""
    row = labels // 2
    column = 2 * (labels % 2) + row % 2
    corner = torch.stack([column, row], 1) - 2.0
    return corner + torch.rand(len(labels), 2, generator=generator, dtype=torch.float64)


def _pinwheel(labels: Int64[Tensor, " n"], classes: int, generator: torch.Generator) -> Float64[Tensor, "n 2"]:
    """Arms that are Gaussians at radius 1, twisted by ¼ e^radius."""
    arm = _normal(len(labels), 2, generator) * torch.tensor([0.3, 0.1], dtype=torch.float64)
    outward, across = arm[:, 0] + 1, arm[:, 1]
    angle = 2 * math.pi / classes * labels + 0.25 * outward.exp()
    along, aside = _polar(outward, angle), _polar(across, angle + math.pi / 2)
    return 1.35 * (along + aside)


def _rings(labels: Int64[Tensor, " n"], classes: int, generator: torch.Generator) -> Float64[Tensor, "n 2"]:
    """Circles of radius 0.6, 1.3 and 2."""
    radius = 0.6 + 0.7 * labels.double() + 0.05 * _normal(len(labels), 1, generator)[:, 0]
    return _polar(radius, 2 * math.pi * _uniform(len(labels), generator))


_CIRCLE = [(1.4 * math.cos(math.pi * k / 4), 1.4 * math.sin(math.pi * k / 4)) for k in range(8)]
_MIXTURES: dict[str, tuple[Sequence[float], Sequence[tuple[float, ...]], float]] = {
    "two_modes": ([0.5, 0.5], [(-1.0,), (1.0,)], 0.15),
    "three_modes": ([0.5, 0.2, 0.3], [(-1.0,), (0.2,), (1.5,)], 0.15),
    "eight_gaussians": ([1 / 8] * 8, _CIRCLE, 0.1),
}
_DENSITIES: dict[str, tuple[int, Callable[[Tensor, int, torch.Generator], Tensor]]] = {
    "two_moons": (2, _two_moons),
    "spiral": (1, _spiral),
    "checkerboard": (8, _checkerboard),
    "pinwheel": (5, _pinwheel),
    "rings": (3, _rings),
}
