"""The posterior p(θ | x) as an object: samples, log-densities and modes, for one observation or a batch of them.

`Posterior` checks arguments, gives every observation its seed, keeps to the prior's support and splits long work; how
samples are drawn and densities computed is for its subclasses. Besides the library's own calls it answers those of the
`sbi` package (`sample((n,), x=…)` here, others in `sbi_calls`), whose diagnostics and analyses take it as it is.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from openedm.ground import checks
from openedm.inference.arrays import Values, as_tensor
from openedm.inference.bijections import Bijection
from openedm.inference.draws import observation_seeds, section_seeds
from openedm.inference.modes import find_mode
from openedm.inference.priors import Prior
from openedm.inference.sbi_calls import SbiCalls

__all__ = ["SECTION", "Posterior"]

SECTION = 1 << 14
"""How many samples of an observation are drawn at a time, each time with seeds of their own."""


class Posterior(SbiCalls):
    """p(θ | x), amortised: for any observation x of shape `x_shape`.

    A subclass calls `__init__` and defines `_draw` and `_density`.

    Sample i of an observation depends on the seed, the observation's values and i alone: not on the batch, its order or
    how many samples are drawn, up to rounding (networks differ in the last digits between sizes of a batch). Equal
    calls give equal samples; different observations get independent noise.

    Args:
        dim: number of parameters.
        x_shape: shape of one observation.
        prior: of θ, or None; outside its support the log-density is −∞.
        names: of the parameters; None means the prior's, or theta_1, theta_2, ….
        device: where samples and densities are computed; observations and parameters are moved there.
        support: of θ where there is no prior; None means R^dim.

    Attributes:
        max_rows: how many samples of several observations `_draw` and `_density` compute at a time.

    Raises:
        TypeError: dim is no integer.
        ValueError: dim < 1, a prior of another dimension, or names that are not as many or not distinct.
    """

    max_rows: int = 1 << 16

    def __init__(
        self,
        dim: int,
        x_shape: Sequence[int],
        *,
        prior: Prior | None = None,
        names: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
        support: Bijection | None = None,
    ) -> None:
        checks.integer("dim", dim, 1)
        if prior is not None and prior.dim != dim:
            raise ValueError(f"prior must have {dim} parameters, got {prior.dim}")
        if names is None:
            names = (prior.names if prior is not None else None) or [f"theta_{i + 1}" for i in range(dim)]
        if len(names) != dim or len(set(names)) != dim:
            raise ValueError(f"names must be {dim} different names, got {list(names)}")
        self.dim, self.x_shape, self.prior, self.names = dim, tuple(x_shape), prior, tuple(names)
        self.device = torch.device(device)
        self._support = Bijection.unbounded(dim) if support is None else support
        self._default_x = None

    @property
    def x_dtype(self) -> torch.dtype:
        """The number format of observations."""
        return torch.float32

    @property
    def support(self) -> Bijection:
        """From where θ may lie, outside which the log-density is −∞, onto R^dim."""
        return self._support if self.prior is None else self.prior.bijection

    @abstractmethod
    def _draw(
        self, x: Float[Tensor, "observations ..."], n: int, seeds: Sequence[int]
    ) -> Float[Tensor, "observations n dim"]:
        """n samples for each observation, inside the prior's support.

        Their noise is `draws.SampleNoise(seeds, n)`, in rows of observations × n.

        Args:
            x: observations on `device`, in `x_dtype`, finite.
            n: samples of each, from 1 to 16384; n times observations is at most `max_rows` where those are several.
            seeds: one for each observation.
        """

    @abstractmethod
    def _density(
        self, theta: Float[Tensor, "observations n dim"], x: Float[Tensor, "observations ..."]
    ) -> Float[Tensor, "observations n"]:
        """ln q(θ | x) in nats. Where autograd can follow it, `map` uses the gradient.

        Args:
            theta: float32 or float64, on `device`, inside the prior's support.
            x: observations on `device`, in `x_dtype`, finite.
        """

    def _relative_density(
        self, theta: Float[Tensor, "observations n dim"], x: Float[Tensor, "observations ..."]
    ) -> Float[Tensor, "observations n"]:
        """ln q(θ | x) up to a constant of each observation, where that takes less time. Arguments as for `_density`."""
        return self._density(theta, x)

    @torch.no_grad()
    def sample(
        self,
        x_or_shape: Values | None = None,
        /,
        n: int | None = None,
        *,
        x: Values | None = None,
        seed: int | Sequence[int] = 0,
        show_progress_bars: bool = False,
        max_sampling_batch_size: int | None = None,
    ) -> Float[Tensor, "... dim"]:
        """Samples from p(θ | x): `sample(x, n)`.

        The form of sbi works too: a first argument that is a tuple of integers is the shape of the samples, as in
        `sample((n,), x=x_obs)`; x then is one observation, also as a batch of one, or that of `set_default_x`, and the
        result is (*shape, dim). So an observation that is a tuple of integers must be given as a tensor or by `x=`.

        Args:
            x_or_shape: one observation of shape `x_shape`, or a batch (b, *x_shape); where an observation is one
                number, also that number, or (b,); or a shape.
            n: how many samples of each observation, ≥ 1; None means 1000. Not with a shape.
            x: another place for the observations.
            seed: an integer ≥ 0; or one for each observation, so that equal observations get different samples.
            show_progress_bars, max_sampling_batch_size: part of sbi's form, without effect: there are no bars, and
                `max_rows` bounds what is computed at a time.

        Returns:
            (n, dim) for one observation, (b, n, dim) for a batch, on `device`.

        Raises:
            TypeError: n or a seed is no integer, or x holds no numbers.
            ValueError: x has another shape, or holds NaN or infinities; n < 1, or n is given with a shape; a seed is
                negative, or there are not as many as observations.

        Warns:
            UserWarning: x is one observation, and far from all simulations; or it has what none of them has: another
                number in a column of zeros and ones, or many entries that share a number, as at another limit.
        """
        if _is_shape(x_or_shape):
            if n is not None:
                raise ValueError(
                    f"n must not be given with a tuple of integers, which is the shape of the samples as in sbi, got "
                    f"n={n} and {tuple(x_or_shape)}; for that observation call sample(x={tuple(x_or_shape)}, n={n})"
                )
            observations, _ = self._observations(x)
            if len(observations) != 1:
                raise ValueError(f"x must be one observation here, got {len(observations)}; see sample_batched")
            self._warn_if_far(observations)
            return self._samples(observations, math.prod(x_or_shape), seed)[0].reshape(*x_or_shape, self.dim)
        if x_or_shape is not None and x is not None:
            raise ValueError("x must be given once, got it twice; the shape of sbi's form is a tuple of integers")
        observations, single = self._observations(x if x_or_shape is None else x_or_shape)
        if single:
            self._warn_if_far(observations)
        samples = self._samples(observations, 1000 if n is None else n, seed)
        return samples[0] if single else samples

    def log_prob(
        self,
        theta: Values,
        x: Values | None = None,
        *,
        norm_posterior: bool = True,
        track_gradients: bool | None = None,
        leakage_correction_params: Mapping[str, Any] | None = None,
    ) -> Float[Tensor, "..."]:
        """ln q(θ | x), in nats; −∞ outside the prior's support. Differentiable in theta where the posterior is.

        Args:
            theta: (dim,) or (n, dim) for one observation, (b, n, dim) for a batch of b; of one parameter also (n,).
            x: one observation (`x_shape`), a batch (b, *x_shape), or None for that of `set_default_x`. A batch of one
                also goes with (dim,) and (n, dim).
            norm_posterior: False leaves out the constant of each observation, where that saves time (as `potential`).
            track_gradients: whether the result has gradients; None means where theta requires them.
            leakage_correction_params: part of sbi's form, without effect: no sample lies outside the support.

        Returns:
            The shape of theta without its last dimension, in theta's dtype; float32 of lists and numbers.

        Raises:
            TypeError: theta or x holds no numbers.
            ValueError: theta or x has another shape or holds NaN, or x infinities.
        """
        observations, _ = self._observations(x)
        points, count = as_tensor("theta", theta), len(observations)
        if self.dim == 1 and count == 1 and points.ndim == 1:
            points = points[:, None] if len(points) != 1 else points
        shapes = f"({count}, n, {self.dim})" if count > 1 else f"(n, {self.dim})"
        grouped = points.ndim == 3 and len(points) == count
        if not (grouped or (count == 1 and points.ndim in (1, 2))) or points.shape[-1] != self.dim:
            raise ValueError(f"theta must be {shapes} for {count} observation(s), got {tuple(points.shape)}")
        if bool(points.isnan().any()):
            raise ValueError("theta must hold no NaN")
        points = points.to(self.device)
        tracked = torch.is_grad_enabled() if track_gradients is None else track_gradients
        with torch.set_grad_enabled(tracked and points.requires_grad):
            values = self._log_prob(points.reshape(count, -1, self.dim), observations, normalised=norm_posterior)
            dtype = points.dtype if hasattr(theta, "dtype") else torch.float32  # of lists
            return values.to(dtype).reshape(points.shape[:-1])

    def map(self, x: Values | None = None, *, num_draws: int = 256, seed: int = 0) -> Float[Tensor, "... dim"]:
        """The mode of q(θ | x) in θ, found by ascent from the highest of some samples, in unbounded coordinates.

        By the gradient where `log_prob` has one, else by a simplex. Of several modes it is the one of that sample. A
        density that is highest at an end of its support (a uniform prior's, say) has its mode just inside.

        Args:
            x: as in `log_prob`.
            num_draws: samples to start from, ≥ 1.
            seed: of the samples.

        Returns:
            (dim,) for one observation, (b, dim) for a batch.

        Raises:
            TypeError, ValueError: as `sample`.
        """
        checks.integer("num_draws", num_draws, 1)
        observations, single = self._observations(x)
        with torch.no_grad():
            draws = self._samples(observations, num_draws, seed).cpu()

        def density_for(one: Tensor) -> Callable[[Tensor], Tensor]:
            return lambda points: self._log_prob(points[None], one[None], normalised=False)[0].cpu()

        modes = [
            find_mode(density_for(one), starts, self.support)
            for one, starts in zip(observations, draws.cpu(), strict=True)
        ]
        return (modes[0] if single else torch.stack(modes)).to(self.device)

    def flat(self, x: Values) -> Values:
        """Data as they are, or, of several kinds, in one vector each: what the posterior was fitted to."""
        return x

    def _observations(self, x: Values | None) -> tuple[Tensor, bool]:
        """Observations (b, *x_shape) on the device, and whether x was a single one."""
        if x is None:
            if self._default_x is not None:
                return self._default_x[None], True
            raise ValueError(
                f"x must be given: an observation of shape {self.x_shape} or a batch of them, as a tensor or by x=; a "
                "first argument that is a tuple of integers is the shape of the samples, as in sbi"
            )
        values = as_tensor("x", self.flat(x)).detach().to(self.device, self.x_dtype)
        if self.x_shape == (1,) and values.ndim < 2 and values.shape != (1,):
            values = values.reshape(-1, 1) if values.ndim else values[None]
        values = self._complete(values)
        shape = tuple(values.shape)
        single = shape == self.x_shape
        if not single and (len(shape) != len(self.x_shape) + 1 or shape[1:] != self.x_shape or shape[0] == 0):
            raise ValueError(f"x must be {self._allowed_observations()}, got {shape}")
        rows = values[None] if single else values
        self._check_observations(rows)
        return rows, single

    def _allowed_observations(self) -> str:
        """What observations may be, for errors."""
        batch = ", ".join(map(str, ("b", *self.x_shape)))
        return f"one observation {self.x_shape} or a batch ({batch})"

    def trained_rows(self, theta: Float[Tensor, "rows dim"], x: Float[Tensor, "rows ..."]) -> Int64[Tensor, " trained"]:
        """The rows of simulations that are known to be among those that the posterior was fitted to."""
        return torch.empty(0, dtype=torch.int64)

    def accepts(self, x: Float[Tensor, "observations ..."]) -> Bool[Tensor, " observations"]:
        """Which of the observations (b, *x_shape) there is a posterior for: the finite ones."""
        return x.flatten(1).isfinite().all(1)

    def _warn_if_far(self, x: Float[Tensor, "one ..."]) -> None:
        """Warn of an observation that is far from all simulations, where a posterior knows these."""

    def _complete(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """One observation or a batch in full size, where a posterior takes smaller ones."""
        return x

    def _check_observations(self, x: Float[Tensor, "observations ..."]) -> None:
        """Raise ValueError unless all observations are accepted."""
        if not bool(x.isfinite().all()):
            row, *first = (~x.isfinite()).nonzero()[0].tolist()
            at = first if len(x) == 1 else [row, *first]
            raise ValueError(f"x must be finite, got {x[(row, *first)].item()} at {at}")

    def _samples(
        self, x: Float[Tensor, "observations ..."], n: int, seed: int | Sequence[int]
    ) -> Float[Tensor, "observations n dim"]:
        """Samples, section after section, few observations at a time."""
        checks.integer("n", n, 1)
        seeds = self._seeds(x, seed)
        sections = []
        for number, start in enumerate(range(0, n, SECTION)):
            count = min(SECTION, n - start)
            now, size = section_seeds(seeds, number), max(1, self.max_rows // count)
            parts = [self._draw(x[i : i + size], count, now[i : i + size]) for i in range(0, len(x), size)]
            sections.append(torch.cat(parts))
        return torch.cat(sections, 1)

    def _seeds(self, x: Float[Tensor, "observations ..."], seed: int | Sequence[int]) -> tuple[int, ...]:
        if not isinstance(seed, Sequence):
            checks.integer("seed", seed, 0)
            return observation_seeds(x, seed)
        if len(seed) != len(x):
            raise ValueError(f"seed must be one integer, or {len(x)}, one for each observation, got {len(seed)}")
        for j, one in enumerate(seed):
            checks.integer(f"seed[{j}]", one, 0)
        return tuple(seed)

    def _log_prob(
        self,
        theta: Float[Tensor, "observations n dim"],
        x: Float[Tensor, "observations ..."],
        *,
        normalised: bool = True,
    ) -> Float[Tensor, "observations n"]:
        """ln q of theta (b, n, dim), few observations and points at a time."""
        density = self._density if normalised else self._relative_density
        if theta.numel() == 0:
            return theta.new_zeros(theta.shape[:-1])
        theta, inside = self._moved_inside(theta.to(self.device))
        size = max(1, self.max_rows // (count := min(SECTION, theta.shape[1])))
        rows = [
            torch.cat([density(points, x_chunk) for points in torch.split(theta_chunk, count, 1)], 1)
            for theta_chunk, x_chunk in zip(torch.split(theta, size), torch.split(x, size), strict=True)
        ]
        return torch.where(inside, torch.cat(rows), -math.inf)

    def _moved_inside(
        self, theta: Float[Tensor, "observations n dim"]
    ) -> tuple[Float[Tensor, "observations n dim"], Bool[Tensor, "observations n"]]:
        """θ with points outside the support replaced by one inside, and which were inside."""
        if self.prior is None:
            inside = theta.isfinite().all(-1) & self.support.contains(theta)
        else:
            inside = self.prior.log_prob(theta.detach()) > -math.inf
        replacement = self.support.inverse(torch.zeros(self.dim)).to(theta)
        return self.support.clamp(torch.where(inside[..., None], theta, replacement)), inside


def _is_shape(value: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(value, tuple) and all(isinstance(size, int) and not isinstance(size, bool) for size in value)
