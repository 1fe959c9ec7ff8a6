"""The parts of a condition, as networks use them: classes, floats without NaN, and whether the floats are present.

    vector   e = … + L_v v + L_a a                    in the embedding; a = 1 where there is no v, and v = 0 there
    image    [x, image, p]                            further input channels; p = 1 where there is an image, otherwise 0

a and p are inputs of networks with `condition_dropout` only.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from openedm.networks.network import Signature

__all__ = ["classes_of", "join_image", "values_of"]


def classes_of(
    signature: Signature, condition: Shaped[Tensor, "rows *features"] | None, batch: int
) -> Shaped[Tensor, "batch *weights"] | None:
    """The classes of a condition, one row a sample; None for none, and for a network without classes.

    Args:
        signature: what the condition holds.
        condition: the condition of the network, with one row for all samples where there are floats.
        batch: the number of samples.
    """
    if condition is None or signature.num_classes == 0:
        return None
    classes, _ = signature.layout.unpack(condition)
    assert classes is not None  # as num_classes says
    return classes.expand(batch) if signature.condition_shape is not None and len(classes) == 1 else classes


def values_of(
    signature: Signature,
    condition: Shaped[Tensor, "rows *features"] | None,
    like: Float[Tensor, "batch *any"],
    *,
    shape: tuple[int, ...] | None = None,
    absent_entries: bool = False,
) -> tuple[Float[Tensor, "rows *shape"], Float[Tensor, "rows one"]]:
    """The floats of a condition, zeros in rows without a condition, and 1 for each row with a condition, otherwise 0.

    Args:
        signature: what the condition holds.
        condition: the condition of the network; None for no condition, which is one row.
        like: a tensor with the dtype and device of the result.
        shape: the shape of the floats, if it is not that of the signature.
        absent_entries: whether NaN has a meaning in a row with other values.

    Raises:
        ValueError: a row is partly NaN, or it is NaN altogether and the network was built without `condition_dropout`
            (both on the CPU, where the check needs no synchronisation).
    """
    if condition is None:
        expected = signature.condition_shape if shape is None else shape
        assert expected is not None  # as the network has a condition
        return like.new_zeros(1, *expected), like.new_zeros(1, 1)
    _, values = signature.layout.unpack(condition)
    assert values is not None  # as the network has floats
    missing = values.isnan()
    absent = missing.flatten(1).all(1)
    if values.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_missing(signature, missing.flatten(1).any(1), absent, absent_entries=absent_entries)
    if signature.condition_dropout:
        values = values.masked_fill(absent.reshape(-1, *[1] * (values.ndim - 1)), 0.0)
    return values.to(like), (~absent)[:, None].to(like)


def join_image(
    signature: Signature,
    x: Float[Tensor, "batch channels *spatial"],
    condition: Shaped[Tensor, "rows *features"] | None,
) -> Float[Tensor, "batch joined *spatial"]:
    """x with the channels of an image condition and, with dropout, the channel of its presence; x if there is no image.

    Args:
        signature: what the condition holds.
        x: the samples.
        condition: the condition of the network.
    """
    if signature.condition_shape is None or signature.condition_kind != "image":
        return x
    spatial = x.shape[2:]
    values, present = values_of(signature, condition, x, shape=(signature.condition_shape[0], *spatial))
    parts = [x, values.expand(len(x), *values.shape[1:])]
    if signature.condition_dropout:
        parts.append(present.reshape(-1, 1, *[1] * len(spatial)).expand(len(x), 1, *spatial))
    return torch.cat(parts, 1)


def _check_missing(signature: Signature, some: Tensor, absent: Tensor, *, absent_entries: bool) -> None:
    partly = some & ~absent
    if not absent_entries and bool(partly.any()):
        raise ValueError(
            f"condition must be finite, or NaN altogether for no condition, but condition[{int(partly.nonzero()[0])}] "
            "is partly NaN"
        )
    if not signature.condition_dropout and not absent_entries and bool(absent.any()):
        raise ValueError(
            f"condition[{int(absent.nonzero()[0])}] is NaN, no condition, but the network was built without "
            "condition_dropout: train it with label_dropout > 0"
        )
