"""Priors of scipy and of the user: frozen distributions, and any object with `sample` and `log_prob`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy
import torch
from jaxtyping import Float64
from torch import Tensor

from openedm.ground.seeding import global_generators_kept, seed_global_generators
from openedm.inference.bijections import Bijection
from openedm.inference.priors import Normal, Prior, set_names
from openedm.inference.supports import CONTINUOUS

__all__ = ["OwnPrior", "ScipyPrior", "has_density", "is_frozen", "priors_of_scipy"]

PROBES = 256
"""Draws by which the support of an object is checked."""


@dataclass(frozen=True)
class ScipyPrior(Prior):
    """A continuous distribution of one number that `scipy.stats` has by name.

    >>> ScipyPrior("gamma", (2.0,), 0.0, 3.0).log_prob(torch.tensor([[1.0]])).round(decimals=3)
    tensor([-2.5310], dtype=torch.float64)

    Args:
        family: its name in `scipy.stats`.
        shapes: its shape parameters.
        loc, scale: its location and scale.
        names: of the parameter.

    Raises:
        ValueError: there is no such distribution, or its parameters are not allowed.
    """

    family: str
    shapes: tuple[float, ...] = ()
    loc: float = 0.0
    scale: float = 1.0
    names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not isinstance(getattr(scipy.stats, self.family, None), scipy.stats.rv_continuous):
            raise ValueError(f"family must be a continuous distribution of scipy.stats, got {self.family!r}")
        set_names(self, 1)
        if np.isnan(self._frozen.support()[0]):
            raise ValueError(f"{self.family} does not allow shapes={self.shapes}, loc={self.loc}, scale={self.scale}")
        if self.family == "vonmises" and self.scale != 1:
            raise ValueError(f"scale must be 1 for vonmises, whose period is 2π, got {self.scale}")

    @cached_property
    def _frozen(self) -> Any:
        return getattr(scipy.stats, self.family)(*self.shapes, loc=self.loc, scale=self.scale)

    @property
    def dim(self) -> int:
        """1."""
        return 1

    @cached_property
    def bijection(self) -> Bijection:
        """Of the distribution's support."""
        low, high = self._frozen.support()
        if self.family == "vonmises":  # draws are within one period, of which scipy's support is many
            low, high = -math.pi, math.pi
        return Bijection((float(low),), (float(high),))

    def _draw(self, n: int, seed: int) -> Tensor:
        return torch.from_numpy(np.asarray(self._frozen.rvs(size=(n, 1), random_state=np.random.default_rng(seed))))

    def _density(self, theta: Float64[Tensor, "*batch d"]) -> Float64[Tensor, "*batch"]:
        return torch.as_tensor(np.asarray(self._frozen.logpdf(theta[..., 0].detach().numpy()), dtype=np.float64))


@dataclass(frozen=True, eq=False)
class OwnPrior(Prior):
    """Any object with `sample(shape)` (or `sample(n)`) and `log_prob(theta)`; torch's or numpy's.

    Its support is that between its attributes `low` and `high`, (d,) each, or here; without them it must be R^d. A
    posterior with such a prior cannot be saved with it.

    Args:
        source: the object.
        low, high: the ends of its support; None means its own attributes, or none.
        names: of the parameters.

    Raises:
        ValueError: what it returns has other shapes, is not finite at its own draws, or has no mass beyond them though
            no support is given, or its support is no product of intervals.
    """

    source: Any
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        draws = self._draw(PROBES, 0)
        for end in ("low", "high"):
            given = getattr(self, end)
            found = getattr(self.source, end, None) if given is None else given
            if found is not None:
                numbers = torch.as_tensor(found, dtype=torch.float64).flatten().tolist()
                object.__setattr__(self, end, tuple(numbers * (draws.shape[1] if len(numbers) == 1 else 1)))
                if len(getattr(self, end)) != draws.shape[1]:
                    raise ValueError(f"{end} must hold {draws.shape[1]} numbers, one a parameter, got {len(numbers)}")
        set_names(self, draws.shape[1])
        if not bool(self._density(draws).isfinite().all()):
            raise ValueError(f"{self._name}.log_prob must be finite at its own samples, got {self._density(draws)[:4]}")
        self._check_support(draws)

    @property
    def _name(self) -> str:
        return f"prior {type(self.source).__name__}"

    def _check_support(self, draws: Float64[Tensor, "draws d"]) -> None:
        """Raise ValueError unless there is density far beyond the draws wherever no end is given."""
        best = draws[self._density(draws).argmax()]
        for i, column in enumerate(draws.T):
            width = float(column.max() - column.min())
            for end, ends, place in (
                ("low", self.low, float(column.min()) - width),
                ("high", self.high, float(column.max()) + width),
            ):
                if ends is not None:
                    continue
                point = best.clone()
                point[i] = place
                try:
                    outside = not bool(self._density(point[None]).isfinite().all())
                except (ValueError, RuntimeError, AssertionError):
                    outside = True
                if outside:
                    raise ValueError(
                        f"{self._name} has no density at {place:.4g} in column {i}, and no attribute {end}: give the "
                        "ends of its support, OwnPrior(prior, low=[…], high=[…]), with inf where there is none"
                    )
        # Coordinates of different draws together: inside a product of intervals, as each is by itself.
        mixed = torch.stack([column.roll(i) for i, column in enumerate(draws.T)], 1)
        empty = ~self._density(mixed).isfinite()
        if bool(empty.any()):
            named = ", ".join(f"{value:.4g}" for value in mixed[empty][0].tolist())
            raise ValueError(
                f"{self._name} must have a support that is an interval in every coordinate, but has no density at "
                f"({named}), whose coordinates are those of its own draws: give other coordinates of theta, with their "
                "prior, or None"
            )

    @cached_property
    def dim(self) -> int:
        """d, of its draws."""
        return int(self._draw(2, 0).shape[1])

    @cached_property
    def bijection(self) -> Bijection:
        """Of the support."""
        everywhere = Bijection.unbounded(self.dim)
        return Bijection(self.low or everywhere.low, self.high or everywhere.high)

    def _draw(self, n: int, seed: int) -> Tensor:
        with global_generators_kept(), torch.no_grad():
            seed_global_generators(seed)
            try:
                drawn = self.source.sample((n,))
            except TypeError:
                drawn = self.source.sample(n)
        found = torch.as_tensor(np.asarray(drawn) if not isinstance(drawn, Tensor) else drawn).detach().cpu().double()
        found = found[:, None] if found.ndim == 1 else found
        if found.ndim != 2 or len(found) != n:
            raise ValueError(f"{self._name}.sample(({n},)) must return ({n}, d), got {tuple(found.shape)}")
        return found

    def _density(self, theta: Float64[Tensor, "*batch d"]) -> Float64[Tensor, "*batch"]:
        points = theta.detach().reshape(-1, theta.shape[-1]).to(self.number_format)
        try:
            values = self.source.log_prob(points)
        except TypeError:  # of numpy
            values = self.source.log_prob(points.double().numpy())
        found = torch.as_tensor(values).detach().cpu().double()
        found = found[:, 0] if found.ndim == 2 and found.shape[1] == 1 else found
        if found.shape != (len(points),):
            raise ValueError(f"{self._name}.log_prob must return one number a row, got {tuple(found.shape)}")
        return found.reshape(theta.shape[:-1])


def has_density(value: object) -> bool:
    """Whether an object can be an `OwnPrior`."""
    return all(callable(getattr(value, name, None)) for name in ("sample", "log_prob"))


def is_frozen(value: object) -> bool:
    """Whether a value is a frozen distribution of scipy."""
    return type(value).__module__.startswith("scipy.stats") and hasattr(value, "rvs")


def priors_of_scipy(frozen: Any, names: Sequence[str] | None) -> list[Prior]:
    """The priors, side by side, that a frozen distribution of scipy stands for: one for each entry of its parameters.

    Raises:
        ValueError: it is discrete, has parameters with more than one axis, or is of several dimensions and not normal.
    """
    if type(frozen).__name__ == "multivariate_normal_frozen":
        return [Normal(np.atleast_1d(frozen.mean).tolist(), covariance=np.atleast_2d(frozen.cov).tolist(), names=names)]
    family = getattr(getattr(frozen, "dist", None), "name", type(frozen).__name__)
    if hasattr(frozen, "pmf") or hasattr(getattr(frozen, "dist", None), "pmf"):
        raise ValueError(f"prior must be {CONTINUOUS}, got scipy's {family}")
    if not isinstance(getattr(scipy.stats, family, None), scipy.stats.rv_continuous):
        raise ValueError(
            f"prior must be a distribution of one number of scipy.stats, or multivariate_normal, got {family}: wrap "
            "others in an object with sample(n) and log_prob(theta)"
        )
    shapes, loc, scale = frozen.dist._parse_args(*frozen.args, **frozen.kwds)
    columns = np.broadcast_arrays(*map(np.asarray, (*shapes, loc, scale)))
    if columns[0].ndim > 1:
        raise ValueError(f"prior {family} must have parameters with at most one axis, got shape {columns[0].shape}")
    rows = np.stack([np.atleast_1d(column).astype(float) for column in columns], 1).tolist()
    if names is not None and len(names) != len(rows):
        raise ValueError(f"names must be {len(rows)} different strings, got {list(names)}")
    return [
        ScipyPrior(family, tuple(row[:-2]), row[-2], row[-1], None if names is None else (names[i],))
        for i, row in enumerate(rows)
    ]
