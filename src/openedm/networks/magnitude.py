"""Parts of networks that preserve magnitudes: M[a] = √E a² stays 1 for inputs of magnitude 1, without normalisation.

    normalize(x)      x/(ε + ‖x‖₂/√n)  over n elements at a time
    mp_silu(x)        silu(x)/0.596
    mp_sum(a, b; t)   ((1 − t) a + t b)/√((1 − t)² + t²)
    mp_cat(a, b; t)   √((N_a + N_b)/((1 − t)² + t²)) [(1 − t)/√N_a a, t/√N_b b],  N channels
    MPFourier         √2 cos(ω c + φ),  ω = 2π N(0, 1), φ = 2π U(0, 1), fixed
    MPLinear, MPConv  ŵ x,  ŵ = g normalize(w)/√(values of a row of w),  w ~ N(0, 1), no bias

The size of w has no effect on ŵ, and gradients are orthogonal to w, so that w would grow without end and steps would
lose their effect. Therefore w ← normalize(w) after every step of the optimiser, and before the first: `project_weights`
does this for all modules that ask for it. Source: Karras et al. 2024 (arXiv 2312.02696), Section 2 and Appendix B.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from openedm.ground import checks

__all__ = [
    "MPConv",
    "MPFourier",
    "MPLinear",
    "MPUncertainty",
    "ProjectsWeights",
    "mp_cat",
    "mp_silu",
    "mp_sum",
    "normalize",
    "project_weights",
]

EPSILON = 1e-4
SILU_MAGNITUDE = 0.596
"""√E silu(x)² for x ~ N(0, 1)."""


def normalize(
    x: Float[Tensor, "*shape"], dims: Sequence[int] | None = None, eps: float = EPSILON
) -> Float[Tensor, "*shape"]:
    """x/(ε + ‖x‖₂/√n): x with magnitude 1 over `dims`, in the dtype of x. The norm is in float32 or better.

    Args:
        x: any tensor with one or more axes.
        dims: the axes of a group of n elements; None means all but the first.
        eps: ε, by which groups of magnitude 0 stay finite.

    >>> normalize(torch.tensor([[3.0, 4.0]]), eps=0.0).square().mean().item()
    1.0
    """
    axes, count = tuple(range(1, x.ndim) if dims is None else dims), 1
    for axis in axes:
        count *= x.shape[axis]
    dtype = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=axes, keepdim=True, dtype=dtype) if axes else x.abs().to(dtype)
    return x / (eps + norm / math.sqrt(count)).to(x.dtype)


def mp_silu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """silu(x)/0.596, of magnitude 1 for x ~ N(0, 1)."""
    return functional.silu(x) / SILU_MAGNITUDE


def mp_sum(a: Float[Tensor, "*#shape"], b: Float[Tensor, "*#shape"], t: float) -> Float[Tensor, "*shape"]:
    """((1 − t) a + t b)/√((1 − t)² + t²), of magnitude 1 for independent a and b of magnitude 1.

    Args:
        a, b: the terms.
        t: the share of b, in [0, 1].
    """
    return a.lerp(b, t) / math.hypot(1 - t, t)


def mp_cat(
    a: Float[Tensor, "batch a *size"], b: Float[Tensor, "batch b *size"], t: float
) -> Float[Tensor, "batch c *size"]:
    """[a, b] on the channels, of magnitude 1, where b contributes in proportion to t however many channels it has.

    Args:
        a, b: the parts, of magnitude 1.
        t: the share of b, in [0, 1].
    """
    total = math.sqrt((a.shape[1] + b.shape[1]) / ((1 - t) ** 2 + t**2))
    scale_a, scale_b = total * (1 - t) / math.sqrt(a.shape[1]), total * t / math.sqrt(b.shape[1])
    return torch.cat([scale_a * a, scale_b * b], dim=1)


class MPFourier(nn.Module):
    """Fourier features √2 cos(ω c + φ) of magnitude 1: (batch,) → (batch, channels).

    They are computed in float32 or better for any dtype of the network, also after it was cast to half precision.

    Args:
        channels: the number of features, ≥ 1.

    Raises:
        ValueError: `channels` is out of its range.
    """

    omega: Tensor
    phase: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        checks.at_least("channels", channels, 1)
        self.register_buffer("omega", 2 * math.pi * torch.randn(channels))
        self.register_buffer("phase", 2 * math.pi * torch.rand(channels))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MPFourier":
        kept = self.omega, self.phase
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.omega.dtype in (torch.float16, torch.bfloat16):
            self.omega, self.phase = (one.to(self.omega.device) for one in kept)
        return self

    def forward(self, c_noise: Float[Tensor, " batch"]) -> Float[Tensor, "batch channels"]:
        """The features, in the wider of the two dtypes of `c_noise` and the frequencies."""
        return math.sqrt(2) * (c_noise[:, None] * self.omega + self.phase).cos()


class _MPLayer(nn.Module):
    """A linear map with weights w of shape (out, in, *kernel), applied as ŵ."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shape))

    def scaled_weight(self, gain: Float[Tensor, "one"] | float = 1.0) -> Float[Tensor, "*shape"]:
        """ŵ = g normalize(w)/√(values of a row): an output has the magnitude g for inputs of magnitude 1."""
        return normalize(self.weight) * (gain / math.sqrt(self.weight[0].numel()))

    @torch.no_grad()
    def project_weights(self) -> None:
        """w ← normalize(w). Of a sharded layer each process has complete rows, and normalises its own."""
        weight = self.weight
        own: Tensor = weight.to_local() if hasattr(weight, "to_local") else weight
        own.copy_(normalize(own))


class MPLinear(_MPLayer):
    """A linear map of vectors, without bias.

    Args:
        in_features, out_features: the sizes.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(out_features, in_features)

    def forward(
        self, x: Float[Tensor, "batch n"], gain: Float[Tensor, "one"] | float = 1.0
    ) -> Float[Tensor, "batch m"]:
        """ŵ x, in the dtype of x (or of autocast).

        Args:
            x: vectors of magnitude 1.
            gain: g, the magnitude of the result.
        """
        return functional.linear(x, self.scaled_weight(gain).to(x.dtype))


_CONVOLUTIONS: Mapping[int, Callable[..., Tensor]] = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}


class MPConv(_MPLayer):
    """A convolution that keeps the size, without bias.

    Args:
        in_channels, out_channels: the channels.
        kernel_size: the number of values along each axis, odd.
        dimension: the number of axes besides channels: 1, 2 or 3.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dimension: int = 2) -> None:
        super().__init__(out_channels, in_channels, *[kernel_size] * dimension)
        self.dimension, self.padding = dimension, kernel_size // 2

    def forward(
        self, x: Float[Tensor, "batch c *size"], gain: Float[Tensor, "one"] | float = 1.0
    ) -> Float[Tensor, "batch d *size"]:
        """ŵ ∗ x, in the dtype of x (or of autocast).

        Args:
            x: the input, of magnitude 1.
            gain: g, the magnitude of the result.
        """
        return _CONVOLUTIONS[self.dimension](x, self.scaled_weight(gain).to(x.dtype), padding=self.padding)


class MPUncertainty(nn.Module):
    """u(c_noise), the logarithm of the weighted error at each noise level: an `MPLinear` of `MPFourier` features.

    Args:
        channels: the number of features, ≥ 1; 128 in the paper.
    """

    def __init__(self, channels: int = 128) -> None:
        super().__init__()
        self.features, self.layer = MPFourier(channels), MPLinear(channels, 1)

    def forward(self, c_noise: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """u, one number a sample, in float32 or better."""
        u: Tensor = self.layer(self.features(c_noise))
        return u[:, 0]


@runtime_checkable
class ProjectsWeights(Protocol):
    """A module that keeps its parameters in a set, such as vectors of length 1: any `nn.Module` with this method."""

    def project_weights(self) -> None:
        """Move the module's own parameters, not those of modules in it, into the set, in place and without gradient."""


def project_weights(module: nn.Module) -> None:
    """Call `project_weights` of all modules in a module that have it. Training does so before and after every step.

    >>> layer = MPLinear(2, 3)
    >>> project_weights(nn.Sequential(layer))
    >>> layer.weight.square().mean(1).allclose(torch.ones(3), rtol=1e-3)
    True
    """
    with torch.no_grad():
        for each in module.modules():
            if isinstance(each, ProjectsWeights):
                each.project_weights()
