"""The shapes of what a network takes and returns, and the checks of its inputs."""

from dataclasses import dataclass

from torch import Tensor

from openedm.ground import checks

__all__ = ["Signature", "check_axes", "check_rows"]


@dataclass(frozen=True)
class Signature:
    """The shapes of what a network takes and returns.

    Args:
        event_shape: the shape of one sample, channels first.
        out_channels: the channels of the output, whose other axes are those of the sample.
        num_classes: the number of classes, 0 for a network without.
        augment_dim: the width of the augmentation labels, 0 for a network without.
        condition_shape: the shape of one condition of floats, None for a network without.

    Raises:
        ValueError: a number is out of its range, or there are both classes and a `condition_shape`.
    """

    event_shape: tuple[int, ...]
    out_channels: int
    num_classes: int = 0
    augment_dim: int = 0
    condition_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_axes("event_shape", self.event_shape)
        checks.at_least("out_channels", self.out_channels, 1)
        checks.at_least("num_classes", self.num_classes, 0)
        checks.at_least("augment_dim", self.augment_dim, 0)
        if self.condition_shape is not None:
            check_axes("condition_shape", self.condition_shape)
            if self.num_classes:
                raise ValueError(f"num_classes must be 0 where condition_shape is given, got {self.num_classes}")

    @property
    def in_channels(self) -> int:
        """The channels of a sample."""
        return self.event_shape[0]

    def check(
        self,
        x: Tensor,
        c_noise: Tensor,
        condition: Tensor | None,
        augment: Tensor | None,
        axes: tuple[str, ...],
    ) -> None:
        """Raise ValueError, naming the argument, where inputs do not fit; only the channels of x are fixed.

        Args:
            x, c_noise, condition, augment: the inputs of the network.
            axes: the names of a sample's axes.
        """
        if x.ndim != 1 + len(axes) or x.shape[1] != self.in_channels:
            layout = ", ".join(("batch", str(self.in_channels), *axes[1:]))
            raise ValueError(f"x must have shape ({layout}), got {tuple(x.shape)}")
        check_rows("c_noise", c_noise, (len(x),))
        if augment is not None:
            if not self.augment_dim:
                raise ValueError(
                    "augment must be None: the network was built without augmentation labels (augment_dim=0)"
                )
            check_rows("augment", augment, (len(x), self.augment_dim))
        if self.condition_shape is not None:
            if condition is None:
                layout = ", ".join(("batch", *map(str, self.condition_shape)))
                raise ValueError(f"condition must have shape ({layout}), got None")
            if len(condition) != 1 or condition.shape[1:] != self.condition_shape:
                check_rows("condition", condition, (len(x), *self.condition_shape))
        elif condition is not None and not self.num_classes:
            raise ValueError(
                "condition must be None: the network was built without any (num_classes=0, condition_shape=None)"
            )


def check_axes(name: str, shape: tuple[int, ...], axes: tuple[str, ...] | None = None) -> None:
    """Raise ValueError unless `shape` has sizes ≥ 1, one for each of `axes` where these are given."""
    if axes is not None and (len(shape) != len(axes) or min(shape) < 1):
        raise ValueError(f"{name} must be ({', '.join(axes)}{',' * (len(axes) == 1)}), each >= 1, got {shape}")
    if not shape or min(shape) < 1:
        raise ValueError(f"{name} must hold sizes >= 1, got {shape}")


def check_rows(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `value` has this shape."""
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
