"""Bits per dimension of images, by uniform dequantisation.

An image of whole levels, x = 2b/(L − 1) − 1 with b = 0 … L − 1 and L = 256, represents a bin of width δ = 2/(L − 1)
around each of its values. With u uniform on the bin, y = x + u, P(x) = ∫ p(y) du = δⁿ E_u p(y), so that

    ln P(x) ≥ E_u ln p(y) + n ln δ                                           (Theis et al. 2016, eq. 3)
    ln P(x) ≥ E ln ((1/K) Σ_k p(y_k)) + n ln δ                               (Burda et al. 2016), tighter with K,

and bits per dimension are −ln P(x)/(n ln 2). Publications that scale images to 2(b + u)/256 − 1 have δ = 2/256, another
density, and the same P(x).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from openedm.denoiser import Condition, Denoiser
from openedm.ground import checks
from openedm.likelihood.density import Likelihood
from openedm.sampling import SeededNoise

__all__ = ["BitsPerDim", "bits_per_dim"]


@dataclass(frozen=True)
class BitsPerDim:
    """Bits per dimension, and the log-densities from which they are computed.

    Attributes:
        bits_per_dim: an upper bound of −log₂ P(x)/n, in expectation; NaN for a sample that reached the limit of
            evaluations.
        standard_error: the standard error of the mean over draws, of dequantisation and probes together; for a single
            draw, that of the mean over its probes. NaN for a single number, and for importance-weighted bounds.
        log_prob: ln p(y_k) of every draw, in nats.
        nfe: number of evaluations of the denoiser, for each image.
    """

    bits_per_dim: Float[Tensor, "batch"]
    standard_error: Float[Tensor, "batch"]
    log_prob: Float[Tensor, "draws batch"]
    nfe: Int64[Tensor, "batch"]


def bits_per_dim(
    denoiser: Denoiser,
    images: Float[Tensor, "batch *event"],
    condition: Condition = None,
    *,
    seeds: Sequence[int],
    likelihood: Likelihood = Likelihood(),
    draws: int = 1,
    importance: bool = False,
    num_values: int = 256,
) -> BitsPerDim:
    """An upper bound of the bits per dimension of images under the density of a model.

    Args:
        denoiser: any denoiser that is differentiable in x.
        images: images in [−1, 1], at whole levels x = 2b/(L − 1) − 1.
        condition: one row an image.
        seeds: seeds of the dequantisation and the probes, one an image.
        likelihood: the method for densities.
        draws: K ≥ 1, the number of dequantisations of each image.
        importance: whether to compute the tighter, importance-weighted bound; it requires an exact trace, because the
            noise of random probes does not average out in a mean of densities, and at least two draws.
        num_values: L ≥ 2, the number of values that a pixel can have.

    Raises:
        ValueError: a value is out of its range, images are not at whole levels, or as for `Likelihood.log_prob`.
    """
    if len(images) == 0:
        raise ValueError(f"images must hold at least one image, got shape {tuple(images.shape)}")
    checks.integer("draws", draws, 1)
    checks.integer("num_values", num_values, 2)
    if len(seeds) != len(images):
        raise ValueError(f"seeds must be one an image ({len(images)}), got {len(seeds)}")
    trace = likelihood.trace_for(images.shape[1:])
    if importance and trace.random:
        raise ValueError(f"importance requires an exact trace, got {trace!r}")
    if importance and draws == 1:
        raise ValueError("importance requires draws >= 2, got 1")
    images = images.to(torch.float64)
    _check_values(images, num_values)
    width, size = 2 / (num_values - 1), images[0].numel()
    found = []
    for draw in range(draws):
        source = SeededNoise([seed * draws + draw for seed in seeds])
        uniform = torch.special.ndtr(source.draw(tuple(images.shape[1:])).to(torch.float64)).to(images.device)
        found.append(likelihood.log_prob(denoiser, images + width * (uniform - 0.5), condition, seeds=source))
    densities = torch.stack([each.log_prob for each in found])
    per_bit = size * math.log(2)
    if importance:
        bound = densities.logsumexp(0) - math.log(draws)
        error = torch.full_like(bound, math.nan)
    else:
        bound = densities.mean(0)
        error = densities.std(0) / math.sqrt(draws) if draws > 1 else found[0].standard_error
        if draws == 1 and not trace.random:
            error = torch.full_like(bound, math.nan)
    return BitsPerDim(
        bits_per_dim=-(bound + size * math.log(width)) / per_bit,
        standard_error=error / per_bit,
        log_prob=densities,
        nfe=torch.stack([each.nfe for each in found]).sum(0),
    )


def at_levels(images: Float[Tensor, "batch *event"], num_values: int) -> bool:
    """Whether images are in [−1, 1] and at whole levels x = 2b/(L − 1) − 1 with L = `num_values`, up to rounding."""
    # Float32 images in [-1, 1] have errors of up to 2⁻²⁴, or 2⁻²⁴ (L − 1)/2 bins.
    return bool(images.abs().amax() <= 1 + 1e-6) and _off_levels(images, num_values) <= max(1e-3, 2.0**-22 * num_values)


def _off_levels(images: Tensor, num_values: int) -> float:
    """The largest distance from a whole level, in levels."""
    bins = (images + 1) * ((num_values - 1) / 2)
    return float((bins - bins.round()).abs().amax())


def _check_values(images: Tensor, num_values: int) -> None:
    if not at_levels(images, num_values):
        raise ValueError(
            f"images must be in [-1, 1] and at whole levels 2 b / {num_values - 1} - 1, but a value is "
            f"{_off_levels(images, num_values):.2g} levels away from one, and the largest is "
            f"{float(images.abs().amax()):g}"
        )
