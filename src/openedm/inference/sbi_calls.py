"""The calls of the `sbi` package's posteriors, by which its diagnostics and analyses take a `Posterior` as it is."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from openedm.ground import checks
from openedm.inference.arrays import Values, as_tensor
from openedm.inference.draws import numbered_seeds

__all__ = ["SbiCalls"]


P = TypeVar("P", bound="SbiCalls")


class SbiCalls(ABC):
    """What sbi calls besides `sample` and `log_prob`, in terms of these.

    Attributes:
        dim: number of parameters.
        device: where samples and densities are computed.
    """

    dim: int
    device: torch.device
    _default_x: Tensor | None

    @abstractmethod
    def _observations(self, x: Values | None) -> tuple[Tensor, bool]:
        """Observations (b, *x_shape) on the device, and whether x was a single one."""

    @abstractmethod
    def _samples(
        self, x: Float[Tensor, "observations ..."], n: int, seed: int | Sequence[int]
    ) -> Float[Tensor, "observations n dim"]:
        """n samples of each observation."""

    @abstractmethod
    def log_prob(
        self,
        theta: Values,
        x: Values | None = None,
        *,
        norm_posterior: bool = True,
        track_gradients: bool | None = None,
        leakage_correction_params: Mapping[str, Any] | None = None,
    ) -> Float[Tensor, "..."]:
        """ln q(θ | x)."""

    @torch.no_grad()
    def sample_batched(
        self,
        sample_shape: Sequence[int],
        x: Values,
        *,
        seed: int = 0,
        show_progress_bars: bool = False,
        max_sampling_batch_size: int | None = None,
    ) -> Float[Tensor, "*shape observations dim"]:
        """Samples for a batch of observations, the interface of sbi: (*sample_shape, b, dim).

        The noise depends on an observation's number in the batch, not on its values: diagnostics need independent
        samples of observations that repeat.

        Args:
            sample_shape: of the samples of each observation.
            x: (b, *x_shape).
            seed: an integer ≥ 0.
            show_progress_bars, max_sampling_batch_size: part of sbi's interface, without effect: there are no bars, and
                `max_rows` bounds what is computed at a time.

        Raises:
            TypeError, ValueError: as `sample`.
        """
        checks.integer("seed", seed, 0)
        observations, _ = self._observations(x)
        samples = self._samples(observations, math.prod(sample_shape), numbered_seeds(seed, len(observations)))
        return samples.transpose(0, 1).reshape(*sample_shape, len(observations), self.dim)

    def log_prob_batched(
        self,
        theta: Values,
        x: Values,
        *,
        norm_posterior: bool = True,
        track_gradients: bool | None = None,
        leakage_correction_params: Mapping[str, Any] | None = None,
    ) -> Float[Tensor, "*shape observations"]:
        """ln q(θ | x) of parameters of each of several observations, in the axes of sbi.

        Args:
            theta: (*shape, b, dim), as `sample_batched` returns them.
            x: (b, *x_shape).
            norm_posterior, track_gradients, leakage_correction_params: as for `log_prob`.

        Raises:
            TypeError, ValueError: as `log_prob`.
        """
        points, (observations, _) = as_tensor("theta", theta), self._observations(x)
        count = len(observations)
        if points.ndim < 2 or points.shape[-2:] != (count, self.dim):
            raise ValueError(f"theta must be (…, {count}, {self.dim}), got {tuple(points.shape)}")
        rows = points.reshape(-1, count, self.dim).transpose(0, 1)
        values = self.log_prob(rows, observations, norm_posterior=norm_posterior, track_gradients=track_gradients)
        return values.transpose(0, 1).reshape(points.shape[:-1])

    def potential(
        self, theta: Values, x: Values | None = None, track_gradients: bool | None = None
    ) -> Float[Tensor, "..."]:
        """ln q(θ | x) up to a constant of each observation, which takes less time where samples are refined.

        Args:
            theta, x: as for `log_prob`.
            track_gradients: whether the result has gradients; None means where theta requires them.

        Raises:
            TypeError, ValueError: as `log_prob`.
        """
        return self.log_prob(theta, x, norm_posterior=False, track_gradients=track_gradients)

    @property
    def _device(self) -> torch.device:
        """The device, under the name that sbi's analyses read."""
        return self.device

    @property
    def default_x(self) -> Tensor | None:
        """The observation taken where none is given (interface of sbi); None unless `set_default_x` was called."""
        return self._default_x

    def set_default_x(self: P, x: Values) -> P:
        """Take `x` where no observation is given. Returns the posterior itself, as in sbi.

        Raises:
            TypeError, ValueError: as `sample`.
        """
        observations, _ = self._observations(x)
        if len(observations) != 1:
            raise ValueError(f"x must be one observation, got {len(observations)}")
        (self._default_x,) = observations
        return self
