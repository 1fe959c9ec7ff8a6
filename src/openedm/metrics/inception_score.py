"""The Inception score: sure of each image, and unsure of all of them together.

    IS = exp mean_x KL( p(c | x) ‖ p(c) ),   p(c) = mean_x p(c | x)

Salimans et al. 2016 (arXiv 1606.03498), with any classifier's probabilities.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from openedm.ground import checks


class InceptionScore(NamedTuple):
    """The mean over the splits and their standard deviation; between 1 and the number of classes."""

    value: float
    std: float


def inception_score(
    probabilities: Float[Tensor, "samples classes"], *, num_splits: int = 10, seed: int = 0
) -> InceptionScore:
    """The Inception score of images with these class probabilities, over `num_splits` random parts of equal size (±1).

    It is biased by the number of images in a part, and it sees no reference: give the score of as many real images
    beside it.

    >>> inception_score(torch.eye(4).repeat(25, 1), num_splits=1).value
    4.0

    Args:
        probabilities: `(samples, classes)`, rows that add up to 1.
        num_splits: number of parts.
        seed: of the order in which images are dealt out.

    Raises:
        ValueError: rows that are no probabilities, or fewer rows than splits.
    """
    checks.at_least("num_splits", num_splits, 1)
    checks.at_least("the number of samples", len(probabilities), num_splits)
    p = probabilities.double().cpu()
    if not (bool((p >= 0).all()) and bool((p.sum(1) - 1).abs().max() < 1e-3)):
        raise ValueError("probabilities must be >= 0 and add up to 1 in each row")
    order = torch.randperm(len(p), generator=torch.Generator().manual_seed(seed))
    scores = torch.stack([_score(p[part]) for part in order.tensor_split(num_splits)])
    return InceptionScore(float(scores.mean()), float(scores.std(correction=0)))


def _score(p: Tensor) -> Tensor:
    # xlogy is 0 where a probability is 0.
    divergence = torch.xlogy(p, p) - torch.xlogy(p, p.mean(0))
    return divergence.sum(1).mean().exp()
