"""Suggestions of σ_data, σ_min, σ_max, P_mean and P_std for some data, with the evidence for each."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from openedm import objective
from openedm.data import Dataset, InMemory, as_dataset, measure
from openedm.ground import checks
from openedm.ground.seeding import host_seeded
from openedm.levels import EDM_SIGMA_DATA
from openedm.objective import EDM_P_MEAN
from openedm.suggest.limits import UNIFORM_SHARE, Highest, Lowest, comparable, highest, lowest, posteriors
from openedm.suggest.moments import draw, moments, noisy
from openedm.suggest.reducible import MIN_REDUCIBLE, HeldOut, Reducible, reducible
from openedm.units import Units

__all__ = ["Scale", "Suggestion", "in_standard_units", "suggest"]

MIN_SAMPLES = 64
"""The smallest number of samples."""

HELD_OUT_SAMPLES = (192, 512)
"""The numbers of held-out samples in many dimensions and in few."""

MAX_WEIGHTS = 2**21
"""The largest number of weights of the exact denoiser at a time: held-out samples times data points."""

COVERED_STDS = 4.65
"""The largest distance of σ_min and σ_max from P_mean, in standard deviations of the suggested p(σ): that of EDM's
σ_max."""

EDM_P_STD = 1.2
"""P_std of Karras et al. 2022."""

MAX_UNEVENNESS = 3.0
"""The ratio of the scales of two dimensions above which a warning is given."""


@dataclass(frozen=True)
class Scale:
    """The evidence for σ_data, and the deviation from zero mean and equal scales, which EDM's scaling assumes.

    Attributes:
        sigma_data: standard deviation of all values about their common mean, as measured in training.
        error: its standard error, from the samples that were used.
        mean: the common mean.
        rms: √E[x²], about zero.
        within: root mean square of the standard deviations of the dimensions about their means: √(tr(Σ)/n).
        smallest: the smallest standard deviation of a dimension that is not constant.
        largest: the largest standard deviation of a dimension.
        constant: the number of constant dimensions.
        dimensions: n, the number of dimensions.
    """

    sigma_data: float
    error: float
    mean: float
    rms: float
    within: float
    smallest: float
    largest: float
    constant: int
    dimensions: int

    @property
    def unevenness(self) -> float:
        """The ratio of the largest standard deviation of a dimension to the smallest."""
        return self.largest / self.smallest


@dataclass(frozen=True)
class Suggestion:
    """Suggested noise levels for some data, in data units, with the evidence.

    Attributes:
        sigma_data: σ_data of the preconditioning; training measures the same number.
        sigma_min: lowest noise level of sampling.
        sigma_max: highest noise level of sampling.
        p_mean: P_mean of the log-normal p(σ) of training.
        p_std: P_std of the same distribution.
        scale: evidence for sigma_data.
        lowest: evidence for sigma_min.
        highest: evidence for sigma_max.
        reducible: evidence for p_mean and p_std.
        samples: the number of samples in the data.
        looked_at: the number of samples that were used.
        warnings: deviations of the data from EDM's assumptions.
    """

    sigma_data: float
    sigma_min: float
    sigma_max: float
    p_mean: float
    p_std: float
    scale: Scale
    lowest: Lowest
    highest: Highest
    reducible: Reducible
    samples: int
    looked_at: int
    warnings: tuple[str, ...]

    @property
    def noise(self) -> objective.LogNormal:
        """The suggested p(σ)."""
        return objective.LogNormal(self.p_mean, self.p_std)

    def reasons(self) -> dict[str, str]:
        """One line that explains each of the five numbers."""
        return {
            "sigma_data": _scale_reason(self.scale),
            "sigma_min": _lowest_reason(self.lowest),
            "sigma_max": _highest_reason(self.highest),
            "p_mean": _mean_reason(self),
            "p_std": _std_reason(self),
        }

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain data, for JSON."""
        return dataclasses.asdict(self)


def in_standard_units(data: Dataset, max_samples: int = 10_000) -> Dataset:
    """The data in the units in which a model trains, so that the numbers suggested for them are those of training.

    Images in [-1, 1] are as they are; of other data, each channel has mean 0 and standard deviation 0.5
    (`Model.for_data`).

    Args:
        data: any dataset.
        max_samples: the largest number of samples that are kept, at even distances.
    """
    found = measure(data)
    if data.kind == "images" or found.std == 0:
        return data
    units = Units.measured(found.channel_means, found.channel_stds, EDM_SIGMA_DATA)
    with host_seeded(0):  # so that data that are drawn anew give the same numbers each time
        x = data.fetch(data.spread(max_samples))[0]
    return InMemory(units.standardise(x))


def suggest(
    data: Dataset, *, terminal_nats: float = 0.01, max_samples: int = 10_000, levels: int = 24, seed: int = 0
) -> Suggestion:
    """Suggested σ_data, σ_min, σ_max, P_mean and P_std for `data`, with the evidence for each.

    - σ_data: the standard deviation of all values about their common mean (`data.measure`), as measured in training;
      c_in, c_skip and λ(σ) assume that it is the scale of every dimension about zero (Karras et al. 2022, Table 1).
    - σ_min, σ_max: see `openedm.suggest.limits`.
    - P_mean: the mean of ln σ under the reducible loss over λ(σ)^¼ (`openedm.suggest.reducible`), but not below EDM's
      in units of σ_data, −1.2 + ln(σ_data/½): with less noise, small networks have larger errors in the outlines of
      samples.
    - P_std: the corresponding standard deviation, but not above EDM's 1.2, and large enough that σ_min and σ_max are
      within 4.65 P_std of P_mean, as EDM's are. Where the loss is not reducible a network still has to learn the
      trivial denoiser, which it does not at levels that are never drawn: with the smaller standard deviation, small
      networks have large errors at the ends of the range, mostly at σ_max, where sampling starts.

    If almost none of the loss is reducible, P_mean and P_std are EDM's in units of σ_data and 1.2, the latter large
    enough in the same way.

    For data scaled by c the noise levels are scaled by c, and ln c is added to P_mean.

    Args:
        data: at least 64 samples of one shape; for images there is one more estimate, from windows.
        terminal_nats: the allowed divergence from the data that is caused by the start of sampling, in (0, 1]; 0.01
            nats are at most 7 % in total variation.
        max_samples: the largest number of samples, drawn at random; ≥ 64.
        levels: the number of noise levels of the reducible loss, ≥ 8.
        seed: the seed of the draws, ≥ 0.

    Raises:
        ValueError: an argument is out of its range; or the data are too few, constant or not finite.

    >>> from openedm.data import Digits
    >>> found = suggest(Digits().load())
    >>> f"{found.sigma_data:.3f} {found.sigma_min:.3f} {found.sigma_max:.0f}"
    '0.752 0.036 51'
    """
    data = as_dataset(data, "data")
    if not 0 < terminal_nats <= 1:
        raise ValueError(f"terminal_nats must be in (0, 1], got {terminal_nats!r}")
    checks.at_least("max_samples", max_samples, MIN_SAMPLES)
    checks.at_least("levels", levels, 8)
    checks.at_least("seed", seed, 0)
    checks.at_least("the number of samples in data", len(data), MIN_SAMPLES)
    rows = draw(data, max_samples, seed)
    if bool((rows == rows[0]).all()):
        raise ValueError(f"data must not be constant, but all {len(rows)} samples that were used are equal")
    held = _held_out(rows, data.event_shape, seed)
    scale = _scale(rows, data)
    low = lowest(held.clean, held.rows, scale.sigma_data)
    high = highest(held.moments, held.rows, held.against, terminal_nats)
    span = math.log(high.sigma / low.sigma)
    sigmas = [low.sigma * math.exp(span * i / (levels - 1)) for i in range(levels)]
    curve = reducible(held, sigmas, scale.sigma_data, seed)
    usual = EDM_P_MEAN + math.log(scale.sigma_data / EDM_SIGMA_DATA)
    p_mean = usual if curve.p_mean is None else max(curve.p_mean, usual)
    p_std = EDM_P_STD if curve.p_std is None else min(curve.p_std, EDM_P_STD)
    return Suggestion(
        sigma_data=scale.sigma_data,
        sigma_min=low.sigma,
        sigma_max=high.sigma,
        p_mean=p_mean,
        p_std=max(p_std, _cover(p_mean, low.sigma, high.sigma)),
        scale=scale,
        lowest=low,
        highest=high,
        reducible=curve,
        samples=len(data),
        looked_at=len(rows),
        warnings=_warnings(scale, data.kind, curve),
    )


def _cover(p_mean: float, sigma_min: float, sigma_max: float) -> float:
    """The P_std with which the farther of σ_min and σ_max is `COVERED_STDS` standard deviations from P_mean."""
    return max(math.log(sigma_max) - p_mean, p_mean - math.log(sigma_min)) / COVERED_STDS


def _held_out(rows: Float64[Tensor, "count n"], shape: tuple[int, ...], seed: int) -> HeldOut:
    count, n = rows.shape
    number = min(count // 4, max(HELD_OUT_SAMPLES[0], min(HELD_OUT_SAMPLES[1], 2**14 // n)))
    clean, others = rows[:number].repeat(2, 1), rows[number:]
    noise = torch.randn(number, n, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    noise = torch.cat([noise, -noise])
    found = moments(others)
    x = noisy(found, clean, noise)
    points = others[: min(comparable(others), found.count, MAX_WEIGHTS // len(clean))]
    against = posteriors(x, (points - found.mean) @ found.basis)
    return HeldOut(clean, noise, others, found, x, against, shape)


def _scale(rows: Float64[Tensor, "count n"], data: Dataset) -> Scale:
    measured = measure(data)
    std = rows.std(0, correction=0)
    varying = std[std > 1e-6 * std.max()]
    # σ² is a mean over samples, and the error of σ is that of σ² divided by 2 σ.
    squares = (rows - rows.mean()).square().mean(1)
    return Scale(
        sigma_data=measured.std,
        error=float(squares.std()) / math.sqrt(len(rows)) / (2 * measured.std),
        mean=measured.mean,
        rms=math.hypot(measured.mean, measured.std),
        within=float(std.square().mean().sqrt()),
        smallest=float(varying.min()),
        largest=float(varying.max()),
        constant=len(std) - len(varying),
        dimensions=len(std),
    )


def _scale_reason(scale: Scale) -> str:
    return (
        f"standard deviation of all values, ± {scale.error:.1g}; their mean is {scale.mean:.2g}, the scales of the "
        f"dimensions {scale.smallest:.2g} … {scale.largest:.2g}"
    )


def _lowest_reason(low: Lowest) -> str:
    if low.bound == "rounding":
        return f"values are multiples of {low.step:.4g}: rounding to this step is noise of step/√12"
    if low.bound == "neighbours":
        return f"displaces a sample by a tenth of its distance {low.neighbour:.3g} to the nearest other"
    if low.step is not None:
        return f"σ_data/10: values are multiples of {low.step:.4g}, and step/√12 is larger"
    return (
        f"σ_data/250, EDM's ratio, since a tenth of the distance {low.neighbour:.2g} between neighbours is out of range"
    )


def _highest_reason(high: Highest) -> str:
    mean = f", {high.mean_share:.0%} by the mean (centred: {high.centred:.3g})" if high.mean_share > 0.1 else ""
    return (
        f"± {high.error:.1g}; the start N(0, σ²) causes {high.nats:.2g} nats{mean}; largest distance "
        f"{high.farthest:.3g}, posterior uniform to {UNIFORM_SHARE:.0%} from {high.uniform:.3g}"
    )


def _mean_reason(found: Suggestion) -> str:
    curve = found.reducible
    peak = max(range(len(curve.values)), key=lambda i: curve.values[i])
    if curve.p_mean is None:
        certain = curve.values[peak] < 2 * MIN_REDUCIBLE
        share = f"{curve.values[peak]:.0%} ± {curve.errors[peak]:.0%} at most, of {curve.held_out} samples"
        reason = "almost none of the loss is reducible" if certain else "how much of the loss is reducible is uncertain"
        return f"EDM's −1.2 in units of σ_data: {reason}, {share}"
    largest = f"largest, {curve.values[peak]:.0%}, at σ = {curve.sigmas[peak]:.2g}"
    mean = "mean of ln σ under the reducible loss/λ^¼"
    if found.p_mean > curve.p_mean:
        below = f"{curve.p_mean:.2f} ± {curve.p_mean_error:.1g}"
        return f"EDM's −1.2 in units of σ_data; the {mean} is below, {below}; {largest}"
    return f"{mean}, ± {curve.p_mean_error:.1g}; {largest}"


def _std_reason(found: Suggestion) -> str:
    p_std = found.reducible.p_std
    if p_std is None:
        reason = "EDM's"
    else:
        curve = found.reducible
        half = [s for s, value in zip(curve.sigmas, curve.values, strict=True) if value >= max(curve.values) / 2]
        reason = (
            f"standard deviation of ln σ, {p_std:.2f} ± {curve.p_std_error:.1g} (half as much is reducible from "
            f"σ = {half[0]:.2g} to {half[-1]:.2g})"
        )
        if p_std > EDM_P_STD:
            reason = f"EDM's, below the {reason}"
    if found.p_std > (EDM_P_STD if p_std is None else min(p_std, EDM_P_STD)):
        far = "σ_max" if math.log(found.sigma_max * found.sigma_min) > 2 * found.p_mean else "σ_min"
        return f"{reason}, increased so that {far} is within {COVERED_STDS:g} of it of p_mean and occurs in training"
    return reason


def _warnings(scale: Scale, kind: str, curve: Reducible) -> tuple[str, ...]:
    found = []
    if scale.unevenness > MAX_UNEVENNESS:
        advice = (
            "usual for images with empty borders"
            if kind == "images"
            else "one σ_data does not fit all of them: divide each dimension by its standard deviation"
        )
        found.append(
            f"the dimensions differ in scale by {scale.unevenness:.3g} × ({scale.smallest:.2g} … {scale.largest:.2g}): "
            + advice
        )
    if kind == "vectors" and abs(scale.mean) > scale.sigma_data / 2:
        found.append(
            f"the mean {scale.mean:.2g} is not small compared with sigma_data = {scale.sigma_data:.2g}, but EDM's "
            "scaling assumes 0: subtract the mean of each dimension"
        )
    if scale.constant:
        found.append(f"{scale.constant} of {scale.dimensions} dimensions are constant")
    if curve.p_mean is None:
        found.append(
            "no denoiser is certainly better than a multiple of x about the mean: the data are similar to isotropic "
            "Gaussian noise, or there are too few samples; p_mean and p_std are EDM's in units of sigma_data"
        )
    return tuple(found)
