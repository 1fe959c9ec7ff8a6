"""Standard units around any denoiser, and data units around a denoiser that was made for standardised data.

With m where the data are and S the scale of a denoiser, z = (x − m)/S is z₀ + σ n for x = y + σ S n, and

    D′(z; σ) = (D(m + S z; σ) − m)/S.

The probability-flow ODE, and each stochastic equation with the same marginals, is that of an isotropic problem around 0
in z: solvers, tolerances and densities need nothing else. ln p(x) = ln p(z) − Σ ln S.
"""

from typing import Any, ClassVar

from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor

from openedm.denoiser import CONDITION, RANGE, Condition, Denoiser, StandardisedInside, Wrapper
from openedm.schedules import Values, float64
from openedm.units import Units, from_standard, like, to_standard

__all__ = ["InUnits", "Standardised", "standardised"]


class Standardised(Wrapper):
    """D′(z; σ) = (D(m + S z; σ) − m)/S, of a denoiser and a condition.

    It is unconditional: its own condition is None for all samples of the batch, in order, or the numbers of those that
    are left, as `condition_of` makes them.

    Args:
        denoiser: D.
        condition: the condition of D, one row a sample, or None.
        mean: m, one row or one a sample, in a shape that broadcasts against them; None means 0.
    """

    taken: ClassVar = RANGE

    def __init__(self, denoiser: Denoiser, condition: Condition = None, mean: Tensor | None = None) -> None:
        super().__init__(denoiser)
        self.condition = condition
        self.centre = mean
        self.unit = denoiser.scale

    @property
    def is_identity(self) -> bool:
        """Whether standard units are those of the denoiser."""
        return self.centre is None and self.unit is None

    def mean(self, sigma_max: float, condition: Condition = None, event_shape: Any = None) -> None:
        """None, as data in standard units are around 0."""

    def condition_of(
        self, condition: Condition, rows: slice | Int64[Tensor, "rows"]
    ) -> Shaped[Tensor, "chosen *features"] | None:
        """The numbers of some samples of the batch."""
        if condition is not None:
            return condition[rows]
        if isinstance(rows, slice):
            raise TypeError(f"rows must be the numbers of samples, got {rows}")
        return rows

    def standard(
        self, x: Float[Tensor, "batch *event"], rows: Int64[Tensor, "batch"] | None = None
    ) -> Float[Tensor, "batch *event"]:
        """z of x, for all samples of the batch or those with these numbers."""
        return to_standard(x, self._centre(x, rows), self.unit)

    def restored(
        self, z: Float[Tensor, "batch *event"], rows: Int64[Tensor, "batch"] | None = None, scale: float = 1.0
    ) -> Float[Tensor, "batch *event"]:
        """s x of s z, for all samples of the batch or those with these numbers; `scale` is s."""
        centre = self._centre(z, rows)
        return from_standard(z, centre if centre is None or scale == 1 else centre * scale, self.unit)

    def log_scale(self, event_shape: tuple[int, ...]) -> float:
        """Σ ln S over all entries of a sample."""
        return 0.0 if self.unit is None else float(self.unit.log().expand(event_shape).sum())

    def _centre(self, x: Tensor, rows: Tensor | None) -> Tensor | None:
        if self.centre is None:
            return None
        centre = like(self.centre, x)
        return centre if rows is None or len(centre) == 1 else centre[rows]

    def forward(
        self,
        x: Float[Tensor, "batch *event"],
        sigma: Values,
        condition: Condition = None,
        *,
        standard: bool = False,
        **options: Any,
    ) -> Float[Tensor, "batch *event"]:
        """D′(z; σ). Arguments as for `Denoiser.forward`, whose other checks are those of D."""
        if standard:
            return super().forward(x, sigma, condition, standard=standard, **options)
        self.check_shape(x)
        return self.denoise(x, float64(sigma), condition, **options)

    def denoise(
        self,
        x: Float[Tensor, "batch *event"],
        sigma: Float64[Tensor, "*batch_or_none"],
        condition: Condition,
        **options: Any,
    ) -> Float[Tensor, "batch *event"]:
        """D′(z; σ)."""
        own = self.condition if condition is None else self.denoiser.condition_of(self.condition, condition)
        denoised = self.denoiser(self.restored(x, condition), sigma, own, **options)
        return self.standard(denoised, condition)


def standardised(
    denoiser: Denoiser,
    condition: Condition = None,
    *,
    sigma_max: float,
    event_shape: tuple[int, ...],
) -> Standardised:
    """A denoiser and a condition in standard units, around the mean of its data as it is at `sigma_max`.

    Args:
        denoiser: any denoiser.
        condition: one row a sample, or None.
        sigma_max: the highest noise level of what follows.
        event_shape: the shape of one sample.

    >>> import torch
    >>> from openedm.exact import GaussianMixture
    >>> kelvin = GaussianMixture([1.0], [[280.0]], [[[100.0]]])
    >>> standardised(kelvin, sigma_max=80.0, event_shape=(1,))(torch.tensor([[10.0]]), 10.0)
    tensor([[5.]])
    """
    mean = denoiser.mean(sigma_max, condition, event_shape)
    if mean is not None and mean.device.type == "cpu" and not bool(mean.any()):
        mean = None  # so that nothing is added to every state
    return Standardised(denoiser, condition, mean)


class InUnits(StandardisedInside, Wrapper):
    """D(x; σ) = m + S D′((x − m)/S; σ): a denoiser of standardised data, called in the units of the data.

    For a network that was trained on (y − m)/S: samples, likelihoods and measurements are then in the units of y.

    Args:
        denoiser: D′, with an `event_shape`.
        units: m and S.

    Raises:
        ValueError: the denoiser has no `event_shape`, the units do not fit it, or it has units of its own.

    >>> import torch
    >>> from openedm.exact import GaussianMixture
    >>> InUnits(GaussianMixture([1.0], [[0.0]], [[[1.0]]]), Units((280.0,), (10.0,)))(torch.tensor([[290.0]]), 1.0)
    tensor([[285.]])
    """

    taken: ClassVar = (*RANGE, *CONDITION)

    def __init__(self, denoiser: Denoiser, units: Units) -> None:
        super().__init__(denoiser)
        if denoiser.event_shape is None:
            raise ValueError("denoiser must have an event_shape for units, got None")
        if denoiser.scale is not None or denoiser.location is not None:
            raise ValueError("denoiser must be in standard units, but has units of its own")
        units.check("units", denoiser.event_shape)
        self.location, self.scale = units.location_of(denoiser.event_shape), units.scale_of(denoiser.event_shape)

    def mean(
        self, sigma_max: float, condition: Condition = None, event_shape: Any = None
    ) -> Float[Tensor, "rows *event_or_ones"]:
        """m + S m′, with m′ the mean of D′."""
        inner = self.denoiser.mean(sigma_max, condition, event_shape)
        assert self.location is not None
        return self.location[None] if inner is None else self.restore(inner)

    def denoise_standardised(
        self,
        x: Float[Tensor, "batch *event"],
        sigma: Float64[Tensor, "*batch_or_none"],
        condition: Condition,
        **options: Any,
    ) -> Float[Tensor, "batch *event"]:
        """D′(x; σ)."""
        return self.denoiser(x, sigma, condition, **options)
