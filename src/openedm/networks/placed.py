"""Series, images and volumes with noise around a mean that depends on u and on the place.

    z_p = e^a_p(u) (e_p + Σ_k f_k(u) e_{p+k}),      e_p = y_p − μ_p(u),      z ~ N(0, I)

The mean μ and the scale e^−a of all places are one function of the place, for each channel (`AlongColumns`), beside
what is the same for all u at each place. Noise may be correlated along the axes: k runs over the neighbours that come
before a place, f are a few numbers of each channel. So the matrix is triangular, and ln q a sum of squares and of a_p,
in closed form. Before the first places there is nothing: e = 0 there. Channels are independent given u. Values that are
the same in all rows, as of a border, have no density and tell nothing: they are left out.

Where values have long tails, z has Student's t distributions, of which each channel learns its ν.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.nn import functional

from openedm.networks.curves import AlongColumns
from openedm.networks.member_linear import MemberLinear
from openedm.networks.mixtures import MAX_LOG_DIAGONAL, ConditionalMixture, Outputs
from openedm.networks.tails import FREEDOM, freedom_of, log_student, student

__all__ = ["MAX_AXES", "HeavyPlacedMixture", "PlacedMixture"]

RADII = (4, 2, 1)
"""How far a neighbour is along each axis at most: of a series, an image, a volume."""

MAX_AXES = len(RADII)


class PlacedMixture(ConditionalMixture):
    """q(y | u) of the values of a series, an image or a volume.

    Args:
        condition_dim, dim: dimension of u, and how many values there are.
        shape: of y, (channels, *sizes) with one to three axes beside the channels; None means one channel of a series.
        curve: True; means and scales are functions of the place.
        sizes: those of `ConditionalMixture`, with one component.

    Raises:
        ValueError: a count is out of its range, or the shape does not have so many values.
    """

    structure = "placed"
    curves = True
    factored = False

    varies: Tensor
    level: Tensor

    def __init__(
        self, condition_dim: int, dim: int, *, shape: Sequence[int] | None = None, curve: bool = True, **sizes: Any
    ) -> None:
        self.shape = (1, dim) if shape is None else tuple(shape)
        if math.prod(self.shape) != dim or not 2 <= len(self.shape) <= 1 + MAX_AXES:
            raise ValueError(
                f"shape must have two to {1 + MAX_AXES} axes, the first that of channels, and {dim} values, "
                f"got {self.shape}"
            )
        if not curve:
            raise ValueError(f"curve must be True for structure {self.structure!r}, got False")
        self._neighbours = _before(len(self.shape) - 1)
        super().__init__(condition_dim, dim, curve=True, **sizes)
        weights = self.shape[0] * len(self._neighbours)
        del self.linear  # a slope for each place would be learned anew at each
        self.register_buffer("varies", torch.ones(self.members, 1, dim))
        self.register_buffer("level", torch.zeros(self.members, 1, dim))
        self.weights_out = MemberLinear(self.members, self.width, weights, gain=0.0)

    @property
    def outputs_each(self) -> int:
        """The number of outputs: a weight that says nothing, means, scales, and the weights of neighbours."""
        return 1 + 2 * self.dim + self.shape[0] * len(self._neighbours)

    def _along_columns(self) -> AlongColumns:
        return AlongColumns(self.members, self.width, self.shape[1:], 2 * self.shape[0])

    def parameters_of(self, u: Float[Tensor, "members rows condition"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Not supported: the matrix is never formed.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("PlacedMixture has no parameters of Gaussians")

    def _outputs(self, u: Float[Tensor, "members rows condition"]) -> Outputs:
        features = self._features(u)
        of_places = self.layer_out(features).transpose(-1, -2).flatten(-2)  # all means, then all scales
        out = torch.cat([torch.zeros_like(of_places[..., :1]), of_places, self.weights_out(features)], -1)
        return out[..., None, :]

    def _terms(self, outputs: Outputs) -> tuple[Tensor, Tensor, Tensor]:
        """μ and a (members, rows, channels, *sizes), and the weights of each channel's neighbours (…, channels, K)."""
        _, means, logs, weights = outputs[..., 0, :].tensor_split([1, 1 + self.dim, 1 + 2 * self.dim], -1)
        shape = (*outputs.shape[:2], *self.shape)
        logs = self.varies * logs.clamp(-MAX_LOG_DIAGONAL, MAX_LOG_DIAGONAL)
        means = torch.where(self.varies > 0, means, self.level)
        return means.reshape(shape), logs.reshape(shape), weights.reshape(*outputs.shape[:2], self.shape[0], -1)

    def _density(self, y: Float[Tensor, "members rows dim"], outputs: Outputs) -> Float[Tensor, "members rows"]:
        means, logs, weights = self._terms(outputs)
        varies = self.varies.reshape(self.members, 1, *self.shape)
        errors = varies * (y.reshape(*y.shape[:-1], *self.shape) - means)
        z = varies * logs.exp() * (errors + self._from_neighbours(errors, weights))
        total: Tensor = (logs + varies * self._log_noise(z)).flatten(2).sum(-1)
        return total

    def _log_noise(self, z: Float[Tensor, "members rows channels ..."]) -> Float[Tensor, "members rows channels ..."]:
        """The log-density of each z."""
        return -0.5 * z.square() - 0.5 * math.log(2 * math.pi)

    def _noise_like(
        self, means: Float[Tensor, "members rows channels ..."], generator: torch.Generator
    ) -> Float[Tensor, "members rows channels ..."]:
        """Draws of z."""
        return torch.randn(means.shape, generator=generator).to(means)

    def _from_neighbours(
        self, errors: Float[Tensor, "members rows channels ..."], weights: Float[Tensor, "members rows channels K"]
    ) -> Float[Tensor, "members rows channels ..."]:
        """Σ_k f_k e_{p+k} at each place p."""
        axes = len(self.shape) - 1
        radius = RADII[axes - 1]
        padded = functional.pad(errors, (radius, radius) * axes)
        total = torch.zeros_like(errors)
        for neighbour, weight in zip(self._neighbours, weights.unbind(-1), strict=True):
            part = padded
            for axis, (step, size) in enumerate(zip(neighbour, self.shape[1:], strict=True)):
                part = part.narrow(3 + axis, radius + step, size)
            total = torch.addcmul(total, weight.reshape(*weight.shape, *[1] * axes), part)
        return total

    @torch.no_grad()
    def sample(self, u: Float[Tensor, "rows condition"], generator: torch.Generator) -> Float[Tensor, "rows dim"]:
        """One y for each row of u; row i is drawn from member i mod `members`."""
        means, logs, weights = self._terms(self._outputs(self._grouped(u)))
        varies = self.varies.reshape(self.members, 1, *self.shape)
        noise = varies * self._noise_like(means, generator) * (-logs).exp()
        radius = RADII[len(self.shape) - 2]
        errors = functional.pad(torch.zeros_like(means), (radius, radius) * (len(self.shape) - 1))
        for place in itertools.product(*map(range, self.shape[1:])):
            here = [radius + at for at in place]
            known = [errors[_index(at + k for at, k in zip(here, step, strict=True))] for step in self._neighbours]
            drawn = noise[_index(place)] - (weights * torch.stack(known, -1)).sum(-1)
            errors[_index(here)] = varies[_index(place)] * drawn
        y: Tensor = (means + errors[_index(slice(radius, radius + size) for size in self.shape[1:])]).flatten(2)
        return y.transpose(0, 1).flatten(0, 1)[: len(u)]

    @torch.no_grad()
    def fit_linear(self, y: Float[Tensor, "rows dim"], u: Float[Tensor, "rows condition"]) -> None:
        """Start from one mean and one scale for each channel, whatever u is, and find the values that vary."""
        self.varies.copy_((y != y[:1]).any(0).expand_as(self.varies))
        self.level.copy_(y[0].expand_as(self.level))
        channels = self.shape[0]
        values = y.double().reshape(len(y), channels, -1).transpose(0, 1).flatten(1)
        centres, spreads = self._centres_and_spreads(values)
        offsets = torch.cat([centres, -spreads.clamp_min(1e-6).log()])
        assert isinstance(self.layer_out, AlongColumns)
        self.layer_out.offset.copy_(offsets.expand_as(self.layer_out.offset))

    def _centres_and_spreads(
        self, values: Float64[Tensor, "channels values"]
    ) -> tuple[Float64[Tensor, " channels"], Float64[Tensor, " channels"]]:
        """Of each channel."""
        return values.mean(1), values.std(1)

    def _sizes(self) -> dict[str, Any]:
        return super()._sizes() | {"shape": self.shape}

    def _empty(self) -> ConditionalMixture:
        return PlacedMixture(self.condition_dim, self.dim, **self._sizes())


class HeavyPlacedMixture(PlacedMixture):
    """q(y | u) as "placed", but z has Student's t distributions, of which each channel learns its ν.

    Args:
        condition_dim, dim, shape, curve, sizes: those of `PlacedMixture`.

    Raises:
        ValueError: as there.
    """

    structure = "placed_heavy"
    fast = ("log_freedom",)

    def __init__(self, condition_dim: int, dim: int, **sizes: Any) -> None:
        super().__init__(condition_dim, dim, **sizes)
        self.log_freedom = nn.Parameter(torch.full((self.members, self.shape[0]), math.log(FREEDOM)))

    def _freedom(self) -> Float[Tensor, "members one channels ..."]:
        """ν, to be used with z."""
        nu = freedom_of(self.log_freedom)
        return nu.reshape(self.members, 1, self.shape[0], *[1] * (len(self.shape) - 1))

    def _log_noise(self, z: Float[Tensor, "members rows channels ..."]) -> Float[Tensor, "members rows channels ..."]:
        return log_student(z, self._freedom())

    def _noise_like(
        self, means: Float[Tensor, "members rows channels ..."], generator: torch.Generator
    ) -> Float[Tensor, "members rows channels ..."]:
        return student(self._freedom().expand(means.shape), generator)

    def _centres_and_spreads(
        self, values: Float64[Tensor, "channels values"]
    ) -> tuple[Float64[Tensor, " channels"], Float64[Tensor, " channels"]]:
        centres = values.median(1).values
        return centres, (values - centres[:, None]).abs().median(1).values

    def _empty(self) -> ConditionalMixture:
        return HeavyPlacedMixture(self.condition_dim, self.dim, **self._sizes())


def _index(parts: Iterable[int | slice]) -> tuple[Any, ...]:
    """An index of the last axes."""
    return (..., *parts)


def _before(axes: int) -> list[tuple[int, ...]]:
    """The steps to neighbours that come before a place, in the order of rows."""
    near = range(-RADII[axes - 1], RADII[axes - 1] + 1)
    return [step for step in itertools.product(near, repeat=axes) if step < (0,) * axes] if axes else []
