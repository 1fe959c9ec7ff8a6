"""The layers of U-Nets: weights, convolutions, resampling, normalisation, attention.

    weights      xavier_uniform U(±√(6/(n_in + n_out))), kaiming_uniform U(±√(3/n_in)),
                 xavier_normal N(0, 2/(n_in + n_out)), kaiming_normal N(0, 1/n_in); n_in, n_out = channels · k²
    resampling   F = (f ⊗ f)/(Σf)²;  down: every second value of F ∗ x;  up: 4F ∗ (x with zeros inserted)
    attention    softmax(qᵀk/√C_head) v, one token for each pixel

Sources: Karras et al. 2022 (arXiv 2206.00364), Appendix F; Song et al. 2021 (arXiv 2011.13456), Appendix H.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from openedm.ground import checks
from openedm.ground.seeding import host_seeded

__all__ = [
    "KAIMING",
    "MODES",
    "ZERO",
    "Conv1d",
    "Conv2d",
    "Downsample",
    "FusedDownConv2d",
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


class Conv1d(_Initialised, nn.Conv1d):
    """Convolution over three steps at distances of `dilation` that keeps the length."""

    def __init__(self, in_channels: int, out_channels: int, *, init: Init, dilation: int = 1) -> None:
        self.init = init
        super().__init__(in_channels, out_channels, 3, padding=dilation, dilation=dilation)


class Conv2d(_Initialised, nn.Conv2d):
    """k×k convolution that keeps the size of `resample(x)`; `resample` defaults to the identity."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        init: Init,
        resample: nn.Module | None = None,
        extra_padding: int = 0,
    ) -> None:
        self.init = init
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2 + extra_padding)
        self.resample = nn.Identity() if resample is None else resample

    def forward(self, input: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch d i j"]:
        """The convolution of the resampled input."""
        return super().forward(self.resample(input))


class FusedDownConv2d(Conv2d):
    """k×k convolution, then down-sampling by `taps`, with all the padding in front of the convolution.

    The order that NCSN++'s residual encoder path uses; an odd size is first padded to even, as in `Downsample`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, init: Init, taps: Sequence[float]
    ) -> None:
        margin = (len(taps) - 1) // 2
        super().__init__(in_channels, out_channels, kernel_size, init=init, extra_padding=margin)
        self.down = Downsample(out_channels, taps, padding=0)

    def forward(self, input: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch d i j"]:
        """The convolved input at half the size, rounded up."""
        result: Tensor = self.down(super().forward(pad_to_even(input)))
        return result


class Residual(nn.Module):
    """h + layer1(silu(layer0(silu(h)))): the identity at first if layer1 starts at zero."""

    def __init__(self, layer0: nn.Module, layer1: nn.Module) -> None:
        super().__init__()
        self.layer0, self.layer1 = layer0, layer1

    def forward(self, h: Float[Tensor, "batch *rest"]) -> Float[Tensor, "batch *rest"]:
        """The block's output, of the shape of h."""
        branch: Tensor = self.layer1(functional.silu(self.layer0(functional.silu(h))))
        return h + branch


def filter_kernel(taps: Sequence[float]) -> Float[Tensor, "k k"]:
    """The two-dimensional filter F = (f ⊗ f)/(Σf)² of the taps f.

    Raises:
        ValueError: the number of taps is odd (the filter would shift the image by half a pixel), or their sum is 0.
    """
    total = sum(taps)
    if len(taps) == 0 or len(taps) % 2 or total == 0:
        raise ValueError(f"resample_filter must be an even number of taps with a sum other than 0, got {tuple(taps)}")
    return torch.tensor([[row * column / total**2 for column in taps] for row in taps])


def pad_to_even(x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c i j"]:
    """`x` with its last row and column repeated if their number is odd."""
    if x.shape[-2] % 2:
        x = torch.cat([x, x[..., -1:, :]], dim=-2)
    if x.shape[-1] % 2:
        x = torch.cat([x, x[..., -1:]], dim=-1)
    return x


class _Resample(nn.Module):
    """The filter of a resampling, one copy a channel; None for f = (1, 1), where pooling or repetition is used."""

    kernel: Tensor | None

    def __init__(self, channels: int, taps: Sequence[float], gain: float, padding: int | None) -> None:
        super().__init__()
        kernel = filter_kernel(taps) * gain
        is_box = len(taps) == 2 and taps[0] == taps[1]
        self.register_buffer("kernel", None if is_box else kernel.repeat(channels, 1, 1, 1), persistent=False)
        self.taps = tuple(taps)
        self.padding = (len(taps) - 1) // 2 if padding is None else padding

    def extra_repr(self) -> str:
        """The taps, for the module's repr."""
        return f"taps={self.taps}"


class Downsample(_Resample):
    """Half the size by the filter `taps`: (…, h, w) → (…, ⌈h/2⌉, ⌈w/2⌉). Odd sizes are padded by repeating the edge.

    >>> Downsample(1, (1, 1))(torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])).item()
    4.0
    """

    def __init__(self, channels: int, taps: Sequence[float], padding: int | None = None) -> None:
        super().__init__(channels, taps, gain=1, padding=padding)

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c i j"]:
        """The filtered image at half the size."""
        x = pad_to_even(x)
        if self.kernel is None:
            return functional.avg_pool2d(x, 2)
        return functional.conv2d(x, self.kernel, stride=2, padding=self.padding, groups=x.shape[1])


class Upsample(_Resample):
    """Twice the size by the filter `taps`: (…, h, w) → (…, 2h, 2w).

    >>> Upsample(1, (1, 1))(torch.tensor([[[[4.0]]]])).tolist()
    [[[[4.0, 4.0], [4.0, 4.0]]]]
    """

    def __init__(self, channels: int, taps: Sequence[float]) -> None:
        super().__init__(channels, taps, gain=4, padding=None)

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c i j"]:
        """The filtered image at twice the size."""
        if self.kernel is None:
            return functional.interpolate(x, scale_factor=2, mode="nearest")
        return functional.conv_transpose2d(x, self.kernel, stride=2, padding=self.padding, groups=x.shape[1])


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """Group normalisation with min(32, ⌊channels/4⌋) groups; where these do not divide the channels, the next fewer.

    >>> [group_norm(c, eps=1e-6).num_groups for c in (128, 16, 3, 144)]
    [32, 4, 1, 24]
    """
    most = max(1, min(32, channels // 4))
    return nn.GroupNorm(next(g for g in range(most, 0, -1) if channels % g == 0), channels, eps=eps)


def attention(qkv: Float[Tensor, "batch c3 h w"], num_heads: int) -> Float[Tensor, "batch c h w"]:
    """softmax(qᵀk/√C_head) v over the h·w pixels, in the memory format of `qkv`.

    Fused kernels are used. They do not support forward-mode, second or `torch.func.vmap`-batched derivatives; for
    these, call the network under `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.

    Args:
        qkv: queries, keys and values; its channels are ordered (head, channel, {q, k, v}), the last fastest.
        num_heads: the number of heads, a divisor of the number of channels C = c3/3.
    """
    batch, _, height, width = qkv.shape
    by_role = qkv.reshape(batch, num_heads, -1, 3, height * width).permute(3, 0, 1, 4, 2)
    # The fused kernels require unit stride along the channels: one copy serves all three.
    q, k, v = by_role.contiguous().unbind()
    tokens = functional.scaled_dot_product_attention(q, k, v)
    image = tokens.transpose(-1, -2).reshape(batch, -1, height, width)
    return image.contiguous(memory_format=_memory_format(qkv))


def _memory_format(x: Float[Tensor, "batch c h w"]) -> torch.memory_format:
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format
