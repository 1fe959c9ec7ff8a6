"""The layers of U-Nets in one, two and three dimensions: weights, convolutions, resampling, normalisation, attention.

    weights      xavier_uniform U(±√(6/(n_in + n_out))), kaiming_uniform U(±√(3/n_in)),
                 xavier_normal N(0, 2/(n_in + n_out)), kaiming_normal N(0, 1/n_in); n_in, n_out = channels · kᵈ
    resampling   F = (f ⊗ … ⊗ f)/(Σf)ᵈ;  down: every second value of F ∗ x;  up: 2ᵈF ∗ (x with zeros inserted)
    attention    softmax(qᵀk/√C_head) v, one token for each position

The dimension d is the number of axes besides channels: 1 for series (batch, channels, length), 2 for images (batch,
channels, height, width), 3 for volumes (batch, channels, depth, height, width).

Sources: Karras et al. 2022 (arXiv 2206.00364), Appendix F; Song et al. 2021 (arXiv 2011.13456), Appendix H.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from openedm.ground import checks
from openedm.ground.seeding import host_seeded

__all__ = [
    "CONVOLUTIONS",
    "KAIMING",
    "MODES",
    "ZERO",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "Downsample",
    "GroupNorm",
    "Init",
    "Linear",
    "Residual",
    "Upsample",
    "attention",
    "filter_kernel",
    "group_norm",
    "pad_to_even",
    "seeded",
]

MODES = ("xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal")


@dataclass(frozen=True)
class Init:
    """The initial distribution of the weights and biases of a layer: that of `mode`, times a gain for each of the two.

    Raises:
        ValueError: `mode` is not one of `MODES`.
    """

    mode: str
    weight_gain: float = 1.0
    bias_gain: float = 0.0

    def __post_init__(self) -> None:
        checks.one_of("mode", self.mode, MODES)

    @torch.no_grad()
    def fill(self, weight: Tensor, bias: Tensor | None) -> None:
        """Draw new values of `weight` (n_out, n_in, …) and `bias` from the global generator.

        >>> weight = torch.empty(8, 3)
        >>> Init("xavier_uniform", weight_gain=0.1).fill(weight, bias=None)
        >>> bool(weight.abs().max() <= 0.1 * (6 / (8 + 3)) ** 0.5)
        True
        """
        area = math.prod(weight.shape[2:])
        fan_in, fan_out = weight.shape[1] * area, weight.shape[0] * area
        self._draw(weight, self.weight_gain, fan_in, fan_out)
        if bias is not None:
            self._draw(bias, self.bias_gain, fan_in, fan_out)

    def _draw(self, tensor: Tensor, gain: float, fan_in: int, fan_out: int) -> None:
        variance = 2 / (fan_in + fan_out) if self.mode.startswith("xavier") else 1 / fan_in
        if gain == 0:
            tensor.zero_()
        elif self.mode.endswith("uniform"):
            tensor.uniform_(-1, 1).mul_(gain * math.sqrt(3 * variance))
        else:
            tensor.normal_().mul_(gain * math.sqrt(variance))


KAIMING, ZERO = Init("kaiming_normal"), Init("kaiming_normal", weight_gain=0)


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Inside the block the global generator starts from `seed`, and modules are created on the host; None has no
    effect.

    Afterwards the generator continues as before the block.
    """
    if seed is None:
        yield
        return
    with host_seeded(seed), torch.device("cpu"):
        yield


class _Initialised(nn.Module):
    """A layer whose weights and biases are initialised by `init`."""

    init: Init
    weight: Tensor

    def reset_parameters(self) -> None:
        """Draw new weights and biases."""
        self.init.fill(self.weight, self.bias)  # type: ignore[arg-type]  # A tensor or None.


class Linear(_Initialised, nn.Linear):
    """`torch.nn.Linear` whose weights are initialised by `init`."""

    def __init__(self, in_features: int, out_features: int, *, init: Init, bias: bool = True) -> None:
        self.init = init
        super().__init__(in_features, out_features, bias=bias)


class _Convolution(_Initialised):
    """A convolution over k values along each axis that keeps the size of `resample(x)`.

    Args:
        in_channels, out_channels: the channels.
        kernel_size: k, an odd number.
        init: the initialisation.
        resample: what is applied to the input first; the identity by default.
        extra_padding: zeros added at each end of each axis beyond those that keep the size.
        dilation: the distance between the k values.
    """

    resample: nn.Module

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        init: Init,
        resample: nn.Module | None = None,
        extra_padding: int = 0,
        dilation: int = 1,
    ) -> None:
        self.init = init
        padding = dilation * (kernel_size // 2) + extra_padding
        super().__init__(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation)
        self.resample = nn.Identity() if resample is None else resample

    def forward(self, input: Float[Tensor, "batch c *size"]) -> Float[Tensor, "batch d *new"]:
        """The convolution of the resampled input."""
        result: Tensor = super().forward(self.resample(input))
        return result


class Conv1d(_Convolution, nn.Conv1d):
    """The convolution of series."""


class Conv2d(_Convolution, nn.Conv2d):
    """The convolution of images."""


class Conv3d(_Convolution, nn.Conv3d):
    """The convolution of volumes."""


CONVOLUTIONS: Mapping[int, type[Conv1d] | type[Conv2d] | type[Conv3d]] = {1: Conv1d, 2: Conv2d, 3: Conv3d}
"""The class of the convolution in each number of dimensions."""


class Residual(nn.Module):
    """h + layer1(silu(layer0(silu(h)))): the identity at first if layer1 starts at zero."""

    def __init__(self, layer0: nn.Module, layer1: nn.Module) -> None:
        super().__init__()
        self.layer0, self.layer1 = layer0, layer1

    def forward(self, h: Float[Tensor, "batch *rest"]) -> Float[Tensor, "batch *rest"]:
        """The block's output, of the shape of h."""
        branch: Tensor = self.layer1(functional.silu(self.layer0(functional.silu(h))))
        return h + branch


def filter_kernel(taps: Sequence[float], dimension: int = 2) -> Float[Tensor, "*size"]:
    """The filter F = (f ⊗ … ⊗ f)/(Σf)ᵈ of the taps f in `dimension` axes.

    >>> filter_kernel((1, 3), dimension=1)
    tensor([0.2500, 0.7500])

    Raises:
        ValueError: there are no taps, or their sum is 0 or not finite.
    """
    total = math.prod([sum(taps)] * dimension)
    if len(taps) == 0 or total == 0 or not math.isfinite(total):
        raise ValueError(f"resample_filter must be taps with a sum other than 0 that is finite, got {tuple(taps)}")
    values = [math.prod(chosen) / total for chosen in itertools.product(taps, repeat=dimension)]
    return torch.tensor(values).reshape([len(taps)] * dimension)


def pad_to_even(x: Float[Tensor, "batch c *size"]) -> Float[Tensor, "batch c *even"]:
    """`x` with the last slice of each axis repeated where the axis has an odd size."""
    for axis in range(2, x.ndim):
        if x.shape[axis] % 2:
            x = torch.cat([x, x.narrow(axis, x.shape[axis] - 1, 1)], dim=axis)
    return x


class PadToEven(nn.Module):
    """`pad_to_even` as a module, for filters with an even number of taps; those with an odd number need no padding."""

    def __init__(self, taps: Sequence[float]) -> None:
        super().__init__()
        self.has_effect = len(taps) % 2 == 0

    def forward(self, x: Float[Tensor, "batch c *size"]) -> Float[Tensor, "batch c *even"]:
        """The padded x."""
        return pad_to_even(x) if self.has_effect else x


class _Resample(nn.Module):
    """The filter of a resampling, one copy a channel; None for f = (1, 1), where pooling or repetition is used."""

    kernel: Tensor | None

    def __init__(
        self, channels: int, taps: Sequence[float], *, dimension: int, gain: float, padding: int | None
    ) -> None:
        super().__init__()
        kernel = filter_kernel(taps, dimension) * gain
        is_box = len(taps) == 2 and taps[0] == taps[1]
        copies = None if is_box else kernel.repeat(channels, 1, *[1] * dimension)
        self.register_buffer("kernel", copies, persistent=False)
        self.taps, self.dimension = tuple(taps), dimension
        self.padding = (len(taps) - 1) // 2 if padding is None else padding

    def extra_repr(self) -> str:
        """The taps, for the module's repr."""
        return f"taps={self.taps}"


_POOLS: Mapping[int, Callable[..., Tensor]] = {
    1: functional.avg_pool1d,
    2: functional.avg_pool2d,
    3: functional.avg_pool3d,
}
_FILTERS: Mapping[int, Callable[..., Tensor]] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSES: Mapping[int, Callable[..., Tensor]] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


class Downsample(_Resample):
    """Half the size by the filter `taps`: (…, h, w) → (…, ⌈h/2⌉, ⌈w/2⌉). Odd sizes are padded by repeating the edge.

    With an odd number of taps the result is the filtered input at every second pixel, from the first one on, and odd
    sizes are not padded. An axis of size 1 keeps it.

    >>> Downsample(1, (1, 1))(torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])).item()
    4.0
    """

    def __init__(self, channels: int, taps: Sequence[float], *, dimension: int = 2, padding: int | None = None) -> None:
        super().__init__(channels, taps, dimension=dimension, gain=1, padding=padding)

    def forward(self, x: Float[Tensor, "batch c *size"]) -> Float[Tensor, "batch c *half"]:
        """The filtered input at half the size."""
        x = x if len(self.taps) % 2 else pad_to_even(x)
        if self.kernel is None:
            return _POOLS[self.dimension](x, 2)
        return _FILTERS[self.dimension](x, self.kernel, stride=2, padding=self.padding, groups=x.shape[1])


class Upsample(_Resample):
    """Twice the size by the filter `taps`: (…, h, w) → (…, 2h, 2w); (…, 2h−1, 2w−1) with an odd number of taps.

    >>> Upsample(1, (1, 1))(torch.tensor([[[[4.0]]]])).tolist()
    [[[[4.0, 4.0], [4.0, 4.0]]]]
    """

    def __init__(self, channels: int, taps: Sequence[float], *, dimension: int = 2) -> None:
        super().__init__(channels, taps, dimension=dimension, gain=2**dimension, padding=None)

    def forward(self, x: Float[Tensor, "batch c *size"]) -> Float[Tensor, "batch c *double"]:
        """The filtered input at twice the size."""
        if self.kernel is None:
            return functional.interpolate(x, scale_factor=2, mode="nearest")
        return _TRANSPOSES[self.dimension](x, self.kernel, stride=2, padding=self.padding, groups=x.shape[1])


class GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm`, on the host about five times faster for images in bfloat16 with channels last.

    With few channels in a group torch's kernel for this format does not use vector instructions, which costs more than
    a copy to the other format and back.
    """

    def forward(self, input: Float[Tensor, "batch c *size"]) -> Float[Tensor, "batch c *size"]:
        """The normalised input, in its memory format."""
        if input.device.type != "cpu" or input.dtype != torch.bfloat16 or input.ndim != 4:
            return super().forward(input)
        memory_format = _memory_format(input)
        return super().forward(input.contiguous()).contiguous(memory_format=memory_format)


def group_norm(channels: int, eps: float) -> GroupNorm:
    """Group normalisation with min(32, ⌊channels/4⌋) groups; where these do not divide the channels, the next fewer.

    >>> [group_norm(c, eps=1e-6).num_groups for c in (128, 16, 3, 144)]
    [32, 4, 1, 24]
    """
    most = max(1, min(32, channels // 4))
    return GroupNorm(next(g for g in range(most, 0, -1) if channels % g == 0), channels, eps=eps)


def attention(qkv: Float[Tensor, "batch c3 *size"], num_heads: int) -> Float[Tensor, "batch c *size"]:
    """softmax(qᵀk/√C_head) v over all positions, in the memory format of `qkv`.

    Fused kernels are used. They do not support forward-mode, second or `torch.func.vmap`-batched derivatives; for
    these, call the network under `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.

    Args:
        qkv: queries, keys and values; its channels are ordered (head, channel, {q, k, v}), the last fastest.
        num_heads: the number of heads, a divisor of the number of channels C = c3/3.
    """
    batch, _, *size = qkv.shape
    by_role = qkv.reshape(batch, num_heads, -1, 3, math.prod(size)).permute(3, 0, 1, 4, 2)
    # The fused kernels require unit stride along the channels: one copy serves all three.
    q, k, v = by_role.contiguous().unbind()
    tokens = functional.scaled_dot_product_attention(q, k, v)
    result = tokens.transpose(-1, -2).reshape(batch, -1, *size)
    return result.contiguous(memory_format=_memory_format(qkv))


def _memory_format(x: Float[Tensor, "batch c *size"]) -> torch.memory_format:
    for axes, channels_last in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if x.ndim == axes and x.is_contiguous(memory_format=channels_last) and not x.is_contiguous():
            return channels_last
    return torch.contiguous_format
