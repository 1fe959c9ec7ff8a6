"""Signal scalings s(σ): a noisy sample is x = s (y + σ n)."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from openedm.ground.choices import Choice
from openedm.ground.tensors import Values, noise_levels

__all__ = ["FlowScaling", "NoScaling", "Scaling", "VPScaling"]


class Scaling(Choice, ABC):
    """The signal scaling s as a function of σ.

    Its functions raise ValueError where a noise level on the host is not finite and ≥ 0.
    """

    @abstractmethod
    def scale(self, sigma: Values) -> Float64[Tensor, "*shape"]:
        """s(σ), in (0, 1]."""

    @abstractmethod
    def derivative(self, sigma: Values) -> Float64[Tensor, "*shape"]:
        """ds/dσ."""


@dataclass(frozen=True)
class NoScaling(Scaling):
    """s = 1: the signal keeps its size and the noise grows around it (EDM, VE, iDDPM as sampled by EDM)."""

    def scale(self, sigma: Values) -> Float64[Tensor, "*shape"]:
        """1."""
        return torch.ones_like(noise_levels(sigma))

    def derivative(self, sigma: Values) -> Float64[Tensor, "*shape"]:
        """0."""
        return torch.zeros_like(noise_levels(sigma))


@dataclass(frozen=True)
class VPScaling(Scaling):
    """s = 1/√(1+σ²): keeps the variance of unit-variance data constant (VP, cosine)."""

    def scale(self, sigma: Values) -> Float64[Tensor, "*shape"]:
        """1/√(1+σ²)."""
        return (1 + noise_levels(sigma).square()).rsqrt()

    def derivative(self, sigma: Values) -> Float64[Tensor, "*shape"]:
        """−σ (1+σ²)^{−3/2}."""
        sigma = noise_levels(sigma)
        return -sigma * (1 + sigma.square()).pow(-1.5)


@dataclass(frozen=True)
class FlowScaling(Scaling):
    """s = 1/(1+σ): x(t) = (1−t) y + t n with t = σ/(1+σ), the straight line of rectified flow."""

    def scale(self, sigma: Values) -> Float64[Tensor, "*shape"]:
        """1/(1+σ)."""
        return 1 / (1 + noise_levels(sigma))

    def derivative(self, sigma: Values) -> Float64[Tensor, "*shape"]:
        """−1/(1+σ)²."""
        return -(1 + noise_levels(sigma)).pow(-2)
