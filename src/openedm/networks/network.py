"""Networks as values: the kind and sizes of a network, the shapes of its data, and the module built from both.

network (a frozen choice)  +  signature (the data's shapes)  →  module F(x; c_noise, condition, augment)
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from inspect import isabstract
from typing import Any, ClassVar, Literal

from jaxtyping import Float, Integer
from torch import Tensor, nn

from openedm.conditions import ConditionLayout
from openedm.ground import checks
from openedm.ground.choices import Choice, subclasses

__all__ = ["GRIDS", "ConditionKind", "Labels", "Network", "RawNetwork", "Signature", "check_axes", "check_rows"]

Axes = tuple[str, ...]
GRIDS: tuple[Axes, ...] = (
    ("channels", "length"),
    ("channels", "height", "width"),
    ("channels", "depth", "height", "width"),
)
"""The axes of series, images and volumes."""
Labels = Integer[Tensor, " rows"] | Float[Tensor, "rows classes"]
ConditionKind = Literal["vector", "image", "other"]


@dataclass(frozen=True)
class Signature:
    """The shapes of the inputs and outputs of a network.

    Args:
        event_shape: the shape of one sample, channels first.
        out_channels: the channels of the output, whose other axes are those of the sample.
        num_classes: the number of classes, 0 for a network without classes.
        augment_dim: the width of the augmentation labels, 0 for a network without them.
        condition_shape: the shape of one condition of floats, without classes; None for a network without floats.
        condition_dropout: whether a sample may have no condition, with a `condition_shape`.

    Raises:
        ValueError: a number is out of its range, or there is `condition_dropout` without a `condition_shape`.
    """

    event_shape: tuple[int, ...]
    out_channels: int
    num_classes: int = 0
    augment_dim: int = 0
    condition_shape: tuple[int, ...] | None = None
    condition_dropout: bool = False

    def __post_init__(self) -> None:
        check_axes("event_shape", self.event_shape)
        checks.at_least("out_channels", self.out_channels, 1)
        checks.at_least("num_classes", self.num_classes, 0)
        checks.at_least("augment_dim", self.augment_dim, 0)
        if self.condition_shape is not None:
            check_axes("condition_shape", self.condition_shape)
        elif self.condition_dropout:
            raise ValueError("condition_dropout must be false without a condition_shape, got True")

    @property
    def in_channels(self) -> int:
        """The channels of a sample."""
        return self.event_shape[0]

    @property
    def layout(self) -> ConditionLayout:
        """What a condition holds."""
        return ConditionLayout(self.num_classes, self.condition_shape)

    @property
    def condition_kind(self) -> ConditionKind | None:
        """What the floats of a condition are.

        "vector" has one axis, for the embedding; "image" has the axes and spatial sizes of a sample, any number of
        channels, for further input channels; "other" has another shape; None means that there are none.
        """
        if self.condition_shape is None:
            return None
        if len(self.condition_shape) == 1:
            return "vector"
        same = len(self.condition_shape) == len(self.event_shape) and self.condition_shape[1:] == self.event_shape[1:]
        return "image" if same else "other"

    @property
    def joined_channels(self) -> int:
        """The channels of a sample joined with those of an image condition and, with dropout, one for its presence."""
        if self.condition_shape is None or self.condition_kind != "image":
            return self.in_channels
        return self.in_channels + self.condition_shape[0] + self.condition_dropout

    def check(
        self,
        x: Tensor,
        c_noise: Tensor,
        condition: Tensor | None,
        augment: Tensor | None,
        axes: Axes | tuple[Axes, ...],
    ) -> None:
        """Raise ValueError, naming the argument, if an input does not fit; axes of x other than channels are free.

        Args:
            x, c_noise, condition, augment: the inputs of the network.
            axes: the names of a sample's axes, or several such tuples, for samples of different numbers of axes.
        """
        if x.ndim != 1 + len(self.event_shape) or x.shape[1] != self.in_channels:
            names = next(names for names in _alternatives(axes) if len(names) == len(self.event_shape))
            layout = ", ".join(("batch", str(self.in_channels), *names[1:]))
            raise ValueError(f"x must have shape ({layout}), got {tuple(x.shape)}")
        check_rows("c_noise", c_noise, (len(x),))
        if augment is not None:
            if not self.augment_dim:
                raise ValueError(
                    "augment must be None: the network was built without augmentation labels (augment_dim=0)"
                )
            check_rows("augment", augment, (len(x), self.augment_dim))
        if self.condition_shape is not None:
            self._check_floats(x, condition)
        elif condition is not None and not self.num_classes:
            raise ValueError(
                "condition must be None: the network was built without it (num_classes=0, condition_shape=None)"
            )

    def _check_floats(self, x: Tensor, condition: Tensor | None) -> None:
        shape = self.layout.packed_shape
        assert shape is not None  # as the caller checks
        if condition is None:
            if self.condition_dropout:
                return
            layout = ", ".join(("batch", *map(str, shape)))
            raise ValueError(
                f"condition must have shape ({layout}), got None: the network was built without condition_dropout"
            )
        if self.condition_kind == "image":
            shape = (shape[0], *x.shape[2:])
        if len(condition) != 1 or condition.shape[1:] != shape:
            check_rows("condition", condition, (len(x), *shape))
        self.layout.check_classes(condition)


@dataclass(frozen=True)
class Network(Choice, ABC):
    """A kind of network with its sizes; the shapes of the data are given when it is built.

    A subclass defines `module`, which builds the network; or `build`, if no check of the axes is wanted.

    Attributes:
        axes: the names of the axes of a sample, or several such tuples if samples of different numbers of axes are
            allowed; None if samples of any shape are.
        takes_conditions: whether it can be conditioned on floats of any shape.
        condition_kinds: otherwise, the kinds of floats that it can be conditioned on; see `Signature.condition_kind`.
    """

    axes: ClassVar[Axes | tuple[Axes, ...] | None] = None
    takes_conditions: ClassVar[bool] = False
    condition_kinds: ClassVar[tuple[ConditionKind, ...]] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "build" in cls.__dict__ and cls.module is Network.module:  # how a network was defined at first
            cls.module = _module_by_build  # type: ignore[method-assign]

    @classmethod
    def adopt(cls, value: object) -> "Choice | None":
        """A module, a class of modules or a function that makes one, as a choice."""
        from openedm.networks.own import ModuleNetwork, is_module_like

        return ModuleNetwork.of(value) if cls is Network and is_module_like(value) else None

    def build(
        self,
        event_shape: tuple[int, ...],
        *,
        num_classes: int = 0,
        augment_dim: int = 0,
        condition_shape: tuple[int, ...] | None = None,
        condition_dropout: bool = False,
        out_channels: int | None = None,
        seed: int | None = None,
    ) -> nn.Module:
        """A new network, called as `network(x, c_noise, condition=None, augment=None)`; see `RawNetwork.forward`.

        Args:
            event_shape: the shape of one sample, channels first.
            num_classes: the number of classes that it can be conditioned on.
            augment_dim: the width of the augmentation labels.
            condition_shape: the shape of one condition of floats, without classes; None for a network without floats.
            condition_dropout: whether a sample may have no condition, for guidance; requires a `condition_shape`.
            out_channels: the channels of its output; None means those of the data.
            seed: the seed of the initial weights, which leaves the global generator unchanged; None means to draw them
                from the global generator.

        Raises:
            ValueError: the network does not support a shape, or a count is out of its range.
        """
        _check_sizes("event_shape", event_shape)
        if not self.supports(event_shape):
            wanted = _expected("event_shape", event_shape, self.axes or ("any",))
            raise ValueError(f"{wanted} for {type(self).__name__}{_others(event_shape)}")
        channels = event_shape[0] if out_channels is None else out_channels
        signature = Signature(event_shape, channels, num_classes, augment_dim, condition_shape, condition_dropout)
        kind = signature.condition_kind
        if kind is not None and not self.takes_conditions and kind not in self.condition_kinds:
            raise ValueError(
                f"condition_shape must be {self._allowed_conditions(event_shape)} for {type(self).__name__}, "
                f"got {condition_shape}"
            )
        return self.module(signature, seed)

    def _allowed_conditions(self, event_shape: tuple[int, ...]) -> str:
        """The condition shapes that the network takes for samples of a shape, in words."""
        image = f"({', '.join(('channels', *map(str, event_shape[1:])))}), an image of the size of the data"
        allowed = {"vector": "(features,), a vector", "image": image}
        kinds = [allowed[kind] for kind in self.condition_kinds if kind in allowed]
        return " or ".join(kinds) if kinds else "None, as float conditions are not supported,"

    @classmethod
    def supports(cls, event_shape: tuple[int, ...]) -> bool:
        """Whether networks of this kind can be built for samples of this shape, by its number of axes.

        >>> from openedm.networks import MLP, DDPMpp
        >>> DDPMpp.supports((1, 64)), MLP.supports((1, 64))
        (True, False)
        """
        return bool(event_shape) and (cls.axes is None or _fits(event_shape, cls.axes))

    @abstractmethod
    def module(self, signature: Signature, seed: int | None) -> nn.Module:
        """The new network for these shapes, whose axes `build` has checked.

        Args:
            signature: the shapes.
            seed: as for `build`; use `with openedm.networks.layers.seeded(seed):`.

        Raises:
            ValueError: the shapes do not fit the sizes.
        """


def _module_by_build(self: Network, signature: Signature, seed: int | None) -> nn.Module:
    """`module` of a network that defines `build` itself."""
    shapes = {field.name: getattr(signature, field.name) for field in fields(signature) if field.name != "event_shape"}
    if not signature.condition_dropout:  # an argument that came later
        del shapes["condition_dropout"]
    return self.build(signature.event_shape, seed=seed, **shapes)


class RawNetwork(nn.Module):
    """The raw network F, which a preconditioning turns into a denoiser.

    Attributes:
        choice: the kind and sizes of the network.
        signature: the shapes that it was built for.
        condition_runs: in training, a sample comes at so many noise levels in a row, with one condition; a network may
            embed it once (`ConditionalResidualMLP`).
    """

    condition_runs: int = 1

    def __init__(self, choice: Network, signature: Signature) -> None:
        super().__init__()
        self.choice, self.signature = choice, signature

    def forward(
        self,
        x: Float[Tensor, "batch *event"],
        c_noise: Float[Tensor, " batch"],
        condition: Labels | Float[Tensor, "conditions *shape"] | None = None,
        augment: Float[Tensor, "rows augment_dim"] | None = None,
    ) -> Float[Tensor, "batch *out"]:
        """F(x; c_noise), of the shape of x with `out_channels` channels.

        Args:
            x: noisy samples (batch, *event_shape), of about unit variance.
            c_noise: the noise level as computed by the preconditioning, (batch,).
            condition: for a network with classes, (batch,) integers with −1 for no class, or (batch, num_classes) rows,
                all zero for no class, or None for no class. For a network with float conditions, (batch,
                *condition_shape), or a single row for all samples; with classes too, those of
                `openedm.conditions.pack`. With `condition_dropout` a row of NaN is no condition, and None is none for
                all samples. None for a network with neither.
            augment: augmentation labels (batch, augment_dim). None and zeros mean that x is not augmented.

        Raises:
            ValueError: a shape does not fit, a label is out of range, or `condition` or `augment` is given to a network
                that was built without it.
        """
        raise NotImplementedError


def check_axes(name: str, shape: tuple[int, ...], axes: Axes | tuple[Axes, ...] | None = None) -> None:
    """Raise an error unless `shape` is a tuple of sizes ≥ 1, one for each of `axes` if given."""
    _check_sizes(name, shape)
    if axes is not None and not _fits(shape, axes):
        raise ValueError(_expected(name, shape, axes))
    if not shape or min(shape) < 1:
        raise ValueError(f"{name} must hold sizes >= 1, got {shape}")


def _check_sizes(name: str, shape: object) -> None:
    if not isinstance(shape, tuple | list) or not all(isinstance(size, int) for size in shape):
        raise TypeError(f"{name} must be a tuple of integers, such as (3, 32, 32), got {shape!r}")


def _fits(shape: tuple[int, ...], axes: Axes | tuple[Axes, ...]) -> bool:
    return any(len(shape) == len(names) for names in _alternatives(axes)) and min(shape) >= 1


def _expected(name: str, shape: tuple[int, ...], axes: Axes | tuple[Axes, ...]) -> str:
    layouts = [f"({', '.join(names)}{',' * (len(names) == 1)})" for names in _alternatives(axes)]
    *most, last = layouts
    return f"{name} must be {', '.join(most)}{' or ' if most else ''}{last}, each >= 1, got {shape}"


def _others(event_shape: tuple[int, ...]) -> str:
    """The end of an error that names the networks for samples of this shape, if there are any."""
    fitting = [c.__name__ for c in subclasses(Network) if not isabstract(c) and c.supports(event_shape)]  # type: ignore[type-abstract]
    return f"; networks for samples of this shape: {', '.join(sorted(fitting))}" if fitting else ""


def _alternatives(axes: Axes | tuple[Axes, ...]) -> tuple[Axes, ...]:
    """`axes` as a tuple of tuples of names, one for each number of axes that is allowed."""
    return tuple(a for a in axes if isinstance(a, tuple)) or (tuple(a for a in axes if isinstance(a, str)),)


def check_rows(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `value` has this shape."""
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
