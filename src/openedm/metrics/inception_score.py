"""The Inception score: large where each image's class is certain and the classes of all images are diverse.

    IS = exp mean_x KL( p(c | x) ‖ p(c) ),   p(c) = mean_x p(c | x)

Salimans et al. 2016 (arXiv 1606.03498), with any classifier's probabilities. torchmetrics' `InceptionScore` shuffles by
the global random state and has no standard error; scipy.stats.bootstrap would copy the rows of every replicate.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from openedm.ground import checks

__all__ = ["InceptionScore", "inception_score", "inception_score_error"]


class InceptionScore(NamedTuple):
    """The mean over the parts, between 1 and the number of classes, and the standard deviation over the parts."""

    value: float
    std: float


def inception_score(
    probabilities: Float[Tensor, "samples classes"], *, num_splits: int = 10, seed: int = 0
) -> InceptionScore:
    """The Inception score of images with these class probabilities, over `num_splits` random parts of equal size (±1).

    It is biased by the number of images in a part, and it uses no reference: compare it with the score of as many real
    images.

    >>> inception_score(torch.eye(4).repeat(25, 1), num_splits=1).value
    4.0

    Args:
        probabilities: `(samples, classes)`, rows that add up to 1.
        num_splits: number of parts.
        seed: of the random parts.

    Raises:
        ValueError: rows that are not probabilities, or fewer rows than splits.
    """
    checks.at_least("num_splits", num_splits, 1)
    checks.at_least("the number of samples", len(probabilities), num_splits)
    p = probabilities.double().cpu()
    if not (bool((p >= 0).all()) and bool((p.sum(1) - 1).abs().max() < 1e-3)):
        raise ValueError("probabilities must be >= 0 and add up to 1 in each row")
    order = torch.randperm(len(p), generator=torch.Generator().manual_seed(seed))
    scores = torch.stack([_score(p[part]) for part in order.tensor_split(num_splits)])
    return InceptionScore(float(scores.mean()), float(scores.std(correction=0)))


def inception_score_error(probabilities: Float[Tensor, "samples classes"], *, num: int = 50, seed: int = 0) -> float:
    """The bootstrap's standard deviation of the Inception score of one part.

    Args:
        probabilities: `(samples, classes)`.
        num: number of replicates.
        seed: of the resampling.

    Raises:
        ValueError: fewer than 2 replicates.
    """
    checks.at_least("num", num, 2)
    generator = torch.Generator().manual_seed(seed)
    p = probabilities.double()
    entropy = torch.xlogy(p, p).sum(1)
    drawn = [torch.randint(len(p), (len(p),), generator=generator) for _ in range(num)]
    shares = torch.stack([rows.bincount(minlength=len(p)).double() for rows in drawn]).to(p.device) / len(p)
    means = shares @ p
    scores: Tensor = (shares @ entropy - torch.xlogy(means, means).sum(1)).exp()
    return float(scores.std())


def _score(p: Float64[Tensor, "samples classes"]) -> Float64[Tensor, ""]:
    # xlogy is 0 where a probability is 0.
    divergence = torch.xlogy(p, p) - torch.xlogy(p, p.mean(0))
    return divergence.sum(1).mean().exp()
