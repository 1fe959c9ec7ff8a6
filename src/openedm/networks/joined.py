"""Several kinds of data as one condition: each has a summary of its own, and a linear layer joins them.

    s = L [s₁(x₁), s₂(x₂), …],   of vectors, series (channels, time) and images (c, h, w)

The condition is a vector that holds all of them, flattened one after another in the order of `names`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from openedm.ground import checks
from openedm.ground.tensors import as_tensor
from openedm.networks.layers import KAIMING, Linear
from openedm.networks.summaries import MIN_SIDE, ImageSummary, SeriesSummary, Summary, VectorSummary

__all__ = ["JoinedSummary"]


@dataclass(frozen=True)
class JoinedSummary(Summary):
    """Summaries of several kinds of data at once, joined.

    Args:
        names: of the kinds.
        shapes: of one observation of each.
        width: of each summary; images have a quarter as many channels at full size.

    Raises:
        ValueError: there are no names or not as many shapes, or a size is < 1.

    >>> joined = JoinedSummary(names=("image", "counts"), shapes=((1, 8, 8), (3,)), width=16)
    >>> flat = joined.flatten({"image": torch.zeros(5, 1, 8, 8), "counts": torch.zeros(5, 3)})
    >>> flat.shape, joined.build((67,), 16, seed=0)(flat).shape
    (torch.Size([5, 67]), torch.Size([5, 16]))
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    width: int = 64

    axes: ClassVar = ("numbers",)

    def __post_init__(self) -> None:
        checks.size("width", self.width, 4)
        if not self.names or len(set(self.names)) != len(self.names) or len(self.shapes) != len(self.names):
            raise ValueError(f"names must be different, a shape each, got {self.names} and {self.shapes}")
        for name, shape in zip(self.names, self.shapes, strict=True):
            if not 1 <= len(shape) <= 3 or min(shape) < 1:
                raise ValueError(
                    f"x[{name!r}] must hold vectors (n, columns), series (n, channels, time) or images (n, c, h, w), "
                    f"got one of shape {shape}"
                )

    @classmethod
    def of(cls, x: Mapping[str, Any]) -> "JoinedSummary":
        """The summary for data of these shapes, (n, *shape) of each name; (n,) is one number each.

        Raises:
            TypeError: they are not numbers, or some are masked.
            ValueError: there are none, or a shape is of no known kind.
        """
        if not x:
            raise ValueError("x must hold at least one kind of data, got an empty mapping")
        shapes = (tuple(as_tensor(f"x[{name!r}]", values).shape[1:]) or (1,) for name, values in x.items())
        return cls(tuple(x), tuple(shapes))

    @property
    def allowed(self) -> str:
        """What observations may be, for errors."""
        kinds = ", ".join(f"{name!r}: {shape}" for name, shape in zip(self.names, self.shapes, strict=True))
        return (
            f"a mapping {{{kinds}}}, of one observation or a batch of each; or, as in Simulations.x, rows of all "
            f"{sum(map(math.prod, self.shapes))} numbers in this order"
        )

    def flatten(self, x: Mapping[str, Any]) -> Float[Tensor, "*rows numbers"]:
        """All numbers of one observation, or of several, in one vector each.

        Args:
            x: of each name, one observation of its shape, or (n, *shape); of shape (1,) also a number, or (n,).

        Raises:
            TypeError: data are not numbers, or some are masked.
            ValueError: names are missing or unknown, or shapes do not fit.
        """
        if set(x) != set(self.names):
            raise ValueError(f"x must hold {', '.join(self.names)}, got {', '.join(map(str, x)) or 'nothing'}")
        parts = []
        for name, shape in zip(self.names, self.shapes, strict=True):
            values = as_tensor(f"x[{name!r}]", x[name])
            values = values if values.is_floating_point() else values.float()
            if shape == (1,) and values.shape[-1:] != (1,):
                values = values[..., None]
            batch = values.shape[: values.ndim - len(shape)]
            if values.shape[len(batch) :] != shape or len(batch) > 1:
                several = ", ".join(map(str, ("n", *shape)))
                raise ValueError(
                    f"x[{name!r}] must be one observation {shape} or several ({several}), got {tuple(values.shape)}"
                )
            parts.append(values.reshape(*batch, math.prod(shape)))
        batches = [part.shape[:-1] for part in parts if part.ndim > 1]
        if batches and batches[0] == (1,):  # one number is an observation, or a batch of one
            parts = [part[None] if part.shape == (1,) else part for part in parts]
        counts = {tuple(part.shape[:-1]) for part in parts}
        if len(counts) > 1:
            listed = ", ".join(f"{name} {tuple(part.shape[:-1])}" for name, part in zip(self.names, parts, strict=True))
            raise ValueError(f"x must hold as many observations of each name, got {listed}")
        return torch.cat([part.to(torch.promote_types(part.dtype, torch.float32)) for part in parts], -1)

    def module(self, condition_shape: tuple[int, ...], features: int) -> nn.Module:
        """The network for vectors that hold all numbers; see `Summary.build`."""
        if condition_shape != (total := (sum(map(math.prod, self.shapes)),)):
            raise ValueError(f"condition_shape must be {total}, all numbers of {self.shapes}, got {condition_shape}")
        return _Joined(self, features)

    def _kind(self, shape: tuple[int, ...]) -> Summary:
        if len(shape) == 2:
            return SeriesSummary(width=4 * -(-self.width // 4))
        if len(shape) == 3 and min(shape[1:]) >= MIN_SIDE:
            return ImageSummary(width=-(-self.width // 4))
        return VectorSummary(width=self.width, num_blocks=1)


class _Joined(nn.Module):
    def __init__(self, choice: JoinedSummary, features: int) -> None:
        super().__init__()
        self.shapes, self.sizes = choice.shapes, [math.prod(shape) for shape in choice.shapes]
        self.summaries = nn.ModuleList(choice._kind(shape).build(shape, features) for shape in choice.shapes)
        self.layer_out = Linear(features * len(choice.shapes), features, init=KAIMING)

    def forward(self, condition: Float[Tensor, "rows numbers"]) -> Float[Tensor, "rows features"]:
        """The joined summary of each row."""
        parts = torch.split(condition, self.sizes, 1)
        each = [
            summary(part.reshape(len(part), *shape))
            for summary, part, shape in zip(self.summaries, parts, self.shapes, strict=True)
        ]
        joined: Tensor = self.layer_out(torch.cat(each, 1))
        return joined
