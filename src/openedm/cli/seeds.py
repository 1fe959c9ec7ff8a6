"""Seeds and classes as they are written on the command line."""

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor


def parse_integers(name: str, text: str) -> list[int]:
    """Integers from a list of numbers and ranges, both ends included: "0-3,7" is [0, 1, 2, 3, 7].

    Raises:
        ValueError: the text is no such list, or a range runs backward.
    """
    values: list[int] = []
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not low.isdecimal() or (dash and not high.isdecimal()):
            raise ValueError(f"{name} must be numbers >= 0 and ranges such as 0-63,100, got {text!r}")
        if dash and int(high) < int(low):
            raise ValueError(f"{name}: the range {part.strip()!r} runs backward")
        values.extend(range(int(low), int(high if dash else low) + 1))
    return values


def labels_for(seeds: Sequence[int], classes: Sequence[int] | None, num_classes: int) -> Int64[Tensor, "seeds"] | None:
    """The class of each seed, a function of the seed alone: the classes in turn, `classes[seed mod len]`.

    Args:
        seeds: one seed a sample.
        classes: the classes to draw; None means all.
        num_classes: how many the model has; 0 for an unconditional one.

    Raises:
        ValueError: a class that the model does not have.
    """
    if num_classes == 0:
        if classes is not None:
            raise ValueError(f"classes must not be given: the model is unconditional, got {list(classes)}")
        return None
    chosen = list(range(num_classes)) if classes is None else list(classes)
    wrong = [c for c in chosen if not 0 <= c < num_classes]
    if wrong or not chosen:
        raise ValueError(f"classes must be between 0 and {num_classes - 1}, got {wrong or 'none'}")
    return torch.tensor([chosen[seed % len(chosen)] for seed in seeds], dtype=torch.int64)


def columns_for(labels: Int64[Tensor, "seeds"] | None) -> int | None:
    """The columns of a grid of samples: one a class where there are 2 to 20; None, a square, otherwise."""
    classes = 0 if labels is None else len(set(labels.tolist()))
    return classes if 2 <= classes <= 20 else None
