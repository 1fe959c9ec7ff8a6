"""Band-limited affine warps of images: the image is continued by reflection, frequencies that would alias in the warped
image are removed from the trigonometric polynomial through its pixels, and this is evaluated at the warped pixels.

    image(x) = Σ_ω c_ω e^{iω·x}, ‖ω‖_∞ ≤ π        warped(p) = Σ_{‖Mᵀω‖_∞ ≤ π} c_ω e^{iω·(M (p − c − t) + c)}

The sum is a non-uniform Fourier transform: c_ω is divided by the transform of a Kaiser–Bessel kernel and transformed to
a grid twice as fine, and each point sums the 8 × 8 fine samples around it, weighted by the kernel (Dutt and Rokhlin
1993; Beatty et al. 2005). Every step is linear in the image, and its cost is proportional to the number of pixels.
"""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

__all__ = ["warp"]

TAPS = 8
"""Number of fine samples in the sum for a point along each axis; the error is of the order of float32's rounding."""
BETA = 0.75 * math.pi * TAPS
"""The kernel's shape, optimal for a grid twice as fine (Beatty et al. 2005, eq. 5, to leading order)."""
CHUNK_SIZE = 64
"""Number of images that are warped at a time, which limits the memory."""


@torch.no_grad()
def warp(
    images: Float[Tensor, "batch channels height width"],
    linear: Float[Tensor, "batch 2 2"],
    shift: Float[Tensor, "batch 2"],
) -> Float[Tensor, "batch channels height width"]:
    """Each image evaluated at the points M (p − c − t) + c, with pixels p, centre c, and M and t of the image.

    It is exact, up to rounding, for an image whose continuation by reflection is band-limited and a warp that does not
    shrink it; where it shrinks, frequencies beyond the new pixels' Nyquist square are left out. As with every
    band-limited filter, values overshoot at sharp edges.

    Args:
        images: the images, with any range of values and at least two pixels along each side.
        linear: M, from offsets (right, down) in the result to offsets in the image, in pixels; float64 keeps it exact.
        shift: t, in pixels (right, down).

    Raises:
        ValueError: a side has a single pixel.
    """
    if min(images.shape[-2:]) < 2:
        raise ValueError(f"images must have sides of at least 2 pixels, got {tuple(images.shape[-2:])}")
    parts = (slice(start, start + CHUNK_SIZE) for start in range(0, len(images), CHUNK_SIZE))
    return torch.cat([_warp(images[rows], linear[rows], shift[rows]) for rows in parts]) if len(images) else images


def _warp(
    images: Float[Tensor, "batch channels height width"],
    linear: Float[Tensor, "batch 2 2"],
    shift: Float[Tensor, "batch 2"],
) -> Float[Tensor, "batch channels height width"]:
    dtype = torch.promote_types(images.dtype, torch.float32)
    linear, shift = (t.to(images.device, non_blocking=True) for t in (linear, shift))
    fine = _fine_grid(images.to(dtype), linear.to(dtype))
    height, width = images.shape[-2:]
    down = torch.arange(height, device=images.device, dtype=linear.dtype) - (height - 1) / 2
    right = torch.arange(width, device=images.device, dtype=linear.dtype) - (width - 1) / 2
    offsets = torch.stack(torch.meshgrid(right, down, indexing="xy"), -1).flatten(0, 1) - shift[:, None]
    points = offsets @ linear.mT - torch.stack([right[0], down[0]])  # the centre, without a copy from the host
    return _interpolate(fine, 2 * points).reshape(images.shape).to(images.dtype)


def _fine_grid(
    images: Float[Tensor, "batch channels height width"], linear: Float[Tensor, "batch 2 2"]
) -> Float[Tensor, "batch channels fine_height fine_width"]:
    """The reflected images' low-passed samples on the grid twice as fine, divided by the kernel's transform."""
    reflected = torch.cat([images, images[..., 1:-1].flip(-1)], -1)
    reflected = torch.cat([reflected, reflected[..., 1:-1, :].flip(-2)], -2)
    rows, columns = reflected.shape[-2] // 2, reflected.shape[-1] // 2
    spectrum = torch.fft.rfft2(reflected)
    # The Nyquist frequency is split into both signs, half each. Transforms of real images have columns ≥ 0 only.
    spectrum = torch.cat([spectrum[..., : rows + 1, :], spectrum[..., rows:, :]], -2)
    spectrum[..., rows : rows + 2, :] *= 0.5
    spectrum[..., columns] *= 0.5
    options: dict[str, Any] = {"device": images.device, "dtype": images.dtype}
    down = torch.cat([torch.arange(0, rows + 1, **options), torch.arange(-rows, 0, **options)]) * (math.pi / rows)
    right = torch.arange(0, columns + 1, **options) * (math.pi / columns)
    inside = _inside(right, down[:, None], linear)
    # Twice the points along each axis: the inverse transform, which divides by their number, is multiplied by 4.
    gain = 4 * inside / (_kernel_transform(right / 2) * _kernel_transform(down / 2)[:, None])
    spectrum = spectrum * gain[:, None]
    gap = spectrum.new_zeros(()).expand(*spectrum.shape[:2], 4 * rows - len(down), columns + 1)
    spectrum = torch.cat([spectrum[..., : rows + 1, :], gap, spectrum[..., rows + 1 :, :]], -2)
    spectrum = functional.pad(spectrum, (0, columns))
    fine: Tensor = torch.fft.irfft2(spectrum, s=(4 * rows, 4 * columns))
    return fine


def _inside(
    right: Float[Tensor, " columns"], down: Float[Tensor, "lines 1"], linear: Float[Tensor, "batch 2 2"]
) -> Bool[Tensor, "batch lines columns"]:
    """Which frequencies ω have Mᵀω in the Nyquist square of the result; its border is included."""
    limit = math.pi * (1 + 1e-4)
    m = linear[:, :, :, None, None]
    across, along = m[:, 0, 0] * right + m[:, 1, 0] * down, m[:, 0, 1] * right + m[:, 1, 1] * down
    return (across.abs() <= limit) & (along.abs() <= limit)


def _interpolate(
    fine: Float[Tensor, "batch channels height width"], points: Float[Tensor, "batch points 2"]
) -> Float[Tensor, "batch channels points"]:
    """Σ kernel × fine samples around each point (right, down), in fine samples; the grid is periodic."""
    height, width = fine.shape[-2:]
    first = points.floor() - (TAPS // 2 - 1)
    distances = (points - first)[..., None] - torch.arange(TAPS, device=points.device)
    weights = _kernel(distances.to(fine.dtype))
    nearby = first.long()[..., None] + torch.arange(TAPS, device=points.device)
    columns, lines = nearby[..., 0, :] % width, nearby[..., 1, :] % height
    flat = fine.flatten(-2)
    total = flat.new_zeros(*fine.shape[:2], points.shape[1])
    for tap in range(TAPS):
        index = lines[..., tap, None] * width + columns
        values = flat.gather(-1, index.flatten(1)[:, None].expand(-1, fine.shape[1], -1))
        values = values.reshape(*total.shape, TAPS)
        total += weights[:, None, :, 1, tap] * (values * weights[:, None, :, 0]).sum(-1)
    return total


def _kernel(distance: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """I₀(β √(1 − z²)) / I₀(β), z = distance/4, in fine samples; 0 at a distance of half the taps or more."""
    root = (1 - (distance / (TAPS / 2)).square()).clamp(min=0).sqrt()
    # Scaled functions: I₀(β) itself is 10⁷.
    bessel: Tensor = torch.special.i0e(BETA * root)
    return bessel * (BETA * (root - 1)).exp() / _bessel() * (root > 0)


def _kernel_transform(omega: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """∫ kernel(t) e^{−iωt} dt for |ω| ≤ π/2 a fine sample; real."""
    root = (BETA**2 - (omega * (TAPS / 2)).square()).sqrt()
    return TAPS * (root - BETA).exp() * (1 - (-2 * root).exp()) / (2 * root * _bessel())


def _bessel() -> float:
    """e^{−β} I₀(β)."""
    return float(torch.special.i0e(torch.tensor(BETA, dtype=torch.float64)))
