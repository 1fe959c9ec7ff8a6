"""The reducible loss: the difference between the losses of a trivial denoiser and of better ones, at every σ.

Training minimises the loss λ(σ) E‖D − y‖²/n with λ = (σ²+σ_d²)/(σ σ_d)². Karras et al. 2022 (section 5 and Fig. 5a) put
p(σ) where the loss falls during training: at low σ the noise cannot be distinguished from the data, at high σ every
output tends to the mean. The corresponding trivial denoiser is

    T(x; σ) = μ + v/(v + σ²) (x − μ),  v = tr(Σ)/n,

the data's mean at high σ and x at low σ; for μ = 0 it is an untrained EDM network. With D* the best of the denoisers
below,

    reducible(σ) = λ(σ)/n (E‖T − y‖² − E‖D* − y‖²).

Both expectations are taken over held-out samples y, each with noise n and −n, the same for T and D* and at every σ:
terms that are odd in n, most of the difference of two errors at low σ, cancel. Memorised samples do not reduce the
error of a denoiser on held-out samples, and since each denoiser is a function of x alone, E‖D* − y‖² is never below the
least possible error, so that reducible(σ) is never too large. The denoisers:

- linear: μ + U diag(λ/(λ+σ²)) Uᵀ (x − μ), the best of all for Gaussian data;
- exact: the posterior mean over the other samples (Appendix B.3), best at high σ, and in few dimensions;
- mixture: a mixture of `COMPONENTS` Gaussians, fitted to the other samples, in up to `MAX_MIXTURE_DIMENSIONS`
  dimensions;
- windows: for images, a mixture fitted to windows of 5×5 pixels, whose input is the window of x around a pixel. Levin
  and Nadler 2011 estimate the limits of denoising in this way, and Zoran and Weiss 2011 show that such mixtures are
  accurate.

The log-normal with the mean and the variance of ln σ under the density reducible(σ)/λ(σ)^¼, on [σ_min, σ_max],
concentrates training where the loss can be reduced. λ makes an error of D count relative to the noise, so that the
finest structure counts as much as the coarsest; a sample is displaced by the error of D itself, and reducible(σ)/λ(σ)
is its square. The power is between these two: with reducible(σ) alone, networks that are trained for a short time have
larger errors where the outlines of a sample are decided (`benchmarks/README.md`).
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int
from torch import Tensor
from torch.nn.functional import pad

from openedm import exact
from openedm.objective import EDMWeighting
from openedm.suggest.limits import Posteriors
from openedm.suggest.moments import Moments, Noisy, parts

__all__ = ["HeldOut", "Reducible", "Windows", "fit_mixture", "log_normal_of", "reducible", "windows_at"]

COMPONENTS = 16
MAX_MIXTURE_DIMENSIONS = 64
WINDOW_SIZE = 5
MAX_WINDOWS = 8192
"""The largest number of windows to which a mixture is fitted."""

PIXELS_PER_IMAGE = 8
"""The number of pixels of each noisy image that are denoised from their windows."""

MIN_REDUCIBLE, MIN_ERRORS, MIN_PER_SAMPLE = 0.02, 3.0, 4.0
"""The moments of the reducible loss are computed if it is at least the first somewhere, and there at least the second
times its standard error and at least the third over the number of samples: T has the mean of these samples, whose error
counts as 1 over their number at high σ. Below, the moments would be random."""

DISPLACEMENT_POWER = 0.25
"""The power of λ(σ) by which the reducible loss is divided: with 0 errors are relative to the noise, with 1 not."""

JACKKNIFE_GROUPS = 16
"""The number of groups of held-out samples in the jackknife, which leaves out one at a time."""


@dataclass(frozen=True)
class Reducible:
    """The reducible loss at every σ, and its moments.

    Attributes:
        sigmas: noise levels, increasing, evenly spaced in ln σ from σ_min to σ_max.
        trivial: λ(σ) E‖T − y‖²/n = λ(σ) v σ²/(v + σ²): 1 at low σ, v/σ_d² at high.
        values: reducible(σ), ≥ 0; `trivial` minus this is the loss of D*.
        errors: standard errors of `values`.
        by: the name of D* at each σ; "trivial" if no denoiser is better than T.
        p_mean: mean of ln σ under reducible(σ)/λ(σ)^¼; None if reducible(σ) is too small or uncertain at every σ
            (`MIN_REDUCIBLE`).
        p_std: standard deviation of ln σ under the same density, or None as for p_mean.
        p_mean_error: standard error of p_mean, from the held-out samples.
        p_std_error: standard error of p_std, from the held-out samples.
        held_out: the number of held-out samples.
    """

    sigmas: tuple[float, ...]
    trivial: tuple[float, ...]
    values: tuple[float, ...]
    errors: tuple[float, ...]
    by: tuple[str, ...]
    p_mean: float | None
    p_std: float | None
    p_mean_error: float
    p_std_error: float
    held_out: int


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Held-out samples, their noise, and the other samples, from which the denoisers are computed.

    Attributes:
        clean: y, all samples twice.
        noise: unit noise n for the first half, and −n for the second.
        rows: the other samples.
        moments: the moments of `rows`.
        noisy: `clean` and `noise` in the coordinates of `moments`.
        against: the posteriors of the noisy samples over some of `rows`.
        shape: the shape of one sample.
    """

    clean: Float64[Tensor, "twice n"]
    noise: Float64[Tensor, "twice n"]
    rows: Float64[Tensor, "count n"]
    moments: Moments
    noisy: Noisy
    against: Posteriors
    shape: tuple[int, ...]

    def trivial(self, sigma: float) -> float:
        """v/(v + σ²), the gain of T."""
        return self.moments.variance / (self.moments.variance + sigma**2)


def reducible(held: HeldOut, sigmas: Sequence[float], sigma_data: float, seed: int) -> Reducible:
    """reducible(σ) at `sigmas`, evenly spaced in ln σ, and the log-normal of its moments.

    Args:
        held: the held-out samples and the other samples.
        sigmas: the noise levels, increasing.
        sigma_data: σ_d of the weighting.
        seed: the seed of the windows and mixtures.
    """
    levels = torch.tensor(sigmas, dtype=torch.float64)
    weight = EDMWeighting().weight(levels, sigma_data)
    names, gains = _best(_gains(held, sigmas, seed))
    gains = weight[:, None] * gains
    v = held.moments.variance
    smallest = max(MIN_REDUCIBLE, MIN_PER_SAMPLE / len(held.rows))
    least = (MIN_ERRORS * gains.std(1) / math.sqrt(gains.shape[1])).clamp(min=smallest)
    is_reducible = bool((gains.mean(1) >= least).any())
    displacing = gains / weight.pow(DISPLACEMENT_POWER)[:, None]
    mean, std = log_normal_of(levels, displacing.mean(1)) if is_reducible else (None, None)
    mean_error, std_error = _jackknife(levels, displacing) if is_reducible else (0.0, 0.0)
    return Reducible(
        sigmas=tuple(sigmas),
        trivial=tuple((weight * v * levels.square() / (v + levels.square())).tolist()),
        values=tuple(gains.mean(1).clamp(min=0).tolist()),
        errors=tuple((gains.std(1) / math.sqrt(gains.shape[1])).tolist()),
        by=names,
        p_mean=mean,
        p_std=std,
        p_mean_error=mean_error,
        p_std_error=std_error,
        held_out=gains.shape[1],
    )


def log_normal_of(sigmas: Float64[Tensor, "levels"], values: Float64[Tensor, "levels"]) -> tuple[float, float]:
    """Mean and standard deviation of ln σ under the density max(`values`, 0), by the trapezoidal rule.

    σ is evenly spaced in ln σ; at least one value is > 0.
    """
    weights = values.clamp(min=0)
    weights[[0, -1]] /= 2
    weights = weights / weights.sum()
    mean = (weights * sigmas.log()).sum()
    return float(mean), float((weights * (sigmas.log() - mean).square()).sum().sqrt())


def _jackknife(sigmas: Float64[Tensor, "levels"], values: Float64[Tensor, "levels batch"]) -> tuple[float, float]:
    """Standard errors of the two moments, by leaving out one group of samples at a time."""
    groups = min(JACKKNIFE_GROUPS, values.shape[1])
    number = torch.arange(values.shape[1]) % groups
    found = torch.tensor([log_normal_of(sigmas, values[:, number != g].mean(1)) for g in range(groups)])
    errors = ((groups - 1) * found.double().var(0, correction=0)).sqrt()
    return float(errors[0]), float(errors[1])


def _best(gains: dict[str, Float64[Tensor, "levels batch"]]) -> tuple[tuple[str, ...], Float64[Tensor, "levels batch"]]:
    """At each σ, the name and the gains of the denoiser with the largest gain; the trivial denoiser has gain 0."""
    names = ("trivial", *gains)
    stacked = torch.stack([torch.zeros_like(next(iter(gains.values()))), *gains.values()])
    chosen = stacked.mean(2).argmax(0)
    return tuple(names[i] for i in chosen.tolist()), stacked[chosen, torch.arange(stacked.shape[1])]


def _gains(held: HeldOut, sigmas: Sequence[float], seed: int) -> dict[str, Float64[Tensor, "levels batch"]]:
    """(‖T − y‖² − ‖D − y‖²)/n of each denoiser D, at each σ, for each held-out sample, averaged over n and −n."""
    windows = _windows(held, sigmas[0], seed) if len(held.shape) == 3 and min(held.shape[1:]) >= WINDOW_SIZE else None
    mixture = fit_mixture(held.rows, sigmas[0], seed) if held.rows.shape[1] <= MAX_MIXTURE_DIMENSIONS else None
    n = held.rows.shape[1]
    ones = torch.ones_like(held.moments.values)
    rows: dict[str, list[Tensor]] = {}
    for sigma in sigmas:
        trivial = held.trivial(sigma)
        errors = {
            "linear": held.noisy.error(sigma, *held.moments.gains(sigma, shrunk=False)),
            "linear, shrunk": held.noisy.error(sigma, *held.moments.gains(sigma, shrunk=True)),
            "exact": held.noisy.error_of(held.against.denoised(sigma)),
        }
        if mixture is not None:
            errors["mixture"] = (mixture(held.clean + sigma * held.noise, sigma) - held.clean).square().sum(1)
        for name, error in errors.items():
            rows.setdefault(name, []).append((held.noisy.error(sigma, trivial * ones, trivial) - error) / n)
        if windows is not None:
            rows.setdefault("windows", []).append(windows.gains(sigma, trivial))
    return {name: torch.stack(values).reshape(len(sigmas), 2, -1).mean(1) for name, values in rows.items()}


def fit_mixture(rows: Float64[Tensor, "count n"], sigma_min: float, seed: int) -> exact.GaussianMixture:
    """A mixture of up to `COMPONENTS` Gaussians with full covariances, by expectation maximisation (scikit-learn).

    (σ_min/3)² is added to the variances, which is negligible at every σ ≥ σ_min: without it, components with constant
    pixels have no density.
    """
    from sklearn import mixture

    fitted = mixture.GaussianMixture(
        min(COMPONENTS, len(rows) // 8),
        reg_covar=(sigma_min / 3) ** 2,
        max_iter=20,
        init_params="k-means++",
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 20 iterations are enough, even without convergence.
        fitted.fit(rows[:MAX_WINDOWS].numpy())
    covariances = torch.from_numpy(fitted.covariances_)
    means = torch.from_numpy(fitted.means_)
    return exact.GaussianMixture(torch.from_numpy(fitted.weights_), means, (covariances + covariances.mT) / 2)


@dataclass(frozen=True, eq=False)
class Windows:
    """Denoises the pixel at the centre of a window, from the window alone.

    Attributes:
        mixture: the density of windows with all channels.
        clean: windows of y, image by image.
        noise: the same windows of n.
        mean: the same windows of μ.
        images: the number of images.
    """

    mixture: exact.GaussianMixture
    clean: Float64[Tensor, "windows n"]
    noise: Float64[Tensor, "windows n"]
    mean: Float64[Tensor, "windows n"]
    images: int

    def gains(self, sigma: float, trivial: float) -> Float64[Tensor, "images"]:
        """(‖T − y‖² − ‖D − y‖²)/n over the central pixels, where T = μ + trivial (x − μ)."""
        x = self.clean + sigma * self.noise
        denoised = torch.cat([self.mixture(part, sigma) for part in parts(x, 512)])
        t = self.mean + trivial * (x - self.mean)
        middle = slice(WINDOW_SIZE**2 // 2, None, WINDOW_SIZE**2)
        gains = (t - self.clean)[:, middle].square() - (denoised - self.clean)[:, middle].square()
        return gains.reshape(self.images, -1).mean(1)


def _windows(held: HeldOut, sigma_min: float, seed: int) -> Windows:
    generator = torch.Generator().manual_seed(seed)
    images = held.rows[:MAX_WINDOWS].reshape(-1, *held.shape)
    training_windows = windows_at(
        images, _random_pixels(len(images), -(-MAX_WINDOWS // len(images)), held.shape, generator)
    )
    places = _random_pixels(len(held.clean), PIXELS_PER_IMAGE, held.shape, generator)
    mean = held.moments.mean.expand_as(held.clean)
    clean, noise, mean = (windows_at(x.reshape(-1, *held.shape), places) for x in (held.clean, held.noise, mean))
    return Windows(fit_mixture(training_windows, sigma_min, seed), clean, noise, mean, images=len(held.clean))


def _random_pixels(
    images: int, pixels: int, shape: tuple[int, ...], generator: torch.Generator
) -> Int[Tensor, "images pixels 2"]:
    """The row and the column of random pixels."""
    return torch.stack([torch.randint(size, (images, pixels), generator=generator) for size in shape[1:]], -1)


def windows_at(
    images: Float64[Tensor, "batch channels height width"], places: Int[Tensor, "batch pixels 2"]
) -> Float64[Tensor, "windows n"]:
    """The windows around some pixels of each image, flat; images are continued by reflection at their edges."""
    margin = WINDOW_SIZE // 2
    padded = pad(images, (margin, margin, margin, margin), mode="reflect")
    offsets = torch.arange(WINDOW_SIZE)
    rows = places[..., 0, None, None] + offsets[:, None]
    columns = places[..., 1, None, None] + offsets
    image = torch.arange(len(images))[:, None, None, None]
    found = padded[image, :, rows, columns]  # (batch, pixels, window, window, channels)
    return found.movedim(-1, 2).flatten(0, 1).flatten(1)
