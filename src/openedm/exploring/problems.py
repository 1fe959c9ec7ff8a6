"""Toy problems whose best denoiser is known in closed form, for one class or all, guided or not."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from openedm.data import Toy
from openedm.denoiser import Denoiser, FunctionDenoiser
from openedm.exact import ExactDataset, GaussianMixture
from openedm.exploring.state import Data1D, Data2D
from openedm.guidance import GuidanceWeight, Guided, Interval

__all__ = ["Budget", "Problem", "Stopped", "exact_problem"]

POINTS = 1000
MAX_EVALUATIONS = 3000


class Stopped(Exception):
    """The page has moved on: nobody waits for this figure any more."""


class Budget:
    """Counts evaluations, and ends a computation that takes too many or that nobody waits for.

    Args:
        wanted: whether the result is still wanted.
        most: the number of evaluations from which on a ValueError is raised.
    """

    def __init__(self, wanted: Callable[[], bool] = lambda: True, most: int = MAX_EVALUATIONS) -> None:
        self.wanted, self.most, self.count = wanted, most, 0

    def spend(self) -> None:
        """Count one evaluation.

        Raises:
            Stopped: the result is not wanted.
            ValueError: there are too many.
        """
        self.count += 1
        if not self.wanted():
            raise Stopped
        if self.count > self.most:
            raise ValueError(
                f"this takes more than {self.most:,} evaluations of the denoiser, too many for a page: "
                "choose fewer levels, or a higher tolerance"
            )

    def on(self, denoiser: Denoiser) -> Denoiser:
        """A denoiser that counts its calls here."""

        def counted(x: Tensor, sigma: Tensor, condition: Tensor | None) -> Tensor:
            self.spend()
            return denoiser(x, sigma, condition)

        return FunctionDenoiser(
            counted,
            denoiser.event_shape,
            denoiser.sigma_min,
            denoiser.sigma_max,
            denoiser.sigma_data,
            denoiser.mean(denoiser.sigma_max),
        )


class Problem(NamedTuple):
    """Toy data and what is known about them.

    Attributes:
        name: of the data.
        denoiser: the exact denoiser, of one class and guided if that was asked for.
        density: of the data of that class, without guidance; None for data that are no mixture of Gaussians.
        samples: some of the data.
    """

    name: str
    denoiser: Denoiser
    density: GaussianMixture | None
    samples: Float64[Tensor, "count features"]


@functools.lru_cache(maxsize=32)
def exact_problem(data: Data1D | Data2D, label: int | None = None, guidance: GuidanceWeight = Interval()) -> Problem:
    """The exact denoiser of toy data: of the mixture of Gaussians, or of 1000 samples where there is none.

    Args:
        data: the name of the toy data.
        label: the class; None means all.
        guidance: the weight w(σ) of D_all + w (D_label − D_all).

    Raises:
        ValueError: the data do not have this class, or there is guidance without one.

    >>> exact_problem("two_modes", label=1).denoiser(torch.zeros(1, 1), 100.0)
    tensor([[1.0000]])
    """
    source = Toy(data, num_samples=POINTS)
    dataset = source.load()
    if label is not None and not label < dataset.num_classes:
        classes = f"0 to {dataset.num_classes - 1}" if dataset.num_classes else "none"
        raise ValueError(f"label must be a class of {data} ({classes}) or null, got {label}")
    if label is None and not guidance.is_one:
        raise ValueError(
            f"guidance.weight must be 1 unless a class is chosen: set label, got {guidance} with label null"
        )
    x, labels = dataset.fetch(range(POINTS))
    x = x.double()
    chosen = x if label is None or labels is None else x[labels == label]
    whole, part, density = _denoisers(source, x, chosen, label)
    guided = part if guidance.is_one else Guided(part, whole, guidance)
    sigma_data = whole.sigma_data  # also of a class, so that its noise levels are those of the data

    def denoise(x: Float[Tensor, "batch features"], sigma: Tensor, condition: Tensor | None) -> Tensor:
        return guided(x, sigma)

    return Problem(
        data, FunctionDenoiser(denoise, dataset.event_shape, sigma_data=sigma_data, mean=0.0), density, chosen
    )


def _denoisers(
    source: Toy, x: Float64[Tensor, "n features"], chosen: Float64[Tensor, "m features"], label: int | None
) -> tuple[Denoiser, Denoiser, GaussianMixture | None]:
    """The denoisers of all data and of those of a class, and their density."""
    mixture = source.mixture()
    if mixture is None:
        return ExactDataset(x), ExactDataset(chosen), None
    dim = mixture.means.shape[1]
    covariances = (mixture.std**2 * torch.eye(dim, dtype=torch.float64)).expand(len(mixture.weights), dim, dim)
    whole = GaussianMixture(mixture.weights, mixture.means, covariances)
    if label is None:
        return whole, whole, whole
    one = slice(label, label + 1)
    part = GaussianMixture(mixture.weights[one], mixture.means[one], covariances[one])
    return whole, part, part
