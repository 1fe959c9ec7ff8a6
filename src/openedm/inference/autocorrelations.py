"""Numbers that describe a series of noise: how large it is, and how alike are values that follow one another.

    m = mean_t x_t,   v = mean_t (x_t − m)²,   c_k = mean_t (x_t − m)(x_{t+k} − m)
    features:  m,  ln v,  m/√v,  c_1/v, …, c_K/v,  (x_1 − m)/√v,  (x_n − m)/√v

Of stationary Gaussian processes of low order nearly all information is in these, while products of columns are what
networks learn worst from few simulations. Whether they tell more than the columns is measured by regression.
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

__all__ = ["LAGS", "MAX_COLUMNS", "MIN_COLUMNS", "autocorrelations", "num_features"]

MIN_COLUMNS, MAX_COLUMNS = 8, 1024
"""Shorter vectors are hardly series; longer ones are summarised in another way."""

LAGS = 4


def num_features(lags: int) -> int:
    """How many features there are for so many lags."""
    return lags + 5


def autocorrelations(x: Float[Tensor, "*batch columns"], lags: int = LAGS) -> Float64[Tensor, "*batch features"]:
    """The features of vectors whose columns are successive values.

    Args:
        x: the values, `MIN_COLUMNS` at least.
        lags: K, below the number of columns.
    """
    x = x.double()
    mean = x.mean(-1, keepdim=True)
    rest, columns = x - mean, x.shape[-1]
    variance = rest.square().mean(-1, keepdim=True)
    # Of a series that is constant, as at a detector's limit, √v counts as the rounding error of its mean.
    numbers = torch.finfo(torch.float64)
    variance = torch.maximum(variance, (numbers.eps * mean).square()).clamp_min(numbers.tiny)
    alike = [(rest[..., k:] * rest[..., : columns - k]).mean(-1, keepdim=True) / variance for k in range(1, lags + 1)]
    size = variance.sqrt()
    return torch.cat([mean, variance.log(), mean / size, *alike, rest[..., :1] / size, rest[..., -1:] / size], -1)
