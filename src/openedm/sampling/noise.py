"""Noise with one seed for each sample, so that a sample does not depend on the batch."""

from collections.abc import Sequence
from numbers import Integral
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from openedm.ground import checks

__all__ = [
    "EveryStepNoise",
    "NoiseSource",
    "PathNoise",
    "PublishedNoise",
    "SeededNoise",
    "Seeds",
    "class_labels",
    "initial_noise",
]

NO_CLASSES = (
    "classes must be None (no --classes): the model was trained without class labels and has none to choose from"
)
"""The reason why classes are refused."""

Seeds = Sequence[int] | Tensor | np.ndarray
"""One seed a sample: integers ≥ 0, of Python or numpy, or a tensor or array of them."""


@runtime_checkable
class NoiseSource(Protocol):
    """A source of unit Gaussian noise for a sampler, draw after draw."""

    def draw(self, event_shape: tuple[int, ...]) -> Float[Tensor, "batch *event"]:
        """The next unit Gaussian noise, one row a sample, on the host."""
        ...


@runtime_checkable
class PathNoise(NoiseSource, Protocol):
    """A source whose noise for the step from one noise level to another is the increment of a path."""

    def step_noise(
        self,
        sigma: float,
        sigma_next: float,
        event_shape: tuple[int, ...],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "batch *event"]:
        """Unit Gaussian noise of the step from `sigma` to `sigma_next`."""
        ...


@runtime_checkable
class EveryStepNoise(NoiseSource, Protocol):
    """A source that draws at every step, also where the noise has no effect."""

    def skip(self, event_shape: tuple[int, ...]) -> None:
        """Draw the noise of a step without churn, and discard it."""
        ...


def unit_noise(
    source: NoiseSource | None, x: Float[Tensor, "batch *event"], between: tuple[float, float] | None = None
) -> Float[Tensor, "batch *event"]:
    """Unit noise for the state x, on its device; for a source with paths, that of the step between two noise levels.

    Raises:
        ValueError: there is no source, or its noise has another shape.
    """
    if source is None:
        raise ValueError("seeds must be given for a sampler that adds noise, got None")
    shape = tuple(x.shape[1:])
    if between is not None and isinstance(source, PathNoise):
        noise = source.step_noise(*between, shape, x.device, x.dtype)
    else:
        noise = source.draw(shape).to(x.device, x.dtype)
    if noise.shape != x.shape:
        raise ValueError(f"seeds must give noise of shape {tuple(x.shape)}, got {tuple(noise.shape)}")
    return noise


class SeededNoise:
    """One host generator for each sample: row i is a function of `seeds[i]` and the number of earlier draws.

    The stream of a seed is torch's CPU generator seeded with seed mod 2³², drawn in float32. The first draw, and only
    the first, is the noise from which the published sampling script starts for the same seed on a CPU; `PublishedNoise`
    also draws classes and later noise as it does.

    Args:
        seeds: one integer ≥ 0 a sample; the same seed again gives the same noise again.

    Attributes:
        seeds: the seeds, as integers of Python.

    Raises:
        TypeError: a seed is not an integer.
        ValueError: there are no seeds, or one is negative.

    >>> alone, together = SeededNoise([7]).draw((2,)), SeededNoise([3, 7]).draw((2,))
    >>> bool((alone[0] == together[1]).all())
    True
    """

    def __init__(self, seeds: Seeds) -> None:
        self.seeds = checked_seeds(seeds)
        self._generators = [torch.Generator().manual_seed(seed % 2**32) for seed in self.seeds]

    def restarted(self) -> "SeededNoise":
        """The source as it was before the first draw."""
        return SeededNoise(self.seeds)

    def draw(self, event_shape: tuple[int, ...]) -> Float[Tensor, "batch *event"]:
        """The next unit Gaussian noise, one row a sample, float32 on the host."""
        return torch.stack([torch.randn(event_shape, generator=g, dtype=torch.float32) for g in self._generators])


class PublishedNoise:
    """The draws of the sampling script of the EDM paper's authors, in its order, one generator for each sample.

    Unit noise of the start in float32; the class, uniform over all classes, for a model with classes; then noise in
    float64 at every step of the sampler, also at steps whose noise level is not raised (γ = 0). With the sampler of
    Algorithm 2 (`Sampler` with Heun's or Euler's method and churn) the samples of a seed are those of the script.

    Args:
        seeds: one integer ≥ 0 a sample; a generator is seeded with seed mod 2³².
        event_shape: the shape of one sample.
        num_classes: the number of classes of the model, 0 for none. The class is drawn even if the samples get another.
        device: the device of the generators. The script draws on the device of the network: samples that were drawn on
            a GPU come out again with "cuda" only, and on the same kind of GPU.

    Attributes:
        classes: the classes drawn, int64 on the host; None for a model without classes.

    Raises:
        TypeError, ValueError: as for `SeededNoise`, or num_classes < 0.

    >>> source = PublishedNoise([0, 1], (1, 2, 2), num_classes=10)
    >>> bool((source.draw((1, 2, 2)) == SeededNoise([0, 1]).draw((1, 2, 2))).all()), source.classes.shape
    (True, torch.Size([2]))
    """

    classes: Int64[Tensor, " seeds"] | None

    def __init__(
        self,
        seeds: Seeds,
        event_shape: tuple[int, ...],
        num_classes: int = 0,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        self.seeds = checked_seeds(seeds)
        checks.at_least("num_classes", num_classes, 0)
        self._generators = [torch.Generator(device).manual_seed(seed % 2**32) for seed in self.seeds]
        self._arguments = (self.seeds, event_shape, num_classes)
        self._start: Tensor | None = self._randn(event_shape, torch.float32)
        self.classes = None
        if num_classes > 0:
            drawn = [torch.randint(num_classes, (), generator=g, device=g.device) for g in self._generators]
            self.classes = torch.stack(drawn).cpu()

    def restarted(self) -> "PublishedNoise":
        """The source as it was before the first draw."""
        return PublishedNoise(*self._arguments, device=self._generators[0].device)

    def _randn(self, shape: tuple[int, ...], dtype: torch.dtype) -> Float[Tensor, "batch *event"]:
        drawn = [torch.randn(shape, generator=g, dtype=dtype, device=g.device) for g in self._generators]
        return torch.stack(drawn).cpu()

    def draw(self, event_shape: tuple[int, ...]) -> Float[Tensor, "batch *event"]:
        """The noise of the start, then that of each step, on the host."""
        start, self._start = self._start, None
        return self._randn(event_shape, torch.float64) if start is None else start

    def skip(self, event_shape: tuple[int, ...]) -> None:
        """Draw the noise of a step without churn, and discard it."""
        self._randn(event_shape, torch.float64)


def checked_seeds(seeds: Seeds) -> tuple[int, ...]:
    """The seeds as integers of Python.

    Raises:
        TypeError: they are not a sequence, or a seed is not an integer.
        ValueError: there are no seeds, or one is negative.
    """
    given = seeds.tolist() if isinstance(seeds, Tensor | np.ndarray) else seeds
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        hint = f": range({seeds}) are the first {seeds} seeds, [{seeds}] is one" if isinstance(seeds, int) else ""
        raise TypeError(f"seeds must be integers, such as range(4), or a NoiseSource, got {type(seeds).__name__}{hint}")
    if len(given) == 0:
        raise ValueError("seeds must hold at least one seed, got none")
    for seed in given:
        if isinstance(seed, bool) or not (isinstance(seed, Integral) or _is_integer_tensor(seed)):
            whole = isinstance(seed, float) and seed.is_integer()
            raise TypeError(f"seeds must be integers, got {seed!r}{f': write {int(seed)}' if whole else ''}")
    found = tuple(int(seed) for seed in given)
    if min(found) < 0:
        raise ValueError(f"seeds must be >= 0, got {min(found)}")
    return found


def _is_integer_tensor(seed: object) -> bool:
    if not isinstance(seed, Tensor) or seed.ndim > 0 or seed.dtype == torch.bool:
        return False
    return not (seed.is_floating_point() or seed.is_complex())


def initial_noise(seeds: Seeds, event_shape: tuple[int, ...]) -> Float[Tensor, "batch *event"]:
    """The unit noise from which sampling with `seeds` starts."""
    return SeededNoise(seeds).draw(event_shape)


def class_labels(
    seeds: Sequence[int], classes: Sequence[int] | None, num_classes: int
) -> Int64[Tensor, "seeds"] | None:
    """The class of each seed, a function of the seed alone: `classes[seed mod len(classes)]`.

    Args:
        seeds: one seed a sample.
        classes: the classes to draw; None means all.
        num_classes: the number of classes of the model; 0 for an unconditional one.

    Raises:
        ValueError: the model does not have a class.
    """
    if num_classes == 0:
        if classes is not None:
            raise ValueError(f"{NO_CLASSES}, got {list(classes)}")
        return None
    chosen = list(range(num_classes)) if classes is None else list(classes)
    wrong = [c for c in chosen if not 0 <= c < num_classes]
    if wrong or not chosen:
        raise ValueError(f"classes must be between 0 and {num_classes - 1}, got {wrong or 'none'}")
    return torch.tensor([chosen[seed % len(chosen)] for seed in seeds], dtype=torch.int64)
