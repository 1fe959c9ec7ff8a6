"""Guided denoisers: D(x; σ) = D₁(x; σ) + (w(σ) − 1) (D₁(x; σ) − D₀(x; σ))."""

from collections.abc import Sequence

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
from openedm.guidance.weights import Weight, to_weight
from openedm.schedules import Values

__all__ = ["ClassifierFree", "Guided"]


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
        ValueError: both are the same denoiser with the same condition, or one is a consistency function; they differ in
            the shape of a sample, the number of classes or the shape of their floats, have no noise level in common, or
            support different discrete levels; the weight is out of its range. When called: the number of weights is not
            that of the batch.

    >>> from openedm.exact import GaussianMixture
    >>> narrow, wide = (GaussianMixture([1.0], [[0.0]], [[[v]]]) for v in (1.0, 3.0))
    >>> Guided(narrow, wide, 2.0)(torch.tensor([[4.0]]), sigma=1.0)  # 2 + (2 − 1) (2 − 3)
    tensor([[1.]])
    """

    def __init__(self, main: Denoiser, guiding: Denoiser, weight: Weight) -> None:
        super().__init__()
        check_denoiser("main", main)
        check_denoiser("guiding", guiding)
        main.check_gives_mean()
        guiding.check_gives_mean()
        self.main = main
        self.guiding = guiding
        self.weight = to_weight(weight)
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
