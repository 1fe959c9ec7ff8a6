"""σ_data, σ_min, σ_max, P_mean and P_std that suit some data, with the evidence for each."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from openedm.data import Dataset, measure
from openedm.ground import checks
from openedm.objective import LogNormal
from openedm.suggest.limits import UNIFORM_SHARE, Highest, Lowest, comparable, highest, lowest, posteriors
from openedm.suggest.moments import draw, moments, noisy
from openedm.suggest.reducible import HeldOut, Reducible, reducible

__all__ = ["Scale", "Suggestion", "suggest"]

MIN_SAMPLES = 64
"""The least number of samples."""

HELD_OUT_SAMPLES = (192, 512)
"""How many samples are held out, in many dimensions and in few."""

MAX_WEIGHTS = 2**21
"""How many weights of the exact denoiser are computed at a time: held-out samples times data points."""

COVERED_STDS = 3.0
"""How many standard deviations of the suggested p(σ) reach σ_min and σ_max."""

MAX_UNEVENNESS = 3.0
"""The ratio of the scales of two dimensions above which a warning is given."""


@dataclass(frozen=True)
class Scale:
    """What σ_data follows from, and how far the data are from zero mean and equal scale, which EDM's scaling assumes.

    Attributes:
        sigma_data: standard deviation of all values about their common mean, as training measures it.
        error: its standard error, from the samples that were used.
        mean: that common mean.
        rms: √E[x²], about zero.
        within: root mean square of the standard deviations of the dimensions, each about its own mean: √(tr(Σ)/n).
        smallest: the smallest standard deviation of a dimension that is not constant.
        largest: the largest.
        constant: how many dimensions are constant.
        dimensions: n.
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
        """The largest standard deviation of a dimension by the smallest."""
        return self.largest / self.smallest


@dataclass(frozen=True)
class Suggestion:
    """Noise levels that suit some data, in data units, and why.

    Attributes:
        sigma_data: for the preconditioning; training measures the same number.
        sigma_min: lowest noise level of sampling.
        sigma_max: highest noise level of sampling.
        p_mean: of the log-normal p(σ) of training.
        p_std: of the same.
        scale: evidence for sigma_data.
        lowest: evidence for sigma_min.
        highest: evidence for sigma_max.
        reducible: evidence for p_mean and p_std.
        samples: the number of samples in the data.
        looked_at: how many of them were used.
        warnings: where the data do not fit EDM's assumptions.
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
    def noise(self) -> LogNormal:
        """The suggested p(σ)."""
        return LogNormal(self.p_mean, self.p_std)

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
        """Everything as plain data, ready for JSON."""
        return dataclasses.asdict(self)


def suggest(
    data: Dataset, *, terminal_nats: float = 0.01, max_samples: int = 10_000, levels: int = 24, seed: int = 0
) -> Suggestion:
    """σ_data, σ_min, σ_max, P_mean and P_std that suit `data`, with the evidence for each.

    - σ_data: the standard deviation of all values about their common mean (`data.measure`), what training measures and
      c_in, c_skip and λ(σ) take to be the scale of every dimension about zero (Karras et al. 2022, Table 1).
    - σ_min, σ_max: see `openedm.suggest.limits`.
    - P_mean: the mean of ln σ where the loss is reducible (`openedm.suggest.reducible`).
    - P_std: the standard deviation of the same, but large enough that σ_min and σ_max lie within 3 P_std of P_mean.
      Where nothing is reducible a network still has to learn the trivial answer, and it does not at levels that are
      never drawn: trained with the bare standard deviation, small networks are wrong at the ends of the range, most of
      all at σ_max, where sampling begins.

    Where next to nothing of the loss is reducible, P_mean and P_std are EDM's in units of σ_data, −1.2 + ln(σ_data/½)
    and 1.2, the latter with the same bound.

    Data scaled by c are given noise levels scaled by c, and P_mean + ln c.

    Args:
        data: at least 64 samples of one shape; images may have one more estimate, of windows.
        terminal_nats: the divergence from the data that the start of sampling may cost, in (0, 1]; 0.01 nats is at most
            7 % in total variation.
        max_samples: how many samples are used at most, drawn at random; ≥ 64.
        levels: how many noise levels the reducible loss is measured at, ≥ 8.
        seed: of the draws, ≥ 0.

    Raises:
        ValueError: an argument is out of its range; or the data are too few, constant or not finite.

    >>> from openedm.data import Digits
    >>> found = suggest(Digits().load())
    >>> f"{found.sigma_data:.3f} {found.sigma_min:.3f} {found.sigma_max:.0f}"
    '0.752 0.036 37'
    """
    if not 0 < terminal_nats <= 1:
        raise ValueError(f"terminal_nats must be in (0, 1], got {terminal_nats!r}")
    checks.at_least("max_samples", max_samples, MIN_SAMPLES)
    checks.at_least("levels", levels, 8)
    checks.at_least("seed", seed, 0)
    checks.at_least("the number of samples in data", len(data), MIN_SAMPLES)
    rows = draw(data, max_samples, seed)
    if bool((rows == rows[0]).all()):
        raise ValueError(f"data must vary, but all {len(rows)} samples that were used are the same")
    held = _held_out(rows, data.event_shape, seed)
    scale = _scale(rows, data)
    low = lowest(held.clean, held.rows, scale.sigma_data)
    high = highest(held.moments, held.rows, held.against, terminal_nats)
    span = math.log(high.sigma / low.sigma)
    sigmas = [low.sigma * math.exp(span * i / (levels - 1)) for i in range(levels)]
    curve = reducible(held, sigmas, scale.sigma_data, seed)
    p_mean = -1.2 + math.log(scale.sigma_data / 0.5) if curve.p_mean is None else curve.p_mean
    return Suggestion(
        sigma_data=scale.sigma_data,
        sigma_min=low.sigma,
        sigma_max=high.sigma,
        p_mean=p_mean,
        p_std=max(1.2 if curve.p_std is None else curve.p_std, _cover(p_mean, low.sigma, high.sigma)),
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
    # σ² is a mean over samples of what each has, and σ's error is that of σ² by 2 σ.
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
        return f"values come in steps of {low.step:.4g}: rounding to them is noise of step/√12"
    if low.bound == "neighbours":
        return f"moves a sample by a tenth of its distance {low.neighbour:.3g} to the nearest other"
    if low.step is not None:
        return f"σ_data/10: values come in steps of {low.step:.4g}, so coarse that step/√12 is more"
    return f"σ_data/250, EDM's ratio: a tenth of the distance {low.neighbour:.2g} between neighbours asks for another"


def _highest_reason(high: Highest) -> str:
    mean = f", {high.mean_share:.0%} of them the mean's (centred: {high.centred:.3g})" if high.mean_share > 0.1 else ""
    return (
        f"± {high.error:.1g}; the start N(0, σ²) costs {high.nats:g} nats{mean}; largest distance {high.farthest:.3g}, "
        f"posterior uniform to {UNIFORM_SHARE:.0%} from {high.uniform:.3g}"
    )


def _mean_reason(found: Suggestion) -> str:
    curve = found.reducible
    if curve.p_mean is None:
        return "EDM's −1.2 in units of σ_data: next to nothing of the loss is reducible"
    peak = max(range(len(curve.values)), key=lambda i: curve.values[i])
    return (
        f"mean of ln σ where the loss is reducible, ± {curve.p_mean_error:.1g}; most, {curve.values[peak]:.0%}, at "
        f"σ = {curve.sigmas[peak]:.2g}"
    )


def _std_reason(found: Suggestion) -> str:
    own = found.reducible.p_std
    if own is None:
        reason = "EDM's"
    else:
        curve = found.reducible
        half = [s for s, value in zip(curve.sigmas, curve.values, strict=True) if value >= max(curve.values) / 2]
        reason = (
            f"standard deviation of the same, {own:.2f} ± {curve.p_std_error:.1g} (half as much is reducible from "
            f"σ = {half[0]:.2g} to {half[-1]:.2g})"
        )
    if found.p_std > (1.2 if own is None else own):
        far = "σ_max" if math.log(found.sigma_max * found.sigma_min) > 2 * found.p_mean else "σ_min"
        return f"{reason}, widened: {far} is to be within {COVERED_STDS:g} of it of p_mean, to be trained on at all"
    return reason


def _warnings(scale: Scale, kind: str, curve: Reducible) -> tuple[str, ...]:
    found = []
    if scale.unevenness > MAX_UNEVENNESS:
        advice = (
            "usual for images with empty borders"
            if kind == "images"
            else "one σ_data cannot suit them all: divide each dimension by its standard deviation"
        )
        found.append(
            f"the dimensions differ in scale by {scale.unevenness:.3g} × ({scale.smallest:.2g} … {scale.largest:.2g}): "
            + advice
        )
    if kind == "vectors" and abs(scale.mean) > scale.sigma_data / 2:
        found.append(
            f"the mean {scale.mean:.2g} is not small against sigma_data = {scale.sigma_data:.2g}, and EDM's scaling "
            "takes it to be 0: subtract the mean of each dimension"
        )
    if scale.constant:
        found.append(f"{scale.constant} of {scale.dimensions} dimensions are constant")
    if curve.p_mean is None:
        found.append(
            "no denoiser that was tried is better than a multiple of x about the mean: the data look like isotropic "
            "Gaussian noise, or there are too few samples; p_mean and p_std are EDM's in units of sigma_data"
        )
    return tuple(found)
