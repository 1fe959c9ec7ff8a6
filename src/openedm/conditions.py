"""The layout of conditions: classes, floats, or both in one tensor, one row a sample.

    classes alone   integers (rows,), −1 for none, or rows of class weights (rows, num_classes)
    floats alone    (rows, *shape); a row of NaN alone is none
    both            (rows, 1 + shape[0], *shape[1:]): the first channel is the class, the same number everywhere, −1 for
                    none, and the other channels are the floats

Nothing else in the library knows the third layout: `pack` makes such tensors, `ConditionLayout` reads them.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

__all__ = ["ConditionLayout", "find_incomplete", "pack"]


def pack(
    classes: Shaped[Tensor, "classes *weights"], values: Float[Tensor, "rows *shape"]
) -> Float[Tensor, "rows *packed"]:
    """Classes and floats as one tensor of conditions, the class index before the channels of the floats.

    >>> pack(torch.tensor([2, 0]), torch.tensor([[0.5, 0.1], [0.7, 0.2]]))
    tensor([[2.0000, 0.5000, 0.1000],
            [0.0000, 0.7000, 0.2000]])

    Args:
        classes: integer classes (rows,) or (rows, 1), −1 for none; or one-hot rows (rows, num_classes), all zero for
            none.
        values: the floats of each row, vectors (rows, features) or images (rows, channels, *spatial).

    Raises:
        ValueError: the numbers of rows differ, the shapes are others, or a class is no whole number, or a row is not
            one-hot.
    """
    if classes.ndim == 2 and classes.shape[1] == 1 and not classes.is_floating_point():
        classes = classes[:, 0]
    elif classes.ndim == 2 and classes.shape[1] > 0:
        wrong = ((classes != 0) & (classes != 1)).any(1) | ((classes == 1).sum(1) > 1)
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            raise ValueError(f"classes must be integers or one-hot rows, but classes[{row}] is {classes[row].tolist()}")
        classes = torch.where((classes == 1).any(1), (classes == 1).to(torch.uint8).argmax(1), -1)
    if classes.is_floating_point() and bool((classes != classes.round()).any()):
        raise ValueError(f"classes must be whole numbers, got {classes[classes != classes.round()][0].item():g}")
    if classes.ndim != 1 or values.ndim < 2 or len(classes) != len(values):
        raise ValueError(
            "classes and values must have the same number of rows, (rows,) and (rows, *shape), got "
            f"{tuple(classes.shape)} and {tuple(values.shape)}"
        )
    dtype = values.dtype if values.dtype in (torch.float32, torch.float64) else torch.float32
    first = classes.to(values.device, dtype).reshape(-1, *[1] * (values.ndim - 1))
    return torch.cat([first.expand(len(values), 1, *values.shape[2:]), values.to(dtype)], 1)


@dataclass(frozen=True)
class ConditionLayout:
    """What one row of a condition holds.

    Args:
        num_classes: the number of classes; 0 without classes.
        shape: the shape of the floats alone; None without floats.

    >>> layout = ConditionLayout(num_classes=3, shape=(2,))
    >>> layout.packed_shape
    (3,)
    >>> layout.unpack(torch.tensor([[2.0, 0.5, 0.1]]))
    (tensor([2]), tensor([[0.5000, 0.1000]]))
    """

    num_classes: int = 0
    shape: tuple[int, ...] | None = None

    @classmethod
    def from_packed(cls, num_classes: int, packed_shape: tuple[int, ...] | None) -> "ConditionLayout":
        """The layout of a denoiser, whose `condition_shape` counts the channel of the class."""
        if packed_shape is None or num_classes == 0:
            return cls(num_classes, packed_shape)
        return cls(num_classes, (packed_shape[0] - 1, *packed_shape[1:]))

    @property
    def is_packed(self) -> bool:
        """Whether a condition holds classes and floats."""
        return self.num_classes > 0 and self.shape is not None

    @property
    def packed_shape(self) -> tuple[int, ...] | None:
        """The shape of a row of floats, with the channel of the class if there are classes; None without floats."""
        if self.shape is None or self.num_classes == 0:
            return self.shape
        return (1 + self.shape[0], *self.shape[1:])

    def unpack(
        self, condition: Shaped[Tensor, "rows *features"]
    ) -> tuple[Shaped[Tensor, "rows *weights"] | None, Float[Tensor, "rows *shape"] | None]:
        """The classes and the floats of a condition; None for what the layout does not hold.

        Classes alone are returned unchanged; those of a packed condition are int64, −1 for none.
        """
        if self.shape is None:
            return condition, None
        if self.num_classes == 0:
            return None, condition
        return self._classes(condition), condition[:, 1:]

    def _classes(self, packed: Float[Tensor, "rows *features"]) -> Int64[Tensor, " rows"]:
        return packed.flatten(1)[:, 0].nan_to_num(nan=-1.0).round().to(torch.int64)

    def with_values(
        self, condition: Float[Tensor, "rows *features"], values: Float[Tensor, "rows *shape"]
    ) -> Float[Tensor, "rows *features"]:
        """The condition with other floats and the same classes."""
        return torch.cat([condition[:, :1], values.to(condition.dtype)], 1) if self.is_packed else values

    def null(self, condition: Shaped[Tensor, "rows *features"]) -> Shaped[Tensor, "rows *features"]:
        """Rows that mean no condition, as many as those of a condition and of its kind.

        That is class −1 for integers, zeros for rows of class weights, and NaN for floats.
        """
        if self.shape is None:
            return torch.zeros_like(condition) if condition.is_floating_point() else torch.full_like(condition, -1)
        nothing = torch.full_like(condition, torch.nan)
        if self.is_packed:
            nothing[:, :1] = -1
        return nothing

    def hide(
        self, condition: Shaped[Tensor, "rows *features"], hidden: Bool[Tensor, " rows"]
    ) -> Shaped[Tensor, "rows *features"]:
        """The condition with no condition in the rows that are `hidden`."""
        rows = hidden.reshape(-1, *[1] * (condition.ndim - 1))
        return torch.where(rows, self.null(condition), condition)

    def select(
        self, condition: Shaped[Tensor, "rows *features"] | None, wanted: "ConditionLayout"
    ) -> Shaped[Tensor, "rows *part"] | None:
        """What `wanted` holds of a condition of this layout: all of it, its classes, its floats, or None for nothing.

        None is no condition, and stays None.

        Raises:
            ValueError: `wanted` holds classes or floats that this layout does not.
        """
        if condition is None and wanted.shape is None:
            return None
        if not self.includes(wanted):
            raise ValueError(f"condition must hold {wanted.describe()}, but the data hold {self.describe()}")
        if condition is None or wanted == self:
            return condition
        classes, values = self.unpack(condition)
        return classes if wanted.num_classes else values if wanted.shape is not None else None

    def describe(self) -> str:
        """One line such as "3 classes and floats of (2,)"."""
        parts = [f"{self.num_classes} classes"] if self.num_classes else []
        parts += [] if self.shape is None else [f"floats of shape {self.shape}"]
        return " and ".join(parts) or "neither classes nor floats"

    def includes(self, other: "ConditionLayout") -> bool:
        """Whether conditions of this layout hold those of another one."""
        return other.num_classes in (0, self.num_classes) and other.shape in (None, self.shape)

    def check_classes(self, condition: Float[Tensor, "rows *features"]) -> None:
        """Raise an error unless the first channel of a packed condition holds one class a row; no check on a device.

        Raises:
            ValueError: a row has a class outside −1 … num_classes − 1, or no whole number, or several.
        """
        if not self.is_packed or condition.device.type != "cpu" or torch.compiler.is_compiling() or not len(condition):
            return
        found = condition[:, 0].flatten(1) if condition.ndim > 2 else condition[:, :1]
        classes = found[:, :1].nan_to_num(nan=-1.0)
        wrong = (found.nan_to_num(nan=-1.0) != classes).any(1)
        wrong |= ((classes != classes.round()) | (classes < -1) | (classes >= self.num_classes))[:, 0]
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"condition must hold one class from -1 (none) to {self.num_classes - 1} in its first channel, got "
                f"{float(found[row].min()):g} … {float(found[row].max()):g} in condition[{row}]: "
                "openedm.conditions.pack(classes, values) makes such a condition"
            )


def find_incomplete(values: Float[Tensor, "rows *shape"]) -> tuple[int, ...]:
    """The first row of floats that is NaN altogether, and the first that is so in part, where there are such rows.

    >>> find_incomplete(torch.tensor([[0.5, 0.1], [torch.nan, torch.nan], [0.7, torch.nan]]))
    (1, 2)
    """
    missing = values.isnan().flatten(1)
    absent = missing.all(1)
    kinds = (absent, missing.any(1) & ~absent)
    return tuple(int(kind.nonzero()[0]) for kind in kinds if bool(kind.any()))
