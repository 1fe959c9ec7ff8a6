"""The interface of all denoisers: D(x; σ, condition) estimates the clean y from x = y + σ S n.

S, the denoiser's `scale`, is one number a channel, so that σ means the same in each; 1 unless data have units of their
own. The score is ∇ₓ log p(x; σ) = (D(x; σ) − x)/(σS)²  (Karras et al. 2022, eq. 3).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor, nn

from openedm.conditions import ConditionLayout
from openedm.ground import checks
from openedm.schedules import Values, float64, noise_levels
from openedm.units import from_standard, like, to_standard

__all__ = ["Condition", "Denoiser", "StandardisedInside", "check_condition_type", "per_sample"]

Condition = Shaped[Tensor, "conditions *features"] | None
"""What a denoiser is conditioned on, one row a sample: integer class labels (−1 for none), one-hot rows or floats; with
classes and floats, those of `openedm.conditions.pack`. A denoiser with a `condition_shape` takes a single row for all
samples, too."""


class Denoiser(nn.Module, ABC):
    """Base class of all denoisers. A subclass defines `denoise`; callers use `denoiser(x, sigma, condition)`.

    Attributes:
        sigma_min: lowest noise level it supports, in data units.
        sigma_max: highest noise level it supports.
        event_shape: the shape of one sample; None if any.
        num_classes: the number of classes it can be conditioned on; 0 if none.
        condition_shape: the shape of the floats that it must be conditioned on; with classes too, the shape of a packed
            condition (`openedm.conditions`); None if there are none.
        condition_dropout: whether it was trained without condition, too, so that None means no condition and a row of
            NaN none for a sample; for denoisers with a `condition_shape`.
        sigma_data: standard deviation of the data, which sets the scale of noise levels; EDM's 0.5 where it is unknown.
        rows: the number of samples for which it has individual settings, such as guidance weights; None if it has none.
        location: the centre of the data's units, in a shape that broadcasts against a sample; None means 0.
        scale: S, likewise; None means 1. Noise levels, σ_data and the range of the denoiser are in units of it.
        consistency: whether it is a consistency function instead: it estimates the end of the path of the ODE through
            x, a sample, and not the mean of y. Only `sampling.MultistepConsistency` draws samples with it.
    """

    sigma_min: float = 0.0
    sigma_max: float = math.inf
    sigma_data: float = 0.5
    rows: int | None = None
    event_shape: tuple[int, ...] | None = None
    num_classes: int = 0
    condition_shape: tuple[int, ...] | None = None
    condition_dropout: bool = False
    location: Tensor | None = None
    scale: Tensor | None = None
    consistency: bool = False

    @property
    def condition_layout(self) -> ConditionLayout:
        """What a condition holds: classes, floats or both."""
        return ConditionLayout.from_packed(self.num_classes, self.condition_shape)

    def mean(
        self, sigma_max: float, condition: Condition = None, event_shape: Sequence[int] | None = None
    ) -> Float[Tensor, "rows *event_or_ones"] | None:
        """Where its data are, from which samplers start: one row, or one for each row of the condition.

        Here the `location`; None means 0, as for published networks, whose samples start from noise around 0.

        Args:
            sigma_max: the noise level at which a run starts.
            condition: one row a sample, or None.
            event_shape: the shape of one sample, for a denoiser of any shape.
        """
        return None if self.location is None else self.location[None]

    def round_sigma(self, sigma: Values) -> Float64[Tensor, "*shape"]:
        """The nearest noise level that the denoiser supports; σ itself unless it was trained at discrete levels."""
        return noise_levels(sigma)

    @abstractmethod
    def denoise(
        self, x: Float[Tensor, "batch *event"], sigma: Float64[Tensor, "*batch_or_none"], condition: Condition
    ) -> Float[Tensor, "batch *event"]:
        """D(x; σ, condition), in the dtype of x; σ of shape () or (batch,)."""

    def forward(
        self,
        x: Float[Tensor, "batch *event"],
        sigma: Values,
        condition: Condition = None,
        *,
        standard: bool = False,
        **options: Any,
    ) -> Float[Tensor, "batch *event"]:
        """The denoised x, an estimate of E[y | x].

        Args:
            x: noisy samples y + σ S n, in data units.
            sigma: noise level, in units of S: a number, a tensor of shape () or one value a sample.
            condition: one row a sample, or None. With a `condition_shape`, (batch or 1, *condition_shape): a single row
                is that of all samples, and None is allowed with `condition_dropout` only.
            standard: whether x is given, and D returned, in standard units: (D(m + S x; σ) − m)/S with m the location,
                as in training; the condition is in its own units all the same.
            options: passed on to `denoise`; networks take `augment`, the augmentation label, in training.

        Raises:
            TypeError: x is not a tensor of floating-point numbers, sigma is not a number or a tensor of numbers, or
                the result is not a tensor of floating-point numbers.
            ValueError: shapes do not fit, or a sigma (on the host) is not finite and ≥ 0; for networks 0 is an error,
                too; or the result has another shape than x.
        """
        _check_inputs(x, sigma)
        sigma = self._checked(x, sigma, condition)
        denoise = self.denoise_standardised if standard else self.denoise
        denoised = denoise(x, sigma, condition, **options)
        _check_denoised(self, denoised, x)
        return denoised if denoised.dtype == x.dtype else denoised.to(x.dtype)

    def standardise(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        """(x − location)/S, in the dtype of x."""
        return to_standard(x, self.location, self.scale)

    def restore(self, z: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        """location + S z, in the dtype of z."""
        return from_standard(z, self.location, self.scale)

    def denoise_standardised(
        self,
        x: Float[Tensor, "batch *event"],
        sigma: Float64[Tensor, "*batch_or_none"],
        condition: Condition,
        **options: Any,
    ) -> Float[Tensor, "batch *event"]:
        """(D(m + S x; σ) − m)/S: `denoise` in standard units."""
        return self.standardise(self.denoise(self.restore(x), sigma, condition, **options))

    def _checked(self, x: Tensor, sigma: Values, condition: Condition) -> Float64[Tensor, "*batch_or_none"]:
        """σ as a tensor, after the checks of a call."""
        sigma, count = noise_levels(sigma), x.shape[0]
        if sigma.ndim > 0 and sigma.shape != (count,):
            raise ValueError(f"sigma must be a number or one value a sample ({count}), got shape {tuple(sigma.shape)}")
        self.check_shape(x)
        self.check_condition(condition, count)
        return sigma

    def check_shape(self, x: Tensor) -> None:
        """Raise ValueError unless x has samples of the denoiser's shape."""
        if self.event_shape is not None and x.shape[1:] != self.event_shape:
            raise ValueError(
                f"x must have shape (batch, {', '.join(map(str, self.event_shape))}), got {tuple(x.shape)}"
            )

    def check_gives_mean(self) -> None:
        """Raise ValueError for a consistency function, which has no score."""
        if self.consistency:
            raise ValueError(
                "denoiser must estimate the mean of y, got a consistency function, which has no score and follows no "
                "ODE: use the denoiser that it was distilled from"
            )

    def check_condition(self, condition: Condition, count: int) -> None:
        """Raise an error unless the condition fits `count` samples.

        Raises:
            TypeError: it is not a tensor of rows.
            ValueError: it does not have one row a sample; or, with a `condition_shape`, it is missing, has another
                shape, neither one row a sample nor a single one, or no class where there is one (on the host).
        """
        check_condition_type(condition)
        shape = self.condition_shape
        if shape is None:
            if condition is not None and condition.shape[0] != count:
                raise ValueError(f"condition must have one row a sample ({count}), got {condition.shape[0]} rows")
            return
        if condition is None:
            if self.condition_dropout:
                return
            raise ValueError(f"condition must be given, {_format_shape('batch or 1', shape)}: got None")
        if tuple(condition.shape[1:]) != shape or condition.shape[0] not in (1, count):
            packed = "" if self.num_classes == 0 else ", made by openedm.conditions.pack(classes, values)"
            raise ValueError(
                f"condition must have shape {_format_shape(f'{count} or 1', shape)}{packed}, "
                f"got {tuple(condition.shape)}"
            )
        self.condition_layout.check_classes(condition)

    def condition_of(
        self, condition: Condition, rows: slice | Int64[Tensor, "rows"]
    ) -> Shaped[Tensor, "chosen *features"] | None:
        """The condition of some of the samples; a single row for all samples is returned unchanged."""
        if condition is None or (self.condition_shape is not None and len(condition) == 1):
            return condition
        return condition[rows]

    if TYPE_CHECKING:  # The types of a call alone: a method that passes on would cost as much as a check.

        def __call__(self, x: Tensor, sigma: Values, condition: Condition = None, **options: Any) -> Tensor:
            """See `forward`."""

    def score(
        self, x: Float[Tensor, "batch *event"], sigma: Values, condition: Condition = None
    ) -> Float[Tensor, "batch *event"]:
        """∇ₓ log p(x; σ) = (D(x; σ) − x)/(σS)²  (eq. 3). ValueError for a consistency function."""
        self.check_gives_mean()
        score = (self(x, sigma, condition) - x) / per_sample(float64(sigma).square(), x)
        return score if self.scale is None else score / like(self.scale, x).square()


class StandardisedInside(Denoiser):
    """D(x; σ) = m + S D′((x − m)/S; σ): a denoiser that computes in standard units.

    Subclasses define `denoise_standardised`, D′.
    """

    def denoise(
        self,
        x: Float[Tensor, "batch *event"],
        sigma: Float64[Tensor, "*batch_or_none"],
        condition: Condition,
        **options: Any,
    ) -> Float[Tensor, "batch *event"]:
        """m + S D′((x − m)/S; σ)."""
        return self.restore(self.denoise_standardised(self.standardise(x), sigma, condition, **options))

    @abstractmethod
    def denoise_standardised(
        self,
        x: Float[Tensor, "batch *event"],
        sigma: Float64[Tensor, "*batch_or_none"],
        condition: Condition,
        **options: Any,
    ) -> Float[Tensor, "batch *event"]:
        """D′(x; σ)."""


def _check_inputs(x: object, sigma: object) -> None:
    """Raise TypeError unless x is a tensor of floating-point numbers and sigma a number, a tensor or a list."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = f"a tensor of {x.dtype}: write x.float()" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a tensor of floating-point numbers, got {got}")
    if not isinstance(sigma, (Tensor, list, tuple)):
        checks.number("sigma", sigma)


def _check_denoised(denoiser: Denoiser, denoised: object, x: Tensor) -> None:
    """Raise an error unless the result of a denoiser is like x: broadcasting would hide another shape."""
    if (
        isinstance(denoised, Tensor)
        and denoised.shape == x.shape
        and denoised.is_floating_point()
        and denoised.device == x.device
    ):
        return
    function = getattr(denoiser, "function", None)
    name = f"the function of {type(denoiser).__name__}" if function is not None else type(denoiser).__name__
    call = f"{name}, called as D(x, sigma, condition) with x of shape {tuple(x.shape)} and {x.dtype},"
    if not isinstance(denoised, Tensor):
        raise TypeError(f"{call} must return a tensor of that shape, got {type(denoised).__name__}")
    if denoised.shape != x.shape:
        raise ValueError(f"{call} must return that shape, got {tuple(denoised.shape)}")
    if not denoised.is_floating_point():
        raise TypeError(f"{call} must return floating-point numbers, got {denoised.dtype}")
    raise ValueError(f"{call} must return a tensor on {x.device}, got one on {denoised.device}")


def check_condition_type(condition: object) -> None:
    """Raise TypeError unless the condition is None or a tensor with at least one dimension."""
    if condition is None:
        return
    if not isinstance(condition, Tensor):
        raise TypeError(f"condition must be a tensor with one row a sample, or None, got {type(condition).__name__}")
    if condition.ndim == 0:
        raise TypeError(f"condition must be a tensor with one row a sample, got a single number, {condition.item()}")


def _format_shape(rows: str, shape: tuple[int, ...]) -> str:
    return f"({', '.join((rows, *map(str, shape)))})"


def per_sample(values: Float64[Tensor, "*batch_or_none"], x: Float[Tensor, "batch *event"]) -> Tensor:
    """`values`, of shape () or (batch,), in a shape that broadcasts against x, in x's dtype.

    σ arithmetic (float64) meets data only here. A scalar stays on the host: the product needs neither a copy to the
    device nor a synchronisation.
    """
    if values.ndim == 0:
        return values.to(x.dtype)
    return values.to(x.dtype).to(x.device).reshape(-1, *[1] * (x.ndim - 1))
