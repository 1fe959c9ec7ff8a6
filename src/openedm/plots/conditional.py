"""Samples for conditions of some data, arranged for a grid."""

import torch
from jaxtyping import Float
from torch import Tensor

from openedm.data import Dataset
from openedm.denoiser import Denoiser
from openedm.ground.seeding import host_seeded
from openedm.sampling import Sampler, sample_batches

__all__ = ["conditional_samples"]


def conditional_samples(
    denoiser: Denoiser, data: Dataset, sampler: Sampler, *, count: int = 8, draws: int = 8
) -> tuple[Float[Tensor, "tiles *event"], int]:
    """Samples for conditions of the data, row by row, and the number of columns of their grid.

    The conditions are those of samples at even distances (`Dataset.spread`), and the seeds are 0, 1, …, so that two
    calls differ only in the denoiser. Where conditions are images of the size of the samples, a row has the condition,
    the sample of the data, and `draws` − 2 samples of the denoiser; otherwise a column has the samples of a condition.

    Args:
        denoiser: a denoiser with a `condition_shape`, and with the classes or without them.
        data: the data whose conditions are used.
        sampler: the sampler.
        count: the number of conditions.
        draws: the number of tiles for each condition, at least 3.
    """
    chosen = data.spread(count)
    with host_seeded(0):
        clean, given = data.fetch(chosen)
    condition = data.condition_layout.select(given, denoiser.condition_layout)
    assert condition is not None  # as the denoiser has a condition_shape
    values = denoiser.condition_layout.unpack(condition)[1]
    shown = None if values is None else _as_samples(values, tuple(clean.shape[1:]))
    repeats = draws if shown is None else draws - 2
    rows = torch.arange(len(chosen) * repeats) % len(chosen)
    batches = sample_batches(sampler, denoiser, range(len(rows)), condition=condition[rows])
    samples = torch.cat([x for _, x in batches])
    if shown is None:
        return samples, len(chosen)
    drawn = samples.reshape(repeats, len(chosen), *samples.shape[1:])
    return torch.cat([shown.to(samples)[None], clean.to(samples)[None], drawn]).transpose(0, 1).flatten(0, 1), draws


def _as_samples(values: Tensor, event_shape: tuple[int, ...]) -> Tensor | None:
    """Image conditions in the shape of samples and in [-1, 1], constant ones as 0; None where they cannot be shown."""
    if values.ndim < 3 or tuple(values.shape[2:]) != event_shape[1:] or values.shape[1] not in (1, event_shape[0]):
        return None
    values = values.expand(len(values), *event_shape)
    low, high = values.amin(), values.amax()
    if bool(low < -1 - 1e-3) or bool(high > 1 + 1e-3):
        values = (values - low) / (high - low) * 2 - 1 if bool(low < high) else torch.zeros_like(values)
    return values
