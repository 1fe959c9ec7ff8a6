"""Embedding networks, which map a condition (a vector, an image, a series or a set) to a vector.

    vector   h = L_in x;  h ← h + L_b silu(L_a silu(h));  s = L_out h
    image    the same with 3×3 convolutions, at half the size each level until the longer side is at most 7
    series   the same with dilated convolutions along time;  s = L_out [norm Σ_t softmax_t(a(h_t)) v(h_t), moments]
    set      φ_i = vector(x_i);  s = vector([mean_i φ_i, max_i φ_i/√(1 + ln n), log₁₀ n, 1/√n])

Every L_b starts at zero, so that a block starts as the identity. A summary depends on its own condition alone: there is
no batch normalisation, whose running statistics would leak from one sample to the next. For inputs of unit variance the
summaries start with about unit variance. Where a mean over pixels or times would make them small, it is scaled to unit
size, and the means and standard deviations of the channels are added as inputs of L_out. Sources: deep sets, Zaheer et
al. 2017 (arXiv 1703.06114); attention pooling, Lee et al. 2019 (arXiv 1810.00825).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from openedm.ground import checks
from openedm.ground.choices import Choice
from openedm.networks.layers import KAIMING, ZERO, Conv1d, Conv2d, Downsample, Linear, Residual, seeded
from openedm.networks.network import check_axes

__all__ = ["ABSENT", "ImageSummary", "SeriesSummary", "SetSummary", "Summary", "VectorSummary"]

ABSENT = ("members", "values")
"""What NaN in a condition may mark, where a summary takes them."""

NUM_HEADS = 4
NUM_WAVES = 8
MIN_SIDE, MAX_GRID_SIDE = 8, 7


@dataclass(frozen=True)
class Summary(Choice, ABC):
    """A kind of embedding network with its sizes; the condition's shape is given when it is built.

    A subclass defines `module`, which builds the network.

    Attributes:
        axes: the names of the axes of a condition; None if conditions of any shape are allowed.
        absent: what NaN in a condition marks: "members" of sets (whole rows), or "values"; None if it may have none.
    """

    axes: ClassVar[tuple[str, ...] | None] = None
    absent: ClassVar[str | None] = None

    @classmethod
    def adopt(cls, value: object) -> "Choice | None":
        """A module, a class of modules or a function that makes one, as a choice."""
        from openedm.networks.own import ModuleSummary, is_module_like

        return ModuleSummary.of(value) if cls is Summary and is_module_like(value) else None

    def build(self, condition_shape: tuple[int, ...], features: int, *, seed: int | None = None) -> nn.Module:
        """A new network that maps conditions (batch, *condition_shape) to summaries (batch, features).

        Args:
            condition_shape: the shape of one condition.
            features: the length of a summary.
            seed: the seed of the initial weights, which leaves the global generator unchanged; None means to draw them
                from the global generator.

        Raises:
            ValueError: the network does not support the shape, or a count is out of its range.
        """
        checks.at_least("features", features, 1)
        check_axes("condition_shape", condition_shape, self.axes)
        with seeded(seed):
            return self.module(condition_shape, features)

    @abstractmethod
    def module(self, condition_shape: tuple[int, ...], features: int) -> nn.Module:
        """The new network for these shapes; `build` has checked them and seeded the global generator.

        Raises:
            ValueError: the shape does not fit.
        """


@dataclass(frozen=True)
class _SizedSummary(Summary):
    width: int
    num_blocks: int

    def __post_init__(self) -> None:
        checks.size("width", self.width)
        checks.size("num_blocks", self.num_blocks)


@dataclass(frozen=True)
class VectorSummary(_SizedSummary):
    """A residual multi-layer perceptron. Conditions of any shape are flattened.

    Args:
        width: the width of its hidden layers.
        num_blocks: the number of residual blocks of two layers each.

    Raises:
        ValueError: a value is out of its range.

    >>> VectorSummary(width=32).build((5,), 8, seed=0)(torch.zeros(3, 5)).shape
    torch.Size([3, 8])
    """

    width: int = 128
    num_blocks: int = 2

    def module(self, condition_shape: tuple[int, ...], features: int) -> nn.Module:
        """The network for conditions of any shape; see `Summary.build`."""
        return _Vector(self, condition_shape, features)


@dataclass(frozen=True)
class ImageSummary(_SizedSummary):
    """A small residual convolutional network for images of 8 pixels a side or more.

    Args:
        width: channels at full size; twice as many at half the size and four times as many at smaller sizes.
        num_blocks: residual blocks of two convolutions at each size.

    Raises:
        ValueError: a value is out of its range.

    >>> ImageSummary(width=8).build((1, 8, 12), 16, seed=0)(torch.zeros(3, 1, 8, 12)).shape
    torch.Size([3, 16])
    """

    width: int = 32
    num_blocks: int = 1

    axes: ClassVar = ("channels", "height", "width")

    def module(self, condition_shape: tuple[int, ...], features: int) -> nn.Module:
        """The network for images whose sides are both ≥ 8; see `Summary.build`."""
        if min(condition_shape[1:]) < MIN_SIDE:
            raise ValueError(f"condition_shape must have sides of >= {MIN_SIDE} pixels, got {condition_shape}")
        return _Image(self, condition_shape, features)


@dataclass(frozen=True)
class SeriesSummary(_SizedSummary):
    """Residual convolutions along time and attention pooling. NaN marks values that were not measured.

    A series that is shorter than the others ends in NaN. The summary does not depend on the number of NaN at the end.

    Args:
        width: channels of its hidden layers, a multiple of 4.
        num_blocks: residual blocks of two convolutions each, over three steps at distances of 1, 2, 4, … steps.

    Raises:
        ValueError: a value is out of its range. When called: a series has only NaN.

    >>> SeriesSummary(width=32).build((2, 50), 16, seed=0)(torch.zeros(3, 2, 50)).shape
    torch.Size([3, 16])
    """

    width: int = 64
    num_blocks: int = 3

    axes: ClassVar = ("channels", "time")
    absent: ClassVar = "values"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % NUM_HEADS:
            raise ValueError(f"width must be a multiple of {NUM_HEADS}, got {self.width}")

    def module(self, condition_shape: tuple[int, ...], features: int) -> nn.Module:
        """The network for series (channels, time); see `Summary.build`."""
        return _Series(self, condition_shape, features)


@dataclass(frozen=True)
class SetSummary(_SizedSummary):
    """A permutation-invariant network for sets of independent observations. Rows of NaN are absent.

    Args:
        width: the width of its hidden layers.
        num_blocks: residual blocks of two layers each, before the pooling and after.

    Raises:
        ValueError: a value is out of its range. When called: a set is empty, or a row is partly NaN.

    >>> summary = SetSummary(width=32).build((10, 2), 16, seed=0)
    >>> observations = torch.full((1, 10, 2), torch.nan)
    >>> observations[0, :4] = 1.0
    >>> summary(observations).shape
    torch.Size([1, 16])
    """

    width: int = 128
    num_blocks: int = 1

    axes: ClassVar = ("count", "features")
    absent: ClassVar = "members"

    def module(self, condition_shape: tuple[int, ...], features: int) -> nn.Module:
        """The network for sets of any count; see `Summary.build`."""
        return _Set(self, condition_shape, features)


class _Vector(nn.Module):
    def __init__(self, choice: _SizedSummary, shape: tuple[int, ...], features: int) -> None:
        super().__init__()
        self.shape, width = shape, choice.width
        self.layer_in = Linear(math.prod(shape), width, init=KAIMING)
        self.blocks = nn.Sequential(
            *(
                Residual(Linear(width, width, init=KAIMING), Linear(width, width, init=ZERO))
                for _ in range(choice.num_blocks)
            )
        )
        self.layer_out = Linear(width, features, init=KAIMING)

    def forward(self, condition: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch features"]:
        _check_condition(condition, self.shape)
        summary: Tensor = self.layer_out(self.blocks(self.layer_in(condition.flatten(1))))
        return summary


class _Image(nn.Module):
    def __init__(self, choice: ImageSummary, shape: tuple[int, ...], features: int) -> None:
        super().__init__()
        self.shape = shape
        width = channels = choice.width
        sides = shape[1:]
        layers: list[nn.Module] = [Conv2d(shape[0], width, 3, init=KAIMING)]
        level = 0
        while True:
            layers += [
                Residual(Conv2d(channels, channels, 3, init=KAIMING), Conv2d(channels, channels, 3, init=ZERO))
                for _ in range(choice.num_blocks)
            ]
            if max(sides) <= MAX_GRID_SIDE:
                break
            level, sides = level + 1, (-(-sides[0] // 2), -(-sides[1] // 2))
            wider = width * min(2**level, 4)
            layers += [Downsample(channels, (1, 1)), Conv2d(channels, wider, 1, init=KAIMING)]
            channels = wider
        self.layers = nn.Sequential(*layers)
        self.layer_out = Linear(channels * math.prod(sides) + 2 * shape[0], features, init=KAIMING)

    def forward(self, condition: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch features"]:
        _check_condition(condition, self.shape)
        pixels = condition.flatten(2)
        moments = _moments(pixels, torch.ones_like(pixels))
        summary: Tensor = self.layer_out(torch.cat([_rescale(self.layers(condition).flatten(1)), moments], 1))
        return summary


class _SeriesBlock(nn.Module):
    """h + C_b silu(C_a silu(h)), with zeros at steps where nothing was measured."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.layer0 = Conv1d(width, width, 3, init=KAIMING, dilation=dilation)
        self.layer1 = Conv1d(width, width, 3, init=ZERO, dilation=dilation)

    def forward(
        self, h: Float[Tensor, "batch width time"], step: Float[Tensor, "batch 1 time"]
    ) -> Float[Tensor, "batch width time"]:
        branch: Tensor = self.layer1(functional.silu(self.layer0(functional.silu(h)) * step))
        return h + branch * step


class _Series(nn.Module):
    waves: Tensor

    def __init__(self, choice: SeriesSummary, shape: tuple[int, ...], features: int) -> None:
        super().__init__()
        self.shape, channels, width = shape, shape[0], choice.width
        # Times are encoded by waves of 8 octaves, which are independent of the length and bounded.
        phase = torch.arange(shape[1]) * (2 * math.pi / 2.0 ** torch.arange(1, NUM_WAVES + 1))[:, None]
        self.register_buffer("waves", math.sqrt(2) * (phase + math.pi / 4).cos()[None], persistent=False)
        self.layer_in = Conv1d(channels, width, 3, init=KAIMING)
        self.layer_where = Conv1d(channels + NUM_WAVES, width, 3, init=KAIMING)
        self.blocks = nn.ModuleList(_SeriesBlock(width, 2**i) for i in range(choice.num_blocks))
        self.attention = Linear(width, NUM_HEADS, init=KAIMING)
        self.values = Linear(width, width, init=KAIMING)
        self.layer_out = Linear(width + 2 * channels, features, init=KAIMING)

    def forward(self, condition: Float[Tensor, "batch channels time"]) -> Float[Tensor, "batch features"]:
        _check_condition(condition, self.shape)
        present = ~condition.isnan()
        step = present.any(1, keepdim=True)
        _check_not_empty(step[:, 0], "series with a value")
        weight = step.to(condition.dtype)
        values, measured = condition.masked_fill(~present, 0.0), present.to(condition.dtype)
        where = torch.cat([measured, self.waves.to(weight) * weight], 1)
        h = (self.layer_in(values) + self.layer_where(where)) * (weight / math.sqrt(2))
        for block in self.blocks:
            h = block(h, weight)
        pooled = self._pool(h.mT, step[:, 0])
        summary: Tensor = self.layer_out(torch.cat([_rescale(pooled), _moments(values, measured)], 1))
        return summary

    def _pool(
        self, h: Float[Tensor, "batch time width"], step: Bool[Tensor, "batch time"]
    ) -> Float[Tensor, "batch width"]:
        """Σ_t softmax_t(a(h_t)) v(h_t), one weighting for each head."""
        weights = self.attention(h).masked_fill(~step[:, :, None], -torch.inf).softmax(1)
        values = self.values(h).unflatten(2, (NUM_HEADS, -1))
        pooled: Tensor = (weights[..., None] * values).sum(1).flatten(1)
        return pooled


class _Set(nn.Module):
    def __init__(self, choice: SetSummary, shape: tuple[int, ...], features: int) -> None:
        super().__init__()
        self.size = shape[1]
        self.element = _Vector(choice, (shape[1],), choice.width)
        self.whole = _Vector(choice, (2 * choice.width + 2,), features)

    def forward(self, condition: Float[Tensor, "batch count size"]) -> Float[Tensor, "batch features"]:
        if condition.ndim != 3 or condition.shape[2] != self.size:
            raise ValueError(f"condition must have shape (batch, count, {self.size}), got {tuple(condition.shape)}")
        absent = condition.isnan()
        present = ~absent.all(2)
        _check_not_empty(present, "set with an observation")
        if _can_inspect(condition) and bool((absent.any(2) & present).any()):
            raise ValueError("condition must have rows whose values are either all NaN (absent) or all numbers")
        elements = self.element(condition.masked_fill(absent, 0.0).flatten(0, 1)).unflatten(0, condition.shape[:2])
        count = present.sum(1, keepdim=True).to(elements.dtype)
        mean = (elements * present[:, :, None]).sum(1) / count
        largest = elements.masked_fill(~present[:, :, None], -torch.inf).amax(1)
        # The largest of n normal numbers has a mean square of about 1 + ln n for n up to 1000.
        pooled = torch.cat([mean, largest * (1 + count.log()).rsqrt(), count.log10(), count.rsqrt()], 1)
        summary: Tensor = self.whole(pooled)
        return summary


def _rescale(h: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
    """h, scaled to a root mean square of 1."""
    return h * (h.square().mean(1, keepdim=True) + 1e-6).rsqrt()


def _moments(
    values: Float[Tensor, "batch channels n"], weights: Float[Tensor, "batch channels n"]
) -> Float[Tensor, "batch moments"]:
    """Mean and standard deviation of each channel over the values with weight 1; 0 for channels without any."""
    count = weights.sum(2).clamp(min=1)
    mean = (values * weights).sum(2) / count
    variance = ((values - mean[:, :, None]).square() * weights).sum(2) / count
    return torch.cat([mean, (variance + 1e-6).sqrt()], 1)


def _check_condition(condition: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(condition.shape[1:]) != shape:
        layout = ", ".join(("batch", *map(str, shape)))
        raise ValueError(f"condition must have shape ({layout}), got {tuple(condition.shape)}")


def _check_not_empty(present: Bool[Tensor, "batch n"], expected: str) -> None:
    if _can_inspect(present) and not bool(present.any(1).all()):
        row = int((~present.any(1)).nonzero()[0])
        raise ValueError(f"condition must be a {expected} in every row, but condition[{row}] is all NaN")


def _can_inspect(values: Tensor) -> bool:
    """Whether values can be inspected at no cost: it would synchronise a device and break a compiled graph."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()
