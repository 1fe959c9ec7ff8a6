"""Figures of images: a grid of samples, and how samples come out of noise."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, cat

from openedm.data.pictures import Pixels, image_grid
from openedm.ground import checks
from openedm.plots.style import GREY, evenly, format_sigma, shrunk
from openedm.sampling import State

__all__ = ["denoising_trajectory", "sample_grid"]

TILE_INCHES = 0.8


def sample_grid(
    x: Float[Tensor, "batch channels height width"], columns: int | None = None, titles: Sequence[str] | None = None
) -> Figure:
    """Images side by side, row by row, each with a title if given.

    Args:
        x: images in [-1, 1] with 1, 3 or 4 channels.
        columns: images in a row; by default as square as can be.
        titles: one text an image, drawn above it.

    Raises:
        ValueError: `x` does not hold images that `data.image_grid` draws, or there are not as many titles as images.
    """
    if titles is not None and len(titles) != len(x):
        raise ValueError(f"titles must hold one text an image ({len(x)}), got {len(titles)}")
    height, width = x.shape[2:]
    padding = 1 if titles is None else -(-height // 4)
    pixels = image_grid(x, columns, padding=padding)
    figure, axes = _image_axes(pixels, TILE_INCHES / max(height, width), top=0.25 if titles else 0.05)
    across = (pixels.shape[1] + padding) // (width + padding)
    for i, title in enumerate(titles or ()):
        left, top = i % across * (width + padding), i // across * (height + padding)
        axes.text(left + (width - 1) / 2, top - 1, title, fontsize=8, ha="center", va="bottom")
    return figure


def denoising_trajectory(
    states: Sequence[State],
    samples: int = 6,
    columns: int = 8,
    *,
    sigma_data: float = 0.5,
    location: float | Tensor = 0.0,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> Figure:
    """How samples come out of noise: above, the noisy image at selected levels; below, what the denoiser sees in it.

    The noisy x/s is shown shrunk by 1/√(1 + σ²/σ_data²) towards the location m of the data, so that its contrast and
    its brightness are those of the data at every level.

    Args:
        states: the states of one sampling run of images, in its order.
        samples: how many of the samples to show, the first of the batch; ≥ 1.
        columns: how many levels to show, evenly among the states, the first and last included; ≥ 1.
        sigma_data: the denoiser's σ_data, > 0.
        location: m, the denoiser's `location`: a number, or a tensor that broadcasts against an image.
        decode: for states that are latents: makes images (batch, channels, height, width) of them, noisy ones as well,
            such as `Codec.decode`.

    Raises:
        ValueError: no states, states that do not hold images, or a number out of its range.
    """
    checks.at_least("samples", samples, 1)
    checks.at_least("columns", columns, 1)
    checks.at_least("the number of states", len(states), 1)
    checks.positive("sigma_data", sigma_data)
    if states[0].x.ndim != 4:
        raise ValueError(f"states must hold images (batch, channels, height, width), got {tuple(states[0].x.shape)}")
    shown = [states[i] for i in evenly(len(states), columns)]
    samples = min(samples, len(states[0].x))
    pairs = [_noisy_and_denoised(shown, sample, sigma_data, location) for sample in range(samples)]
    images = pairs if decode is None else [decode(pair) for pair in pairs]
    height, width = images[0].shape[2:]
    blocks = [image_grid(pair, len(shown)) for pair in images]
    gap = max(2, height // 6)
    pixels = _stacked(blocks, gap)
    figure, axes = _image_axes(pixels, TILE_INCHES / max(height, width), left=0.8, top=0.3)
    axes.xaxis.tick_top()
    sigmas = [format_sigma(state.sigma) for state in shown]
    axes.set_xticks([(i + 0.5) * (width + 1) for i in range(len(shown))], [f"σ = {sigmas[0]}", *sigmas[1:]])
    axes.tick_params(length=0, labelsize=9, labelcolor=GREY)
    middles = [row * (height + 1) + height / 2 for row in (0, 1)]
    starts = [i * (blocks[0].shape[0] + gap) for i in range(samples)]
    axes.set_yticks([start + middle for start in starts for middle in middles], ["noisy", "denoised"] * samples)
    return figure


def _noisy_and_denoised(states: Sequence[State], sample: int, sigma_data: float, location: float | Tensor) -> Tensor:
    """The noisy images of one sample, shrunk, and then the denoised ones."""
    row = slice(sample, sample + 1)
    noisy = [shrunk(s.x[row] / s.scale, s.sigma / sigma_data, location) for s in states]
    return cat([*noisy, *(s.denoised[row] for s in states)])


def _stacked(blocks: Sequence[Pixels], gap: int) -> UInt8[np.ndarray, "height columns bands"]:
    between = np.full((gap, *blocks[0].shape[1:]), 255, dtype=np.uint8)
    return np.concatenate([part for block in blocks for part in (between, block)][1:])


def _image_axes(
    pixels: Pixels, inches: float, *, left: float = 0.05, top: float = 0.05, margin: float = 0.05
) -> tuple[Figure, Axes]:
    """A figure and axes that it fits, with one pixel drawn `inches` wide; the margins are in inches too."""
    height, width = (inches * size for size in pixels.shape[:2])
    total_width, total_height = left + width + margin, top + height + margin
    figure = Figure(figsize=(total_width, total_height))
    axes = figure.add_axes(
        (left / total_width, margin / total_height, width / total_width, height / total_height), frame_on=False
    )
    axes.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=255, aspect="auto")
    axes.set_xticks([])
    axes.set_yticks([])
    return figure, axes
