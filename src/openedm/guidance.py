"""Guidance: a denoiser extrapolated away from a less accurate one.

    D(x; σ) = D₁(x; σ) + (w(σ) − 1) (D₁(x; σ) − D₀(x; σ))

w = 1 is D₁ alone, w = 0 is D₀ alone, w > 1 extrapolates. (Ho & Salimans 2022 write (1 + w′) ε₁ − w′ ε₀, so their w′ is
w − 1 here; Karras et al. 2024 and Kynkäänniemi et al. 2024 write w as here.)

| guidance | D₁ | D₀ |
|---|---|---|
| `ClassifierFree` (Ho & Salimans 2022) | a denoiser with the condition | the same without a condition |
| `Guided` as autoguidance (Karras et al. 2024) | a denoiser | a smaller or less trained one, with the same condition |
| `Guided` as guidance by an unconditional model | a conditional denoiser | an unconditional one |

| weight | w(σ) |
|---|---|
| `Constant` | w |
| `Interval` (Kynkäänniemi et al. 2024) | w for σ_low < σ ≤ σ_high, otherwise 1 |
| `Piecewise` | given at some noise levels, linear in ln σ between them |

Where w = 1, D₀ is not evaluated. The score of D is that of p₁(x; σ)^w p₀(x; σ)^{1−w}, which is not the density of data
with added noise: guided samples do not follow p₁^w p₀^{1−w}.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from openedm.conditions import ConditionLayout
from openedm.denoiser import (
    CONDITION,
    UNITS,
    Condition,
    Denoiser,
    check_denoiser,
    per_sample,
    take_attributes,
)
from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.schedules import Values, float64

__all__ = ["ClassifierFree", "Constant", "GuidanceWeight", "Guided", "Interval", "Piecewise"]


class GuidanceWeight(Choice, ABC):
    """The guidance weight as a function of σ."""

    @property
    @abstractmethod
    def is_one(self) -> bool:
        """Whether the weight is 1 at every noise level, so that there is no guidance."""

    @abstractmethod
    def at(self, sigma: Values) -> Float64[Tensor, "*shape"]:
        """w(σ), exactly 1 where there is no guidance; of the shape of σ and on its device."""


@dataclass(frozen=True)
class Constant(GuidanceWeight):
    """The same weight at every noise level.

    Args:
        weight: w ≥ 0; 1 means no guidance.

    Raises:
        ValueError: the weight is negative or not finite.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        _check_weight("weight", self.weight)

    @property
    def is_one(self) -> bool:
        """w = 1."""
        return self.weight == 1

    def at(self, sigma: Values) -> Float64[Tensor, "*shape"]:
        """w."""
        return torch.full_like(float64(sigma), self.weight)


@dataclass(frozen=True)
class Interval(GuidanceWeight):
    """A weight inside an interval of noise levels and no guidance outside (Kynkäänniemi et al. 2024).

    In their experiments guidance is harmful at high noise levels, unnecessary at low ones, and useful in between.

    Args:
        weight: w ≥ 0 for σ_low < σ ≤ σ_high; 1 means no guidance.
        low: σ_low ≥ 0, in data units.
        high: σ_high; infinite by default.

    Raises:
        ValueError: the weight is negative or not finite, or not 0 ≤ low < high.

    >>> Interval(2.0, low=0.5, high=4.0).at(torch.tensor([0.5, 1.0, 4.0, 4.5]))
    tensor([1., 2., 2., 1.], dtype=torch.float64)
    """

    weight: float = 1.0
    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        _check_weight("weight", self.weight)
        checks.at_least("low", self.low, 0)
        checks.ordered("low", self.low, "high", self.high)

    @property
    def is_one(self) -> bool:
        """w = 1."""
        return self.weight == 1

    def at(self, sigma: Values) -> Float64[Tensor, "*shape"]:
        """w for σ_low < σ ≤ σ_high, otherwise 1."""
        sigma = float64(sigma)
        return torch.ones_like(sigma).masked_fill((sigma > self.low) & (sigma <= self.high), self.weight)


@dataclass(frozen=True)
class Piecewise(GuidanceWeight):
    """Weights given at some noise levels; between them linear in ln σ, outside them the weight of the nearest.

    Args:
        sigmas: at least 2 noise levels > 0, strictly increasing, in data units.
        weights: w ≥ 0 at each; 1 means no guidance.

    Raises:
        ValueError: a value is out of its range, the levels do not increase, or their numbers differ.

    >>> Piecewise((0.25, 1.0, 4.0), (1.0, 3.0, 2.0)).at(torch.tensor([0.125, 0.25, 0.5, 1.0, 9.0]))
    tensor([1., 1., 2., 3., 2.], dtype=torch.float64)
    """

    sigmas: tuple[float, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.sigmas) < 2 or len(self.weights) != len(self.sigmas):
            raise ValueError(
                "sigmas and weights must hold the same number of values, at least 2, "
                f"got {len(self.sigmas)} sigmas and {len(self.weights)} weights"
            )
        for i, (sigma, weight) in enumerate(zip(self.sigmas, self.weights, strict=True)):
            checks.positive(f"sigmas[{i}]", sigma)
            _check_weight(f"weights[{i}]", weight)
        if any(not low < high for low, high in pairwise(self.sigmas)):
            raise ValueError(f"sigmas must increase strictly, got {self.sigmas}")

    @property
    def is_one(self) -> bool:
        """All weights are 1."""
        return all(weight == 1 for weight in self.weights)

    def at(self, sigma: Values) -> Float64[Tensor, "*shape"]:
        """w_j + (w_{j+1} − w_j) ln(σ/σ_j) / ln(σ_{j+1}/σ_j) for σ_j ≤ σ ≤ σ_{j+1}."""
        sigma = float64(sigma)
        knots, weights = (
            torch.tensor(v, dtype=torch.float64, device=sigma.device) for v in (self.sigmas, self.weights)
        )
        log, knots = sigma.log(), knots.log()
        right = torch.searchsorted(knots, log.detach().contiguous()).clamp(1, len(knots) - 1)
        fraction = ((log - knots[right - 1]) / (knots[right] - knots[right - 1])).clamp(0, 1)
        return torch.lerp(weights[right - 1], weights[right], fraction)


Weight = GuidanceWeight | Tensor | float
"""A weight: a function of σ, a number, or one value a sample, a tensor of shape (batch,)."""


class Guided(Denoiser):
    """D₁ + (w(σ) − 1)(D₁ − D₀), from any two denoisers of samples of one shape, with the same condition.

    With a smaller or less trained version of the main denoiser as the guiding one, this is autoguidance (Karras et al.
    2024). An unconditional denoiser may guide a conditional one; it is then called without the condition.

    Evaluations: both denoisers for samples with w ≠ 1, the main one alone for the others. If both are the same module,
    one call with the rows of both; otherwise one call each. Samples with w = 1 are only left out where σ and w are on
    the host, as in samplers; on a device D₀ is evaluated for all samples, which avoids a synchronisation.

    Its range of noise levels is the intersection of the two ranges.

    Args:
        main: D₁.
        guiding: D₀.
        weight: w ≥ 0: a function of σ, a number, or one value a sample, (batch,).

    Raises:
        ValueError: both are the same denoiser with the same condition; they differ in the shape of a sample, the
            number of classes or the shape of their floats, have no noise level in common, or support different discrete
            levels; the weight is out of its range. When called: the number of weights is not that of the batch.

    >>> from openedm.exact import GaussianMixture
    >>> narrow, wide = (GaussianMixture([1.0], [[0.0]], [[[v]]]) for v in (1.0, 3.0))
    >>> Guided(narrow, wide, 2.0)(torch.tensor([[4.0]]), sigma=1.0)  # 2 + (2 − 1) (2 − 3)
    tensor([[1.]])
    """

    def __init__(self, main: Denoiser, guiding: Denoiser, weight: Weight) -> None:
        super().__init__()
        check_denoiser("main", main)
        check_denoiser("guiding", guiding)
        self.main = main
        self.guiding = guiding
        self.weight = _to_weight(weight)
        num_weights = len(self.weight) if isinstance(self.weight, Tensor) and self.weight.ndim == 1 else None
        self.rows = next((rows for rows in (num_weights, main.rows, guiding.rows) if rows is not None), None)
        take_attributes(self, main, ("sigma_data", *CONDITION, *UNITS))
        self.event_shape = guiding.event_shape if main.event_shape is None else main.event_shape
        self.sigma_min = max(main.sigma_min, guiding.sigma_min)
        self.sigma_max = min(main.sigma_max, guiding.sigma_max)
        if main is guiding and type(self).guiding_condition is Guided.guiding_condition:
            raise ValueError(
                "guiding must be another denoiser than main, since guidance of a denoiser by itself has no effect"
            )
        if guiding.event_shape not in (None, self.event_shape):
            raise ValueError(
                f"guiding must denoise samples of the shape of main's, {main.event_shape}, got {guiding.event_shape}"
            )
        if guiding.num_classes not in (0, main.num_classes):
            raise ValueError(
                f"guiding must have main's {main.num_classes} classes, or none, got num_classes={guiding.num_classes}"
            )
        if guiding.condition_layout.shape not in (None, main.condition_layout.shape):
            raise ValueError(
                f"guiding must have main's condition_shape, {main.condition_layout.shape}, or None, "
                f"got {guiding.condition_layout.shape}"
            )
        if not (_equal(main.location, guiding.location) and _equal(main.scale, guiding.scale)):
            raise ValueError(
                "guiding must have main's units, location "
                f"{_listed(main.location)} and scale {_listed(main.scale)}, got {_listed(guiding.location)} and "
                f"{_listed(guiding.scale)}: noise levels mean something else there"
            )
        if not self.sigma_min < self.sigma_max:
            raise ValueError(
                "main and guiding must have noise levels in common, got "
                f"[{main.sigma_min:g}, {main.sigma_max:g}] and [{guiding.sigma_min:g}, {guiding.sigma_max:g}]"
            )
        probes = torch.logspace(-3, 3, 61, dtype=torch.float64)
        self.round_sigma(probes.clamp(self.sigma_min, self.sigma_max))

    def mean(
        self, sigma_max: float, condition: Condition = None, event_shape: Sequence[int] | None = None
    ) -> Tensor | None:
        """m₁ + (w(σ_max) − 1)(m₁ − m₀), of the means of both; that of D₁ where w = 1 or D₀ has none."""
        main = self.main.mean(sigma_max, condition, event_shape)
        weights = self.weight if isinstance(self.weight, Tensor) else self.weight.at(sigma_max)
        if main is None or _guided_rows(weights) is None:
            return main
        guiding = self.guiding.mean(sigma_max, self.guiding_condition(condition), event_shape)
        return main if guiding is None else main + per_sample(weights - 1, main) * (main - guiding)

    def extra_repr(self) -> str:
        """The weight."""
        return f"weight={self.weight}"

    def round_sigma(self, sigma: Values) -> Float64[Tensor, "*shape"]:
        """The nearest noise level that both denoisers support.

        Raises:
            ValueError: each supports levels that the other does not.
        """
        rounded = self.guiding.round_sigma(self.main.round_sigma(sigma))
        again = self.main.round_sigma(rounded)
        if not torch.equal(again, rounded):
            wrong = again != rounded
            raise ValueError(
                "main and guiding must support the same noise levels: the level of main nearest to "
                f"{rounded[wrong][0].item():g}, a level of guiding, is {again[wrong][0].item():g}"
            )
        return rounded

    def denoise(
        self, x: Float[Tensor, "batch *event"], sigma: Float64[Tensor, "*batch_or_none"], condition: Condition
    ) -> Float[Tensor, "batch *event"]:
        """D₁ + (w − 1)(D₁ − D₀) where w ≠ 1, otherwise D₁."""
        weights = self.weight if isinstance(self.weight, Tensor) else self.weight.at(sigma)
        if weights.ndim == 1 and len(weights) != len(x):
            raise ValueError(f"weight must hold one value a sample ({len(x)}), got {len(weights)}")
        other = self.guiding_condition(condition)
        rows = _guided_rows(weights)
        if rows is None:
            return self.main(x, sigma, condition)
        main, guiding = self._evaluate_both(x, sigma, condition, other, rows)
        if isinstance(rows, slice):
            return main + per_sample(weights - 1, x) * (main - guiding)
        rows = rows.to(x.device)
        return main.index_add(0, rows, per_sample(weights[rows.to(weights.device)] - 1, x) * (main[rows] - guiding))

    def guiding_condition(self, condition: Condition) -> Shaped[Tensor, "conditions *part"] | None:
        """The condition of the guiding denoiser: the same, its classes or its floats; None if it is unconditional."""
        layout, guiding = self.main.condition_layout, self.guiding.condition_layout
        if layout == guiding == ConditionLayout():  # Neither says what its condition is, as functions do not.
            return condition
        return layout.select(condition, guiding)

    def _evaluate_both(
        self, x: Tensor, sigma: Tensor, condition: Condition, other: Tensor | None, rows: slice | Tensor
    ) -> tuple[Tensor, Tensor]:
        """D₁ of all samples, and D₀ of those in `rows`."""
        x_0 = _select_rows(x, rows)
        sigma_0 = _select_rows(sigma, rows) if sigma.ndim else sigma
        other = None if other is None else _select_rows(_expand_condition(other, len(x)), rows)
        if self.main is not self.guiding or condition is None or other is None:
            return self.main(x, sigma, condition), self.guiding(x_0, sigma_0, other)
        sigmas = torch.cat([sigma, sigma_0]) if sigma.ndim else sigma
        both = self.main(torch.cat([x, x_0]), sigmas, torch.cat([_expand_condition(condition, len(x)), other]))
        return both[: len(x)], both[len(x) :]


class ClassifierFree(Guided):
    """Classifier-free guidance (Ho & Salimans 2022): a conditional denoiser guided by itself without the condition.

    The denoiser must also have been trained without a condition (`openedm train --options.label_dropout 0.1`). One call
    with the rows of both evaluates D₁ and D₀. Classes and floats are left out together.

    Args:
        denoiser: D, conditional.
        weight: w, as for `Guided`.
        null: the row that means no condition, of the shape of one sample's condition. None means class −1 for integer
            labels, zeros for rows of class weights and NaN for floats, as in the networks of this library; it is
            required for a denoiser that does not say what its condition is, or was trained without dropout of floats.

    Raises:
        ValueError: the denoiser is unconditional or has floats without `condition_dropout`, and `null` is not given; or
            as for `Guided`. When called: there is no condition, or `null` does not fit it.
    """

    null: Tensor | None

    def __init__(self, denoiser: Denoiser, weight: Weight, null: Tensor | None = None) -> None:
        check_denoiser("denoiser", denoiser)
        super().__init__(denoiser, denoiser, weight)
        floats = denoiser.condition_shape is not None
        if null is None and denoiser.num_classes == 0 and not floats:
            raise ValueError(
                "denoiser must be conditional: it has num_classes=0; if its condition is not a class, give `null`"
            )
        if null is None and floats and not denoiser.condition_dropout:
            raise ValueError(
                "denoiser must have been trained without its condition, too: it has condition_dropout=False; train it "
                "with label_dropout > 0, or give the row that means no condition as `null`"
            )
        self.register_buffer("null", null, persistent=False)

    def guiding_condition(self, condition: Condition) -> Shaped[Tensor, "conditions *part"]:
        """The null condition, a row a sample."""
        if condition is None:
            raise ValueError("condition must be given for classifier-free guidance, got None")
        if self.null is not None:
            if self.null.shape != condition.shape[1:]:
                raise ValueError(
                    f"null must have the shape of one sample's condition, {tuple(condition.shape[1:])}, "
                    f"got {tuple(self.null.shape)}"
                )
            return self.null.to(condition).expand_as(condition)
        return self.main.condition_layout.null(condition)


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))


def _listed(values: Tensor | None) -> list[float] | None:
    return None if values is None else values.flatten().tolist()


def _check_weight(name: str, weight: float) -> None:
    checks.finite(name, weight)
    checks.at_least(name, weight, 0)


def _to_weight(weight: Weight) -> GuidanceWeight | Tensor:
    """The weight as a function of σ; or one value a sample, on the host."""
    if isinstance(weight, GuidanceWeight):
        return weight
    if not isinstance(weight, Tensor) or weight.ndim == 0:
        return Constant(float(weight))
    values = weight.detach().to("cpu", torch.float64)
    if values.ndim != 1 or not bool((values.isfinite() & (values >= 0)).all()):
        raise ValueError(f"weight must be a number or one finite value >= 0 a sample, got {weight.tolist()}")
    return values


def _guided_rows(weights: Float64[Tensor, "*batch_or_none"]) -> slice | Tensor | None:
    """Which samples have a weight other than 1: None for no sample, a slice for all or for weights on a device."""
    if weights.device.type != "cpu":
        return slice(None)
    if weights.ndim == 0:
        return None if weights == 1 else slice(None)
    rows = (weights != 1).nonzero()[:, 0]
    if len(rows) == 0:
        return None
    return slice(None) if len(rows) == len(weights) else rows


def _expand_condition(condition: Tensor, count: int) -> Tensor:
    """A condition with one row a sample; a single row is repeated."""
    return condition.expand(count, *condition.shape[1:]) if len(condition) == 1 else condition


def _select_rows(values: Tensor, rows: slice | Tensor) -> Tensor:
    return values[rows] if isinstance(rows, slice) else values[rows.to(values.device)]
