"""Smoothed histograms of samples, and the smallest regions that hold a share of them."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from scipy.ndimage import gaussian_filter

__all__ = ["credible_thresholds", "smooth_histogram"]

Grid = Float64[np.ndarray, "bins bins"]

BINS = 80
WIDTHS = (0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Standard deviations, in bins, that a histogram may be smoothed with."""


def credible_thresholds(mass: Grid, levels: Sequence[float]) -> list[float]:
    """The densities above which the smallest regions with these shares of the mass lie, in the order of `levels`.

    >>> credible_thresholds(np.array([[0.5, 0.3], [0.15, 0.05]]), [0.5, 0.9])
    [0.5, 0.15]
    """
    ordered = np.sort(mass.ravel())[::-1]
    held = np.cumsum(ordered) / ordered.sum()
    last = len(ordered) - 1
    return [float(ordered[min(int(np.searchsorted(held, level - 1e-12)), last)]) for level in levels]


def smooth_histogram(
    points: Float64[np.ndarray, "n d"], ends: Sequence[tuple[float, float]]
) -> tuple[Float64[np.ndarray, "..."], Sequence[Float64[np.ndarray, "edges"]]]:
    """The shares of the points in 80 bins along each coordinate, smoothed, and the bins' edges.

    By the Gaussian of `WIDTHS` under which one half of the points makes the other half most likely: narrow where there
    is detail or many points, wide where there is neither.

    Args:
        points: (n, d), n ≥ 2.
        ends: of the histogram along each coordinate.
    """
    halves = [np.histogramdd(half, BINS, ends) for half in (points[::2], points[1::2])]
    (first, edges), (second, _) = halves

    def fit(width: float) -> float:
        smoothed = [gaussian_filter(half, width) + 1e-6 for half in (first, second)]
        return float((second * np.log(smoothed[0])).sum() + (first * np.log(smoothed[1])).sum())

    return gaussian_filter(first + second, max(WIDTHS, key=fit)) / len(points), edges
