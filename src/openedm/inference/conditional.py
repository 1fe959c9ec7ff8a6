"""A conditional of a joint distribution as a posterior: samples and densities of some variables given others.

The joint denoiser is evaluated with the known variables fixed. Those that are neither wanted nor known are sampled with
the wanted ones and dropped. Variables are learned in unbounded, standardised coordinates z; the density of v is that of
z times |dz/dv|.
"""

import math
from collections.abc import Sequence
from dataclasses import fields

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from openedm.denoiser import Condition, Denoiser
from openedm.inference.bijections import Bijection
from openedm.inference.draws import SampleNoise, flow
from openedm.inference.maps import Columns, Coordinates
from openedm.inference.posterior import Posterior
from openedm.inference.priors import Prior
from openedm.likelihood import Likelihood
from openedm.sampling import SamplerChoice

__all__ = ["Conditional", "Latent", "coordinates_of", "part_of"]


def coordinates_of(
    variables: Float64[Tensor, "samples variables"], bijection: Bijection, warp: Sequence[bool]
) -> Coordinates:
    """Coordinates that suit the samples; positive variables with long tails get a logarithm, as a support above 0.

    Args:
        variables: samples, inside the bijection's support.
        bijection: of known supports.
        warp: the variables whose tails may be warped, which have no known support.
    """
    tails = Columns.of(variables)
    logarithm = [may and kind == "log" for may, kind in zip(warp, tails.kinds, strict=True)]
    low = [0.0 if log else end for log, end in zip(logarithm, bijection.low, strict=True)]
    bijection = Bijection(low, bijection.high)
    plain = Columns.of(bijection.forward(variables), warp=False)
    warped = [may and not log for may, log in zip(warp, logarithm, strict=True)]
    chosen = [
        [b if take else a for take, a, b in zip(warped, getattr(plain, f.name), getattr(tails, f.name), strict=True)]
        for f in fields(Columns)
    ]
    return Coordinates(bijection, Columns(*map(tuple, chosen)))


def part_of(coordinates: Coordinates, indices: Sequence[int]) -> Coordinates:
    """The coordinates of some of the variables."""
    low, high = ([ends[i] for i in indices] for ends in (coordinates.bijection.low, coordinates.bijection.high))
    chosen = [tuple(getattr(coordinates.columns, f.name)[i] for i in indices) for f in fields(Columns)]
    return Coordinates(Bijection(low, high), Columns(*chosen))


class Latent(Denoiser):
    """The denoiser of the latent variables; condition (batch, known): the values of the known ones.

    Args:
        denoiser: of all variables, with condition [values, flags].
        latent, known: numbers of variables, which together are all of them.
    """

    where: Tensor
    given: Tensor

    def __init__(self, denoiser: Denoiser, latent: Sequence[int], known: Sequence[int]) -> None:
        super().__init__()
        self.joint = denoiser
        self.register_buffer("where", torch.tensor(list(latent), dtype=torch.int64), persistent=False)
        self.register_buffer("given", torch.tensor(list(known), dtype=torch.int64), persistent=False)
        self.event_shape = (len(latent),)
        self.condition_shape = (len(known),) if len(known) else None
        self.sigma_data, self.sigma_min, self.sigma_max = denoiser.sigma_data, denoiser.sigma_min, denoiser.sigma_max

    def denoise(
        self, x: Float[Tensor, "batch *event"], sigma: Float64[Tensor, "*batch_or_none"], condition: Condition
    ) -> Float[Tensor, "batch *event"]:
        """The latent part of what the joint denoiser gives."""
        total = len(self.where) + len(self.given)
        noisy = x.new_zeros(len(x), total).index_copy(1, self.where, x)
        values, flags = x.new_zeros(len(x), total), x.new_zeros(len(x), total)
        if condition is not None and len(self.given):
            values = values.index_copy(1, self.given, condition.to(x).expand(len(x), -1))
            flags = flags.index_fill(1, self.given, 1.0)
        return self.joint(noisy, sigma, torch.cat([values, flags], 1)).index_select(1, self.where)


class Conditional(Posterior):
    """p(wanted | known) of a joint distribution; `openedm.inference.Joint` makes them.

    Here "parameters" are the wanted variables, and the observation x holds the values of the known ones.

    Args:
        denoiser: of all variables, with condition [values, flags].
        coordinates: of all variables.
        names: of all variables.
        wanted, known: numbers of variables.
        sampler: how samples are drawn.
        likelihood: how log-densities are computed.
        x_shape: shape of one observation; None means (number of known variables,).
        prior: of the wanted variables, where they have one.

    Raises:
        ValueError: as `Posterior`. `sample` and `log_prob` raise it where a known value lies outside its support, and
            `log_prob` where a variable is integrated out.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        coordinates: Coordinates,
        names: Sequence[str],
        wanted: Sequence[int],
        known: Sequence[int],
        *,
        sampler: SamplerChoice,
        likelihood: Likelihood,
        x_shape: Sequence[int] | None = None,
        prior: Prior | None = None,
    ) -> None:
        dropped = [i for i in range(len(names)) if i not in wanted and i not in known]
        super().__init__(
            len(wanted),
            (len(known),) if x_shape is None else x_shape,
            prior=prior,
            names=[names[i] for i in wanted],
            device=next(denoiser.parameters(), torch.zeros(())).device,
        )
        self.known = tuple(names[i] for i in known)
        self.integrated_out = tuple(names[i] for i in dropped)
        self.sampler, self.likelihood = sampler, likelihood
        self._denoiser = Latent(denoiser, [*wanted, *dropped], known).eval()
        self._wanted, self._known = part_of(coordinates, wanted), part_of(coordinates, known)

    def _draw(
        self, x: Float[Tensor, "observations ..."], n: int, seeds: Sequence[int]
    ) -> Float[Tensor, "observations n dim"]:
        condition, size = self._condition(x, n), len(self._denoiser.where)
        noise = SampleNoise(seeds, n).draw((size,)).to(self.device)
        z = flow(self._denoiser, self.sampler, noise, condition)
        return self._wanted.inverse(z[:, : self.dim]).reshape(len(x), n, self.dim)

    def _density(
        self, theta: Float[Tensor, "observations n dim"], x: Float[Tensor, "observations ..."]
    ) -> Float[Tensor, "observations n"]:
        if self.integrated_out:
            raise ValueError(
                f"log_prob is not known where variables are integrated out ({', '.join(self.integrated_out)}): "
                "name them as latent or observed"
            )
        inside = self._wanted.bijection.contains(theta)
        points = self._wanted.bijection.clamp(theta)
        condition = self._condition(x, theta.shape[1])
        z = self._wanted.forward(points).flatten(0, 1)
        # Above 16 variables the trace is estimated with random probes, the same for every point.
        found = self.likelihood.log_prob(self._denoiser, z, condition, seeds=[0] * len(z))
        density = found.log_prob.reshape(theta.shape[:2]) + self._wanted.log_det(points)
        return torch.where(inside, density, -math.inf)

    def _condition(self, x: Float[Tensor, "observations ..."], n: int) -> Float[Tensor, "rows known"] | None:
        """The denoiser's condition: a row for each of n samples of each observation; one for all of a single one."""
        if not self.known:
            return None
        z = self._known.forward(x.flatten(1)).float()
        if bool(z.isnan().any()):
            row, column = (int(i) for i in z.isnan().nonzero()[0])
            raise ValueError(
                f"x must lie in the support of what is known, got {self.known[column]} = "
                f"{float(x.flatten(1)[row, column]):g}"
            )
        return z if len(z) == 1 else z.repeat_interleave(n, 0)
