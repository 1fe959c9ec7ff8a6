"""Noise with long tails: Student's t distributions, whose degrees of freedom are learned."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["FREEDOM", "freedom_of", "log_student", "student"]

FREEDOM = 4.0
"""Degrees of freedom that a fit of Student's t distributions starts from; it ends between half and 200."""


def freedom_of(logarithm: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """ν of a parameter that is its logarithm."""
    return logarithm.exp().clamp(0.5, 200.0)


def log_student(z: Float[Tensor, "*shape"], nu: Float[Tensor, "*other"]) -> Float[Tensor, "*shape"]:
    """The log-density of each z, with ν degrees of freedom.

    Args:
        z: the numbers.
        nu: of a shape that is broadcast to that of z.
    """
    constant = torch.lgamma((nu + 1) / 2) - torch.lgamma(nu / 2) - 0.5 * (nu * math.pi).log()
    each: Tensor = constant - (nu + 1) / 2 * (z.square() / nu).log1p()
    return each


def student(nu: Float[Tensor, "*shape"], generator: torch.Generator) -> Float[Tensor, "*shape"]:
    """Draws, one for each ν."""
    normal = torch.randn(nu.shape, generator=generator).to(nu)
    gamma = torch._standard_gamma((nu / 2).cpu().contiguous(), generator).to(nu)
    drawn: Tensor = normal * (0.5 * nu / gamma).sqrt()
    return drawn
